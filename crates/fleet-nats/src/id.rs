//! Names of machines in a fleet.

use rustix::system::uname;

/// Returns a name that no other process of a fleet has: that of the machine, for people, and 64
/// random bits. It is a token of a subject.
pub(crate) fn new_id() -> String {
    let is_allowed = |c: &char| c.is_ascii_alphanumeric() || *c == '-' || *c == '_';
    let machine = uname().nodename().to_string_lossy().into_owned();
    let machine: String = machine.chars().filter(is_allowed).take(40).collect();
    format!("{machine}-{:016x}", fastrand::u64(..))
}
