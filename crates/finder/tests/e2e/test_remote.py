"""`hashfinder find --server` with `hashfinder.v1`: what it prints, and where it resumes."""

import json
import os
import random
import re
import socket
import subprocess
import threading

import grpc
import pytest
from conftest import HASHFINDER, PATIENCE_S, SIGINT, SIGKILL, SIGTERM, hashed, run_find, secrets
from test_find import HARD, cursor, cursor_in, lines, place_of
from test_json import ideals, records

# Slow enough to be stopped in the middle of a search for the names in these tests.
SLOW = ["--kernel", "portable", "--workers", "1"]

# A search that reports some thousand candidates before its answer.
ASKED = ["docto", "--show-inferior", "3"]

SEED = 20_261_121
TRIALS = 30


@pytest.fixture(scope="module")
def unstopped():
    done = run_find(*ASKED)
    assert done.returncode == 0
    assert len(lines := done.stdout.splitlines()) > 100
    return lines


def stopped(server, how, arguments, read):
    """Runs a search with a server, and calls `how` to stop it after `read` lines. Returns the
    complete lines that it printed, its exit code and its stderr."""
    process = subprocess.Popen(
        [HASHFINDER, "find", "--server", server.address, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    printed = "".join(process.stdout.readline() for _ in range(read))
    how(process)
    printed += process.stdout.read()
    stderr = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    return printed.split("\n")[:-1], process.wait(PATIENCE_S), stderr


@pytest.mark.timeout(240)
def test_a_search_that_is_stopped_in_any_way_goes_on_without_a_loss(serve, unstopped):
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    server = serve(*SLOW)
    codes = []
    for trial in range(TRIALS):
        arguments, printed = ASKED, []
        while True:
            how = choice.choice(["budget", "timeout", SIGINT, SIGTERM])
            limits = []
            if how == "budget":
                limits = ["--maximum-hashes", str(choice.randint(1, 600_000))]
            if how == "timeout":
                limits = ["--maximum-time", f"{choice.randint(1, 100)}ms"]

            def stop(process, how=how):
                if how in (SIGINT, SIGTERM):
                    process.send_signal(how)

            read = choice.randint(1, 1500) if not limits else 0
            told, code, stderr = stopped(server, stop, arguments + limits, read)
            printed += told
            codes.append(code)
            if code == 0:
                break
            assert code in (3, 130, 143), stderr
            if "no search was started" not in stderr:
                arguments = ["--resume", cursor_in(stderr)]
        assert printed == unstopped, trial
    for code in (3, 130, 143):
        assert codes.count(code) >= 3, codes


def test_a_drain_gives_a_cursor_and_loses_nothing(serve, unstopped):
    server = serve(*SLOW, "--drain-grace", "0s")
    told, code, stderr = stopped(server, lambda _: server.send(SIGTERM), ASKED, 20)
    assert code == 5
    assert "shutting down" in stderr
    another = serve(*SLOW)
    again = run_find("--server", another.address, "--resume", cursor_in(stderr))
    assert again.returncode == 0
    assert told + again.stdout.splitlines() == unstopped


def test_a_server_that_dies_takes_with_it_what_was_not_told(serve, unstopped):
    server = serve(*SLOW)
    asked = [*ASKED, "--connect-timeout", "3s"]
    told, code, stderr = stopped(server, lambda _: server.send(SIGKILL), asked, 20)
    assert code == 5
    assert f"the connection to the server at {server.address} was lost: " in stderr
    again = run_find("--resume", cursor_in(stderr))
    assert told + again.stdout.splitlines() == unstopped


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [SIGKILL, SIGTERM])
def test_a_server_that_goes_away_between_answers_is_no_limit(serve, number):
    """Regression: hyper reports "operation was canceled" for a call that was not sent because the
    connection ended. This was taken for a limit (exit code 3), which ended a loop that retries
    after a failed server (5)."""
    choice = random.Random(SEED)
    for _ in range(3):
        server = serve("--drain-grace", "0s")
        count = ["aa", "--count", "1000000000", "--connect-timeout", "3s"]
        read = choice.randint(1, 100)
        told, code, stderr = stopped(server, lambda _, server=server: server.send(number), count, read)
        assert code == 5, stderr
        # The next answer is the same as in an uninterrupted run.
        again = run_find("--resume", cursor_in(stderr))
        whole = run_find("aa", "--count", str(len(told) + 1))
        assert told + again.stdout.splitlines() == whole.stdout.splitlines()


def lost(server, find, *arguments):
    """Starts a search and kills its server. Returns the process and the lines it printed so far."""
    process = find(*ASKED, "--server", server.address, *arguments)
    told = [process.popen.stdout.readline().rstrip("\n") for _ in range(20)]
    server.send(SIGKILL)
    server.wait()
    process.wait_for("was lost; going on there")
    process.wait_for("waiting up to ")
    return process, told


def test_a_lost_server_is_waited_for(serve, find, unstopped):
    """Regression: the connect timeout applied only to the start, so a server's restart ended the
    search."""
    server = serve(*SLOW)
    process, told = lost(server, find, "--connect-timeout", f"{PATIENCE_S}s")
    serve(*SLOW, port=int(server.address.rsplit(":", 1)[1]))
    told += process.popen.stdout.read().splitlines()
    assert process.wait() == 0
    assert told == unstopped


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_search_can_be_stopped_while_it_waits_for_a_lost_server(serve, find, unstopped, number):
    process, told = lost(serve(*SLOW), find, "--connect-timeout", "1h")
    process.send(number)
    assert process.wait() == 128 + number
    told += process.popen.stdout.read().splitlines()
    again = run_find("--resume", cursor_in(process.rest_of_stderr()))
    assert told + again.stdout.splitlines() == unstopped


def test_the_maximum_time_ends_the_wait_for_a_lost_server(serve, find, unstopped):
    process, told = lost(serve(*SLOW), find, "--connect-timeout", "1h", "--maximum-time", "20s")
    assert process.wait() == 3
    told += process.popen.stdout.read().splitlines()
    stderr = process.rest_of_stderr()
    assert "the maximum time of 20s has passed" in stderr
    again = run_find("--resume", cursor_in(stderr))
    assert told + again.stdout.splitlines() == unstopped


@pytest.mark.parametrize("there", ["nothing", "silence"])
def test_the_maximum_time_ends_the_wait_for_a_server(there, tmp_path):
    """Regression: the maximum time began with the first call. Without a server, the search ended
    after 20 s with exit code 5."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if there == "silence" else 9
        command = [HARD, "--server", f"127.0.0.1:{port}", "--maximum-time", "3s", "--json"]
        done = run_find(*command, "--connect-timeout", "1h")
    assert done.returncode == 3, done.stderr
    assert re.search(r"waiting up to [\dms ]+ for a server", done.stderr)
    assert "the maximum time of 3s has passed; no search was started" in done.stderr
    _, end = records(done.stdout)
    assert (end["how"], end["cursor"]) == ("limit", cursor(HARD, 0))
    assert cursor_in(done.stderr) == end["cursor"]


def test_the_maximum_time_ends_the_reading_of_the_prefix(tmp_path):
    os.mkfifo(tmp_path / "prefix")
    done = run_find(HARD, "--secret-prefix-file", str(tmp_path / "prefix"), "--maximum-time", "300ms")
    assert done.returncode == 3
    assert "the maximum time of 300ms has passed; no search was started" in done.stderr


def test_it_says_how_to_go_on_at_the_server(serve):
    server = serve()
    done = run_find(HARD, "--server", server.address, "--maximum-hashes", "1000")
    assert done.returncode == 3
    assert "the hash budget is spent; hashes tried: 1000\n" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hashfinder: go on with: hashfinder find --server ")
    # Runs the command exactly as printed.
    command = last.split("go on with: hashfinder ")[1].split(" ")
    again = subprocess.run(
        [HASHFINDER, *command, "--maximum-hashes", "1000"], capture_output=True, text=True
    )
    assert again.returncode == 3
    assert place_of(cursor_in(again.stderr)) == cursor(HARD, 2000)


def test_a_budget_beyond_the_servers(serve):
    server = serve("--maximum-hashes", "5000")
    done = run_find(HARD, "--server", server.address, "--maximum-hashes", "6000")
    assert (done.returncode, place_of(cursor_in(done.stderr))) == (3, cursor(HARD, 5000))


def test_several_answers_of_a_server(serve):
    server = serve()
    here = run_find("doc", "--count", "3", "--show-inferior", "2")
    there = run_find("doc", "--count", "3", "--show-inferior", "2", "--server", server.address)
    assert (there.returncode, there.stdout) == (0, here.stdout)
    everything, end = records(run_find("aa", "--count", "10", "--json").stdout)
    enough = end["hashes"]
    for hashes, how, results in [(enough, "found", 10), (enough - 1, "limit", 9)]:
        limit = ["--maximum-hashes", str(hashes), "--server", server.address]
        findings, end = records(run_find("aa", "--count", "10", "--json", *limit).stdout)
        assert findings == everything[:results]
        assert (end["how"], end["results"], end["hashes"]) == (how, results, hashes)
    # The budget ends at an answer that is not the last.
    limit = ["--maximum-hashes", str(enough), "--server", server.address]
    _, end = records(run_find("aa", "--count", "11", "--json", *limit).stdout)
    assert (end["how"], place_of(end["cursor"])) == ("limit", cursor("aa", enough))


def test_a_signal_stops_a_server_that_is_asked_for_several(serve):
    server = serve()
    told, code, stderr = stopped(
        server, lambda process: process.send_signal(SIGINT), ["aa", "--count", "1000000000"], 100
    )
    assert code == 130
    again = run_find("--resume", cursor_in(stderr))
    assert told + again.stdout.splitlines() == ideals("aa", len(told) + 1)


@pytest.mark.timeout(240)
def test_a_session_at_a_server(serve, tmp_path, monkeypatch):
    print(f"seed {SEED}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    choice = random.Random(SEED)
    server = serve(*SLOW)
    several = [*ASKED, "--count", "3"]
    everything = run_find(*several).stdout.splitlines()
    assert len(everything) > 1000
    session = tmp_path / "hashfinder/sessions/night"
    arguments = [*several, "--session", "night"]
    for _ in range(10):
        printed, killed = [], False
        for _ in range(3):
            number = choice.choice([SIGINT, SIGTERM, SIGKILL])

            def stop(process, number=number):
                process.send_signal(number)

            told, code, _ = stopped(server, stop, arguments, choice.randint(1, 4000))
            printed += told
            killed |= code == -SIGKILL
            if not session.exists():
                break
            assert code != 0
        if session.exists():
            done = run_find(*arguments, "--server", server.address)
            assert done.returncode == 0, done.stderr
            printed += done.stdout.splitlines()
        assert list(dict.fromkeys(printed)) == everything
        # Only after a kill may it print anything twice.
        assert killed or printed == everything


def told_by(pb, *events):
    """Returns a `Search` that sends these events, then waits until it is cancelled."""

    def search(self, request, context):
        over = threading.Event()
        context.add_callback(over.set)
        yield pb.SearchEvent(accepted=pb.Accepted(search_id="a"))
        yield from events
        over.wait(PATIENCE_S)

    return search


def candidate(pb, secret, index, **fields):
    told = dict(secret=secret, hashed_name=hashed(secret), index=index) | fields
    return pb.SearchEvent(candidate=pb.Candidate(**told))


def progress(pb, frontier, hashes=None):
    told = pb.Progress(frontier=frontier, hashes=frontier if hashes is None else hashes)
    return pb.SearchEvent(progress=told)


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    """Returns the folder of sessions."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "hashfinder/sessions"


def test_only_a_hashfinder_says_that_all_was_tried(fake, pb, sessions):
    def search(self, request, context):
        yield progress(pb, 10)
        context.abort(grpc.StatusCode.NOT_FOUND, "the proxy knows no such route")

    server = fake(Search=search)
    done = run_find(HARD, "--server", server.address, "--session", "night")
    assert done.returncode == 5
    assert "the proxy knows no such route" in done.stderr
    assert place_of(json.loads((sessions / "night").read_text())["cursor"]) == cursor(HARD, 10)


def test_the_end_of_all_secrets_is_told(serve, sessions):
    arguments = ["--secret-prefix", "a", "--alphabet", "of:b", "--server", serve().address]
    done = run_find(HARD, *arguments, "--json", "--session", "night")
    assert done.returncode == 1
    _, end = records(done.stdout)
    # The searched part has at most 64 bytes.
    assert (end["how"], end["hashes"], end["cursor"]) == ("exhausted", 65, None)
    assert not (sessions / "night").exists()


def test_a_frontier_that_cannot_be_is_not_believed(fake, pb, sessions):
    for wrong in [
        # Claims that all secrets were tried, after only 5 hashes.
        progress(pb, 2**64 - 1, hashes=5),
        # Beyond the budget, then backwards.
        progress(pb, 101),
        progress(pb, 9),
        candidate(pb, b"\0", 1),
    ]:
        server = fake(Search=told_by(pb, progress(pb, 5), progress(pb, 10), wrong))
        told = ["--show-inferior", "20", "--server", server.address, "--maximum-hashes", "100"]
        done = run_find(HARD, *told, "--session", "night")
        assert done.returncode == 5
        assert "the server's answer is wrong" in done.stderr
        # The session and the cursor stay at the last valid frontier.
        kept = json.loads((sessions / "night").read_text())
        assert place_of(kept["cursor"]) == cursor(HARD, 10, interesting=20)
        (sessions / "night").unlink()
        done = run_find(HARD, *told)
        assert place_of(cursor_in(done.stderr)) == cursor(HARD, 10, interesting=20)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_loses_nothing(serve, sessions, form):
    arguments = ["docto", "--show-inferior", "3", *form]
    for at in [[], ["--server", serve().address]]:
        with open("/dev/full", "w") as full:
            command = [HASHFINDER, "find", *arguments, *at, "--session", "night"]
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S
            )
        assert done.returncode == 5
        assert done.stderr.count("cannot write a result to stdout") == 1
        assert "the same command" in done.stderr
        again = run_find(*arguments, "--session", "night")
        assert again.returncode == 0
        assert len(again.stdout.splitlines()) == len(run_find(*arguments).stdout.splitlines())


def test_a_refusal_is_no_limit(serve, sessions, tmp_path):
    server = serve()
    for size, why in [(1500, "give at most 1024"), (5000, "bytes; 4096 is the most")]:
        (tmp_path / "big").write_bytes(b"x" * size)
        arguments = ["--secret-prefix-file", str(tmp_path / "big"), "--server", server.address]
        done = run_find(HARD, *arguments, "--json", "--session", "night")
        assert done.returncode == 2
        assert f"the server at {server.address} refuses that: " in done.stderr
        assert why in done.stderr and "go on" not in done.stderr
        _, end = records(done.stdout)
        assert (end["how"], end["exit_code"]) == ("refused", 2)
        # The session is kept.
        assert (sessions / "night").exists()
        (sessions / "night").unlink()


class Cut:
    """Relays connections to a server, until `cut` closes the open ones."""

    def __init__(self, server):
        host, port = server.address.rsplit(":", 1)
        self.onward = (host, int(port))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.pairs, self.accepted = [], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            onward = socket.create_connection(self.onward)
            self.accepted += 1
            self.pairs.append((client, onward))
            for one, other in [(client, onward), (onward, client)]:
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one, other):
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass

    def cut(self):
        pairs, self.pairs = self.pairs, []
        for one in (one for pair in pairs for one in pair):
            one.shutdown(socket.SHUT_RDWR)


def test_a_connection_that_is_lost_is_made_again(serve, find):
    # So many candidates that not all of them are in transit when the connection is cut.
    asked = [HARD, "--show-inferior", "17", "--maximum-hashes", "200000"]
    unbroken = run_find(*asked)
    cut = Cut(serve(*SLOW))
    process = find(*asked, "--server", cut.address)
    told = [process.popen.stdout.readline().rstrip("\n") for _ in range(100)]
    cut.cut()
    told += process.popen.stdout.read().splitlines()
    assert process.wait() == unbroken.returncode == 3
    assert "was lost; going on there\n" in process.rest_of_stderr()
    assert told == unbroken.stdout.splitlines()
    assert cut.accepted == 2


def test_what_a_server_says_is_checked(fake, pb):
    for wrong in [
        candidate(pb, b"\7", 8, hashed_name=hashed(b"\0")),
        candidate(pb, b"\7", 8, hashed_name="\x1b[2J"),
        # The secret with the index 1, after all below 5 were tried and reported.
        candidate(pb, b"\0", 1),
        # Not a secret of the keyspace.
        candidate(pb, bytes(9), 2),
    ]:
        server = fake(Search=told_by(pb, progress(pb, 5), wrong))
        done = run_find(HARD, "--show-inferior", "20", "--server", server.address)
        assert done.returncode == 5
        assert "the server's answer is wrong" in done.stderr
        assert (done.stdout, "\x1b" in done.stderr) == ("", False)


@pytest.mark.parametrize(
    "other", [cursor("hashfinder", 700), cursor(HARD, 700, ideal=1), cursor(HARD, 4), "hf1_AAAA"]
)
def test_a_cursor_of_another_search_is_not_believed(fake, pb, other):
    def search(self, request, context):
        assert request.cursor == cursor(HARD, 0)
        yield progress(pb, 5)
        yield pb.SearchEvent(ended=pb.SearchEnded(reason="END_REASON_DRAINING", cursor=other))
        context.abort(grpc.StatusCode.UNAVAILABLE, "going \x1b[2J away")

    done = run_find(HARD, "--server", fake(Search=search).address)
    assert done.returncode == 5
    assert place_of(cursor_in(done.stderr)) == cursor(HARD, 5)
    assert "going \\u{1b}[2J away" in done.stderr


def test_an_answer_is_told_though_the_end_is_lost(fake, pb):
    index, secret = next((i, s) for i, s in enumerate(secrets()) if "doc" in hashed(s).lower())

    def search(self, request, context):
        yield candidate(pb, secret, index, is_ideal=True)
        context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    done = run_find("doc", "--server", fake(Search=search).address)
    assert (done.returncode, done.stdout.splitlines()) == (0, lines("doc", 0))


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_stopped_search_goes_on_from_what_was_told_last(fake, pb, find, number):
    secret = bytes([9])
    server = fake(
        Search=told_by(
            pb,
            progress(pb, 5),
            candidate(pb, secret, 10),
        )
    )
    process = find(HARD, "--show-inferior", "20", "--server", server.address)
    assert secret.hex() in process.popen.stdout.readline()
    process.send(number)
    assert process.wait() == 128 + number
    assert place_of(cursor_in(process.rest_of_stderr())) == cursor(HARD, 11, interesting=20)


def test_the_hashes_of_a_server_are_told(serve):
    done = run_find(HARD, "--maximum-hashes", "5000", "--json", "--server", serve().address)
    _, end = records(done.stdout)
    assert (end["how"], end["hashes"], place_of(end["cursor"])) == ("limit", 5000, cursor(HARD, 5000))
    assert re.search(r"5000 hashes in \S+(, .* a second)? \(at 127\.0\.0\.1:\d+\)\n", done.stderr)
