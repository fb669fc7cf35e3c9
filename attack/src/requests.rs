//! Wrong requests, and the responses that the server should give.

use hashfinder_proto::hash_name::HashNameRequest;
use prost::Message;

use crate::{
    connection::Answer,
    wire::{FIND, block, call, message},
};

/// A wrong request.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) headers: Vec<u8>,
    /// Body after the headers; `None` if the stream ends with the headers.
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) expected: &'static str,
    pub(crate) fits: fn(&Answer) -> bool,
}

const REFUSED: &str = "an error of gRPC's or HTTP's, or a reset";

fn is_refused(answer: &Answer) -> bool {
    match answer {
        Answer {
            grpc: Some(code), ..
        } => *code != 0,
        Answer {
            http: Some(status), ..
        } => *status >= 400,
        answer => answer.reset.is_some(),
    }
}

/// Returns a valid request that ends at once: its name is found among the first thousand secrets.
fn doc() -> Vec<u8> {
    request("doc", 0)
}

fn request(name: &str, ideal: i32) -> Vec<u8> {
    let request = HashNameRequest {
        desired_name: name.to_owned(),
        ideal_hamming_distance: ideal,
        interesting_hamming_distance: 0,
    };
    message(&request.encode_to_vec())
}

/// Returns requests whose bodies are malformed or contain an invalid message.
pub(crate) fn malformed_messages() -> Vec<Case> {
    const CODES: &str = "INVALID_ARGUMENT, INTERNAL, UNIMPLEMENTED or the like";
    const INVALID: &str = "INVALID_ARGUMENT (3)";
    let wrong = |answer: &Answer| matches!(answer.grpc, Some(1..)) || answer.reset.is_some();
    let cases: [(&str, Option<Vec<u8>>); 10] = [
        ("no message", None),
        ("an empty body", Some(Vec::new())),
        ("a prefix that is cut", Some(vec![0, 0, 0])),
        ("a message that is cut", Some(vec![0, 0, 0, 0, 100, 10, 3])),
        ("a compressed message", Some([&[1], &doc()[1..]].concat())),
        ("an unknown flag", Some([&[0xfe], &doc()[1..]].concat())),
        ("bytes that are not protobuf", Some(message(&[0xff; 20]))),
        ("a number for a name", Some(message(&[8, 1]))),
        (
            "a name that is not UTF-8",
            Some(message(&[10, 2, 0xff, 0xfe])),
        ),
        ("groups within groups", Some(message(&[0x0b; 4000]))),
    ];
    let invalid: [(&str, Vec<u8>); 4] = [
        ("no name", request("", 0)),
        ("a long name", request(&"a".repeat(4000), 0)),
        ("a negative distance", request("doc", -1)),
        ("a name that nothing spells", request("====", 0)),
    ];
    let case = |name: &str, body, expected, fits| Case {
        name: name.to_owned(),
        headers: call(FIND),
        body,
        expected,
        fits,
    };
    let mut all: Vec<Case> = cases
        .into_iter()
        .map(|(name, body)| case(name, body, CODES, wrong as fn(&Answer) -> bool))
        .collect();
    all.extend(
        invalid
            .into_iter()
            .map(|(name, body)| case(name, Some(body), INVALID, |answer| answer.grpc == Some(3))),
    );
    let long = request(&"a".repeat(4096), 0);
    let too_long = |answer: &Answer| answer.grpc == Some(8);
    all.push(case(
        "4099 bytes",
        Some(long),
        "RESOURCE_EXHAUSTED (8)",
        too_long,
    ));
    all
}

/// Returns requests with a valid message but with wrong headers.
pub(crate) fn wrong_requests() -> Vec<Case> {
    let mut all = Vec::new();
    for content_type in [
        "",
        "application/json",
        "application/x-protobuf",
        "text/plain",
        "application/grpcs",
        "multipart/form-data",
    ] {
        let mut headers = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", FIND),
            (":authority", "localhost"),
            ("te", "trailers"),
        ];
        if !content_type.is_empty() {
            headers.push(("content-type", content_type));
        }
        all.push(Case {
            name: format!("content-type {content_type:?}"),
            headers: block(&headers),
            body: Some(doc()),
            expected: "HTTP 415",
            fits: |answer| answer.http == Some(415) && answer.grpc != Some(0),
        });
    }
    let mut refused = |name: String, headers: &[(&str, &str)]| {
        all.push(Case {
            name,
            headers: block(headers),
            body: Some(doc()),
            expected: REFUSED,
            fits: is_refused,
        });
    };
    for method in ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "post", "NOSUCH"] {
        let headers = [
            (":method", method),
            (":scheme", "http"),
            (":path", FIND),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ];
        refused(format!("the method {method}"), &headers);
    }
    let right = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", FIND),
        ("content-type", "application/grpc"),
    ];
    for (name, wrong) in [
        ("a second path", (":path", FIND)),
        ("a pseudo-header that there is not", (":nosuch", "x")),
        ("a header of HTTP/1", ("connection", "close")),
        ("capitals in a name", ("X-Capitals", "x")),
        ("a wrong content-length", ("content-length", "1")),
        ("an encoding that there is not", ("grpc-encoding", "nosuch")),
    ] {
        refused(name.to_owned(), &[&right[..], &[wrong]].concat());
    }
    for (name, without) in [("no method", 0), ("no path", 2)] {
        let mut headers = right.to_vec();
        headers.remove(without);
        refused(name.to_owned(), &headers);
    }
    all
}

/// Returns requests with invalid timeouts, which are ignored or rejected, and with extreme but
/// valid ones.
pub(crate) fn bad_timeouts() -> Vec<Case> {
    const IGNORED: &str = "an error, or the answer as if there were no timeout";
    let ignored = |answer: &Answer| answer.grpc == Some(0) || is_refused(answer);
    let case = |timeout: &str, expected, fits| {
        let mut headers = call(FIND);
        headers.extend(block(&[("grpc-timeout", timeout)]));
        Case {
            name: format!("grpc-timeout {timeout:?}"),
            headers,
            body: Some(doc()),
            expected,
            fits,
        }
    };
    let mut all: Vec<Case> = [
        "",
        "S",
        "1",
        "1X",
        "1s",
        "-1S",
        "+1S",
        " 1S",
        "1.5S",
        "0x10S",
        "1SS",
        "\u{ff11}S",
        "123456789S",
        "99999999999999999999999999S",
    ]
    .into_iter()
    .map(|timeout| case(timeout, IGNORED, ignored as fn(&Answer) -> bool))
    .collect();
    all.push(case("0n", "DEADLINE_EXCEEDED (4)", |answer| {
        answer.grpc == Some(4)
    }));
    for right in ["99999999H", "99999999u"] {
        all.push(case(right, "OK", |answer| answer.grpc == Some(0)));
    }
    all
}

/// Returns requests for unknown paths.
pub(crate) fn bad_paths() -> Vec<Case> {
    let long = format!("/{}", "a/".repeat(3000));
    let paths = [
        "",
        "/",
        "//",
        "*",
        "hash_name.HashFinder/Find",
        "/hash_name.HashFinder",
        "/hash_name.HashFinder/",
        "/hash_name.HashFinder/find",
        "/hash_name.HashFinder/Find/",
        "/hash_name.HashFinder/Find%00",
        "/hash_name.HashFinder/../hash_name.HashFinder/Find",
        "/nosuch.Service/Find",
        "/\u{1}\u{2}",
        &long,
    ];
    let paths = paths.into_iter();
    paths
        .map(|path| Case {
            name: format!("the path {:?}", path.get(..60).unwrap_or(path)),
            headers: call(path),
            body: Some(doc()),
            expected: REFUSED,
            fits: is_refused,
        })
        .collect()
}
