//! The arguments of `serve`: traces.

use std::str::FromStr;

use clap::Args;
use hashfinder_server::Traces;
use http::{Uri, uri::Scheme};

/// Which calls are traced, and who is told.
#[derive(Args, Debug)]
pub(super) struct TraceArguments {
    /// Send a span for each call to the OTLP collector at this address, over gRPC [default: do not]
    ///
    /// For instance http://127.0.0.1:4317. A call that brings a trace with it (W3C Trace Context) is a part
    /// of that one. Spans are sent in batches; those that the collector does not take are dropped and counted.
    /// The connection is not encrypted, so let the collector be on this machine. Headers for it stand in
    /// OTEL_EXPORTER_OTLP_HEADERS, and what tells this server from others in OTEL_RESOURCE_ATTRIBUTES.
    #[arg(long, value_name = "URL", value_parser = collector)]
    otlp_endpoint: Option<Uri>,

    /// The share of the calls that are traced, from 0 to 1
    ///
    /// That is of the calls that bring no trace with them. Of the others those are traced whose
    /// caller says so.
    #[arg(long, value_name = "SHARE", default_value = "1", value_parser = share)]
    otlp_sampling: f64,
}

impl TraceArguments {
    pub(super) fn settings(self) -> Option<Traces> {
        let share = self.otlp_sampling;
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
    let uri = uri.ok_or("give http://HOST:PORT, for instance http://127.0.0.1:4317")?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err("give http://HOST:PORT: a collector is asked without TLS, on this machine");
    }
    Ok(uri)
}

fn share(text: &str) -> Result<f64, &'static str> {
    let share = text.parse().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or("give a number from 0 to 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors() {
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
