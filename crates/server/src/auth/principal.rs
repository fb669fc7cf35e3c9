//! Who makes a call.

use hashfinder_transport::ClientName;
use tonic_cancel::CallContext;

use crate::auth::{revocation::Calls, role::Role};

/// Who makes a call. Requests carry it in their [`CallInfo`](crate::call_info::CallInfo).
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) name: ClientName,
    pub(crate) role: Role,
    /// Of the key that it has shown, if it was one.
    pub(super) calls: Option<Calls>,
}

impl Principal {
    /// A call of the principal's begins. It ends when the credential is revoked.
    pub(crate) fn begins(&self, context: &CallContext) {
        if let Some(calls) = &self.calls {
            calls.add(context);
        }
    }
}
