//! `hashfinder git-commit`: adds a nonce to a commit's message, so that the commit's ID begins with
//! a chosen prefix.

mod commit;
mod repository;

use std::{num::NonZeroU64, path::PathBuf, process::Child};

use anyhow::{Context, Result};
use clap::Args;
use hashfinder_search::{
    Alphabet, Anchor, DesiredName, Distance, Index, Keyspace, KeyspaceError, Odds, Query, Spelling,
};
use hashfinder_system::threads::aside;

use self::{
    commit::{Commit, header},
    repository::{Head, Repository},
};
use super::find::{self, TimeLimit};
use crate::{
    arguments::SearchArguments,
    exit::Exit,
    signals::{Signal, Signals},
    terminal::{print, quoted, say},
};

/// Minimum chance that there is a match among the nonces of the first length that is tried.
const NEARLY_SURE: f64 = 1.0 - 1e-9;

/// Text after the nonce.
const END_OF_LINE: &[u8] = b"\n";

/// Length of the longest ID, in hexadecimal digits: a SHA-256.
const LONGEST_ID: usize = 64;

/// Give HEAD's commit an ID that begins with PREFIX.
///
/// Appends a line `Hashfinder-Nonce: ...` to the commit's message, which replaces that of an
/// earlier run. The tree, the parents, the author and all dates stay the same. Prints the new ID.
///
/// With --write, the new commit replaces HEAD's, as with `git commit --amend`: the post-rewrite
/// hook runs, and notes are copied as configured. The index and the work tree do not change.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder git-commit c0ffee
  hashfinder git-commit c0ffee --write
  hashfinder git-commit 0000000 --repository ../other --maximum-time 5m

Each further digit takes 16 times as long. The same commit and prefix always get the same nonce.

Exit codes:
    0  found and, with --write, written
    1  every nonce was tried, and none matches
    2  the command line is wrong, or the commit cannot be copied: it is signed or too large, its
       parents are missing in a shallow clone, or a graft or a replace reference changes it
    3  the maximum time has passed; resume with --from
    5  git or the output failed
  130  stopped by ctrl-C (129: SIGHUP, 131: SIGQUIT, 143: SIGTERM); resume with --from")]
pub(crate) struct GitCommitArguments {
    /// Hexadecimal digits that the commit's ID must begin with
    ///
    /// 40 at most, or 64 in a repository with SHA-256 IDs.
    #[arg(value_name = "PREFIX", value_parser = prefix)]
    prefix: String,

    /// Repository [default: $GIT_DIR, or that of the current folder]
    ///
    /// Overrides GIT_DIR and the other variables by which git chooses a repository.
    #[arg(long, value_name = "PATH")]
    repository: Option<PathBuf>,

    /// Replace HEAD's commit with the new one
    ///
    /// The current branch moves to the new commit. If HEAD was moved during the search, the command
    /// fails and moves nothing.
    #[arg(long)]
    write: bool,

    /// Remove the commit's signature, which the new message makes invalid
    #[arg(long)]
    drop_signature: bool,

    /// Resume a stopped search at this nonce
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
            "character {}, {character:?}, is not a hexadecimal digit (0 to 9, a to f)",
            place + 1
        )),
        (None, 1..=LONGEST_ID) => Ok(text.to_lowercase()),
        (None, length) => Err(format!("it has {length} digits; use 1 to 40")),
    }
}

/// Runs the command. Dropping the future cancels the search and leaves the repository unchanged. If
/// HEAD was already moved, dropping it only stops waiting for the `post-rewrite` hook.
pub(crate) async fn run(arguments: &GitCommitArguments) -> Result<Exit> {
    let limit = TimeLimit::start(arguments.search.maximum_time);
    let repository = Repository::at(arguments.repository.as_deref())?;
    let head = repository.head()?;
    let queries = match prepare(arguments, &repository, &head)? {
        Ok(queries) => queries,
        Err(refused) => {
            say(refused);
            return Ok(Exit::Usage);
        }
    };
    if !arguments.search.quiet
        && let Some(branch) = repository.remote_branch(&head)
    {
        say(format_args!(
            "warning: HEAD's commit is already on {branch}; replacing it there needs a forced \
             push, and everyone who has the commit must then rebase or reset"
        ));
    }
    let how_to_resume = |index| {
        let from = nonces().secret(index);
        format!("resume with: {}", arguments.command(&from, arguments.write))
    };
    let found = match find::first(queries, &arguments.search, limit, how_to_resume).await? {
        Ok(found) => found,
        Err(exit) => return Ok(exit),
    };
    let id = found.hashed_name.as_str();
    if arguments.write {
        let commit = without_header(&found.secret);
        return write(arguments, &repository, &head, commit, id).await;
    }
    if !arguments.search.quiet {
        let command = arguments.command(nonce_of(&found.secret), true);
        say(format_args!(
            "the commit was not written; replace HEAD's commit with: {command}"
        ));
    }
    print(format!("{id}\n"))?;
    Ok(Exit::Success)
}

/// Returns the queries, or an error message if the commit or the arguments are not suitable. Errors
/// that would otherwise occur after the search are detected here if possible.
///
/// # Errors
///
/// If git fails, or could not write the commit.
fn prepare(
    arguments: &GitCommitArguments,
    repository: &Repository<'_>,
    head: &Head,
) -> Result<Result<Vec<Query>, String>> {
    if let Some(obstacle) = repository.obstacle(head)? {
        return Ok(Err(obstacle));
    }
    let mut commit = Commit::parse(&head.commit);
    if commit.is_signed() {
        if !arguments.drop_signature {
            return Ok(Err(
                "HEAD's commit is signed, and a new message makes the signature invalid; remove it \
                 with --drop-signature"
                    .to_owned(),
            ));
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
            format!("the prefix has {digits} digits; IDs in this repository have only {most}")
        })
        .and_then(|prefix| queries(&commit.before_nonce(), &prefix, arguments.from.as_deref()));
    if let Ok(queries) = &queries
        && let Some(first) = queries.first()
    {
        let example = first.keyspace().secret(first.start());
        repository.check_accepted(without_header(&example))?;
        if arguments.write {
            repository.check_writable(head, &arguments.prefix)?;
        }
    }
    Ok(queries)
}

/// Replaces HEAD's commit and prints the new ID. Then copies notes and runs the `post-rewrite`
/// hook, as `git commit --amend` does.
async fn write(
    arguments: &GitCommitArguments,
    repository: &Repository<'_>,
    head: &Head,
    commit: &[u8],
    id: &str,
) -> Result<Exit> {
    // From now on, signals do not end the process. The wait below receives them.
    let mut signals = Signals::new().context("cannot receive signals")?;
    let moved = repository.replace(head, commit, id)?;
    if !arguments.search.quiet {
        say(&moved);
    }
    let printed = print(format!("{id}\n")).with_context(|| {
        format!("the commit was written ({moved}), but its ID could not be printed")
    });
    // HEAD has been moved, so an error in copying notes or running the hook is only a warning.
    let warn = |error: anyhow::Error| say(format_args!("warning: {error:#}"));
    if let Err(error) = repository.copy_notes(head, id) {
        warn(error);
    }
    let stopped = match repository.start_hook(head, id) {
        Ok(Some(hook)) => wait(&mut signals, hook).await,
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    let stopped = stopped.unwrap_or_else(|error| {
        warn(error);
        None
    });
    printed?;
    Ok(match stopped {
        Some(signal) => {
            say(format_args!(
                "stopped by {signal} during the post-rewrite hook; HEAD was moved ({moved})"
            ));
            signal.exit()
        }
        None => Exit::Success,
    })
}

/// Waits until a process ends, with any status, or a signal arrives. Returns the signal, if any.
/// Dropping the future leaves the process running.
async fn wait(signals: &mut Signals, mut child: Child) -> Result<Option<Signal>> {
    Ok(tokio::select! {
        ended = aside("post-rewrite", move || child.wait()) => {
            ended??;
            None
        }
        signal = signals.next() => Some(signal),
    })
}

impl GitCommitArguments {
    /// Returns the command line that starts the search at the nonce `from`.
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

/// Returns the keyspace of the nonces, without a prefix and a suffix. A nonce has the same index in
/// it as in the keyspace of every query.
fn nonces() -> Keyspace {
    Keyspace::new(b"", Alphabet::alphanumeric(), b"").expect("nothing stands around them")
}

/// Returns the queries for a commit, given everything before the nonce: one for each length of the
/// nonce, because Git hashes the commit's length before the commit.
///
/// The first query starts at the nonce `from` or, by default, at the first nonce of the shortest
/// length that is nearly certain to contain a match ([`NEARLY_SURE`]).
fn queries(commit: &[u8], prefix: &DesiredName, from: Option<&str>) -> Result<Vec<Query>, String> {
    let nonces = nonces();
    let start = match from {
        None => first_of_sufficient_length(&nonces, prefix),
        Some(nonce) => nonces
            .index_of(without_zeros(commit.len(), nonce).as_bytes())
            .filter(|index| *index > 0)
            .ok_or("--from: expected a nonce of 1 to 11 letters and digits")?,
    };
    let shortest = nonces.secret(start).len();
    let lengths = (shortest..).map_while(|length| Some((length, nonces.first_of_length(length)?)));
    let query = |(length, first): (usize, Index)| {
        let start = first.max(start);
        let query = Query::any([prefix.clone()], Distance::ZERO);
        let query = query.map_err(|impossible| impossible.to_string())?;
        let zeros = zeros_before(commit.len(), length);
        let keyspace = keyspace(commit, zeros, length);
        let keyspace = keyspace.map_err(|_| too_large(commit.len(), zeros + length))?;
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

/// Returns the index of the first nonce of the shortest length that is nearly certain to contain a
/// match ([`NEARLY_SURE`]). If there is no such length, uses the greatest one that the keyspace
/// covers completely.
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

/// Returns the number of zeros to write before a nonce, given the length of everything before it.
///
/// Git's hashes take 64 bytes at a time. The zeros move the end of the nonce, so that everything
/// after it is hashed with it: the end of the line, and the nine bytes that the algorithm appends.
/// Otherwise each nonce would take twice as long. Also, the last two characters of the nonce are
/// hashed together, because the kernels change them without hashing what comes before.
fn zeros_before(before_nonce: usize, nonce_len: usize) -> usize {
    const BLOCK: usize = 64;
    const AFTER: usize = END_OF_LINE.len() + 9;
    let is_well_placed = |zeros: &usize| {
        let header = header(size(before_nonce, zeros + nonce_len));
        let begin = header.len() + before_nonce + zeros;
        let end = (begin + nonce_len) % BLOCK;
        (2..=BLOCK - AFTER).contains(&end) && begin <= Keyspace::MAX_PREFIX
    };
    (0..BLOCK).find(is_well_placed).unwrap_or(0)
}

/// Returns a nonce without the zeros that [`zeros_before`] adds, given the length of everything
/// before it. A nonce that does not have them is returned as it is: those that the command prints
/// when it is stopped, and those of versions that added none.
fn without_zeros(before_nonce: usize, nonce: &str) -> &str {
    let searched = (1..nonce.len()).find_map(|nonce_len| {
        let (zeros, searched) = nonce.split_at_checked(nonce.len() - nonce_len)?;
        let is_added = zeros.len() == zeros_before(before_nonce, nonce_len);
        (is_added && zeros.bytes().all(|byte| byte == b'0')).then_some(searched)
    });
    searched.unwrap_or(nonce)
}

/// Returns the keyspace of what Git hashes for a commit, given everything before the nonce. The
/// keyspace is correct only for nonces of length `nonce_len`, after this number of zeros.
///
/// # Errors
///
/// If the commit is too large.
fn keyspace(commit: &[u8], zeros: usize, nonce_len: usize) -> Result<Keyspace, KeyspaceError> {
    let header = header(size(commit.len(), zeros + nonce_len));
    let hashed = [&*header, commit, &vec![b'0'; zeros]].concat();
    Keyspace::new(&hashed, Alphabet::alphanumeric(), END_OF_LINE)
}

/// Returns a commit's size in bytes, given the length of everything before the nonce and the length
/// of the nonce.
fn size(before_nonce: usize, nonce_len: usize) -> usize {
    before_nonce + nonce_len + END_OF_LINE.len()
}

/// Returns the message that says by how much a commit is too large for [`keyspace`].
fn too_large(before_nonce: usize, nonce_len: usize) -> String {
    let size = size(before_nonce, nonce_len);
    let excess = (header(size).len() + before_nonce).saturating_sub(Keyspace::MAX_PREFIX);
    let bytes = if excess == 1 { "byte" } else { "bytes" };
    format!(
        "HEAD's commit is too large: with the nonce it has {size} bytes, and at most {} are \
         supported; shorten its message by at least {excess} {bytes} (git commit --amend)",
        size - excess
    )
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

    /// Whatever the length of a commit, one block is hashed for each nonce.
    #[test]
    fn nonces_end_where_one_block_is_hashed_for_each() {
        for length in 0..2000 {
            let commit = vec![b'x'; length];
            for nonce_len in 1..=11 {
                let zeros = zeros_before(length, nonce_len);
                assert!(zeros <= 12, "{length} {nonce_len}");
                let keyspace = keyspace(&commit, zeros, nonce_len).unwrap();
                let end = keyspace.prefix().len() + nonce_len;
                let hashed = end + END_OF_LINE.len() + 9;
                assert_eq!((end - 2) / 64, (hashed - 1) / 64, "{length} {nonce_len}");
                // The nonce that is printed, and the one in the commit.
                for nonce in ["0".repeat(nonce_len - 1) + "7", "Z".repeat(nonce_len)] {
                    let written = "0".repeat(zeros) + &nonce;
                    let resumed = |nonce| {
                        let nonce = without_zeros(length, nonce);
                        let zeros = zeros_before(length, nonce.len());
                        "0".repeat(zeros) + nonce
                    };
                    assert_eq!(resumed(&nonce), written, "{length} {nonce_len}");
                    assert_eq!(resumed(&written), written, "{length} {nonce_len}");
                }
                let object = without_header(keyspace.prefix());
                let size = object.len() + nonce_len + END_OF_LINE.len();
                assert!(keyspace.prefix().starts_with(&header(size)));
            }
        }
    }

    #[test]
    fn nonce_lengths_are_tried_one_after_another() {
        let spelling = Spelling {
            encoding: Encoding::Hex,
            anchor: Anchor::Prefix,
            ..Spelling::default()
        };
        let lengths = |prefix: &str, from| {
            let prefix = DesiredName::new(prefix, spelling).unwrap();
            // Without a nonce, the commit has 102 bytes.
            let commit = [&[b'x'; 83], TRAILER].concat();
            let queries = queries(&commit, &prefix, from).unwrap();
            let mut next = queries[0].start();
            let mut lengths = Vec::new();
            for query in &queries {
                assert_eq!(query.start(), next);
                next += query.budget().map_or(0, NonZeroU64::get);
                let secret = query.keyspace().secret(query.start());
                let object = without_header(&secret);
                // Git rejects an object whose header has another length.
                let header = format!("commit {}\0", object.len());
                assert!(
                    secret.starts_with(header.as_bytes()),
                    "{}",
                    secret.escape_ascii()
                );
                let nonce = nonce_of(&secret).len();
                let zeros = query.keyspace().prefix().len() - header.len() - commit.len();
                lengths.push(nonce - zeros);
            }
            assert!(queries.last().unwrap().budget().is_none());
            lengths
        };
        assert_eq!(lengths("0", None), (2..=11).collect::<Vec<_>>());
        // A match is nearly certain among 16^4 * 20.7 = 1.4 million nonces. There are only 62^3 =
        // 238,000 of length 3, but 62^4 = 15 million of length 4.
        assert_eq!(lengths("c0ff", None), (4..=11).collect::<Vec<_>>());
        assert_eq!(lengths(&"0".repeat(40), None), [10, 11]);
        assert_eq!(lengths("0", Some("zzz")), (3..=11).collect::<Vec<_>>());
    }
}
