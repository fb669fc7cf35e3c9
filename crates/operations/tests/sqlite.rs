//! Tests of the store in a folder, with real files.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use hashfinder_operations::{
    Canceller, Change, ClientLimits, ClockReading, Creation, End, EndReason, FILE, Folder, Name,
    OpenError, Reader, Record, RecoveredChange, Rejection, Request, Selection, Sqlite,
    SqliteReader, Store, StoreError, backup, recover,
};
use hashfinder_search::{Checkpoint, Distance, Query};

const LIMITS: ClientLimits = ClientLimits {
    running: 3,
    saved: 5,
};

/// A folder that is deleted at the end of a test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn query() -> Query {
    let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
    query.interesting(Distance::from(4))
}

fn record(number: u128, client: &str, request_id: &str) -> Record {
    let request = Request {
        client: client.into(),
        request_id: request_id.to_owned(),
        display_name: format!("number {number}"),
        query: query(),
        maximum_hashes: 1_000_000,
        keep: Duration::from_secs(60),
    };
    Record::new(Name::new(number), request, 1_000_000, 1_000 + number as i64)
}

/// Returns the indices of the first candidates.
fn hits() -> Vec<u64> {
    let near = |index: &u64| query().candidate(*index).distance < 4;
    (0..20_000).filter(near).collect()
}

/// A record with ranges, held hits, and candidates.
fn advanced(number: u128) -> (Record, Vec<u64>) {
    let hits = hits();
    let (below, held) = hits.split_at(hits.len() / 2);
    let frontier = below.last().unwrap() + 1;
    let ranges = vec![frontier..held[0], 300_000..400_000, 500_000..1_000_000];
    let checkpoint = Checkpoint::restore(&query(), ranges, held, 1_000_000).unwrap();
    let new = record(number, "key:a", "one");
    let advanced = Record {
        checkpoint,
        candidates: below.len() as u64,
        updated: 5_000,
        resumes: 2,
        failures: 1,
        cancel: Some(Canceller::Operator),
        ..new
    };
    (advanced, below.to_vec())
}

fn ended(record: Record, reason: EndReason, at: i64) -> Record {
    let end = End {
        at,
        reason,
        message: "why".to_owned(),
    };
    Record {
        end: Some(end),
        ..record
    }
}

const CLOCK: ClockReading = ClockReading {
    wall: 7_000,
    doubtful_until: 9_000,
};

fn commit(store: &mut Sqlite, changes: &[Change]) -> Vec<Creation> {
    store.commit(changes, CLOCK).unwrap()
}

#[test]
fn what_is_saved_is_read_back() {
    let folder = Temporary::new("read-back");
    let locked = Folder::lock(&folder.0).unwrap();
    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    assert_eq!(store.last_reading().unwrap(), None);
    let new = record(1, "key:a", "one");
    assert_eq!(
        commit(&mut store, &[Change::Create(new.clone())]),
        [Creation::New]
    );
    assert_eq!(store.unfinished().unwrap(), [new]);
    assert_eq!(store.last_reading().unwrap(), Some(CLOCK));
    let (advanced, candidates) = advanced(1);
    assert!(candidates.len() > 3);
    let update = Change::Update {
        record: advanced.clone(),
        candidates: candidates.clone(),
    };
    commit(&mut store, &[update]);
    drop(store);

    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    assert_eq!(store.unfinished().unwrap(), vec![advanced.clone()]);
    let mut reader = SqliteReader::open(&locked.file()).unwrap();
    assert_eq!(reader.get(&advanced.name).unwrap(), Some(advanced.clone()));
    assert_eq!(reader.get(&Name::new(2)).unwrap(), None);
    assert_eq!(
        reader.candidates(&advanced.name, 0, 1_000).unwrap(),
        candidates
    );
    let some = reader.candidates(&advanced.name, candidates[1], 2).unwrap();
    assert_eq!(some, candidates[1..3]);
    // Only the user who runs the server can read it.
    for file in fs::read_dir(&folder.0).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", file.path());
    }
    let update = Change::Update {
        record: ended(advanced.clone(), EndReason::CancelledByOperator, 8_000),
        candidates: vec![],
    };
    commit(&mut store, &[update]);
    assert_eq!(store.unfinished().unwrap(), []);
    let read = reader.get(&advanced.name).unwrap().unwrap();
    assert_eq!(read, ended(advanced, EndReason::CancelledByOperator, 8_000));
}

#[test]
fn a_repeated_request_creates_nothing() {
    let folder = Temporary::new("repeated");
    let locked = Folder::lock(&folder.0).unwrap();
    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    let create = |number, client, id| Change::Create(record(number, client, id));
    let first = Name::new(1);
    // Also within one transaction.
    let both = [
        create(1, "a", "x"),
        create(2, "a", "x"),
        create(3, "b", "x"),
    ];
    let made = commit(&mut store, &both);
    assert_eq!(
        made,
        [
            Creation::New,
            Creation::Existing(first.clone()),
            Creation::New
        ]
    );
    let mut other = record(4, "a", "x");
    other.request.maximum_hashes = 5;
    let reused = Creation::Rejected(Rejection::RequestIdReused);
    assert_eq!(
        commit(&mut store, &[Change::Create(other)]),
        vec![reused.clone()]
    );
    let mut other = record(4, "a", "x");
    other.request.query = query().starting_at(5);
    assert_eq!(commit(&mut store, &[Change::Create(other)]), [reused]);
    // The id is remembered after the operation has ended, and after it was deleted.
    let end = Change::Update {
        record: ended(record(1, "a", "x"), EndReason::BudgetSpent, 8_000),
        candidates: vec![],
    };
    commit(&mut store, &[end]);
    let existing = [Creation::Existing(first.clone())];
    assert_eq!(commit(&mut store, &[create(5, "a", "x")]), existing);
    commit(&mut store, &[Change::Delete(first)]);
    let deleted = [Creation::Rejected(Rejection::Deleted)];
    assert_eq!(commit(&mut store, &[create(5, "a", "x")]), deleted);
    // A day later it is forgotten.
    let day = 24 * 3_600_000;
    store.expire(7_000 + day - 1).unwrap();
    assert_eq!(commit(&mut store, &[create(5, "a", "x")]), deleted);
    store.expire(7_000 + day).unwrap();
    assert_eq!(commit(&mut store, &[create(5, "a", "x")]), [Creation::New]);
    // Requests without an id are never the same.
    assert_eq!(
        commit(&mut store, &[create(6, "a", ""), create(7, "a", "")]),
        [Creation::New, Creation::New]
    );
}

#[test]
fn a_client_has_limits_of_its_own() {
    let folder = Temporary::new("limits");
    let locked = Folder::lock(&folder.0).unwrap();
    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    let create = |number, client| Change::Create(record(number, client, ""));
    for number in 0..3 {
        assert_eq!(commit(&mut store, &[create(number, "a")]), [Creation::New]);
    }
    let running = Creation::Rejected(Rejection::TooManyRunning { limit: 3 });
    assert_eq!(commit(&mut store, &[create(9, "a")]), [running]);
    assert_eq!(commit(&mut store, &[create(10, "b")]), [Creation::New]);
    let end = |number, at| Change::Update {
        record: ended(record(number, "a", ""), EndReason::Found, at),
        candidates: vec![],
    };
    commit(&mut store, &[end(0, 1_000), end(1, 2_000)]);
    let made = commit(&mut store, &[create(3, "a"), create(4, "a")]);
    assert_eq!(made, [Creation::New, Creation::New]);
    commit(&mut store, &[end(3, 2_000)]);
    let saved = Creation::Rejected(Rejection::TooManySaved { limit: 5 });
    assert_eq!(commit(&mut store, &[create(9, "a")]), [saved]);
    // An operation is kept for a minute after its end.
    assert_eq!(store.expire(60_999).unwrap(), 0);
    assert_eq!(store.expire(61_000).unwrap(), 1);
    assert_eq!(commit(&mut store, &[create(9, "a")]), [Creation::New]);
}

#[test]
fn operations_are_listed_in_the_order_of_their_creation() {
    let folder = Temporary::new("listed");
    let locked = Folder::lock(&folder.0).unwrap();
    let limits = ClientLimits {
        running: 100,
        saved: 100,
    };
    let mut store = Sqlite::open(&locked, limits).unwrap();
    let clients = ["a", "b"];
    let changes: Vec<Change> = (0..20)
        .rev()
        .map(|number| Change::Create(record(number, clients[number as usize % 2], "")))
        .collect();
    commit(&mut store, &changes);
    let end = Change::Update {
        record: ended(record(7, "b", ""), EndReason::Found, 0),
        candidates: vec![],
    };
    commit(&mut store, &[end]);
    let mut reader = SqliteReader::open(&locked.file()).unwrap();
    let mut list = |selection: &Selection, limit| -> Vec<Name> {
        let records = reader.list(selection, limit).unwrap();
        records.into_iter().map(|record| record.name).collect()
    };
    let names =
        |numbers: &mut dyn Iterator<Item = u128>| numbers.map(Name::new).collect::<Vec<_>>();
    assert_eq!(list(&Selection::default(), 100), names(&mut (0..20)));
    let after = Selection {
        client: Some("b".to_owned()),
        after: Some((1_005, Name::new(5).id().to_owned())),
        ended: None,
    };
    assert_eq!(list(&after, 3), names(&mut [7, 9, 11].into_iter()));
    let unfinished = Selection {
        ended: Some(false),
        ..after.clone()
    };
    assert_eq!(list(&unfinished, 3), names(&mut [9, 11, 13].into_iter()));
    let only_ended = Selection {
        ended: Some(true),
        ..Selection::default()
    };
    assert_eq!(list(&only_ended, 3), names(&mut [7].into_iter()));
}

#[test]
fn a_folder_has_one_user_at_a_time() {
    let folder = Temporary::new("locked");
    let locked = Folder::lock(&folder.0).unwrap();
    let second = Folder::lock(&folder.0).unwrap_err();
    let process = Some(std::process::id());
    assert!(
        matches!(&second, OpenError::Locked { process: it, .. } if *it == process),
        "{second}"
    );
    drop(locked);
    drop(Folder::lock(&folder.0).unwrap());
    let file = folder.0.join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(
        Folder::lock(&file),
        Err(OpenError::Unusable { .. })
    ));
}

/// A file that is not ours, or from a later version, or damaged, is refused, and stays as it is.
#[test]
fn a_file_that_cannot_be_trusted_is_refused_and_kept() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 4] = [
        ("later version", |path| {
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.pragma_update(None, "user_version", 99).unwrap();
        }),
        ("not a file of operations", |path| {
            fs::remove_file(path).unwrap();
            let connection = rusqlite::Connection::open(path).unwrap();
            connection
                .execute_batch("CREATE TABLE of_another_program (x)")
                .unwrap();
        }),
        ("not a database", |path| {
            fs::write(path, vec![b'x'; 100_000]).unwrap();
        }),
        ("malformed", |path| {
            let mut bytes = fs::read(path).unwrap();
            let length = bytes.len();
            bytes[8192..length - 4096].fill(0x5a);
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (number, (why, spoil)) in spoils.into_iter().enumerate() {
        let folder = Temporary::new(&format!("spoiled-{number}"));
        let locked = Folder::lock(&folder.0).unwrap();
        let mut store = Sqlite::open(&locked, LIMITS).unwrap();
        let (advanced, candidates) = advanced(1);
        let create = Change::Create(record(1, "key:a", "one"));
        let update = Change::Update {
            record: advanced,
            candidates,
        };
        commit(&mut store, &[create, update]);
        drop(store);
        spoil(&locked.file());
        let before = fs::read(locked.file()).unwrap();
        let error = Sqlite::open(&locked, LIMITS).unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{why}: {error}");
        if number < 3 {
            assert!(error.to_string().contains(why), "{why}: {error}");
        }
        assert_eq!(fs::read(locked.file()).unwrap(), before, "{why}");
        let recovered = recover(&locked);
        if why == "not a file of operations" || why == "later version" {
            // It is not ours to replace.
            assert!(number == 0 || recovered.is_err(), "{why}");
            assert!(
                number == 0 || fs::read(locked.file()).unwrap() == before,
                "{why}"
            );
            continue;
        }
        let recovered = recovered.unwrap().expect("it is damaged");
        assert_eq!(fs::read(&recovered.damaged).unwrap(), before, "{why}");
        assert!(Sqlite::open(&locked, LIMITS).is_ok(), "{why}");
    }
}

/// A file with a damaged page keeps the operations on its other pages.
#[test]
fn recovery_keeps_what_can_be_read() {
    let folder = Temporary::new("recovered");
    let locked = Folder::lock(&folder.0).unwrap();
    let limits = ClientLimits {
        running: 10_000,
        saved: 10_000,
    };
    let mut store = Sqlite::open(&locked, limits).unwrap();
    let changes: Vec<Change> = (0..2_000)
        .map(|number| Change::Create(record(number, "a", "")))
        .collect();
    commit(&mut store, &changes);
    drop(store);
    assert_eq!(recover(&locked).unwrap(), None, "nothing is damaged");
    let mut bytes = fs::read(locked.file()).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xff);
    fs::write(locked.file(), bytes).unwrap();
    let recovered = recover(&locked).unwrap().unwrap();
    assert!(
        (1_500..=2_000).contains(&recovered.operations),
        "{recovered:?}"
    );
    let mut store = Sqlite::open(&locked, limits).unwrap();
    let records = store.unfinished().unwrap();
    assert_eq!(records.len() as u64, recovered.operations);
}

#[test]
fn a_backup_is_a_store() {
    let folder = Temporary::new("backup");
    let locked = Folder::lock(&folder.0).unwrap();
    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    let (advanced, candidates) = advanced(1);
    let create = Change::Create(record(1, "key:a", "one"));
    let update = Change::Update {
        record: advanced.clone(),
        candidates: candidates.clone(),
    };
    commit(&mut store, &[create, update]);
    let restored = Temporary::new("restored");
    fs::create_dir(&restored.0).unwrap();
    let copy = restored.0.join(FILE);
    // The store is open, and its log not empty.
    assert_eq!(backup(&locked.file(), &copy).unwrap(), 1);
    assert!(
        backup(&locked.file(), &copy).is_err(),
        "it overwrote a file"
    );
    let locked = Folder::lock(&restored.0).unwrap();
    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    assert_eq!(store.unfinished().unwrap(), vec![advanced.clone()]);
    let mut reader = SqliteReader::open(&copy).unwrap();
    assert_eq!(
        reader.candidates(&advanced.name, 0, 1_000).unwrap(),
        candidates
    );
}

/// Files of every version of the schema are in `tests/data`. To add one for a new version, run this
/// test with `WRITE_FIXTURE=1` before the schema changes again.
#[test]
fn files_of_every_version_are_opened() {
    let (advanced, candidates) = advanced(1);
    let second = ended(record(2, "user:7", ""), EndReason::BudgetSpent, 9_000);
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        let folder = Temporary::new("fixture");
        let locked = Folder::lock(&folder.0).unwrap();
        let mut store = Sqlite::open(&locked, LIMITS).unwrap();
        let changes = [
            Change::Create(record(1, "key:a", "one")),
            Change::Create(record(2, "user:7", "")),
            Change::Update {
                record: advanced.clone(),
                candidates: candidates.clone(),
            },
            Change::Update {
                record: second.clone(),
                candidates: vec![],
            },
        ];
        commit(&mut store, &changes);
        drop(store);
        fs::create_dir_all(&data).unwrap();
        backup(&locked.file(), &data.join("1.db")).unwrap();
    }
    let mut versions = 0;
    for file in fs::read_dir(&data).unwrap() {
        versions += 1;
        let folder = Temporary::new(&format!("version-{versions}"));
        fs::create_dir(&folder.0).unwrap();
        fs::copy(file.unwrap().path(), folder.0.join(FILE)).unwrap();
        let locked = Folder::lock(&folder.0).unwrap();
        let mut store = Sqlite::open(&locked, LIMITS).unwrap();
        assert_eq!(store.unfinished().unwrap(), vec![advanced.clone()]);
        let mut reader = SqliteReader::open(&locked.file()).unwrap();
        assert_eq!(reader.get(&second.name).unwrap(), Some(second.clone()));
        assert_eq!(
            reader.candidates(&advanced.name, 0, 1_000).unwrap(),
            candidates
        );
        let same = Change::Create(record(3, "key:a", "one"));
        let existing = Creation::Existing(advanced.name.clone());
        assert_eq!(commit(&mut store, &[same]), [existing]);
    }
    assert_eq!(versions, 1, "a file for each version of the schema");
}

/// A row that SQLite can read, but that makes no sense, is damage, too.
#[test]
fn an_invalid_row_is_removed_by_recovery() {
    let folder = Temporary::new("invalid-row");
    let locked = Folder::lock(&folder.0).unwrap();
    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    let create = |number| Change::Create(record(number, "a", ""));
    let with_id = Change::Create(record(2, "a", "r"));
    commit(&mut store, &[create(1), with_id.clone(), create(3)]);
    let (advanced, candidates) = advanced(3);
    let advanced = Record {
        request: record(3, "a", "").request,
        ..advanced
    };
    let update = Change::Update {
        record: advanced.clone(),
        candidates,
    };
    commit(&mut store, &[update]);
    drop(store);
    let spoil = |sql: &str| {
        let connection = rusqlite::Connection::open(locked.file()).unwrap();
        assert_eq!(connection.execute(sql, []).unwrap(), 1, "{sql}");
    };
    let [_, second, third] = [1, 2, 3].map(|number| Name::new(number).id().to_owned());
    spoil(&format!(
        "UPDATE operations SET text = 'hf1_x' WHERE name = '{second}'"
    ));
    let recovered = recover(&locked).unwrap().expect("it is damaged");
    let lost = vec![(second, RecoveredChange::Lost)];
    assert_eq!((recovered.operations, recovered.changed), (2, lost));
    assert_eq!(recover(&locked).unwrap(), None);
    // Without all its candidates, an operation starts again.
    let sql = "DELETE FROM candidates WHERE place = (SELECT min(place) FROM candidates)";
    spoil(sql);
    let recovered = recover(&locked).unwrap().expect("it is damaged");
    let restarted = vec![(third, RecoveredChange::Restarted)];
    assert_eq!((recovered.operations, recovered.changed), (2, restarted));
    let mut store = Sqlite::open(&locked, LIMITS).unwrap();
    let hashes: Vec<u64> = store
        .unfinished()
        .unwrap()
        .iter()
        .map(Record::hashes)
        .collect();
    assert_eq!(hashes, [0, 0]);
    // The request of the operation that was lost starts another.
    assert_eq!(commit(&mut store, &[with_id]), [Creation::New]);
}

/// An empty or missing file is not replaced by an empty store.
#[test]
fn a_lost_file_is_damage() {
    let folder = Temporary::new("lost");
    let locked = Folder::lock(&folder.0).unwrap();
    drop(Sqlite::open(&locked, LIMITS).unwrap());
    fs::write(locked.file(), "").unwrap();
    assert!(matches!(
        Sqlite::open(&locked, LIMITS),
        Err(StoreError::Damaged(_))
    ));
    fs::remove_file(locked.file()).unwrap();
    // The server has written its reserve by now.
    fs::write(folder.0.join("reserve"), "").unwrap();
    assert!(matches!(
        Sqlite::open(&locked, LIMITS),
        Err(StoreError::Damaged(_))
    ));
    assert!(!locked.file().exists());
    fs::remove_file(folder.0.join("reserve")).unwrap();
    drop(Sqlite::open(&locked, LIMITS).unwrap());
}
