//! API keys: `ID.SECRET`. A file keeps the id, and the SHA-256 of the secret.
//!
//! The file is TOML, so that operators can read and edit it. A change normally replaces the whole
//! file. A server that uses the file then loads it again. A secret has 256 random bits, so a single
//! round of SHA-256 without a salt hides it as well as many rounds would.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError},
    io::{self, ErrorKind, Write},
    mem,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hashfinder_system::{
    clock,
    files::{self, Stamp, Watch},
    text::as_text,
};
use hashfinder_transport::ClientName;
use jiff::Timestamp;
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::auth::{credentials::Rejection, revocation::Calls, role::Role};

/// Number of random bytes of a secret. The SHA-256 of a secret has the same length.
const SECRET_LEN: usize = 32;

/// Number of random bytes of a new key's id: enough that no two ids are ever the same, and few
/// enough to read aloud.
const ID_LEN: usize = 8;

/// Maximum length of an id, in characters. New ids are shorter, but operators may choose others in
/// the file.
const MAX_ID_LEN: usize = 64;

/// Maximum size of the file, in bytes: about 4,000 keys. For more clients, use an issuer of tokens.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Interval at which a server checks whether the file has changed. Normally, a revoked key stays
/// valid for at most this long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Maximum number of consecutive checks that a server skips because another process writes or locks
/// the file. After that it reads the file anyway. Otherwise a process with read permission could
/// keep revoked keys valid by holding a lock.
const MAX_SKIPPED_LOOKS: u32 = 3;

/// Version of the file format. If it is missing, the file may have been truncated near its
/// beginning.
const VERSION: i64 = 1;

/// Comment at the top of a new file.
const HEADING: &str = "\
# API keys for `hashfinder serve --api-keys`. See `hashfinder keys --help`.
# This file contains no secrets: sha256 is the hash of a key's secret, in base64.
";

/// The fields of a key.
const FIELDS: [&str; 7] = [
    "id", "role", "created", "expires", "revoked", "comment", "sha256",
];

/// A key's id: letters, digits, `-` and `_`. It is not secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(String);

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyId, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if (1..=MAX_ID_LEN).contains(&text.len()) && text.chars().all(plain) {
            Ok(KeyId(text.to_owned()))
        } else {
            // The message does not repeat the text: the user may have given the whole key by
            // mistake.
            Err(format!(
                "a key id has 1 to {MAX_ID_LEN} letters, digits, '-' or '_' (the part of a key \
                 before the dot)"
            ))
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A key, as stored in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Identifies the key. It is not secret.
    pub id: KeyId,
    /// The role of its bearer.
    pub role: Role,
    /// When it was created, if the file says so.
    pub created: Option<Timestamp>,
    /// The time from which it is invalid, if any.
    pub expires: Option<Timestamp>,
    /// When it was revoked, if it was.
    pub revoked: Option<Timestamp>,
    /// A note for people.
    pub comment: Option<String>,
    sha256: [u8; SECRET_LEN],
}

/// Whether a key is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Neither expired nor revoked.
    Valid,
    /// Its expiry time has passed.
    Expired,
    /// It was revoked, whether or not it has expired as well.
    Revoked,
}

impl State {
    /// Returns the state's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Valid => "valid",
            State::Expired => "expired",
            State::Revoked => "revoked",
        }
    }
}

impl Entry {
    /// Returns its state at the time `now`.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> State {
        if self.revoked.is_some() {
            State::Revoked
        } else if self.expires.is_some_and(|expires| expires <= now) {
            State::Expired
        } else {
            State::Valid
        }
    }

    fn read(table: &Table) -> Result<Entry> {
        // An unknown field is an error: it could be the expiry, misspelt.
        let unknown = table.iter().find(|(field, _)| !FIELDS.contains(field));
        if let Some((field, _)) = unknown {
            bail!("unknown field {field:?}; use {}", FIELDS.join(", "));
        }
        let text = |field: &str| -> Result<Option<&str>> {
            let Some(item) = table.get(field) else {
                return Ok(None);
            };
            let text = item.as_str();
            text.map(Some)
                .with_context(|| format!("{field} is not a string; put it in quotes"))
        };
        let time = |field: &str| -> Result<Option<Timestamp>> {
            let Some(item) = table.get(field) else {
                return Ok(None);
            };
            let time = item
                .as_datetime()
                .and_then(|time| time.to_string().parse().ok());
            time.map(Some).with_context(|| {
                format!("{field} is not a time; write it like 2030-12-31T23:59:59Z, without quotes")
            })
        };
        let id = text("id")?.context("id is missing")?;
        let id = KeyId::from_str(id).map_err(anyhow::Error::msg)?;
        let role = text("role")?.with_context(|| format!("{id}: role is missing"))?;
        let role = Role::named(role);
        let role = role.with_context(|| format!("{id}: unknown role; use user or operator"))?;
        let sha256 = text("sha256")?.and_then(|text| BASE64_STANDARD.decode(text).ok());
        let sha256 = sha256.and_then(|bytes| bytes.try_into().ok());
        Ok(Entry {
            role,
            created: time("created").with_context(|| id.clone())?,
            expires: time("expires").with_context(|| id.clone())?,
            revoked: time("revoked").with_context(|| id.clone())?,
            comment: text("comment")
                .with_context(|| id.clone())?
                .map(str::to_owned),
            sha256: sha256.with_context(|| format!("{id}: sha256 is missing or invalid"))?,
            id,
        })
    }

    fn written(&self) -> Result<Table> {
        let mut table = Table::new();
        table["id"] = value(&self.id.0);
        table["role"] = value(self.role.name());
        let mut time = |field: &str, time: Option<Timestamp>| -> Result<()> {
            if let Some(time) = time {
                table[field] = toml_time(time)?;
            }
            Ok(())
        };
        time("created", self.created)?;
        time("expires", self.expires)?;
        time("revoked", self.revoked)?;
        if let Some(comment) = &self.comment {
            table["comment"] = value(comment);
        }
        table["sha256"] = value(BASE64_STANDARD.encode(self.sha256));
        Ok(table)
    }
}

fn toml_time(time: Timestamp) -> Result<Item> {
    let time = toml_edit::Datetime::from_str(&time.to_string());
    Ok(value(time.context("TOML cannot represent this time")?))
}

/// A file of keys. Changes keep the comments and the formatting around the keys.
pub struct KeyFile {
    document: DocumentMut,
    entries: Vec<Entry>,
}

impl KeyFile {
    /// Returns the keys, in the order of the file.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the text that would be written.
    #[cfg(fuzzing)]
    pub(super) fn text(&self) -> String {
        self.document.to_string()
    }

    /// Reads a file of keys.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is not a valid file of keys.
    pub fn read(path: &Path) -> Result<KeyFile> {
        let read = || KeyFile::parse(&text_of(&open_whole(path)?.0)?);
        read().with_context(|| format!("cannot use the API keys in {path:?}"))
    }

    fn new() -> KeyFile {
        let mut document = DocumentMut::new();
        document["version"] = value(VERSION);
        if let Some(mut version) = document.key_mut("version") {
            version.leaf_decor_mut().set_prefix(HEADING);
        }
        KeyFile {
            document,
            entries: Vec::new(),
        }
    }

    pub(super) fn parse(text: &str) -> Result<KeyFile> {
        // The parser's own message would quote the file.
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            anyhow!("invalid TOML in line {line}: {}", error.message())
        })?;
        let version = document.get("version").and_then(Item::as_integer);
        ensure!(
            version == Some(VERSION),
            "missing or unsupported version; expected `version = {VERSION}`"
        );
        let mut entries = Vec::new();
        for (field, item) in document.iter().filter(|(field, _)| *field != "version") {
            let keys = (field == "key").then(|| item.as_array_of_tables());
            let keys = keys.flatten().with_context(|| {
                format!("unexpected {field:?}; use only version and a [[key]] table for each key")
            })?;
            for (number, table) in keys.iter().enumerate() {
                let entry = Entry::read(table);
                entries.push(entry.with_context(|| format!("[[key]] number {}", number + 1))?);
            }
        }
        let mut seen = std::collections::HashSet::new();
        let twice = entries.iter().find(|entry| !seen.insert(&entry.id));
        if let Some(twice) = twice {
            bail!("two keys have the id {}", twice.id);
        }
        Ok(KeyFile { document, entries })
    }

    /// Adds a key. Returns its id and the credential for its bearer. The secret cannot be recovered
    /// later: the file has only its hash.
    ///
    /// # Errors
    ///
    /// If the system provides no random numbers, its clock is beyond the calendar, or a time does
    /// not fit into the file.
    pub fn create(
        &mut self,
        role: Role,
        expires: Option<Timestamp>,
        comment: Option<String>,
    ) -> Result<(KeyId, String)> {
        let id = KeyId(
            random::<ID_LEN>()?
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
        );
        ensure!(
            self.entries.iter().all(|entry| entry.id != id),
            "the system's random numbers repeat"
        );
        let secret = BASE64_URL_SAFE_NO_PAD.encode(random::<SECRET_LEN>()?);
        let entry = Entry {
            id: id.clone(),
            role,
            created: Some(seconds(clock::now()?)?),
            expires: expires.map(seconds).transpose()?,
            revoked: None,
            comment,
            sha256: hash(&secret),
        };
        let keys = self.document.entry("key");
        let keys = keys.or_insert_with(|| ArrayOfTables::new().into());
        let keys = keys.as_array_of_tables_mut();
        keys.context("key is not a list of tables")?
            .push(entry.written()?);
        self.entries.push(entry);
        let credential = format!("{id}.{secret}");
        Ok((id, credential))
    }

    /// Revokes a key. Returns its state before that, or `None` if the key is unknown.
    ///
    /// # Errors
    ///
    /// If the file's table of keys cannot be changed.
    pub fn revoke(&mut self, id: &KeyId) -> Result<Option<State>> {
        // A clock beyond the calendar must not keep a key valid.
        let now = seconds(clock::now().unwrap_or(Timestamp::MAX))?;
        let Some(place) = self.entries.iter().position(|entry| entry.id == *id) else {
            return Ok(None);
        };
        let entry = &mut self.entries[place];
        let before = entry.state(now);
        if before != State::Revoked {
            entry.revoked = Some(now);
            let keys = self.document["key"].as_array_of_tables_mut();
            let table = keys.and_then(|keys| keys.get_mut(place));
            table.context("key is not a list of tables")?["revoked"] = toml_time(now)?;
        }
        Ok(Some(before))
    }

    /// Changes a file of keys. If the file is missing, creates it if `is_made` is set. Waits while
    /// another process changes the file.
    ///
    /// The file is replaced as a whole, so that a reader finds either the old content or the new
    /// one. A new file is readable only by its owner; an existing one keeps its owner and its mode,
    /// so that a server that could read it still can. A file that cannot be replaced, because it is
    /// a mount point or its folder is read-only, is overwritten under a lock.
    ///
    /// # Errors
    ///
    /// If it cannot be read or written, or the change fails. Then the file is unchanged, unless the
    /// error says otherwise.
    pub fn change<T>(
        path: &Path,
        is_made: bool,
        change: impl FnOnce(&mut KeyFile) -> Result<T>,
    ) -> Result<T> {
        // If the path is a symbolic link, its target is replaced, not the link.
        let path = match fs::canonicalize(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && is_made => path.to_owned(),
            real => real.with_context(|| format!("cannot use the API keys in {path:?}"))?,
        };
        let name = path.file_name();
        let name = name.with_context(|| format!("{path:?} is not a file name"))?;
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        let lock = || {
            let folder = File::open(folder)?;
            folder.lock()?;
            Ok::<_, std::io::Error>(folder)
        };
        let lock = lock().with_context(|| format!("cannot lock the folder {folder:?}"))?;
        let old = || match open_whole(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound && is_made => Ok(None),
            opened => {
                let (file, metadata) = opened?;
                let text = text_of(&file)?;
                anyhow::Ok(Some((KeyFile::parse(&text)?, Old { text, metadata })))
            }
        };
        let old = old().with_context(|| format!("cannot use the API keys in {path:?}"))?;
        let (mut file, old) =
            old.map_or_else(|| (KeyFile::new(), None), |(file, old)| (file, Some(old)));
        let before = file.document.to_string();
        let changed = change(&mut file)?;
        let text = file.document.to_string();
        if text == before {
            return Ok(changed);
        }
        ensure!(
            text.len() as u64 <= MAX_FILE_LEN,
            "{path:?} would have more than {MAX_FILE_LEN} bytes; remove expired and revoked keys"
        );
        let mut new_name = std::ffi::OsString::from(".");
        new_name.push(name);
        new_name.push(".new");
        let new = folder.join(new_name);
        replace(&path, &new, &lock, &text, old.as_ref())
            .with_context(|| format!("cannot write the API keys to {path:?}"))?;
        Ok(changed)
    }
}

/// A file of keys before it is changed.
struct Old {
    text: String,
    metadata: Metadata,
}

/// Replaces the file at `path`: writes the text to the file `new` in the same folder, and renames
/// `new` to `path`. If an existing file cannot be replaced because of its place or its permissions,
/// overwrites it.
fn replace(path: &Path, new: &Path, folder: &File, text: &str, old: Option<&Old>) -> Result<()> {
    let written = write_new(new, text, old.map(|old| &old.metadata));
    let is_copied = written.is_ok();
    let Err(error) = written.and_then(|()| fs::rename(new, path)) else {
        // The rename is durable once the folder is synced.
        return Ok(folder.sync_all()?);
    };
    let mut is_damaged = false;
    let result = match old {
        Some(old) if is_kept_in_place(&error) => overwrite(path, text, &old.text, &mut is_damaged)
            .with_context(|| format!("cannot replace it ({error}) or overwrite it")),
        _ => Err(error.into()),
    };
    if is_damaged {
        let remedy = match is_copied {
            true => format!("the new content is in {new:?}"),
            false => "restore it from a backup".to_owned(),
        };
        return result.with_context(|| format!("the file is now damaged; {remedy}"));
    }
    let _ = fs::remove_file(new);
    result
}

fn write_new(new: &Path, text: &str, old: Option<&Metadata>) -> io::Result<()> {
    // A process that was killed may have left this file.
    let _ = fs::remove_file(new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(new)?;
    if let Some(old) = old {
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Whether a file that could not be replaced, with this error, may still be writable: it may be a
/// mount point, or its folder or owner may not allow another file in its place.
fn is_kept_in_place(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ResourceBusy
            | ErrorKind::CrossesDevices
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::PermissionDenied
    )
}

/// Writes the text over the old one, under a lock, so that readers do not use an incomplete file.
/// Sets `is_damaged` if an error has left the file incomplete.
fn overwrite(path: &Path, text: &str, old: &str, is_damaged: &mut bool) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.lock()?;
    // The lock on the folder does not exclude a process that has the file mounted elsewhere.
    ensure!(
        text_of(&file)? == old,
        "another process changed it meanwhile; run the command again"
    );
    let write = |text: &str| {
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)?;
        file.sync_all()
    };
    let written = write(text);
    if written.is_err() {
        *is_damaged = write(old).is_err();
    }
    Ok(written?)
}

/// Opens a file of keys, after waiting until no other process overwrites it. The file stays locked
/// while it is open.
fn open_whole(path: &Path) -> io::Result<(File, Metadata)> {
    let (file, _) = files::open(path)?;
    // Fails only on a file system without locks, where no process can hold one.
    let _ = file.lock_shared();
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

/// Returns the whole text, if it is not too long.
fn text_of(file: &File) -> Result<String> {
    let text = files::contents(file, MAX_FILE_LEN)?;
    String::from_utf8(text).context("it is not UTF-8")
}

/// Truncates a time to whole seconds, which are easier to read in the file.
fn seconds(time: Timestamp) -> Result<Timestamp> {
    Ok(Timestamp::from_second(time.as_second())?)
}

fn hash(secret: &str) -> [u8; SECRET_LEN] {
    let mut hash = [0; SECRET_LEN];
    hash.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    hash
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow!("the system provides no random numbers"))?;
    Ok(bytes)
}

/// The keys that a server has loaded from its file.
#[derive(Debug)]
pub(super) struct Keys {
    path: PathBuf,
    loaded: Mutex<Arc<HashMap<String, Key>>>,
    seen: Mutex<Seen>,
}

/// Results of a server's checks of its file of keys.
#[derive(Debug, Default)]
struct Seen {
    /// The version of the file that is loaded; `None` before the first load.
    stamp: Option<Stamp>,
    /// Number of consecutive checks that were skipped.
    skipped: u32,
    /// The problem with the file that was logged last, if it still exists.
    problem: Option<String>,
}

/// A loaded key, and the calls that use it.
#[derive(Clone, Debug)]
struct Key {
    entry: Entry,
    calls: Calls,
}

/// The bearer of a valid key, and the calls that use the key.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) client: ClientName,
    pub(super) role: Role,
    pub(super) calls: Calls,
}

impl Seen {
    fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
        seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    pub(super) fn load(path: PathBuf) -> Result<Keys> {
        let keys = Keys {
            loaded: Mutex::default(),
            seen: Mutex::default(),
            path,
        };
        keys.look(&mut Seen::lock(&keys.seen))?;
        const WRITABLE_BY_OTHERS: u32 = 0o002;
        let mode = fs::metadata(&keys.path).map(|file| file.mode());
        if mode.is_ok_and(|mode| mode & WRITABLE_BY_OTHERS != 0) {
            let file = as_text(&keys.path.to_string_lossy());
            tracing::warn!(
                %file,
                "other users of this machine can write this file and make API keys; use `chmod o-w`"
            );
        }
        Ok(keys)
    }

    /// Starts to watch the file: it is read again when it has changed, until the watch is dropped.
    pub(super) fn watch(self: &Arc<Keys>) -> io::Result<Watch> {
        let keys = Arc::clone(self);
        Watch::start("api-keys", LOOK_EVERY, move || keys.look_again())
    }

    /// Reads the file if it has changed, and logs what is wrong with it.
    pub(super) fn look_again(&self) {
        let mut seen = Seen::lock(&self.seen);
        let problem = self.look(&mut seen).err();
        if seen.skipped > 0 {
            return;
        }
        let problem = problem.map(|error| format!("{error:#}"));
        // Each problem is logged once.
        if problem != seen.problem {
            match &problem {
                Some(error) => tracing::error!(
                    error,
                    "cannot reload the API keys; the loaded ones stay in use"
                ),
                None => tracing::info!("the file of API keys is usable again"),
            }
            seen.problem = problem;
        }
    }

    /// Reads the file if it has changed. If anything is wrong, the loaded keys stay in use.
    fn look(&self, seen: &mut Seen) -> Result<()> {
        let read = self.read_if_changed(seen);
        let read = read.with_context(|| format!("cannot use the API keys in {:?}", self.path))?;
        if let Some(file) = read {
            self.replace(file.entries);
        }
        Ok(())
    }

    fn read_if_changed(&self, seen: &mut Seen) -> Result<Option<KeyFile>> {
        // To find out whether the file has changed, its metadata is enough: opening it would break
        // a lease.
        let skipped = mem::take(&mut seen.skipped);
        if seen.stamp == Some(Stamp::of(&fs::metadata(&self.path)?)) {
            return Ok(None);
        }
        let (file, _) = files::open(&self.path)?;
        let is_locked = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
        let before = Stamp::of(&file.metadata()?);
        let text = text_of(&file)?;
        // An editor that overwrites the file takes no lock, so the metadata is compared, too.
        let is_partial = is_locked || Stamp::of(&file.metadata()?) != before;
        if is_partial && seen.stamp.is_some() && skipped < MAX_SKIPPED_LOOKS {
            seen.skipped = skipped + 1;
            return Ok(None);
        }
        let file = KeyFile::parse(&text)?;
        seen.stamp = Some(before);
        Ok(Some(file))
    }

    /// Replaces the loaded keys. Ends the calls of keys that were removed or revoked, or whose
    /// secret or role has changed.
    fn replace(&self, entries: Vec<Entry>) {
        let old = Arc::clone(&self.lock());
        let is_same = |old: &Entry, new: &Entry| {
            (old.sha256, old.role, old.revoked.is_some())
                == (new.sha256, new.role, new.revoked.is_some())
        };
        let new: HashMap<String, Key> = entries
            .into_iter()
            .map(|entry| {
                let before = old.get(&entry.id.0);
                let before = before.filter(|before| is_same(&before.entry, &entry));
                let calls = before.map(|before| before.calls.clone());
                let calls = calls.unwrap_or_default();
                (entry.id.0.clone(), Key { entry, calls })
            })
            .collect();
        let gone = old.values().filter(|old| {
            let new = new.get(&old.entry.id.0);
            new.is_none_or(|new| !is_same(&old.entry, &new.entry))
        });
        let gone: Vec<&Key> = gone.collect();
        let count = new.len();
        *self.lock() = Arc::new(new);
        // From here on, new calls are checked against the new entries. A call that was
        // authenticated with an old entry, but has not begun yet, ends as soon as it begins.
        for key in &gone {
            key.calls.revoke();
        }
        tracing::info!(keys = count, gone = gone.len(), "API keys loaded");
    }

    /// Returns the bearer of a valid key. Checking an unknown key takes as long as checking a wrong
    /// secret.
    pub(super) fn verify(&self, credential: &str, now: SystemTime) -> Result<Verified, Rejection> {
        let (id, secret) = credential.split_once('.').unwrap_or((credential, ""));
        let is_whole = BASE64_URL_SAFE_NO_PAD
            .decode(secret)
            .is_ok_and(|bytes| bytes.len() == SECRET_LEN);
        if !is_whole {
            return Err(Rejection::because("malformed key"));
        }
        let hash = hash(secret);
        let loaded = Arc::clone(&self.lock());
        let key = loaded.get(id);
        let expected = key.map_or([0; SECRET_LEN], |key| key.entry.sha256);
        let is_right = bool::from(hash.ct_eq(&expected));
        // An unknown id may be anything, even a secret, so it is not logged.
        let key = key.ok_or(Rejection::because("unknown key"))?;
        let client = ClientName::of_key(id).ok_or(Rejection::because("unknown key"))?;
        let now = clock::timestamp(now).unwrap_or(Timestamp::MAX);
        let why = match key.entry.state(now) {
            _ if !is_right => "wrong secret",
            State::Valid => {
                return Ok(Verified {
                    client,
                    role: key.entry.role,
                    calls: key.calls.clone(),
                });
            }
            State::Expired => "expired",
            State::Revoked => "revoked",
        };
        Err(Rejection::Rejected {
            why,
            client: Some(client),
        })
    }

    /// Returns whether the key with this id was revoked or removed. An expired key was not.
    pub(super) fn is_revoked(&self, id: &str) -> bool {
        let loaded = Arc::clone(&self.lock());
        loaded.get(id).is_none_or(|key| key.entry.revoked.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<HashMap<String, Key>>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
