//! The kernel that every CPU can run: one secret after another through the `sha1` crate, which
//! takes the CPU's SHA instructions where there are any.

use crate::{Block, Filter, Hit, Hits, split::INITIAL};

/// The byte that follows the message (FIPS 180-4, 5.1.1).
const TERMINATOR: u8 = 0x80;

/// How many messages are written before the first of them is hashed. A message that is read back
/// right after it was written waits for the store; a few dozen later it does not.
const BATCH: usize = 32;

pub(crate) fn scan(block: &Block, filter: &Filter, hits: &mut Hits) -> u64 {
    let mut message = [0; 64];
    // A secret of eight bytes has its terminator behind the part that varies.
    message[8] = if block.length == 8 { TERMINATOR } else { 0 };
    message[56..].copy_from_slice(&(8 * u64::from(block.length)).to_be_bytes());
    let mut messages = [message; BATCH];
    let mut digests = [INITIAL; BATCH];

    let mut offset = 0;
    while offset < block.count {
        let batch = messages.iter_mut().zip(offset..block.count);
        for (message, offset) in batch {
            let front = front(block.length, block.first + offset);
            message[..8].copy_from_slice(&front.to_be_bytes());
        }
        for (digest, message) in digests.iter_mut().zip(&messages) {
            *digest = INITIAL;
            sha1::block_api::compress(digest, std::slice::from_ref(message));
        }
        for digest in &digests {
            if hits.is_full() || offset == block.count {
                return offset;
            }
            if let Some(found) = filter.check(digest) {
                hits.push(Hit {
                    offset,
                    distance: found.distance,
                    window: found.window,
                });
            }
            offset += 1;
        }
    }
    offset
}

/// The first eight bytes of the message: the secret, and behind it the terminator if it fits.
fn front(length: u32, secret: u64) -> u64 {
    match length {
        0 => u64::from(TERMINATOR) << 56,
        8 => secret,
        _ => secret << (64 - 8 * length) | u64::from(TERMINATOR) << (56 - 8 * length),
    }
}
