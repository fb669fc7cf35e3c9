"""How `hashfinder find` shows progress on stderr, which is a pseudo-terminal here."""

import datetime
import errno
import os
import pathlib
import pty
import re
import signal
import subprocess
import termios
import time

import pyte
import pytest
from conftest import HASHFINDER, TIMEOUT_S, line_of, run_find
from test_find import HARD, cursor, cursor_in, position_of
from test_json import records

# Erase three lines, with the cursor in the last one; turn wrapping off; turn it on again.
ERASE, NO_WRAP, WRAP = "\r\x1b[2A\x1b[J", "\x1b[?7l", "\x1b[?7h"

# "12s, 2.4 billion hashes, 200.0 million per second, 1 in 17 million matches"
DONE = r"\d+s, [\d.]+( \w+)? hashes, [\d.]+( \w+)? per second, 1 in [\w.]+( \w+)? matches"
POINT = r"(in [^,\r]+|by [^,\r]+|never reached)"
# "12.34% chance so far, 50% chance by 14:02, 90% by 14:09, 99% by 14:18"
ODDS = rf"(under |over )?[\d.]+% chance so far, 50% chance {POINT}(, 90% {POINT})?(, 99% {POINT})?"
NEAREST = r"(nearest at distance \d+: |no candidate so far|use --show-inferior to see the nearest)"
DISPLAY = rf"{DONE}\r\n{ODDS}\r\n{NEAREST}"
PLAIN = rf"{DONE}, {ODDS}, {NEAREST}"

# A search that takes minutes or hours on any machine, with this kernel and one thread.
LONG = ["hashfinder", "--ideal-distance", "1", "--kernel", "portable", "--threads", "1"]


class Terminal:
    """A pseudo-terminal, and the process that it controls."""

    COMMAND = "find"

    def __init__(self, *arguments, size=(120, 24), **environment):
        self.seen = ""
        self.size = size
        environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1"} | environment
        self.pid, self._ours = pty.fork()
        if self.pid == 0:
            # At ctrl-C, a terminal would discard output that was not shown yet.
            attributes = termios.tcgetattr(0)
            attributes[3] |= termios.NOFLSH
            termios.tcsetattr(0, termios.TCSANOW, attributes)
            termios.tcsetwinsize(0, size[::-1])
            os.execve(HASHFINDER, [HASHFINDER, self.COMMAND, *arguments], environment)

    def read(self):
        """Reads some more, and returns False at the end."""
        try:
            data = os.read(self._ours, 4096)
        except OSError as error:
            # Linux reports this once no process has the other side open.
            assert error.errno == errno.EIO
            data = b""
        self.seen += data.decode()
        return bool(data)

    def wait_for(self, pattern):
        while not re.search(pattern, self.seen):
            assert self.read(), self.seen

    def press(self, keys):
        os.write(self._ours, keys)

    def wait(self):
        """Reads to the end, and returns the exit code."""
        while self.read():
            pass
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        os.close(self._ours)
        return os.waitstatus_to_exitcode(status)

    def end(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def resize(self, columns, rows):
        termios.tcsetwinsize(self._ours, (rows, columns))

    def screen(self):
        """Returns the lines that scrolled off at the top, then those on the screen."""
        screen = pyte.HistoryScreen(*self.size, history=10_000)
        # The terminal itself prints ^C when ctrl-C is pressed, wherever the cursor is.
        pyte.Stream(screen).feed(self.seen.replace("^C", ""))
        above = ["".join(line[x].data for x in range(self.size[0])) for line in screen.history.top]
        return [line.rstrip() for line in [*above, *screen.display]]


@pytest.fixture
def terminal():
    started = []

    def start(*arguments, **kwargs):
        started.append(Terminal(*arguments, **kwargs))
        return started[-1]

    yield start
    for process in started:
        process.end()


def test_progress_is_redrawn_in_place_and_erased_at_the_end(terminal):
    began = time.monotonic()
    process = terminal(HARD, "--maximum-time", "4s")
    process.wait_for(DISPLAY)
    assert process.wait() == 3
    displays = re.findall(DISPLAY, process.seen)
    # At most four displays per second, and the first one.
    assert 2 <= len(displays) <= 4 * (time.monotonic() - began) + 1
    # Each is drawn in place of the one before, and does not wrap.
    assert process.seen.count(ERASE) == process.seen.count(NO_WRAP) == len(displays)
    assert process.seen.count(ERASE + NO_WRAP) == len(displays) - 1
    screen = process.screen()
    assert re.fullmatch(r"hashfinder: [\d,]+ hashes in .*", screen[0]), screen
    assert screen[1] == "hashfinder: the maximum time of 4s has passed"
    assert screen[2] == "hashfinder: under 0.01% of searches like this one finish within this many hashes"
    assert cursor_in("\n".join(screen)).startswith("hf3_")


def test_ctrl_c_on_a_terminal_erases_the_progress(terminal):
    process = terminal(HARD)
    process.wait_for(DISPLAY)
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert not any(re.search(DONE, line) for line in screen), screen
    assert "hashfinder: stopped by SIGINT" in screen
    again = run_find("--resume", cursor_in("\n".join(screen)), "--maximum-hashes", "1", "--json")
    _, end = records(again.stdout)
    # It resumed beyond the first secret.
    assert position_of(end["cursor"]) not in (cursor(HARD, 0), cursor(HARD, 1))


def test_result_lines_are_not_mixed_with_progress(terminal):
    arguments = ["hashfinder", "--show-inferior", "5"]
    # There are few rows, so that lines scroll off at the top.
    process = terminal(*arguments, size=(120, 8))
    while len(re.findall(DISPLAY, process.seen)) < 3:
        assert process.read()
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert screen[0].startswith("hash ")
    summary = next(n for n, line in enumerate(screen) if " hashes in " in line)
    shown = screen[1:summary]
    assert len(shown) > 3
    for line in shown:
        secret = bytes.fromhex(line.split()[2])
        assert line == line_of(secret, "hashfinder").expandtabs()


def test_a_short_search_shows_no_progress(terminal):
    process = terminal("aa")
    assert process.wait() == 0
    assert "\x1b" not in process.seen


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--quiet"], {}), ([], {"TERM": "dumb"}), ([], {"TERM": ""})]
)
def test_quiet_and_a_dumb_terminal_show_no_progress(terminal, arguments, environment):
    process = terminal(HARD, "--maximum-time", "700ms", *arguments, **environment)
    assert process.wait() == 3
    assert "\x1b" not in process.seen
    if "--quiet" in arguments:
        assert process.seen == ""


def wait_for_display(process, pattern):
    """Waits for the next display that matches the pattern, and returns its lines."""
    begin = len(process.seen)
    while True:
        displays = re.findall(r"\x1b\[\?7l([^\x1b]*)\x1b\[\?7h", process.seen[begin:])
        found = [display for display in displays if re.search(pattern, display)]
        if found:
            return found[0].split("\r\n")
        assert process.read(), process.seen


def test_a_narrow_terminal_shows_the_important_parts(terminal):
    process = terminal(*LONG, size=(80, 24))
    for line, pattern in zip(wait_for_display(process, "chance"), [DONE, ODDS, NEAREST]):
        assert re.match(pattern, line)
    # The terminal may become narrower, or have too few rows for all lines.
    process.resize(30, 3)
    done, odds = wait_for_display(process, r"\A[^\r]*\r\n[^\r]*\Z")
    assert re.fullmatch(r"\d+s(, [\d.]+ \w+ per second)?", done)
    assert re.fullmatch(rf"50% chance {POINT}", odds)
    assert max(len(done), len(odds)) <= 30
    process.press(b"\x03")
    assert process.wait() == 130


def test_times_are_in_the_users_time_zone(terminal):
    # Half of such searches end within minutes, or within hours on a busy machine.
    process = terminal("hashfinde", *LONG[1:], TZ="FAR-13:30")
    odds = wait_for_display(process, "50% chance by")[1]
    process.press(b"\x03")
    assert process.wait() == 130
    shown = re.search(r"50% chance by (?:\w{3} )?(\d\d):(\d\d)", odds)
    now = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=13, minutes=30)))
    minutes = int(shown[1]) * 60 + int(shown[2]) - (now.hour * 60 + now.minute)
    # In another time zone it would be in more than ten hours, or past. It may also pass while the
    # process ends.
    assert (minutes + 60) % (24 * 60) < 10 * 60, odds


def test_of_several_results_progress_is_about_the_next(terminal):
    process = terminal(*LONG, "--count", "3")
    odds = wait_for_display(process, "50% chance")[1]
    assert re.match(rf"0 of 3 found, next: 50% chance {POINT}", odds)
    process.press(b"\x03")
    assert process.wait() == 130
    assert "of searches like this one" not in process.seen


def test_the_share_of_searches_that_would_have_ended_is_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    budget = ["--maximum-hashes", "1000000"]
    first = run_find("doctor", *budget)
    assert "\nhashfinder: 1.94% of searches like this one finish within this many hashes\n" in first.stderr
    # The hashes of earlier runs count, as they do for the chance so far.
    again = run_find("--resume", cursor_in(first.stderr), *budget)
    assert "\nhashfinder: 3.84% of searches like this one finish within this many hashes\n" in again.stderr
    for share in ["1.94%", "3.84%"]:
        stderr = run_find("doctor", "--session", "night", *budget).stderr
        assert f"\nhashfinder: {share} of searches like this one" in stderr
    assert "of searches like this one" not in run_find("doctor").stderr


def test_a_search_on_a_server_shows_progress(terminal, serve):
    process = terminal(HARD, "--server", serve().address, size=(200, 24))
    process.wait_for(DISPLAY)
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert not any(re.search(DISPLAY, line) for line in screen), screen
    again = run_find("--resume", cursor_in("\n".join(screen)), "--maximum-hashes", "1", "--json")
    _, end = records(again.stdout)
    # It resumed beyond the first secret.
    assert position_of(end["cursor"]) not in (cursor(HARD, 0), cursor(HARD, 1))


def test_a_search_on_the_reference_server_shows_the_elapsed_time(terminal, reference):
    process = terminal(HARD, "--server", reference().address)
    process.wait_for(r"1s, use --show-inferior to see the nearest candidate")
    process.press(b"\x03")
    assert process.wait() == 130


def test_without_a_terminal_progress_is_printed_seldom(find):
    began = time.monotonic()
    process, quiet = find(HARD), find(HARD, "--quiet")
    process.wait_for(PLAIN)
    assert time.monotonic() - began > 9
    for running in (process, quiet):
        running.send(signal.SIGINT)
        assert running.wait() == 130
    stderr = process.rest_of_stderr()
    assert "\x1b" not in stderr and not re.search(DONE, stderr)
    assert quiet.rest_of_stderr() == ""


def test_progress_is_not_shown_if_only_stdout_is_a_terminal():
    controller, terminal = pty.openpty()
    done = subprocess.run(
        [HASHFINDER, "find", HARD, "--maximum-time", "600ms"],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
        timeout=TIMEOUT_S,
    )
    os.close(terminal)
    with pytest.raises(OSError):
        os.read(controller, 1)
    os.close(controller)
    assert done.returncode == 3
    assert b"\x1b" not in done.stderr


def suspend(process, seconds):
    """Suspends a process for some seconds with SIGSTOP, which it cannot notice. Returns how long it
    was suspended."""
    process.send(signal.SIGSTOP)
    stat = pathlib.Path(f"/proc/{process.pid}/stat")
    deadline = time.monotonic() + TIMEOUT_S
    while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < deadline, "the process is not suspended"
        time.sleep(0.01)
    began = time.monotonic()
    time.sleep(seconds)
    suspended = time.monotonic() - began
    process.send(signal.SIGCONT)
    return suspended


@pytest.mark.parametrize(("suspensions", "seconds"), [(2, 3), (10, 0.4)])
def test_time_while_the_process_was_suspended_does_not_count(find, suspensions, seconds):
    """Regression: if a search was suspended with ctrl-Z for a night, its rate was far too low."""
    began = time.monotonic()
    process = find(HARD, "--json", "--threads", "1")
    suspended = 0
    for _ in range(suspensions):
        for _ in range(8):
            process.wait_until_busy()
        suspended += suspend(process, seconds)
    process.wait_until_busy()
    process.send(signal.SIGINT)
    assert process.wait() == 130
    ran = time.monotonic() - began - suspended
    took, rate = summary(process.rest_of_stderr())
    assert rate and took <= ran + 0.01
    _, end = records(process.popen.stdout.read())
    assert end["seconds"] <= ran


def test_progress_continues_where_the_process_was_suspended(terminal):
    began = time.monotonic()
    process = terminal(*LONG, size=(200, 24))
    process.wait_for(DONE)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    seen = len(process.seen)
    time.sleep(5)
    os.kill(process.pid, signal.SIGCONT)
    # The first displays may have been drawn before the process was suspended.
    while len(displays := re.findall(rf"(\d+)s, {DONE[6:]}", process.seen[seen:])) < 5:
        assert process.read()
    assert int(displays[4][0]) <= time.monotonic() - began - 5
    process.press(b"\x03")
    assert process.wait() == 130


def summary(stderr):
    """Returns the search's seconds and, if printed, its rate in million hashes per second."""
    found = re.search(r"\d+ hash(?:es)? in ([\d.]+)(s|ms|µs|ns)(?:, ([\d.]+) million per second)? \(", stderr)
    return float(found[1]) * {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[found[2]], found[3]


@pytest.mark.parametrize("hashes", [1, 1_000, 1_000_000, 1_000_000_000])
def test_a_very_short_search_prints_no_rate(hashes):
    """Regression: a search of 3 ms printed a rate."""
    done = run_find(HARD, "--maximum-hashes", str(hashes), "--maximum-time", "1s")
    took, rate = summary(done.stderr)
    # Durations are rounded to a hundredth of a millisecond.
    assert abs(took - 0.1) < 1e-5 or bool(rate) == (took > 0.1)
