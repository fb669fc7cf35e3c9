//! Authenticates callers, and rejects calls that the rules of their methods forbid.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hashfinder_transport::{ClientName, Peer};
use pin_project_lite::pin_project;
use tonic::{Status, body::Body};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    auth::{
        authenticator::Auth,
        credentials::{Credentials, Rejection},
        principal::Principal,
        rules::{Rule, Rules},
    },
    call_info::CallInfo,
    errors::CallError,
    layers::rate_limit::RateLimits,
    rejections::Rejections,
};

/// Authenticates callers, and rejects forbidden calls before any work. The [`CallInfo`] of an
/// admitted call has its [`Principal`], unless its method needs no credential. The credential is
/// removed from the request.
#[derive(Clone)]
pub(crate) struct AuthLayer {
    auth: Arc<Auth>,
    rules: Arc<Rules>,
    rejections: Rejections,
    limits: RateLimits,
}

/// The error of a rejected call, the client that its credential seems to name, and what is wrong
/// with the credential.
type Rejected = (CallError, Option<ClientName>, Option<&'static str>);

impl AuthLayer {
    /// Creates the layer. `limits` bound how many invalid credentials an address may try.
    pub(crate) fn new(
        auth: Arc<Auth>,
        rules: Arc<Rules>,
        rejections: Rejections,
        limits: RateLimits,
    ) -> AuthLayer {
        AuthLayer {
            auth,
            rules,
            rejections,
            limits,
        }
    }

    /// Admits a call, or returns the status that ends it.
    fn admit<B>(&self, request: &mut http::Request<B>) -> Result<(), Status> {
        // Later layers and handlers do not need the credential.
        let credentials = Credentials::taken_from(request.headers_mut());
        let (_, Rule::Needs(needed)) = self.rules.of_path(request.uri().path()) else {
            return Ok(());
        };
        let info: &mut CallInfo = request.extensions_mut().get_or_insert_default();
        let peer = info.peer.as_ref();
        let (error, client, why) = match self.principal(peer, &credentials) {
            Ok(principal) if principal.role >= needed => {
                info.principal = Some(principal);
                return Ok(());
            }
            Ok(principal) => (CallError::OperatorsOnly, Some(principal.name), None),
            Err(rejected) => *rejected,
        };
        let method = info.method.name();
        Err((self.rejections).reject_because(error, method, peer, client.as_ref(), why))
    }

    /// Returns the caller, or why the call is rejected.
    fn principal(
        &self,
        peer: Option<&Peer>,
        credentials: &Credentials,
    ) -> Result<Principal, Box<Rejected>> {
        if let (Some(peer), false) = (peer, credentials.is_empty()) {
            let may = self.limits.check_credential_limit(peer);
            may.map_err(|error| Box::new((error, None, None)))?;
        }
        let principal = self.auth.principal(peer, credentials);
        principal.map_err(|rejection| {
            Box::new(match rejection {
                Rejection::Missing => (CallError::CredentialMissing, None, None),
                Rejection::Rejected { why, client } => {
                    // Only a credential in a header can be a guess. A certificate was verified in
                    // the handshake.
                    if let (Some(peer), false) = (peer, credentials.is_empty()) {
                        self.limits.credential_refused(peer);
                    }
                    (CallError::CredentialRefused, client, Some(why))
                }
            })
        })
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
            Err(status) => AuthFuture::Rejected {
                status: Some(status),
            },
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
        Rejected {
            status: Option<Status>,
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
            Admission::Rejected { status } => {
                let status = status.take().expect("polled after completion");
                Poll::Ready(Ok(status.into_http()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::{Role, rules::RULES},
        layers::rate_limit::AddressLimits,
        metrics::Counts,
        services::ALL_DESCRIPTORS,
    };
    use std::{
        collections::HashSet,
        num::{NonZeroU32, NonZeroUsize},
    };
    use tonic::Code;

    #[test]
    fn a_rule_for_operators_keeps_users_out() {
        let everything = RULES.map(|(method, _)| (method, Rule::Needs(Role::Operator)));
        let rules = Rules::of(&everything, &ALL_DESCRIPTORS).unwrap();
        let auth = |operators: &[ClientName]| Auth {
            keys: None,
            tokens: None,
            takes_certificates: false,
            operators: operators.iter().cloned().collect::<HashSet<_>>(),
        };
        let admit = |auth: Auth| {
            let layer = AuthLayer::new(
                Arc::new(auth),
                Arc::new(rules.clone()),
                Rejections::new(Counts::default()),
                RateLimits::new(AddressLimits {
                    calls_per_second: NonZeroU32::MIN,
                    open_calls: NonZeroUsize::MIN,
                    open_calls_of_address: NonZeroUsize::MIN,
                    refused_credentials_per_second: NonZeroU32::MIN,
                }),
            );
            let mut request = http::Request::new(());
            *request.uri_mut() = "http://a/hash_name.HashFinder/Find".parse().unwrap();
            let headers = request.headers_mut();
            headers.insert("authorization", "Bearer secret".parse().unwrap());
            let admitted = layer.admit(&mut request);
            assert!(request.headers().is_empty());
            let principal = CallInfo::of(request.extensions()).principal.as_ref();
            let admitted = admitted.map(|()| principal.map(|principal| principal.role));
            admitted.map_err(|status| status.code())
        };
        assert_eq!(admit(auth(&[])), Err(Code::PermissionDenied));
        let operator = auth(&[ClientName::unknown()]);
        assert_eq!(admit(operator), Ok(Some(Role::Operator)));
        let strict = Auth {
            takes_certificates: true,
            ..auth(&[ClientName::unknown()])
        };
        // With certificates configured, the bearer credential is checked, and rejected.
        assert_eq!(admit(strict), Err(Code::Unauthenticated));
    }
}
