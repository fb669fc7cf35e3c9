//! Parses the bytes of a commit, and builds those of the commit with a nonce.

/// Start of the nonce's line. Only hashfinder uses this trailer, so an author's own `Nonce:`
/// trailer is kept.
pub(super) const TRAILER: &[u8] = b"Hashfinder-Nonce: ";

/// Headers that contain a signature of the commit itself.
const SIGNATURES: [&[u8]; 2] = [b"gpgsig ", b"gpgsig-sha256 "];

/// Returns the header that Git hashes before a commit of `length` bytes.
pub(super) fn header(length: usize) -> Vec<u8> {
    format!("commit {length}\0").into_bytes()
}

/// A commit's parts, as bytes: the commit's `encoding` header may name any text encoding.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Commit<'a> {
    /// Lines of the headers, including continuation lines, each with its line feed.
    headers: Vec<&'a [u8]>,
    /// Lines of the message, without the blank lines at its end.
    message: Vec<&'a [u8]>,
}

impl<'a> Commit<'a> {
    pub(super) fn parse(commit: &'a [u8]) -> Commit<'a> {
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

    /// Returns the IDs of the parents that the commit names.
    pub(super) fn parents(&self) -> impl Iterator<Item = &'a [u8]> {
        let headers = self.headers.iter();
        headers.filter_map(|line| Some(line.strip_prefix(b"parent ")?.trim_ascii_end()))
    }

    pub(super) fn is_signed(&self) -> bool {
        self.headers.iter().any(|line| begins_signature(line))
    }

    pub(super) fn drop_signature(&mut self) {
        let mut in_signature = false;
        self.headers.retain(|line| {
            // A line that begins with a space continues the header before it.
            in_signature = begins_signature(line) || (in_signature && line.starts_with(b" "));
            !in_signature
        });
    }

    /// Returns the commit up to the nonce, which becomes the last trailer of its message. The nonce
    /// of an earlier run is removed.
    pub(super) fn before_nonce(&self) -> Vec<u8> {
        let (text, trailers) = self.message.split_at(start_of_trailers(&self.message));
        let kept = trailers.iter().filter(|line| !is_nonce(line));
        let trailers: Vec<&[u8]> = kept.copied().collect();
        let mut message = text.to_vec();
        // The blank line before existing trailers is kept. If there are none, it must be added.
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

/// Returns whether a line is a nonce that an earlier run may have added.
fn is_nonce(line: &[u8]) -> bool {
    let nonce = line.strip_prefix(TRAILER);
    nonce.is_some_and(|nonce| !nonce.is_empty() && nonce.iter().all(u8::is_ascii_alphanumeric))
}

/// Returns the index of the first trailer of a message, or the number of its lines if it has no
/// trailers.
///
/// Only the last of several paragraphs can hold trailers. Either all its lines must be trailers, or
/// at least one must be a trailer that Git itself writes, with at most three other lines per
/// trailer (git-interpret-trailers(1)).
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

/// Returns whether a line begins with a name of ASCII letters, digits and hyphens, then a colon.
/// Whitespace may precede the colon.
fn is_trailer(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return false;
    };
    let name = line[..colon].trim_ascii_end();
    let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    !name.is_empty() && name.iter().all(is_of_name)
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
            ("", "\nHashfinder-Nonce: "),
            ("\n\n", "\nHashfinder-Nonce: "),
            ("one", "one\n\nHashfinder-Nonce: "),
            ("one\n", "one\n\nHashfinder-Nonce: "),
            ("one\n\n \n", "one\n\nHashfinder-Nonce: "),
            ("one: two\n", "one: two\n\nHashfinder-Nonce: "),
            (
                "one\n\ntwo\nthree\n",
                "one\n\ntwo\nthree\n\nHashfinder-Nonce: ",
            ),
            ("one\n\nA-b: c\n", "one\n\nA-b: c\nHashfinder-Nonce: "),
            (
                "one\n\nA-b: c\n d: e\n",
                "one\n\nA-b: c\n d: e\nHashfinder-Nonce: ",
            ),
            // Other lines among the trailers: first without one of Git's own trailers, then with
            // one.
            (
                "one\n\nA-b: c\nd\n",
                "one\n\nA-b: c\nd\n\nHashfinder-Nonce: ",
            ),
            (
                "one\n\ntwo\nthree\nfour\nSigned-off-by: A\n",
                "one\n\ntwo\nthree\nfour\nSigned-off-by: A\nHashfinder-Nonce: ",
            ),
            // The nonce of an earlier run, alone, after or before another trailer.
            (
                "one\n\nHashfinder-Nonce: 0aZ\n",
                "one\n\nHashfinder-Nonce: ",
            ),
            (
                "one\n\nA: b\nHashfinder-Nonce: 0aZ\n",
                "one\n\nA: b\nHashfinder-Nonce: ",
            ),
            (
                "one\n\nHashfinder-Nonce: 0aZ\nA: b\n",
                "one\n\nA: b\nHashfinder-Nonce: ",
            ),
            ("\nHashfinder-Nonce: 0aZ\n", "\nHashfinder-Nonce: "),
            // A trailer of the author, which has another name.
            (
                "one\n\nNonce: 0aZ\n",
                "one\n\nNonce: 0aZ\nHashfinder-Nonce: ",
            ),
            // Lines that an earlier run cannot have added.
            (
                "Hashfinder-Nonce: 0aZ\n",
                "Hashfinder-Nonce: 0aZ\n\nHashfinder-Nonce: ",
            ),
            (
                "one\n\nHashfinder-Nonce: 0 a\n",
                "one\n\nHashfinder-Nonce: 0 a\nHashfinder-Nonce: ",
            ),
            (
                "one\n\nHashfinder-Nonce: 0aZ\n\ntwo",
                "one\n\nHashfinder-Nonce: 0aZ\n\ntwo\n\nHashfinder-Nonce: ",
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
    fn parents_are_read_from_the_headers() {
        let commit = "tree 1\nparent 2\nparent 3\nmergetag x\n parent 4\n\nparent 5\n";
        let parents: Vec<&[u8]> = Commit::parse(commit.as_bytes()).parents().collect();
        assert_eq!(parents, [b"2", b"3"]);
        assert_eq!(Commit::parse(b"tree 1\n\n").parents().count(), 0);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_kept() {
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
        let expected = format!("{HEADERS}{after}\ngpgsig of old\n\nHashfinder-Nonce: ");
        assert_eq!(commit.before_nonce(), expected.as_bytes());
    }
}
