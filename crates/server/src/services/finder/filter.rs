//! Which searches a caller wants to see.

use hashfinder_proto::v1 as v1pb;

use crate::{errors::CallError, searches::registry::Viewer};

/// Which searches a caller wants to see.
pub(super) struct Filter {
    pub(super) viewer: Viewer,
    client: String,
    /// Sorted, without duplicates. Empty means all states.
    states: Vec<v1pb::SearchState>,
}

impl Filter {
    pub(super) fn new(viewer: Viewer, client: &str, states: &[i32]) -> Result<Filter, CallError> {
        if !viewer.is_operator && !client.is_empty() && *client != **viewer.client.as_str() {
            return Err(CallError::NotAnOperator);
        }
        let states = states.iter().enumerate().map(|(place, state)| {
            v1pb::SearchState::try_from(*state).map_err(|_| {
                let field = format!("states[{place}]");
                let message = format!("{field}: unknown value {state}");
                CallError::wrong(&field, message)
            })
        });
        let mut states: Vec<v1pb::SearchState> = states.collect::<Result<_, _>>()?;
        states.sort_unstable();
        states.dedup();
        if states.contains(&v1pb::SearchState::Unspecified) {
            states.clear();
        }
        Ok(Filter {
            viewer,
            client: client.to_owned(),
            states,
        })
    }

    pub(super) fn client(&self) -> Option<&str> {
        Some(&self.client[..]).filter(|client| !client.is_empty())
    }

    pub(super) fn takes(&self, state: v1pb::SearchState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }
}
