//! Tests with a real engine, and a store that blocks or fails.

use std::{
    path::PathBuf,
    sync::{Condvar, atomic::AtomicU32},
    task::Waker,
};

use hashfinder_search::{
    Admission, Advance, Client, Distance, Engine, Event as SearchEvent, Kernel, Outcome, Query,
    ResumableSearch,
};

use super::*;
use crate::{
    record::Request,
    runner::{Phase, Refused, Search, StopCause},
    store::ClockReading,
};

struct EngineHost(Arc<Engine>);

struct EngineSearch(ResumableSearch, Waker);

impl Host for EngineHost {
    type Place = Admission;
    type Search = EngineSearch;

    fn reserve(&mut self, _client: &str) -> Result<Admission, Refused> {
        let admission = self.0.admit(Client::default());
        admission.map_err(|_| Refused::TooManySearches)
    }

    fn begin(
        &mut self,
        admission: Admission,
        record: &Record,
        alone: bool,
        waker: Waker,
    ) -> EngineSearch {
        assert_ne!(
            record.request.display_name, "panic",
            "a panic that this test wants"
        );
        let query = record.query().clone();
        let checkpoint = record.checkpoint.clone();
        let search = (self.0).resume(admission, query, checkpoint, alone, |_| ());
        EngineSearch(search, waker)
    }

    fn is_revoked(&mut self, _client: &str) -> bool {
        false
    }
}

impl Search for EngineSearch {
    fn advance(&mut self) -> Advance {
        self.0.advance(&self.1)
    }

    fn stop(&mut self, _cause: StopCause) {
        self.0.stopper().stop();
    }

    fn id(&self) -> Option<Arc<str>> {
        None
    }
}

/// What a test does to its store.
#[derive(Default)]
struct Faults {
    /// Commits wait while it is `true`.
    is_blocked: Mutex<bool>,
    /// Whether commits panic.
    panics: AtomicBool,
    changed: Condvar,
    /// Number of commits that fail, before or after they were written.
    failing: AtomicU32,
    fails_after: AtomicBool,
}

impl Faults {
    fn block(&self, is_blocked: bool) {
        *self.is_blocked.lock().unwrap() = is_blocked;
        self.changed.notify_all();
    }
}

struct Faulty(Box<dyn Store>, Arc<Faults>);

impl Store for Faulty {
    fn commit(
        &mut self,
        changes: &[Change],
        now: ClockReading,
    ) -> Result<Vec<Creation>, StoreError> {
        let blocked = self.1.is_blocked.lock().unwrap();
        drop(
            self.1
                .changed
                .wait_while(blocked, |blocked| *blocked)
                .unwrap(),
        );
        let panics = self.1.panics.load(Ordering::SeqCst);
        assert!(!panics, "a panic that this test wants");
        let fails = |left: u32| left.checked_sub(1);
        let fails = self
            .1
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails);
        if fails.is_ok() {
            if self.1.fails_after.load(Ordering::SeqCst) {
                self.0.commit(changes, now)?;
            }
            return Err(StoreError::Unavailable("a fault of the test".to_owned()));
        }
        self.0.commit(changes, now)
    }

    fn unfinished(&mut self) -> Result<Vec<Record>, StoreError> {
        self.0.unfinished()
    }

    fn expire(&mut self, now: Millis) -> Result<u64, StoreError> {
        self.0.expire(now)
    }

    fn last_reading(&mut self) -> Result<Option<ClockReading>, StoreError> {
        self.0.last_reading()
    }
}

struct Server {
    operations: Operations,
    engine: Arc<Engine>,
    faults: Arc<Faults>,
    folder: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn server(name: &str) -> Server {
    let path = std::env::temp_dir().join(format!("hashfinder-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    let folder = Arc::new(Folder::lock(&path).unwrap());
    let started = Instant::now();
    let engine = Engine::start(1, Kernel::best(), move || started.elapsed()).unwrap();
    let (engine, faults) = (Arc::new(engine), Arc::new(Faults::default()));
    let (of_open, file, of_store) = (Arc::clone(&folder), folder.file(), Arc::clone(&faults));
    let limits = Limits::default();
    let store = StoreOptions {
        place: path.display().to_string(),
        pace: Pace::DISK,
        open: Box::new(move || {
            let store = Sqlite::open(&of_open, limits.of_client)?;
            Ok(Box::new(Faulty(Box::new(store), Arc::clone(&of_store))))
        }),
        read: Box::new(move || Ok(Box::new(SqliteReader::open(&file)?))),
    };
    let host = EngineHost(Arc::clone(&engine));
    let operations = Operations::run(store, Some(folder), 10_000, || host).unwrap();
    Server {
        operations,
        engine,
        faults,
        folder: path,
    }
}

fn record(name: &str, number: u128) -> Record {
    let query = Query::new(name.parse().unwrap(), Distance::ZERO).unwrap();
    let request = Request {
        client: "a".into(),
        request_id: number.to_string(),
        display_name: String::new(),
        query,
        maximum_hashes: 0,
        keep: Duration::from_secs(60),
    };
    Record::new(Name::new(number), request, u64::MAX, now())
}

/// Waits until something is true.
async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_true() {
        assert!(began.elapsed() < Duration::from_secs(120), "never {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Server {
    async fn start(&self, name: &str, number: u128) -> Snapshot {
        loop {
            match self.operations.start(record(name, number)).await {
                Ok(started) => return started,
                // The store is being opened.
                Err(Error::Unavailable(_)) => tokio::time::sleep(REOPEN_AFTER / 10).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn phase(&self, name: &Name) -> Phase {
        self.operations.get(name).await.unwrap().unwrap().phase
    }
}

#[tokio::test]
async fn while_a_commit_is_blocked_operations_pause_and_a_cancellation_frees_the_cores() {
    let server = server("blocked");
    let (operations, engine) = (&server.operations, &server.engine);
    let name = server
        .start("hashfinderhashfinder", 1)
        .await
        .record
        .name
        .clone();
    until("searched", || engine.metrics().hashes > 0).await;
    server.faults.block(true);
    // The next regular commit is blocked. A second later, operations pause.
    until("paused", || engine.metrics().active == 0).await;
    // Calls continue.
    let query = Query::new("doc".parse().unwrap(), Distance::ZERO).unwrap();
    let mut call = engine.search(Client::default(), query, |_| ()).unwrap();
    assert!(matches!(
        call.blocking_next(),
        SearchEvent::Ended(Outcome::Ideal(_))
    ));
    let paused = Phase::Paused("the server's disk is slow".into());
    while server.phase(&name).await != paused {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(operations.metrics().commit_lag > Duration::ZERO);
    server.faults.block(false);
    until("searched again", || engine.metrics().active > 0).await;

    // A cancellation stops the search although it cannot be saved.
    server.faults.block(true);
    let (of_cancel, cancelled) = (operations.clone(), name.clone());
    let cancel = tokio::spawn(async move {
        of_cancel
            .cancel(&cancelled, Canceller::Client, String::new())
            .await
    });
    until("stopped", || engine.metrics().active == 0).await;
    assert!(
        !cancel.is_finished(),
        "it was acknowledged before it was saved"
    );
    assert_ne!(server.phase(&name).await, Phase::Ended);
    server.faults.block(false);
    cancel.await.unwrap().unwrap();
    let ended = operations.get(&name).await.unwrap().unwrap();
    let reason = ended.record.end.as_ref().map(|end| end.reason);
    assert_eq!(reason, Some(EndReason::CancelledByClient));
    assert!(ended.record.hashes() > 0);
}

#[tokio::test]
async fn after_failed_commits_operations_continue_from_what_was_saved() {
    for fails_after in [false, true] {
        let server = server(&format!("failing-{fails_after}"));
        let operations = &server.operations;
        server
            .faults
            .fails_after
            .store(fails_after, Ordering::SeqCst);
        let name = server
            .start("hashfinderhashfinder", 1)
            .await
            .record
            .name
            .clone();
        let hashes = || async {
            operations
                .get(&name)
                .await
                .unwrap()
                .unwrap()
                .record
                .hashes()
        };
        for _ in 0..2 {
            let before = hashes().await;
            server.faults.failing.store(1, Ordering::SeqCst);
            let failed = operations.metrics().failed_commits;
            until("failed", || operations.metrics().failed_commits > failed).await;
            until("works", || operations.metrics().health == Health::Working).await;
            while hashes().await <= before {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        // A request whose commit fails is not acknowledged. Its repetition starts only one
        // operation, whether or not the first one was written.
        server.faults.failing.store(1, Ordering::SeqCst);
        let first = operations.start(record("doctor", 2)).await;
        assert!(matches!(first, Err(Error::Unavailable(_))), "{first:?}");
        let started = server.start("doctor", 2).await;
        let same = server.start("doctor", 2).await;
        assert_eq!(started.record.name, same.record.name);
        let list = operations.list(Selection::default(), 10).await.unwrap();
        assert_eq!(list.len(), 2);
        let found = &started.record.name;
        while server.phase(found).await != Phase::Ended {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let found = operations.get(found).await.unwrap().unwrap();
        assert_eq!(found.record.found(), Some(10_874_375));
        operations
            .cancel(&name, Canceller::Operator, String::new())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_drained_server_saves_its_progress() {
    let server = server("drained");
    let operations = &server.operations;
    let name = server
        .start("hashfinderhashfinder", 1)
        .await
        .record
        .name
        .clone();
    until("searched", || server.engine.metrics().hashes > 1_000_000).await;
    operations.drain().await.unwrap();
    assert_eq!(server.engine.metrics().active, 0);
    let saved = operations.get(&name).await.unwrap().unwrap();
    // Nothing was searched that is not saved.
    assert_eq!(saved.record.hashes(), server.engine.metrics().tests);
    let late = operations.start(record("doctor", 2)).await;
    assert_eq!(late.err(), Some(Error::Draining));
}

/// What is saved stays readable, and requests fail instead of waiting forever.
#[tokio::test]
async fn a_panic_of_the_runner_is_reported() {
    let server = server("panic");
    let operations = &server.operations;
    let name = server.start("doctor", 1).await.record.name.clone();
    while server.phase(&name).await != Phase::Ended {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut wrong = record("doctor", 2);
    wrong.request.display_name = "panic".to_owned();
    // It may be acknowledged before its search begins.
    let _ = operations.start(wrong).await;
    let broken = Error::Unavailable(BROKEN.into());
    let health = || operations.metrics().health;
    until("broken", || health() == Health::Unavailable(BROKEN.into())).await;
    let refused = operations.start(record("doctor", 3)).await;
    assert_eq!(refused.err(), Some(broken.clone()));
    let refused = operations
        .cancel(&name, Canceller::Client, String::new())
        .await;
    assert_eq!(refused, Err(broken));
    assert_eq!(server.phase(&name).await, Phase::Ended);
}

/// What is saved stays readable, and requests fail instead of waiting forever.
#[tokio::test]
async fn a_panic_of_the_writer_is_reported() {
    let server = server("writer-panic");
    let operations = &server.operations;
    let name = server.start("doctor", 1).await.record.name.clone();
    while server.phase(&name).await != Phase::Ended {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.faults.panics.store(true, Ordering::SeqCst);
    let broken = Err(Error::Unavailable(BROKEN.into()));
    for number in [2, 3] {
        let started = operations.start(record("doctor", number)).await;
        assert_eq!(started.map(drop), broken);
    }
    assert_eq!(operations.delete(&name).await, broken);
    assert_eq!(server.phase(&name).await, Phase::Ended);
}

#[tokio::test]
async fn a_panic_of_a_read_fails_only_that_read() {
    let server = server("reader-panic");
    let operations = &server.operations;
    let name = server.start("doctor", 1).await.record.name.clone();
    let failed = operations.read(|_| -> Result<(), StoreError> {
        panic!("a panic that this test wants");
    });
    let failed = failed.await;
    assert_eq!(failed, Err(Error::Unavailable(READ_FAILED.into())));
    while server.phase(&name).await != Phase::Ended {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
