//! A store in a folder: an SQLite file, a lock, and a reserve for a full disk.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hashfinder_search::{Checkpoint, Cursor, Index};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Statement, TransactionBehavior,
    named_params, params,
};

use crate::{
    record::{COLLECTION, Canceller, End, EndReason, Millis, Name, Record, Request},
    store::{
        Change, ClientLimits, ClockReading, Creation, Reader, Rejection, Selection, Store,
        StoreError,
    },
};

/// Name of the file of operations within the folder.
pub const FILE: &str = "operations.db";

/// Name of the file that a server locks, so that a second one does not use the same folder.
const LOCK: &str = "lock";

/// Name and size of a file that is deleted when the disk is full. What it frees is enough for about
/// a thousand cancellations and deletions, with the pages of the log that they take.
const RESERVE: &str = "reserve";
const RESERVE_LEN: usize = 4 << 20;

/// Marks the file as ours: "hfop" in ASCII.
pub(crate) const APPLICATION_ID: i32 = 0x6866_6f70;

/// The changes from each version of the schema to the next. The version of a file is how many of
/// them it has. Released ones never change.
const MIGRATIONS: [&str; 1] = [include_str!("schema/1.sql")];

/// The keys of the table `meta` for a [`ClockReading`].
const LAST_COMMIT: &str = "last_commit";
const DOUBTFUL_UNTIL: &str = "doubtful_until";

/// How long a request id is remembered after its operation was deleted, so that a delayed duplicate
/// of the request does not start the work again.
const REMEMBER_REQUEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Maximum number of expired operations to delete in one transaction. With ten thousand candidates
/// each, that takes about a tenth of a second.
const EXPIRED_AT_ONCE: i64 = 20;

/// Why operations are paused while the disk is full.
pub(crate) const FULL: &str = "the server's disk is full";

/// How long to wait for another process that uses the file, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the folder.
    #[error("another server{} uses {path:?}; give each server its own folder", of_process(*.process))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that uses it, if it is known.
        process: Option<u32>,
    },
    /// The operations were saved by a later version of this program.
    #[error(
        "the operations in {path:?} were saved by a later version of hashfinder (schema {version}; \
         this version reads up to {}); use that version, or another folder",
        MIGRATIONS.len()
    )]
    LaterVersion {
        /// The folder.
        path: PathBuf,
        /// Version of the schema.
        version: i32,
    },
    /// The folder cannot be created or read.
    #[error("cannot use the folder {path:?}: {why}")]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

fn of_process(process: Option<u32>) -> String {
    process.map_or(String::new(), |process| format!(" (process {process})"))
}

/// A folder that this process has locked. The lock ends when this is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Creates the folder if it is missing, for this user alone, and locks it.
    ///
    /// # Errors
    ///
    /// If another process has locked it, or the system does not allow it.
    pub fn lock(path: &Path) -> Result<Folder, OpenError> {
        let unusable = |why: io::Error| OpenError::Unusable {
            path: path.to_owned(),
            why: why.to_string(),
        };
        create_folder(path).map_err(unusable)?;
        // SQLite follows no symbolic link in a path, so that other users cannot redirect it.
        let real = path.canonicalize().map_err(unusable)?;
        let path = &real;
        let mut options = OpenOptions::new();
        options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600);
        let mut lock = options.open(path.join(LOCK)).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                let _ = lock.read_to_string(&mut process);
                return Err(OpenError::Locked {
                    path: path.to_owned(),
                    process: process.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // Only for the message of another process. Without it, the lock works as well.
        let _ = lock.set_len(0);
        let _ = lock.rewind();
        let _ = writeln!(lock, "{}", std::process::id());
        Ok(Folder {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Locks a folder that has a file of operations.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Self::lock); also if it has no such file.
    pub fn lock_existing(path: &Path) -> Result<Folder, OpenError> {
        if !path.join(FILE).is_file() {
            return Err(OpenError::Unusable {
                path: path.to_owned(),
                why: format!("it has no file {FILE}; restore a backup if it had one"),
            });
        }
        Folder::lock(path)
    }

    /// Checks that the file of operations, if there is one, was not written by a later version. A
    /// file that cannot be read passes: opening it reports what is wrong.
    ///
    /// # Errors
    ///
    /// [`OpenError::LaterVersion`].
    pub fn check_version(&self) -> Result<(), OpenError> {
        let version = || -> Result<i32, StoreError> {
            let connection = connect(&self.file(), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            let pragma = |name| connection.pragma_query_value(None, name, |row| row.get(0));
            Ok(if pragma("application_id")? == APPLICATION_ID {
                pragma("user_version")?
            } else {
                0
            })
        };
        match version() {
            Ok(version) if version as usize > MIGRATIONS.len() => Err(OpenError::LaterVersion {
                path: self.path.clone(),
                version,
            }),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Returns the path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the file of operations.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }

    /// Creates an empty store: completely, or not at all. A file that is empty is therefore
    /// damaged.
    fn create_store(&self) -> Result<(), StoreError> {
        if self.has_reserve() {
            // This folder had one.
            return Err(StoreError::Damaged(format!(
                "{FILE} is missing; restore a backup or, to begin without it, delete the file \
                 {RESERVE:?} in its folder"
            )));
        }
        let (path, new) = (self.file(), self.path.join(format!("{FILE}.new")));
        let _ = fs::remove_file(&new);
        create_file(&new)?;
        let mut connection = connect(&new, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "synchronous", "full")?;
        migrate(&mut connection)?;
        drop(connection);
        let renamed = fs::rename(&new, &path).and_then(|()| self.sync());
        renamed.map_err(|error| unavailable(&error))
    }

    /// Makes changes of names in the folder durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// Writes the reserve, if it is missing. Returns whether it exists, that is, whether the disk
    /// has room.
    pub(crate) fn fill_reserve(&self) -> bool {
        let path = self.path.join(RESERVE);
        if fs::metadata(&path).is_ok_and(|file| file.len() == RESERVE_LEN as u64) {
            return true;
        }
        let fill = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            // Not zeros: a file system may store these without taking any room.
            let noise: Vec<u8> = (0..RESERVE_LEN as u64)
                .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
                .collect();
            file.write_all(&noise)?;
            file.sync_all()
        };
        let filled = fill().is_ok();
        if !filled {
            let _ = fs::remove_file(&path);
        }
        filled
    }

    /// Returns whether the disk has room for more than the reserve, or that is unknown.
    pub(crate) fn has_room(&self) -> bool {
        let room = rustix::fs::statvfs(&self.path);
        room.map_or(true, |room| {
            room.f_bavail.saturating_mul(room.f_frsize) > 2 * RESERVE_LEN as u64
        })
    }

    fn has_reserve(&self) -> bool {
        fs::exists(self.path.join(RESERVE)).unwrap_or(true)
    }

    /// Deletes the reserve, so that a full disk has a little room.
    pub(crate) fn release_reserve(&self) {
        let _ = fs::remove_file(self.path.join(RESERVE));
    }

    /// Returns the size of the store on disk, in bytes, with its log.
    pub(crate) fn size(&self) -> u64 {
        let parts = ["", "-wal"].map(|part| self.path.join(format!("{FILE}{part}")));
        let sizes = parts.map(|path| fs::metadata(path).map_or(0, |file| file.len()));
        sizes.iter().sum()
    }
}

/// The store in a folder.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    limits: ClientLimits,
}

impl Sqlite {
    /// Opens the store in a folder, or creates an empty one. Checks the whole file, and brings it
    /// to the current version.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if the file is not a valid store, or belongs to a later version.
    pub fn open(folder: &Folder, limits: ClientLimits) -> Result<Sqlite, StoreError> {
        let path = folder.file();
        if !fs::exists(&path).map_err(|error| unavailable(&error))? {
            folder.create_store()?;
        }
        let mut connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // Before anything is changed.
        check(&connection)?;
        // A commit is durable once it returns, also if the power fails.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "journal_size_limit", RESERVE_LEN as i64)?;
        migrate(&mut connection)?;
        // After a failed fsync, the log may have commits that only the memory of the system holds,
        // and a later commit would be lost with them. This writes what they changed again. While
        // another process, such as a backup, reads the file, it waits, and then does nothing.
        match connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            // The reserve is gone, and what it freed is for cancellations and deletions.
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DiskFull)
                    && !folder.has_reserve() => {}
            checkpoint => checkpoint?,
        }
        Ok(Sqlite { connection, limits })
    }
}

impl Sqlite {
    /// Returns whether every operation and every candidate can be read.
    pub(crate) fn is_readable(&self) -> bool {
        let Ok(all) = records(&self.connection, SELECT, []) else {
            return false;
        };
        let is_valid = |record: &Record| {
            let sql =
                "SELECT count(*), coalesce(max(place), x''), coalesce(max(length(place)), 16),
                       coalesce(min(length(place)), 16) FROM candidates WHERE operation = ?1";
            let read = self.connection.query_row(sql, [record.name.id()], |row| {
                let count: i64 = row.get(0)?;
                let last: Vec<u8> = row.get(1)?;
                let lengths: (i64, i64) = (row.get(2)?, row.get(3)?);
                Ok((count.unsigned_abs(), last, lengths))
            });
            let end = number(record.query().keyspace().end());
            read.is_ok_and(|(count, last, lengths)| {
                count == record.candidates && last < end.to_vec() && lengths == (16, 16)
            })
        };
        all.iter().all(is_valid)
    }
}

/// Creates this folder and those above it, for this user alone, and makes their names durable.
fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().unwrap_or(Path::new(""));
    let above = if above.as_os_str().is_empty() {
        Path::new(".")
    } else {
        above
    };
    create_folder(above)?;
    match DirBuilder::new().mode(0o700).create(path) {
        // Another process created it at this moment.
        Err(_) if path.is_dir() => {}
        created => created?,
    }
    // A folder that may not be read, or a file system without this, does not prevent the use.
    let _ = File::open(above).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Creates an empty file that only this user can read. SQLite would create it for other users to
/// read. Its other files follow it.
pub(crate) fn create_file(path: &Path) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    let created = options.create_new(true).write(true).mode(0o600).open(path);
    created.map(drop).map_err(|error| unavailable(&error))
}

/// Opens a connection to a file that exists.
pub(crate) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

/// Checks that the file is a store of ours, of this version or an earlier one, and not damaged.
fn check(connection: &Connection) -> Result<(), StoreError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (version, id) = (pragma("user_version")?, pragma("application_id")?);
    if id != APPLICATION_ID {
        return Err(StoreError::Damaged(format!(
            "{FILE} is not a file of operations"
        )));
    }
    if version as usize > MIGRATIONS.len() {
        return Err(StoreError::Damaged(format!(
            "{FILE} was written by a later version of hashfinder (schema {version}; this version \
             reads up to {}); use that version",
            MIGRATIONS.len()
        )));
    }
    let check = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))?;
    if check != "ok" {
        return Err(StoreError::Damaged(check.replace('\n', "; ")));
    }
    Ok(())
}

pub(crate) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (number, migration) in (1..).zip(MIGRATIONS).skip(version as usize) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.commit()?;
    }
    Ok(())
}

impl Store for Sqlite {
    fn commit(
        &mut self,
        changes: &[Change],
        now: ClockReading,
    ) -> Result<Vec<Creation>, StoreError> {
        let limits = self.limits;
        let transaction =
            (self.connection).transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut creations = Vec::new();
        {
            let mut update = transaction.prepare(UPDATE)?;
            let mut add = transaction
                .prepare("INSERT OR IGNORE INTO candidates (operation, place) VALUES (?1, ?2)")?;
            for change in changes {
                match change {
                    Change::Create(record) => {
                        creations.push(create(&transaction, record, limits)?);
                    }
                    Change::Update { record, candidates } => {
                        update_record(&mut update, record)?;
                        for index in candidates {
                            add.execute(params![record.name.id(), number(*index)])?;
                        }
                    }
                    Change::Delete(name) => delete(&transaction, name, now.wall)?,
                }
            }
            let mut set = transaction.prepare(
                "INSERT INTO meta (key, value) VALUES (?1, ?2)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?;
            set.execute(params![LAST_COMMIT, now.wall])?;
            set.execute(params![DOUBTFUL_UNTIL, now.doubtful_until])?;
        }
        transaction.commit()?;
        Ok(creations)
    }

    fn unfinished(&mut self) -> Result<Vec<Record>, StoreError> {
        let sql = format!("{SELECT} WHERE ended IS NULL ORDER BY created, name");
        records(&self.connection, &sql, [])
    }

    fn expire(&mut self, now: Millis) -> Result<u64, StoreError> {
        let transaction =
            (self.connection).transaction_with_behavior(TransactionBehavior::Immediate)?;
        let expired: Vec<String> = transaction
            .prepare("SELECT name FROM operations WHERE expires <= ?1 ORDER BY expires LIMIT ?2")?
            .query_map([now, EXPIRED_AT_ONCE], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for name in &expired {
            let name = format!("{COLLECTION}/{name}").parse();
            delete(
                &transaction,
                &name.map_err(|_| damaged("a name is not valid"))?,
                now,
            )?;
        }
        transaction.execute("DELETE FROM requests WHERE forget <= ?1", [now])?;
        transaction.commit()?;
        Ok(expired.len() as u64)
    }

    fn last_reading(&mut self) -> Result<Option<ClockReading>, StoreError> {
        let mut get = self
            .connection
            .prepare("SELECT value FROM meta WHERE key = ?1")?;
        let mut get = |key: &str| get.query_row([key], |row| row.get(0)).optional();
        let Some(wall) = get(LAST_COMMIT)? else {
            return Ok(None);
        };
        let doubtful_until = get(DOUBTFUL_UNTIL)?.unwrap_or_default();
        Ok(Some(ClockReading {
            wall,
            doubtful_until,
        }))
    }
}

fn create(
    connection: &Connection,
    record: &Record,
    limits: ClientLimits,
) -> Result<Creation, StoreError> {
    let request = &record.request;
    let text = request.text();
    if !request.request_id.is_empty() {
        let sql = "SELECT operation, text, maximum_hashes, forget FROM requests
                   WHERE client = ?1 AND request_id = ?2";
        let earlier =
            connection.query_row(sql, params![request.client, request.request_id], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)? == text
                        && row.get::<_, Vec<u8>>(2)? == number(request.maximum_hashes),
                    row.get::<_, Option<Millis>>(3)?.is_some(),
                ))
            });
        if let Some((operation, is_same, is_deleted)) = earlier.optional()? {
            return Ok(match (is_same, is_deleted) {
                (false, _) => Creation::Rejected(Rejection::RequestIdReused),
                (true, true) => Creation::Rejected(Rejection::Deleted),
                (true, false) => {
                    let name = format!("{COLLECTION}/{operation}").parse();
                    Creation::Existing(name.map_err(|_| damaged("a name is not valid"))?)
                }
            });
        }
    }
    let count = |condition: &str| {
        let sql = format!("SELECT count(*) FROM operations WHERE client = ?1 {condition}");
        connection.query_row(&sql, [&request.client], |row| row.get::<_, i64>(0))
    };
    if count("AND ended IS NULL")?.cast_unsigned() >= limits.running {
        let limit = limits.running;
        return Ok(Creation::Rejected(Rejection::TooManyRunning { limit }));
    }
    if count("")?.cast_unsigned() >= limits.saved {
        let limit = limits.saved;
        return Ok(Creation::Rejected(Rejection::TooManySaved { limit }));
    }
    let keep = i64::try_from(request.keep.as_millis()).unwrap_or(i64::MAX);
    let sql = "INSERT INTO operations (name, created, client, request_id, display_name, text,
                   maximum_hashes, keep, budget, to_cover, held, end_place, candidates, updated,
                   resumes, failures)
               VALUES (:name, :created, :client, :request_id, :display_name, :text,
                   :maximum_hashes, :keep, :budget, x'', x'', x'', 0, :created, 0, 0)";
    connection.execute(
        sql,
        named_params! {
            ":name": record.name.id(),
            ":created": record.created,
            ":client": request.client,
            ":request_id": request.request_id,
            ":display_name": request.display_name,
            ":text": text,
            ":maximum_hashes": number(request.maximum_hashes),
            ":keep": keep,
            ":budget": number(record.budget),
        },
    )?;
    update_record(&mut connection.prepare(UPDATE)?, record)?;
    if !request.request_id.is_empty() {
        let sql = "INSERT INTO requests (client, request_id, operation, text, maximum_hashes)
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        let number = number(request.maximum_hashes);
        let id = record.name.id();
        connection.execute(
            sql,
            params![request.client, request.request_id, id, text, number],
        )?;
    }
    Ok(Creation::New)
}

pub(crate) const UPDATE: &str = "
    UPDATE operations
    SET to_cover = :to_cover, held = :held, end_place = :end_place, candidates = :candidates,
        updated = :updated, resumes = :resumes, failures = :failures, cancel = :cancel,
        ended = :ended, end_reason = :end_reason, end_message = :end_message, expires = :expires
    WHERE name = :name";

pub(crate) fn update_record(update: &mut Statement<'_>, record: &Record) -> Result<(), StoreError> {
    let checkpoint = &record.checkpoint;
    let to_cover = checkpoint.to_cover().iter();
    let to_cover: Vec<u8> = to_cover
        .flat_map(|range| [number(range.start), number(range.end)])
        .flatten()
        .collect();
    let held: Vec<u8> = checkpoint.held().flat_map(number).collect();
    let end = record.end.as_ref();
    let updated = update.execute(named_params! {
        ":name": record.name.id(),
        ":to_cover": to_cover,
        ":held": held,
        ":end_place": number(checkpoint.end()),
        ":candidates": i64::try_from(record.candidates).unwrap_or(i64::MAX),
        ":updated": record.updated,
        ":resumes": record.resumes,
        ":failures": record.failures,
        ":cancel": record.cancel.map(canceller_name),
        ":ended": end.map(|end| end.at),
        ":end_reason": end.map(|end| end.reason.name()),
        ":end_message": end.map(|end| &end.message),
        ":expires": record.expires(),
    })?;
    if updated == 1 {
        Ok(())
    } else {
        Err(damaged(&format!("{} is missing", record.name)))
    }
}

fn delete(connection: &Connection, name: &Name, now: Millis) -> Result<(), StoreError> {
    let remember = i64::try_from(REMEMBER_REQUEST.as_millis()).unwrap_or(i64::MAX);
    let forget = now.saturating_add(remember);
    connection.execute("DELETE FROM candidates WHERE operation = ?1", [name.id()])?;
    connection.execute("DELETE FROM operations WHERE name = ?1", [name.id()])?;
    let sql = "UPDATE requests SET forget = ?2 WHERE operation = ?1";
    connection.execute(sql, params![name.id(), forget])?;
    Ok(())
}

pub(crate) const SELECT: &str = "
    SELECT name, created, client, request_id, display_name, text, maximum_hashes, keep, budget,
        to_cover, held, end_place, candidates, updated, resumes, failures, cancel,
        ended, end_reason, end_message
    FROM operations";

pub(crate) fn records(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<Record>, StoreError> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(params)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(record(row)?);
    }
    Ok(records)
}

fn record(row: &Row<'_>) -> Result<Record, StoreError> {
    let id: String = row.get("name")?;
    let name: Result<Name, _> = format!("{COLLECTION}/{id}").parse();
    let name = name.map_err(|_| damaged("a name is not valid"))?;
    let wrong = |what: &str| damaged(&format!("{name}: {what} is not valid"));
    let text: String = row.get("text")?;
    let cursor: Cursor = text.parse().map_err(|_| wrong("text"))?;
    let query = cursor.query();
    let bytes = |column| -> Result<Vec<u8>, StoreError> { Ok(row.get(column)?) };
    let one = |column| -> Result<u64, StoreError> {
        match numbers(&bytes(column)?)[..] {
            [Some(one)] => Ok(one),
            _ => Err(wrong(column)),
        }
    };
    let many = |column| -> Result<Vec<u64>, StoreError> {
        let numbers: Option<Vec<u64>> = numbers(&bytes(column)?).into_iter().collect();
        numbers.ok_or_else(|| wrong(column))
    };
    let to_cover = many("to_cover")?;
    let to_cover = to_cover
        .chunks(2)
        .map(|pair| pair[0]..*pair.last().unwrap_or(&0))
        .collect();
    let checkpoint = Checkpoint::restore(&query, to_cover, &many("held")?, one("end_place")?);
    let checkpoint = checkpoint.map_err(|error| damaged(&format!("{name}: {error}")))?;
    let cancel: Option<String> = row.get("cancel")?;
    let cancel = cancel.map(|by| canceller(&by).ok_or_else(|| wrong("cancel")));
    let ended: Option<Millis> = row.get("ended")?;
    let end = ended.map(|at| {
        let reason: String = row.get("end_reason")?;
        let reason = EndReason::ALL
            .into_iter()
            .find(|known| known.name() == reason);
        Ok::<_, StoreError>(End {
            at,
            reason: reason.ok_or_else(|| wrong("end_reason"))?,
            message: row.get("end_message")?,
        })
    });
    let keep: i64 = row.get("keep")?;
    let candidates: i64 = row.get("candidates")?;
    Ok(Record {
        request: Request {
            client: Arc::from(row.get::<_, String>("client")?),
            request_id: row.get("request_id")?,
            display_name: row.get("display_name")?,
            query,
            maximum_hashes: one("maximum_hashes")?,
            keep: Duration::from_millis(keep.try_into().unwrap_or(0)),
        },
        created: row.get("created")?,
        budget: one("budget")?,
        checkpoint,
        candidates: candidates.try_into().map_err(|_| wrong("candidates"))?,
        updated: row.get("updated")?,
        resumes: row.get("resumes")?,
        failures: row.get("failures")?,
        cancel: cancel.transpose()?,
        end: end.transpose()?,
        name,
    })
}

/// Returns a number as it is saved: 16 bytes, big-endian. SQLite's own integers are signed, and a
/// fleet of servers needs more than 64 bits.
pub(crate) fn number(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

/// Reads saved numbers. A number that does not fit is `None`.
fn numbers(bytes: &[u8]) -> Vec<Option<u64>> {
    let number = |bytes: &[u8]| {
        let bytes = bytes.try_into().ok()?;
        u64::try_from(u128::from_be_bytes(bytes)).ok()
    };
    bytes.chunks(16).map(number).collect()
}

fn canceller_name(by: Canceller) -> &'static str {
    match by {
        Canceller::Client => "client",
        Canceller::Operator => "operator",
        Canceller::Revocation => "revocation",
    }
}

fn canceller(name: &str) -> Option<Canceller> {
    let all = [
        Canceller::Client,
        Canceller::Operator,
        Canceller::Revocation,
    ];
    all.into_iter().find(|by| canceller_name(*by) == name)
}

/// Reads the store beside the connection that writes it.
#[derive(Debug)]
pub struct SqliteReader(Connection);

impl SqliteReader {
    /// Opens the store at this path, which must exist.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Result<SqliteReader, StoreError> {
        // A reader of a log also writes to the file that readers and writers share.
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "query_only", true)?;
        check_version(&connection)?;
        Ok(SqliteReader(connection))
    }
}

/// Checks that a file is a store of this version.
fn check_version(connection: &Connection) -> Result<(), StoreError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let version = pragma("user_version")?;
    if pragma("application_id")? != APPLICATION_ID || version as usize != MIGRATIONS.len() {
        return Err(StoreError::Unavailable(format!(
            "{FILE} has schema {version}, and this version of hashfinder reads schema {}; use the \
             version of the server",
            MIGRATIONS.len()
        )));
    }
    Ok(())
}

impl SqliteReader {
    /// Returns an operation with all its candidates, as of one moment.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub fn with_candidates(
        &mut self,
        name: &Name,
    ) -> Result<Option<(Record, Vec<Index>)>, StoreError> {
        self.0.execute_batch("BEGIN")?;
        let read = self.get(name).and_then(|record| {
            let candidates = self.candidates(name, 0, usize::MAX)?;
            Ok(record.map(|record| (record, candidates)))
        });
        self.0.execute_batch("COMMIT")?;
        read
    }
}

impl Reader for SqliteReader {
    fn get(&mut self, name: &Name) -> Result<Option<Record>, StoreError> {
        let found = records(&self.0, &format!("{SELECT} WHERE name = ?1"), [name.id()])?;
        Ok(found.into_iter().next())
    }

    fn list(&mut self, selection: &Selection, limit: usize) -> Result<Vec<Record>, StoreError> {
        let mut conditions = vec!["(created, name) > (:created, :after)"];
        if selection.client.is_some() {
            conditions.push("client = :client");
        } else {
            conditions.push("(:client IS NULL)");
        }
        match selection.ended {
            Some(true) => conditions.push("ended IS NOT NULL"),
            Some(false) => conditions.push("ended IS NULL"),
            None => {}
        }
        let sql = format!(
            "{SELECT} WHERE {} ORDER BY created, name LIMIT :limit",
            conditions.join(" AND ")
        );
        let (created, after) = selection
            .after
            .clone()
            .unwrap_or((Millis::MIN, String::new()));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        records(
            &self.0,
            &sql,
            named_params! {
                ":created": created,
                ":after": after,
                ":client": selection.client,
                ":limit": limit,
            },
        )
    }

    fn candidates(
        &mut self,
        name: &Name,
        from: Index,
        limit: usize,
    ) -> Result<Vec<Index>, StoreError> {
        let sql = "SELECT place FROM candidates WHERE operation = ?1 AND place >= ?2
                   ORDER BY place LIMIT ?3";
        let mut statement = self.0.prepare(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![name.id(), number(from), limit])?;
        let mut places = Vec::new();
        while let Some(row) = rows.next()? {
            let place: Vec<u8> = row.get(0)?;
            match numbers(&place)[..] {
                [Some(place)] => places.push(place),
                _ => return Err(damaged(&format!("{name}: a candidate is not valid"))),
            }
        }
        Ok(places)
    }
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(format!("{FILE}: {what}"))
}

fn unavailable(error: &io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::StorageFull || error.kind() == io::ErrorKind::QuotaExceeded {
        return StoreError::Full(FULL.to_owned());
    }
    StoreError::Unavailable(error.to_string())
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        // Some texts of SQLite have several lines.
        let text = format!("{FILE}: {error}").replace('\n', "; ");
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full(FULL.to_owned()),
            // Without SQLite's text, which has the path of the file.
            Some(ErrorCode::CannotOpen) => {
                StoreError::Unavailable(format!("{FILE} cannot be opened"))
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged(text),
            Some(_) => StoreError::Unavailable(text),
            // A column has another type than this program writes.
            None => StoreError::Damaged(text),
        }
    }
}
