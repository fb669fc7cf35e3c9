//! The secrets of a search, and blocks of them.

use std::{
    fmt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use crate::{
    layout::{Form, Layout},
    space::Space,
};

/// Secrets that consist of a fixed prefix, a searched part, and a fixed suffix.
///
/// The searched parts of one length are counters, with the last byte changing fastest. Their digits
/// are the bytes of an alphabet, in its order.
///
/// ```
/// use hashfinder_kernels::{CharSet, Filter, Hits, Kernel, Secrets};
///
/// // Finds "aa" in the hashed names of "nonce: 000" to "nonce: 999".
/// let secrets = Secrets::new(b"nonce: ", b"0123456789", b"");
/// let a = CharSet::digits_where(|character| character.eq_ignore_ascii_case(&b'a'));
/// let mut hits = Hits::with_limit(1024);
/// Kernel::best().scan(&secrets.block(3, 0, 1000), &Filter::new(&[a, a], 0), &mut hits);
/// assert!(!hits.is_empty());
/// ```
pub struct Secrets {
    space: Space,
    layouts: Mutex<Vec<(u32, Form, Arc<Layout>)>>,
}

impl Secrets {
    /// Maximum length of a searched part, in bytes.
    pub const MAX_SEARCHED: u32 = 64;

    /// Creates the secrets that begin with `prefix`, end with `suffix`, and have bytes of
    /// `alphabet` in between.
    ///
    /// The prefix is hashed here, as far as it fills blocks.
    ///
    /// # Panics
    ///
    /// If `alphabet` is empty or contains a byte twice.
    #[must_use]
    pub fn new(prefix: &[u8], alphabet: &[u8], suffix: &[u8]) -> Secrets {
        Secrets {
            space: Space::new(prefix, alphabet, suffix),
            layouts: Mutex::new(Vec::new()),
        }
    }

    /// Returns all byte strings, as one shared instance.
    #[must_use]
    pub fn all() -> &'static Secrets {
        static ALL: LazyLock<Secrets> = LazyLock::new(|| {
            let bytes: [u8; 256] = std::array::from_fn(|byte| byte as u8);
            Secrets::new(b"", &bytes, b"")
        });
        &ALL
    }

    /// Creates a block of `count` secrets whose searched parts have `length` bytes. The first
    /// searched part is the counter `first`.
    ///
    /// # Panics
    ///
    /// If `length` is above [`MAX_SEARCHED`](Self::MAX_SEARCHED), or the block reaches beyond the
    /// last secret of its length or the counter 2^64. The caller has to split its ranges where the
    /// length changes.
    #[must_use]
    pub fn block(&self, length: u32, first: u64, count: u64) -> Block<'_> {
        assert!(length <= Self::MAX_SEARCHED, "no secrets of {length} bytes");
        let end = u128::from(first) + u128::from(count);
        assert!(
            end <= self.space.count(length).min(1 << 64),
            "{count} secrets from {first} on do not exist in {length} bytes"
        );
        Block {
            secrets: self,
            length,
            first,
            count,
        }
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// Returns how a kernel walks through the secrets of a length. It is prepared on first use.
    pub(crate) fn layout(&self, length: u32, form: Form) -> Arc<Layout> {
        let find = |layouts: &[(u32, Form, Arc<Layout>)]| {
            let mut layouts = layouts.iter();
            let found = layouts.find(|(of, by, _)| (*of, *by) == (length, form));
            found.map(|(_, _, layout)| Arc::clone(layout))
        };
        let layouts = || self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layout) = find(&layouts()) {
            return layout;
        }
        // Another thread may prepare the same one meanwhile.
        let layout = Arc::new(Layout::new(&self.space, length, form));
        let mut layouts = layouts();
        if find(&layouts).is_none() {
            layouts.push((length, form, Arc::clone(&layout)));
        }
        layout
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.space.fmt(f)
    }
}

/// Consecutive secrets with searched parts of one length.
#[derive(Clone, Copy, Debug)]
pub struct Block<'s> {
    pub(crate) secrets: &'s Secrets,
    pub(crate) length: u32,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Block<'static> {
    /// Creates a block of `count` byte strings of `length` bytes. The first is the counter `first`,
    /// written big-endian.
    ///
    /// # Panics
    ///
    /// Like [`Secrets::block`].
    #[must_use]
    pub fn new(length: u32, first: u64, count: u64) -> Block<'static> {
        Secrets::all().block(length, first, count)
    }
}

impl Block<'_> {
    /// Returns the length of each searched part in bytes.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Returns the number of secrets.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }
}
