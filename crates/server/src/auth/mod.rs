//! Who makes a call, and what the caller may do.
//!
//! A caller is a *principal*: a client's name, and a role. If any kind of credential is configured,
//! the caller's credential identifies it: an API key or a JSON web token in the `authorization`
//! header, or the certificate of the connection. On a Unix socket, a caller without such a header
//! is identified by its user, as the system reports it. If no kind is configured, all callers are
//! identified by their addresses or users.

mod algorithm;
mod authenticator;
mod bind_policy;
mod credentials;
#[cfg(fuzzing)]
pub mod fuzzing;
mod jwt;
pub mod keys;
mod layer;
mod principal;
mod revocation;
mod role;
mod rules;
mod settings;
#[cfg(test)]
mod tests;

pub use self::{algorithm::Algorithm, role::Role, settings::Settings};
pub(crate) use self::{
    authenticator::Auth,
    bind_policy::check_bind_policy,
    layer::{AuthLayer, AuthService},
    principal::Principal,
    rules::Rules,
};
