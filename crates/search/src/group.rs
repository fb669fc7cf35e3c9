//! The searches that a slice serves, and what it looks for.

use std::sync::{Arc, OnceLock};

use crate::{ids::SearchId, matcher::Sought, query::Query};

pub(crate) struct Set {
    queries: Vec<Arc<Query>>,
    members: Vec<SearchId>,
    /// Where each member's names begin; nothing if each has a single one.
    firsts: Vec<usize>,
    sought: OnceLock<Sought>,
}

impl Set {
    /// Of queries that go together.
    pub(crate) fn new(queries: Vec<Arc<Query>>, members: Vec<SearchId>) -> Set {
        debug_assert_eq!(queries.len(), members.len());
        let mut firsts = Vec::new();
        if queries.iter().any(|query| query.names().len() > 1) {
            firsts.extend(queries.iter().scan(0, |names, query| {
                let first = *names;
                *names += query.names().len();
                Some(first)
            }));
        }
        Set {
            queries,
            members,
            firsts,
            sought: OnceLock::new(),
        }
    }

    /// What lets pass whatever is ideal or interesting for any of them. It is made by the first who
    /// asks, which takes microseconds for a name and milliseconds for thousands.
    pub(crate) fn sought(&self) -> &Sought {
        self.sought.get_or_init(|| {
            let queries = self.queries.iter();
            Sought::new(queries.map(Arc::as_ref))
        })
    }

    /// Whose a hit is that was found for the name of this number, and which of that search's names it is.
    pub(crate) fn owner(&self, number: u16) -> Option<(SearchId, u8)> {
        let number = usize::from(number);
        if self.firsts.is_empty() {
            return Some((*self.members.get(number)?, 0));
        }
        let member = self.firsts.partition_point(|first| *first <= number) - 1;
        let name = number - self.firsts[member];
        let is_one = name < self.queries[member].names().len();
        is_one.then_some((self.members[member], name as u8))
    }

    /// Whether it could serve another query too.
    pub(crate) fn goes_with(&self, query: &Query) -> bool {
        self.queries
            .first()
            .is_none_or(|other| other.goes_with(query))
    }

    pub(crate) fn members(&self) -> &[SearchId] {
        &self.members
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }
}
