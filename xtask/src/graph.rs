//! A graph of packages or files, by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The nodes that each node points to.
pub(crate) type Graph = BTreeMap<String, BTreeSet<String>>;

/// Returns a shortest path of at least one edge, with both of its ends. `from` and `to` may be the
/// same node.
pub(crate) fn way<'a>(graph: &'a Graph, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        for next in graph.get(at).into_iter().flatten() {
            if before.contains_key(next.as_str()) {
                continue;
            }
            before.insert(next, at);
            if next == to {
                let mut way = vec![next.as_str(), at];
                while let Some(last) = way.last().copied().filter(|last| *last != from) {
                    way.push(*before.get(last)?);
                }
                way.reverse();
                return Some(way);
            }
            queue.push_back(next);
        }
    }
    None
}

/// Returns the groups of nodes that can reach each other.
pub(crate) fn cycles(graph: &Graph) -> Vec<Vec<&str>> {
    let mut groups: Vec<Vec<&str>> = Vec::new();
    for node in graph.keys().map(String::as_str) {
        if groups.iter().any(|group| group.contains(&node)) || way(graph, node, node).is_none() {
            continue;
        }
        let others = graph.keys().map(String::as_str);
        let group = others
            .filter(|other| way(graph, node, other).is_some() && way(graph, other, node).is_some());
        groups.push(group.collect());
    }
    groups
}
