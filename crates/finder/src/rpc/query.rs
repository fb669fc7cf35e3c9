//! Requests, parsed once into what is searched for; behind this, nothing looks at them again.

use hashfinder_search::{Cursor, DesiredName, Distance, Query};

use super::{
    pb::HashNameRequest,
    status::CallError,
    v1pb::{
        self, Algorithm, Anchor, EstimateRequest, Keyspace, NamedAlphabet, SearchRequest,
        keyspace::Alphabet, search_request::From,
    },
};

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
            Ok(cursor.query())
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
    let name = match &desired_names[..] {
        [name] => name_of("query.desired_names[0]", name)?,
        [] => {
            let message = "there is no name; give one";
            return Err(CallError::wrong("query.desired_names", message));
        }
        [_, ..] => {
            let message = "this server looks for one name at a time; give one";
            return Err(CallError::wrong("query.desired_names", message));
        }
    };
    let ideal = distance("query.ideal_distance", *ideal_distance)?;
    let interesting = distance("query.interesting_distance", *interesting_distance)?;
    match known("query.algorithm", *algorithm)? {
        Algorithm::Unspecified | Algorithm::Sha1 => {}
        _ => return unsupported("query.algorithm", "hashes with SHA-1 alone"),
    }
    match known("query.encoding", *encoding)? {
        v1pb::Encoding::Unspecified | v1pb::Encoding::Base64 => {}
        _ => return unsupported("query.encoding", "writes digests in base64 alone"),
    }
    match known("query.anchor", *anchor)? {
        Anchor::Unspecified | Anchor::Anywhere => {}
        _ => return unsupported("query.anchor", "looks for names anywhere"),
    }
    if *case_sensitive {
        return unsupported("query.case_sensitive", "compares without regard to case");
    }
    if let Some(keyspace) = keyspace {
        check_keyspace(keyspace)?;
    }
    let query = Query::new(name, ideal);
    let query = query.map_err(|error| wrong("query.desired_names[0]", &error))?;
    Ok(query.interesting(interesting))
}

fn check_keyspace(keyspace: &Keyspace) -> Result<(), CallError> {
    let Keyspace {
        prefix,
        suffix,
        alphabet,
    } = keyspace;
    let all = "tries all byte strings";
    for (field, fixed) in [
        ("query.keyspace.prefix", prefix),
        ("query.keyspace.suffix", suffix),
    ] {
        if !fixed.is_empty() {
            return unsupported(field, all);
        }
    }
    match alphabet {
        None => Ok(()),
        Some(Alphabet::Named(named)) => match known("query.keyspace.named", *named)? {
            NamedAlphabet::Unspecified | NamedAlphabet::Bytes => Ok(()),
            _ => unsupported("query.keyspace.named", all),
        },
        Some(Alphabet::Given(_)) => unsupported("query.keyspace.given", all),
    }
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

fn unsupported<T>(field: &str, what_it_does: &str) -> Result<T, CallError> {
    let message = format!("{field}: this server {what_it_does}; leave the field out");
    Err(CallError::wrong(field, message))
}

fn wrong(field: &str, error: &impl std::error::Error) -> CallError {
    CallError::wrong(field, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doctor() -> v1pb::Query {
        v1pb::Query {
            desired_names: vec!["doctor".to_owned()],
            ideal_distance: 1,
            interesting_distance: 3,
            ..v1pb::Query::default()
        }
    }

    fn keyspace(change: impl FnOnce(&mut Keyspace)) -> Option<Keyspace> {
        let mut keyspace = Keyspace::default();
        change(&mut keyspace);
        Some(keyspace)
    }

    #[test]
    fn what_is_left_out_and_what_is_spelled_out_is_the_same() {
        let name: DesiredName = "doctor".parse().unwrap();
        let expected = Query::new(name, Distance::from(1)).unwrap();
        let expected = expected.interesting(Distance::from(3));
        assert_eq!(of_query(&doctor()), Ok(expected.clone()));
        let spelled = v1pb::Query {
            algorithm: Algorithm::Sha1.into(),
            encoding: v1pb::Encoding::Base64.into(),
            anchor: Anchor::Anywhere.into(),
            keyspace: keyspace(|k| k.alphabet = Some(Alphabet::Named(NamedAlphabet::Bytes.into()))),
            ..doctor()
        };
        assert_eq!(of_query(&spelled), Ok(expected));
    }

    #[test]
    fn each_wrong_field_is_named() {
        type Change = fn(&mut v1pb::Query);
        let changes: [(&str, Change); 17] = [
            ("query.desired_names", |q| q.desired_names.clear()),
            ("query.desired_names[0]", |q| q.desired_names[0].clear()),
            ("query.desired_names[0]", |q| {
                q.desired_names[0] = "a".repeat(29);
            }),
            ("query.desired_names[0]", |q| {
                q.desired_names[0] = "=-=-".to_owned();
            }),
            ("query.desired_names", |q| {
                q.desired_names.push("doc".to_owned());
            }),
            ("query.ideal_distance", |q| q.ideal_distance = -1),
            ("query.interesting_distance", |q| {
                q.interesting_distance = i32::MIN;
            }),
            ("query.algorithm", |q| {
                q.algorithm = Algorithm::Blake3.into();
            }),
            ("query.algorithm", |q| q.algorithm = 99),
            ("query.encoding", |q| {
                q.encoding = v1pb::Encoding::Hex.into();
            }),
            ("query.anchor", |q| q.anchor = Anchor::Suffix.into()),
            ("query.case_sensitive", |q| q.case_sensitive = true),
            ("query.keyspace.prefix", |q| {
                q.keyspace = keyspace(|k| k.prefix = vec![0]);
            }),
            ("query.keyspace.suffix", |q| {
                q.keyspace = keyspace(|k| k.suffix = vec![0]);
            }),
            ("query.keyspace.named", |q| {
                let digits = NamedAlphabet::Digits.into();
                q.keyspace = keyspace(|k| k.alphabet = Some(Alphabet::Named(digits)));
            }),
            ("query.keyspace.named", |q| {
                q.keyspace = keyspace(|k| k.alphabet = Some(Alphabet::Named(-1)));
            }),
            ("query.keyspace.given", |q| {
                q.keyspace = keyspace(|k| k.alphabet = Some(Alphabet::Given(vec![1, 2])));
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
