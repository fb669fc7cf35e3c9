//! The server to which a command sends its calls.

use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use hashfinder_client::{Connection, ServerAddress, advice};
use tonic::{Code, Status};

use super::{ConnectionArguments, values};
use crate::terminal::{as_text, say};

/// Default of `--connect-timeout`. It is short, because the server is expected to be running.
const CONNECT_TIMEOUT: &str = "5s";

/// Time limit of the calls that list or cancel searches and operations. Even a busy server answers
/// them within a fraction of a second.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The server that a command is about.
#[derive(Args, Debug)]
pub(crate) struct ServerArguments {
    /// Server to connect to: HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "HOST:PORT")]
    #[arg(default_value = "localhost:50051")]
    pub(crate) server: ServerAddress,

    /// Maximum time to wait for the server
    #[arg(long, value_name = "DURATION", default_value = CONNECT_TIMEOUT, value_parser = values::duration)]
    pub(crate) connect_timeout: Duration,

    #[command(flatten)]
    pub(crate) connection: ConnectionArguments,
}

impl ServerArguments {
    /// Connects to the server.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let server = self.connection.address(&self.server);
        let timeout = self.connect_timeout;
        Connection::open(&server, &(&self.connection).into(), timeout, timeout, say).await
    }

    /// Returns the error for the status of a call, with what to do about it.
    pub(crate) fn failure(&self, status: &Status) -> anyhow::Error {
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
