//! The wire: the generated types, the services, and how ends become statuses.

mod answer;
mod call;
mod call_info;
mod cancelled;
mod edge;
mod finder;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod hash_name;
mod query;
mod rate_limit;
mod record;
mod refusals;
mod registry;
mod searches;
mod status;
mod stop_cause;

pub(crate) use call_info::{CallInfo, MethodName};
pub(crate) use edge::{EdgeLayer, EdgeService};
pub(crate) use finder::{
    DrainWatchesLast, FinderService, INTERVAL, LONGEST_INTERVAL, REASON_LEN, SHORTEST_INTERVAL,
};
pub(crate) use hash_name::HashFinderService;
pub(crate) use rate_limit::{AddressLimits, RateLimitLayer, RateLimitService, RateLimits};
pub(crate) use refusals::{Refusals, Unfit};
pub(crate) use searches::{Limits, Searches};
pub(crate) use status::{CallError, Details};
pub(crate) use stop_cause::StopCause;

/// The descriptors of all services that a server has, also those that are not ours.
pub(crate) const ALL_DESCRIPTORS: [&[u8]; 4] = [
    DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// The reference contract.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod pb {
    tonic::include_proto!("hash_name");
}

/// Our own contract.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod v1pb {
    tonic::include_proto!("hashfinder.v1");
}

/// The descriptors of all that is served, for the reflection service.
pub(crate) const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
