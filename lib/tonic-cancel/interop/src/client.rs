//! The client. Each case makes the assertions of gRPC's description.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::{
    Code, Request, Status,
    metadata::{MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_cancel::{Call, CallOptions, StreamingCall};

use crate::proto::{
    EchoStatus, Empty, ResponseParameters, SimpleRequest, SimpleResponse,
    StreamingInputCallRequest, StreamingInputCallResponse, StreamingOutputCallRequest,
    StreamingOutputCallResponse, payload, test_service_client::TestServiceClient,
    unimplemented_service_client::UnimplementedServiceClient,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server's port on the loopback
    #[arg(long)]
    port: u16,
    /// The case to run
    #[arg(long)]
    case: Case,
    /// The timeout of timeout_on_sleeping_server, in milliseconds
    #[arg(long, default_value_t = 1)]
    timeout_ms: u64,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Case {
    /// Waits for a line on stdin before it cancels.
    CancelAfterBegin,
    CancelAfterFirstResponse,
    /// Not one of gRPC's cases: the client has ended its half when it cancels the server's
    /// response.
    CancelWhileResponding,
    TimeoutOnSleepingServer,
    StatusCodeAndMessage,
    SpecialStatusMessage,
    UnimplementedMethod,
    UnimplementedService,
    CustomMetadata,
}

/// The sizes that the cases use, in bytes.
const REQUEST_SIZE: usize = 271_828;
const RESPONSE_SIZE: usize = 314_159;
const STREAM_REQUEST_SIZE: usize = 27_182;
const STREAM_RESPONSE_SIZE: usize = 31_415;

/// An interval that is longer than any test, in microseconds.
const NEVER_US: i32 = 600_000_000;

const NO_OPTIONS: CallOptions = CallOptions::new();

/// Runs the case, prints "passed", and stays until stdin ends. If it exited at once, the server
/// would see its connection die, with or without a cancellation.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    play(arguments).await?;
    println!("passed");
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    Ok(())
}

async fn play(arguments: &Arguments) -> Result<()> {
    let address = format!("http://127.0.0.1:{}", arguments.port);
    let channel = Endpoint::try_from(address)?.connect().await?;
    let client = TestServiceClient::new(channel.clone());
    match arguments.case {
        Case::CancelAfterBegin => cancel_after_begin(client).await,
        Case::CancelAfterFirstResponse => cancel_after_first_response(client).await,
        Case::CancelWhileResponding => cancel_while_responding(client).await,
        Case::TimeoutOnSleepingServer => {
            let timeout = Duration::from_millis(arguments.timeout_ms);
            timeout_on_sleeping_server(client, timeout).await
        }
        Case::StatusCodeAndMessage => status(client, "test status message").await,
        Case::SpecialStatusMessage => {
            let message =
                "\t\ntest with whitespace\r\nand Unicode BMP \u{263a} and non-BMP \u{1f608}\t\n";
            status(client, message).await
        }
        Case::UnimplementedMethod => {
            let mut client = client;
            let call = Call::start(Request::new(Empty {}), NO_OPTIONS, |request| async move {
                client.unimplemented_call(request).await
            });
            expect(call.await, Code::Unimplemented).map(drop)
        }
        Case::UnimplementedService => {
            let mut client = UnimplementedServiceClient::new(channel);
            let call = Call::start(Request::new(Empty {}), NO_OPTIONS, |request| async move {
                client.unimplemented_call(request).await
            });
            expect(call.await, Code::Unimplemented).map(drop)
        }
        Case::CustomMetadata => custom_metadata(client).await,
    }
}

async fn cancel_after_begin(mut client: TestServiceClient<Channel>) -> Result<()> {
    let requests = tokio_stream::pending::<StreamingInputCallRequest>();
    let call: Call<StreamingInputCallResponse> =
        Call::start(Request::new(requests), NO_OPTIONS, |request| async move {
            client.streaming_input_call(request).await
        });
    let mut line = String::new();
    BufReader::new(tokio::io::stdin())
        .read_line(&mut line)
        .await?;
    ensure!(call.cancel(), "the call had ended");
    expect(call.await, Code::Cancelled).map(drop)
}

async fn cancel_after_first_response(client: TestServiceClient<Channel>) -> Result<()> {
    let request = duplex_request(&[STREAM_RESPONSE_SIZE]);
    let call = full_duplex(client, one_then_silence(request), NO_OPTIONS);
    cancel_at_response(call).await
}

async fn cancel_while_responding(client: TestServiceClient<Channel>) -> Result<()> {
    let mut request = duplex_request(&[STREAM_RESPONSE_SIZE, STREAM_RESPONSE_SIZE]);
    request.response_parameters[1].interval_us = NEVER_US;
    let requests = Request::new(tokio_stream::once(request));
    cancel_at_response(full_duplex(client, requests, NO_OPTIONS)).await
}

async fn cancel_at_response(mut call: StreamingCall<StreamingOutputCallResponse>) -> Result<()> {
    let response = call.message().await?.context("no response")?;
    ensure_size(response.payload, STREAM_RESPONSE_SIZE)?;
    ensure!(call.cancel(), "the call had ended");
    expect(call.message().await, Code::Cancelled)?;
    ensure!(call.cancelled(), "the call is not marked as cancelled");
    Ok(())
}

async fn timeout_on_sleeping_server(
    client: TestServiceClient<Channel>,
    timeout: Duration,
) -> Result<()> {
    let requests = one_then_silence(duplex_request(&[]));
    let mut call = full_duplex(client, requests, NO_OPTIONS.timeout(timeout));
    expect(call.message().await, Code::DeadlineExceeded).map(drop)
}

async fn status(client: TestServiceClient<Channel>, message: &str) -> Result<()> {
    let response_status = Some(EchoStatus {
        code: Code::Unknown as i32,
        message: message.to_owned(),
    });
    let request = SimpleRequest {
        response_status: response_status.clone(),
        ..SimpleRequest::default()
    };
    let status = expect(
        unary(client.clone(), Request::new(request)).await,
        Code::Unknown,
    )?;
    ensure!(status.message() == message, "{:?}", status.message());

    let request = StreamingOutputCallRequest {
        response_status,
        ..StreamingOutputCallRequest::default()
    };
    let requests = Request::new(tokio_stream::once(request));
    let mut call = full_duplex(client, requests, NO_OPTIONS);
    let status = expect(call.message().await, Code::Unknown)?;
    ensure!(status.message() == message, "{:?}", status.message());
    Ok(())
}

async fn custom_metadata(client: TestServiceClient<Channel>) -> Result<()> {
    let mut request = Request::new(SimpleRequest {
        response_size: i32::try_from(RESPONSE_SIZE)?,
        payload: payload(REQUEST_SIZE),
        response_status: None,
    });
    add_metadata(request.metadata_mut());
    let mut call = unary(client.clone(), request);
    ensure_size((&mut call).await?.into_inner().payload, RESPONSE_SIZE)?;
    ensure_metadata(call.initial_metadata().await, call.trailing_metadata())?;

    let mut requests = Request::new(tokio_stream::once(duplex_request(&[RESPONSE_SIZE])));
    add_metadata(requests.metadata_mut());
    let mut call = full_duplex(client, requests, NO_OPTIONS);
    let response = call.message().await?.context("no response")?;
    ensure_size(response.payload, RESPONSE_SIZE)?;
    ensure!(call.message().await?.is_none(), "two responses");
    let trailing = call.trailing_metadata();
    ensure_metadata(call.initial_metadata().await, trailing)
}

const INITIAL: (&str, &str) = ("x-grpc-test-echo-initial", "test_initial_metadata_value");
const TRAILING: (&str, &[u8]) = ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab");

fn add_metadata(metadata: &mut MetadataMap) {
    metadata.insert(INITIAL.0, MetadataValue::from_static(INITIAL.1));
    metadata.insert_bin(TRAILING.0, MetadataValue::from_bytes(TRAILING.1));
}

fn ensure_metadata(initial: Option<MetadataMap>, trailing: Option<MetadataMap>) -> Result<()> {
    let initial = initial.context("no initial metadata")?;
    let value = initial.get(INITIAL.0).context("no initial value")?;
    ensure!(value == INITIAL.1, "{value:?}");
    let trailing = trailing.context("no trailing metadata")?;
    let value = trailing.get_bin(TRAILING.0).context("no trailing value")?;
    ensure!(value.to_bytes()? == TRAILING.1, "{value:?}");
    Ok(())
}

fn unary(
    mut client: TestServiceClient<Channel>,
    request: Request<SimpleRequest>,
) -> Call<SimpleResponse> {
    Call::start(request, NO_OPTIONS, |request| async move {
        client.unary_call(request).await
    })
}

fn full_duplex<S>(
    mut client: TestServiceClient<Channel>,
    requests: Request<S>,
    options: CallOptions,
) -> StreamingCall<StreamingOutputCallResponse>
where
    S: tokio_stream::Stream<Item = StreamingOutputCallRequest> + Send + 'static,
{
    StreamingCall::start(requests, options, |requests| async move {
        client.full_duplex_call(requests).await
    })
}

/// A request stream that sends one request and stays open.
fn one_then_silence(
    request: StreamingOutputCallRequest,
) -> Request<impl tokio_stream::Stream<Item = StreamingOutputCallRequest> + Send + 'static> {
    use tokio_stream::StreamExt;
    Request::new(tokio_stream::once(request).chain(tokio_stream::pending()))
}

fn duplex_request(sizes: &[usize]) -> StreamingOutputCallRequest {
    let parameters = sizes.iter().map(|size| ResponseParameters {
        size: i32::try_from(*size).expect("the sizes of the cases are small"),
        interval_us: 0,
    });
    StreamingOutputCallRequest {
        response_parameters: parameters.collect(),
        payload: payload(STREAM_REQUEST_SIZE),
        response_status: None,
    }
}

fn ensure_size(payload: Option<crate::proto::Payload>, size: usize) -> Result<()> {
    let found = payload.context("no payload")?.body.len();
    ensure!(found == size, "a payload of {found} bytes, not {size}");
    Ok(())
}

/// Returns the status of a call that must have ended with `code`.
fn expect<T: fmt::Debug>(result: Result<T, Status>, code: Code) -> Result<Status> {
    let status = result.err().context("the call went well")?;
    ensure!(status.code() == code, "not {code:?}: {status:?}");
    Ok(status)
}
