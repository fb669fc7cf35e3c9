//! The services: the reference contract and our own, both on the searches that they share.

pub(crate) mod finder;
pub(crate) mod hash_name;

/// The descriptors of all services that a server has, also those that are not ours.
pub(crate) const ALL_DESCRIPTORS: [&[u8]; 4] = [
    hashfinder_proto::DESCRIPTORS,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];
