//! Numbers of searches and jobs. None is given out twice.

pub(crate) type SearchId = u64;
pub(crate) type JobId = u64;
