//! The kernel that every CPU can run. It hashes one secret after another with the `sha1` crate,
//! which uses the CPU's SHA instructions if there are any.

use crate::{
    filter::Filter,
    hits::{Hit, Hits},
    secrets::Block,
};

/// Number of messages that are written before the first of them is hashed. Reading a message right
/// after writing it would wait for the store to complete. A few dozen messages later, it has.
const BATCH: usize = 32;

/// See [`Kernel::scan`](crate::kernel::Kernel::scan).
pub(crate) fn scan(block: &Block<'_>, filter: &Filter, hits: &mut Hits) -> u64 {
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

/// The filter's part of [`Kernel::cost`](crate::kernel::Kernel::cost).
///
/// Names without grams are checked one by one, and each check takes about half as long as a hash.
/// The grams of all other names together take as long as one hash.
pub(crate) fn cost(filter: &Filter) -> f64 {
    let plan = filter.plan();
    0.5 * plan.apart.len() as f64 + f64::from(u8::from(plan.grams.is_some()))
}

/// See [`Kernel::digest_sum`](crate::kernel::Kernel::digest_sum).
pub(crate) fn digest_sum(block: &Block<'_>) -> u32 {
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
fn for_each_batch(block: &Block<'_>, mut take: impl FnMut(u64, &[[u32; 5]]) -> bool) {
    let space = block.secrets.space();
    let mut message = space.message(block.length);
    let state = space.state();
    let length = block.length as usize;
    let place = space.place();
    space.write(
        block.first,
        &mut message.as_flattened_mut()[place..place + length],
    );
    // The searched part, and what follows it up to a multiple of eight bytes. At least nine bytes
    // of padding follow it.
    let end = place + length.next_multiple_of(8);
    let mut searched = message.as_flattened()[place..end].to_vec();
    let alphabet = space.alphabet();
    let mut last = (block.first % space.radix()) as usize;
    // The blocks of one message after those of another.
    let blocks = message.len();
    let mut messages = message.repeat(BATCH);
    let mut digests = [state; BATCH];

    let mut first = 0;
    while first < block.count {
        let count = (block.count - first).min(BATCH as u64) as usize;
        for message in messages.chunks_exact_mut(blocks).take(count) {
            let bytes = &mut message.as_flattened_mut()[place..end];
            let eights = searched.as_chunks::<8>().0;
            for (to, eight) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(eights) {
                *to = *eight;
            }
            // The last character goes from a register into the message. Written into the searched
            // part, it would delay the next copy, which reads wider than it was written.
            if let Some(at) = length.checked_sub(1) {
                bytes[at] = alphabet[last];
                last += 1;
                if last == alphabet.len() {
                    last = 0;
                    space.advance(&mut searched[..at]);
                }
            }
        }
        let every = messages.chunks_exact(blocks);
        for (digest, message) in digests[..count].iter_mut().zip(every) {
            *digest = state;
            sha1::block_api::compress(digest, message);
        }
        if !take(first, &digests[..count]) {
            return;
        }
        first += count as u64;
    }
}
