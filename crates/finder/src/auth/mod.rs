//! Who makes a call, and what they may do.
//!
//! A caller is a *principal*: a client's name, and a role. Behind a Unix socket the system says who it is.
//! Elsewhere a credential does, once any kind of them is configured: an API key or a JSON web token in the
//! `authorization` header, or the certificate of the connection. Without any, addresses are clients.

mod calls;
mod exposure;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod jwt;
pub(crate) mod keys;
mod layer;
mod rules;

use std::{collections::HashSet, io, sync::Arc, time::SystemTime};

use anyhow::Result;
use clap::ValueEnum;
use http::{HeaderMap, HeaderValue, header};
use tonic_cancel::CallContext;

use self::{calls::Calls, jwt::Tokens, keys::Keys};
pub(crate) use self::{
    exposure::check_exposure,
    jwt::Algorithm,
    layer::{AuthLayer, AuthService},
    rules::Rules,
};
use crate::{
    commands::serve::arguments::auth::AuthArguments,
    files::Watch,
    transport::{ClientName, Peer},
};

/// The longest credential that is looked at, in bytes. Tokens with many claims have two or three kibibytes,
/// and all headers together may not be much longer than this.
const MAX_CREDENTIAL_LEN: usize = 8 << 10;

/// What somebody may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Role {
    /// Searches, and sees and cancels its own searches
    #[default]
    User,
    /// Sees and cancels everybody's
    Operator,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Operator => "operator",
        }
    }
}

/// Who makes a call; requests carry it as an extension.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) name: ClientName,
    pub(crate) role: Role,
    /// Of the key that it has shown, if it was one.
    calls: Option<Calls>,
}

impl Principal {
    /// A call of the principal's begins. It ends when the credential is revoked.
    pub(crate) fn begins(&self, context: &CallContext) {
        if let Some(calls) = &self.calls {
            calls.add(context);
        }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    /// There is no credential, and there has to be.
    Missing,
    /// The credential is bad. The log is told why, and whose it is as far as that is known to be no
    /// secret; the client is not.
    Refused {
        why: &'static str,
        client: Option<ClientName>,
    },
}

impl Refusal {
    fn because(why: &'static str) -> Refusal {
        Refusal::Refused { why, client: None }
    }
}

/// The `authorization` headers of a request.
struct Credentials(Vec<HeaderValue>);

impl Credentials {
    /// Takes them out of the request, so that nothing that comes later can tell them.
    fn taken_from(headers: &mut HeaderMap) -> Credentials {
        match headers.entry(header::AUTHORIZATION) {
            header::Entry::Vacant(_) => Credentials(Vec::new()),
            header::Entry::Occupied(entry) => {
                let (_, values) = entry.remove_entry_mult();
                Credentials(values.collect())
            }
        }
    }

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bearer's credential, if there is any.
    fn bearer(&self) -> Result<Option<&str>, Refusal> {
        let value = match &self.0[..] {
            [] => return Ok(None),
            [value] => value,
            _ => return Err(Refusal::because("more than one header")),
        };
        if value.len() > MAX_CREDENTIAL_LEN {
            return Err(Refusal::because("too long"));
        }
        let parts = value.to_str().ok().and_then(|text| text.split_once(' '));
        match parts {
            Some((scheme, credential)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Some(credential))
            }
            _ => Err(Refusal::because("no bearer's credential")),
        }
    }
}

/// Who is believed to be whom, and who is an operator.
#[derive(Debug)]
pub(crate) struct Auth {
    keys: Option<Arc<Keys>>,
    tokens: Option<Tokens>,
    takes_certificates: bool,
    operators: HashSet<ClientName>,
}

impl Auth {
    /// As the flags say; `takes_certificates` if connections have certificates of their clients, which
    /// were found good. It reads the files that are named.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or is wrong, or flags do not go together.
    pub(crate) fn load(arguments: &AuthArguments, takes_certificates: bool) -> Result<Auth> {
        let keys = arguments.api_keys.clone().map(Keys::load);
        Ok(Auth {
            keys: keys.transpose()?.map(Arc::new),
            tokens: Tokens::load(arguments)?,
            takes_certificates,
            operators: HashSet::new(),
        })
    }

    /// Who is an operator whatever else is known of them.
    pub(crate) fn with_operators(self, operators: HashSet<ClientName>) -> Auth {
        Auth { operators, ..self }
    }

    /// Whether there are credentials, so that those who come over a network have to show one.
    pub(crate) fn is_configured(&self) -> bool {
        self.keys.is_some() || self.tokens.is_some() || self.takes_certificates
    }

    /// Applies changes to the file of API keys, if there is one, within a second or two, until the result is
    /// dropped.
    ///
    /// # Errors
    ///
    /// If a thread for it cannot be started.
    pub(crate) fn watch(&self) -> io::Result<Option<Watch>> {
        self.keys.as_ref().map(Keys::watch).transpose()
    }

    fn principal(
        &self,
        peer: Option<&Peer>,
        credentials: &Credentials,
    ) -> Result<Principal, Refusal> {
        let of_peer = || peer.map_or_else(ClientName::of_nobody, Peer::client);
        if !self.is_configured() {
            return Ok(self.with_role(of_peer(), Role::User, None));
        }
        let certificate = peer.and_then(|peer| peer.certificate.as_deref());
        let certificate = certificate.filter(|_| self.takes_certificates);
        // Without a good one there would be no connection today, whatever else is shown on it.
        if let Some(certificate) = certificate.filter(|certificate| !certificate.is_good()) {
            return Err(Refusal::Refused {
                why: "a certificate that has expired, or whose authority is gone",
                client: ClientName::of_certificate(certificate.name()),
            });
        }
        if let Some(credential) = credentials.bearer()? {
            return self.bearer(credential, SystemTime::now());
        }
        if peer.is_some_and(Peer::is_user) {
            return Ok(self.with_role(of_peer(), Role::User, None));
        }
        let certificate = certificate.ok_or(Refusal::Missing)?;
        let name = ClientName::of_certificate(certificate.name());
        let name = name.ok_or(Refusal::because("a certificate without a plain name"))?;
        Ok(self.with_role(name, Role::User, None))
    }

    /// A token has three parts, a key two.
    fn bearer(&self, credential: &str, now: SystemTime) -> Result<Principal, Refusal> {
        let dots = credential.bytes().filter(|byte| *byte == b'.').count();
        match (dots, &self.keys, &self.tokens) {
            (1, Some(keys), _) => {
                let key = keys.verify(credential, now)?;
                Ok(self.with_role(key.client, key.role, Some(key.calls)))
            }
            (2, _, Some(tokens)) => {
                let subject = tokens.verify(credential, now);
                let subject = subject.map_err(Refusal::because)?;
                Ok(self.with_role(subject, Role::User, None))
            }
            _ => Err(Refusal::because("of no kind that is taken here")),
        }
    }

    fn with_role(&self, name: ClientName, role: Role, calls: Option<Calls>) -> Principal {
        let role = if self.operators.contains(&name) {
            Role::Operator
        } else {
            role
        };
        Principal { name, role, calls }
    }
}

#[cfg(test)]
mod tests;
