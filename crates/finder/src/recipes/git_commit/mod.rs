//! `hashfinder git-commit`: a nonce in a commit's message that makes its ID begin as one likes.

mod commit;
mod repository;

use std::{num::NonZeroU64, path::PathBuf};

use anyhow::Result;
use clap::Args;
use hashfinder_search::{
    Alphabet, Anchor, DesiredName, Distance, Index, Keyspace, KeyspaceError, Odds, Query, Spelling,
};

use self::{
    commit::{Commit, header},
    repository::Repository,
};
use super::SearchArguments;
use crate::{
    cli::{Exit, print, quoted, say},
    find,
};

/// Nonces are so long that with this chance one of the first length that is tried will do.
const NEARLY_SURE: f64 = 1.0 - 1e-9;

/// What stands after it.
const END_OF_LINE: &[u8] = b"\n";

/// The longest ID, in digits: a SHA-256.
const LONGEST_ID: usize = 64;

/// Find a nonce for HEAD's commit, with which its ID begins as you like.
///
/// The nonce becomes the last line of the commit's message, `Nonce: ...`, in place of one from an earlier
/// run; the tree, the parents, the author and all dates stay as they are. The new ID is printed. With
/// --write the commit becomes HEAD, as `git commit --amend` would make it; the index and the work tree are
/// not touched.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder git-commit c0ffee
  hashfinder git-commit c0ffee --write
  hashfinder git-commit 0000000 --repository ../other --maximum-time 5m

Each digit more takes 16 times as long. The same commit and prefix always give the same nonce.

Exit codes:
    0  found and, with --write, written
    1  every nonce was tried in vain
    2  the command line is wrong, or the commit is signed
    3  the time is up; go on with --from
    5  git failed, or the output
  130  stopped by ctrl-C (143: by SIGTERM); go on with --from")]
pub(crate) struct GitCommitArguments {
    /// What the commit's ID is to begin with: hexadecimal digits, 40 at most (64 if it is a SHA-256)
    #[arg(value_name = "PREFIX", value_parser = prefix)]
    prefix: String,

    /// Where the repository is [default: the one around the current folder]
    #[arg(long, value_name = "PATH")]
    repository: Option<PathBuf>,

    /// Make the commit that is found HEAD, and move its branch there
    ///
    /// If somebody has moved it meanwhile, nothing happens but an error.
    #[arg(long)]
    write: bool,

    /// Leave out the commit's signature, which would not be valid any more
    #[arg(long)]
    drop_signature: bool,

    /// Begin with this nonce, where a search was stopped
    #[arg(long, value_name = "NONCE")]
    from: Option<String>,

    #[command(flatten)]
    search: SearchArguments,
}

fn prefix(text: &str) -> Result<String, String> {
    let wrong = text
        .chars()
        .enumerate()
        .find(|(_, c)| !c.is_ascii_hexdigit());
    match (wrong, text.len()) {
        (Some((place, character)), _) => Err(format!(
            "its character {}, {character:?}, is no hexadecimal digit; give 0 to 9 and a to f",
            place + 1
        )),
        (None, 1..=LONGEST_ID) => Ok(text.to_lowercase()),
        (None, length) => Err(format!("it has {length} digits; give 1 to 40")),
    }
}

/// Runs the command. Dropping the future cancels the search, and leaves the repository as it was.
pub(crate) async fn run(arguments: &GitCommitArguments) -> Result<Exit> {
    let repository = Repository {
        path: arguments.repository.as_deref(),
    };
    let head = repository.head()?;
    let mut commit = Commit::parse(&head.commit);
    if commit.is_signed() {
        if !arguments.drop_signature {
            say(
                "the commit is signed, and the signature would not be valid for another message; \
                 leave it out with --drop-signature",
            );
            return Ok(Exit::Usage);
        }
        commit.drop_signature();
    }
    let spelling = Spelling {
        anchor: Anchor::Prefix,
        ..head.spelling
    };
    let queries = DesiredName::new(&arguments.prefix, spelling)
        .map_err(|_| {
            let (digits, most) = (arguments.prefix.len(), spelling.text_len());
            format!("the prefix has {digits} digits; an ID here has only {most}")
        })
        .and_then(|prefix| queries(&commit.before_nonce(), &prefix, arguments.from.as_deref()));
    let queries = match queries {
        Ok(queries) => queries,
        Err(wrong) => {
            say(wrong);
            return Ok(Exit::Usage);
        }
    };
    let go_on = |index| {
        let from = nonces().secret(index);
        format!("go on with: {}", arguments.command(&from, arguments.write))
    };
    let found = match find::first(queries, &arguments.search, go_on).await? {
        Ok(found) => found,
        Err(exit) => return Ok(exit),
    };
    let id = found.hashed_name.as_str();
    if arguments.write {
        repository.replace(&head, without_header(&found.secret), id)?;
    } else if !arguments.search.quiet {
        let command = arguments.command(nonce_of(&found.secret), true);
        say(format_args!(
            "nothing was written; make it HEAD with: {command}"
        ));
    }
    print(format!("{id}\n"))?;
    Ok(Exit::Success)
}

impl GitCommitArguments {
    /// The command that begins with a nonce.
    fn command(&self, from: &[u8], write: bool) -> String {
        let mut command = format!("hashfinder git-commit {}", self.prefix);
        if let Some(path) = &self.repository {
            command += &format!(" --repository {}", quoted(&path.to_string_lossy()));
        }
        if self.drop_signature {
            command += " --drop-signature";
        }
        command += &format!(" --from {}", from.escape_ascii());
        if write {
            command += " --write";
        }
        command
    }
}

/// The nonces, whose indices are those of the secrets that are searched, whatever stands around them.
fn nonces() -> Keyspace {
    Keyspace::new(b"", Alphabet::alphanumeric(), b"").expect("nothing stands around them")
}

/// What is searched for a commit, of which everything before the nonce is given: a query for each length
/// of the nonce, because Git hashes the length of a commit before the commit.
///
/// It begins with the nonce `from`, or else with the first of a length that will nearly surely do.
fn queries(commit: &[u8], prefix: &DesiredName, from: Option<&str>) -> Result<Vec<Query>, String> {
    let nonces = nonces();
    let start = match from {
        None => first_of_sufficient_length(&nonces, prefix),
        Some(nonce) => nonces
            .index_of(nonce.as_bytes())
            .filter(|index| *index > 0)
            .ok_or("--from takes a nonce of 1 to 10 letters and digits")?,
    };
    let shortest = nonces.secret(start).len();
    let lengths = (shortest..).map_while(|length| Some((length, nonces.first_of_length(length)?)));
    let query = |(length, first): (usize, Index)| {
        let start = first.max(start);
        let query = Query::any([prefix.clone()], Distance::ZERO);
        let query = query.map_err(|impossible| impossible.to_string())?;
        let keyspace = keyspace(commit, length).map_err(|error| {
            format!("the commit is too long to be searched with a nonce at its end: {error}")
        })?;
        let query = query.among(keyspace).starting_at(start);
        let end = nonces.first_of_length(length + 1);
        let budget = end.and_then(|end| NonZeroU64::new(end - start));
        Ok(match budget {
            Some(budget) => query.hash_budget(budget),
            None => query,
        })
    };
    lengths.map(query).collect()
}

/// The index of the first nonce of the shortest length of which nearly surely one will do or, if there is
/// none, of the greatest that has all its nonces.
fn first_of_sufficient_length(nonces: &Keyspace, prefix: &DesiredName) -> Index {
    let odds = Odds::of(prefix, Distance::ZERO);
    let enough = *odds.hashes_for(NEARLY_SURE).end();
    let mut start = 0;
    for length in 1.. {
        let first = nonces.first_of_length(length);
        let (Some(first), Some(next)) = (first, nonces.first_of_length(length + 1)) else {
            break;
        };
        start = first;
        if (next - first) as f64 >= enough {
            break;
        }
    }
    start
}

/// What Git hashes for a commit with a nonce, which is of the given length if it is to be right.
fn keyspace(commit: &[u8], nonce_len: usize) -> Result<Keyspace, KeyspaceError> {
    let length = commit.len() + nonce_len + END_OF_LINE.len();
    let hashed = [&*header(length), commit].concat();
    Keyspace::new(&hashed, Alphabet::alphanumeric(), END_OF_LINE)
}

fn without_header(hashed: &[u8]) -> &[u8] {
    let end = hashed.iter().position(|byte| *byte == 0);
    &hashed[end.map_or(0, |end| end + 1)..]
}

fn nonce_of(hashed: &[u8]) -> &[u8] {
    let line = hashed.strip_suffix(END_OF_LINE).unwrap_or(hashed);
    let space = line.iter().rposition(|byte| *byte == b' ');
    &line[space.map_or(0, |space| space + 1)..]
}

#[cfg(test)]
mod tests {
    use hashfinder_search::Encoding;

    use super::{commit::TRAILER, *};

    #[test]
    fn a_length_of_nonces_after_another() {
        let spelling = Spelling {
            encoding: Encoding::Hex,
            anchor: Anchor::Prefix,
            ..Spelling::default()
        };
        let lengths = |prefix: &str, from| {
            let prefix = DesiredName::new(prefix, spelling).unwrap();
            // Of two digits with the shorter nonces, and of three with the longer.
            let commit = [&[b'x'; 83], TRAILER].concat();
            let queries = queries(&commit, &prefix, from).unwrap();
            let mut next = queries[0].start();
            let mut lengths = Vec::new();
            for query in &queries {
                assert_eq!(query.start(), next);
                next += query.budget().map_or(0, NonZeroU64::get);
                let secret = query.keyspace().secret(query.start());
                let object = without_header(&secret);
                // Git would not take one that says otherwise.
                let header = format!("commit {}\0", object.len());
                assert!(
                    secret.starts_with(header.as_bytes()),
                    "{}",
                    secret.escape_ascii()
                );
                lengths.push(nonce_of(&secret).len());
            }
            assert!(queries.last().unwrap().budget().is_none());
            lengths
        };
        assert_eq!(lengths("0", None), (2..=11).collect::<Vec<_>>());
        // 16^4 * 20.7 is 1.4 million, and 62^4 is 15 million.
        assert_eq!(lengths("c0ff", None), (4..=11).collect::<Vec<_>>());
        assert_eq!(lengths(&"0".repeat(40), None), [10, 11]);
        assert_eq!(lengths("0", Some("zzz")), (3..=11).collect::<Vec<_>>());
    }
}
