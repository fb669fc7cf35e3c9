//! The arguments for queries.

use std::{fmt, path::PathBuf};

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use hashfinder_search::{
    Algorithm, Alphabet, Anchor, DesiredName, Distance, Encoding, Impossible, Keyspace, Query,
    Spelling,
};
use hashfinder_system::files;

use super::values::distance;

/// Start of the value of `--alphabet` if it lists the characters.
const GIVEN: &str = "of:";

/// Maximum length of the file of `--secret-prefix-file`, in bytes.
const LONGEST_PREFIX: u64 = Keyspace::MAX_PREFIX as u64;

#[derive(Args, Clone, Debug)]
pub(crate) struct QueryArguments {
    /// Word that the hash must contain; if several are given, one is enough
    ///
    /// A name has at most as many characters as the hash: 28 for SHA-1 in base64. Up to 64 names
    /// can be given.
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,

    /// Maximum distance from NAME: the number of characters that may differ
    #[arg(
        long,
        display_order = 0,
        value_name = "D",
        default_value = "0",
        value_parser = distance,
        allow_negative_numbers = true
    )]
    pub(crate) ideal_distance: Distance,

    #[command(flatten)]
    pub(crate) spelling: SpellingArguments,

    #[command(flatten)]
    pub(crate) keyspace: KeyspaceArguments,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Hashing and matching")]
pub(crate) struct SpellingArguments {
    /// Hash function
    #[arg(long, default_value_t, value_parser = one_of(Algorithm::ALL))]
    pub(crate) algorithm: Algorithm,

    /// Encoding of the hash as text
    #[arg(long, default_value_t, value_parser = one_of(Encoding::ALL))]
    pub(crate) encoding: Encoding,

    /// Where NAME must be in the hash
    #[arg(long, value_name = "WHERE", default_value_t, value_parser = one_of(Anchor::ALL))]
    pub(crate) anchor: Anchor,

    /// Match case exactly [default: case is ignored]
    #[arg(long)]
    pub(crate) case_sensitive: bool,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Secrets to try")]
pub(crate) struct KeyspaceArguments {
    /// Text at the beginning of each secret
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) secret_prefix: String,

    /// Like --secret-prefix, but read from a file of at most 64 KiB
    #[arg(long, value_name = "PATH", conflicts_with = "secret_prefix")]
    pub(crate) secret_prefix_file: Option<PathBuf>,

    /// Text at the end of each secret
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) secret_suffix: String,

    /// Characters to try: bytes, printable, alphanumeric, digits or of:CHARACTERS
    ///
    /// A secret is the prefix, some of these characters, and the suffix. For example, of:01 tries
    /// the characters 0 and 1. Shorter secrets are tried first; those of equal length follow the
    /// order in which the characters are listed.
    #[arg(long, default_value = "bytes", value_parser = alphabet)]
    pub(crate) alphabet: Alphabet,
}

/// Why no query can be made from the arguments.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// An argument is wrong, or the prefix cannot be read from its file.
    #[error("{0}")]
    Wrong(String),
    /// No secret can ever match.
    #[error(transparent)]
    Impossible(#[from] Impossible),
}

impl QueryArguments {
    /// Returns the query, which begins at the first secret.
    pub(crate) fn query(&self) -> Result<Query, QueryError> {
        if self.names.len() > Query::MAX_NAMES {
            return Err(QueryError::Wrong(format!(
                "too many names: {}; give at most {}",
                self.names.len(),
                Query::MAX_NAMES
            )));
        }
        let spelling = self.spelling.spelling();
        let names = self.names.iter();
        let names = names.map(|name| DesiredName::new(name, spelling).map_err(wrong));
        let names: Vec<DesiredName> = names.collect::<Result<_, _>>()?;
        let keyspace = self.keyspace.keyspace()?;
        Ok(Query::any(names, self.ideal_distance)?.among(keyspace))
    }
}

impl SpellingArguments {
    pub(crate) fn spelling(&self) -> Spelling {
        Spelling {
            algorithm: self.algorithm,
            encoding: self.encoding,
            anchor: self.anchor,
            case_sensitive: self.case_sensitive,
        }
    }
}

impl KeyspaceArguments {
    fn keyspace(&self) -> Result<Keyspace, QueryError> {
        let prefix = match &self.secret_prefix_file {
            None => self.secret_prefix.clone().into_bytes(),
            Some(path) => files::read_any_kind(path, LONGEST_PREFIX).map_err(|error| {
                let path = path.display();
                QueryError::Wrong(format!("cannot read the prefix from {path}: {error}"))
            })?,
        };
        let suffix = self.secret_suffix.as_bytes();
        Keyspace::new(&prefix, self.alphabet.clone(), suffix).map_err(wrong)
    }
}

fn wrong(error: impl fmt::Display) -> QueryError {
    QueryError::Wrong(error.to_string())
}

/// Returns a parser that accepts the names of these values.
fn one_of<T, const N: usize>(all: [T; N]) -> impl TypedValueParser<Value = T>
where
    T: Copy + fmt::Display + Send + Sync + 'static,
{
    let names = all.map(|one| one.to_string());
    PossibleValuesParser::new(names).try_map(move |name| {
        let one = all.iter().find(|one| one.to_string() == name);
        one.copied().ok_or("unknown value")
    })
}

fn alphabet(text: &str) -> Result<Alphabet, String> {
    match text {
        "bytes" => Ok(Alphabet::bytes()),
        "printable" => Ok(Alphabet::printable()),
        "alphanumeric" => Ok(Alphabet::alphanumeric()),
        "digits" => Ok(Alphabet::digits()),
        _ => match text.strip_prefix(GIVEN) {
            Some(given) => Alphabet::given(given.as_bytes()).map_err(|error| error.to_string()),
            None => Err(format!(
                "expected bytes, printable, alphanumeric, digits, or {GIVEN} and the characters, such \
                 as {GIVEN}01"
            )),
        },
    }
}
