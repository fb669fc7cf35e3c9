//! The caller of a call.

use hashfinder_transport::ClientName;
use tonic_cancel::CallContext;

use crate::auth::{revocation::Calls, role::Role};

/// The caller of a call. Requests carry it in their [`CallInfo`](crate::call_info::CallInfo).
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) name: ClientName,
    pub(crate) role: Role,
    /// The open calls of its API key, if it sent one.
    pub(super) calls: Option<Calls>,
}

impl Principal {
    /// Begins a call of the principal. The call ends if the principal's API key is revoked.
    pub(crate) fn begins(&self, context: &CallContext) {
        if let Some(calls) = &self.calls {
            calls.add(context);
        }
    }
}
