//! Numbers of searches, scans and jobs. None is used twice.

pub(crate) type SearchId = u64;
pub(crate) type ScanId = u64;
pub(crate) type JobId = u64;
