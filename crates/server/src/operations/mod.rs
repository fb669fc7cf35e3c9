//! Operations: searches that outlive their calls. `hashfinder-operations` runs and saves them; here
//! are the parts that know the server: who owns an operation, and how its search is run.

mod host;
mod owner;
mod settings;

pub use self::settings::{Place, Settings};
pub(crate) use self::{
    host::ServerHost,
    owner::{Owner, owner_of},
    settings::LONGEST_KEEP,
};
