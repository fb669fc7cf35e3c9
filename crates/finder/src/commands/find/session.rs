//! Sessions: searches and their cursors, kept in files so that the same command resumes them.
//!
//! A session is a file in the user's state folder. It is replaced as a whole, and only after
//! everything that was found below the new cursor has been printed. So however a run ends, the next
//! run prints everything that is missing, and repeats only what was printed after the file was last
//! replaced.

use std::{
    env, fmt,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use hashfinder_search::{Cursor, DesiredName, Index, Keyspace, Query, Spelling};
use hashfinder_system::files;
use serde_json::{Value, json};

use super::rate::hashes;
use crate::terminal::quoted;

/// Minimum time between two writes of a session while its search runs.
///
/// It is checked each time the progress is redrawn, every 250 ms, so the usual interval is 750 ms.
/// If writing takes less than 250 ms, a kill loses less than a second of work.
const WRITE_EVERY: Duration = Duration::from_millis(500);

/// Maximum length of a session's name, in characters. File systems allow longer names.
const MAXIMUM_NAME: usize = 64;

/// Maximum length of a session's file, in bytes: several times the length of the longest cursor.
const MAXIMUM_LENGTH: u64 = 1 << 20;

/// Folder of the sessions, within the state folder.
const FOLDER: &str = "hashfinder/sessions";

/// Version of the file format.
const VERSION: u64 = 1;

/// The name of a session: ASCII letters, digits, `-`, `_` and `.`, but no `.` at the start. It is
/// therefore a valid file name, and differs from the names of lock files and temporary files: these
/// begin with a dot.
#[derive(Clone, Debug)]
pub(crate) struct SessionName(String);

impl FromStr for SessionName {
    type Err = String;

    fn from_str(text: &str) -> Result<SessionName, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let fits = (1..=MAXIMUM_NAME).contains(&text.len()) && !text.starts_with('.');
        if fits && text.chars().all(plain) {
            Ok(SessionName(text.to_owned()))
        } else {
            Err(format!(
                "expected 1 to {MAXIMUM_NAME} letters, digits, '-', '_' and '.', the first of \
                 which is not '.'"
            ))
        }
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A session that this process has locked.
pub(super) struct Session {
    file: PathBuf,
    lock: Lock,
    query: Query,
    wanted: u64,
    /// Number of answers that earlier runs printed.
    before: u64,
    saved: Saved,
    written: Instant,
}

/// The part of a session's file that changes during the search.
#[derive(PartialEq, Eq)]
struct Saved {
    cursor: Cursor,
    answers: u64,
}

impl Session {
    /// Resumes a session or, if it does not exist, creates it for `wanted` answers to the query.
    /// Returns an error message if the session holds another search.
    ///
    /// # Errors
    ///
    /// If another process uses the session, or if it is damaged or cannot be read or written.
    pub(super) fn open(
        name: &SessionName,
        query: &Query,
        wanted: u64,
    ) -> Result<Result<Session, String>> {
        Session::open_in(&state_folder()?.join(FOLDER), name, query, wanted)
    }

    fn open_in(
        folder: &Path,
        name: &SessionName,
        query: &Query,
        wanted: u64,
    ) -> Result<Result<Session, String>> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot create the folder {folder:?} for sessions"))?;
        let lock_file = folder.join(format!(".{name}.lock"));
        let lock = Lock::take(&lock_file)
            .with_context(|| format!("cannot lock session {name} with {lock_file:?}"))?
            .with_context(|| {
                format!("another process uses session {name}; wait for it, or use another name")
            })?;
        let mut session = Session {
            file: folder.join(&name.0),
            lock,
            query: query.clone(),
            wanted,
            before: 0,
            saved: Saved {
                cursor: Cursor::new(query, query.start()),
                answers: 0,
            },
            written: Instant::now(),
        };
        match read(&session.file) {
            // If the file is not UTF-8, it is damaged, and `resume` reports that.
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                if let Err(refused) = session.resume(name, &text)? {
                    return Ok(Err(refused));
                }
            }
            // The file is written at once, so that an error in writing is reported before the
            // search and not after it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => session.write()?,
            Err(error) => {
                let what = format!("cannot read the session file {:?}", session.file);
                return Err(error).context(what);
            }
        }
        Ok(Ok(session))
    }

    /// Returns the index below which every secret was tried and everything found was printed.
    pub(super) fn frontier(&self) -> Index {
        self.saved.cursor.frontier()
    }

    /// Returns the index of the nearest secret in the saved cursor, if any.
    pub(super) fn nearest(&self) -> Option<Index> {
        self.saved.cursor.nearest()
    }

    /// Returns how many of the wanted answers earlier runs printed.
    pub(super) fn answers(&self) -> u64 {
        self.before
    }

    /// Saves the cursor and the number of answers of this run. Everything that was found below the
    /// cursor must have been printed.
    pub(super) fn keep(&mut self, cursor: &Cursor, answers: u64) -> Result<()> {
        let now = Saved {
            cursor: cursor.clone(),
            answers: self.before + answers,
        };
        if now != self.saved {
            self.saved = now;
            self.write()?;
        }
        self.written = Instant::now();
        Ok(())
    }

    /// Like [`keep`](Self::keep), but does nothing if the session was kept less than
    /// [`WRITE_EVERY`] ago.
    pub(super) fn keep_if_due(&mut self, cursor: &Cursor, answers: u64) -> Result<()> {
        if self.written.elapsed() >= WRITE_EVERY {
            self.keep(cursor, answers)?;
        }
        Ok(())
    }

    /// Removes the session, because nothing is left to search.
    pub(super) fn finish(self) -> Result<()> {
        fs::remove_file(&self.file)
            .with_context(|| format!("cannot remove the session file {:?}", self.file))?;
        // A run that was killed while it wrote may have left this file.
        let _ = fs::remove_file(self.new_file());
        Ok(())
    }

    /// Returns the path of the temporary file that is written before it replaces the session's
    /// file.
    fn new_file(&self) -> PathBuf {
        self.lock.path.with_extension("new")
    }

    /// Takes over the state in `text`, the content of the file. Returns an error message if that
    /// holds another search.
    ///
    /// # Errors
    ///
    /// If the file is damaged.
    fn resume(&mut self, name: &SessionName, text: &str) -> Result<Result<(), String>> {
        let drop_it = format!("rm {}", quoted(&self.file.to_string_lossy()));
        let Some((cursor, wanted, answers)) = parse(text) else {
            bail!("session {name} is damaged or from another version; remove it with: {drop_it}");
        };
        if !cursor.is_of(&self.query) || wanted != self.wanted {
            let (other, tried) = (as_command(&cursor.query()), hashes(cursor.frontier()));
            return Ok(Err(format!(
                "session {name} holds another search: {other} --count {wanted}, {tried} tried; \
                 repeat that command, use another name, or remove the session with: {drop_it}"
            )));
        }
        self.before = answers;
        self.saved = Saved { cursor, answers };
        Ok(Ok(()))
    }

    /// Replaces the file. A reader finds either the old or the new content, even after a power
    /// failure.
    fn write(&self) -> Result<()> {
        let Saved { cursor, answers } = &self.saved;
        let text = json!({
            "version": VERSION,
            "cursor": cursor.to_string(),
            "count": self.wanted,
            "found": answers,
        });
        let new = self.new_file();
        let replace = || {
            // A run that was killed may have left this file. It is removed and not opened, because
            // it could be a symbolic link, which must not be followed.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::create_new(&new)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            fs::rename(&new, &self.file)?;
            // The folder contains the name of the file, so it must be synced, too.
            self.file
                .parent()
                .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        replace().with_context(|| format!("cannot write the session file {:?}", self.file))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = files::open_own(path, OpenOptions::new().read(true))?;
    files::contents(file, MAXIMUM_LENGTH)
}

/// Returns the cursor, the number of wanted answers and the number of answers found; `None` if the
/// text is not a valid session.
fn parse(text: &str) -> Option<(Cursor, u64, u64)> {
    let saved: Value = serde_json::from_str(text).ok()?;
    let number = |key: &str| saved[key].as_u64();
    let cursor = saved["cursor"].as_str()?.parse().ok()?;
    let (wanted, answers) = (number("count")?, number("found")?);
    (number("version")? == VERSION && answers < wanted).then_some((cursor, wanted, answers))
}

/// The lock of a session: a file that no other process can lock while this value exists.
///
/// Dropping this value removes the file and releases the lock. If the process is killed, the
/// operating system releases the lock.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Creates the file, if necessary, and locks it. Returns `None` if it is already locked.
    fn take(path: &Path) -> io::Result<Option<Lock>> {
        loop {
            // The file is empty, and stays empty.
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            let file = files::open_own(path, options)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Another process may have removed the file after this one opened it. The lock of a
            // removed file excludes no other process.
            let locked = file.metadata()?;
            match fs::symlink_metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (locked.dev(), locked.ino()) => {
                    return Ok(Some(Lock {
                        path: path.to_owned(),
                        _file: file,
                    }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is closed after this, so it is still locked, and the path cannot be the lock of
        // another process. A file that cannot be removed does no harm: closing it releases the
        // lock.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the user's state folder (XDG Base Directory Specification).
fn state_folder() -> Result<PathBuf> {
    let path = |name| env::var_os(name).map(PathBuf::from);
    // The specification says to ignore a path that is not absolute.
    let given = path("XDG_STATE_HOME").filter(|folder| folder.is_absolute());
    let home = || path("HOME").filter(|folder| folder.is_absolute());
    given
        .or_else(|| Some(home()?.join(".local/state")))
        .context("no folder for sessions: set HOME or XDG_STATE_HOME")
}

/// Returns the command line for a query. It always has the distances; it has other flags only if
/// they differ from the default.
fn as_command(query: &Query) -> String {
    let (spelling, usual) = (query.spelling(), Spelling::default());
    let (keyspace, all) = (query.keyspace(), Keyspace::default());
    let mut words = vec!["find".to_owned()];
    let names = query.names().iter().map(DesiredName::as_str);
    words.extend(names.map(|name| format!("'{}'", name.escape_debug())));
    let mut say = |flag: &str, value: &dyn fmt::Display, is_usual: bool| {
        if !is_usual {
            words.push(format!("{flag} {value}"));
        }
    };
    say("--ideal-distance", &query.ideal_distance(), false);
    say("--show-inferior", &query.interesting_distance(), false);
    let algorithm = spelling.algorithm;
    say("--algorithm", &algorithm, algorithm == usual.algorithm);
    let encoding = spelling.encoding;
    say("--encoding", &encoding, encoding == usual.encoding);
    say(
        "--anchor",
        &spelling.anchor,
        spelling.anchor == usual.anchor,
    );
    say("--case-sensitive", &"", !spelling.case_sensitive);
    let around = [
        ("--secret-prefix", keyspace.prefix()),
        ("--secret-suffix", keyspace.suffix()),
    ];
    for (flag, bytes) in around {
        let shown = format!("'{}'", String::from_utf8_lossy(bytes).escape_debug());
        say(flag, &shown, bytes.is_empty());
    }
    let alphabet = keyspace.alphabet();
    let shown = format!("'of:{}'", alphabet.as_bytes().escape_ascii());
    say("--alphabet", &shown, alphabet == all.alphabet());
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashfinder_search::Distance;
    use std::{
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
        thread,
    };

    #[test]
    fn session_names_are_validated() {
        for right in ["a", "night-run_2.b", "0", "-", &"a".repeat(64)] {
            assert!(SessionName::from_str(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            ".",
            "..",
            ".a",
            "a/b",
            "a b",
            "\u{e9}",
            "a\n",
            &"a".repeat(65),
        ] {
            assert!(SessionName::from_str(wrong).is_err(), "{wrong}");
        }
    }

    /// If the lock file were removed too early, or not checked again after it is locked, two
    /// threads would hold the lock.
    #[test]
    fn a_lock_has_one_holder_at_a_time() {
        let folder = env::temp_dir().join(format!("hashfinder-lock-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(".night.lock");
        let (is_held, taken) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while taken.load(Ordering::Relaxed) < 2_000 {
                        let Some(lock) = Lock::take(&path).unwrap() else {
                            continue;
                        };
                        assert!(!is_held.swap(true, Ordering::SeqCst), "two have the lock");
                        assert!(path.exists());
                        taken.fetch_add(1, Ordering::Relaxed);
                        thread::yield_now();
                        is_held.store(false, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(!path.exists());
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn invalid_sessions_are_rejected() {
        let query = Query::new("doctor".parse().unwrap(), Distance::ZERO).unwrap();
        let cursor = Cursor::new(&query, 5).to_string();
        let right = json!({"version": 1, "cursor": cursor, "count": 3, "found": 2});
        let (parsed, wanted, answers) = parse(&right.to_string()).unwrap();
        assert_eq!((parsed.frontier(), wanted, answers), (5, 3, 2));
        for (key, wrong) in [
            ("version", json!(2)),
            ("version", Value::Null),
            ("cursor", json!("hf1_")),
            ("cursor", json!(5)),
            ("count", json!(-1)),
            ("count", json!(2)),
            ("found", Value::Null),
        ] {
            let mut text = right.clone();
            text[key] = wrong;
            assert!(parse(&text.to_string()).is_none(), "{text}");
        }
        for text in ["", "{", "[]", "1"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
