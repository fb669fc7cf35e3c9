//! Compares the program's output, character by character, with the files in `tests/cmd`.
//! CONTRIBUTING.md says how to update them.

use std::{env, path::Path, process::Command};

const HASHFINDER: &str = env!("CARGO_BIN_EXE_hashfinder");

/// Returns variables that unset all settings of the user, and set the width of the help to 100
/// columns.
fn environment() -> Vec<(String, String)> {
    let ours = env::vars().filter(|(name, _)| name.starts_with("HASHFINDER_"));
    let ours = ours.map(|(name, _)| (name, String::new()));
    let others = [
        ("COLUMNS", "100"),
        ("HOME", "/nowhere"),
        ("XDG_CONFIG_HOME", ""),
        ("XDG_STATE_HOME", ""),
    ];
    let others = others.map(|(name, value)| (name.to_owned(), value.to_owned()));
    ours.chain(others).collect()
}

#[test]
fn output_matches_the_recorded_cases() {
    let cases = trycmd::TestCases::new();
    cases.register_bin("hashfinder", Path::new(HASHFINDER));
    for (name, value) in environment() {
        cases.env(name, value);
    }
    cases.case("tests/cmd/*.trycmd");
}

/// Checks that `help.trycmd` has the help of every command.
#[test]
fn the_help_of_every_command_is_recorded() {
    let seen = include_str!("cmd/help.trycmd");
    let mut paths: Vec<Vec<String>> = vec![vec![]];
    let mut count = 0;
    while let Some(path) = paths.pop() {
        count += 1;
        let line = [
            "$ hashfinder".to_owned(),
            path.join(" "),
            "--help".to_owned(),
        ];
        let line = line.join(" ").replace("  ", " ");
        let is_seen = seen.lines().any(|one| one == line);
        assert!(is_seen, "tests/cmd/help.trycmd lacks {line:?}");
        let help = Command::new(HASHFINDER).args(&path).arg("-h").output();
        let help = String::from_utf8(help.unwrap().stdout).unwrap();
        let Some((_, commands)) = help.split_once("Commands:\n") else {
            continue;
        };
        let commands = commands.lines().take_while(|line| !line.is_empty());
        // Lines that are indented further continue the line before.
        let commands = commands.filter(|line| !line.starts_with("   "));
        let names = commands.filter_map(|line| line.split_whitespace().next());
        for name in names.filter(|name| *name != "help") {
            paths.push([&path[..], &[name.to_owned()]].concat());
        }
    }
    assert!(count > 5, "the help lists no commands");
}
