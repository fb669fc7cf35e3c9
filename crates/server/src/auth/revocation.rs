//! The open calls of a credential, which end when it is revoked.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tonic::Status;
use tonic_cancel::CallContext;

use crate::errors::CallError;

/// The open calls of a credential. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_revoked: bool,
    next: u64,
    contexts: HashMap<u64, CallContext>,
}

impl Calls {
    /// Adds a call, and removes it when it ends. If the credential has been revoked, the call ends
    /// at once.
    pub(super) fn add(&self, context: &CallContext) {
        let mut state = self.lock();
        if state.is_revoked {
            drop(state);
            end(context);
            return;
        }
        let number = state.next;
        state.next += 1;
        state.contexts.insert(number, context.clone());
        drop(state);
        let calls = self.clone();
        context.add_callback(move |_| {
            let gone = calls.lock().contexts.remove(&number);
            // Dropped without the lock: this may be the last clone of the context.
            drop(gone);
        });
    }

    /// Ends all calls. Calls that are added later end at once.
    pub(super) fn revoke(&self) {
        let mut state = self.lock();
        state.is_revoked = true;
        let contexts = mem::take(&mut state.contexts);
        // The callbacks of the contexts take the lock.
        drop(state);
        contexts.values().for_each(end);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(context: &CallContext) {
    context.cancel_with_status(Status::from(CallError::CredentialRefused));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Request;

    fn context() -> CallContext {
        CallContext::of(&Request::new(()))
    }

    #[test]
    fn calls_end_with_their_credential() {
        let (calls, before, over, after) = (Calls::default(), context(), context(), context());
        calls.add(&before);
        calls.add(&over);
        over.cancel();
        assert_eq!(calls.lock().contexts.len(), 1);
        assert!(before.is_active());
        calls.revoke();
        assert!(!before.is_active());
        calls.add(&after);
        assert!(!after.is_active());
        assert!(calls.lock().contexts.is_empty());
    }
}
