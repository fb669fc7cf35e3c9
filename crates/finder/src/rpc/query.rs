//! Requests, parsed once into what is searched for; behind this, nothing looks at them again.

use hashfinder_search::{
    Algorithm, Alphabet, Anchor, Cursor, DesiredName, Distance, Encoding, Keyspace, Query, Spelling,
};

use super::{
    pb::HashNameRequest,
    status::CallError,
    v1pb::{
        self, EstimateRequest, NamedAlphabet, SearchRequest, keyspace::Alphabet as WireAlphabet,
        search_request::From,
    },
};

/// The most bytes that all names of a query may have. They are in its cursor, and a request has to hold
/// that.
const NAME_BYTES: usize = 1024;

/// The most bytes that the prefix and the suffix may have, for the same reason.
const AROUND_BYTES: usize = 1024;

/// What `hash_name.HashFinder` is asked for.
pub(super) fn of_reference(
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

/// What Search is asked for: a search from its beginning, or from where another one was stopped.
pub(super) fn of_search(request: &SearchRequest) -> Result<Query, CallError> {
    match &request.from {
        Some(From::Query(query)) => of_query(query),
        Some(From::Cursor(text)) => {
            let cursor: Cursor = text.parse().map_err(|error| wrong("cursor", &error))?;
            let query = cursor.query();
            let names = query.names().iter().map(DesiredName::as_str);
            check_size("cursor", names, query.keyspace())?;
            Ok(query)
        }
        None => Err(CallError::wrong(
            "query",
            "there is neither a query nor a cursor; give one of them",
        )),
    }
}

/// What Estimate is asked about.
pub(super) fn of_estimate(request: &EstimateRequest) -> Result<Query, CallError> {
    let query = request.query.as_ref();
    of_query(query.ok_or_else(|| CallError::wrong("query", "there is no query; give one"))?)
}

/// Every field is looked at: one that was not understood would be a search for something else.
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
        let message = format!("there are {count} names; give 1 to {most}");
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
    check_size("query", texts, &keyspace)?;
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

/// Refuses what would make a cursor that does not fit into a request.
fn check_size<'a>(
    field: &str,
    names: impl Iterator<Item = &'a str>,
    keyspace: &Keyspace,
) -> Result<(), CallError> {
    let bytes: usize = names.map(str::len).sum();
    if bytes > NAME_BYTES {
        let message = format!("the names have {bytes} bytes; give at most {NAME_BYTES} in all");
        return Err(CallError::wrong(field, message));
    }
    let bytes = keyspace.prefix().len() + keyspace.suffix().len();
    if bytes > AROUND_BYTES {
        let message = format!(
            "the prefix and the suffix have {bytes} bytes; give at most {AROUND_BYTES} in all"
        );
        return Err(CallError::wrong(field, message));
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

/// A value of an enum, if it is one that this server knows.
fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, CallError> {
    let unknown = |_| {
        let message = format!("{field}: this server does not know the value {value}");
        CallError::wrong(field, message)
    };
    E::try_from(value).map_err(unknown)
}

fn wrong(field: &str, error: &impl std::error::Error) -> CallError {
    CallError::wrong(field, error.to_string())
}
