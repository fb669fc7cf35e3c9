//! Reads the metadata and the response of an operation.

use prost::{DecodeError, Message};
use prost_types::Any;

use crate::{
    google::longrunning::{Operation, operation},
    v1::{SearchMetadata, SearchResult},
};

impl Operation {
    /// Returns the metadata of an operation that `StartSearch` started.
    ///
    /// # Errors
    ///
    /// If the operation has no such metadata: it does not come from a server of ours.
    pub fn search_metadata(&self) -> Result<SearchMetadata, DecodeError> {
        decode(self.metadata.as_ref())
    }

    /// Returns the response of an operation that `StartSearch` started; `None` if it has none.
    ///
    /// # Errors
    ///
    /// If the response has another type.
    pub fn search_result(&self) -> Result<Option<SearchResult>, DecodeError> {
        match &self.result {
            Some(operation::Result::Response(response)) => decode(Some(response)).map(Some),
            Some(operation::Result::Error(_)) | None => Ok(None),
        }
    }
}

fn decode<M: Message + Default>(any: Option<&Any>) -> Result<M, DecodeError> {
    M::decode(any.map_or(&[][..], |any| &any.value))
}
