//! Tests commands whose output is closed early or cannot be written.

use std::{
    fs::File,
    io,
    process::{Child, Command, Stdio},
};

/// A valid stamp.
const STAMP: &str = "1:20:040927:mertz@gnosis.cx::odVZhQMP:7ca28";

/// Command lines that print, and that succeed if their output can be written. They need no server
/// and no file.
const COMMANDS: [&[&str]; 10] = [
    &["bench", "--seconds", "0.001", "--kernel", "portable"],
    &[
        "bench",
        "--seconds",
        "0.001",
        "--kernel",
        "portable",
        "--json",
    ],
    &["completions", "bash"],
    &["config", "default"],
    &["config", "show"],
    &["estimate", "doctor", "--rate", "1e6"],
    &["hashcash", "me", "--bits", "1", "--quiet"],
    &["man"],
    &["verify", "pO0G", "doctor"],
    &["hashcash", "--check", STAMP],
];

fn run(arguments: &[&str], stdout: Stdio) -> (Option<i32>, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_hashfinder"))
        .args(arguments)
        .args(["--config", "/dev/null"])
        .env_clear()
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(Child::wait_with_output)
        .unwrap();
    (done.status.code(), String::from_utf8(done.stderr).unwrap())
}

#[test]
fn a_closed_stdout_is_not_an_error() {
    for command in COMMANDS {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let ended = run(command, writer.into());
        assert_eq!(ended, (Some(0), String::new()), "{command:?}");
    }
}

#[test]
fn lost_output_is_an_error() {
    for command in COMMANDS {
        let full = File::create("/dev/full").unwrap();
        let (code, errors) = run(command, full.into());
        assert_eq!(code, Some(5), "{command:?}");
        let told = "hashfinder: cannot write to stdout: No space left on device (os error 28)\n";
        assert_eq!(errors, told, "{command:?}");
    }
}
