//! `hashfinder health`: checks whether a server accepts calls, for probes.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hashfinder_client::{Connection, ServerAddress, advice};
use tonic::{Code, Request};
use tonic_cancel::{Call, CallOptions};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    arguments::ConnectionArguments,
    exit::Exit,
    signals::exit_at_once,
    terminal::{as_text, print},
};

/// Time limit of a check, connection included: a healthy server answers within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for connecting. It is shorter than [`TIMEOUT`], so that the error says why the check
/// cannot connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Check whether a server accepts calls.
///
/// Calls the server's health service (grpc.health.v1) and prints the answer: SERVING or
/// NOT_SERVING. The check takes at most 5 s, and needs no credential. A draining server no longer
/// listens, so the exit code is then usually 5. Use this command for probes, for example in a
/// container that has no other program.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder health
  hashfinder health --server localhost:50051 --tls-ca ca.pem --tls-server-name find.example

Exit codes:
    0  the server accepts calls
    1  the server answered that it accepts no calls
    2  the command line is wrong
    5  no answer, or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM)")]
pub(crate) struct HealthArguments {
    /// Server to check: HOST:PORT, https://HOST:PORT or unix:PATH
    #[arg(long, value_name = "HOST:PORT")]
    #[arg(default_value = "localhost:50051")]
    server: ServerAddress,

    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Runs the command. Dropping the future cancels the call.
pub(crate) async fn run(arguments: HealthArguments) -> Result<Exit> {
    exit_at_once().context("cannot receive signals")?;
    let checked = tokio::time::timeout(TIMEOUT, check(&arguments)).await;
    let status = checked.unwrap_or_else(|_| {
        let within = humantime::format_duration(TIMEOUT);
        bail!(
            "the server at {} did not answer within {within}",
            arguments.server
        )
    })?;
    print(format!("{}\n", status.as_str_name()))?;
    Ok(match status {
        ServingStatus::Serving => Exit::Success,
        _ => Exit::No,
    })
}

async fn check(arguments: &HealthArguments) -> Result<ServingStatus> {
    let server = arguments.connection.address(&arguments.server);
    let connection = Connection::open(
        &server,
        &(&arguments.connection).into(),
        CONNECT_TIMEOUT,
        CONNECT_TIMEOUT,
        |_| (),
    )
    .await?;
    let mut client = HealthClient::new(connection.channel());
    // The empty service name stands for the server as a whole.
    let request = Request::new(HealthCheckRequest::default());
    let call = Call::start(request, CallOptions::new(), |request| async move {
        client.check(request).await
    });
    match call.await {
        Ok(response) => Ok(response.into_inner().status()),
        Err(status) if status.code() == Code::Unimplemented => {
            bail!("the server at {server} has no health service")
        }
        Err(status) => Err(anyhow!(advice(&status, &server).unwrap_or_else(|| {
            let message = as_text(status.message());
            format!(
                "the server at {server} failed: {message} ({:?})",
                status.code()
            )
        }))),
    }
}
