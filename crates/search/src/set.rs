//! The searches that a slice serves, and what it looks for.

use std::sync::{Arc, OnceLock};

use hashfinder_kernels::Filter;

use crate::{query::Query, scheduler::SearchId};

pub(crate) struct Set {
    queries: Vec<Arc<Query>>,
    /// Whose they are; a hit tells which by its number.
    members: Vec<SearchId>,
    filter: OnceLock<Filter>,
}

impl Set {
    pub(crate) fn new(queries: Vec<Arc<Query>>, members: Vec<SearchId>) -> Set {
        debug_assert_eq!(queries.len(), members.len());
        Set {
            queries,
            members,
            filter: OnceLock::new(),
        }
    }

    /// What lets pass whatever is ideal or interesting for any of them. It is made by the first who
    /// asks, which takes microseconds for a name and milliseconds for thousands.
    pub(crate) fn filter(&self) -> &Filter {
        self.filter.get_or_init(|| {
            let names = self.queries.iter().map(|query| query.wanted());
            Filter::any(names)
        })
    }

    pub(crate) fn members(&self) -> &[SearchId] {
        &self.members
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }
}
