//! The arguments of `serve`: traces.

use std::str::FromStr;

use clap::Args;
use hashfinder_server::Traces;
use http::{Uri, uri::Scheme};

/// Where calls are traced.
#[derive(Args, Debug)]
#[command(next_help_heading = "Monitoring")]
pub(super) struct TraceArguments {
    /// OTLP collector that gets a span for each call, over gRPC [default: none]
    ///
    /// For example http://127.0.0.1:4317. A call with a trace context (W3C) becomes part of its
    /// trace. The connection is not encrypted, so run the collector on this machine. The server
    /// sends spans in batches, and counts those that the collector did not accept.
    /// OTEL_EXPORTER_OTLP_HEADERS sets headers, and OTEL_RESOURCE_ATTRIBUTES names this server.
    #[arg(long, value_name = "URL", value_parser = collector)]
    otlp_endpoint: Option<Uri>,
}

impl TraceArguments {
    /// Returns the collector and the share of the calls that are traced; `None` without a
    /// collector.
    pub(super) fn settings(self, share: f64) -> Option<Traces> {
        (self.otlp_endpoint).map(|collector| Traces { collector, share })
    }
}

fn collector(text: &str) -> Result<Uri, &'static str> {
    let uri = Uri::from_str(text).ok();
    let uri = uri.filter(|uri| {
        let is_plain = |authority: &http::uri::Authority| {
            !authority.host().is_empty() && !authority.as_str().contains('@')
        };
        uri.authority().is_some_and(is_plain) && uri.path_and_query().is_none_or(|path| path == "/")
    });
    let uri = uri.ok_or("expected http://HOST:PORT, such as http://127.0.0.1:4317")?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err("expected http://HOST:PORT: the connection to the collector has no TLS");
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collector_addresses_are_validated() {
        for right in [
            "http://127.0.0.1:4317",
            "http://[::1]:4317/",
            "http://collector",
        ] {
            assert!(collector(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "127.0.0.1:4317",
            "https://127.0.0.1:4317",
            "http://me:secret@127.0.0.1:4317",
            "http://127.0.0.1:4317/v1/traces",
            "http://",
            "/path",
        ] {
            assert!(collector(wrong).is_err(), "{wrong}");
        }
    }
}
