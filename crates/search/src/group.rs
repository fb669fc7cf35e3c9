//! The searches that a slice serves, and the matcher for all of them.

use std::sync::{Arc, OnceLock};

use crate::{ids::SearchId, matcher::Matcher, query::Query};

/// One search, or several searches with compatible queries that share slices.
pub(crate) struct Group {
    queries: Vec<Arc<Query>>,
    members: Vec<SearchId>,
    /// Number of each member's first name in the matcher; empty if every member has a single name.
    firsts: Vec<usize>,
    matcher: OnceLock<Arc<Matcher>>,
}

impl Group {
    /// Makes a group of searches with compatible queries. Its filter is planned on the first call
    /// of [`matcher`](Self::matcher).
    pub(crate) fn new(queries: Vec<Arc<Query>>, members: Vec<SearchId>) -> Group {
        debug_assert_eq!(queries.len(), members.len());
        let mut firsts = Vec::new();
        if queries.iter().any(|query| query.names().len() > 1) {
            firsts.extend(queries.iter().scan(0, |names, query| {
                let first = *names;
                *names += query.names().len();
                Some(first)
            }));
        }
        Group {
            queries,
            members,
            firsts,
            matcher: OnceLock::new(),
        }
    }

    /// Makes a group of a single search, with its matcher if there is one already.
    pub(crate) fn alone(
        query: Arc<Query>,
        search: SearchId,
        matcher: Option<Arc<Matcher>>,
    ) -> Group {
        Group {
            matcher: matcher.map_or_else(OnceLock::new, OnceLock::from),
            ..Group::new(vec![query], vec![search])
        }
    }

    /// Returns the matcher for all members. Its hits are ideal or interesting for at least one
    /// member.
    ///
    /// The first call plans the filter, unless the group was made with a matcher. Never call this
    /// while the scheduler is locked.
    pub(crate) fn matcher(&self) -> &Arc<Matcher> {
        self.matcher.get_or_init(|| {
            let queries = self.queries.iter();
            Arc::new(Matcher::new(queries.map(Arc::as_ref)))
        })
    }

    /// Maps a name's number in the matcher to its search, and to its number within that search's
    /// names.
    pub(crate) fn owner(&self, number: u16) -> Option<(SearchId, u8)> {
        let number = usize::from(number);
        if self.firsts.is_empty() {
            return Some((*self.members.get(number)?, 0));
        }
        let member = self.firsts.partition_point(|first| *first <= number) - 1;
        let name = number - self.firsts[member];
        let exists = name < self.queries[member].names().len();
        exists.then_some((self.members[member], name as u8))
    }

    /// Whether the group's slices could also serve `query`.
    pub(crate) fn is_compatible_with(&self, query: &Query) -> bool {
        self.queries
            .first()
            .is_none_or(|other| other.is_compatible_with(query))
    }

    pub(crate) fn queries(&self) -> impl Iterator<Item = &Query> {
        self.queries.iter().map(Arc::as_ref)
    }

    pub(crate) fn members(&self) -> &[SearchId] {
        &self.members
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }
}
