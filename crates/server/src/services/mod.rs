//! The services: the reference contract, our own, and that of long-running operations. All share
//! the searches.

pub(crate) mod finder;
pub(crate) mod hash_name;
pub(crate) mod longrunning;
pub(crate) mod operations;

/// The descriptors of all services of a server, including those from libraries.
pub(crate) const ALL_DESCRIPTORS: [&[u8]; 4] = [
    hashfinder_proto::DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];
