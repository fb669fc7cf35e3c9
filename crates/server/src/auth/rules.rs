//! The role that each method requires.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use prost::Message;
use prost_types::FileDescriptorSet;

use crate::auth::role::Role;

/// Which callers may call a method. The method itself decides which searches a caller sees and
/// cancels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// All callers. Credentials are not checked.
    Anyone,
    /// Callers with at least this role.
    Needs(Role),
}

/// The rules of all methods of all services. SECURITY.md has the same table.
pub(super) const RULES: [(&str, Rule); 19] = [
    ("hash_name.HashFinder/Find", Rule::Needs(Role::User)),
    ("hash_name.HashFinder/FindRange", Rule::Needs(Role::User)),
    ("hashfinder.v1.Finder/Search", Rule::Needs(Role::User)),
    ("hashfinder.v1.Finder/Estimate", Rule::Needs(Role::User)),
    ("hashfinder.v1.Finder/ListSearches", Rule::Needs(Role::User)),
    (
        "hashfinder.v1.Finder/WatchSearches",
        Rule::Needs(Role::User),
    ),
    ("hashfinder.v1.Finder/CancelSearch", Rule::Needs(Role::User)),
    ("hashfinder.v1.Finder/StartSearch", Rule::Needs(Role::User)),
    (
        "hashfinder.v1.Finder/WatchOperation",
        Rule::Needs(Role::User),
    ),
    (
        "hashfinder.v1.Finder/ListCandidates",
        Rule::Needs(Role::User),
    ),
    (
        "google.longrunning.Operations/ListOperations",
        Rule::Needs(Role::User),
    ),
    (
        "google.longrunning.Operations/GetOperation",
        Rule::Needs(Role::User),
    ),
    (
        "google.longrunning.Operations/DeleteOperation",
        Rule::Needs(Role::User),
    ),
    (
        "google.longrunning.Operations/CancelOperation",
        Rule::Needs(Role::User),
    ),
    (
        "google.longrunning.Operations/WaitOperation",
        Rule::Needs(Role::User),
    ),
    // Load balancers have no credential. They see only whether the server is serving.
    ("grpc.health.v1.Health/Check", Rule::Anyone),
    ("grpc.health.v1.Health/Watch", Rule::Anyone),
    (
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Rule::Needs(Role::User),
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Rule::Needs(Role::User),
    ),
];

/// The rule for unknown methods. It requires a credential, so that callers without one cannot find
/// out which methods exist.
const UNKNOWN: (&str, Rule) = ("unknown", Rule::Needs(Role::User));

/// The rules of the services that a server has.
#[derive(Clone, Debug)]
pub(crate) struct Rules(HashMap<String, (&'static str, Rule)>);

impl Rules {
    /// Creates the rules for the services of these descriptors.
    ///
    /// # Errors
    ///
    /// If a method has no rule, a rule has no method, or a descriptor cannot be decoded.
    pub(crate) fn new(descriptors: &[&[u8]]) -> Result<Rules> {
        Rules::of(&RULES, descriptors)
    }

    pub(super) fn of(rules: &[(&'static str, Rule)], descriptors: &[&[u8]]) -> Result<Rules> {
        let mut unused: HashMap<&str, _> = rules.iter().map(|rule| (rule.0, *rule)).collect();
        ensure!(unused.len() == rules.len(), "a method has two rules");
        let mut of_paths = HashMap::new();
        for descriptors in descriptors {
            for file in FileDescriptorSet::decode(*descriptors)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let service = format!("{}.{}", file.package(), service.name());
                        let method = format!("{service}/{}", method.name());
                        let path = format!("/{method}");
                        if of_paths.contains_key(&path) {
                            continue;
                        }
                        let rule = unused.remove(&*method);
                        let rule = rule.with_context(|| format!("{method} has no rule"))?;
                        of_paths.insert(path, rule);
                    }
                }
            }
        }
        let unused: Vec<&&str> = unused.keys().collect();
        ensure!(unused.is_empty(), "rules without a method: {unused:?}");
        Ok(Rules(of_paths))
    }

    /// Whether the method at this path needs no credential.
    pub(crate) fn are_for_anyone(&self, path: &str) -> bool {
        self.of_path(path).1 == Rule::Anyone
    }

    /// Returns the method at a path, and its rule. All unknown methods have the same name and the
    /// same rule.
    pub(super) fn of_path(&self, path: &str) -> (&'static str, Rule) {
        self.0.get(path).copied().unwrap_or(UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::ALL_DESCRIPTORS;

    #[test]
    fn every_method_has_a_rule_and_every_rule_a_method() {
        let rules = Rules::new(&ALL_DESCRIPTORS).unwrap();
        assert_eq!(rules.0.len(), RULES.len());
        let find = rules.of_path("/hash_name.HashFinder/Find");
        assert_eq!(find, RULES[0]);
        for path in [
            "/",
            "hash_name.HashFinder/Find",
            "/grpc.health.v1.Health/check",
            "//grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Check/",
            "/grpc.health.v1.Health%2FCheck",
        ] {
            assert_eq!(rules.of_path(path), UNKNOWN, "{path}");
        }
    }

    #[test]
    fn missing_rules_and_methods_are_reported() {
        let forgotten = Rules::of(&RULES[1..], &ALL_DESCRIPTORS).unwrap_err();
        assert_eq!(
            forgotten.to_string(),
            "hash_name.HashFinder/Find has no rule"
        );
        let gone = Rules::new(&ALL_DESCRIPTORS[..1]).unwrap_err().to_string();
        assert!(gone.contains("grpc.health.v1.Health/Check"), "{gone}");
        assert!(Rules::of(&[RULES[0], RULES[0]], &ALL_DESCRIPTORS).is_err());
    }
}
