//! The credentials that a request contains.

use hashfinder_transport::ClientName;
use http::{HeaderMap, HeaderValue, header};

/// Maximum length of an `authorization` header's value, in bytes. Tokens with many claims have 2 or
/// 3 KiB. By default, the limit on all headers together is twice this.
pub(super) const MAX_CREDENTIAL_LEN: usize = 8 << 10;

/// Why a caller is not authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// The call has no credential, and the server requires one.
    Missing,
    /// The credential is not valid. The log shows why, and the client that the credential names,
    /// unless that may be a secret. The response shows neither.
    Rejected {
        why: &'static str,
        client: Option<ClientName>,
    },
}

impl Rejection {
    pub(super) fn because(why: &'static str) -> Rejection {
        Rejection::Rejected { why, client: None }
    }
}

/// The `authorization` headers of a request.
pub(super) struct Credentials(pub(super) Vec<HeaderValue>);

impl Credentials {
    /// Takes the headers out of the request, so that no later code can leak them.
    pub(super) fn taken_from(headers: &mut HeaderMap) -> Credentials {
        match headers.entry(header::AUTHORIZATION) {
            header::Entry::Vacant(_) => Credentials(Vec::new()),
            header::Entry::Occupied(entry) => {
                let (_, values) = entry.remove_entry_mult();
                Credentials(values.collect())
            }
        }
    }

    /// Whether the request has no `authorization` header.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bearer credential, if there is one.
    pub(super) fn bearer(&self) -> Result<Option<&str>, Rejection> {
        let value = match &self.0[..] {
            [] => return Ok(None),
            [value] => value,
            _ => return Err(Rejection::because("more than one authorization header")),
        };
        if value.len() > MAX_CREDENTIAL_LEN {
            return Err(Rejection::because("credential too long"));
        }
        let parts = value.to_str().ok().and_then(|text| text.split_once(' '));
        match parts {
            Some((scheme, credential)) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Some(credential))
            }
            _ => Err(Rejection::because("not a bearer credential")),
        }
    }
}
