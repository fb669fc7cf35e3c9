"""Signals that arrive twice, signals other than SIGINT and SIGTERM, and ignored signals."""

import os
import re
import signal
import subprocess
import time

import pytest
from conftest import HASHFINDER, SIGINT, SIGTERM, TIMEOUT_S, run_find, status_of, wait_until_caught
from test_find import HARD, cursor_in
from test_json import records

SIGHUP, SIGQUIT = signal.SIGHUP, signal.SIGQUIT
CODES = {SIGHUP: 129, SIGINT: 130, SIGQUIT: 131, SIGTERM: 143}

# Number of runs for each signal.
TRIALS = 10


def stopped_twice(number, command):
    """Runs a command and sends it a signal as `timeout` does: to the process, then to its group."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until_caught(process.pid, number)
    os.kill(process.pid, number)
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("number", list(CODES))
def test_a_signal_to_the_process_and_then_to_its_group_counts_once(number):
    """Regression: in one of four runs under `timeout`, the second signal ended the process before
    it printed its cursor."""
    for _ in range(TRIALS):
        command = [HASHFINDER, "find", HARD, "--json"]
        code, stdout, stderr = stopped_twice(number, command)
        assert code == CODES[number]
        _, end = records(stdout)
        assert (end["how"], end["exit_code"]) == ("stopped", code)
        assert end["cursor"] == cursor_in(stderr)


@pytest.mark.parametrize("second", list(CODES))
def test_two_signals_that_arrive_together_count_once(find, second):
    for first in CODES:
        process = find(HARD)
        process.wait_until_busy()
        process.send(first)
        process.send(second)
        # The kernel delivers the lower number first.
        assert process.wait() in (CODES[first], CODES[second])
        assert cursor_in(process.rest_of_stderr()).startswith("hf3_")


@pytest.mark.parametrize("number", list(CODES))
def test_every_signal_stops_a_search_and_keeps_its_session(find, number, tmp_path, monkeypatch):
    """Regression: SIGHUP (a closed terminal) and SIGQUIT killed the search. It printed no
    cursor, and its session was out of date."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    process = find(HARD, "--session", "night", "--json")
    process.wait_until_busy()
    process.send(number)
    assert process.wait() == CODES[number]
    _, end = records(process.popen.stdout.read())
    assert (end["how"], end["exit_code"]) == ("stopped", CODES[number])
    again = run_find(HARD, "--session", "night", "--maximum-hashes", "1")
    assert f"resuming after {end['hashes']:,} hashes" in again.stderr


@pytest.mark.parametrize("number", list(CODES))
def test_every_signal_drains_a_server(serve, number):
    server = serve()
    server.send(number)
    server.send(number)
    assert server.wait() == 0
    log = server.rest_of_stderr()
    assert "drained" in log and "stopping at once" not in log


def with_ignored(*numbers):
    """Returns a `preexec_fn` that ignores these signals, as nohup does with SIGHUP."""

    def prepare():
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return prepare


@pytest.mark.parametrize("ignored", list(CODES))
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(find, ignored):
    other = SIGTERM if ignored != SIGTERM else SIGINT
    process = find(HARD, preexec_fn=with_ignored(ignored))
    process.wait_until_busy()
    process.send(ignored)
    process.wait_until_busy()
    assert process.popen.poll() is None
    process.send(other)
    assert process.wait() == CODES[other]
    assert "stopped by " + other.name in process.rest_of_stderr()


def test_nohup_keeps_sighup_ignored(tmp_path):
    program = f"""
        nohup {HASHFINDER} find {HARD} --maximum-time 1h > {tmp_path}/out 2>&1 < /dev/null &
        echo $!
    """
    shell = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True)
    process = int(shell.stdout)
    ignored = ""
    try:
        wait_until_caught(process, SIGTERM)
        ignored = status_of(process, "SigIgn")
    finally:
        os.kill(process, SIGTERM)
    assert int(ignored, 16) >> (SIGHUP - 1) & 1


@pytest.mark.parametrize("number", list(CODES))
@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--seconds", "3600"],
        ["searches", "list", "--server", "127.0.0.1:9", "--connect-timeout", "1h"],
        ["searches", "cancel", "a", "--server", "127.0.0.1:9", "--connect-timeout", "1h"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_other_commands_end_with_their_documented_codes(arguments, number):
    """Regression: the signal killed them, so a script that expects exit code 130 did not see it."""
    process = subprocess.Popen(
        [HASHFINDER, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until_caught(process.pid, number)
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) == CODES[number]
    help_text = subprocess.run(
        [HASHFINDER, *arguments[: 2 if arguments[0] == "searches" else 1], "--help"],
        capture_output=True,
        text=True,
    )
    assert str(CODES[number]) in help_text.stdout


@pytest.mark.parametrize("number", list(CODES))
def test_watch_succeeds_at_every_signal(serve, number):
    process = subprocess.Popen(
        [HASHFINDER, "searches", "watch", "--server", serve().address], stdout=subprocess.DEVNULL
    )
    wait_until_caught(process.pid, number)
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) == 0


def test_a_recipe_stopped_by_two_signals_prints_its_resume_command(tmp_path):
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, *identity, "commit", "--quiet", "--allow-empty", "-m", "a"], check=True)
    for _ in range(TRIALS):
        command = [HASHFINDER, "git-commit", "0" * 16, "--repository", str(tmp_path)]
        code, _, stderr = stopped_twice(SIGTERM, command)
        assert code == CODES[SIGTERM]
        assert "resume with: hashfinder git-commit" in stderr
