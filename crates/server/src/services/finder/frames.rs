//! The sizes of messages, so that their frames cost a reader no more than their bytes.

/// Length from which a message takes no more searches, in bytes. A message that its client does not
/// read takes this much memory, and an address may have a thousand of them.
pub(super) const MESSAGE_BYTES: usize = 32 << 10;

/// Length below which a frame is small, in bytes. HTTP/2 implementations close a connection if
/// about a hundred small frames or more wait to be read, however low their rate. (h2, which our own
/// client uses, adds up how many bytes each is shorter than 256.) Longer frames fill the stream's
/// window, and then nothing is sent.
const SMALL_FRAME: usize = 256;

/// Returns the padding that a message of `bytes` bytes needs to be no small frame.
pub(super) fn padding(bytes: usize) -> Vec<u8> {
    vec![0; SMALL_FRAME.saturating_sub(bytes)]
}
