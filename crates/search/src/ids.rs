//! IDs of searches, scans and jobs. All come from one counter, so none is used twice.

/// Number of a search of an engine or a dispatcher.
pub type SearchId = u64;
pub(crate) type ScanId = u64;
pub(crate) type JobId = u64;
