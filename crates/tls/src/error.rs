//! Describes in words what is wrong with a certificate or a handshake. rustls and webpki print most
//! errors as names of enum variants.

use std::{
    fmt::Debug,
    io,
    time::{Duration, UNIX_EPOCH},
};

use tokio_rustls::rustls::{
    AlertDescription, CertificateError, Error, ExtendedKeyPurpose, InvalidMessage,
    PeerIncompatible, pki_types::UnixTime,
};

/// Maximum number of a certificate's names in a message. Some certificates have hundreds of names.
const NAMES_SHOWN: usize = 5;

/// Description of a certificate without names, as the words that follow "the certificate".
pub const NAMELESS: &str = "has no subjectAltName, so it is valid for no host";

/// Returns what is wrong with a certificate, as the words that follow "the certificate".
pub fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::BadEncoding => of_webpki(&webpki::Error::BadDer),
        CertificateError::Expired => "has expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("expired on {}", date(*not_after))
        }
        CertificateError::NotValidYet => "is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("is not valid before {}", date(*not_before))
        }
        CertificateError::Revoked => "was revoked".to_owned(),
        CertificateError::UnhandledCriticalExtension => {
            of_webpki(&webpki::Error::UnsupportedCriticalExtension)
        }
        CertificateError::UnknownIssuer => of_webpki(&webpki::Error::UnknownIssuer),
        CertificateError::BadSignature => of_webpki(&webpki::Error::InvalidSignatureForPublicKey),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "was signed with an algorithm that is not supported".to_owned()
        }
        CertificateError::NotValidForName => "is valid for another name".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => match names(presented) {
            Some(names) => format!("is valid for {names}, not for {}", expected.to_str()),
            None => NAMELESS.to_owned(),
        },
        CertificateError::InvalidPurpose => "is for another purpose (extendedKeyUsage)".to_owned(),
        CertificateError::InvalidPurposeContext { required, .. } => {
            let (whom, needed) = match required {
                ExtendedKeyPurpose::ClientAuth => ("clients", "clientAuth"),
                ExtendedKeyPurpose::ServerAuth => ("servers", "serverAuth"),
                ExtendedKeyPurpose::Other(_) => ("this purpose", "a required value"),
            };
            format!("is not for {whom}: its extendedKeyUsage lacks {needed}")
        }
        CertificateError::Other(other) => match other.0.downcast_ref() {
            Some(error) => of_webpki(error),
            None => "cannot be used".to_owned(),
        },
        other => format!("cannot be used ({})", words(other)),
    }
}

/// Returns what is wrong with a certificate, as the words that follow "the certificate".
pub fn of_webpki(error: &webpki::Error) -> String {
    use webpki::Error;
    let text = match error {
        Error::BadDer
        | Error::BadDerTime
        | Error::ExtensionValueInvalid
        | Error::MalformedExtensions
        | Error::SignatureAlgorithmMismatch
        | Error::TrailingData(_) => "is malformed",
        Error::CaUsedAsEndEntity => {
            "is a CA certificate; a server's or client's needs basicConstraints=CA:FALSE"
        }
        Error::EndEntityUsedAsCa => "was signed with a certificate that is not a CA certificate",
        Error::InvalidCertValidity => "expires before it becomes valid",
        Error::InvalidSignatureForPublicKey => {
            "has an invalid signature: it was changed, or its authority has another key"
        }
        Error::MaximumNameConstraintComparisonsExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumPathDepthExceeded
        | Error::MaximumSignatureChecksExceeded => "has a chain that is too long to check",
        Error::NameConstraintViolation => "has a name that its authority is not allowed to sign",
        Error::PathLenConstraintViolated => "has a longer chain than its authority allows",
        Error::EmptyEkuExtension => "has an empty extendedKeyUsage",
        Error::UnknownIssuer => "was signed by an unknown authority",
        Error::UnsupportedCertVersion => "is not an X.509 version 3 certificate",
        Error::UnsupportedCriticalExtension => "has a critical extension that is not supported",
        other => return format!("cannot be used ({})", words(other)),
    };
    text.to_owned()
}

/// Returns why a peer that sends this alert rejects a certificate, or `None` if the alert is about
/// something else.
pub fn of_rejection(alert: AlertDescription) -> Option<&'static str> {
    Some(match alert {
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::BadCertificate => "it is malformed or valid for another name",
        // RFC 8446, and so rustls, has one alert for both.
        AlertDescription::CertificateExpired => "it has expired or is not valid yet",
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::CertificateUnknown => "no reason given",
        AlertDescription::DecryptError => "its signature cannot be verified",
        AlertDescription::UnknownCA => "it was signed by an unknown authority",
        AlertDescription::UnsupportedCertificate => {
            "it is for another purpose, or its type is not supported"
        }
        _ => return None,
    })
}

/// Returns why a handshake with `peer`, a "client" or a "server", failed.
pub fn of_handshake(error: &Error, peer: &str) -> String {
    match error {
        Error::InvalidCertificate(wrong) => {
            format!("the {peer}'s certificate {}", of_certificate(wrong))
        }
        Error::NoCertificatesPresented => format!("the {peer} sent no certificate"),
        Error::NoApplicationProtocol => format!("the {peer} does not speak HTTP/2 (ALPN h2)"),
        Error::AlertReceived(alert) => of_alert(*alert, peer),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => format!("the {peer} does not speak TLS"),
        Error::InvalidMessage(wrong) => {
            format!("the {peer} violated the TLS protocol ({})", words(wrong))
        }
        Error::PeerMisbehaved(wrong) => {
            format!("the {peer} violated the TLS protocol ({})", words(wrong))
        }
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => format!("the {peer} violated the TLS protocol ({})", words(error)),
        Error::PeerIncompatible(wrong) => {
            let missing = match wrong {
                PeerIncompatible::NoCipherSuitesInCommon => "cipher suite",
                PeerIncompatible::NoKxGroupsInCommon => {
                    "key exchange group (X25519, P-256 or P-384)"
                }
                PeerIncompatible::NoSignatureSchemesInCommon => {
                    "signature algorithm that fits the certificate's key"
                }
                // Only clients that predate TLS 1.2, or accept no SHA-2 signatures, may omit this
                // extension.
                PeerIncompatible::SignatureAlgorithmsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled => "TLS version (1.2 or 1.3)",
                other => {
                    return format!("the {peer} is not compatible ({})", words(other));
                }
            };
            format!("no {missing} in common with the {peer}")
        }
        Error::FailedToGetCurrentTime
        | Error::FailedToGetRandomBytes
        | Error::General(_)
        | Error::Other(_) => error.to_string(),
        other => format!("TLS failed ({})", words(other)),
    }
}

/// Like [`of_handshake`], for an I/O error of a connection. Returns the error unchanged if it is
/// neither a TLS error nor an unexpected end of the connection.
pub fn of_connection(error: io::Error, peer: &str) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(tls) => io::Error::new(error.kind(), of_handshake(tls, peer)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => io::Error::new(
            error.kind(),
            format!("the {peer} closed the connection during the handshake"),
        ),
        None => error,
    }
}

fn of_alert(alert: AlertDescription, peer: &str) -> String {
    if let Some(why) = of_rejection(alert) {
        return format!("the {peer} rejected our certificate: {why}");
    }
    let what = match alert {
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "found no cipher suite or signature algorithm in common"
        }
        AlertDescription::ProtocolVersion => "does not speak TLS 1.2 or 1.3",
        AlertDescription::NoApplicationProtocol => "does not speak HTTP/2 (ALPN h2)",
        AlertDescription::CertificateRequired => "requires a certificate",
        AlertDescription::UnrecognisedName => "does not know the requested server name",
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => {
            "closed the connection during the handshake"
        }
        AlertDescription::InternalError => "had an internal error",
        other => {
            let number = u8::from(other);
            return format!("the {peer} ended the handshake with TLS alert {number}");
        }
    };
    format!("the {peer} {what}")
}

/// Returns the first few names of a certificate, or `None` if it has none. `presented` has them as
/// webpki prints them: `DnsName("a.example")` or `IpAddress(10.0.0.7)`.
fn names(presented: &[String]) -> Option<String> {
    let bare = |name: &'_ str| -> String {
        let dns = name.strip_prefix("DnsName(\"");
        let dns = dns.and_then(|name| name.strip_suffix("\")"));
        let ip = || name.strip_prefix("IpAddress(")?.strip_suffix(')');
        dns.or_else(ip).unwrap_or(name).to_owned()
    };
    let shown: Vec<String> = presented
        .iter()
        .take(NAMES_SHOWN)
        .map(|n| bare(n))
        .collect();
    let more = presented.len() - shown.len();
    match (shown.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(shown.join(", ")),
        (false, more) => Some(format!("{} and {more} more names", shown.join(", "))),
    }
}

/// Formats a date of a certificate, which must not be after the year 9999. No certificate has a
/// later date.
pub fn date(time: UnixTime) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(time.as_secs());
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Returns the name of an enum's variant as words. This describes the hundred or so ways to break
/// the rules of TLS, and those that new versions of rustls add.
fn words(variant: &impl Debug) -> String {
    let name = format!("{variant:?}");
    let end = name.find(|c: char| !c.is_ascii_alphanumeric());
    let mut words = String::new();
    for character in name[..end.unwrap_or(name.len())].chars() {
        if character.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(character.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio_rustls::rustls::{OtherError, PeerMisbehaved};

    /// Whether a text contains no name of an enum's variant, such as `BadEncoding`.
    fn is_in_words(text: &str) -> bool {
        let is_variant = |word: &str| {
            let mut letters = word.bytes().zip(word.bytes().skip(1));
            word.starts_with(|c: char| c.is_ascii_uppercase())
                && letters.any(|(a, b)| a.is_ascii_lowercase() && b.is_ascii_uppercase())
        };
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
        !words.any(is_variant)
    }

    /// Regression test: `hashfinder find` said "does not take our certificate (UnknownCA)", the
    /// server's log "received fatal alert: BadCertificate", and both
    /// "Other(OtherError(CaUsedAsEndEntity))".
    #[test]
    fn errors_are_described_in_words() {
        assert!(
            is_in_words("TLS 1.3, X25519 and extendedKeyUsage") && !is_in_words("(BadEncoding)")
        );
        let alerts = (0..=u8::MAX).map(|number| Error::AlertReceived(number.into()));
        let certificates = [
            CertificateError::BadEncoding,
            CertificateError::ApplicationVerificationFailure,
            CertificateError::UnknownRevocationStatus,
            CertificateError::Other(OtherError(Arc::new(webpki::Error::CaUsedAsEndEntity))),
            CertificateError::Other(OtherError(Arc::new(webpki::Error::UnsupportedCertVersion))),
            CertificateError::Other(OtherError(Arc::new(webpki::Error::MalformedDnsIdentifier))),
        ];
        let others = [
            Error::InvalidMessage(InvalidMessage::MissingData("Random")),
            Error::PeerIncompatible(PeerIncompatible::NoEcPointFormatsInCommon),
            Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled),
            Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite),
            Error::PeerSentOversizedRecord,
            Error::HandshakeNotComplete,
            Error::NoApplicationProtocol,
        ];
        let certificates = certificates.into_iter().map(Error::InvalidCertificate);
        for error in alerts.chain(certificates).chain(others) {
            let told = of_handshake(&error, "client");
            assert!(
                is_in_words(&told) && told.contains(' '),
                "{error:?}: {told}"
            );
        }
    }

    #[test]
    fn only_a_few_plain_names_are_shown() {
        let names = |all: &[&str]| {
            let all: Vec<String> = all.iter().map(|name| (*name).to_owned()).collect();
            super::names(&all)
        };
        assert_eq!(names(&[]), None);
        let two = names(&["DnsName(\"*.a.example\")", "IpAddress(10.0.0.7)"]);
        assert_eq!(two.unwrap(), "*.a.example, 10.0.0.7");
        let many = names(&["DnsName(\"a\")"; 7]).unwrap();
        assert_eq!(many, "a, a, a, a, a and 2 more names");
    }
}
