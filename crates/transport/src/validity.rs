//! Reads validity periods of certificates, and finds reasons why clients reject a certificate that
//! the server can use.
//!
//! webpki provides both. The server needs it anyway to verify clients' certificates, so it needs no
//! other X.509 parser. To read a validity period, this module checks a certificate for a time in
//! the far future and for one in the past: the errors contain the end and the beginning of the
//! period.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use hashfinder_system::text::as_text;
use hashfinder_tls::error as tls_error;
use tokio_rustls::rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage};

/// How long before its end a certificate is reported as expiring soon. Certificates are usually
/// renewed weeks before they end. If one has not been renewed by then, the renewal has failed, and
/// there is still time to fix it.
const SOON: Duration = Duration::from_secs(14 * DAY);

/// A certificate is reported only in the last quarter of its validity, if that is shorter than
/// `SOON`. Tools renew certificates when a third is left, so short-lived certificates are not
/// reported before their regular renewal.
const SOON_PART: u32 = 4;

const DAY: u64 = 24 * HOUR;
const HOUR: u64 = 60 * MINUTE;
const MINUTE: u64 = 60;

/// Validity period of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    /// Position of the certificate in its file, counted from 1.
    number: usize,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Validity {
    /// Returns the validity of each certificate in a file. A certificate that cannot be read, or
    /// whose validity ends before it begins, yields an error instead.
    pub(crate) fn of_all(certificates: &[CertificateDer<'_>]) -> Vec<Result<Validity, Error>> {
        let numbered = (1..).zip(certificates);
        numbered.map(|(number, one)| of(number, one)).collect()
    }

    /// Returns the earliest end of these certificates.
    pub(crate) fn first_end(all: &[Validity]) -> Option<UnixTime> {
        all.iter().map(|one| one.not_after).min()
    }

    fn ends_soon(&self, now: UnixTime) -> bool {
        let until_end = |time: UnixTime| {
            let seconds = self.not_after.as_secs().saturating_sub(time.as_secs());
            Duration::from_secs(seconds)
        };
        until_end(now) < SOON.min(until_end(self.not_before) / SOON_PART)
    }
}

/// A problem with a certificate or a key file that is used nevertheless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    file: PathBuf,
    what: String,
    /// Position of the certificate in the file, counted from 1.
    certificate: Option<usize>,
    not_before: Option<UnixTime>,
    not_after: Option<UnixTime>,
}

impl Warning {
    /// Returns a warning about a whole file.
    pub(crate) fn of_file(file: &Path, what: impl Into<String>) -> Warning {
        Warning {
            file: file.to_owned(),
            what: what.into(),
            certificate: None,
            not_before: None,
            not_after: None,
        }
    }

    /// Returns a warning about the certificate at position `number` in the file, counted from 1.
    pub(crate) fn of_certificate(file: &Path, number: usize, what: impl Into<String>) -> Warning {
        Warning {
            certificate: Some(number),
            ..Warning::of_file(file, what)
        }
    }

    /// Returns a warning about the validity of a certificate in the server's chain, if it needs
    /// one.
    pub(crate) fn of_shown(file: &Path, one: &Validity, now: UnixTime) -> Option<Warning> {
        let (whose, reject) = match one.number {
            1 => ("the server's certificate", "clients reject it"),
            // Some clients find another path to an authority that they trust.
            _ => (
                "a certificate in the server's chain",
                "clients may reject the server",
            ),
        };
        let warning = |what| Warning::of_certificate(file, one.number, what);
        let (not_before, not_after) = (Some(one.not_before), Some(one.not_after));
        if one.not_after < now {
            let what = format!("{whose} has expired; {reject} until the file is replaced");
            return Some(Warning {
                not_after,
                ..warning(what)
            });
        }
        if now < one.not_before {
            let what = format!("{whose} is not valid yet; {reject}; check the clock");
            return Some(Warning {
                not_before,
                ..warning(what)
            });
        }
        if one.ends_soon(now) {
            let what = format!("{whose} expires soon; replace the file (no restart needed)");
            return Some(Warning {
                not_after,
                ..warning(what)
            });
        }
        None
    }

    /// Returns a warning about an authority for client certificates that has expired. The server
    /// trusts an authority because it is in the file, whatever its certificate says, so the expiry
    /// has no effect. An operator may expect otherwise.
    pub(crate) fn of_authority(file: &Path, one: &Validity, now: UnixTime) -> Option<Warning> {
        let what = "an authority for client certificates has expired, but the server still trusts \
                    it; remove it from the file to reject the certificates that it signed";
        (one.not_after < now).then(|| Warning {
            not_after: Some(one.not_after),
            ..Warning::of_certificate(file, one.number, what)
        })
    }

    pub(crate) fn log(&self) {
        let Warning {
            file,
            what,
            certificate,
            not_before,
            not_after,
        } = self;
        let shown = |time: UnixTime| tracing::field::display(tls_error::date(time));
        tracing::warn!(
            file = %as_text(&file.to_string_lossy()),
            certificate,
            not_before = not_before.map(shown),
            not_after = not_after.map(shown),
            left = self.left().map(tracing::field::display),
            "{what}"
        );
    }

    /// Returns how long the certificate is still valid, in at most two units. `None` if it has
    /// expired, or if this warning has no expiry date.
    fn left(&self) -> Option<String> {
        let left = (self.not_after?.as_secs()).checked_sub(UnixTime::now().as_secs())?;
        let rounded = match left {
            DAY.. => left - left % HOUR,
            HOUR.. => left - left % MINUTE,
            _ => left,
        };
        Some(humantime::format_duration(Duration::from_secs(rounded)).to_string())
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.what)?;
        let details = [
            self.certificate
                .filter(|number| *number > 1)
                .map(|number| format!("certificate {number}")),
            self.not_before
                .map(|time| format!("not before {}", tls_error::date(time))),
            self.not_after
                .map(|time| format!("not after {}", tls_error::date(time))),
            self.left().map(|left| format!("in {left}")),
        ];
        let details: Vec<String> = details.into_iter().flatten().collect();
        match details.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", details.join(", ")),
        }
    }
}

fn of(number: usize, certificate: &CertificateDer<'_>) -> Result<Validity, Error> {
    let certificate = EndEntityCert::try_from(certificate)?;
    let last = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let not_after = match check(&certificate, last) {
        Err(Error::CertExpired { not_after, .. }) => not_after,
        // The validity ends before it begins, or the dates are malformed. The certificate cannot be
        // valid at `last`: no certificate is valid after the year 9999.
        Err(error) => return Err(error),
        // Not reached: `check` trusts no authority, so it never succeeds.
        Ok(()) => return Err(Error::BadDerTime),
    };
    let first = UnixTime::since_unix_epoch(Duration::ZERO);
    let not_before = match check(&certificate, first) {
        Err(Error::CertNotValidYet { not_before, .. }) => not_before,
        _ => first,
    };
    Ok(Validity {
        number,
        not_before,
        not_after,
    })
}

/// Returns why clients always reject a server's certificate, as words that follow "the
/// certificate", or `None`.
pub(crate) fn rejected_by_clients(
    certificate: &CertificateDer<'_>,
    validity: &Validity,
) -> Option<String> {
    let certificate = match EndEntityCert::try_from(certificate) {
        Ok(certificate) => certificate,
        Err(error) => return Some(tls_error::of_webpki(&error)),
    };
    match check(&certificate, validity.not_after) {
        Ok(()) | Err(Error::UnknownIssuer) => {}
        Err(Error::RequiredEkuNotFoundContext(_)) => {
            return Some("is not for servers: its extendedKeyUsage lacks serverAuth".to_owned());
        }
        Err(error) => return Some(tls_error::of_webpki(&error)),
    }
    // Any name will do: the error lists the names in the certificate.
    let any = DnsName::try_from("localhost").ok()?;
    match certificate.verify_is_valid_for_subject_name(&ServerName::DnsName(any)) {
        Err(Error::CertNotValidForName(names)) if names.presented.is_empty() => {
            Some(tls_error::NAMELESS.to_owned())
        }
        _ => None,
    }
}

/// Checks a server's certificate for `time`, but neither its authority nor its names. No authority
/// is trusted here, so the best possible result is `UnknownIssuer`. The dates are checked first.
fn check(certificate: &EndEntityCert<'_>, time: UnixTime) -> Result<(), Error> {
    let usage = KeyUsage::server_auth();
    let path = certificate.verify_for_usage(&[], &[], &[], time, usage, None, None);
    path.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_rustls::rustls::pki_types::pem::PemObject;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// Regression test: the log had a warning only if a certificate had already expired when its
    /// file was read.
    #[test]
    fn a_certificate_gets_one_warning_per_stage() {
        const BEGIN: u64 = 1_000 * DAY;
        for (days, soon) in [(90, 14 * DAY), (8, 2 * DAY), (1, 6 * HOUR)] {
            let end = BEGIN + days * DAY;
            let one = Validity {
                number: 1,
                not_before: at(BEGIN),
                not_after: at(end),
            };
            let file = Path::new("server.pem");
            let warning = |seconds| {
                let warning = Warning::of_shown(file, &one, at(seconds));
                warning.map(|warning| warning.what)
            };
            let changes = [
                (BEGIN - 1, Some("is not valid yet")),
                (BEGIN, None),
                (end - soon, None),
                (end - soon + 1, Some("expires soon")),
                (end, Some("expires soon")),
                (end + 1, Some("has expired")),
            ];
            for (time, what) in changes {
                let warned = warning(time);
                assert_eq!(warned.is_some(), what.is_some(), "{days} days, {time}");
                assert!(
                    warned
                        .unwrap_or_default()
                        .contains(what.unwrap_or_default())
                );
            }
            // Equal warnings are logged once.
            let soon = Warning::of_shown(file, &one, at(end - 1));
            assert_eq!(soon, Warning::of_shown(file, &one, at(end)));
            // An authority gets a warning only once it has expired.
            assert_eq!(Warning::of_authority(file, &one, at(end)), None);
            let expired = Warning::of_authority(file, &one, at(end + 1)).unwrap();
            assert!(
                expired
                    .what
                    .contains("an authority for client certificates has expired")
            );
        }
    }

    /// `openssl x509 -dates` prints the first days of 2026 and 2036.
    #[test]
    fn validity_matches_openssl() {
        let all = CertificateDer::pem_slice_iter(include_bytes!("names.pem"));
        let first = all.map(Result::unwrap).next().unwrap();
        let [validity] = &Validity::of_all(&[first])[..] else {
            panic!("one certificate has one validity");
        };
        let validity = validity.as_ref().unwrap();
        assert_eq!(
            (validity.not_before, validity.not_after),
            (at(1_767_225_600), at(2_082_758_400))
        );
    }
}
