"""How `hashfinder find` shows on stderr that it comes on; its users sit at a pseudo-terminal."""

import errno
import os
import pty
import re
import signal
import subprocess
import termios
import time

import pytest
from conftest import HASHFINDER, PATIENCE_S, line_of, run_find
from test_find import HARD, cursor, cursor_in, reference  # noqa: F401
from test_json import records

ERASE = "\r\x1b[2K"
# "12s, 200.0 million hashes a second, 2.4 billion in all, chance by now 12.34%, nearest at distance 3: ..."
LOOK = (
    r"\d+s, [\d.]+( \w+)? hashes a second, [\d.]+( \w+)? in all, "
    r"chance by now (under |over )?[\d.]+%, (nearest at|no candidate)"
)


class Terminal:
    """A pseudo-terminal and the process that has it as its own."""

    COMMAND = "find"

    def __init__(self, *arguments, **environment):
        self.seen = ""
        environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1"} | environment
        self.pid, self._ours = pty.fork()
        if self.pid == 0:
            # At ctrl-C a terminal throws away what it has not shown yet, which may be anything.
            attributes = termios.tcgetattr(0)
            attributes[3] |= termios.NOFLSH
            termios.tcsetattr(0, termios.TCSANOW, attributes)
            os.execve(HASHFINDER, [HASHFINDER, self.COMMAND, *arguments], environment)

    def read(self):
        """Reads some more; False at the end."""
        try:
            data = os.read(self._ours, 4096)
        except OSError as error:
            # What Linux says once nobody has the other side open.
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
        """Reads to the end; tells the exit code."""
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

    def screen(self):
        """The lines that stand on the screen, as far as this program needs a terminal."""
        # The terminal itself shows that ctrl-C was pressed, wherever that is.
        text = re.sub(r"\x1b\[\?7[lh]|\^C", "", self.seen)
        lines = []
        for line in text.replace("\r\n", "\n").split("\n"):
            lines.append(line.rsplit(ERASE, 1)[-1])
        assert not re.search(r"[\r\x1b]", "".join(lines)), lines
        return lines


@pytest.fixture
def terminal():
    started = []

    def start(*arguments, **kwargs):
        started.append(Terminal(*arguments, **kwargs))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_the_status_line_is_redrawn_and_gone_at_the_end(terminal):
    process = terminal(HARD, "--maximum-time", "1500ms")
    process.wait_for(LOOK)
    assert process.wait() == 3
    looks = re.findall(LOOK, process.seen)
    assert 2 <= len(looks) <= 7
    # Each is drawn in the place of the one before, and does not wrap.
    assert len(re.findall(r"\r\x1b\[2K\x1b\[\?7l[^\r\n]*\x1b\[\?7h", process.seen)) == len(looks)
    screen = process.screen()
    assert not any(re.search(LOOK, line) for line in screen), screen
    assert screen[1] == "hashfinder: the maximum time of 1s 500ms has passed"
    assert cursor_in("\n".join(screen)).startswith("hf1_")


def test_ctrl_c_through_the_terminal(terminal):
    process = terminal(HARD)
    process.wait_for(LOOK)
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert not any(re.search(LOOK, line) for line in screen), screen
    assert "hashfinder: stopped by SIGINT" in screen
    again = run_find("--resume", cursor_in("\n".join(screen)), "--maximum-hashes", "1", "--json")
    _, end = records(again.stdout)
    # It went on from somewhere behind the first secret.
    assert end["cursor"] not in (cursor(HARD, 0), cursor(HARD, 1))


def test_result_lines_are_not_mixed_with_the_status_line(terminal):
    arguments = ["hashfinder", "--show-inferior", "5"]
    process = terminal(*arguments)
    while len(re.findall(LOOK, process.seen)) < 3:
        assert process.read()
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert screen[0].startswith("hashed name")
    summary = next(n for n, line in enumerate(screen) if " secrets in " in line)
    shown = screen[1:summary]
    assert len(shown) > 3
    for line in shown:
        assert line == line_of(bytes.fromhex(line.split("\t")[2]), "hashfinder")


def test_a_short_search_shows_no_status_line(terminal):
    process = terminal("aa")
    assert process.wait() == 0
    assert "\x1b" not in process.seen


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--quiet"], {}), ([], {"TERM": "dumb"}), ([], {"TERM": ""})]
)
def test_no_status_line_where_it_is_not_wanted(terminal, arguments, environment):
    process = terminal(HARD, "--maximum-time", "700ms", *arguments, **environment)
    assert process.wait() == 3
    assert "\x1b" not in process.seen
    if "--quiet" in arguments:
        assert process.seen == ""


def test_a_search_at_a_server_shows_how_it_comes_on(terminal, serve):
    process = terminal(HARD, "--server", serve().address)
    process.wait_for(LOOK)
    process.press(b"\x03")
    assert process.wait() == 130
    screen = process.screen()
    assert not any(re.search(LOOK, line) for line in screen), screen
    again = run_find("--resume", cursor_in("\n".join(screen)), "--maximum-hashes", "1", "--json")
    _, end = records(again.stdout)
    # It went on from somewhere behind the first secret.
    assert end["cursor"] not in (cursor(HARD, 0), cursor(HARD, 1))


def test_a_search_at_the_reference_server_shows_how_long_it_takes(terminal, reference):
    process = terminal(HARD, "--server", reference().address)
    process.wait_for(r"1s, no candidate so far")
    process.press(b"\x03")
    assert process.wait() == 130


def test_lines_at_a_slow_pace_without_a_terminal(find):
    begun = time.monotonic()
    process, quiet = find(HARD), find(HARD, "--quiet")
    process.wait_for(LOOK)
    assert 9 < time.monotonic() - begun < 20
    for one in (process, quiet):
        one.send(signal.SIGINT)
        assert one.wait() == 130
    stderr = process.rest_of_stderr()
    assert "\x1b" not in stderr and not re.search(LOOK, stderr)
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
