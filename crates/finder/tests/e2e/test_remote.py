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
from conftest import HASHFINDER, SIGINT, SIGKILL, SIGTERM, TIMEOUT_S, hashed, run_find, secrets
from test_find import HARD, cursor, cursor_in, lines, position_of
from test_json import ideals, records

# Slows down a server, so that tests can stop their searches midway.
SLOW = ["--kernel", "portable", "--workers", "1"]

# A search that reports some thousand candidates before its result.
ARGUMENTS = ["docto", "--show-inferior", "3"]

SEED = 20_261_121
TRIALS = 30


@pytest.fixture(scope="module")
def unstopped():
    done = run_find(*ARGUMENTS)
    assert done.returncode == 0
    assert len(lines := done.stdout.splitlines()) > 100
    return lines


def run_until_stopped(server, stop, arguments, read):
    """Runs a search on a server, and calls `stop` after `read` lines. Returns the complete lines
    that it printed, its exit code and its stderr."""
    process = subprocess.Popen(
        [HASHFINDER, "find", "--server", server.address, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    printed = "".join(process.stdout.readline() for _ in range(read))
    stop(process)
    printed += process.stdout.read()
    stderr = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    return printed.split("\n")[:-1], process.wait(TIMEOUT_S), stderr


@pytest.mark.timeout(240)
def test_a_search_stopped_in_any_way_resumes_without_losing_a_line(serve, unstopped):
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    server = serve(*SLOW)
    codes = []
    for trial in range(TRIALS):
        arguments, printed = ARGUMENTS, []
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
            lines, code, stderr = run_until_stopped(server, stop, arguments + limits, read)
            printed += lines
            codes.append(code)
            if code == 0:
                break
            assert code in (3, 130, 143), stderr
            if "no search was started" not in stderr:
                arguments = ["--resume", cursor_in(stderr)]
        assert printed == unstopped, trial
    for code in (3, 130, 143):
        assert codes.count(code) >= 3, codes


def test_a_drain_sends_a_cursor_and_loses_nothing(serve, unstopped):
    server = serve(*SLOW, "--drain-grace", "0s")
    printed, code, stderr = run_until_stopped(server, lambda _: server.send(SIGTERM), ARGUMENTS, 20)
    assert code == 5
    assert "shutting down" in stderr
    another = serve(*SLOW)
    again = run_find("--server", another.address, "--resume", cursor_in(stderr))
    assert again.returncode == 0
    assert printed + again.stdout.splitlines() == unstopped


def test_a_server_crash_loses_no_line(serve, unstopped):
    server = serve(*SLOW)
    arguments = [*ARGUMENTS, "--connect-timeout", "3s"]
    printed, code, stderr = run_until_stopped(server, lambda _: server.send(SIGKILL), arguments, 20)
    assert code == 5
    assert f"lost the connection to the server at {server.address}: " in stderr
    again = run_find("--resume", cursor_in(stderr))
    assert printed + again.stdout.splitlines() == unstopped


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [SIGKILL, SIGTERM])
def test_a_server_lost_between_results_does_not_count_as_a_limit(serve, number):
    """Regression: hyper reports "operation was canceled" for a call that was not sent because the
    connection ended. `find` took this for a limit (exit code 3), so a loop that retries after a
    server's failure (exit code 5) ended."""
    choice = random.Random(SEED)
    for _ in range(3):
        server = serve("--drain-grace", "0s")
        count = ["aa", "--count", "1000000000", "--connect-timeout", "3s"]
        read = choice.randint(1, 100)
        printed, code, stderr = run_until_stopped(server, lambda _, server=server: server.send(number), count, read)
        assert code == 5, stderr
        # The next result is the same as in an uninterrupted run.
        again = run_find("--resume", cursor_in(stderr))
        whole = run_find("aa", "--count", str(len(printed) + 1))
        assert printed + again.stdout.splitlines() == whole.stdout.splitlines()


def lose_server(server, find, *arguments):
    """Starts a search and kills its server. Returns the process and the lines it printed so far."""
    process = find(*ARGUMENTS, "--server", server.address, *arguments)
    printed = [process.popen.stdout.readline().rstrip("\n") for _ in range(20)]
    server.send(SIGKILL)
    server.wait()
    process.wait_for("; reconnecting")
    process.wait_for("waiting up to ")
    return process, printed


def test_find_waits_for_a_lost_server(serve, find, unstopped):
    """Regression: the connect timeout applied only to the start, so a server's restart ended the
    search."""
    server = serve(*SLOW)
    process, printed = lose_server(server, find, "--connect-timeout", f"{TIMEOUT_S}s")
    serve(*SLOW, port=int(server.address.rsplit(":", 1)[1]))
    printed += process.popen.stdout.read().splitlines()
    assert process.wait() == 0
    assert printed == unstopped


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_search_can_be_stopped_while_it_waits_for_a_lost_server(serve, find, unstopped, number):
    process, printed = lose_server(serve(*SLOW), find, "--connect-timeout", "1h")
    process.send(number)
    assert process.wait() == 128 + number
    printed += process.popen.stdout.read().splitlines()
    again = run_find("--resume", cursor_in(process.rest_of_stderr()))
    assert printed + again.stdout.splitlines() == unstopped


def test_the_maximum_time_ends_the_wait_for_a_lost_server(serve, find, unstopped):
    process, printed = lose_server(serve(*SLOW), find, "--connect-timeout", "1h", "--maximum-time", "20s")
    assert process.wait() == 3
    printed += process.popen.stdout.read().splitlines()
    stderr = process.rest_of_stderr()
    assert "the maximum time of 20s has passed" in stderr
    again = run_find("--resume", cursor_in(stderr))
    assert printed + again.stdout.splitlines() == unstopped


@pytest.mark.parametrize("server", ["none", "silent"])
def test_the_maximum_time_ends_the_wait_for_a_server(server, tmp_path):
    """Regression: the maximum time began with the first call. Without a server, the search ended
    after 20 s with exit code 5."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if server == "silent" else 9
        command = [HARD, "--server", f"127.0.0.1:{port}", "--maximum-time", "3s", "--json"]
        done = run_find(*command, "--connect-timeout", "1h")
    assert done.returncode == 3, done.stderr
    assert re.search(r"waiting up to [\dms ]+ for the server", done.stderr)
    assert "the maximum time of 3s has passed; no search was started" in done.stderr
    _, end = records(done.stdout)
    assert (end["how"], end["cursor"]) == ("limit", cursor(HARD, 0))
    assert cursor_in(done.stderr) == end["cursor"]


def test_the_maximum_time_ends_a_blocked_read_of_the_prefix(tmp_path):
    os.mkfifo(tmp_path / "prefix")
    done = run_find(HARD, "--secret-prefix-file", str(tmp_path / "prefix"), "--maximum-time", "300ms")
    assert done.returncode == 3
    assert "the maximum time of 300ms has passed; no search was started" in done.stderr


def test_the_resume_command_includes_the_server(serve):
    server = serve()
    done = run_find(HARD, "--server", server.address, "--maximum-hashes", "1000")
    assert done.returncode == 3
    assert "hash budget spent after 1,000 hashes\n" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hashfinder: resume with: hashfinder find --server ")
    # Runs the command exactly as printed.
    command = last.split("resume with: hashfinder ")[1].split(" ")
    again = subprocess.run(
        [HASHFINDER, *command, "--maximum-hashes", "1000"], capture_output=True, text=True
    )
    assert again.returncode == 3
    assert position_of(cursor_in(again.stderr)) == cursor(HARD, 2000)


def test_a_hash_budget_above_the_servers_is_reduced(serve):
    server = serve("--maximum-hashes", "5000")
    done = run_find(HARD, "--server", server.address, "--maximum-hashes", "6000")
    assert (done.returncode, position_of(cursor_in(done.stderr))) == (3, cursor(HARD, 5000))


def test_a_server_finds_several_results(serve):
    server = serve()
    local = run_find("doc", "--count", "3", "--show-inferior", "2")
    remote = run_find("doc", "--count", "3", "--show-inferior", "2", "--server", server.address)
    assert (remote.returncode, remote.stdout) == (0, local.stdout)
    everything, end = records(run_find("aa", "--count", "10", "--json").stdout)
    enough = end["hashes"]
    for hashes, how, results in [(enough, "found", 10), (enough - 1, "limit", 9)]:
        limit = ["--maximum-hashes", str(hashes), "--server", server.address]
        findings, end = records(run_find("aa", "--count", "10", "--json", *limit).stdout)
        assert findings == everything[:results]
        assert (end["how"], end["results"], end["hashes"]) == (how, results, hashes)
    # The budget ends at a result that is not the last.
    limit = ["--maximum-hashes", str(enough), "--server", server.address]
    _, end = records(run_find("aa", "--count", "11", "--json", *limit).stdout)
    assert (end["how"], position_of(end["cursor"])) == ("limit", cursor("aa", enough))


def test_a_signal_stops_a_search_for_several_results_on_a_server(serve):
    server = serve()
    printed, code, stderr = run_until_stopped(
        server, lambda process: process.send_signal(SIGINT), ["aa", "--count", "1000000000"], 100
    )
    assert code == 130
    again = run_find("--resume", cursor_in(stderr))
    assert printed + again.stdout.splitlines() == ideals("aa", len(printed) + 1)


@pytest.mark.timeout(240)
def test_a_session_on_a_server_loses_nothing(serve, tmp_path, monkeypatch):
    print(f"seed {SEED}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    choice = random.Random(SEED)
    server = serve(*SLOW)
    several = [*ARGUMENTS, "--count", "3"]
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

            lines, code, _ = run_until_stopped(server, stop, arguments, choice.randint(1, 4000))
            printed += lines
            killed |= code == -SIGKILL
            if not session.exists():
                break
            assert code != 0
        if session.exists():
            done = run_find(*arguments, "--server", server.address)
            assert done.returncode == 0, done.stderr
            printed += done.stdout.splitlines()
        assert list(dict.fromkeys(printed)) == everything
        # Lines may be printed twice only after a kill.
        assert killed or printed == everything


def search_sending(pb, *events):
    """Returns a `Search` that sends these events, then waits until it is cancelled."""

    def search(self, request, context):
        over = threading.Event()
        context.add_callback(over.set)
        yield pb.SearchEvent(accepted=pb.Accepted(search_id="a"))
        yield from events
        over.wait(TIMEOUT_S)

    return search


def candidate(pb, secret, index, **fields):
    values = dict(secret=secret, hashed_name=hashed(secret), index=index) | fields
    return pb.SearchEvent(candidate=pb.Candidate(**values))


def progress(pb, frontier, hashes=None):
    values = pb.Progress(frontier=frontier, hashes=frontier if hashes is None else hashes)
    return pb.SearchEvent(progress=values)


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    """Returns the folder of the sessions."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "hashfinder/sessions"


def test_not_found_from_a_proxy_is_not_an_exhausted_keyspace(fake, pb, sessions):
    def search(self, request, context):
        yield progress(pb, 10)
        context.abort(grpc.StatusCode.NOT_FOUND, "the proxy knows no such route")

    server = fake(Search=search)
    done = run_find(HARD, "--server", server.address, "--session", "night")
    assert done.returncode == 5
    assert "the proxy knows no such route" in done.stderr
    assert position_of(json.loads((sessions / "night").read_text())["cursor"]) == cursor(HARD, 10)


def test_an_exhausted_keyspace_on_a_server_is_reported(serve, sessions):
    arguments = ["--secret-prefix", "a", "--alphabet", "of:b", "--server", serve().address]
    done = run_find(HARD, *arguments, "--json", "--session", "night")
    assert done.returncode == 1
    _, end = records(done.stdout)
    # The searched part has at most 64 bytes.
    assert (end["how"], end["hashes"], end["cursor"]) == ("exhausted", 65, None)
    assert not (sessions / "night").exists()


def test_an_impossible_frontier_from_a_server_is_an_error(fake, pb, sessions):
    for wrong in [
        # Claims that all secrets were tried, after only 5 hashes.
        progress(pb, 2**64 - 1, hashes=5),
        # Beyond the budget, then backwards.
        progress(pb, 101),
        progress(pb, 9),
        candidate(pb, b"\0", 1),
    ]:
        server = fake(Search=search_sending(pb, progress(pb, 5), progress(pb, 10), wrong))
        arguments = ["--show-inferior", "20", "--server", server.address, "--maximum-hashes", "100"]
        done = run_find(HARD, *arguments, "--session", "night")
        assert done.returncode == 5
        assert "invalid answer from the server: " in done.stderr
        # The session and the cursor stay at the last valid frontier.
        kept = json.loads((sessions / "night").read_text())
        assert position_of(kept["cursor"]) == cursor(HARD, 10, interesting=20)
        (sessions / "night").unlink()
        done = run_find(HARD, *arguments)
        assert position_of(cursor_in(done.stderr)) == cursor(HARD, 10, interesting=20)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_loses_nothing(serve, sessions, form):
    arguments = ["docto", "--show-inferior", "3", *form]
    for at in [[], ["--server", serve().address]]:
        with open("/dev/full", "w") as full:
            command = [HASHFINDER, "find", *arguments, *at, "--session", "night"]
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S
            )
        assert done.returncode == 5
        assert done.stderr.count("cannot write a result to stdout") == 1
        assert "the same command" in done.stderr
        again = run_find(*arguments, "--session", "night")
        assert again.returncode == 0
        assert len(again.stdout.splitlines()) == len(run_find(*arguments).stdout.splitlines())


def test_a_rejected_query_does_not_count_as_a_limit(serve, sessions, tmp_path):
    server = serve()
    for size, why in [(1500, "give at most 1024"), (5000, "bytes; the maximum is 4096")]:
        (tmp_path / "big").write_bytes(b"x" * size)
        arguments = ["--secret-prefix-file", str(tmp_path / "big"), "--server", server.address]
        done = run_find(HARD, *arguments, "--json", "--session", "night")
        assert done.returncode == 2
        assert f"the server at {server.address} rejected the request: " in done.stderr
        assert why in done.stderr and "resume with" not in done.stderr
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
            for sender, receiver in [(client, onward), (onward, client)]:
                threading.Thread(target=self._pump, args=(sender, receiver), daemon=True).start()

    @staticmethod
    def _pump(sender, receiver):
        try:
            while data := sender.recv(65536):
                receiver.sendall(data)
        except OSError:
            pass

    def cut(self):
        pairs, self.pairs = self.pairs, []
        for endpoint in (endpoint for pair in pairs for endpoint in pair):
            endpoint.shutdown(socket.SHUT_RDWR)


def test_a_lost_connection_is_opened_again(serve, find):
    # There are too many candidates to be all in transit when the connection is cut.
    arguments = [HARD, "--show-inferior", "17", "--maximum-hashes", "200000"]
    unbroken = run_find(*arguments)
    cut = Cut(serve(*SLOW))
    process = find(*arguments, "--server", cut.address)
    printed = [process.popen.stdout.readline().rstrip("\n") for _ in range(100)]
    cut.cut()
    printed += process.popen.stdout.read().splitlines()
    assert process.wait() == unbroken.returncode == 3
    assert "; reconnecting\n" in process.rest_of_stderr()
    assert printed == unbroken.stdout.splitlines()
    assert cut.accepted == 2


def test_candidates_from_a_server_are_checked(fake, pb):
    for wrong in [
        candidate(pb, b"\7", 8, hashed_name=hashed(b"\0")),
        candidate(pb, b"\7", 8, hashed_name="\x1b[2J"),
        # The secret with the index 1, after all below 5 were tried and reported.
        candidate(pb, b"\0", 1),
        # Not a secret of the keyspace.
        candidate(pb, bytes(9), 2),
    ]:
        server = fake(Search=search_sending(pb, progress(pb, 5), wrong))
        done = run_find(HARD, "--show-inferior", "20", "--server", server.address)
        assert done.returncode == 5
        assert "invalid answer from the server: " in done.stderr
        assert (done.stdout, "\x1b" in done.stderr) == ("", False)


@pytest.mark.parametrize(
    "other", [cursor("hashfinder", 700), cursor(HARD, 700, ideal=1), cursor(HARD, 4), "hf1_AAAA"]
)
def test_a_cursor_of_another_search_is_ignored(fake, pb, other):
    def search(self, request, context):
        assert request.cursor == cursor(HARD, 0)
        yield progress(pb, 5)
        yield pb.SearchEvent(ended=pb.SearchEnded(reason="END_REASON_DRAINING", cursor=other))
        context.abort(grpc.StatusCode.UNAVAILABLE, "going \x1b[2J away")

    done = run_find(HARD, "--server", fake(Search=search).address)
    assert done.returncode == 5
    assert position_of(cursor_in(done.stderr)) == cursor(HARD, 5)
    assert "going \\u{1b}[2J away" in done.stderr


def test_a_result_is_printed_even_if_the_end_is_lost(fake, pb):
    index, secret = next((i, s) for i, s in enumerate(secrets()) if "doc" in hashed(s).lower())

    def search(self, request, context):
        yield candidate(pb, secret, index, is_ideal=True)
        context.abort(grpc.StatusCode.UNAVAILABLE, "lost")

    done = run_find("doc", "--server", fake(Search=search).address)
    assert (done.returncode, done.stdout.splitlines()) == (0, lines("doc", 0))


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_stopped_search_resumes_after_the_last_candidate(fake, pb, find, number):
    secret = bytes([9])
    server = fake(
        Search=search_sending(
            pb,
            progress(pb, 5),
            candidate(pb, secret, 10),
        )
    )
    process = find(HARD, "--show-inferior", "20", "--server", server.address)
    assert secret.hex() in process.popen.stdout.readline()
    process.send(number)
    assert process.wait() == 128 + number
    assert position_of(cursor_in(process.rest_of_stderr())) == cursor(HARD, 11, interesting=20)


def test_the_hashes_of_a_server_are_reported(serve):
    done = run_find(HARD, "--maximum-hashes", "5000", "--json", "--server", serve().address)
    _, end = records(done.stdout)
    assert (end["how"], end["hashes"], position_of(end["cursor"])) == ("limit", 5000, cursor(HARD, 5000))
    assert re.search(r"5,000 hashes in \S+(, .* per second)? \(at 127\.0\.0\.1:\d+\)\n", done.stderr)
