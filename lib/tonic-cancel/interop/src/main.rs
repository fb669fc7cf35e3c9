//! gRPC's interoperability cases about cancellation, as a server and as a client of tonic-cancel.
//!
//! The cases are those of gRPC's `doc/interop-test-descriptions.md`. The tests run them against
//! other implementations; see `tests/`.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the tests read it")]

mod client;
mod echo;
#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod proto;
mod server;

use clap::Parser;

#[derive(Parser)]
enum Arguments {
    /// Serve on a free port of the loopback until killed; print the port, and the progress of each
    /// call
    Server,
    /// Run a case; fail if the server does not behave as the case requires
    Client(client::Arguments),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse() {
        Arguments::Server => server::run().await,
        Arguments::Client(arguments) => client::run(&arguments).await,
    }
}
