//! Tests of filters with every plan on every kernel.

use crate::{
    digest::sha1,
    digits::{CharSet, HASHED_NAME_LEN, Text, hashed_name, places},
    filter::Filter,
    hits::Hits,
    kernel::Kernel,
    name::{Name, Target},
    plan::{Bank, Grams, Plan},
    secrets::Block,
};

fn name(text: &[u8], max_distance: u8) -> Name {
    let set = |letter: &u8| {
        let letter = *letter;
        match letter {
            b'=' => CharSet::PADDING,
            _ => CharSet::digits_where(|digit| digit.eq_ignore_ascii_case(&letter)),
        }
    };
    let target = Target {
        characters: &text.iter().map(set).collect::<Vec<_>>(),
        max_distance,
        at: None,
    };
    Name::new(Text::Base64, target)
}

/// Names at every place pass with every stride, not only with the one that the planner would
/// choose. The planner's estimates still choose the shapes of the banks.
#[test]
fn every_plan_passes_all_matches() {
    for errors in 0..=3_u8 {
        for length in [4, 5, 6, 7, 8, 9, 12, 16, 24] {
            // A digest and a name for every window. `errors` of the name's characters never agree.
            let windows = HASHED_NAME_LEN + 1 - length;
            let digest = |window: usize| sha1(&[errors, length as u8, window as u8]);
            let names: Vec<Name> = (0..windows)
                .map(|window| {
                    let mut text = hashed_name(&digest(window))[window..][..length].to_vec();
                    for error in 0..usize::from(errors) {
                        text[(error * 5 + window) % length] = b'!';
                    }
                    name(&text, errors)
                })
                .collect();
            for stride in 0..=Grams::STRIDES {
                let plan = Plan::with_stride(&names, stride);
                let filter = Filter::planned(Text::Base64, names.clone(), plan);
                for window in 0..windows {
                    let mut found = Vec::new();
                    filter.check(&digest(window), |hit| found.push(hit.name));
                    assert!(
                        found.contains(&(window as u16)),
                        "{errors} of {length} characters, window {window}, stride {stride}"
                    );
                    assert!(names[window].is_at(window, &places(Text::Base64, &digest(window))));
                    for kernel in Kernel::all() {
                        let block = Block::new(3, secret(errors, length, window), 1);
                        let mut hits = Hits::with_limit(usize::MAX);
                        kernel.scan(&block, &filter, &mut hits);
                        let names: Vec<u16> = hits.iter().map(|hit| hit.name).collect();
                        assert_eq!(names, found, "{}", kernel.name());
                    }
                }
            }
        }
    }
}

/// Returns the three bytes of a digest's message, as a counter.
fn secret(errors: u8, length: usize, window: usize) -> u64 {
    u64::from(errors) << 16 | (length as u64) << 8 | window as u64
}

#[test]
fn banks_of_every_shape_pass_all_matches() {
    for errors in 0..=Bank::MAX_ERRORS {
        let digest = |number: usize| sha1(&[errors, number as u8, 7]);
        let names: Vec<Name> = (0..40)
            .map(|number| {
                // Lengths from 1 to 12, at places from the first to the last.
                let length = 1 + number % 12;
                let window = number * 11 % (HASHED_NAME_LEN + 1 - length);
                let mut text = hashed_name(&digest(number))[window..window + length].to_vec();
                for error in 0..usize::from(errors).min(length) {
                    text[(error * 3 + number) % length] = b'!';
                }
                name(&text, errors)
            })
            .collect();
        for in_bucket in [1, 2, 3, 5, 16] {
            for length in 1..=Bank::MAX_LEN {
                let all: Vec<&Name> = names.iter().collect();
                let banks = all.chunks(in_bucket * Bank::BUCKETS);
                let plan = Plan {
                    banks: banks
                        .map(|names| Bank::new(names, in_bucket, length, errors))
                        .collect(),
                    apart: (0..names.len() as u16).collect(),
                    ..Plan::default()
                };
                let filter = Filter::planned(Text::Base64, names.clone(), plan);
                for number in 0..names.len() {
                    let counter = u64::from(errors) << 16 | (number as u64) << 8 | 7;
                    for kernel in Kernel::all() {
                        let mut hits = Hits::with_limit(usize::MAX);
                        kernel.scan(&Block::new(3, counter, 1), &filter, &mut hits);
                        assert!(
                            hits.iter().any(|hit| usize::from(hit.name) == number),
                            "{}: name {number}, {errors} errors, {in_bucket} to a bucket, \
                             {length} characters",
                            kernel.name()
                        );
                    }
                }
            }
        }
    }
}
