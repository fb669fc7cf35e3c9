//! Entry points for the fuzz targets in `fuzz/`: credentials, files of API keys, and requests.
//! Compiled only with `cfg(fuzzing)`.

pub use crate::{auth::fuzzing::credential, searches::fuzzing::request};
