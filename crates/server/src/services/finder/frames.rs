//! The sizes of messages, so that their frames cost a reader no more than their bytes.

/// Length from which a message takes no more searches, in bytes. A message that its client does not read takes this
/// much memory, and an address may have a thousand of them.
pub(super) const MESSAGE_BYTES: usize = 32 << 10;

/// Below how many bytes a frame is small. HTTP/2 implementations close a connection over a hundred and more
/// small frames that wait to be read (h2, which our own client has, counts the bytes that 256 are more than
/// each), however few a second there are of them. Longer ones fill the stream's window, and then nothing is
/// sent.
const SMALL_FRAME: usize = 256;

/// Returns the padding with which a message of `bytes` bytes is no small frame.
pub(super) fn padding(bytes: usize) -> Vec<u8> {
    vec![0; SMALL_FRAME.saturating_sub(bytes)]
}
