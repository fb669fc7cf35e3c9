//! Checks how texts are written: that few phrases sound translated, and that comments are not too
//! wide.

use std::{fs, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::steps::{output, root, took};

/// Phrases that sound translated, such as "is told that" and "somebody". Most lines with them were
/// rewritten; the remaining ones are natural English.
const PHRASES: &str = r"[Ww]hoever|[Ss]omebody|[Nn]obody|comes? on\b|goes on\b|is told|are told|tells\b|so many\b|[Ww]hat there is|have to do with|of its own|but for\b|is no [a-z]|are no [a-z]";

/// Maximum number of lines with these phrases. Lower it whenever fewer are left.
const MOST_LINES: usize = 25;

/// Maximum width of a comment in Rust, in characters. rustfmt wraps code only.
const WIDTH: usize = 100;

/// Pattern that excludes this file, which contains the phrases in [`PHRASES`].
const THIS_FILE: &str = ":!xtask/src/prose.rs";

/// Pattern that excludes the protobuf files of other projects.
const FOREIGN: &str = ":!proto/google";

/// Checks all sources and documents.
///
/// # Errors
///
/// If more than [`MOST_LINES`] lines have such phrases, or a comment is too wide. The error lists
/// all of these lines.
pub(crate) fn check() -> Result<()> {
    println!("== prose");
    let began = Instant::now();
    let mut grep = Command::new("git");
    grep.args(["grep", "--untracked", "-nE", PHRASES, "--"]);
    grep.args(["*.rs", "*.md", "*.py", "*.proto", THIS_FILE, FOREIGN]);
    // `git grep` exits with 1 if it finds nothing, so its exit code is ignored.
    let found = grep.current_dir(root()).output();
    let found = String::from_utf8(found.context("cannot run git")?.stdout)?;
    let count = found.lines().count();
    ensure!(
        count <= MOST_LINES,
        "{count} lines have phrases that sound translated, and {MOST_LINES} may; rewrite the new ones:\n{}",
        found.trim_end()
    );
    println!(
        "== prose: {count} lines with phrases that sound translated; {MOST_LINES} may have them"
    );
    let mut list = Command::new("git");
    list.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let files = output(list.args(["--", "*.rs", ":!*/generated/*"]))?;
    let mut wide = Vec::new();
    for name in files.lines() {
        let path: PathBuf = root().join(name);
        if !path.exists() {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") && line.chars().count() > WIDTH {
                wide.push(format!("{name}:{}", number + 1));
            }
        }
    }
    ensure!(
        wide.is_empty(),
        "comments over {WIDTH} columns: {}",
        wide.join(", ")
    );
    took("prose", began.elapsed());
    Ok(())
}
