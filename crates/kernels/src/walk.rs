//! What differs between the ways through the secrets of a block.

/// The way through the secrets of a block.
pub(crate) trait Walk {
    /// What the secrets of a chunk have in common.
    type Chunk;
    /// What the lanes of a row have in common.
    type Row;

    /// Number of variants of the rounds. [`case`](Self::case) chooses one.
    const CASES: usize;

    fn case(&self) -> usize;

    /// Returns the number of lanes of a row.
    fn lanes(&self) -> usize;

    /// Returns the number of secrets of a chunk.
    fn chunk_len(&self) -> u64;

    /// Returns the chunk that begins with the searched part `first`.
    fn chunk(&self, first: u64) -> Self::Chunk;

    /// Returns the row with this number.
    fn row(&self, chunk: &Self::Chunk, number: usize) -> Self::Row;
}
