//! HTTP/2 frames as bytes. Nothing is validated here, so that invalid frames can be written, too.

use hashfinder_proto::hash_name::HashNameRequest;
use prost::Message;

/// First bytes that a client sends.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's header, in bytes.
pub(crate) const FRAME_HEAD: usize = 9;

/// Maximum length of a payload that every server must accept, in bytes.
pub(crate) const FRAME_LEN: usize = 16_384;

/// Maximum flow-control window.
pub(crate) const WINDOW_MAX: u32 = 0x7fff_ffff;

/// Frame types (RFC 9113, section 6).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
    /// An unknown type, which a receiver must ignore.
    pub(crate) const UNKNOWN: u8 = 0xbb;
}

/// Frame flags.
pub(crate) mod flag {
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
    pub(crate) const PADDED: u8 = 8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings.
pub(crate) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// Error code CANCEL: the client no longer needs the stream.
pub(crate) const CANCEL: u32 = 8;

/// Returns the name of an HTTP/2 error code.
pub(crate) fn error_name(code: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.copied().unwrap_or("an unknown error")
}

/// Appends frames.
pub(crate) trait Frames {
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]);

    /// Appends a frame header; the caller appends the payload.
    fn head(&mut self, length: usize, kind: u8, flags: u8, stream: u32);

    fn headers(&mut self, stream: u32, block: &[u8], end: bool) {
        let end = if end { flag::END_STREAM } else { 0 };
        self.frame(kind::HEADERS, flag::END_HEADERS | end, stream, block);
    }

    fn data(&mut self, stream: u32, data: &[u8], end: bool) {
        let flags = if end { flag::END_STREAM } else { 0 };
        self.frame(kind::DATA, flags, stream, data);
    }

    fn reset(&mut self, stream: u32) {
        self.frame(kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    }

    fn window_update(&mut self, stream: u32, increment: u32) {
        self.frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
    }

    /// Appends a PRIORITY frame (deprecated by RFC 9113): `stream` depends on `on`, with a weight
    /// of 16.
    fn priority(&mut self, stream: u32, on: u32) {
        let [a, b, c, d] = on.to_be_bytes();
        self.frame(kind::PRIORITY, 0, stream, &[a, b, c, d, 15]);
    }

    fn ping(&mut self, payload: u64) {
        self.frame(kind::PING, 0, 0, &payload.to_be_bytes());
    }

    fn settings(&mut self, settings: &[(u16, u32)]) {
        let mut payload = Vec::with_capacity(settings.len() * 6);
        for (setting, value) in settings {
            payload.extend(setting.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        self.frame(kind::SETTINGS, 0, 0, &payload);
    }
}

impl Frames for Vec<u8> {
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.head(payload.len(), kind, flags, stream);
        self.extend_from_slice(payload);
    }

    fn head(&mut self, length: usize, kind: u8, flags: u8, stream: u32) {
        let [_, .., a, b, c] = length.to_be_bytes();
        self.extend_from_slice(&[a, b, c, kind, flags]);
        self.extend_from_slice(&stream.to_be_bytes());
    }
}

/// Appends a header as a literal without indexing (RFC 7541, section 6.2.2).
pub(crate) fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    string(block, name);
    string(block, value);
}

/// Appends a header as a literal with incremental indexing (section 6.2.1).
pub(crate) fn kept(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0x40);
    string(block, name);
    string(block, value);
}

/// Index of the newest header in the dynamic table, as one byte (section 6.1).
pub(crate) const NEWEST_KEPT: u8 = 0x80 | 62;

/// Appends a string without Huffman coding.
fn string(block: &mut Vec<u8>, text: &str) {
    const PREFIX: usize = 127;
    let mut rest = text.len();
    if let Some(short) = u8::try_from(rest).ok().filter(|short| *short < 127) {
        block.push(short);
    } else {
        block.push(127);
        rest -= PREFIX;
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend(text.bytes());
}

/// Encodes a header block from names and values.
pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        literal(&mut block, name, value);
    }
    block
}

/// Encodes the headers of a call, as every gRPC client sends them.
pub(crate) fn call(path: &str) -> Vec<u8> {
    block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ])
}

pub(crate) const FIND: &str = "/hash_name.HashFinder/Find";
pub(crate) const FIND_RANGE: &str = "/hash_name.HashFinder/FindRange";

/// Adds gRPC's length prefix to a message.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![0];
    message.extend((bytes.len() as u32).to_be_bytes());
    message.extend(bytes);
    message
}

/// Returns a request for a search that never ends in practice. With an interesting distance of 28,
/// every secret on the way is a candidate. With 0, none is.
pub(crate) fn endless_search(interesting: i32) -> Vec<u8> {
    let request = HashNameRequest {
        desired_name: "hashfinderhashfinder".to_owned(),
        ideal_hamming_distance: 0,
        interesting_hamming_distance: interesting,
    };
    message(&request.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_block_decodes_to_what_was_encoded() {
        let long = "x".repeat(3000);
        for value in ["", "short", &"y".repeat(126), &"y".repeat(127), &long] {
            let mut bytes = block(&[("name", value)]);
            kept(&mut bytes, "kept", value);
            bytes.extend([NEWEST_KEPT; 2]);
            let mut read = Vec::new();
            let mut decoder = httlib_hpack::Decoder::default();
            decoder.decode(&mut bytes, &mut read).unwrap();
            let names: Vec<&[u8]> = read.iter().map(|(name, ..)| name.as_slice()).collect();
            assert_eq!(names, [&b"name"[..], b"kept", b"kept", b"kept"]);
            assert!(read.iter().all(|(_, read, _)| read == value.as_bytes()));
        }
    }

    #[test]
    fn a_frame_has_a_header_and_a_payload() {
        let mut bytes = Vec::new();
        bytes.data(0x0102_0304, &[7; 300], true);
        assert_eq!(bytes[..FRAME_HEAD], [0, 1, 44, 0, 1, 1, 2, 3, 4]);
        assert_eq!(bytes[FRAME_HEAD..], [7; 300]);
    }
}
