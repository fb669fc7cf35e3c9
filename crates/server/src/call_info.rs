//! Information about a call that is collected before its service receives the request.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use hashfinder_transport::{OpenCall, Peer};
use http::Extensions;

use crate::{auth::Principal, trace::CallSpan};

/// Information about a call: the extension of the request that layers pass to each other and to the
/// services.
///
/// The first layer creates it from the transport's extensions, and later layers complete it.
#[derive(Clone, Default)]
pub(crate) struct CallInfo {
    pub(crate) method: MethodName,
    /// The other end of the connection; `None` in a test without the transport.
    pub(crate) peer: Option<Peer>,
    /// Tracks whether the response is being read, and when it has been written. `None` in a test
    /// without the transport.
    pub(crate) open: Option<OpenCall>,
    /// The call's span, if it is traced.
    pub(crate) span: Option<CallSpan>,
    /// The caller. `None` before authentication, and for methods that need no credential.
    pub(crate) principal: Option<Principal>,
}

impl CallInfo {
    /// Creates the info of a call from the transport's extensions, and removes them.
    pub(crate) fn new(transport: &mut Extensions, method: MethodName) -> CallInfo {
        CallInfo {
            method,
            peer: transport.remove(),
            open: transport.remove(),
            span: None,
            principal: None,
        }
    }

    /// Returns the info of the call that a request belongs to. It is empty if the first layer is
    /// missing, as in some tests.
    pub(crate) fn of(extensions: &Extensions) -> &CallInfo {
        static NOTHING: LazyLock<CallInfo> = LazyLock::new(CallInfo::default);
        extensions.get::<CallInfo>().unwrap_or(&NOTHING)
    }
}

/// Name of a method of this server. Methods that the server does not have are all named "unknown":
/// clients choose their names, which are therefore neither counted nor logged.
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

    /// Returns the full name of the method's service.
    pub(crate) fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// Returns the method's name without its service.
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
    /// Writes `SERVICE/METHOD`: the path of a request without its leading slash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.name)
    }
}
