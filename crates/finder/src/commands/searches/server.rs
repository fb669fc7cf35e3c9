//! The server to which `searches` sends its calls.

use std::time::Duration;

use anyhow::{Result, anyhow};
use hashfinder_client::{Connection, advice};
use tonic::{Code, Status};

use super::arguments::ServerArguments;
use crate::terminal::{as_text, say};

/// Time limit of the calls that list or cancel searches. Even a busy server answers them within a
/// fraction of a second.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

impl ServerArguments {
    /// Connects to the server.
    pub(super) async fn connect(&self) -> Result<Connection> {
        let server = self.connection.address(&self.server);
        let timeout = self.connect_timeout;
        Connection::open(&server, &(&self.connection).into(), timeout, timeout, say).await
    }

    /// Returns the error for the status of a call, with what to do about it.
    pub(super) fn failure(&self, status: &Status) -> anyhow::Error {
        let server = &self.server;
        let message = as_text(status.message());
        match status.code() {
            Code::Unimplemented => anyhow!(
                "the server at {server} does not support this command: it supports only the \
                 reference contract, or has another version"
            ),
            Code::DeadlineExceeded => anyhow!(
                "the server at {server} did not answer within {}; try again",
                humantime::format_duration(ANSWER_TIMEOUT)
            ),
            Code::InvalidArgument | Code::ResourceExhausted => {
                anyhow!("the server at {server} rejected the request: {message}")
            }
            code => anyhow!(advice(status, server).unwrap_or_else(|| {
                format!("the server at {server} failed: {message} ({code:?}); try again")
            })),
        }
    }
}
