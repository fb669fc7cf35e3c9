//! The server. It prints the progress of each call, so that the tests see both ends of the call.

use std::time::Duration;

use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};
use tonic_cancel::{CallContext, CallContextLayer};

use crate::{
    echo::EchoLayer,
    proto::{
        EchoStatus, Empty, SimpleRequest, SimpleResponse, StreamingInputCallRequest,
        StreamingInputCallResponse, StreamingOutputCallRequest, StreamingOutputCallResponse,
        payload,
        test_service_server::{TestService, TestServiceServer},
    },
};

pub(crate) async fn run() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    Server::builder()
        .layer(CallContextLayer::new())
        .layer(EchoLayer)
        .add_service(TestServiceServer::new(Testing))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

struct Testing;

/// Prints that a call has begun. When the call ends, prints why it was cancelled or, if it was not,
/// its code.
fn observe<T>(method: &'static str, request: &Request<T>) -> CallContext {
    println!("began {method}");
    let context = CallContext::of(request);
    context.add_callback(move |end| match end.cancelled {
        Some(reason) => println!("ended {method} {reason:?}"),
        None => println!("ended {method} {:?}", end.code),
    });
    context
}

/// The server feature "Echo Status".
fn echo_status(status: Option<EchoStatus>) -> Result<(), Status> {
    let status = status.unwrap_or_default();
    match Code::from(status.code) {
        Code::Ok => Ok(()),
        code => Err(Status::new(code, status.message)),
    }
}

fn size(asked: i32) -> Result<usize, Status> {
    usize::try_from(asked).map_err(|_| Status::invalid_argument("a size is negative"))
}

/// Answers one request of a FullDuplexCall.
async fn answer(
    request: StreamingOutputCallRequest,
    responses: &mpsc::Sender<Result<StreamingOutputCallResponse, Status>>,
) -> Result<(), Status> {
    echo_status(request.response_status)?;
    for parameters in request.response_parameters {
        let interval = u64::try_from(parameters.interval_us)
            .map_err(|_| Status::invalid_argument("an interval is negative"))?;
        tokio::time::sleep(Duration::from_micros(interval)).await;
        let payload = payload(size(parameters.size)?);
        let response = StreamingOutputCallResponse { payload };
        // Sending fails only if the call has ended.
        let _ = responses.send(Ok(response)).await;
    }
    Ok(())
}

#[tonic::async_trait]
impl TestService for Testing {
    type FullDuplexCallStream = ReceiverStream<Result<StreamingOutputCallResponse, Status>>;

    async fn unary_call(
        &self,
        request: Request<SimpleRequest>,
    ) -> Result<Response<SimpleResponse>, Status> {
        observe("UnaryCall", &request);
        let request = request.into_inner();
        echo_status(request.response_status)?;
        let payload = payload(size(request.response_size)?);
        Ok(Response::new(SimpleResponse { payload }))
    }

    async fn streaming_input_call(
        &self,
        request: Request<Streaming<StreamingInputCallRequest>>,
    ) -> Result<Response<StreamingInputCallResponse>, Status> {
        observe("StreamingInputCall", &request);
        let mut requests = request.into_inner();
        let mut sum = 0;
        while let Some(request) = requests.message().await? {
            sum += request.payload.unwrap_or_default().body.len();
        }
        let aggregated_payload_size = i32::try_from(sum)
            .map_err(|_| Status::out_of_range("the payloads are too long to be counted"))?;
        Ok(Response::new(StreamingInputCallResponse {
            aggregated_payload_size,
        }))
    }

    async fn full_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Self::FullDuplexCallStream>, Status> {
        let context = observe("FullDuplexCall", &request);
        let mut requests = request.into_inner();
        let (responses, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let answering = async {
                while let Some(request) = requests.message().await? {
                    answer(request, &responses).await?;
                }
                Ok(())
            };
            // Without this, the task could outlive the call.
            let answered = tokio::select! {
                answered = answering => answered,
                _ = context.cancelled() => return,
            };
            if let Err(status) = answered {
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn unimplemented_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("no server implements it"))
    }
}
