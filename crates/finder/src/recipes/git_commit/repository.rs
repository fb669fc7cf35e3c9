//! The repository, through the real `git`.

use std::{
    ffi::OsStr,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use hashfinder_search::{Algorithm, Encoding, Spelling};

use super::commit::header;

/// A repository, which the real `git` reads and writes.
pub(super) struct Repository<'a> {
    /// Where it is, if it is not around the current folder.
    pub(super) path: Option<&'a Path>,
}

/// What HEAD was when it was read.
pub(super) struct Head {
    /// The branch that it stands for, or itself, if it stands for none.
    reference: String,
    pub(super) commit: Vec<u8>,
    id: String,
    pub(super) spelling: Spelling,
}

impl Repository<'_> {
    pub(super) fn head(&self) -> Result<Head> {
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
    pub(super) fn replace(&self, head: &Head, commit: &[u8], id: &str) -> Result<()> {
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
