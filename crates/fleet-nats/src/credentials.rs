//! Credentials for a broker, and the identity of an agent that has them.

use std::{fmt, io, sync::Arc};

use async_nats::ConnectOptions;
use hashfinder_fleet::ANYONE;
use nkeys::{KeyPair, KeyPairType};

/// Maximum length of an identity. The public key of an NKey has 56 characters.
const LONGEST_IDENTITY: usize = 64;

/// Which user of the broker an agent is. The subjects of its messages contain it, so that the
/// broker's rights keep other users from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity(Arc<str>);

impl Identity {
    /// Returns the identity of all agents without credentials.
    pub(crate) fn anyone() -> Identity {
        Identity(ANYONE.into())
    }

    fn new(name: &str) -> Option<Identity> {
        is_name(name).then(|| Identity(name.into()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text can be the name of a user: it has letters, digits, - and _, at most 64 of them.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=LONGEST_IDENTITY).contains(&text.len()) && text.chars().all(is_allowed)
}

/// The contents of a file with credentials.
pub(crate) struct Credentials {
    identity: Option<Identity>,
    secret: Secret,
}

enum Secret {
    /// The text of a `.creds` file of NATS.
    File(String),
    Seed(String),
    Password {
        user: String,
        password: String,
    },
}

impl Credentials {
    /// Parses the contents of a file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Credentials, String> {
        let text = str::from_utf8(bytes).map_err(|_| "it is not text")?;
        let line = text.trim();
        if line.contains("BEGIN NATS USER JWT") {
            let seed = text.lines().map(str::trim).find(|line| is_seed(line));
            let identity = seed.and_then(public_key);
            return Ok(Credentials {
                identity: Some(
                    identity.ok_or("not a NATS credentials file: it has no seed of a user")?,
                ),
                secret: Secret::File(text.to_owned()),
            });
        }
        if line.contains('\n') {
            return Err(
                "expected a .creds file of NATS, or one line: SEED, USER:SEED or USER:PASSWORD \
                 (SEED is that of an NKey)"
                    .to_owned(),
            );
        }
        let expected = || "expected SEED, USER:SEED or USER:PASSWORD (SEED is that of an NKey)";
        let Some((user, secret)) = line.split_once(':') else {
            let seed = Some(line).filter(|line| is_seed(line));
            let identity = seed.and_then(public_key).ok_or_else(expected)?;
            let secret = Secret::Seed(line.to_owned());
            let identity = Some(identity);
            return Ok(Credentials { identity, secret });
        };
        if user.is_empty() {
            return Err(expected().to_owned());
        }
        let identity = Identity::new(user);
        let secret = if is_seed(secret) {
            Secret::Seed(secret.to_owned())
        } else {
            Secret::Password {
                user: user.to_owned(),
                password: secret.to_owned(),
            }
        };
        Ok(Credentials { identity, secret })
    }

    /// Returns who an agent with these credentials is.
    pub(crate) fn identity(&self) -> Result<Identity, String> {
        let identity = self.identity.clone();
        identity.filter(|name| *name.0 != *ANYONE).ok_or_else(|| {
            format!(
                "the name of an agent's user may have letters, digits, - and _, at most \
                 {LONGEST_IDENTITY} of them, and must not be {ANYONE}"
            )
        })
    }

    /// Whether the broker gets a password.
    pub(crate) fn is_password(&self) -> bool {
        matches!(self.secret, Secret::Password { .. })
    }

    /// Adds the credentials to what a connection needs.
    pub(crate) fn add_to(self, nats: ConnectOptions) -> io::Result<ConnectOptions> {
        Ok(match self.secret {
            Secret::File(text) => nats.credentials(&text)?,
            Secret::Seed(seed) => nats.nkey(seed),
            Secret::Password { user, password } => nats.user_and_password(user, password),
        })
    }
}

/// Whether a text is the seed of an NKey of a user.
pub(crate) fn is_seed(text: &str) -> bool {
    let pair = KeyPair::from_seed(text);
    pair.is_ok_and(|pair| pair.key_pair_type() == KeyPairType::User)
}

/// Returns the public key of an NKey as an identity.
fn public_key(seed: &str) -> Option<Identity> {
    Identity::new(&KeyPair::from_seed(seed).ok()?.public_key())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_say_who_an_agent_is() {
        let pair = KeyPair::new_user();
        let (seed, public) = (pair.seed().unwrap(), pair.public_key());
        let jwt = "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n";
        let file = format!("{jwt}-----BEGIN USER NKEY SEED-----\n{seed}\n------END------\n");
        let account = KeyPair::new_account().seed().unwrap();
        for (text, identity, is_password) in [
            (format!("{seed}\n"), Ok(&*public), false),
            (format!("node-7:{seed}"), Ok("node-7"), false),
            ("node_7:pass:word".to_owned(), Ok("node_7"), true),
            (file, Ok(&public), false),
            // The seed of an account is not that of a user, but could be a password.
            (format!("node:{account}"), Ok("node"), true),
            (account.clone(), Err("expected SEED"), false),
            (jwt.to_owned(), Err("no seed"), false),
            ("a.b:secret".to_owned(), Err("agent's user"), true),
            ("anyone:secret".to_owned(), Err("agent's user"), true),
            (":secret".to_owned(), Err("expected SEED"), false),
            ("secret".to_owned(), Err("expected SEED"), false),
            ("a:b\nc:d".to_owned(), Err("one line"), false),
            (String::new(), Err("expected SEED"), false),
        ] {
            let read = Credentials::parse(text.as_bytes());
            let shown = read.as_ref().map_err(Clone::clone);
            let shown = shown.and_then(Credentials::identity);
            match (shown, identity) {
                (Ok(shown), Ok(identity)) => assert_eq!(shown.to_string(), identity),
                (Err(why), Err(part)) => assert!(why.contains(part), "{text}: {why}"),
                (shown, _) => panic!("{text}: {shown:?}"),
            }
            if let Ok(read) = read {
                assert_eq!(read.is_password(), is_password, "{text}");
            }
        }
    }
}
