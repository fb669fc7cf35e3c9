//! The users of a broker, and the least rights that each needs.

use nkeys::KeyPair;

pub use crate::credentials::is_name;
use crate::{broker::Role, credentials::is_seed};

/// The subjects that a user of the broker may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Subjects to which it may publish.
    pub publish: Vec<String>,
    /// Subjects to which it may subscribe.
    pub subscribe: Vec<String>,
}

/// Returns the least rights of a user, in a pool. The name in the role of an agent is that of its
/// user; that of a server does not matter.
///
/// With them, an agent reads only what the leader sends to it, and speaks only for itself. It
/// cannot read or change what the broker stores.
#[must_use]
pub fn rights_of(role: Role<'_>, pool: &str) -> Rights {
    let hf = format!("hf.{pool}");
    let (election, operations) = (format!("KV_hf_{pool}"), format!("KV_hfops_{pool}"));
    let (publish, subscribe) = match role {
        Role::Agent(user) => (
            vec![format!("{hf}.*.work.{user}.>"), format!("{hf}.any.leader")],
            vec![
                format!("{hf}.term"),
                format!("{hf}.notice.{user}.>"),
                format!("_INBOX.agent.{user}.>"),
            ],
        ),
        Role::Operator => (
            vec![format!("{hf}.any.>")],
            vec!["_INBOX.operator.>".to_owned()],
        ),
        Role::Server(_) => {
            let mut publish = vec![format!("{hf}.>"), "_INBOX.>".to_owned()];
            publish.push("$JS.API.INFO".to_owned());
            for stream in [&election, &operations] {
                for verb in ["CREATE", "INFO", "MSG.GET"] {
                    publish.push(format!("$JS.API.STREAM.{verb}.{stream}"));
                }
            }
            publish.extend([
                format!("$JS.API.CONSUMER.*.{operations}"),
                format!("$JS.API.CONSUMER.*.{operations}.>"),
                format!("$JS.FC.{operations}.>"),
                format!("$KV.hf_{pool}.>"),
                format!("$KV.hfops_{pool}.>"),
            ]);
            let subscribe = vec![format!("{hf}.>"), "_INBOX.server.>".to_owned()];
            (publish, subscribe)
        }
    };
    Rights { publish, subscribe }
}

/// Returns the seed of a new NKey of a user; `None` if it cannot be encoded. It is a secret.
///
/// # Panics
///
/// If the system has no random numbers.
#[must_use]
pub fn new_key() -> Option<String> {
    KeyPair::new_user().seed().ok()
}

/// Returns the public key for the seed of a user; `None` if the text is not such a seed.
#[must_use]
pub fn public_key(seed: &str) -> Option<String> {
    let pair = KeyPair::from_seed(seed).ok().filter(|_| is_seed(seed))?;
    Some(pair.public_key())
}
