//! Parses requests into queries. Later code uses only the parsed query.

use hashfinder_proto::{
    hash_name::HashNameRequest,
    v1 as v1pb,
    v1::{
        EstimateRequest, NamedAlphabet, SearchRequest, StartSearchRequest,
        keyspace::Alphabet as WireAlphabet, search_request::From, start_search_request,
    },
};
use hashfinder_search::{
    Algorithm, Alphabet, Anchor, Cursor, DesiredName, Distance, Encoding, Keyspace, Query, Spelling,
};

use crate::errors::CallError;

/// Maximum length of all names of a query together, in bytes. The cursor contains the names, and
/// has to fit into a request and into the trailers of a status. Clients commonly accept 8 KiB of
/// trailers.
const NAME_BYTES: usize = 1024;

/// Maximum length of the prefix and the suffix together, in bytes, for the same reason.
const AROUND_BYTES: usize = 1024;

/// Returns the query of a request to `hash_name.HashFinder`.
pub(crate) fn of_reference(
    request: &HashNameRequest,
    interesting: bool,
) -> Result<Query, CallError> {
    let name = name_of("desired_name", &request.desired_name)?;
    let ideal = distance("ideal_hamming_distance", request.ideal_hamming_distance)?;
    let mut near = Distance::ZERO;
    // Find ignores the field, whatever it holds.
    if interesting {
        near = distance(
            "interesting_hamming_distance",
            request.interesting_hamming_distance,
        )?;
    }
    let query = Query::new(name, ideal).map_err(|error| wrong("desired_name", &error))?;
    Ok(query.interesting(near))
}

/// Returns the query of a Search: from its beginning, or from where another search was stopped.
pub(crate) fn of_search(request: &SearchRequest) -> Result<Query, CallError> {
    match &request.from {
        Some(From::Query(query)) => of_query(query),
        Some(From::Cursor(text)) => {
            let cursor: Cursor = text.parse().map_err(|error| wrong("cursor", &error))?;
            let query = cursor.query();
            let names = query.names().iter().map(DesiredName::as_str);
            check_size(["cursor", "cursor"], names, query.keyspace())?;
            Ok(query)
        }
        None => Err(CallError::wrong(
            "query",
            "the request has neither a query nor a cursor; give one of them",
        )),
    }
}

/// Returns the query of an operation: from its beginning, or from where a search was stopped.
pub(crate) fn of_start(request: &StartSearchRequest) -> Result<Query, CallError> {
    let from = request.from.clone().map(|from| match from {
        start_search_request::From::Query(query) => From::Query(query),
        start_search_request::From::Cursor(cursor) => From::Cursor(cursor),
    });
    of_search(&SearchRequest {
        from,
        ..SearchRequest::default()
    })
}

/// Returns a query as a message.
pub(crate) fn to_wire(query: &Query) -> v1pb::Query {
    let spelling = query.spelling();
    let algorithm = match spelling.algorithm {
        Algorithm::Sha1 => v1pb::Algorithm::Sha1,
        Algorithm::Sha256 => v1pb::Algorithm::Sha256,
        Algorithm::Sha512 => v1pb::Algorithm::Sha512,
        Algorithm::Blake3 => v1pb::Algorithm::Blake3,
    };
    let encoding = match spelling.encoding {
        Encoding::Base64 => v1pb::Encoding::Base64,
        Encoding::Base64Url => v1pb::Encoding::Base64url,
        Encoding::Hex => v1pb::Encoding::Hex,
        Encoding::Base32 => v1pb::Encoding::Base32,
    };
    let anchor = match spelling.anchor {
        Anchor::Anywhere => v1pb::Anchor::Anywhere,
        Anchor::Prefix => v1pb::Anchor::Prefix,
        Anchor::Suffix => v1pb::Anchor::Suffix,
    };
    let keyspace = query.keyspace();
    let alphabet = WireAlphabet::Given(keyspace.alphabet().as_bytes().to_vec());
    let keyspace = (*keyspace != Keyspace::default()).then(|| v1pb::Keyspace {
        prefix: keyspace.prefix().to_vec(),
        suffix: keyspace.suffix().to_vec(),
        alphabet: Some(alphabet),
    });
    let names = query.names().iter().map(DesiredName::as_str);
    v1pb::Query {
        desired_names: names.map(str::to_owned).collect(),
        ideal_distance: query.ideal_distance().get().into(),
        interesting_distance: query.interesting_distance().get().into(),
        algorithm: algorithm.into(),
        encoding: encoding.into(),
        anchor: anchor.into(),
        case_sensitive: spelling.case_sensitive,
        keyspace,
    }
}

/// Returns the query of an Estimate.
pub(crate) fn of_estimate(request: &EstimateRequest) -> Result<Query, CallError> {
    let query = request.query.as_ref();
    of_query(query.ok_or_else(|| CallError::wrong("query", "the request has no query"))?)
}

/// Converts a query. Every field is used: if one were ignored, the search would be for something
/// else.
fn of_query(query: &v1pb::Query) -> Result<Query, CallError> {
    let v1pb::Query {
        desired_names,
        ideal_distance,
        interesting_distance,
        algorithm,
        encoding,
        anchor,
        case_sensitive,
        keyspace,
    } = query;
    let spelling = Spelling {
        algorithm: match known("query.algorithm", *algorithm)? {
            v1pb::Algorithm::Unspecified | v1pb::Algorithm::Sha1 => Algorithm::Sha1,
            v1pb::Algorithm::Sha256 => Algorithm::Sha256,
            v1pb::Algorithm::Sha512 => Algorithm::Sha512,
            v1pb::Algorithm::Blake3 => Algorithm::Blake3,
        },
        encoding: match known("query.encoding", *encoding)? {
            v1pb::Encoding::Unspecified | v1pb::Encoding::Base64 => Encoding::Base64,
            v1pb::Encoding::Base64url => Encoding::Base64Url,
            v1pb::Encoding::Hex => Encoding::Hex,
            v1pb::Encoding::Base32 => Encoding::Base32,
        },
        anchor: match known("query.anchor", *anchor)? {
            v1pb::Anchor::Unspecified | v1pb::Anchor::Anywhere => Anchor::Anywhere,
            v1pb::Anchor::Prefix => Anchor::Prefix,
            v1pb::Anchor::Suffix => Anchor::Suffix,
        },
        case_sensitive: *case_sensitive,
    };
    if !(1..=Query::MAX_NAMES).contains(&desired_names.len()) {
        let (count, most) = (desired_names.len(), Query::MAX_NAMES);
        let message = format!("the query has {count} names; give 1 to {most}");
        return Err(CallError::wrong("query.desired_names", message));
    }
    let names = desired_names.iter().enumerate().map(|(number, text)| {
        let name = DesiredName::new(text, spelling);
        name.map_err(|error| wrong(&field_of(number), &error))
    });
    let names: Vec<DesiredName> = names.collect::<Result<_, _>>()?;
    let ideal = distance("query.ideal_distance", *ideal_distance)?;
    let interesting = distance("query.interesting_distance", *interesting_distance)?;
    let keyspace = match keyspace {
        Some(keyspace) => of_keyspace(keyspace)?,
        None => Keyspace::default(),
    };
    let texts = desired_names.iter().map(String::as_str);
    let fields = ["query.desired_names", "query.keyspace"];
    check_size(fields, texts, &keyspace)?;
    let query = Query::any(names, ideal);
    let query = query.map_err(|error| wrong(&field_of(error.number), &error))?;
    Ok(query.interesting(interesting).among(keyspace))
}

fn field_of(number: usize) -> String {
    format!("query.desired_names[{number}]")
}

fn of_keyspace(keyspace: &v1pb::Keyspace) -> Result<Keyspace, CallError> {
    let v1pb::Keyspace {
        prefix,
        suffix,
        alphabet,
    } = keyspace;
    let alphabet = match alphabet {
        None => Alphabet::bytes(),
        Some(WireAlphabet::Named(named)) => match known("query.keyspace.named", *named)? {
            NamedAlphabet::Unspecified | NamedAlphabet::Bytes => Alphabet::bytes(),
            NamedAlphabet::Printable => Alphabet::printable(),
            NamedAlphabet::Alphanumeric => Alphabet::alphanumeric(),
            NamedAlphabet::Digits => Alphabet::digits(),
        },
        Some(WireAlphabet::Given(bytes)) => {
            Alphabet::given(bytes).map_err(|error| wrong("query.keyspace.given", &error))?
        }
    };
    let keyspace = Keyspace::new(prefix, alphabet, suffix);
    keyspace.map_err(|error| wrong("query.keyspace", &error))
}

/// Rejects a query whose cursor would not fit into a request. The error names `names_field` or
/// `keyspace_field`.
fn check_size<'a>(
    [names_field, keyspace_field]: [&str; 2],
    names: impl Iterator<Item = &'a str>,
    keyspace: &Keyspace,
) -> Result<(), CallError> {
    let bytes: usize = names.map(str::len).sum();
    if bytes > NAME_BYTES {
        let message = format!("the names have {bytes} bytes; give at most {NAME_BYTES} in total");
        return Err(CallError::wrong(names_field, message));
    }
    let bytes = keyspace.prefix().len() + keyspace.suffix().len();
    if bytes > AROUND_BYTES {
        let message = format!(
            "the prefix and the suffix have {bytes} bytes; give at most {AROUND_BYTES} in total"
        );
        return Err(CallError::wrong(keyspace_field, message));
    }
    Ok(())
}

fn name_of(field: &str, text: &str) -> Result<DesiredName, CallError> {
    text.parse().map_err(|error| wrong(field, &error))
}

fn distance(field: &str, value: i32) -> Result<Distance, CallError> {
    let distance = Distance::try_from(i64::from(value));
    distance.map_err(|error| CallError::wrong(field, format!("{field}: {error}")))
}

/// Converts a number to a value of an enum. A number that this server does not know is an error.
fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, CallError> {
    let unknown = |_| {
        let message = format!("{field}: unknown value {value}");
        CallError::wrong(field, message)
    };
    E::try_from(value).map_err(unknown)
}

fn wrong(field: &str, error: &impl std::error::Error) -> CallError {
    CallError::wrong(field, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::protocol_check::MAX_MESSAGE_LEN;
    use prost::Message;

    fn doctor() -> v1pb::Query {
        v1pb::Query {
            desired_names: vec!["doctor".to_owned()],
            ideal_distance: 1,
            interesting_distance: 3,
            ..v1pb::Query::default()
        }
    }

    #[test]
    fn the_longest_cursor_fits_into_a_request() {
        // The maximum number of names with the maximum number of bytes, and an alphabet that the
        // cursor has to list completely.
        let name = "\u{1f980}".repeat(NAME_BYTES / Query::MAX_NAMES / 4);
        let alphabet: Vec<u8> = (0..=u8::MAX).rev().collect();
        let query = v1pb::Query {
            desired_names: vec![name; Query::MAX_NAMES],
            ideal_distance: 255,
            interesting_distance: 255,
            algorithm: v1pb::Algorithm::Sha512.into(),
            encoding: v1pb::Encoding::Hex.into(),
            anchor: v1pb::Anchor::Suffix.into(),
            case_sensitive: true,
            keyspace: Some(v1pb::Keyspace {
                prefix: vec![b'p'; AROUND_BYTES / 2],
                suffix: vec![b's'; AROUND_BYTES / 2],
                alphabet: Some(WireAlphabet::Given(alphabet)),
            }),
        };
        let query = of_query(&query).unwrap();
        let cursor = Cursor::new(&query, query.keyspace().end());
        let duration = prost_types::Duration {
            seconds: i64::MIN,
            nanos: i32::MIN,
        };
        let request = SearchRequest {
            from: Some(From::Cursor(cursor.to_string())),
            maximum_hashes: u64::MAX,
            progress_interval: Some(duration),
        };
        assert!(request.encoded_len() <= MAX_MESSAGE_LEN as usize);
        assert_eq!(
            of_search(&request),
            Ok(query.starting_at(cursor.frontier()))
        );
    }

    fn among(alphabet: WireAlphabet) -> Option<v1pb::Keyspace> {
        Some(v1pb::Keyspace {
            alphabet: Some(alphabet),
            ..v1pb::Keyspace::default()
        })
    }

    #[test]
    fn omitted_fields_have_their_defaults() {
        let name: DesiredName = "doctor".parse().unwrap();
        let expected = Query::new(name, Distance::from(1)).unwrap();
        let expected = expected.interesting(Distance::from(3));
        assert_eq!(of_query(&doctor()), Ok(expected.clone()));
        let spelled = v1pb::Query {
            algorithm: v1pb::Algorithm::Sha1.into(),
            encoding: v1pb::Encoding::Base64.into(),
            anchor: v1pb::Anchor::Anywhere.into(),
            keyspace: among(WireAlphabet::Named(NamedAlphabet::Bytes.into())),
            ..doctor()
        };
        assert_eq!(of_query(&spelled), Ok(expected));
    }

    #[test]
    fn every_field_changes_the_query() {
        type Change = fn(&mut v1pb::Query);
        let changes: [Change; 10] = [
            |q| q.desired_names.push("doc".to_owned()),
            |q| q.ideal_distance += 1,
            |q| q.interesting_distance += 1,
            |q| q.algorithm = v1pb::Algorithm::Blake3.into(),
            |q| q.encoding = v1pb::Encoding::Base64url.into(),
            |q| q.anchor = v1pb::Anchor::Suffix.into(),
            |q| q.case_sensitive = true,
            |q| q.keyspace = among(WireAlphabet::Given(b"ab".to_vec())),
            |q| {
                q.keyspace = Some(v1pb::Keyspace {
                    prefix: b"a".to_vec(),
                    ..v1pb::Keyspace::default()
                });
            },
            |q| {
                q.keyspace = Some(v1pb::Keyspace {
                    suffix: b"a".to_vec(),
                    ..v1pb::Keyspace::default()
                });
            },
        ];
        let mut queries = vec![of_query(&doctor()).unwrap()];
        for change in changes {
            let mut query = doctor();
            change(&mut query);
            queries.push(of_query(&query).unwrap());
        }
        for (number, query) in queries.iter().enumerate() {
            assert!(!queries[..number].contains(query), "the change {number}");
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Change = fn(&mut v1pb::Query);
        let changes: [(&str, Change); 17] = [
            ("query.desired_names", |q| q.desired_names.clear()),
            ("query.desired_names", |q| {
                q.desired_names = vec!["doc".to_owned(); Query::MAX_NAMES + 1];
            }),
            ("query.desired_names[0]", |q| q.desired_names[0].clear()),
            ("query.desired_names[1]", |q| {
                q.desired_names.push("a".repeat(29));
            }),
            ("query.desired_names[1]", |q| {
                q.desired_names.push("=-=-".to_owned());
            }),
            ("query.ideal_distance", |q| q.ideal_distance = -1),
            ("query.interesting_distance", |q| {
                q.interesting_distance = i32::MIN;
            }),
            ("query.algorithm", |q| q.algorithm = 99),
            ("query.encoding", |q| q.encoding = -1),
            ("query.anchor", |q| q.anchor = i32::MAX),
            ("query.keyspace.named", |q| {
                q.keyspace = among(WireAlphabet::Named(-1));
            }),
            ("query.keyspace.given", |q| {
                q.keyspace = among(WireAlphabet::Given(Vec::new()));
            }),
            ("query.keyspace.given", |q| {
                q.keyspace = among(WireAlphabet::Given(b"aba".to_vec()));
            }),
            ("query.keyspace.given", |q| {
                q.keyspace = among(WireAlphabet::Given(vec![0; 257]));
            }),
            ("query.keyspace", |q| {
                q.keyspace = Some(v1pb::Keyspace {
                    suffix: vec![0; AROUND_BYTES + 1],
                    ..v1pb::Keyspace::default()
                });
            }),
            ("query.keyspace", |q| {
                q.keyspace = Some(v1pb::Keyspace {
                    prefix: vec![0; AROUND_BYTES],
                    suffix: vec![0],
                    ..v1pb::Keyspace::default()
                });
            }),
            ("query.desired_names", |q| {
                q.ideal_distance = 28;
                q.desired_names = vec!["\u{1f980}".repeat(28); 10];
            }),
        ];
        for (expected, change) in changes {
            let mut query = doctor();
            change(&mut query);
            match of_query(&query) {
                Err(CallError::BadRequest { field, message }) => {
                    assert_eq!(field, expected);
                    assert!(!message.is_empty());
                }
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
