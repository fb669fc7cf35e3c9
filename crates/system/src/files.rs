//! Reads the files that users name, without blocking anything else.
//!
//! A read can block indefinitely: a named pipe waits for a writer, a network mount for its server,
//! a file under a lease for the lease's holder. So keys, certificates and sessions must be regular
//! files of limited size. A process that handles signals reads them on a separate thread: once with
//! [`aside`](crate::threads::aside), repeatedly with [`Watch`].

use std::{
    fmt,
    fs::{self, File, FileType, Metadata, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::Duration,
};

use rustix::fs::OFlags;

use crate::threads::start;

/// Time that a check of files may take before the log reports that the check is blocked: longer
/// than a busy disk needs.
const BLOCKED_AFTER: Duration = Duration::from_secs(10);

/// Opens a regular file for reading. Follows symbolic links, because Kubernetes mounts secrets as
/// links.
///
/// This can block, for example on a network mount whose server is gone. It does not wait for the
/// writer of a named pipe.
///
/// # Errors
///
/// If the file cannot be opened, or is not a regular one.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // Checked before opening, because opening a device can have effects.
    require_regular(&fs::metadata(path)?)?;
    let mut options = OpenOptions::new();
    // Another file, such as a named pipe, may have taken its place since.
    options.read(true).custom_flags(flags(OFlags::NONBLOCK));
    let file = match options.open(path) {
        // Another process holds a lease on the file. Wait until it releases the lease.
        Err(error) if error.kind() == ErrorKind::WouldBlock => File::open(path)?,
        opened => opened?,
    };
    let metadata = file.metadata()?;
    require_regular(&metadata)?;
    Ok((file, metadata))
}

/// Reads a regular file of at most `limit` bytes, and follows symbolic links. This can block, as
/// [`open`] can.
///
/// # Errors
///
/// If the file cannot be read, is not a regular one, or is larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    contents(open(path)?.0, limit)
}

/// Reads a file of any kind, such as a pipe, of at most `limit` bytes. This waits for a pipe's
/// writer, so call it only while any signal still ends the process.
///
/// # Errors
///
/// If the file cannot be read, or is larger.
pub fn read_any_kind(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    contents(File::open(path)?, limit)
}

/// Opens a regular file that belongs to this program, with these options. Follows no symbolic link
/// at the end of the path, and does not block on a named pipe or a lease.
///
/// # Errors
///
/// If the file cannot be opened, or is not a regular one.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(found) => require_regular(&found)?,
        // The options may create the file.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let options = options.custom_flags(flags(OFlags::NONBLOCK | OFlags::NOFOLLOW));
    let file = options.open(path).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => io::Error::new(
            error.kind(),
            "another process holds a lease on it; try again in a minute",
        ),
        _ => error,
    })?;
    require_regular(&file.metadata()?)?;
    Ok(file)
}

/// Reads the rest of an open file, of at most `limit` bytes.
///
/// # Errors
///
/// If the file cannot be read, or the rest is longer.
pub fn contents(file: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it is larger than {}", Size(limit)),
        ));
    }
    Ok(bytes)
}

/// Checks that a file is a regular one.
///
/// # Errors
///
/// If it is not; the error says what it is.
pub fn require_regular(file: &Metadata) -> io::Result<()> {
    if file.is_file() {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::InvalidInput,
        format!("it is {}, not a regular file", kind(file.file_type())),
    ))
}

fn kind(file: FileType) -> &'static str {
    if file.is_dir() {
        "a folder"
    } else if file.is_symlink() {
        "a symbolic link"
    } else if file.is_fifo() {
        "a pipe"
    } else if file.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// A number of bytes that is shown in MiB or KiB. It must be a multiple of 1 KiB.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes % (1 << 20) == 0 => write!(f, "{} MiB", bytes >> 20),
            bytes => write!(f, "{} KiB", bytes >> 10),
        }
    }
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// Identifies a version of a file. It changes if the file is replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([i64; 7]);

impl Stamp {
    /// Returns the stamp of a file with this metadata.
    #[must_use]
    pub fn of(file: &Metadata) -> Stamp {
        Stamp([
            file.dev().cast_signed(),
            file.ino().cast_signed(),
            file.size().cast_signed(),
            file.mtime(),
            file.mtime_nsec(),
            file.ctime(),
            file.ctime_nsec(),
        ])
    }
}

/// Checks files repeatedly on a separate thread, until this is dropped.
#[must_use]
pub struct Watch {
    _stop: Sender<()>,
}

impl Watch {
    /// Calls `look` repeatedly, each time `pause` after the previous call has ended. `look` may
    /// block: the log reports that, and nothing else waits for it. A panic in `look` ends only that
    /// call.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub fn start(
        name: &'static str,
        pause: Duration,
        mut look: impl FnMut() + Send + 'static,
    ) -> io::Result<Watch> {
        let (_stop, stopped) = mpsc::channel();
        let (request, requests) = mpsc::channel();
        let (reply, replies) = mpsc::channel();
        start(name, move || {
            while let Ok(()) = requests.recv() {
                // The panic hook has already reported the panic.
                let _ = catch_unwind(AssertUnwindSafe(&mut look));
                if reply.send(()).is_err() {
                    break;
                }
            }
        })?;
        start(name, move || {
            supervise(name, pause, &stopped, &request, &replies);
        })?;
        Ok(Watch { _stop })
    }
}

/// Requests a check after each pause, until the sender of `stopped` is dropped. Logs checks that
/// are blocked.
fn supervise(
    name: &str,
    pause: Duration,
    stopped: &Receiver<()>,
    request: &Sender<()>,
    replies: &Receiver<()>,
) {
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        if request.send(()).is_err() {
            return;
        }
        match replies.recv_timeout(BLOCKED_AFTER) {
            Ok(()) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => tracing::error!(
                files = name,
                "reading files has been blocked for 10 s; changes to them are not applied"
            ),
        }
        if replies.recv().is_err() {
            return;
        }
        tracing::info!(files = name, "reading files works again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const INSTANTLY: Duration = Duration::from_millis(1);

    #[test]
    fn only_regular_files_of_limited_size_are_read() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let length = fs::metadata(&own).unwrap().len();
        assert_eq!(read(&own, length).unwrap().len() as u64, length);
        assert_eq!(
            read(&own, length - 1).unwrap_err().kind(),
            ErrorKind::FileTooLarge
        );
        for (path, why) in [
            ("/dev/zero", "it is a device, not a regular file"),
            ("/", "it is a folder, not a regular file"),
        ] {
            let error = read(Path::new(path), 1 << 20).unwrap_err();
            assert_eq!(error.to_string(), why);
        }
        let endless = read_any_kind(Path::new("/dev/zero"), 64 << 10).unwrap_err();
        assert_eq!(endless.to_string(), "it is larger than 64 KiB");
    }

    /// A check that panics or is blocked must not prevent later checks, or block the process that
    /// drops the watch.
    #[test]
    fn a_watch_checks_until_it_is_dropped() {
        let (looked, looks) = mpsc::channel();
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let waits = Arc::clone(&gate);
        let mut count = 0;
        let watch = Watch::start("test", INSTANTLY, move || {
            count += 1;
            looked.send(count).unwrap();
            assert_ne!(count, 1, "the first check panics");
            if count == 2 {
                drop(waits.lock());
            }
        });
        let watch = watch.unwrap();
        assert_eq!((looks.recv(), looks.recv()), (Ok(1), Ok(2)));
        // The second check is blocked, and dropping the watch does not wait for it.
        drop(watch);
        drop(closed);
        // The thread ends, however many checks it has made since.
        assert!(looks.into_iter().all(|count| count >= 3));
    }
}
