//! The repository, read and written through the real `git`.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Write,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use hashfinder_search::{Algorithm, Encoding, Spelling};

use super::commit::{Commit, header};
use crate::terminal::{as_text, quoted};

/// Variables that `git rev-parse --local-env-vars` lists, but that do not choose a repository: they
/// carry the configuration of `git -c`.
const CONFIGURATION: [&str; 2] = ["GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT"];

/// The hook that runs after a commit was rewritten.
const HOOK: &str = "post-rewrite";

/// First version of git whose `git hook run` can pass stdin to a hook.
const HOOK_VERSION: &str = "2.40";

/// A repository, accessed through git.
pub(super) struct Repository<'a> {
    /// Path of the repository. If it is `None`, git uses the environment and the current folder to
    /// choose one.
    path: Option<&'a Path>,
    /// Environment variables that would choose another repository than `path`.
    removed: Vec<OsString>,
}

/// HEAD as it was when it was read.
pub(super) struct Head {
    /// The branch that HEAD points to, or `HEAD` if it is detached.
    reference: OsString,
    /// The commit as it is stored. Replace references have no effect on it.
    pub(super) commit: Vec<u8>,
    pub(super) id: String,
    /// Algorithm and encoding of IDs in this repository.
    pub(super) spelling: Spelling,
}

impl Head {
    /// Returns the name of the reference, escaped for a terminal.
    fn name(&self) -> String {
        as_text(&self.reference.to_string_lossy())
    }

    fn id_of(&self, commit: &[u8]) -> String {
        id(commit, self.spelling)
    }
}

fn id(commit: &[u8], spelling: Spelling) -> String {
    let hashed = [&*header(commit.len()), commit].concat();
    spelling.hashed_name(&hashed).to_string()
}

impl<'a> Repository<'a> {
    /// Chooses the repository at `path`, whatever the environment says. Without a path, the
    /// environment and the current folder decide, as they do for git.
    ///
    /// # Errors
    ///
    /// If git cannot be run.
    pub(super) fn at(path: Option<&'a Path>) -> Result<Repository<'a>> {
        let mut removed = Vec::new();
        if path.is_some() {
            let names = run(
                Command::new("git").args(["rev-parse", "--local-env-vars"]),
                b"",
            )?;
            let names = names.split(|byte| *byte == b'\n').map(<[u8]>::to_vec);
            removed = names.map(OsString::from_vec).collect();
            removed
                .retain(|name| !name.is_empty() && CONFIGURATION.iter().all(|kept| name != kept));
        }
        Ok(Repository { path, removed })
    }

    /// Reads HEAD.
    ///
    /// # Errors
    ///
    /// If git fails, for instance because HEAD has no commit yet.
    pub(super) fn head(&self) -> Result<Head> {
        let format = self.git(["rev-parse", "--show-object-format"], b"")?;
        let algorithm = match format.trim_ascii_end() {
            b"sha1" => Algorithm::Sha1,
            b"sha256" => Algorithm::Sha256,
            other => bail!(
                "unknown object format {}; hashfinder supports sha1 and sha256",
                other.escape_ascii()
            ),
        };
        let spelling = Spelling {
            algorithm,
            encoding: Encoding::Hex,
            ..Spelling::default()
        };
        let reference = self.reference();
        let stored = ["--no-replace-objects", "cat-file", "commit", "HEAD"];
        let commit = self.git(stored, b"");
        let commit = commit.context("cannot read HEAD's commit (does it have one yet?)")?;
        Ok(Head {
            reference,
            id: id(&commit, spelling),
            spelling,
            commit,
        })
    }

    /// Returns why `git commit --amend` would write other headers than a copy of HEAD's, and what
    /// to do about it; `None` if the headers would be the same.
    ///
    /// The headers of the stored commit are compared with those that git uses. Replace references,
    /// grafts and the boundary of a shallow clone make them differ.
    ///
    /// # Errors
    ///
    /// If git fails.
    pub(super) fn obstacle(&self, head: &Head) -> Result<Option<String>> {
        let id = &head.id;
        let shown = self.git(["cat-file", "commit", id], b"")?;
        if shown != head.commit {
            let replacement = head.id_of(&shown);
            let reset = self.command_line(&format!("reset --soft {replacement}"));
            return Ok(Some(format!(
                "a replace reference replaces HEAD's commit {id} with another one; move HEAD there \
                 with `{reset}`, then run this again"
            )));
        }
        let commit = Commit::parse(&head.commit);
        let stored: Vec<&[u8]> = commit.parents().collect();
        let parents = format!("{id}^@");
        let are_stored = |parents: Vec<u8>| {
            let parents = parents.split(|byte| *byte == b'\n');
            parents
                .filter(|id| !id.is_empty())
                .eq(stored.iter().copied())
        };
        if are_stored(self.git(["rev-parse", &parents], b"")?) {
            return Ok(None);
        }
        let mut without_grafts = self.command();
        without_grafts.env("GIT_GRAFT_FILE", "/dev/null");
        if !are_stored(run(without_grafts.args(["rev-parse", &parents]), b"")?) {
            let fetch = self.command_line("fetch --deepen 1");
            return Ok(Some(format!(
                "the history of this shallow clone ends at HEAD's commit, so its parents are \
                 missing; fetch them with `{fetch}`, then run this again"
            )));
        }
        let in_work_tree = self.git(["rev-parse", "--is-inside-work-tree"], b"")?;
        // git amends only in a work tree. Elsewhere the graft becomes a replace reference, which
        // the next run reports.
        let permanent = match in_work_tree.trim_ascii_end() {
            b"true" => "commit --amend --only --no-edit --allow-empty",
            _ => "replace --convert-graft-file",
        };
        let permanent = self.command_line(permanent);
        Ok(Some(format!(
            "a graft gives HEAD's commit other parents; make them permanent with `{permanent}`, \
             then run this again"
        )))
    }

    /// Returns a remote branch that contains HEAD's commit, escaped for a terminal; `None` if there
    /// is none, or if git fails.
    pub(super) fn remote_branch(&self, head: &Head) -> Option<String> {
        // A symbolic reference, `origin/HEAD` for example, is shown as the branch that it points
        // to.
        let name = "%(if)%(symref)%(then)%(symref:short)%(else)%(refname:short)%(end)";
        let format = format!("--format={name}");
        let contains = ["--contains", &head.id, "--count=1", &format, "refs/remotes"];
        let found = self.git(["for-each-ref"].iter().chain(&contains), b"");
        let found = found.ok().filter(|found| !found.is_empty())?;
        Some(as_line(&found))
    }

    /// Checks that git accepts a commit, without writing it.
    ///
    /// # Errors
    ///
    /// If git rejects it, for instance because HEAD's commit has a malformed author.
    pub(super) fn check_accepted(&self, commit: &[u8]) -> Result<()> {
        let hashed = self.git(["hash-object", "-t", "commit", "--stdin"], commit);
        hashed
            .context("git rejects the headers of HEAD's commit when they are copied unchanged")?;
        Ok(())
    }

    /// Checks that [`replace`](Self::replace) can write a commit whose ID begins with `prefix`, and
    /// can move HEAD's reference. The repository is the same afterwards.
    ///
    /// # Errors
    ///
    /// If it cannot, for instance because a permission is missing, or because another git process
    /// has locked the reference.
    pub(super) fn check_writable(&self, head: &Head, prefix: &str) -> Result<()> {
        let objects = self.git(["rev-parse", "--git-path", "objects"], b"")?;
        let objects = self.resolved(objects);
        let folder = prefix.get(..2).map(|digits| objects.join(digits));
        let folder = folder.filter(|folder| folder.is_dir()).unwrap_or(objects);
        // If the file is left behind, `git gc` deletes it, because of its name.
        let file = folder.join(format!("tmp_obj_hashfinder_{}", process::id()));
        let written = File::create_new(&file).and_then(|_| fs::remove_file(&file));
        written
            .with_context(|| format!("cannot write to {}", quoted(&folder.to_string_lossy())))?;
        let update = self.update(head, &head.id);
        let dry_run = [b"start\n", &*update, b"prepare\nabort\n"].concat();
        self.git(["update-ref", "--stdin"], &dry_run)
            .with_context(|| format!("cannot move {}", head.name()))?;
        Ok(())
    }

    /// Writes a commit, and moves HEAD's reference to it. Returns a description of the move: the
    /// reference, the old ID and the new one.
    ///
    /// # Errors
    ///
    /// If git fails, or HEAD has changed since it was read. Then no reference is moved.
    pub(super) fn replace(&self, head: &Head, commit: &[u8], id: &str) -> Result<String> {
        let written = self.git(["hash-object", "-t", "commit", "-w", "--stdin"], commit)?;
        let name = head.name();
        let written = as_line(&written);
        if written != id {
            bail!("{name} was not moved: git gives the commit the ID {written}, not {id}");
        }
        let reference = self.reference();
        if reference != head.reference {
            bail!(
                "{name} was not moved to {id}: HEAD is now at {}; if that is right, run this again",
                as_text(&reference.to_string_lossy())
            );
        }
        let reason = format!("commit (nonce): {id} instead of {}", head.id);
        let moved = ["update-ref", "-m", &reason, "--stdin"];
        self.git(moved, &self.update(head, id)).with_context(|| {
            format!("{name} was not moved to {id}; if it has a newer commit now, run this again")
        })?;
        Ok(format!("{name}: {} -> {id}", head.id))
    }

    /// Copies the notes of HEAD's old commit to the new one, if git is configured to do so after
    /// `git commit --amend`.
    ///
    /// # Errors
    ///
    /// If git fails.
    pub(super) fn copy_notes(&self, head: &Head, id: &str) -> Result<()> {
        let copy = ["notes", "copy", "--for-rewrite=amend", "--stdin"];
        self.git(copy, &rewritten(head, id))
            .with_context(|| format!("the notes of {} were not all copied to {id}", head.id))?;
        Ok(())
    }

    /// Starts the `post-rewrite` hook, if there is one, as `git commit --amend` does. Its output
    /// goes to stderr.
    ///
    /// # Errors
    ///
    /// If git cannot be run, or is too old to run the hook.
    pub(super) fn start_hook(&self, head: &Head, id: &str) -> Result<Option<Child>> {
        let mut help = self.command();
        help.args(["hook", "run", "-h"]).stdin(Stdio::null());
        let help = help.output().context("cannot run git")?;
        if !String::from_utf8_lossy(&help.stdout).contains("--to-stdin") {
            let hook = ["rev-parse", "--git-path", &format!("hooks/{HOOK}")];
            let hook = self.resolved(self.git(hook, b"")?);
            if !hook.exists() {
                return Ok(None);
            }
            let hook = quoted(&hook.to_string_lossy());
            bail!(
                "the {HOOK} hook was not run, because that needs git {HOOK_VERSION} or newer; run \
                 it with: echo {} {id} | {hook} amend",
                head.id
            );
        }
        let mut run = self.command();
        run.args(["hook", "run", "--ignore-missing", "--to-stdin=/dev/stdin"]);
        run.args([HOOK, "--", "amend"]);
        run.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = run.spawn().context("cannot run git")?;
        if let Some(mut stdin) = child.stdin.take() {
            // The hook may not read its stdin. The text is shorter than a pipe's buffer, so writing
            // it does not block.
            let _ = stdin.write_all(&rewritten(head, id));
        }
        Ok(Some(child))
    }

    /// Returns the branch that HEAD points to, or `HEAD` if it is detached.
    fn reference(&self) -> OsString {
        let branch = self.git(["symbolic-ref", "--quiet", "HEAD"], b"");
        // The command fails if HEAD is detached. If there is no HEAD at all, reading or moving it
        // fails, too.
        branch.map_or_else(|_| "HEAD".into(), without_newline)
    }

    /// Returns the command for `git update-ref --stdin` that moves HEAD's reference from HEAD's
    /// commit to the commit `id`.
    fn update(&self, head: &Head, id: &str) -> Vec<u8> {
        let reference = head.reference.as_encoded_bytes();
        let ids = format!(" {id} {}\n", head.id);
        [b"update ", reference, ids.as_bytes()].concat()
    }

    /// Returns the path that git printed, resolved against the folder in which git ran.
    fn resolved(&self, printed: Vec<u8>) -> PathBuf {
        let folder = self.path.unwrap_or(Path::new(""));
        folder.join(without_newline(printed))
    }

    /// Returns a git command for this repository, as the user types it in a shell.
    fn command_line(&self, arguments: &str) -> String {
        match self.path {
            Some(path) => format!("git -C {} {arguments}", quoted(&path.to_string_lossy())),
            None => format!("git {arguments}"),
        }
    }

    /// Runs git and returns what it prints.
    ///
    /// # Errors
    ///
    /// If it cannot be run, or fails.
    fn git<T: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = T>,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        run(self.command().args(arguments), input)
    }

    /// Returns a git command for this repository, without arguments.
    fn command(&self) -> Command {
        let mut command = Command::new("git");
        if let Some(path) = self.path {
            command.args([OsStr::new("-C"), path.as_os_str()]);
        }
        for name in &self.removed {
            command.env_remove(name);
        }
        command
    }
}

/// Runs a git command with `input` as its stdin, and returns its stdout.
fn run(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut git = command
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run git; it must be installed and in PATH")?;
    if let Some(mut stdin) = git.stdin.take() {
        // If git does not read all of the input, git's own error message says why.
        let _ = stdin.write_all(input);
    }
    let done = git.wait_with_output().context("cannot wait for git")?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    match &*as_line(&done.stderr) {
        "" => bail!("git failed: {}", done.status),
        error => bail!("git failed: {error}"),
    }
}

/// Returns the line with the old and the new ID that hooks and `git notes copy` read.
fn rewritten(head: &Head, id: &str) -> Vec<u8> {
    format!("{} {id}\n", head.id).into_bytes()
}

fn without_newline(mut printed: Vec<u8>) -> OsString {
    printed.pop_if(|byte| *byte == b'\n');
    OsString::from_vec(printed)
}

/// Returns git's output as one line, escaped for a terminal: file names, references and the output
/// of hooks can contain anything.
fn as_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines = text.split('\n').map(str::trim);
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).map(as_text).collect();
    lines.join(" ")
}
