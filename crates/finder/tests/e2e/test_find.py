"""`hashfinder find` on this machine and with a server."""

import base64
import fcntl
import hashlib
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import termios
import time
from concurrent import futures

import grpc
import pytest
from conftest import (
    FIRST_DOCTOR,
    HASHFINDER,
    TIMEOUT_S,
    SIGINT,
    SIGTERM,
    hashed,
    line_of,
    oracle,
    run_find,
    secrets,
)

HERE = pathlib.Path(__file__).parent
HARD = "hashfinderhashfinder"


def cursor(name, frontier, ideal=0, interesting=0):
    """Encodes a cursor in its documented format."""
    payload = bytes([ideal, interesting]) + frontier.to_bytes(8, "big") + name.encode()
    payload += hashlib.sha1(b"hf1_" + payload).digest()[:4]
    return "hf1_" + base64.urlsafe_b64encode(payload).decode().rstrip("=")


def position_of(text):
    """Returns the cursor without the nearest secret so far, in the format of `cursor`."""
    if not text.startswith("hf3_"):
        return text
    payload = base64.urlsafe_b64decode(text.removeprefix("hf3_") + "==")
    frontier, name = int.from_bytes(payload[2:10], "big"), payload[18:-4].decode()
    return cursor(name, frontier, ideal=payload[0], interesting=payload[1])


def cursor_in(stderr):
    """Returns the cursor in the resume command of the last line."""
    return stderr.rstrip().rsplit("--resume ", 1)[1]


def lines(name, ideal, interesting=0):
    return [line_of(secret, name) for secret, _ in oracle(name, ideal, interesting)]


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_find_prints_the_first_secret(threads):
    for name, ideal in [("doc", 0), ("aa", 0), ("doctor", 2), ("c=", 0), ("naïve", 2)]:
        done = run_find(name, "--ideal-distance", str(ideal), "--threads", threads)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == lines(name, ideal)


def test_find_prints_the_first_secret_that_spells_doctor():
    done = run_find("doctor")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [line_of(FIRST_DOCTOR, "doctor")]
    assert done.stdout == "Sp0dOCTORuYUE/jHhX6sk5+8rvA=\tpO0G\ta4ed06\t0\t3\tdoctor\n"


def test_inferior_candidates_are_printed_on_the_way():
    done = run_find("doctor", "--ideal-distance", "2", "--show-inferior", "4")
    assert done.stdout.splitlines() == lines("doctor", 2, 4)


def test_the_empty_secret_leaves_no_column_empty():
    """Regression: two columns were empty, which `read` and awk skip. They took the distance for the
    secret."""
    done = run_find("2jmj")
    columns = ["2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "(empty)", "(empty)", "0", "0", "2jmj"]
    assert done.stdout == "\t".join(columns) + "\n"
    command = [HASHFINDER, "verify", columns[1], columns[5]]
    assert subprocess.run(command, capture_output=True, text=True).stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["doctor", "--ideal-distance", "6"], "give at most 5"),
        (["doctor", "--ideal-distance", "99999"], "give at most 5"),
        (["doctor", "doc", "--ideal-distance", "3"], '"doc" (3 characters) at this distance; give at most 2'),
        (["a", "--ideal-distance", "1"], "give at most 0"),
        (["doctor", "--show-inferior", "7"], "give at most 6"),
        (["doctor", "doc", "--show-inferior", "4"], "give at most 3"),
    ],
)
@pytest.mark.parametrize("server", [[], ["--server", "localhost:1"]])
def test_a_distance_at_which_every_secret_matches_is_rejected(arguments, expected, server):
    """Regression: `find doctor --ideal-distance 6` found the empty secret, and --show-inferior 7
    printed every secret."""
    done = run_find(*arguments, *server)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr


@pytest.mark.parametrize(
    "distance", [["--ideal-distance", "5"], ["--show-inferior", "6", "--maximum-hashes", "100"]]
)
def test_the_greatest_distance_that_rules_something_out_is_accepted(distance):
    assert run_find("doctor", *distance).returncode in (0, 3)


def test_a_cursor_with_a_distance_that_matches_everything_is_accepted():
    """The wire contracts accept such a request, so a server may have issued the cursor."""
    done = run_find("--resume", cursor("doctor", 5, interesting=28), "--maximum-hashes", "3")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "NAME"),
        ([""], "empty"),
        (["a" * 29], "29 characters"),
        (["doctor", "--ideal-distance", "-1"], "-1"),
        (["doctor", "--ideal-distance", "near"], "number"),
        (["doctor", "--maximum-hashes", "0"], "0"),
        (["doctor", "--threads", "0"], "0"),
        (["doctor", "--maximum-time", "soon"], "90s"),
        (["doctor", "--server", "localhost"], "HOST:PORT"),
        (["doctor", "--server", "localhost:1", "--threads", "2"], "--threads"),
        (["--resume", "doctor"], "not a cursor"),
        (["--resume", cursor("doctor", 5)[:-1]], "damaged"),
        (["--resume", "hf9_AAAA"], "another version"),
        (["doctor", "--resume", cursor("doctor", 5)], "--resume"),
    ],
)
def test_an_invalid_command_line_is_rejected(arguments, expected):
    done = run_find(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["doc-tor", "==", "b=", "naïve"])
@pytest.mark.parametrize("server", [[], ["--server", "localhost:1"]])
def test_a_name_that_can_never_match_is_an_error(name, server):
    done = run_find(name, *server)
    assert done.returncode == 4
    assert "can never match" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["-", "\U0001f980", "\u00fc", "a-"])
def test_an_impossible_character_is_named_in_the_error(name):
    """Regression: the error said that the last character is always "="."""
    for command in ["find", "estimate"]:
        done = subprocess.run([HASHFINDER, command, "--", name], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 4
        assert f"'{name[-1]}' appears in no hash (sha1 in base64)" in done.stderr
        assert ("it can match in base64url" in done.stderr) == ("-" in name)
    assert run_find("--encoding", "base64url", "--", "-").returncode == 0


def test_the_end_of_the_keyspace_ends_the_search():
    done = run_find("--resume", cursor(HARD, 2**64 - 1000))
    assert done.returncode == 1
    assert done.stdout == ""


def test_a_hash_budget_is_exact_and_the_search_can_be_resumed():
    uninterrupted = run_find("docto", "--show-inferior", "2")
    printed, next_arguments = "", ["docto", "--show-inferior", "2"]
    for hashes in ["1", "300", "70000", "500000"]:
        done = run_find(*next_arguments, "--maximum-hashes", hashes)
        assert done.returncode == 3
        number = "1 hash" if hashes == "1" else f"{int(hashes):,} hashes"
        assert f"hash budget spent after {number}\n" in done.stderr
        printed += done.stdout
        next_arguments = ["--resume", cursor_in(done.stderr)]
    done = run_find(*next_arguments)
    assert done.returncode == 0
    assert printed + done.stdout == uninterrupted.stdout


def test_a_timeout_ends_a_search_with_a_cursor_and_the_nearest_candidate():
    done = run_find("hashfinder", "--maximum-time", "2s", "--show-inferior", "7")
    assert done.returncode == 3
    assert "the maximum time of 2s" in done.stderr
    best = min(int(line.split("\t")[3]) for line in done.stdout.splitlines())
    [nearest] = [line for line in done.stderr.splitlines() if line.count("\t") == 5]
    assert int(nearest.split("\t")[3]) == best
    assert cursor_in(done.stderr).startswith("hf3_")


@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_a_signal_stops_a_search_with_a_cursor(find, number, code):
    process = find("hashfinder", "--ideal-distance", "1")
    process.wait_until_busy()
    process.send(number)
    assert process.wait() == code
    stderr = process.rest_of_stderr()
    assert process.popen.stdout.read() == ""
    # The nearest candidate is printed like a result, although no candidates were requested.
    [nearest] = [line for line in stderr.splitlines() if line.count("\t") == 5]
    assert nearest == line_of(bytes.fromhex(nearest.split("\t")[2]), "hashfinder")
    # The cursor has the requested distances.
    assert position_of(cursor_in(stderr)).startswith(cursor("hashfinder", 0, ideal=1)[:8])
    following = run_find("--resume", cursor_in(stderr), "--maximum-hashes", "10")
    assert "hash budget spent after 10 hashes\n" in following.stderr


def test_a_second_signal_ends_find_even_if_stdout_is_not_read(find):
    process = find(HARD, "--show-inferior", "20")
    # It prints until the pipe is full, then it waits for a reader.
    pipe = process.popen.stdout.fileno()
    # The kernel may leave a small part of each page unused.
    full = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) * 9 // 10
    while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder) < full:
        time.sleep(0.01)
    process.assert_idle()
    process.send(SIGINT)
    process.wait_for("still stopping; press ctrl-C to exit at once")
    assert process.popen.poll() is None
    process.send(SIGINT)
    assert process.wait() == 130


def test_a_timeout_stops_the_work_even_if_stdout_is_not_read(find):
    process = find(HARD, "--show-inferior", "20", "--maximum-time", "2s")
    process.wait_for("still stopping")
    process.assert_idle()
    # A reader that resumes receives the rest, up to the cursor.
    lines = process.popen.stdout.read().splitlines()
    assert process.wait() == 3
    last = bytes.fromhex(lines[-1].split("\t")[2])
    assert lines[:100] == [line_of(secret, HARD) for secret, _ in zip(secrets(), range(100))]
    index = sum(256**k for k in range(len(last))) + int.from_bytes(last, "big")
    assert position_of(cursor_in(process.rest_of_stderr())) == cursor(HARD, index + 1, interesting=20)


@pytest.mark.parametrize("form", [[], ["--json"], ["--color", "always"]])
@pytest.mark.parametrize("search", ["candidates", "answers", "server"])
def test_find_succeeds_if_the_reader_closes_the_pipe(serve, search, form):
    arguments = {
        "candidates": [HARD, "--show-inferior", "20"],
        "answers": ["a", "--count", "9999999"],
        "server": [HARD, "--show-inferior", "20", "--server"],
    }[search]
    if search == "server":
        arguments.append(serve().address)
    # As a user types it in a shell, with the exit code of `find`.
    command = shlex.join([HASHFINDER, "find", *arguments, *form])
    line = f"{command} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    # The first line of each of these searches is the empty secret.
    printed = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    assert printed.count("\n") == 1
    assert "2jmj7l5rSw0yVb/vlWAYkK/YBwk=" in printed


def test_a_closed_stderr_does_not_prevent_results():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [HASHFINDER, "find", "doc"], stdout=subprocess.PIPE, stderr=write, text=True, timeout=30
    )
    os.close(write)
    assert done.returncode == 0
    assert done.stdout.splitlines() == lines("doc", 0)


def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [HASHFINDER, "find", "doc"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30
        )
    assert done.returncode == 5
    assert "cannot write a result to stdout" in done.stderr


def test_very_long_durations_are_accepted(serve):
    server = serve()
    ages = "20000years"
    for arguments in [[], ["--server", server.address, "--connect-timeout", ages]]:
        done = run_find("doc", "--maximum-time", ages, *arguments)
        assert (done.returncode, done.stdout.splitlines()) == (0, lines("doc", 0))


def test_a_search_on_a_server_prints_the_same_lines(serve):
    server = serve()
    for arguments in [["docto"], ["doctor", "--ideal-distance", "2", "--show-inferior", "4"]]:
        local = run_find(*arguments)
        remote = run_find(*arguments, "--server", server.address)
        assert (remote.returncode, remote.stdout) == (0, local.stdout)
    for _ in range(2):
        server.call_ended(method='"Search"')


def test_find_waits_for_a_server_that_has_not_started_yet(find, serve):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = find("doc", "--server", f"localhost:{port}")
    process.wait_for("waiting up to 20s for the server")
    serve(port=port)
    assert process.wait() == 0
    assert process.popen.stdout.read().splitlines() == lines("doc", 0)


def test_find_does_not_wait_forever_for_a_server():
    done = run_find("doc", "--server", "127.0.0.1:1", "--connect-timeout", "300ms")
    assert done.returncode == 5
    assert "cannot reach 127.0.0.1:1 within 300ms" in done.stderr
    assert "refused" in done.stderr


def test_find_does_not_wait_forever_for_a_silent_server(find):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = find("doc", "--server", address, "--connect-timeout", "1s")
        process.wait_for("waiting up to 1s for the server")
        assert process.wait() == 5
    assert "no answer" in process.rest_of_stderr()


def test_ctrl_c_ends_the_wait_for_a_server(find):
    process = find("doc", "--server", "127.0.0.1:1")
    process.wait_for("waiting up to 20s for the server")
    process.send(SIGINT)
    assert process.wait() == 130


def test_ctrl_c_stops_the_search_on_the_server(find, serve):
    server = serve()
    # Few candidates are found, so that they fit into the pipe while it is not read.
    process = find("hashfinder", "--show-inferior", "5", "--server", server.address)
    first = process.popen.stdout.readline()
    server.wait_until_busy()
    process.send(SIGINT)
    assert process.wait() == 130
    server.call_ended(method='"Search"', cause='"client gone"', work='"stopped"')
    server.assert_idle()
    stderr = process.rest_of_stderr()
    last = (first + process.popen.stdout.read()).splitlines()[-1]
    secret = bytes.fromhex(last.split("\t")[2])
    index = sum(256**k for k in range(len(secret))) + int.from_bytes(secret, "big")
    # The cursor is beyond the last candidate, at the progress that was reported last.
    position = position_of(cursor_in(stderr))
    payload = base64.urlsafe_b64decode(position.removeprefix("hf1_") + "==")
    frontier = int.from_bytes(payload[2:10], "big")
    assert position == cursor("hashfinder", frontier, interesting=5)
    assert index < frontier


def test_a_servers_hash_budget_ends_a_search_with_a_cursor(serve):
    server = serve("--maximum-hashes", "100000")
    done = run_find(HARD, "--server", server.address)
    assert done.returncode == 3
    assert "hash budget spent after 100,000 hashes\n" in done.stderr
    assert position_of(cursor_in(done.stderr)) == cursor(HARD, 100_000)


def test_a_timeout_stops_the_search_on_the_server(serve):
    server = serve()
    done = run_find(HARD, "--server", server.address, "--maximum-time", "2s")
    assert done.returncode == 3
    server.call_ended(work='"stopped"')
    server.assert_idle()


def test_a_draining_server_ends_a_search_with_a_cursor(find, serve):
    server = serve("--drain-grace", "0s")
    process = find(HARD, "--server", server.address)
    server.wait_until_busy()
    server.send(SIGTERM)
    assert process.wait() == 5
    stderr = process.rest_of_stderr()
    assert "shutting down" in stderr
    following = run_find("--resume", cursor_in(stderr), "--maximum-hashes", "10")
    assert "hash budget spent after 10 hashes\n" in following.stderr


def test_a_server_crash_is_an_error(find, serve):
    server = serve()
    process = find(HARD, "--server", server.address)
    server.wait_until_busy()
    server.popen.kill()
    assert process.wait() == 5
    assert "lost the connection to the server at " in process.rest_of_stderr()


@pytest.mark.parametrize(
    ("secret", "text"),
    [(b"", None), (b"\0", "A" * 27 + "="), (b"", "2jmj7l5rSw0yVb/vlWAYkK/YBwk="), (None, "")],
)
def test_a_wrong_answer_from_a_server_is_an_error(stubs, secret, text):
    class WrongServicer(stubs.Servicer):
        def Find(self, request, context):
            if secret is None:
                return stubs.Response(secret="!", hashed_name=text)
            return stubs.Response(
                secret=base64.b64encode(secret).decode(), hashed_name=text or hashed(secret)
            )

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    stubs.add_to_server(WrongServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    done = run_find("doctor", "--server", f"127.0.0.1:{port}")
    server.stop(None)
    assert done.returncode == 5
    assert "invalid answer from the server: " in done.stderr and "panicked" not in done.stderr
    assert done.stdout == ""


def test_a_search_on_the_reference_server_ends_with_the_same_line(reference):
    server = reference()
    for arguments in [["aa"], ["doc", "--show-inferior", "2"]]:
        done = run_find(*arguments, "--server", server.address)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == lines(arguments[0], 0)[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        [HARD, "--maximum-hashes", "1000"],
        [HARD, "--count", "2"],
        [HARD, "--session", "night"],
        ["--resume", cursor(HARD, 1000)],
    ],
)
def test_options_that_the_reference_contract_lacks_are_errors(reference, tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    done = run_find(*arguments, "--server", reference().address)
    assert done.returncode == 5
    line = done.stderr.splitlines()[-1]
    assert "supports only the reference contract" in line
    assert next(argument for argument in arguments if argument.startswith("--")) in line


@pytest.mark.parametrize("arguments", [[], ["--show-inferior", "17"]])
def test_ctrl_c_cancels_the_call_on_the_reference_server(find, reference, arguments):
    server = reference()
    process = find(HARD, "--server", server.address, *arguments)
    assert server.next_event() == "began"
    process.send(SIGINT)
    assert process.wait() == 130
    assert server.next_event() == "over"
    if not arguments:
        # A stream's servicer may be suspended at a `yield`, and is then never resumed.
        assert server.next_event() == "stopped"
    # Its only servicer thread is free again.
    done = run_find("aa", "--server", server.address)
    assert done.returncode == 0


def test_the_reference_servers_budget_ends_a_search(reference):
    server = reference(budget=1000)
    done = run_find(HARD, "--server", server.address)
    assert done.returncode == 3
    assert "the server cancelled the search" in done.stderr
    # The reference server skips secrets, so the client does not know what was tried.
    assert position_of(cursor_in(done.stderr)) == cursor(HARD, 0)
    assert [server.next_event(), server.next_event()] == ["began", "budget spent"]


def test_a_timeout_stops_the_search_on_the_reference_server(reference):
    server = reference()
    done = run_find(HARD, "--server", server.address, "--maximum-time", "2s")
    assert done.returncode == 3
    assert [server.next_event(), server.next_event(), server.next_event()] == ["began", "over", "stopped"]


def test_the_oracle_enumerates_secrets_as_documented():
    # All tests rely on this order.
    assert [secret for secret, _ in zip(secrets(), range(3))] == [b"", b"\0", b"\1"]
