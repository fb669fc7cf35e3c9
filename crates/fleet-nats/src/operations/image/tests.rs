//! Plays leaders that write true values, and a broker that loses some or sets them back.

use std::{collections::HashMap, num::NonZeroU64, time::Duration};

use fastrand::Rng;
use hashfinder_operations::{End, EndReason, Request};
use hashfinder_search::{Checkpoint, Distance, Query};

use super::*;

const SECRETS: Index = 3_000;

fn query() -> Query {
    let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
    query.interesting(Distance::from(5))
}

/// The candidates of the query, in order.
fn oracle(query: &Query) -> Vec<Index> {
    let all = (0..SECRETS).map(|index| query.candidate(index));
    let hits = all.filter(|found| query.is_interesting(found.distance));
    hits.map(|found| found.index).collect()
}

fn record(name: u128) -> Record {
    let request = Request {
        client: "client".into(),
        request_id: name.to_string(),
        display_name: String::new(),
        query: query(),
        maximum_hashes: 0,
        keep: Duration::from_secs(60),
    };
    Record::new(Name::new(name), request, SECRETS, 0)
}

/// Moves an operation on by some secrets, some of them beyond its frontier. Returns the candidates
/// that this makes final.
fn advance(record: &mut Record, oracle: &[Index], rng: &mut Rng) -> Vec<Index> {
    let query = record.query().clone();
    let before = record.checkpoint.frontier();
    let frontier = (before + rng.u64(..200)).min(SECRETS);
    let gap = (frontier + rng.u64(1..100)).min(SECRETS);
    let beyond = (gap + rng.u64(..300)).min(SECRETS);
    let held = oracle.iter().copied();
    let held: Vec<Index> = held.filter(|index| (gap..beyond).contains(index)).collect();
    let to_cover = [frontier..gap, beyond..SECRETS];
    let to_cover = to_cover.into_iter().filter(|range| !range.is_empty());
    let checkpoint = Checkpoint::restore(&query, to_cover.collect(), &held, SECRETS);
    record.checkpoint = checkpoint.unwrap();
    let final_ones = oracle.iter().copied();
    let final_ones: Vec<Index> = final_ones
        .filter(|index| (before..frontier).contains(index))
        .collect();
    record.candidates += final_ones.len() as u64;
    final_ones
}

/// Checks that what an image says of an operation is true: each secret that need not be searched
/// again was tried, and what was found there is known.
fn check(saved: &Saved, oracle: &[Index]) {
    let checkpoint = &saved.record.checkpoint;
    let frontier = checkpoint.frontier();
    let below: Vec<Index> = oracle.iter().copied().filter(|at| *at < frontier).collect();
    assert_eq!(*saved.candidates, *below);
    let held: Vec<Index> = checkpoint.held().collect();
    for index in oracle.iter().filter(|at| **at >= frontier) {
        let is_left = checkpoint
            .to_cover()
            .iter()
            .any(|range| range.contains(index));
        assert!(
            is_left || held.contains(index),
            "{index} would not be found"
        );
    }
}

/// Whatever values the broker loses or sets back, an operation searches something again, and
/// leaves nothing out.
#[test]
fn lost_and_old_values_never_leave_anything_out() {
    let query = query();
    let oracle = oracle(&query);
    assert!(oracle.len() > 50, "{}", oracle.len());
    for seed in 0..300 {
        let mut rng = Rng::with_seed(seed);
        let mut record = record(1);
        let name = record.name.clone();
        let mut history: HashMap<String, Vec<Vec<u8>>> = HashMap::new();
        let mut write = |key: String, value: Vec<u8>| history.entry(key).or_default().push(value);
        let operation = values::operation(&record, 0).encode_to_vec();
        write(operation_key(&name), operation);
        let mut candidates = Vec::new();
        for _ in 0..30 {
            let found = advance(&mut record, &oracle, &mut rng);
            if found.is_empty() && rng.u8(..4) > 0 {
                let progress = pb::ProgressOfAll {
                    operations: vec![values::progress(&record)],
                    ..pb::ProgressOfAll::default()
                };
                write(PROGRESS.to_owned(), progress.encode_to_vec());
            } else {
                candidates.extend(found);
                let state = values::state(&record, &candidates, 0).encode_to_vec();
                write(state_key(&name), state);
            }
        }
        // Any earlier value of each key, or none, in any order.
        let mut image = Image::default();
        let mut keys: Vec<&String> = history.keys().collect();
        keys.sort();
        rng.shuffle(&mut keys);
        for (revision, key) in keys.into_iter().enumerate() {
            let values = &history[key];
            let must_be_there = key.starts_with("op.");
            if must_be_there || rng.u8(..5) > 0 {
                let value = &values[rng.usize(..values.len())];
                let applied = image.apply(key, revision as u64 + 1, Some(value));
                assert_eq!(applied.problem, None);
            }
        }
        check(image.get(&name).unwrap(), &oracle);
    }
}

#[test]
fn states_that_cannot_be_read_are_not_searched_again() {
    let record = record(1);
    let name = &record.name;
    let mut image = Image::default();
    let operation = values::operation(&record, 0).encode_to_vec();
    image.apply(&operation_key(name), 1, Some(&operation));
    let broken = [
        vec![0xff; 9],
        pb::SavedState::default().encode_to_vec(),
        pb::SavedState {
            end_reason: "unheard of".to_owned(),
            ..values::state(&record, &[], 0)
        }
        .encode_to_vec(),
        values::state(&record, &[5, 4], 0).encode_to_vec(),
    ];
    for (revision, value) in broken.iter().enumerate() {
        let applied = image.apply(&state_key(name), revision as u64 + 2, Some(value));
        assert!(applied.problem.is_some());
        // It may have ended.
        assert!(image.get(name).unwrap().is_unreadable);
        assert_eq!(image.unfinished().count(), 0);
        assert!(image.leftovers().is_empty());
    }
    let other = values::operation(&self::record(2), 0).encode_to_vec();
    let applied = image.apply(&operation_key(name), 10, Some(&other));
    assert!(applied.problem.is_some());
    assert_eq!(applied.changed, std::slice::from_ref(name));
    // Nor is it deleted with its state.
    assert!(image.get(name).is_none());
    assert!(image.leftovers().is_empty());
}

/// A leader deletes what another one has left of deletions, or has written too late.
#[test]
fn leftovers_are_found() {
    let request = |operation: u128, forget_ms| {
        let value = pb::SavedRequest {
            operation: Name::new(operation).id().to_owned(),
            forget_ms,
            ..pb::SavedRequest::default()
        };
        value.encode_to_vec()
    };
    let mut image = Image::default();
    let mut revision = 0;
    let mut write = |image: &mut Image, key: String, value: &[u8]| {
        revision += 1;
        assert_eq!(image.apply(&key, revision, Some(value)).problem, None);
    };
    for number in 1..=4 {
        let record = record(number);
        let value = values::operation(&record, 0).encode_to_vec();
        write(&mut image, operation_key(&record.name), &value);
    }
    let key = |number: u128| request_key("client", &number.to_string());
    // Acknowledged; remembered, because it is being deleted; of a request that has started 1; of
    // one whose other operation is lost.
    write(&mut image, key(1), &request(1, 0));
    write(&mut image, key(2), &request(2, 9));
    write(&mut image, key(3), &request(1, 0));
    write(&mut image, key(4), &request(8, 0));
    let state = values::state(&record(5), &[], 0).encode_to_vec();
    write(&mut image, state_key(&Name::new(5)), &state);
    let mut left = image.leftovers();
    left.sort();
    assert_eq!(left, [2, 3, 5].map(Name::new));
    // One that was written too late does not hide the one that was acknowledged.
    let late = Record {
        name: Name::new(9),
        ..record(1)
    };
    let value = values::operation(&late, 0).encode_to_vec();
    write(&mut image, operation_key(&late.name), &value);
    assert_eq!(image.by_request(&key(1)), Some(&Name::new(1)));
    image.apply(&operation_key(&late.name), 100, None);
    assert_eq!(image.by_request(&key(1)), Some(&Name::new(1)));
}

#[test]
fn marks_are_forgotten_after_a_while() {
    let mut image = Image::default();
    let key = operation_key(&Name::new(1));
    let value = values::operation(&record(1), 0).encode_to_vec();
    image.apply(&key, 1, Some(&value));
    image.apply(&key, 2, None);
    image.forget_marks();
    assert_eq!(image.revision(&key), 2);
    image.forget_marks();
    assert_eq!(image.revision(&key), 0);
}

#[test]
fn operations_are_counted_and_listed_until_they_are_deleted() {
    let mut image = Image::default();
    for number in 0..4 {
        let record = record(number);
        let value = values::operation(&record, 0).encode_to_vec();
        image.apply(
            &operation_key(&record.name),
            number as u64 + 1,
            Some(&value),
        );
    }
    let ended = Record {
        end: Some(End {
            at: 5,
            reason: EndReason::CancelledByClient,
            message: "enough".to_owned(),
        }),
        ..record(1)
    };
    let value = values::state(&ended, &[], 0).encode_to_vec();
    image.apply(&state_key(&ended.name), 5, Some(&value));
    assert_eq!(*image.get(&ended.name).unwrap().record, ended);
    let count = Count {
        unfinished: 3,
        all: 4,
    };
    assert_eq!(image.count("client"), count);
    let key = request_key("client", "2");
    assert_eq!(image.by_request(&key), Some(&Name::new(2)));
    image.apply(&operation_key(&Name::new(2)), 6, None);
    assert_eq!(image.by_request(&key), None);
    let list = |ended, after| {
        let selection = Selection {
            ended,
            after,
            ..Selection::default()
        };
        let records = image.list(&selection, 2).into_iter();
        records.map(|record| record.name).collect::<Vec<_>>()
    };
    let [first, second, last] = [0, 1, 3].map(Name::new);
    assert_eq!(list(None, None), [first.clone(), second.clone()]);
    let after = Some((0, second.id().to_owned()));
    assert_eq!(list(None, after), std::slice::from_ref(&last));
    assert_eq!(list(Some(true), None), [second]);
    assert_eq!(list(Some(false), None), [first, last]);
}

/// A leader notices what another one writes or deletes, and not its own writes.
#[test]
fn foreign_writes_are_noticed() {
    let own =
        |record: &Record, number: u64| values::operation(record, 7 << 32 | number).encode_to_vec();
    let image = || {
        let mut image = Image::default();
        let value = values::operation(&record(1), 3 << 32).encode_to_vec();
        image.apply(&operation_key(&Name::new(1)), 1, Some(&value));
        image.lead(7, 2);
        let (second, third) = (record(2), record(3));
        image.apply(&operation_key(&second.name), 3, Some(&own(&second, 1)));
        image.apply(&operation_key(&third.name), 4, Some(&own(&third, 2)));
        image.deletes(&operation_key(&third.name));
        image.apply(&operation_key(&third.name), 5, None);
        assert!(!image.is_foreign());
        image
    };
    let mut written = image();
    let value = values::operation(&record(4), 8 << 32).encode_to_vec();
    written.apply(&operation_key(&Name::new(4)), 6, Some(&value));
    assert!(written.is_foreign());
    let mut restored = image();
    restored.apply(&operation_key(&Name::new(2)), 6, Some(&own(&record(2), 1)));
    assert!(restored.is_foreign());
    let mut deleted = image();
    deleted.apply(&operation_key(&Name::new(2)), 6, None);
    assert!(deleted.is_foreign());
    // After a new connection, everything is read anew.
    let mut unchanged = image();
    unchanged.replace(image());
    assert!(!unchanged.is_foreign());
    let mut newer = image();
    let fourth = record(4);
    newer.apply(&operation_key(&fourth.name), 6, Some(&own(&fourth, 3)));
    let mut behind = image();
    behind.replace(newer);
    assert!(!behind.is_foreign());
    let mut lost = image();
    lost.replace(Image::default());
    assert!(lost.is_foreign());
}

#[test]
fn the_budget_of_an_operation_is_kept() {
    let record = record(1);
    let read = values::read_operation(values::operation(&record, 9)).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.checkpoint.end(), SECRETS);
    assert!(NonZeroU64::new(read.budget).is_some());
}
