//! What the server knows about a call before its service receives the request.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use hashfinder_transport::{OpenCall, Peer};
use http::Extensions;

use crate::{auth::Principal, trace::CallSpan};

/// What the server knows about a call: the one extension that layers pass to each other and to the
/// services.
///
/// The first layer creates it from the extensions of the transport, and later layers complete it.
#[derive(Clone, Default)]
pub(crate) struct CallInfo {
    pub(crate) method: MethodName,
    /// The other end of the connection; `None` in a test without the transport.
    pub(crate) peer: Option<Peer>,
    /// The response, until it was written; `None` in a test without the transport.
    pub(crate) open: Option<OpenCall>,
    /// The call's span, if it is traced.
    pub(crate) span: Option<CallSpan>,
    /// The caller; `None` until that is known, and for methods that need no credential.
    pub(crate) principal: Option<Principal>,
}

impl CallInfo {
    /// Creates the info of a call from the extensions of the transport, and removes these.
    pub(crate) fn new(transport: &mut Extensions, method: MethodName) -> CallInfo {
        CallInfo {
            method,
            peer: transport.remove(),
            open: transport.remove(),
            span: None,
            principal: None,
        }
    }

    /// Returns the info of the call that a request belongs to. Without the first layer, as in some
    /// tests, nothing is known about the call.
    pub(crate) fn of(extensions: &Extensions) -> &CallInfo {
        static NOTHING: LazyLock<CallInfo> = LazyLock::new(CallInfo::default);
        extensions.get::<CallInfo>().unwrap_or(&NOTHING)
    }
}

/// The name of a method that the server has. A method that it does not have is shown as "unknown":
/// its name is the client's choice, and is neither counted nor logged.
#[derive(Clone, Debug)]
pub(crate) struct MethodName {
    service: Arc<str>,
    name: Arc<str>,
}

impl MethodName {
    pub(crate) fn new(service: &str, name: &str) -> MethodName {
        MethodName {
            service: service.into(),
            name: name.into(),
        }
    }

    /// Returns the full name of its service.
    pub(crate) fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// Returns its name without the service's.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }
}

impl Default for MethodName {
    fn default() -> MethodName {
        MethodName::new("unknown", "unknown")
    }
}

impl fmt::Display for MethodName {
    /// Writes it as a request's path has it, without the first slash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.name)
    }
}
