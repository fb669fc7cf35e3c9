//! Reasons for rejections that have no [`CallError`](crate::errors::CallError).

/// Reason for rejecting a request without a [`CallError`](crate::errors::CallError).
///
/// The request is not gRPC, has too many headers, or was rejected by a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// The HTTP method is not POST.
    NotPost,
    /// The content type is neither `application/grpc` nor `application/grpc+proto`.
    NotGrpc,
    /// The request has too many headers.
    TooManyFields,
    /// No service has this method.
    UnknownMethod,
    /// The `grpc-timeout` header is malformed.
    BadTimeout,
    /// The message cannot be decoded, or its compression is unknown.
    Malformed,
}

impl Violation {
    pub(crate) const ALL: [Violation; 6] = [
        Violation::NotPost,
        Violation::NotGrpc,
        Violation::TooManyFields,
        Violation::UnknownMethod,
        Violation::BadTimeout,
        Violation::Malformed,
    ];

    /// Returns the reason's name in the metrics and the log.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Violation::NotPost => "NOT_POST",
            Violation::NotGrpc => "NOT_GRPC",
            Violation::TooManyFields => "TOO_MANY_FIELDS",
            Violation::UnknownMethod => "UNKNOWN_METHOD",
            Violation::BadTimeout => "BAD_TIMEOUT",
            Violation::Malformed => "MALFORMED",
        }
    }
}
