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
from conftest import HASHFINDER, PATIENCE_S, line_of, run_find
from test_find import HARD, cursor, cursor_in, place_of
from test_json import records

# Erases three lines, from within the last one; keeps them from wrapping; lets lines wrap again.
ERASE, NO_WRAP, WRAP = "\r\x1b[2A\x1b[J", "\x1b[?7l", "\x1b[?7h"

# "12s, 2.4 billion hashes, 200.0 million a second, 1 in 17 million matches"
DONE = r"\d+s, [\d.]+( \w+)? hashes, [\d.]+( \w+)? a second, 1 in [\w.]+( \w+)? matches"
POINT = r"(in [^,\r]+|by [^,\r]+|never)"
# "chance by now 12.34%, from now 50% by 14:02, 90% by 14:09, 99% by 14:18"
ODDS = rf"chance by now (under |over )?[\d.]+%, from now 50% {POINT}(, 90% {POINT})?(, 99% {POINT})?"
NEAREST = r"(nearest at distance \d+: |no candidate so far|candidates come with --show-inferior)"
LOOK = rf"{DONE}\r\n{ODDS}\r\n{NEAREST}"
PLAIN = rf"{DONE}, {ODDS}, {NEAREST}"

# A search that takes minutes or hours, with this kernel on one thread of any machine.
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
    for one in started:
        one.end()


def test_the_status_is_redrawn_and_gone_at_the_end(terminal):
    began = time.monotonic()
    process = terminal(HARD, "--maximum-time", "4s")
    process.wait_for(LOOK)
    assert process.wait() == 3
    looks = re.findall(LOOK, process.seen)
    # At most four displays per second, and the first one.
    assert 2 <= len(looks) <= 4 * (time.monotonic() - began) + 1
    # Each is drawn in place of the one before, and does not wrap.
    assert process.seen.count(ERASE) == process.seen.count(NO_WRAP) == len(looks)
    assert process.seen.count(ERASE + NO_WRAP) == len(looks) - 1
    screen = process.screen()
    assert re.fullmatch(r"hashfinder: \d+ hashes in .*", screen[0]), screen
    assert screen[1] == "hashfinder: the maximum time of 4s has passed"
    assert screen[2] == "hashfinder: under 0.01% of such searches would have ended by now"
    assert cursor_in("\n".join(screen)).startswith("hf3_")


def test_ctrl_c_through_the_terminal(terminal):
    process = terminal(HARD)
    process.wait_for(LOOK)
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert not any(re.search(DONE, line) for line in screen), screen
    assert "hashfinder: stopped by SIGINT" in screen
    again = run_find("--resume", cursor_in("\n".join(screen)), "--maximum-hashes", "1", "--json")
    _, end = records(again.stdout)
    # It resumed beyond the first secret.
    assert place_of(end["cursor"]) not in (cursor(HARD, 0), cursor(HARD, 1))


def test_result_lines_are_not_mixed_with_the_status(terminal):
    arguments = ["hashfinder", "--show-inferior", "5"]
    # Few rows, so that lines scroll off at the top.
    process = terminal(*arguments, size=(120, 8))
    while len(re.findall(LOOK, process.seen)) < 3:
        assert process.read()
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert screen[0].startswith("hashed name")
    summary = next(n for n, line in enumerate(screen) if " hashes in " in line)
    shown = screen[1:summary]
    assert len(shown) > 3
    for line in shown:
        secret = bytes.fromhex(line.split()[2])
        assert line == line_of(secret, "hashfinder").expandtabs()


def test_a_short_search_shows_no_status(terminal):
    process = terminal("aa")
    assert process.wait() == 0
    assert "\x1b" not in process.seen


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--quiet"], {}), ([], {"TERM": "dumb"}), ([], {"TERM": ""})]
)
def test_no_status_where_it_is_not_wanted(terminal, arguments, environment):
    process = terminal(HARD, "--maximum-time", "700ms", *arguments, **environment)
    assert process.wait() == 3
    assert "\x1b" not in process.seen
    if "--quiet" in arguments:
        assert process.seen == ""


def drawn(process, pattern):
    """Waits for the next display that matches the pattern, and returns its lines."""
    begin = len(process.seen)
    while True:
        looks = re.findall(r"\x1b\[\?7l([^\x1b]*)\x1b\[\?7h", process.seen[begin:])
        found = [look for look in looks if re.search(pattern, look)]
        if found:
            return found[0].split("\r\n")
        assert process.read(), process.seen


def test_a_narrow_terminal_has_the_important_parts(terminal):
    process = terminal(*LONG, size=(80, 24))
    for line, pattern in zip(drawn(process, "chance"), [DONE, ODDS, NEAREST]):
        assert re.match(pattern, line)
    # The terminal may become narrower, or have too few rows for all lines.
    process.resize(30, 3)
    done, odds = drawn(process, r"\A[^\r]*\r\n[^\r]*\Z")
    assert re.fullmatch(r"\d+s(, [\d.]+ \w+ a second)?", done)
    assert re.fullmatch(rf"from now 50% {POINT}", odds)
    assert max(len(done), len(odds)) <= 30
    process.press(b"\x03")
    assert process.wait() == 130


def test_points_in_time_are_those_of_the_users_clock(terminal):
    # Half of such searches end within minutes, or within hours on a busy machine.
    process = terminal("hashfinde", *LONG[1:], TZ="FAR-13:30")
    odds = drawn(process, "from now 50% by")[1]
    process.press(b"\x03")
    assert process.wait() == 130
    told = re.search(r"50% by (?:\w{3} )?(\d\d):(\d\d)", odds)
    there = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=13, minutes=30)))
    minutes = int(told[1]) * 60 + int(told[2]) - (there.hour * 60 + there.minute)
    # In another time zone it would be more than ten hours away, or past. It may pass while the
    # process ends.
    assert (minutes + 60) % (24 * 60) < 10 * 60, odds


def test_of_several_answers_the_next_is_told(terminal):
    process = terminal(*LONG, "--count", "3")
    odds = drawn(process, "from now")[1]
    assert re.match(rf"0 of 3 found, the next from now 50% {POINT}", odds)
    process.press(b"\x03")
    assert process.wait() == 130
    assert "of such searches" not in process.seen


def test_how_many_such_searches_would_have_ended_by_now(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    budget = ["--maximum-hashes", "1000000"]
    first = run_find("doctor", *budget)
    assert "\nhashfinder: 1.94% of such searches would have ended by now\n" in first.stderr
    # The hashes of earlier runs count, as they do for the chance by now.
    again = run_find("--resume", cursor_in(first.stderr), *budget)
    assert "\nhashfinder: 3.84% of such searches would have ended by now\n" in again.stderr
    for share in ["1.94%", "3.84%"]:
        stderr = run_find("doctor", "--session", "night", *budget).stderr
        assert f"\nhashfinder: {share} of such searches" in stderr
    assert "of such searches" not in run_find("doctor").stderr


def test_a_search_at_a_server_shows_how_it_comes_on(terminal, serve):
    process = terminal(HARD, "--server", serve().address, size=(200, 24))
    process.wait_for(LOOK)
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert not any(re.search(LOOK, line) for line in screen), screen
    again = run_find("--resume", cursor_in("\n".join(screen)), "--maximum-hashes", "1", "--json")
    _, end = records(again.stdout)
    # It resumed beyond the first secret.
    assert place_of(end["cursor"]) not in (cursor(HARD, 0), cursor(HARD, 1))


def test_a_search_at_the_reference_server_shows_how_long_it_takes(terminal, reference):
    process = terminal(HARD, "--server", reference().address)
    process.wait_for(r"1s, candidates come with --show-inferior")
    process.press(b"\x03")
    assert process.wait() == 130


def test_lines_at_a_slow_pace_without_a_terminal(find):
    begun = time.monotonic()
    process, quiet = find(HARD), find(HARD, "--quiet")
    process.wait_for(PLAIN)
    assert time.monotonic() - begun > 9
    for one in (process, quiet):
        one.send(signal.SIGINT)
        assert one.wait() == 130
    stderr = process.rest_of_stderr()
    assert "\x1b" not in stderr and not re.search(DONE, stderr)
    assert quiet.rest_of_stderr() == ""


def test_the_terminal_of_results_alone_gets_results_alone():
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [HASHFINDER, "find", HARD, "--maximum-time", "600ms"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
        timeout=PATIENCE_S,
    )
    os.close(theirs)
    with pytest.raises(OSError):
        os.read(ours, 1)
    os.close(ours)
    assert done.returncode == 3
    assert b"\x1b" not in done.stderr


def stop_for(process, seconds):
    """Stops a process by SIGSTOP, which it cannot notice, then continues it. Returns how long it
    was stopped."""
    process.send(signal.SIGSTOP)
    stat = pathlib.Path(f"/proc/{process.pid}/stat")
    deadline = time.monotonic() + PATIENCE_S
    while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < deadline, "it is not stopped"
        time.sleep(0.01)
    began = time.monotonic()
    time.sleep(seconds)
    stopped = time.monotonic() - began
    process.send(signal.SIGCONT)
    return stopped


@pytest.mark.parametrize(("stops", "seconds"), [(2, 3), (10, 0.4)])
def test_time_while_the_process_was_stopped_does_not_count(find, stops, seconds):
    """Regression: after a night in which it was stopped by ctrl-Z, the rate was a thousandth of
    what it should be."""
    began = time.monotonic()
    process = find(HARD, "--json", "--threads", "1")
    stopped = 0
    for _ in range(stops):
        for _ in range(8):
            process.wait_until_busy()
        stopped += stop_for(process, seconds)
    process.wait_until_busy()
    process.send(signal.SIGINT)
    assert process.wait() == 130
    ran = time.monotonic() - began - stopped
    took, rate = summary(process.rest_of_stderr())
    assert rate and took <= ran + 0.01
    _, end = records(process.popen.stdout.read())
    assert end["seconds"] <= ran


def test_the_status_goes_on_where_it_was_stopped(terminal):
    began = time.monotonic()
    process = terminal(*LONG, size=(200, 24))
    process.wait_for(DONE)
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    seen = len(process.seen)
    time.sleep(5)
    os.kill(process.pid, signal.SIGCONT)
    # The first ones may have been drawn before the process was stopped.
    while len(looks := re.findall(rf"(\d+)s, {DONE[6:]}", process.seen[seen:])) < 5:
        assert process.read()
    assert int(looks[4][0]) <= time.monotonic() - began - 5
    process.press(b"\x03")
    assert process.wait() == 130


def summary(stderr):
    """Returns the search's seconds and, if printed, its rate in million hashes per second."""
    found = re.search(r"\d+ hash(?:es)? in ([\d.]+)(s|ms|µs|ns)(?:, ([\d.]+) million a second)? \(", stderr)
    return float(found[1]) * {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[found[2]], found[3]


@pytest.mark.parametrize("hashes", [1, 1_000, 1_000_000, 1_000_000_000])
def test_a_rate_of_a_moment_is_not_told(hashes):
    """Regression: a search of 3 ms printed a rate."""
    done = run_find(HARD, "--maximum-hashes", str(hashes), "--maximum-time", "1s")
    took, rate = summary(done.stderr)
    # Durations are rounded to a hundredth of a millisecond.
    assert abs(took - 0.1) < 1e-5 or bool(rate) == (took > 0.1)
