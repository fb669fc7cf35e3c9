//! Who owns an operation.

use std::sync::Arc;

use hashfinder_transport::ClientName;

use crate::searches::{
    owner_client::{LOCAL, is_address, is_local},
    shared::Caller,
};

/// Who asks about operations.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    /// The client that owns its operations; `None` if it can have none.
    pub(crate) client: Option<Arc<str>>,
    /// Sees and cancels the operations of all clients.
    pub(crate) is_operator: bool,
}

impl Owner {
    /// Whether the caller may see an operation of this client.
    pub(crate) fn sees(&self, client: &str) -> bool {
        self.is_operator || self.client.as_deref() == Some(client)
    }
}

/// Returns the client that owns the operations of a caller, or `None` if the caller cannot have
/// any: its address may belong to another client tomorrow.
pub(crate) fn owner_of(caller: &Caller) -> Option<Arc<str>> {
    let name = caller.client();
    if !is_address(&name) && name != ClientName::unknown() {
        return Some(Arc::clone(name.as_str()));
    }
    is_local(&name, caller.peer()).then(|| LOCAL.into())
}
