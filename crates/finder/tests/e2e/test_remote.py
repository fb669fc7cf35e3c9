"""`hashfinder find --server` through `hashfinder.v1`: what it tells, and from where it goes on."""

import random
import re
import subprocess
import threading

import grpc
import pytest
from conftest import HASHFINDER, PATIENCE_S, SIGINT, SIGKILL, SIGTERM, hashed, run_find, secrets
from test_find import HARD, cursor, cursor_in, lines
from test_json import ideals, records

# Slow enough to be stopped in the middle of a search for the names of these tests.
SLOW = ["--kernel", "portable", "--workers", "1"]

# A search that tells some thousand candidates before its answer.
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
    """Runs a search at a server and stops it after so many lines; tells the whole lines that it printed, its
    exit code and its stderr."""
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


@pytest.mark.timeout(120)
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
    told, code, stderr = stopped(server, lambda _: server.send(SIGKILL), ASKED, 20)
    assert code == 5
    assert "the server failed" in stderr
    again = run_find("--resume", cursor_in(stderr))
    assert told + again.stdout.splitlines() == unstopped


def test_it_says_how_to_go_on_at_the_server(serve):
    server = serve()
    done = run_find(HARD, "--server", server.address, "--maximum-hashes", "1000")
    assert done.returncode == 3
    assert "the hash budget is spent; secrets tried: 1000\n" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hashfinder: go on with: hashfinder find --server ")
    # As it stands there.
    command = last.split("go on with: hashfinder ")[1].split(" ")
    again = subprocess.run(
        [HASHFINDER, *command, "--maximum-hashes", "1000"], capture_output=True, text=True
    )
    assert again.returncode == 3
    assert cursor_in(again.stderr) == cursor(HARD, 2000)


def test_a_budget_beyond_the_servers(serve):
    server = serve("--maximum-hashes", "5000")
    done = run_find(HARD, "--server", server.address, "--maximum-hashes", "6000")
    assert (done.returncode, cursor_in(done.stderr)) == (3, cursor(HARD, 5000))


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
    # A budget that ends with an answer that is not the last.
    limit = ["--maximum-hashes", str(enough), "--server", server.address]
    _, end = records(run_find("aa", "--count", "11", "--json", *limit).stdout)
    assert (end["how"], end["cursor"]) == ("limit", cursor("aa", enough))


def test_a_signal_stops_a_server_that_is_asked_for_several(serve):
    server = serve()
    told, code, stderr = stopped(
        server, lambda process: process.send_signal(SIGINT), ["aa", "--count", "1000000000"], 100
    )
    assert code == 130
    again = run_find("--resume", cursor_in(stderr))
    assert told + again.stdout.splitlines() == ideals("aa", len(told) + 1)


@pytest.mark.timeout(120)
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
        # Only a kill makes it tell anything twice.
        assert killed or printed == everything


def told_by(pb, *events):
    """A Search that tells these events, and then waits until it is cancelled."""

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


def test_what_a_server_says_is_checked(fake, pb):
    for wrong in [
        candidate(pb, b"\7", 8, hashed_name=hashed(b"\0")),
        candidate(pb, b"\7", 8, hashed_name="\x1b[2J"),
        # The secret with the index 1, after all below 5 was tried and told.
        candidate(pb, b"\0", 1),
        # None of the secrets that there are.
        candidate(pb, bytes(9), 2),
    ]:
        server = fake(Search=told_by(pb, pb.SearchEvent(progress=pb.Progress(frontier=5)), wrong))
        done = run_find(HARD, "--show-inferior", "28", "--server", server.address)
        assert done.returncode == 5
        assert "the server's answer is wrong" in done.stderr
        assert (done.stdout, "\x1b" in done.stderr) == ("", False)


@pytest.mark.parametrize(
    "other", [cursor("hashfinder", 700), cursor(HARD, 700, ideal=1), cursor(HARD, 4), "hf1_AAAA"]
)
def test_a_cursor_of_another_search_is_not_believed(fake, pb, other):
    def search(self, request, context):
        assert request.cursor == cursor(HARD, 0)
        yield pb.SearchEvent(progress=pb.Progress(frontier=5))
        yield pb.SearchEvent(ended=pb.SearchEnded(reason="END_REASON_DRAINING", cursor=other))
        context.abort(grpc.StatusCode.UNAVAILABLE, "going \x1b[2J away")

    done = run_find(HARD, "--server", fake(Search=search).address)
    assert done.returncode == 5
    assert cursor_in(done.stderr) == cursor(HARD, 5)
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
            pb.SearchEvent(progress=pb.Progress(frontier=5)),
            candidate(pb, secret, 10),
        )
    )
    process = find(HARD, "--show-inferior", "28", "--server", server.address)
    assert secret.hex() in process.popen.stdout.readline()
    process.send(number)
    assert process.wait() == 128 + number
    assert cursor_in(process.rest_of_stderr()) == cursor(HARD, 11, interesting=28)


def test_the_hashes_of_a_server_are_told(serve):
    done = run_find(HARD, "--maximum-hashes", "5000", "--json", "--server", serve().address)
    _, end = records(done.stdout)
    assert (end["how"], end["hashes"], end["cursor"]) == ("limit", 5000, cursor(HARD, 5000))
    assert re.search(r"5000 secrets in .* a second \(at 127\.0\.0\.1:\d+\)\n", done.stderr)
