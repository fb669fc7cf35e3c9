//! HTTP/2 frames of a client: valid, nearly valid and invalid ones.

use arbitrary::Arbitrary;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

#[derive(Arbitrary, Debug)]
pub enum Frame<'a> {
    /// A call as a gRPC client makes it, on a new stream.
    Call {
        path: Path<'a>,
        extra: Option<Field<'a>>,
        message: Message<'a>,
        goes_on: bool,
    },
    Headers {
        stream: Stream,
        flags: u8,
        block: Vec<Field<'a>>,
    },
    Continuation {
        stream: Stream,
        flags: u8,
        block: Vec<Field<'a>>,
    },
    Data {
        stream: Stream,
        flags: u8,
        message: Message<'a>,
    },
    Reset {
        stream: Stream,
        code: u8,
    },
    WindowUpdate {
        stream: Stream,
        increment: u32,
    },
    Settings {
        is_ack: bool,
        values: Vec<(u8, u32)>,
    },
    Ping {
        is_ack: bool,
        data: [u8; 8],
    },
    Priority {
        stream: Stream,
        depends_on: Stream,
        weight: u8,
    },
    Goaway {
        last: Stream,
        code: u8,
    },
    Any {
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &'a [u8],
    },
    Bytes(&'a [u8]),
}

/// A stream: mostly one of the first 16, so that several frames use the same one.
#[derive(Arbitrary, Debug)]
pub struct Stream(u8);

impl Stream {
    fn id(&self) -> u32 {
        let number = u32::from(self.0 % 16);
        match self.0 {
            0..=0xbf => 2 * number + 1,
            0xc0..=0xdf => 0,
            0xe0..=0xef => 2 * number + 2,
            0xf0..=0xff => (1 << 31) - 1 - number,
        }
    }
}

#[derive(Arbitrary, Debug)]
pub enum Path<'a> {
    Find,
    FindRange,
    Search,
    Estimate,
    ListSearches,
    WatchSearches,
    CancelSearch,
    HealthCheck,
    HealthWatch,
    Reflection,
    OldReflection,
    Given(&'a [u8]),
}

impl Path<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Path::Find => b"/hash_name.HashFinder/Find",
            Path::FindRange => b"/hash_name.HashFinder/FindRange",
            Path::Search => b"/hashfinder.v1.Finder/Search",
            Path::Estimate => b"/hashfinder.v1.Finder/Estimate",
            Path::ListSearches => b"/hashfinder.v1.Finder/ListSearches",
            Path::WatchSearches => b"/hashfinder.v1.Finder/WatchSearches",
            Path::CancelSearch => b"/hashfinder.v1.Finder/CancelSearch",
            Path::HealthCheck => b"/grpc.health.v1.Health/Check",
            Path::HealthWatch => b"/grpc.health.v1.Health/Watch",
            Path::Reflection => b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            Path::OldReflection => {
                b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            }
            Path::Given(path) => path,
        }
    }
}

#[derive(Arbitrary, Debug)]
pub enum Field<'a> {
    /// An entry of the static or the dynamic table.
    Indexed(u8),
    Path(Path<'a>),
    Method(&'a [u8]),
    Authority(&'a [u8]),
    ContentType(&'a [u8]),
    Grpc,
    Timeout(&'a [u8]),
    /// A timeout with a valid unit: the number, and which unit.
    TimeoutOf(u16, u8),
    Encoding(&'a [u8]),
    Authorization(&'a [u8]),
    Bearer(&'a [u8]),
    TraceParent(&'a [u8]),
    Length(u32),
    Given(&'a [u8], &'a [u8]),
    /// A field that is added to the dynamic table.
    Kept(&'a [u8], &'a [u8]),
    /// Arbitrary bytes of a header block, for everything else in HPACK: Huffman codes, table sizes,
    /// integers that never end.
    Block(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
pub enum Message<'a> {
    None,
    /// A request of the reference contract.
    HashName {
        name: Name<'a>,
        ideal: i32,
        interesting: i32,
    },
    Search {
        names: Vec<Name<'a>>,
        ideal: u8,
        interesting: u8,
        spelling: [u8; 4],
        prefix: Option<&'a [u8]>,
        alphabet: Option<&'a [u8]>,
        maximum_hashes: u64,
    },
    GoOn(&'a [u8]),
    Estimate(Name<'a>, u8),
    List {
        page_size: i32,
        token: &'a [u8],
        state: u8,
        client: &'a [u8],
    },
    Watch {
        state: u8,
        client: &'a [u8],
        interval: i16,
    },
    Cancel {
        id: &'a [u8],
        reason: &'a [u8],
    },
    /// A message with one text field, as for the health service and many other services.
    Text(&'a [u8]),
    /// A gRPC message with arbitrary content.
    Given(&'a [u8]),
    /// A gRPC message with an arbitrary compression flag and length.
    Claimed {
        compressed: u8,
        length: u32,
        bytes: &'a [u8],
    },
    Two(&'a [u8], &'a [u8]),
    /// Bytes that are not framed as a gRPC message.
    Bytes(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
pub enum Name<'a> {
    /// A name that a search finds among the first secrets.
    Easy,
    /// A name for which a search usually spends its whole hash budget.
    Hard,
    Given(&'a [u8]),
}

impl Name<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Name::Easy => b"a",
            Name::Hard => b"doctor",
            Name::Given(name) => name,
        }
    }
}

impl Message<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut to = Fields::default();
        match self {
            Message::None => return Vec::new(),
            Message::Bytes(bytes) => return bytes.to_vec(),
            Message::Claimed {
                compressed,
                length,
                bytes,
            } => {
                let length = length.to_be_bytes();
                return [&[*compressed], &length[..], bytes].concat();
            }
            Message::Two(one, other) => return [prefixed(one), prefixed(other)].concat(),
            Message::Given(bytes) => return prefixed(bytes),
            Message::HashName {
                name,
                ideal,
                interesting,
            } => {
                to.bytes(1, name.bytes());
                to.number(2, i64::from(*ideal) as u64);
                to.number(3, i64::from(*interesting) as u64);
            }
            Message::Search {
                names,
                ideal,
                interesting,
                spelling: [algorithm, encoding, anchor, case],
                prefix,
                alphabet,
                maximum_hashes,
            } => {
                let mut query = Fields::default();
                for name in names {
                    query.bytes(1, name.bytes());
                }
                query.number(2, (*ideal).into());
                query.number(3, (*interesting).into());
                query.number(4, u64::from(algorithm % 6));
                query.number(5, u64::from(encoding % 6));
                query.number(6, u64::from(anchor % 5));
                query.number(7, u64::from(case % 2));
                let mut keyspace = Fields::default();
                if let Some(prefix) = prefix {
                    keyspace.bytes(1, prefix);
                }
                if let Some(alphabet) = alphabet {
                    keyspace.bytes(4, alphabet);
                }
                query.bytes(8, &keyspace.0);
                to.bytes(1, &query.0);
                to.number(3, *maximum_hashes);
            }
            Message::GoOn(cursor) => to.bytes(2, cursor),
            Message::Estimate(name, ideal) => {
                let mut query = Fields::default();
                query.bytes(1, name.bytes());
                query.number(2, (*ideal).into());
                to.bytes(1, &query.0);
            }
            Message::List {
                page_size,
                token,
                state,
                client,
            } => {
                to.number(1, i64::from(*page_size) as u64);
                to.bytes(2, token);
                to.number(3, u64::from(state % 6));
                to.bytes(4, client);
            }
            Message::Watch {
                state,
                client,
                interval,
            } => {
                to.number(1, u64::from(state % 6));
                to.bytes(2, client);
                let mut duration = Fields::default();
                duration.number(1, i64::from(*interval) as u64);
                to.bytes(3, &duration.0);
            }
            Message::Cancel { id, reason } => {
                to.bytes(1, id);
                to.bytes(2, reason);
            }
            Message::Text(text) => to.bytes(1, text),
        }
        prefixed(&to.0)
    }
}

/// Returns a message with its gRPC prefix.
fn prefixed(message: &[u8]) -> Vec<u8> {
    let length = message.len() as u32;
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// Encodes the fields of a protobuf message.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.varint(field << 3);
        self.varint(number);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// Writes frames as bytes.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    streams: u32,
}

impl Writer {
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    pub fn preface(&mut self) {
        self.bytes.extend(PREFACE);
        self.write(SETTINGS, 0, 0, &[]);
    }

    pub fn frame(&mut self, frame: &Frame<'_>) {
        match frame {
            Frame::Call {
                path,
                extra,
                message,
                goes_on,
            } => {
                let stream = 2 * self.streams + 1;
                self.streams += 1;
                let mut block = vec![0x83, 0x86];
                field(&mut block, b":path", path.bytes());
                field(&mut block, b":authority", b"localhost");
                field(&mut block, b"content-type", b"application/grpc");
                field(&mut block, b"te", b"trailers");
                if let Some(extra) = extra {
                    extra.write(&mut block);
                }
                self.write(HEADERS, END_HEADERS, stream, &block);
                let end = if *goes_on { 0 } else { END_STREAM };
                self.write(DATA, end, stream, &message.bytes());
            }
            Frame::Headers {
                stream,
                flags,
                block,
            } => self.write(HEADERS, *flags, stream.id(), &bytes(block)),
            Frame::Continuation {
                stream,
                flags,
                block,
            } => self.write(CONTINUATION, *flags, stream.id(), &bytes(block)),
            Frame::Data {
                stream,
                flags,
                message,
            } => self.write(DATA, *flags, stream.id(), &message.bytes()),
            Frame::Reset { stream, code } => {
                let code = u32::from(*code).to_be_bytes();
                self.write(RST_STREAM, 0, stream.id(), &code);
            }
            Frame::WindowUpdate { stream, increment } => {
                self.write(WINDOW_UPDATE, 0, stream.id(), &increment.to_be_bytes());
            }
            Frame::Settings { is_ack, values } => {
                let mut payload = Vec::new();
                for (id, value) in values {
                    payload.extend([0, *id]);
                    payload.extend(value.to_be_bytes());
                }
                self.write(SETTINGS, if *is_ack { ACK } else { 0 }, 0, &payload);
            }
            Frame::Ping { is_ack, data } => {
                self.write(PING, if *is_ack { ACK } else { 0 }, 0, data);
            }
            Frame::Priority {
                stream,
                depends_on,
                weight,
            } => {
                let depends_on = depends_on.id().to_be_bytes();
                let payload = [&depends_on[..], &[*weight]].concat();
                self.write(PRIORITY, 0, stream.id(), &payload);
            }
            Frame::Goaway { last, code } => {
                let (last, code) = (last.id().to_be_bytes(), u32::from(*code).to_be_bytes());
                self.write(GOAWAY, 0, 0, &[last, code].concat());
            }
            Frame::Any {
                kind,
                flags,
                stream,
                payload,
            } => self.write(*kind, *flags, *stream, payload),
            Frame::Bytes(bytes) => self.bytes.extend(*bytes),
        }
    }

    fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        self.bytes.extend(&length[1..]);
        self.bytes.extend([kind, flags]);
        self.bytes.extend(stream.to_be_bytes());
        self.bytes.extend(payload);
    }
}

fn bytes(block: &[Field<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in block {
        field.write(&mut bytes);
    }
    bytes
}

impl Field<'_> {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Field::Indexed(index) => to.push(0x80 | index),
            Field::Path(path) => field(to, b":path", path.bytes()),
            Field::Method(method) => field(to, b":method", method),
            Field::Authority(authority) => field(to, b":authority", authority),
            Field::ContentType(kind) => field(to, b"content-type", kind),
            Field::Grpc => field(to, b"content-type", b"application/grpc"),
            Field::Timeout(time) => field(to, b"grpc-timeout", time),
            Field::TimeoutOf(count, unit) => {
                let unit = char::from(b"numSMH"[usize::from(unit % 6)]);
                field(to, b"grpc-timeout", format!("{count}{unit}").as_bytes());
            }
            Field::Encoding(encoding) => field(to, b"grpc-encoding", encoding),
            Field::Authorization(credential) => field(to, b"authorization", credential),
            Field::Bearer(token) => {
                field(to, b"authorization", &[b"Bearer ", *token].concat());
            }
            Field::TraceParent(parent) => field(to, b"traceparent", parent),
            Field::Length(length) => {
                field(to, b"content-length", length.to_string().as_bytes());
            }
            Field::Given(name, value) => field(to, name, value),
            Field::Kept(name, value) => {
                to.push(0x40);
                text(to, name);
                text(to, value);
            }
            Field::Block(bytes) => to.extend(*bytes),
        }
    }
}

/// Writes a field that is not added to the dynamic table (HPACK, "Literal Header Field without
/// Indexing").
fn field(to: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    to.push(0);
    text(to, name);
    text(to, value);
}

/// Writes the length of a text, and then the text without Huffman coding (HPACK, "String Literal
/// Representation").
fn text(to: &mut Vec<u8>, text: &[u8]) {
    match u8::try_from(text.len()) {
        Ok(length @ 0..0x7f) => to.push(length),
        _ => {
            to.push(0x7f);
            let mut rest = text.len() - 0x7f;
            while rest >= 0x80 {
                to.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            to.push(rest as u8);
        }
    }
    to.extend(text);
}
