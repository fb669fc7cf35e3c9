//! Entry points for the fuzz targets in `fuzz/`: what clients can send. Compiled only with
//! `cfg(fuzzing)`.

pub use crate::{auth::fuzzing::credential, searches::fuzzing::request};
