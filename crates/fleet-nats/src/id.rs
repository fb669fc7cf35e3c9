//! Names of machines in a fleet.

use rustix::system::uname;

use crate::credentials::Identity;

/// Maximum length of the name of a machine.
const MOST_CHARACTERS: usize = 40;

/// Returns a name that no other server of a fleet has: that of the machine, for people, and 64
/// random bits. It is a token of a subject.
pub(crate) fn server_id() -> String {
    format!("{}-{:016x}", machine(), fastrand::u64(..))
}

/// Returns a name that no other agent of a fleet has. It has three tokens of a subject: the user of
/// the broker, the machine, and 64 random bits.
pub(crate) fn agent_id(identity: &Identity) -> String {
    format!("{identity}.{}.{:016x}", machine(), fastrand::u64(..))
}

/// Returns the name of this machine, with the characters that a token may have. Of a long name it
/// is the end: names that a cluster gives differ there.
fn machine() -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let name = uname().nodename().to_string_lossy().into_owned();
    let name = name.replace(|c| !is_allowed(c), "-");
    let name = &name[name.len().saturating_sub(MOST_CHARACTERS)..];
    if name.is_empty() {
        return "machine".to_owned();
    }
    name.to_owned()
}
