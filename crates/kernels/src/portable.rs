//! The kernel that every CPU can run. It hashes one secret after another with the `sha1` crate,
//! which uses the CPU's SHA instructions if there are any.

use crate::{
    block::Block,
    filter::Filter,
    hits::{Hit, Hits},
    split::INITIAL,
};

/// The byte that follows the message (FIPS 180-4, 5.1.1).
const TERMINATOR: u8 = 0x80;

/// Number of messages that are written before the first of them is hashed. Reading a message right
/// after writing it would wait for the store to complete. A few dozen messages later, it has.
const BATCH: usize = 32;

/// See [`Kernel::scan`](crate::kernel::Kernel::scan).
pub(crate) fn scan(block: &Block, filter: &Filter, hits: &mut Hits) -> u64 {
    let mut stopped = None;
    for_each_batch(block, |first, digests| {
        for (offset, digest) in (first..).zip(digests) {
            if hits.is_full() {
                stopped = Some(offset);
                return false;
            }
            filter.check(digest, |found| hits.push(Hit::new(offset, found)));
        }
        true
    });
    stopped.unwrap_or(block.count)
}

/// See [`Kernel::cost`](crate::kernel::Kernel::cost).
///
/// Names without grams are checked one by one, and each check takes about half as long as a hash.
/// The grams of all other names together take as long as one hash.
pub(crate) fn cost(filter: &Filter) -> f64 {
    let plan = filter.plan();
    1.0 + 0.5 * plan.apart.len() as f64 + f64::from(u8::from(plan.grams.is_some()))
}

/// See [`Kernel::digest_sum`](crate::kernel::Kernel::digest_sum).
pub(crate) fn digest_sum(block: &Block) -> u32 {
    let mut sum = 0;
    for_each_batch(block, |_, digests| {
        sum = digests.iter().fold(sum, |sum, digest| sum ^ digest[0]);
        true
    });
    sum
}

/// Calls `take` with a block's digests, in batches, until `take` returns `false`. With each batch,
/// it passes the offset of the batch's first digest.
#[inline(always)]
fn for_each_batch(block: &Block, mut take: impl FnMut(u64, &[[u32; 5]]) -> bool) {
    let mut message = [0; 64];
    // After a secret of eight bytes, the terminator is the ninth byte. Otherwise it is in `front`.
    message[8] = if block.length == 8 { TERMINATOR } else { 0 };
    message[56..].copy_from_slice(&(8 * u64::from(block.length)).to_be_bytes());
    let mut messages = [message; BATCH];
    let mut digests = [INITIAL; BATCH];

    let mut first = 0;
    while first < block.count {
        let count = (block.count - first).min(BATCH as u64) as usize;
        for (message, offset) in messages[..count].iter_mut().zip(first..) {
            let front = front(block.length, block.first + offset);
            message[..8].copy_from_slice(&front.to_be_bytes());
        }
        for (digest, message) in digests[..count].iter_mut().zip(&messages) {
            *digest = INITIAL;
            sha1::block_api::compress(digest, std::slice::from_ref(message));
        }
        if !take(first, &digests[..count]) {
            return;
        }
        first += count as u64;
    }
}

/// Returns the first eight bytes of the message: the secret, followed by the terminator if it fits.
fn front(length: u32, secret: u64) -> u64 {
    match length {
        0 => u64::from(TERMINATOR) << 56,
        8 => secret,
        _ => secret << (64 - 8 * length) | u64::from(TERMINATOR) << (56 - 8 * length),
    }
}
