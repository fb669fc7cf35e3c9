//! The operations on vectors of 32-bit words that the vector kernels need from a CPU.

use crate::bitmap::Bitmap;

/// The digests of a vector of hashes: one vector for each of a digest's five words.
pub(crate) type Digests<S> = [<S as Simd>::Vector; 5];

/// Vectors of 32-bit words, with the instructions of one kind of CPU.
///
/// # Contract
///
/// A value of an implementing type proves that the CPU has the instructions: only detection creates
/// one. So every method may call functions that are compiled for these instructions and have no
/// other requirements. [`operations`] makes the methods from such functions. Its `unsafe` block
/// relies on this contract, and so do those of the kernels.
///
/// # Inlining
///
/// The methods must be inlined into a function that was compiled for these instructions, otherwise
/// each would be a call. The same applies to all generic code that uses them. That is why all of it
/// is `#[inline(always)]`, and why none of it passes closures to other functions.
///
/// # Groups
///
/// A hashed name is stored in seven vectors if it is base64, eight if it is base32 and ten if it is
/// hexadecimal: the *groups*. In a group, each word belongs to one
/// hash and holds four consecutive places, one byte each. To *advance* a group by some places means
/// to drop that many of its lowest bytes, and to shift in the lowest bytes of the next group at the
/// top.
pub(crate) trait Simd: Copy {
    /// A vector with one word for each hash.
    type Vector: Copy;
    /// A group's digits, in the form that [`lookup`](Self::lookup) expects.
    type Digits: Copy;
    /// A table with one byte for each digit.
    type Table: Copy;

    /// Number of words in a vector.
    const WIDTH: usize;

    fn set1(self, word: u32) -> Self::Vector;
    /// Loads a vector from the first words of `words`, which must not be shorter than a vector.
    fn load(self, words: &[u32]) -> Self::Vector;
    /// Stores a vector in the first words of `words`, which must not be shorter than a vector.
    fn store(self, vector: Self::Vector, words: &mut [u32]);

    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn and(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn or(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn xor(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `(a & b) | c`
    fn and_or(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// Returns the bits of `a` where `mask` has ones, and those of `b` elsewhere: SHA-1's function
    /// `Ch`.
    fn select(self, mask: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn parity(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn majority(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn rotate_left_5(self, a: Self::Vector) -> Self::Vector;
    fn rotate_left_30(self, a: Self::Vector) -> Self::Vector;

    /// Returns each word of `near` without its `PLACES` lowest bytes, and with the `PLACES` lowest
    /// bytes of `far` at the top.
    fn advance<const PLACES: u8>(self, near: Self::Vector, far: Self::Vector) -> Self::Vector;
    /// Returns the four digits of the upper three bytes of each word, the first in the lowest byte.
    fn upper_digits(self, word: Self::Vector) -> Self::Vector;
    /// Returns the four digits of the lower three bytes of each word, the first in the lowest byte.
    fn lower_digits(self, word: Self::Vector) -> Self::Vector;
    /// Returns the four digits of four bits each that begin `FIRST` bits below the top of each
    /// word, 0 or 16, the first in the lowest byte.
    fn hex_digits<const FIRST: u32>(self, word: Self::Vector) -> Self::Vector;
    /// Returns the four digits of five bits each that begin `FIRST` bits below the top of each word
    /// of `high`, which `low` continues. The first is in the lowest byte.
    fn base32_digits<const FIRST: i32>(self, high: Self::Vector, low: Self::Vector)
    -> Self::Vector;
    /// Converts digits to the form that [`lookup`](Self::lookup) expects.
    fn prepare(self, digits: Self::Vector) -> Self::Digits;
    /// Creates a table that maps each digit to `bytes[digit]`, possibly with additional bits set.
    /// There are 16, 32 or 64 digits, and bytes beyond them are zero.
    fn table(self, bytes: &[u8; 64], digits: usize) -> Self::Table;
    fn lookup(self, table: &Self::Table, digits: Self::Digits) -> Self::Vector;
    /// Like [`lookup`](Self::lookup), for the last group: each word's top byte comes from
    /// `padding`.
    fn lookup_last(
        self,
        table: &Self::Table,
        digits: Self::Digits,
        padding: Self::Vector,
    ) -> Self::Vector;

    /// Returns the number of ones in each byte.
    fn count_ones(self, bytes: Self::Vector) -> Self::Vector;
    /// Returns the sum of each pair of bytes. The caller ensures that it is less than 256.
    fn add_bytes(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Returns the greater of each pair of bytes.
    fn max_bytes(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Returns four bits for each hash. At least one of them is set if and only if, in the hash's
    /// word, some byte of `a` is not less than the corresponding byte of `b`.
    fn not_less(self, a: Self::Vector, b: Self::Vector) -> u64;

    /// Returns four bits for each hash. At least one of them is set if and only if the hash's word
    /// is zero.
    fn zeros(self, words: Self::Vector) -> u64;

    /// Returns the code of each digit, see [`CODES`](crate::plan::CODES).
    fn codes(self, digits: Self::Digits) -> Self::Vector;
    /// Returns a vector in which a word is not zero if and only if `bitmap` contains the key of the
    /// word's four codes.
    fn known(self, bitmap: &Bitmap, codes: Self::Vector) -> Self::Vector;

    /// Returns a vector with the same byte everywhere.
    #[inline(always)]
    fn set1_byte(self, byte: u8) -> Self::Vector {
        self.set1(u32::from_ne_bytes([byte; 4]))
    }
}

/// Makes methods of an implementation of [`Simd`], each from a function with the same arguments.
/// Arguments without a type are vectors.
///
/// The function must be safe to call on a CPU that has the instructions. That applies to all
/// functions of [`std::arch`] that take no pointers, and to all functions with `#[target_feature]`
/// that are not `unsafe` themselves.
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
            // SAFETY: `self` proves that the CPU has the instructions, and the function needs
            // nothing else.
            unsafe { $function($($argument),*) }
        }
        operations! { $($rest)* }
    };
}

pub(crate) use operations;
