//! SHA-1 outside the hot loop.

/// Returns the SHA-1 digest of a message of any length, as five words.
///
/// It is meant for the few digests that are needed outside the hot loop.
#[must_use]
pub fn sha1(message: &[u8]) -> [u32; 5] {
    use sha1::Digest;
    let digest = sha1::Sha1::digest(message);
    let mut words = [0; 5];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(4)) {
        let bytes = bytes.iter().map(|byte| u32::from(*byte));
        *word = bytes.fold(0, |word, byte| word << 8 | byte);
    }
    words
}
