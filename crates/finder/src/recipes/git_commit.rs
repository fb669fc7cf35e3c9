//! `hashfinder git-commit`: a nonce in a commit's message that makes its ID begin as one likes.

use std::{
    ffi::OsStr,
    io::Write,
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use hashfinder_search::{
    Algorithm, Alphabet, Anchor, DesiredName, Distance, Encoding, Index, Keyspace, KeyspaceError,
    Odds, Query, Spelling,
};

use super::SearchArguments;
use crate::{
    cli::{Exit, print, quoted, say},
    find,
};

/// Nonces are so long that with this chance one of the first length that is tried will do.
const NEARLY_SURE: f64 = 1.0 - 1e-9;

/// What stands before the nonce in its line.
const TRAILER: &[u8] = b"Nonce: ";

/// What stands after it.
const END_OF_LINE: &[u8] = b"\n";

/// The headers that hold a signature of the commit itself.
const SIGNATURES: [&[u8]; 2] = [b"gpgsig ", b"gpgsig-sha256 "];

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

/// What Git hashes before a commit of a length in bytes.
fn header(length: usize) -> Vec<u8> {
    format!("commit {length}\0").into_bytes()
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

/// A commit's parts. All of it is bytes: its `encoding` says which text they are.
#[derive(Debug, PartialEq, Eq)]
struct Commit<'a> {
    /// The headers, each with the lines that go on with it.
    headers: Vec<&'a [u8]>,
    /// The message's lines, without those that are blank at its end.
    message: Vec<&'a [u8]>,
}

impl<'a> Commit<'a> {
    fn parse(commit: &'a [u8]) -> Commit<'a> {
        let end = commit.windows(2).position(|two| two == b"\n\n");
        let (headers, message) = match end {
            Some(end) => (&commit[..end + 1], &commit[end + 2..]),
            None => (commit, &b""[..]),
        };
        let mut lines: Vec<&[u8]> = message.split(|byte| *byte == b'\n').collect();
        while lines.pop_if(|line| is_blank(line)).is_some() {}
        Commit {
            headers: headers.split_inclusive(|byte| *byte == b'\n').collect(),
            message: lines,
        }
    }

    fn is_signed(&self) -> bool {
        self.headers.iter().any(|line| begins_signature(line))
    }

    fn drop_signature(&mut self) {
        let mut in_signature = false;
        self.headers.retain(|line| {
            // What begins with a space goes on with the header before.
            in_signature = begins_signature(line) || (in_signature && line.starts_with(b" "));
            !in_signature
        });
    }

    /// The commit up to the nonce, which is the last of its message's trailers.
    fn before_nonce(&self) -> Vec<u8> {
        let (text, trailers) = self.message.split_at(start_of_trailers(&self.message));
        let kept = trailers.iter().filter(|line| !is_nonce(line));
        let trailers: Vec<&[u8]> = kept.copied().collect();
        let mut message = text.to_vec();
        // The line before the trailers is blank, and stays; without trailers there is none yet.
        if trailers.is_empty() {
            while message.pop_if(|line| is_blank(line)).is_some() {}
            message.push(b"");
        }
        message.extend(trailers);
        message.push(TRAILER);
        let headers = self.headers.concat();
        let headers = headers.strip_suffix(b"\n").unwrap_or(&headers);
        [headers, b"\n\n", &message.join(&b'\n')].concat()
    }
}

fn begins_signature(line: &[u8]) -> bool {
    SIGNATURES.iter().any(|name| line.starts_with(name))
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// Whether an earlier run has added the line.
fn is_nonce(line: &[u8]) -> bool {
    let nonce = line.strip_prefix(TRAILER);
    nonce.is_some_and(|nonce| !nonce.is_empty() && nonce.iter().all(u8::is_ascii_alphanumeric))
}

/// Where the trailers of a message begin: its last paragraph, unless that is the only one, if all its
/// lines are trailers, or some of Git's own and no more than three times as many others are among them
/// (gitglossary and git-interpret-trailers(1)). Otherwise it is where the message ends.
fn start_of_trailers(message: &[&[u8]]) -> usize {
    let Some(blank) = message.iter().rposition(|line| is_blank(line)) else {
        return message.len();
    };
    let (mut trailers, mut others, mut has_gits) = (0, 0, false);
    let mut last_is_trailer = false;
    for line in &message[blank + 1..] {
        let is_gits = line.starts_with(b"Signed-off-by: ")
            || line.starts_with(b"(cherry picked from commit ");
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            others += usize::from(!last_is_trailer);
            continue;
        }
        last_is_trailer = is_gits || is_trailer(line);
        has_gits |= is_gits;
        trailers += usize::from(last_is_trailer);
        others += usize::from(!last_is_trailer);
    }
    if others == 0 || (has_gits && trailers * 3 >= others) {
        blank + 1
    } else {
        message.len()
    }
}

/// Whether a line is a name of letters, digits and hyphens, and a colon.
fn is_trailer(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return false;
    };
    let name = line[..colon].trim_ascii_end();
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    !name.is_empty() && name.iter().all(is_of_name)
}

/// A repository, which the real `git` reads and writes.
struct Repository<'a> {
    /// Where it is, if it is not around the current folder.
    path: Option<&'a Path>,
}

/// What HEAD was when it was read.
struct Head {
    /// The branch that it stands for, or itself, if it stands for none.
    reference: String,
    commit: Vec<u8>,
    id: String,
    spelling: Spelling,
}

impl Repository<'_> {
    fn head(&self) -> Result<Head> {
        let format = self.git(["rev-parse", "--show-object-format"], b"")?;
        let algorithm = match format.trim_ascii_end() {
            b"sha1" => Algorithm::Sha1,
            b"sha256" => Algorithm::Sha256,
            other => bail!(
                "the repository's object format is {}; hashfinder knows sha1 and sha256",
                other.escape_ascii()
            ),
        };
        let spelling = Spelling {
            algorithm,
            encoding: Encoding::Hex,
            ..Spelling::default()
        };
        // HEAD stands for no branch where this fails; where there is no HEAD, the next one tells.
        let branch = self.git(["symbolic-ref", "--quiet", "HEAD"], b"");
        let reference = branch.map_or_else(|_| "HEAD".to_owned(), |name| as_line(&name));
        let commit = self.git(["cat-file", "commit", "HEAD"], b"");
        let commit = commit.context("cannot read the commit of HEAD; is there one yet?")?;
        let hashed = [&*header(commit.len()), &commit].concat();
        Ok(Head {
            reference,
            id: spelling.hashed_name(&hashed).to_string(),
            spelling,
            commit,
        })
    }

    /// Writes a commit, and puts it in the place of HEAD's.
    ///
    /// # Errors
    ///
    /// If git fails, and if HEAD's commit is another by now; then nothing is changed.
    fn replace(&self, head: &Head, commit: &[u8], id: &str) -> Result<()> {
        let written = self.git(["hash-object", "-t", "commit", "-w", "--stdin"], commit)?;
        let written = as_line(&written);
        if written != id {
            bail!(
                "git gives the commit the ID {written}, not {id}; {} was not moved",
                head.reference
            );
        }
        let reason = format!("commit (nonce): {} instead of {}", id, head.id);
        let moved = ["update-ref", "-m", &reason, &head.reference, id, &head.id];
        self.git(moved, b"").with_context(|| {
            format!(
                "{} was not moved to {id}, and nothing is lost; if there is a newer commit, run this \
                 again",
                head.reference
            )
        })?;
        Ok(())
    }

    /// What git prints, given something to read.
    ///
    /// # Errors
    ///
    /// If it cannot be run, or fails.
    fn git<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        let mut command = Command::new("git");
        if let Some(path) = self.path {
            command.args([OsStr::new("-C"), path.as_os_str()]);
        }
        // The commit itself, and not what is shown in its place.
        command.arg("--no-replace-objects").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut git = command
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run git; it has to be installed, and found in PATH")?;
        if let Some(mut stdin) = git.stdin.take() {
            // Where git does not read it, it says why.
            let _ = stdin.write_all(input);
        }
        let done = git.wait_with_output().context("cannot wait for git")?;
        if !done.status.success() {
            bail!("git says: {}", as_line(&done.stderr));
        }
        Ok(done.stdout)
    }
}

fn as_line(output: &[u8]) -> String {
    String::from_utf8_lossy(output.trim_ascii_end()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &str = "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n\
                           author A <a@b> 1 +0000\n\
                           committer A <a@b> 1 +0000\n";

    #[test]
    fn the_nonce_is_the_last_trailer() {
        for (message, expected) in [
            ("", "\nNonce: "),
            ("\n\n", "\nNonce: "),
            ("one", "one\n\nNonce: "),
            ("one\n", "one\n\nNonce: "),
            ("one\n\n \n", "one\n\nNonce: "),
            ("one: two\n", "one: two\n\nNonce: "),
            ("one\n\ntwo\nthree\n", "one\n\ntwo\nthree\n\nNonce: "),
            ("one\n\nA-b: c\n", "one\n\nA-b: c\nNonce: "),
            ("one\n\nA-b: c\n d: e\n", "one\n\nA-b: c\n d: e\nNonce: "),
            // Others among them, and none of Git's own.
            ("one\n\nA-b: c\nd\n", "one\n\nA-b: c\nd\n\nNonce: "),
            (
                "one\n\ntwo\nthree\nfour\nSigned-off-by: A\n",
                "one\n\ntwo\nthree\nfour\nSigned-off-by: A\nNonce: ",
            ),
            // One of an earlier run, where it was left and where more came after it.
            ("one\n\nNonce: 0aZ\n", "one\n\nNonce: "),
            ("one\n\nA: b\nNonce: 0aZ\n", "one\n\nA: b\nNonce: "),
            ("one\n\nNonce: 0aZ\nA: b\n", "one\n\nA: b\nNonce: "),
            ("\nNonce: 0aZ\n", "\nNonce: "),
            // No nonces of ours.
            ("Nonce: 0aZ\n", "Nonce: 0aZ\n\nNonce: "),
            ("one\n\nNonce: 0 a\n", "one\n\nNonce: 0 a\nNonce: "),
            (
                "one\n\nNonce: 0aZ\n\ntwo",
                "one\n\nNonce: 0aZ\n\ntwo\n\nNonce: ",
            ),
        ] {
            let commit = format!("{HEADERS}\n{message}");
            let before = Commit::parse(commit.as_bytes()).before_nonce();
            let expected = format!("{HEADERS}\n{expected}");
            let (before, expected) = (before.escape_ascii(), expected.as_bytes().escape_ascii());
            assert_eq!(before.to_string(), expected.to_string(), "{message:?}");
        }
    }

    #[test]
    fn what_is_no_text_stays() {
        let message = b"\xe9t\xe9\n\nA: \xff\n";
        let commit = [HEADERS.as_bytes(), b"encoding ISO-8859-1\n\n", message].concat();
        let before = Commit::parse(&commit).before_nonce();
        assert_eq!(before, [&*commit, TRAILER].concat());
    }

    #[test]
    fn a_signature_is_dropped_with_all_its_lines() {
        let signature = "gpgsig -----BEGIN\n \n abc\n -----END\n";
        let after = "mergetag object 1\n gpgsig none\n";
        let commit = format!("{HEADERS}{signature}{after}\ngpgsig of old\n");
        let mut commit = Commit::parse(commit.as_bytes());
        assert!(commit.is_signed());
        commit.drop_signature();
        assert!(!commit.is_signed());
        let expected = format!("{HEADERS}{after}\ngpgsig of old\n\nNonce: ");
        assert_eq!(commit.before_nonce(), expected.as_bytes());
    }

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
