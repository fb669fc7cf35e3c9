//! What the vector kernels ask of a CPU: a few operations on vectors of 32-bit words.

use crate::bitmap::Bitmap;

/// The five words of as many digests as a vector is wide.
pub(crate) type Digests<S> = [<S as Simd>::Vector; 5];

/// Vectors of 32-bit words, by the instructions of one kind of CPU.
///
/// # Contract
///
/// A value of such a type is the proof that the CPU has the instructions: only detection makes one. So every method
/// may call functions that are compiled for these instructions and need nothing else. [`operations`] makes the
/// methods from such functions, with the only `unsafe` that rests on this contract.
///
/// # Inlining
///
/// The methods must be inlined into a function that was compiled for these instructions, or each
/// would be a call; so must everything generic that uses them. That is why all of it is
/// `#[inline(always)]`, and why none of it passes closures on.
///
/// # Groups
///
/// A hashed name lies in seven vectors, the *groups*. Each has a byte for each of four consecutive
/// places in every word, and each word belongs to a hash. To *look on* by some places is to take
/// bytes from the next group in at the top.
pub(crate) trait Simd: Copy {
    /// One word for each of so many hashes.
    type Vector: Copy;
    /// A group's digits, in the form in which [`lookup`](Self::lookup) wants them.
    type Digits: Copy;
    /// A byte for each digit.
    type Table: Copy;

    /// How many words a vector has.
    const WIDTH: usize;

    fn set1(self, word: u32) -> Self::Vector;
    /// The first words of `words`, which has at least as many as a vector.
    fn load(self, words: &[u32]) -> Self::Vector;
    /// Writes the first words of `words`, which has at least as many as a vector.
    fn store(self, vector: Self::Vector, words: &mut [u32]);

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn and(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn or(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn xor(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `(a & b) | c`
    fn and_or(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The bits of `a` where `mask` has ones, those of `b` elsewhere: SHA-1's function `Ch`.
    fn select(self, mask: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn parity(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn majority(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn rotate_left_5(self, a: Self::Vector) -> Self::Vector;
    fn rotate_left_30(self, a: Self::Vector) -> Self::Vector;

    /// Each word of `near` without its `PLACES` lowest bytes, and as many of `far` above.
    fn look_on<const PLACES: u8>(self, near: Self::Vector, far: Self::Vector) -> Self::Vector;
    /// The four digits that the upper three bytes of each word spell, the first one lowest.
    fn upper_digits(self, word: Self::Vector) -> Self::Vector;
    /// The four digits that the lower three bytes of each word spell.
    fn lower_digits(self, word: Self::Vector) -> Self::Vector;
    /// What [`lookup`](Self::lookup) wants to know of digits.
    fn prepare(self, digits: Self::Vector) -> Self::Digits;
    /// A table in which a digit has `bytes[digit]`, or some bits more.
    fn table(self, bytes: &[u8; 64]) -> Self::Table;
    fn lookup(self, table: &Self::Table, digits: Self::Digits) -> Self::Vector;
    /// [`lookup`](Self::lookup) in the last group, whose top byte comes from `padding` instead.
    fn lookup_last(
        self,
        table: &Self::Table,
        digits: Self::Digits,
        padding: Self::Vector,
    ) -> Self::Vector;

    /// The number of ones in each byte.
    fn count_ones(self, bytes: Self::Vector) -> Self::Vector;
    /// The sum of each two bytes, which is less than 256.
    fn add_bytes(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The greater of each two bytes.
    fn max_bytes(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// A bit for each byte of `a` that is not less than that of `b`, four for each hash.
    fn not_less(self, a: Self::Vector, b: Self::Vector) -> u64;

    /// The code of each digit, see [`CODES`](crate::plan::CODES).
    fn codes(self, digits: Self::Digits) -> Self::Vector;
    /// Words that are not zero where `bitmap` has the key of the word's four codes.
    fn known(self, bitmap: &Bitmap, codes: Self::Vector) -> Self::Vector;

    /// The same byte everywhere.
    #[inline(always)]
    fn set1_byte(self, byte: u8) -> Self::Vector {
        self.set1(u32::from_ne_bytes([byte; 4]))
    }
}

/// Makes methods of an implementation of [`Simd`], each from a function with the same arguments. Where no types are
/// given, they are vectors.
///
/// The function must be safe to call on a CPU that has the instructions, as all of [`std::arch`] are that take no
/// pointers, and all with `#[target_feature]` that are not `unsafe` themselves.
macro_rules! operations {
    () => {};
    ($name:ident($($argument:ident),*) = $function:path; $($rest:tt)*) => {
        operations! {
            fn $name($($argument: Self::Vector),*) -> Self::Vector = $function;
            $($rest)*
        }
    };
    (
        fn $name:ident $(<const $parameter:ident: $kind:ty>)? ($($argument:ident: $type:ty),*) -> $result:ty
            = $function:path;
        $($rest:tt)*
    ) => {
        #[inline(always)]
        fn $name $(<const $parameter: $kind>)? (self, $($argument: $type),*) -> $result {
            // SAFETY: `self` proves that the CPU has the instructions, and the function needs nothing else.
            unsafe { $function($($argument),*) }
        }
        operations! { $($rest)* }
    };
}

pub(crate) use operations;
