//! Who owns an operation.

use std::sync::Arc;

use hashfinder_transport::{ClientName, Peer};

use crate::searches::{owner_client::LOCAL, shared::Caller};

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
    let is_address = name.as_str().starts_with("ip:");
    if !is_address && name != ClientName::unknown() {
        return Some(Arc::clone(name.as_str()));
    }
    let address = caller.peer().and_then(Peer::address);
    let is_local = address.is_some_and(|address| address.ip().to_canonical().is_loopback());
    (is_address && is_local).then(|| LOCAL.into())
}
