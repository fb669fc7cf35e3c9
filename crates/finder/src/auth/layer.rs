//! What stands before every service: nobody comes in whom a method's rule does not let in.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tonic::{Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Auth, Credentials, Refusal,
    rules::{Rule, Rules},
};
use crate::{metrics::Counts, rpc::CallError, transport::Peer};

/// Finds out who makes a call, and ends those that their method's rule forbids, before any work. The
/// others carry their [`Principal`](super::Principal) as an extension, and no credential any more.
#[derive(Clone)]
pub(crate) struct AuthLayer {
    auth: Arc<Auth>,
    rules: Arc<Rules>,
    counts: Counts,
}

impl AuthLayer {
    pub(crate) fn new(auth: Arc<Auth>, rules: Rules, counts: Counts) -> AuthLayer {
        AuthLayer {
            auth,
            rules: Arc::new(rules),
            counts,
        }
    }

    /// Lets a call in, or says how it ends.
    fn admit<B>(&self, request: &mut http::Request<B>) -> Result<(), CallError> {
        // Whoever comes after this has no use for it.
        let credentials = Credentials::taken_from(request.headers_mut());
        let (method, rule) = self.rules.of_path(request.uri().path());
        let Rule::Needs(needed) = rule else {
            return Ok(());
        };
        let peer = request.extensions().get::<Peer>().cloned();
        let (error, why, client) = match self.auth.principal(peer.as_ref(), &credentials) {
            Ok(principal) if principal.role >= needed => {
                request.extensions_mut().insert(principal);
                return Ok(());
            }
            Ok(principal) => (CallError::OperatorsOnly, None, Some(principal.name)),
            Err(Refusal::Missing) => (CallError::CredentialMissing, None, None),
            Err(Refusal::Refused { why, client }) => {
                (CallError::CredentialRefused, Some(why), client)
            }
        };
        self.counts.refused(&error);
        tracing::info!(
            method = method.rsplit_once('/').map_or(method, |(_, name)| name),
            peer = peer.as_ref().map(tracing::field::display),
            client = client.as_ref().map(tracing::field::display),
            reason = error.reason(),
            why,
            "call refused",
        );
        Err(error)
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;

    fn layer(&self, inner: S) -> AuthService<S> {
        AuthService {
            inner,
            layer: self.clone(),
        }
    }
}

#[derive(Clone)]
pub(crate) struct AuthService<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S, B> Service<http::Request<B>> for AuthService<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AuthFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match self.layer.admit(&mut request) {
            Ok(()) => AuthFuture::Admitted {
                inner: self.inner.call(request),
            },
            Err(error) => AuthFuture::Refused { error: Some(error) },
        }
    }
}

pin_project! {
    #[project = Admission]
    pub(crate) enum AuthFuture<F> {
        Admitted {
            #[pin]
            inner: F,
        },
        Refused {
            error: Option<CallError>,
        },
    }
}

impl<F, E> Future for AuthFuture<F>
where
    F: Future<Output = Result<http::Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project() {
            Admission::Admitted { inner } => inner.poll(cx),
            Admission::Refused { error } => {
                let error = error.take().expect("it is not polled after its end");
                Poll::Ready(Ok(Status::from(error).into_http()))
            }
        }
    }
}
