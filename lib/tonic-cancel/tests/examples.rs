//! Tests that the examples work as described.

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

#[path = "../examples/cpu_bound.rs"]
mod cpu_bound;

#[path = "../examples/proxy.rs"]
mod proxy;

#[test]
fn a_handler_that_keeps_a_core_busy_stops() {
    cpu_bound::main().unwrap();
}

#[test]
fn a_proxy_propagates_deadline_and_cancellation() {
    proxy::main().unwrap();
}

/// Uses a real process and a real signal.
#[test]
fn a_client_is_stopped_by_ctrl_c() {
    let tests = env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/ctrl_c");
    let mut process = Command::new(program)
        .stdout(Stdio::piped())
        .spawn()
        .expect("`cargo test` builds it; with `--test examples`, `cargo build --examples` does");
    let output = BufReader::new(process.stdout.take().unwrap());
    let mut lines = output.lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "a message; press ctrl-C");
    let pid = process.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let mut rest: Vec<String> = lines.collect();
    assert_eq!(
        rest.pop().unwrap(),
        "drained; calls that had to be ended: 0"
    );
    // The two ends of the call may report in either order.
    rest.sort();
    assert_eq!(
        rest,
        [
            "the call is over: the caller cancelled the call: ctrl-C",
            "the server's call has ended: client gone",
        ]
    );
    assert!(process.wait().unwrap().success());
}
