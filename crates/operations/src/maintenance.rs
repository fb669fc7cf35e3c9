//! Copies and recovers stores.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OpenFlags, params, params_from_iter, types::Value};

use crate::{
    record::Record,
    sqlite::{
        APPLICATION_ID, FILE, Folder, SELECT, Sqlite, UPDATE, connect, create_file, number,
        records, update_record,
    },
    store::{ClientLimits, StoreError},
};

/// Copies the store in a file to another file, which must not exist. The server that uses the store
/// may be running: it is not disturbed, and the copy has one of its states. Returns the number of
/// operations.
///
/// # Errors
///
/// If the store cannot be read, or the copy cannot be written.
pub fn backup(from: &Path, to: &Path) -> Result<u64, StoreError> {
    let from = from.canonicalize();
    let from = from.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let connection = connect(&from, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Empty, and only for this user: the copy has names and secrets.
    create_file(to)?;
    let real = to.canonicalize();
    let real = real.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let to = real.to_str().ok_or_else(|| {
        StoreError::Unavailable("the name of the file is not valid UTF-8".to_owned())
    })?;
    if let Err(error) = connection.execute("VACUUM INTO ?1", [to]) {
        let _ = fs::remove_file(to);
        return Err(error.into());
    }
    let copy = connect(Path::new(to), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let count = copy.query_row("SELECT count(*) FROM operations", [], |row| {
        row.get::<_, i64>(0)
    })?;
    Ok(count.unsigned_abs())
}

/// What was recovered of a damaged store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Number of operations that could be read.
    pub operations: u64,
    /// Number of their candidates.
    pub candidates: u64,
    /// Names of the operations that were not recovered completely, as far as they can be read.
    pub changed: Vec<(String, Change)>,
    /// Where the damaged file is now.
    pub damaged: PathBuf,
}

/// What happened to an operation that was not recovered completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is lost.
    Lost,
    /// It had not ended. It starts again, because candidates of it are lost.
    Restarted,
    /// It had ended, and this number of its candidates is lost.
    LostCandidates(u64),
}

/// The tables, with their columns. Operations come before their candidates.
const TABLES: [(&str, &str); 4] = [
    ("meta", "key, value"),
    (
        "operations",
        "name, created, client, request_id, display_name, text, maximum_hashes, keep, budget, \
         to_cover, held, end_place, candidates, updated, resumes, failures, cancel, ended, \
         end_reason, end_message, expires",
    ),
    ("candidates", "operation, place"),
    (
        "requests",
        "client, request_id, operation, text, maximum_hashes, forget",
    ),
];

/// Recovers the store of a folder: copies every row that can be read to a new file, which takes the
/// place of the damaged one. The damaged file is kept. Returns `None` if the store is not damaged.
///
/// If candidates of an operation are lost, it starts again, unless it has ended.
///
/// # Errors
///
/// If the new file cannot be written. Then the folder is as it was.
pub fn recover(folder: &Folder) -> Result<Option<Recovered>, StoreError> {
    let limits = ClientLimits {
        running: 0,
        saved: 0,
    };
    match Sqlite::open(folder, limits) {
        Ok(store) if store.is_readable() => return Ok(None),
        Ok(_) | Err(StoreError::Damaged(_)) => {}
        Err(error) => return Err(error),
    }
    if is_foreign(&folder.file()) {
        return Err(StoreError::Unavailable(format!(
            "{FILE} belongs to another program"
        )));
    }
    let path = folder.file();
    let new = path.with_file_name(format!("{FILE}.new"));
    let _ = fs::remove_file(&new);
    let counts = copy_rows(&path, &new)?;
    let millis = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = millis.map_or(0, |since| since.as_millis());
    let damaged = path.with_file_name(format!("{FILE}.damaged-{millis}"));
    let unavailable = |error: std::io::Error| StoreError::Unavailable(error.to_string());
    // The server may run as another user than this command.
    let owner = fs::metadata(&path).map_err(unavailable)?;
    chown(&new, Some(owner.uid()), Some(owner.gid())).map_err(unavailable)?;
    // The new file takes the place of the old one in one step, after the old one has another name,
    // and its log no longer has the name that the new one's would have.
    fs::hard_link(&path, &damaged).map_err(unavailable)?;
    for part in ["-wal", "-shm"] {
        let part_of = |path: &Path| PathBuf::from(format!("{}{part}", path.display()));
        match fs::rename(part_of(&path), part_of(&damaged)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(unavailable(error)),
            Ok(()) | Err(_) => {}
        }
    }
    let renamed = fs::rename(&new, &path).and_then(|()| folder.sync());
    renamed.map_err(unavailable)?;
    let (operations, candidates, changed) = counts;
    Ok(Some(Recovered {
        operations,
        candidates,
        changed,
        damaged,
    }))
}

/// What was copied: the number of operations, that of candidates, and what is not as it was.
type Copied = (u64, u64, Vec<(String, Change)>);

/// Copies what can be read.
fn copy_rows(from: &Path, to: &Path) -> Result<Copied, StoreError> {
    create_file(to)?;
    let mut new = connect(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    crate::sqlite::migrate(&mut new)?;
    // A file that is not SQLite's has nothing to copy.
    let old = connect(from, OpenFlags::SQLITE_OPEN_READ_WRITE).ok();
    let transaction = new.transaction()?;
    for (table, columns) in TABLES {
        if let Some(old) = &old {
            copy_table(old, &transaction, table, columns)?;
        }
    }
    let mut changed = Vec::new();
    for name in names(&transaction)? {
        let one = format!("{SELECT} WHERE name = ?1");
        if let Ok([record]) = records(&transaction, &one, [&name]).as_deref() {
            // Its other candidates are checked below.
            let end = number(record.query().keyspace().end());
            let sql = "DELETE FROM candidates
                       WHERE operation = ?1 AND (length(place) <> 16 OR place >= ?2)";
            transaction.execute(sql, params![name, end])?;
            // The result is saved with the operation too.
            if let Some(found) = record.found() {
                let sql = "INSERT OR IGNORE INTO candidates (operation, place) VALUES (?1, ?2)";
                transaction.execute(sql, params![name, number(found)])?;
            }
        } else {
            transaction.execute("DELETE FROM operations WHERE name = ?1", [&name])?;
            changed.push((name, Change::Lost));
        }
    }
    transaction.execute_batch(
        "DELETE FROM candidates WHERE operation NOT IN (SELECT name FROM operations);
         DELETE FROM requests
         WHERE forget IS NULL AND operation NOT IN (SELECT name FROM operations);
         UPDATE operations SET resumes = 0;",
    )?;
    let incomplete = format!(
        "{SELECT} WHERE candidates <> (SELECT count(*) FROM candidates WHERE operation = name)"
    );
    for record in records(&transaction, &incomplete, [])? {
        let name = &record.name;
        let (fresh, change) = if record.end.is_some() {
            // Nothing can find its candidates again, so those that are left are kept.
            let sql = "SELECT count(*) FROM candidates WHERE operation = ?1";
            let left: i64 = transaction.query_row(sql, [name.id()], |row| row.get(0))?;
            let left = left.unsigned_abs();
            let lost = Change::LostCandidates(record.candidates.saturating_sub(left));
            let fresh = Record {
                candidates: left,
                ..record.clone()
            };
            (fresh, lost)
        } else {
            transaction.execute("DELETE FROM candidates WHERE operation = ?1", [name.id()])?;
            let request = record.request.clone();
            let fresh = Record {
                cancel: record.cancel,
                ..Record::new(name.clone(), request, record.budget, record.created)
            };
            (fresh, Change::Restarted)
        };
        changed.push((name.id().to_owned(), change));
        update_record(&mut transaction.prepare(UPDATE)?, &fresh)?;
    }
    let count = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        transaction.query_row(&sql, [], |row| row.get::<_, i64>(0))
    };
    let kept = (
        count("operations")?.unsigned_abs(),
        count("candidates")?.unsigned_abs(),
    );
    transaction.commit()?;
    Ok((kept.0, kept.1, changed))
}

fn names(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut select = connection.prepare("SELECT name FROM operations")?;
    let names = select.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// Returns whether a file can be read, and is another program's.
fn is_foreign(path: &Path) -> bool {
    let foreign = || -> Result<bool, StoreError> {
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let sql = "SELECT count(*) FROM sqlite_schema";
        let tables: i64 = connection.query_row(sql, [], |row| row.get(0))?;
        Ok(id != APPLICATION_ID && tables > 0)
    };
    foreign().unwrap_or(false)
}

/// Copies the rows of a table that can be read, without any index.
fn copy_table(
    old: &Connection,
    new: &Connection,
    table: &str,
    columns: &str,
) -> Result<(), StoreError> {
    let values = vec!["?"; columns.split(',').count()].join(", ");
    let insert = format!("INSERT OR IGNORE INTO {table} ({columns}) VALUES ({values})");
    let mut insert = new.prepare(&insert)?;
    let mut copy = |rows: &mut rusqlite::Rows<'_>| -> Result<bool, StoreError> {
        // A damaged page ends the rows.
        let Ok(Some(row)) = rows.next() else {
            return Ok(false);
        };
        let count = row.as_ref().column_count();
        let values: Result<Vec<Value>, _> = (0..count).map(|column| row.get(column)).collect();
        if let Ok(values) = values {
            insert.execute(params_from_iter(values))?;
        }
        Ok(true)
    };
    if table == "operations" {
        // Row by row, so that a damaged page hides only its own.
        let select = format!("SELECT {columns} FROM operations NOT INDEXED WHERE rowid = ?1");
        let Ok(mut select) = old.prepare(&select) else {
            return Ok(());
        };
        for row in rows_of_operations(old) {
            if let Ok(mut rows) = select.query([row]) {
                copy(&mut rows)?;
            }
        }
        return Ok(());
    }
    // The other tables are sorted by their key. A damaged page ends a pass, and the other pass
    // begins at the other end. Candidates are read by operation, so that a damaged page hides only
    // those of the operations on it.
    let (condition, orders) = match table {
        "candidates" => ("WHERE operation = ?1", ["place ASC", "place DESC"]),
        "requests" => (
            "",
            ["client ASC, request_id ASC", "client DESC, request_id DESC"],
        ),
        _ => ("", ["key ASC", "key DESC"]),
    };
    let operations = match table {
        "candidates" => names(new)?.into_iter().map(Some).collect(),
        _ => vec![None],
    };
    for order in orders {
        let sql = format!("SELECT {columns} FROM {table} NOT INDEXED {condition} ORDER BY {order}");
        let Ok(mut select) = old.prepare(&sql) else {
            continue;
        };
        for operation in &operations {
            if let Ok(mut rows) = select.query(params_from_iter(operation)) {
                while copy(&mut rows)? {}
            }
        }
    }
    Ok(())
}

/// Maximum number of rows that a damaged page may hide. Looking for them takes some seconds.
const MOST_HIDDEN: i64 = 4_000_000;

/// Returns the numbers of the rows of `operations` that may be readable: those that a pass from
/// either end reads before it reaches a damaged page, and those between them.
fn rows_of_operations(old: &Connection) -> BTreeSet<i64> {
    let pass = |order: &str| -> Vec<i64> {
        let sql = format!("SELECT rowid FROM operations NOT INDEXED ORDER BY rowid {order}");
        let mut numbers = Vec::new();
        if let Ok(mut select) = old.prepare(&sql)
            && let Ok(mut rows) = select.query([])
        {
            while let Ok(Some(row)) = rows.next() {
                numbers.extend(row.get::<_, i64>(0));
            }
        }
        numbers
    };
    let (first, last) = (pass("ASC"), pass("DESC"));
    let begin = first.iter().max().copied().unwrap_or(0);
    let end = last.iter().min().copied().unwrap_or(begin);
    // A damaged number may be very large.
    let hidden = begin..end.min(begin.saturating_add(MOST_HIDDEN));
    first.into_iter().chain(last).chain(hidden).collect()
}
