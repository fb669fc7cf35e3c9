//! The generated types of `grpc.testing`.

tonic::include_proto!("grpc.testing");

/// Returns a payload of `size` zeros.
pub(crate) fn payload(size: usize) -> Option<Payload> {
    let body = vec![0; size];
    Some(Payload { body })
}
