//! The two text formats of metrics, and which of them a request gets.

use std::borrow::Cow;

use http::{HeaderMap, header};
use mediatype::{MediaType, MediaTypeList, Name, ReadParams, names};

const VERSION: Name<'static> = Name::new_unchecked("version");

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus's own format, version 0.0.4, which every reader of metrics understands.
    Prometheus,
    /// OpenMetrics 1.0.0, which `prometheus-client` writes.
    OpenMetrics,
}

impl Format {
    /// Returns the format for a request with these headers: OpenMetrics if `Accept` names it and
    /// does not prefer plain text, otherwise Prometheus's. A wildcard does not name OpenMetrics.
    /// Parts of the header that cannot be read are ignored.
    pub(super) fn accepted(headers: &HeaderMap) -> Format {
        let lists = headers.get_all(header::ACCEPT).iter();
        let lists = lists.filter_map(|list| list.to_str().ok());
        let mut openmetrics = 0;
        // The quality of plain text, for each specificity of a range that matches it, the most
        // specific first. The most specific one counts (RFC 9110, section 12.5.1).
        let mut text: [Option<u16>; 3] = [None; 3];
        for range in lists.flat_map(MediaTypeList::new).flatten() {
            let Some(quality) = quality(&range) else {
                continue;
            };
            let (kind, subtype) = (range.ty, range.subty);
            if kind == names::APPLICATION && subtype == "openmetrics-text" {
                let version = range.get_param(VERSION);
                if version.is_none_or(|version| ["1.0.0", "0.0.1"].contains(&version.as_str())) {
                    openmetrics = openmetrics.max(quality);
                }
                continue;
            }
            let specificity = if kind == names::TEXT && subtype == names::PLAIN {
                0
            } else if kind == names::TEXT && subtype == names::_STAR {
                1
            } else if kind == names::_STAR && subtype == names::_STAR {
                2
            } else {
                continue;
            };
            text[specificity] = text[specificity].max(Some(quality));
        }
        let text = text.into_iter().flatten().next().unwrap_or(0);
        if openmetrics > 0 && openmetrics >= text {
            Format::OpenMetrics
        } else {
            Format::Prometheus
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Rewrites a text of OpenMetrics in this format.
    pub(super) fn of_openmetrics(self, text: &str) -> Cow<'_, str> {
        match self {
            Format::OpenMetrics => text.into(),
            Format::Prometheus => to_prometheus(text).into(),
        }
    }
}

/// Returns the quality of a media range in thousandths, or `None` if it cannot be read.
fn quality(range: &MediaType<'_>) -> Option<u16> {
    let Some(quality) = range.get_param(names::Q) else {
        return Some(1000);
    };
    let quality: f32 = quality.as_str().parse().ok()?;
    (0.0..=1.0)
        .contains(&quality)
        .then(|| (quality * 1000.0).round() as u16)
}

/// Rewrites OpenMetrics as Prometheus's format
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>). The samples are the same. Only
/// in OpenMetrics, names of families have no suffix, `info` and `unknown` are types, and there are
/// units and an end marker.
fn to_prometheus(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // The help comes before the type, on which the family's name depends.
    let mut help = None;
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), text) => help = text,
            (Some("#"), Some("TYPE"), Some(family), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some(help) = help.take() {
                    out += &format!("# HELP {family}{suffix} {help}\n");
                }
                out += &format!("# TYPE {family}{suffix} {kind}\n");
            }
            (Some("#"), ..) => {}
            _ => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn openmetrics_is_sent_only_if_the_request_names_it() {
        use Format::{OpenMetrics, Prometheus};
        for (accept, format) in [
            (&[][..], Prometheus),
            (&["*/*"], Prometheus),
            (&["application/*, */*;q=0.1"], Prometheus),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], Prometheus),
            (&["application/json"], Prometheus),
            (&["application/openmetrics-text"], OpenMetrics),
            (
                &["Application/OpenMetrics-Text; Version=1.0.0"],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;version=2.0.0"], Prometheus),
            (&["application/openmetrics-text;q=0"], Prometheus),
            (
                &["application/openmetrics-text;q=0.4,text/plain;q=0.5"],
                Prometheus,
            ),
            (
                &["application/openmetrics-text;q=0.5,text/plain;q=0.5"],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;q=0.5,*/*"], Prometheus),
            // The most specific range counts.
            (
                &["application/openmetrics-text;q=0.5,*/*,text/plain;q=0.2"],
                OpenMetrics,
            ),
            (
                &["application/openmetrics-text;q=0.5,text/*;q=0.6,*/*;q=0.1"],
                Prometheus,
            ),
            // Several headers are one list.
            (
                &["text/plain;q=0.5", "application/openmetrics-text"],
                OpenMetrics,
            ),
            // Parts that cannot be read.
            (&["application/openmetrics-text;q=x"], Prometheus),
            (&["application/openmetrics-text;q=2"], Prometheus),
            (&["application/openmetrics-text;q=NaN"], Prometheus),
            (&[";;,/,\",application/openmetrics-text"], Prometheus),
            (&["a/b;c=\"d,e\",application/openmetrics-text"], OpenMetrics),
            // The headers of Prometheus 2 and 3.
            (
                &[
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                   text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ],
                OpenMetrics,
            ),
            (
                &[
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                   application/openmetrics-text;version=0.0.1;q=0.5,\
                   text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ],
                OpenMetrics,
            ),
        ] {
            let values = accept.iter().map(|value| HeaderValue::from_static(value));
            let headers = values.map(|value| (header::ACCEPT, value)).collect();
            assert_eq!(Format::accepted(&headers), format, "{accept:?}");
        }
    }

    #[test]
    fn families_are_named_like_their_samples() {
        let openmetrics = "\
# HELP a_build What runs here.
# TYPE a_build info
a_build_info{version=\"1\"} 1
# HELP a_calls Calls of a kind.
# TYPE a_calls counter
a_calls_total{kind=\"# TYPE x counter\"} 17
# HELP a_open_seconds How long.
# TYPE a_open_seconds histogram
# UNIT a_open_seconds seconds
a_open_seconds_sum 0.5
a_open_seconds_count 1
a_open_seconds_bucket{le=\"+Inf\"} 1
# TYPE a_state unknown
a_state 3
# EOF
";
        let prometheus = "\
# HELP a_build_info What runs here.
# TYPE a_build_info gauge
a_build_info{version=\"1\"} 1
# HELP a_calls_total Calls of a kind.
# TYPE a_calls_total counter
a_calls_total{kind=\"# TYPE x counter\"} 17
# HELP a_open_seconds How long.
# TYPE a_open_seconds histogram
a_open_seconds_sum 0.5
a_open_seconds_count 1
a_open_seconds_bucket{le=\"+Inf\"} 1
# TYPE a_state untyped
a_state 3
";
        assert_eq!(Format::Prometheus.of_openmetrics(openmetrics), prometheus);
        assert_eq!(Format::OpenMetrics.of_openmetrics(openmetrics), openmetrics);
    }
}
