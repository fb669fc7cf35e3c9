"""A search that is stopped and resumed, in any way and however often, prints the same lines."""

import os
import random
import re
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import HASHFINDER, SIGINT, SIGKILL, SIGTERM, TIMEOUT_S, Server, run_find

SEED = 20_261_120
# `cargo xtask long kills` sets a greater number.
TRIALS = int(os.environ.get("TRIALS", 200))
SEARCHES = 120

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

# Slows down a search, so that it can be stopped midway.
SLOW = ["--kernel", "portable"]

# The ways to stop a search, and the exit code of each.
STOPS = {SIGINT: 130, SIGTERM: 143, SIGKILL: -9, "budget": 3, "time": 3, "drain": 5}


def index_of(line):
    """Returns the index of the secret in a result line."""
    secret = bytes.fromhex(line.split("\t")[2])
    return sum(256**k for k in range(len(secret))) + int.from_bytes(secret, "big")


class Search:
    """A short search, and the lines that it prints if it is not stopped."""

    def __init__(self, arguments, lines):
        self.arguments = arguments
        self.lines = lines
        self.place = {line: place for place, line in enumerate(lines)}


def short_search(seed):
    """Returns a random search that prints some lines, but not too many, in tens of milliseconds."""
    choice = random.Random(seed)
    while True:
        name = "".join(choice.choices(ALPHABET, k=choice.randint(2, 6)))
        ideal = choice.randint(0, len(name) // 2)
        shown = ideal + choice.randint(2, 3)
        count = choice.choice([1, 1, 2, 3])
        arguments = [name, "--ideal-distance", ideal, "--show-inferior", shown, "--count", count]
        arguments = list(map(str, arguments))
        done = run_find(*arguments, "--maximum-hashes", "4000000")
        lines = done.stdout.splitlines()
        if done.returncode == 0 and 100 <= len(lines) <= 8000:
            return Search(arguments, lines)


class Trial:
    """A search that is stopped a few times, and resumed until it ends."""

    def __init__(self, number, searches):
        self.choice = choice = random.Random(f"{SEED} {number}")
        self.name = f"trial-{number}"
        # Each way to stop is the first in some trials.
        first = list(STOPS)[number % len(STOPS)]
        # A kill leaves no cursor, except in a session.
        self.in_session = first == SIGKILL or (first != "drain" and choice.random() < 0.5)
        if not self.in_session:
            searches = [search for search in searches if search.arguments[-1] == "1"]
        if first == "drain":
            # Some hundred lines may be in transit from the server, and are printed after the stop.
            searches = [search for search in searches if len(search.lines) > 2000]
        self.search = choice.choice(searches)
        self.cursor = None
        # The next run starts with a line between these two.
        self.earliest = self.latest = 0
        self.stopped = Counter()
        others = [how for how in STOPS if how != "drain" and (self.in_session or how != SIGKILL)]
        self.stops = [first, *choice.choices(others, k=choice.randint(0, 2))]

    def run(self, state):
        """Runs the search to its end, and returns how often it was stopped in each way."""
        for how in self.stops:
            if self.step(how):
                break
            if how == SIGKILL and not (state / self.name).exists():
                # The kill came after the session was finished.
                break
        else:
            assert self.step(None)
        assert self.latest == len(self.search.lines)
        return self.stopped

    def step(self, how):
        """Resumes the search until it is stopped in this way or ends. Returns whether it ended."""
        if self.in_session:
            search = [*self.search.arguments, "--session", self.name]
        else:
            search = ["--resume", self.cursor] if self.cursor else self.search.arguments
        if how == "drain" or self.choice.random() < 0.15:
            server = Server(*SLOW, "--workers", "1", "--drain-grace", "1ms")
            try:
                stop = (lambda: server.send(SIGTERM)) if how == "drain" else None
                return self.follow([*search, "--server", server.address], how, stop)
            finally:
                server.end()
        threads = str(self.choice.randint(1, 2))
        return self.follow([*search, *SLOW, "--threads", threads], how)

    def follow(self, arguments, how, stop=None):
        # A kill may come after all lines were printed.
        left = self.search.lines[self.latest :] or self.search.lines[-1:]
        if how == "budget":
            # The budget often ends right before or after a line.
            begin = index_of(self.search.lines[self.latest - 1]) + 1 if self.latest else 0
            budget = index_of(self.choice.choice(left)) - begin + self.choice.randint(0, 2)
            arguments = [*arguments, "--maximum-hashes", str(max(1, budget))]
        if how == "time":
            arguments = [*arguments, "--maximum-time", f"{self.choice.randint(1, 30)}ms"]
        process = subprocess.Popen(
            [HASHFINDER, "find", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Keeps the process from getting far ahead of what was read.
            pipesize=4096,
        )
        text = ""
        if how in (SIGINT, SIGTERM, SIGKILL, "drain"):
            # Stops it after some lines.
            for _ in range(self.choice.randint(1, len(left) // 2 + 1)):
                text += process.stdout.readline()
            stop() if stop else process.send_signal(how)
        text += process.stdout.read()
        stderr = process.stderr.read()
        process.wait(TIMEOUT_S)
        process.stdout.close()
        process.stderr.close()
        *lines, partial = text.split("\n")
        # A line that a kill cut off does not count as printed.
        assert how == SIGKILL or partial == ""
        self.check(lines, how == SIGKILL)
        if process.returncode == 0:
            return True
        assert process.returncode == STOPS[how], stderr
        self.stopped[how] += 1
        if not self.in_session:
            self.cursor = re.search(r"resume with: hashfinder find .*--resume (\S+)\n", stderr)[1]
        return False

    def check(self, lines, killed):
        """Checks that a run starts where the last one ended or, if that was killed, between its
        begin and its end."""
        if not lines:
            return
        begin = self.search.place[lines[0]]
        end = begin + len(lines)
        assert self.earliest <= begin <= self.latest
        assert lines == self.search.lines[begin:end]
        self.earliest, self.latest = (begin, end) if killed else (end, end)


# Thousands of processes, on a machine that may be busy.
@pytest.mark.timeout(500 * max(1, TRIALS // 200))
def test_a_search_stopped_in_any_way_and_resumed_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = tmp_path / "hashfinder/sessions"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        searches = list(pool.map(short_search, [f"{SEED} {n}" for n in range(SEARCHES)]))
        running = [pool.submit(Trial(n, searches).run, state) for n in range(TRIALS)]
        stopped = Counter()
        for number, trial in enumerate(running):
            try:
                stopped += trial.result()
            except BaseException:
                print(f"trial {number} with the seed {SEED}")
                pool.shutdown(cancel_futures=True)
                raise
    counts = ", ".join(f"{getattr(how, 'name', how)} {count}" for how, count in stopped.items())
    print(f"stops: {counts}")
    for how in STOPS:
        assert stopped[how] >= TRIALS // 50, stopped
    # All sessions are finished. Only the lock file of a run that was killed then may be left.
    assert [path.name for path in state.iterdir() if not path.name.endswith(".lock")] == []


def test_a_kill_repeats_only_lines_since_the_session_was_last_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "hashfinder/sessions/night"
    search = ["hashfinder", "--show-inferior", "5"]
    arguments = [*search, "--session", "night"]
    process = subprocess.Popen(
        [HASHFINDER, "find", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines = []

    def read_lines():
        for line in process.stdout:
            lines.append(line)

    reader = threading.Thread(target=read_lines)
    reader.start()
    # How many lines had been read when each state of the session was seen.
    seen, read = [], []
    deadline = time.monotonic() + TIMEOUT_S
    while len(seen) < 5 or read[-2] <= 100:
        assert time.monotonic() < deadline, seen
        if file.exists() and (text := file.read_text()) not in seen:
            seen.append(text)
            read.append(len(lines))
        time.sleep(0.01)
    process.kill()
    process.wait(TIMEOUT_S)
    reader.join()
    process.stdout.close()
    again = run_find(*arguments, "--maximum-hashes", "1")
    tried = re.search(r"session night: resuming after ([\d,]+) hashes", again.stderr)[1]
    frontier = int(tried.replace(",", ""))
    # The lines read when a state was seen were printed before the next state was written, so that
    # state is beyond them.
    sure = lines[: read[-2]]
    assert len(sure) > 100
    assert all(index_of(line) < frontier for line in sure)
