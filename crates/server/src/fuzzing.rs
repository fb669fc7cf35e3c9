//! What strangers can send, for the fuzz targets in `fuzz/`. It is only there with `cfg(fuzzing)`.

pub use crate::{auth::fuzzing::credential, searches::fuzzing::request};
