//! Limits on the sizes of messages: unread long ones take memory, and too many unread short ones
//! end the connection.

/// Length from which no more searches are added to a message, in bytes. A message that its client
/// does not read takes about this much memory, and an address may have a thousand of them.
pub(super) const MESSAGE_BYTES: usize = 32 << 10;

/// Length below which a frame is small, in bytes. HTTP/2 implementations close a connection if
/// about a hundred small frames or more wait to be read, however slowly they arrived. (h2, which
/// our own client uses, adds up how many bytes each is shorter than 256.) Longer frames fill the
/// stream's window first, and then the server sends nothing more.
const SMALL_FRAME: usize = 256;

/// Returns the padding with which a message of `bytes` bytes does not make a small frame.
pub(super) fn padding(bytes: usize) -> Vec<u8> {
    vec![0; SMALL_FRAME.saturating_sub(bytes)]
}
