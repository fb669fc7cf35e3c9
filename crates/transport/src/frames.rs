//! Finds HTTP/2 frames in a byte stream. Only frame headers, and the error codes of RST_STREAM, are
//! parsed (RFC 9113, sections 4.1 and 6.4).

/// Length of the client's connection preface (RFC 9113, section 3.4), in bytes.
pub(crate) const PREFACE_LEN: usize = 24;

/// Length of a frame header, in bytes.
const HEAD_LEN: usize = 9;

/// Length of an error code in bytes. The payload of RST_STREAM is one error code.
const CODE_LEN: usize = 4;

/// Frame type of RST_STREAM.
const RST_STREAM: u8 = 3;

/// Error code for a stream whose frames break the protocol (RFC 9113, section 7).
pub(crate) const PROTOCOL_ERROR: u32 = 1;

/// Flag bit that means ACK in SETTINGS and PING, and END_STREAM in DATA and HEADERS (RFC 9113,
/// sections 6.1, 6.2, 6.5 and 6.7).
const FIRST_FLAG: u8 = 1;

/// Type of a frame (RFC 9113, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Headers,
    Reset,
    Settings,
    Ping,
    GoAway,
    Continuation,
    /// Any other type, known or unknown.
    Other,
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// Length of the payload, in bytes.
    pub(crate) length: usize,
    /// Stream number; 0 stands for the connection as a whole.
    pub(crate) stream: u32,
    /// For PING and SETTINGS: whether it is an acknowledgement. For DATA and HEADERS: whether it is
    /// the last frame of its stream.
    pub(crate) is_last: bool,
    /// For RST_STREAM: the error code.
    pub(crate) code: Option<u32>,
}

/// Finds the frames in one direction of a connection. The bytes may arrive in pieces of any size.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Number of bytes before the next header: the rest of a payload or of the preface.
    skip: usize,
    /// Bytes of the current frame's header and, for RST_STREAM, of its error code.
    head: [u8; HEAD_LEN + CODE_LEN],
    /// Number of bytes of `head` that have been read.
    seen: usize,
}

impl Frames {
    /// Creates a reader that skips `bytes` bytes before the first frame.
    pub(crate) fn after(bytes: usize) -> Frames {
        Frames {
            skip: bytes,
            head: [0; HEAD_LEN + CODE_LEN],
            seen: 0,
        }
    }

    /// Returns how many bytes of `head` the current frame needs.
    fn wanted(&self) -> usize {
        match self.head {
            // With any other length, RST_STREAM is an error that ends the connection.
            [0, 0, 4, RST_STREAM, ..] if self.seen >= HEAD_LEN => HEAD_LEN + CODE_LEN,
            _ => HEAD_LEN,
        }
    }

    /// Calls `each` for every frame header that these bytes complete.
    pub(crate) fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Head)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let more = (self.wanted() - self.seen).min(bytes.len());
            self.head[self.seen..self.seen + more].copy_from_slice(&bytes[..more]);
            self.seen += more;
            bytes = &bytes[more..];
            if self.seen == self.wanted() {
                let of_payload = self.seen - HEAD_LEN;
                self.seen = 0;
                let [l2, l1, l0, kind, flags, s3, s2, s1, s0, code @ ..] = self.head;
                let length = u32::from_be_bytes([0, l2, l1, l0]) as usize;
                self.skip = length - of_payload;
                let kind = match kind {
                    0 => Kind::Data,
                    1 => Kind::Headers,
                    RST_STREAM => Kind::Reset,
                    4 => Kind::Settings,
                    6 => Kind::Ping,
                    7 => Kind::GoAway,
                    9 => Kind::Continuation,
                    _ => Kind::Other,
                };
                // The highest bit is reserved.
                let stream = u32::from_be_bytes([s3, s2, s1, s0]) & (u32::MAX >> 1);
                let is_last = flags & FIRST_FLAG != 0;
                each(Head {
                    kind,
                    length,
                    stream,
                    is_last,
                    code: (of_payload == CODE_LEN).then(|| u32::from_be_bytes(code)),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_the_bytes_are_split() {
        let frames: [(u8, u32, usize); 9] = [
            (4, 0, 0),
            (1, 1, 300),
            (0, 1, 70_000),
            (3, 1, 4),
            (6, 0, 8),
            (7, 0, 20),
            (9, 1, 600),
            (200, 7, 1),
            // The length is wrong, so the error code is not read.
            (3, 1, 5),
        ];
        let mut bytes = vec![b'P'; PREFACE_LEN];
        for (kind, stream, length) in frames {
            let length = u32::try_from(length).unwrap().to_be_bytes();
            bytes.extend(&length[1..]);
            bytes.extend([kind, u8::from(stream == 0)]);
            // The reserved bit must be ignored.
            bytes.extend((stream | 1 << 31).to_be_bytes());
            bytes.extend(vec![1; u32::from_be_bytes(length) as usize]);
        }
        let kinds = [
            Kind::Settings,
            Kind::Headers,
            Kind::Data,
            Kind::Reset,
            Kind::Ping,
            Kind::GoAway,
            Kind::Continuation,
            Kind::Other,
            Kind::Reset,
        ];
        let expected: Vec<Head> = kinds
            .into_iter()
            .zip(frames)
            .map(|(kind, (_, stream, length))| Head {
                kind,
                length,
                stream,
                is_last: stream == 0,
                code: (kind == Kind::Reset && length == 4).then_some(0x0101_0101),
            })
            .collect();
        for cut in [1, 2, 8, 9, 10, 4096, bytes.len()] {
            let mut reader = Frames::after(PREFACE_LEN);
            let mut heads = Vec::new();
            for chunk in bytes.chunks(cut) {
                reader.read(chunk, |head| heads.push(head));
            }
            assert_eq!(heads, expected, "cut by {cut}");
        }
    }
}
