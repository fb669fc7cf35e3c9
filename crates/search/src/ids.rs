//! IDs of searches, scans and jobs. All come from one counter, so none is used twice.

pub(crate) type SearchId = u64;
pub(crate) type ScanId = u64;
pub(crate) type JobId = u64;
