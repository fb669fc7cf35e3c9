//! Identifies the caller of a call, by the peer of its connection and the credentials of its
//! request.

use std::{collections::HashSet, io, sync::Arc, time::SystemTime};

use anyhow::Result;
use hashfinder_system::files::Watch;
use hashfinder_transport::{ClientName, Peer};

use crate::auth::{
    credentials::{Credentials, Rejection},
    jwt::Tokens,
    keys::Keys,
    principal::Principal,
    revocation::Calls,
    role::Role,
    settings::Settings,
};

/// The credentials that are accepted, and the clients that are operators.
#[derive(Debug)]
pub(crate) struct Auth {
    pub(super) keys: Option<Arc<Keys>>,
    pub(super) tokens: Option<Tokens>,
    pub(super) takes_certificates: bool,
    pub(super) operators: HashSet<ClientName>,
}

impl Auth {
    /// Reads the files that the settings name. `takes_certificates` says whether TLS verifies
    /// certificates of clients.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or is wrong, or if settings contradict each other.
    pub(crate) fn load(settings: &Settings, takes_certificates: bool) -> Result<Auth> {
        let keys = settings.api_keys.clone().map(Keys::load);
        Ok(Auth {
            keys: keys.transpose()?.map(Arc::new),
            tokens: Tokens::load(settings)?,
            takes_certificates,
            operators: HashSet::new(),
        })
    }

    /// Sets the clients that are operators, whatever role their credentials have.
    pub(crate) fn with_operators(self, operators: HashSet<ClientName>) -> Auth {
        Auth { operators, ..self }
    }

    /// Whether any kind of credential is configured. If so, callers over a network need one.
    pub(crate) fn is_configured(&self) -> bool {
        self.keys.is_some() || self.tokens.is_some() || self.takes_certificates
    }

    /// Returns whether the credential of a client was revoked. Only API keys can be.
    ///
    /// Without a file of keys, none is: an operator may have changed how clients authenticate.
    pub(crate) fn is_revoked(&self, client: &str) -> bool {
        let id = client.strip_prefix("key:");
        let keys = self.keys.as_ref();
        keys.zip(id).is_some_and(|(keys, id)| keys.is_revoked(id))
    }

    /// Starts to watch the file of API keys, if there is one: changes take effect within a second
    /// or two, until the result is dropped.
    ///
    /// # Errors
    ///
    /// If a thread cannot be started.
    pub(crate) fn watch(&self) -> io::Result<Option<Watch>> {
        self.keys.as_ref().map(Keys::watch).transpose()
    }

    pub(super) fn principal(
        &self,
        peer: Option<&Peer>,
        credentials: &Credentials,
    ) -> Result<Principal, Rejection> {
        let of_peer = || peer.map_or_else(ClientName::unknown, Peer::client);
        if !self.is_configured() {
            return Ok(self.with_role(of_peer(), Role::User, None));
        }
        let certificate = peer.and_then(|peer| peer.certificate.as_deref());
        let certificate = certificate.filter(|_| self.takes_certificates);
        // A new connection with an invalid certificate would be rejected. So this call is, too,
        // whatever other credential it has.
        if let Some(certificate) = certificate.filter(|certificate| !certificate.is_good()) {
            return Err(Rejection::Rejected {
                why: "certificate expired or no longer trusted",
                client: ClientName::of_certificate(certificate.name()),
            });
        }
        if let Some(credential) = credentials.bearer()? {
            return self.bearer(credential, SystemTime::now());
        }
        if peer.is_some_and(Peer::is_user) {
            return Ok(self.with_role(of_peer(), Role::User, None));
        }
        let certificate = certificate.ok_or(Rejection::Missing)?;
        let name = ClientName::of_certificate(certificate.name());
        let name = name.ok_or(Rejection::because("certificate without a valid name"))?;
        Ok(self.with_role(name, Role::User, None))
    }

    /// Verifies a bearer credential. A token has three parts, separated by dots; a key has two.
    pub(super) fn bearer(&self, credential: &str, now: SystemTime) -> Result<Principal, Rejection> {
        let dots = credential.bytes().filter(|byte| *byte == b'.').count();
        match (dots, &self.keys, &self.tokens) {
            (1, Some(keys), _) => {
                let key = keys.verify(credential, now)?;
                Ok(self.with_role(key.client, key.role, Some(key.calls)))
            }
            (2, _, Some(tokens)) => {
                let subject = tokens.verify(credential, now);
                let subject = subject.map_err(Rejection::because)?;
                Ok(self.with_role(subject, Role::User, None))
            }
            _ => Err(Rejection::because("unsupported kind of credential")),
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
