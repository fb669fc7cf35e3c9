//! Tests completions with shells, and manual pages with groff. If a program is not installed, its
//! check is skipped with a note. In CI, the check fails.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const HASHFINDER: &str = env!("CARGO_BIN_EXE_hashfinder");

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"))
}

fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        let is_ci = env::var_os("CI").is_some_and(|value| value == "true");
        assert!(
            !is_ci,
            "{program} is not installed, and in CI no check may be skipped"
        );
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Returns an empty folder for one test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // The folder may be left from an earlier run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Writes a shell's completions into a file in a new folder, and returns its path.
fn completions(shell: &str, within: &str) -> PathBuf {
    let script = run(HASHFINDER, &["completions", shell]);
    assert!(script.status.success(), "{script:?}");
    let file = folder(within).join("hashfinder");
    fs::write(&file, script.stdout).unwrap();
    file
}

#[test]
fn shells_accept_the_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = completions(shell, shell);
        if is_installed(shell) {
            let checked = run(shell, &["-n", script.to_str().unwrap()]);
            assert!(
                checked.status.success() && checked.stderr.is_empty(),
                "{checked:?}"
            );
        }
    }
    for shell in ["elvish", "powershell"] {
        let script = fs::read_to_string(completions(shell, shell)).unwrap();
        assert!(script.contains("--maximum-hashes"), "{shell}");
    }
}

#[test]
fn bash_completes_commands_flags_and_values() {
    if !is_installed("bash") {
        return;
    }
    let script = completions("bash", "words");
    for (line, expected) in [
        ("hashfinder es", "estimate"),
        ("hashfinder find --maximum-h", "--maximum-hashes"),
        ("hashfinder find --color al", "always"),
        ("hashfinder config sh", "show"),
        ("hashfinder completions fi", "fish"),
    ] {
        // Does what bash does when the tab key is pressed.
        let press = format!(
            "source {}; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _hashfinder hashfinder \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let completed = run("bash", &["--norc", "-c", &press]);
        let words = String::from_utf8(completed.stdout).unwrap();
        assert_eq!(words.trim(), expected, "{line}");
    }
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = folder("man").join("man1");
    let written = run(
        HASHFINDER,
        &["man", "--directory", folder.to_str().unwrap()],
    );
    assert!(written.status.success(), "{written:?}");
    for page in ["hashfinder", "hashfinder-find", "hashfinder-config-show"] {
        let page = folder.join(format!("{page}.1"));
        assert!(page.is_file(), "there is no {page:?}");
    }
    let printed = run(HASHFINDER, &["man"]).stdout;
    assert_eq!(printed, fs::read(folder.join("hashfinder.1")).unwrap());
    if !is_installed("groff") {
        return;
    }
    for page in fs::read_dir(folder).unwrap() {
        let page = page.unwrap().path();
        let shown = run(
            "groff",
            &["-man", "-ww", "-Tutf8", "-P-cbou", page.to_str().unwrap()],
        );
        let warnings = String::from_utf8(shown.stderr).unwrap();
        assert!(
            shown.status.success() && warnings.is_empty(),
            "{page:?}: {warnings}"
        );
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(text.contains("SYNOPSIS"), "{page:?}");
        // A table whose lines were joined would have no such line.
        if page.ends_with("hashfinder-find.1") {
            let code = text
                .lines()
                .any(|line| line.trim() == "4  no secret can ever match the name");
            assert!(code, "{text}");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_created_is_named() {
    let failed = run(HASHFINDER, &["man", "--directory", "/dev/null/man1"]);
    assert_eq!(failed.status.code(), Some(5));
    let why = String::from_utf8(failed.stderr).unwrap();
    assert!(why.contains("/dev/null/man1"), "{why}");
}
