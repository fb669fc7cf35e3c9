//! The wire: the services, and how errors become statuses.

mod answer;
mod call;
mod edge;
mod finder;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod hash_name;
mod query;
mod rate_limit;
mod refusals;
mod registry;
mod searches;
mod status;
mod told_to_stop;

pub(crate) use edge::{EdgeLayer, EdgeService};
pub(crate) use finder::{FinderService, WatchAside};
pub(crate) use hash_name::HashFinderService;
pub(crate) use hashfinder_proto::{DESCRIPTORS, hash_name as pb, v1 as v1pb};
pub(crate) use rate_limit::{AddressLimits, RateLimitLayer, RateLimitService, RateLimits};
pub(crate) use refusals::{Refusals, Unfit};
pub(crate) use searches::{Limits, Searches};
pub(crate) use status::CallError;

/// The descriptors of all services that a server has, also those that are not ours.
pub(crate) const ALL_DESCRIPTORS: [&[u8]; 4] = [
    DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];
