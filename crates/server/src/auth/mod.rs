//! Who makes a call, and what the caller may do.
//!
//! A caller is a *principal*: a client's name, and a role. On a Unix socket, the system identifies
//! the caller. Elsewhere a credential does, once any kind of them is configured: an API key or a
//! JSON web token in the `authorization` header, or the certificate of the connection. Without any,
//! clients are identified by their addresses.

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
