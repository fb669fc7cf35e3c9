"""`hashfinder searches`: listing, watching and cancelling the searches of a server."""

import fcntl
import http.server
import json
import os
import re
import subprocess
import termios
import threading

import grpc
import jsonschema
import pytest
from conftest import HASHFINDER, PROTOS, SIGINT, SIGTERM, TIMEOUT_S, Process
from test_find import HARD, cursor_in
from test_status import Terminal

SCHEMA = json.loads((PROTOS.parent / "docs/searches.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def run(command, server, *arguments):
    """Runs `hashfinder searches` to its end."""
    return subprocess.run(
        [HASHFINDER, "searches", command, "--server", server.address, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.fixture
def watch(processes):
    """Returns a function that starts `hashfinder searches watch` and does not wait for its end."""

    def start(server, *arguments):
        command = [HASHFINDER, "searches", "watch", "--server", server.address, *arguments]
        processes.append(Process(command))
        return processes[-1]

    return start


@pytest.fixture
def searching(find):
    """Returns a function that starts an endless search, waits until it is listed, and returns the
    process and the search's ID."""

    def start(server, name=HARD):
        process = find(name, "--server", server.address)
        while True:
            for line in run("list", server, "--state", "running").stdout.splitlines():
                columns = line.split("\t")
                if columns[6] == name:
                    return process, columns[0]

    return start


def as_json(line):
    record = json.loads(line)
    VALIDATOR.validate(record)
    return record


def test_an_empty_list_is_mentioned_only_on_a_terminal(serve, terminal):
    server = serve()
    done = run("list", server)
    assert (done.returncode, done.stdout) == (0, "")
    listed = terminal(server, command="list")
    assert listed.wait() == 0
    assert listed.seen.endswith(f"hashfinder: no searches at {server.address}\r\n")


def test_list_prints_the_searches(serve, searching):
    server = serve()
    process, search_id = searching(server)
    done = run("list", server)
    assert done.returncode == 0
    [line] = done.stdout.splitlines()
    columns = line.split("\t")
    assert len(columns) == 9
    assert columns[:3] == [search_id, "running", "ip:127.0.0.1"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", columns[3])
    assert columns[5:] == ["0", HARD, "", ""]
    [line] = run("list", server, "--json").stdout.splitlines()
    record = as_json(line)
    assert (record["search_id"], record["state"]) == (search_id, "running")
    assert (record["desired_names"], record["cursor"]) == ([HARD], None)
    assert record["method"].endswith("Finder/Search")
    assert record["hashes"] >= int(columns[4])
    process.send(SIGINT)
    assert process.wait() == 130
    # The server notices this a moment later.
    server.call_ended(method='"Search"')
    ended = run("list", server, "--state", "ended", "--json").stdout.splitlines()
    [record] = map(as_json, ended)
    assert (record["search_id"], record["end_reason"]) == (search_id, "cancelled_by_client")
    assert record["cursor"].startswith("hf1_")
    assert run("list", server, "--state", "running,queued,parked").stdout == ""


def test_pages_that_repeat_are_an_error(fake, pb):
    def list_searches(self, request, context):
        token = {"": "a", "a": "b", "b": "a"}[request.page_token]
        searches = [pb.SearchSummary(search_id="1")]
        return pb.ListSearchesResponse(searches=searches, next_page_token=token)

    done = run("list", fake(ListSearches=list_searches))
    assert done.returncode == 5
    assert "returns the same page of searches repeatedly" in done.stderr


def test_cancel_stops_searches_by_their_ids(serve, searching):
    server = serve()
    process, search_id = searching(server)
    other, other_id = searching(server, "hashfinderhashfinde")
    done = run("cancel", server, "unknown", search_id, other_id, "--reason", "the machine is needed")
    assert done.returncode == 1
    assert done.stdout == f"{search_id}\tcancelled\n{other_id}\tcancelled\n"
    line = done.stderr.splitlines()[-1]
    assert line.startswith("hashfinder: cannot cancel unknown: ")
    for search in (process, other):
        assert search.wait() == 3
        stderr = search.rest_of_stderr()
        assert "the search was cancelled by its client: the machine is needed\n" in stderr
        assert cursor_in(stderr).startswith("hf1_")
    again = run("cancel", server, search_id)
    assert again.returncode == 0
    assert again.stdout.startswith(f"{search_id}\thad ended: cancelled by client")


def test_only_operators_see_other_clients_searches(serve):
    done = run("list", serve(), "--client", "ip:192.0.2.1")
    assert done.returncode == 5
    assert "only an operator" in done.stderr


def test_an_operator_can_list_the_searches_of_one_client(serve, searching):
    server = serve("--operator", "127.0.0.1")
    _, search_id = searching(server)
    done = run("list", server, "--client", "ip:192.0.2.1")
    assert (done.returncode, done.stdout) == (0, "")
    done = run("list", server, "--client", "ip:127.0.0.1")
    assert done.stdout.startswith(search_id)


def test_watch_prints_lines(serve, searching, watch):
    server = serve()
    watching, in_json = watch(server), watch(server, "--json", "--interval", "100ms")
    process, search_id = searching(server)
    first = watching.popen.stdout.readline().rstrip("\n").split("\t")
    assert (first[0], len(first)) == (search_id, 9)
    process.send(SIGINT)
    process.wait()
    for line in in_json.popen.stdout:
        record = as_json(line)
        assert record["search_id"] == search_id
        if record["state"] == "ended":
            break
    for watcher, number in ((watching, SIGINT), (in_json, SIGTERM)):
        watcher.send(number)
        assert watcher.wait() == 0


def test_a_watch_ends_with_its_server(serve, searching, watch):
    server = serve("--drain-grace", "0s")
    searching(server)
    watching = watch(server)
    assert HARD in watching.popen.stdout.readline()
    server.send(SIGTERM)
    assert watching.wait() == 0
    stderr = watching.rest_of_stderr()
    assert stderr.endswith(f"hashfinder: the server at {server.address} is shutting down")


def test_ctrl_c_ends_an_unread_watch(serve, searching, watch):
    server = serve()
    searching(server)
    watching = watch(server, "--json", "--interval", "100ms")
    # Waits until the pipe is nearly full.
    pipe = watching.popen.stdout.fileno()
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    while True:
        waiting = int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little")
        if waiting > 3500:
            break
    watching.send(SIGINT)
    assert watching.wait() == 0


def test_watch_succeeds_if_the_reader_closes_the_pipe(serve, searching, watch):
    server = serve()
    searching(server)
    watching = watch(server, "--interval", "100ms")
    watching.popen.stdout.readline()
    watching.popen.stdout.close()
    assert watching.wait() == 0


class Watch(Terminal):
    COMMAND = "searches"

    def table(self):
        """Returns the lines of the table that was last drawn as a whole."""
        last = re.findall(r"\x1b\[\?7l(.*?)\x1b\[J", self.seen, re.DOTALL)[-1]
        lines = last.split("\x1b[K\r\n")
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(lines)), lines
        return lines


@pytest.fixture
def terminal():
    started = []

    def start(server, *arguments, command="watch", **kwargs):
        started.append(Watch(command, "--server", server.address, *arguments, **kwargs))
        return started[-1]

    yield start
    for process in started:
        process.end()


def test_watch_redraws_a_table_on_a_terminal(serve, searching, terminal):
    server = serve()
    screen = terminal(server, "--interval", "100ms")
    screen.wait_for("no searches")
    process, search_id = searching(server)
    screen.wait_for(rf"{search_id} .*running .*{HARD}")
    titles, row = screen.table()
    assert titles.split() == "SEARCH STATE CLIENT STARTED HASHES DISTANCE NAMES END".split()
    assert row.index("running") == titles.index("STATE")
    process.send(SIGINT)
    screen.wait_for(rf"{search_id} .*ended .*cancelled by client")
    # The table is redrawn in place, and does not wrap.
    assert re.search(r"\r\x1b\[1A\x1b\[\?7lSEARCH", screen.seen)
    screen.press(b"\x03")
    assert screen.wait() == 0
    assert screen.seen.endswith("\x1b[?7h\r\n") or screen.seen.endswith("^C\r\n")


def test_the_table_stays_when_the_server_shuts_down(serve, searching, terminal):
    server = serve("--drain-grace", "0s")
    _, search_id = searching(server)
    screen = terminal(server)
    screen.wait_for(search_id)
    server.send(SIGTERM)
    assert screen.wait() == 0
    *_, row, last = screen.seen.splitlines()
    assert search_id in row
    assert last == f"hashfinder: the server at {server.address} is shutting down"


def test_the_table_fits_the_terminal(serve, find, terminal):
    server = serve()
    started = [find(HARD, "--server", server.address) for _ in range(9)]
    screen = terminal(server, size=(80, 6))
    screen.wait_for(r"and 5 more")
    assert len(screen.table()) == 6
    for process in started:
        process.send(SIGINT)
    screen.press(b"\x03")
    assert screen.wait() == 0


def test_list_prints_a_table_on_a_terminal(serve, searching, terminal):
    server = serve()
    _, search_id = searching(server)
    listed = terminal(server, command="list")
    assert listed.wait() == 0
    titles, row = listed.seen.splitlines()
    assert titles.startswith("SEARCH ")
    assert row.startswith(f"{search_id}  running")
    assert row.index("ip:127.0.0.1") == titles.index("CLIENT")


def summary(pb, n, **fields):
    return pb.SearchSummary(search_id=f"search-{n}", desired_names=["doctor"], **fields)


def test_list_fetches_all_pages(fake, pb, terminal):
    def list_searches(self, request, context):
        assert list(request.states) == [2, 4] and request.client == "user:7"
        begin = int(request.page_token or 0)
        searches = [summary(pb, n) for n in range(begin, begin + 2)]
        return pb.ListSearchesResponse(searches=searches, next_page_token=str(begin + 2) if begin < 4 else "")

    server = fake(ListSearches=list_searches)
    arguments = ["--state", "running", "--state", "ended", "--client", "user:7"]
    expected = [f"search-{n}" for n in range(6)]
    done = run("list", server, *arguments)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected
    done = run("list", server, *arguments, "--json")
    assert [as_json(line)["search_id"] for line in done.stdout.splitlines()] == expected
    listed = terminal(server, *arguments, command="list")
    assert listed.wait() == 0
    assert [line.split()[0] for line in listed.seen.splitlines()[1:]] == expected


def test_control_characters_from_a_server_do_not_reach_the_terminal(fake, pb, terminal):
    evil = "\x1b]0;owned\x07\x1b[2J\t\r\n\x9b31m"
    search = pb.SearchSummary(
        search_id=evil,
        client=evil,
        method=evil,
        desired_names=[evil],
        state="SEARCH_STATE_ENDED",
        end_message=evil,
        cursor=evil,
        started_at={"seconds": -(2**62)},
    )

    def watch_searches(self, request, context):
        yield pb.WatchSearchesResponse(searches=[search])
        context.abort(grpc.StatusCode.INTERNAL, evil)

    def list_searches(self, request, context):
        return pb.ListSearchesResponse(searches=[search])

    server = fake(ListSearches=list_searches, WatchSearches=watch_searches)
    for arguments in ([], ["--json"]):
        listed = terminal(server, *arguments, command="list")
        assert listed.wait() == 0
        assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]", listed.seen), listed.seen
    watching = terminal(server)
    assert watching.wait() == 5
    watching.table()
    assert not re.search(r"[\x07\x9b]|\x1b\]|\x1b\[2J", watching.seen)
    [line] = run("list", server).stdout.splitlines()
    assert len(line.split("\t")) == 9


def test_a_missing_server_is_an_error():
    class Nowhere:
        address = "127.0.0.1:1"

    for arguments in (["list"], ["watch"], ["cancel", "a"]):
        done = run(arguments[0], Nowhere, *arguments[1:], "--connect-timeout", "100ms")
        assert done.returncode == 5
        [line] = done.stderr.splitlines()
        assert "cannot reach 127.0.0.1:1 within 100ms" in line
        assert "hashfinder serve" in line and "--server" in line


def test_a_closed_stdout_is_not_an_error(serve, searching):
    server = serve()
    _, search_id = searching(server)
    for arguments in (["list"], ["list", "--json"], ["cancel", search_id]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [HASHFINDER, "searches", *arguments, "--server", server.address],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")


class WebServer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_server_that_does_not_speak_grpc_is_an_error():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WebServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        searches = (["searches", "list"], ["searches", "watch"], ["searches", "cancel", "a"])
        for command in (*searches, ["find", HARD]):
            done = subprocess.run(
                [HASHFINDER, *command, "--server", address],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
            assert (done.returncode, done.stdout) == (5, "")
            line = done.stderr.splitlines()[-1]
            assert f"{address} is not a gRPC server" in line
            assert "hashfinder serve" in line and "try again" not in line
        server.shutdown()


def test_a_grpc_server_without_these_methods_is_an_error(fake):
    server = fake()
    for arguments in (["list"], ["watch"], ["cancel", "a"]):
        done = run(arguments[0], server, *arguments[1:])
        assert done.returncode == 5
        line = done.stderr.splitlines()[-1]
        assert "does not support this command" in line


def test_the_server_can_be_set_by_the_environment(serve):
    server = serve()
    done = subprocess.run(
        [HASHFINDER, "searches", "list"],
        env=os.environ | {"HASHFINDER_SERVER": server.address},
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout) == (0, b"")
