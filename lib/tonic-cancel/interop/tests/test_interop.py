"""Runs gRPC's interoperability cases about cancellation between tonic-cancel and other libraries.

The tests use real processes and sockets. INTEROP is the path of `tonic-cancel-interop`.
INTEROP_NODE is the folder in which npm has installed the packages of peers/package.json; without
it, grpc-js is skipped. Both ends are checked: the client asserts what gRPC's description of a case
requires, and the server prints how the calls ended.
"""

import os
import pathlib
import queue
import re
import subprocess
import sys
import threading

import pytest

HERE = pathlib.Path(__file__).parent
PROTO = HERE.parent / "proto" / "interop.proto"
INTEROP = os.environ["INTEROP"]
NODE = os.environ.get("INTEROP_NODE")

# Timeout for any event.
TIMEOUT_S = 120


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    out = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}"]
    command += [f"--python_out={out}", f"--grpc_python_out={out}", PROTO.name]
    subprocess.run(command, check=True)
    return str(out)


class Process:
    """A process. Tests can wait for lines on its stdout."""

    def __init__(self, command, **kwargs):
        self.popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.popen.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def line(self):
        """Returns the next line, or None at the end."""
        return self.lines.get(timeout=TIMEOUT_S)

    def end(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdin.close()


@pytest.fixture
def start():
    started = []

    def start(command, **kwargs):
        started.append(Process(command, **kwargs))
        return started[-1]

    yield start
    for process in started:
        process.end()


def our_server(stubs):
    return [INTEROP, "server"]


def grpcio_server(stubs):
    return [sys.executable, str(HERE / "peers" / "server.py"), stubs]


def our_client(stubs):
    return [INTEROP, "client"]


def grpcio_client(stubs):
    return [sys.executable, str(HERE / "peers" / "client.py"), stubs]


def grpc_js_client(stubs):
    return ["node", str(HERE / "peers" / "client.js"), str(PROTO)]


# How a server may report a cancelled call. grpcio's handlers see only that the call is gone.
CANCELLED = {"ClientGone", "Gone"}
# Either side's timer may fire first.
EXPIRED = {"DeadlineExceeded", "ClientGone", "Gone"}
UNKNOWN = {"Unknown", "Finished"}
OK = {"Ok", "Finished"}

# The calls that each case makes, and how they end for the server.
CASES = {
    "cancel_after_begin": [("StreamingInputCall", CANCELLED)],
    "cancel_after_first_response": [("FullDuplexCall", CANCELLED)],
    "cancel_while_responding": [("FullDuplexCall", CANCELLED)],
    "timeout_on_sleeping_server": [("FullDuplexCall", EXPIRED)],
    "status_code_and_message": [("UnaryCall", UNKNOWN), ("FullDuplexCall", UNKNOWN)],
    "special_status_message": [("UnaryCall", UNKNOWN), ("FullDuplexCall", UNKNOWN)],
    "unimplemented_method": [],
    "unimplemented_service": [],
    "custom_metadata": [("UnaryCall", OK), ("FullDuplexCall", OK)],
}

# In these pairs, a cancelled stream of requests may look like one that has ended normally, if the
# handler waits for the end and then responds in time. Node ends the client's half of a call before
# it resets the call. grpcio's server reports the end to its handler before it checks for the reset.
AMBIGUOUS_PAIRS = [(grpc_js_client, our_server), (our_client, grpcio_server)]
AMBIGUOUS_CASES = [
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
]

PAIRS = [
    (our_client, our_server),
    (our_client, grpcio_server),
    (grpcio_client, our_server),
    (grpc_js_client, our_server),
]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def run_case(request, stubs, start):
    """Starts a server. Returns a function that starts a client to run a case with the server."""
    client, server = request.param
    environment = dict(os.environ)
    if client is grpc_js_client:
        if NODE is None:
            pytest.skip("needs grpc-js: INTEROP_NODE is not set")
        environment["NODE_PATH"] = os.path.join(NODE, "node_modules")
    server = start(server(stubs))
    port = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", server.line())[1]

    def run(case, *arguments):
        command = [*client(stubs), "--port", port, "--case", case, *arguments]
        return server, start(command, env=environment)

    run.pair = request.param

    return run


def wait_until_passed(client):
    assert client.line() == "passed", f"the client ended with {client.popen.wait(TIMEOUT_S)}"


def end_client(client):
    client.popen.stdin.close()
    assert client.popen.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("case", CASES)
def test_a_case_passes_and_its_calls_end_as_required(run_case, case):
    # Longer than the 1 ms of the case, so that the server sees the call even on a busy machine.
    timeout = ["--timeout-ms", "2000"] if case == "timeout_on_sleeping_server" else []
    server, client = run_case(case, *timeout)
    for number, (method, endings) in enumerate(CASES[case]):
        assert server.line() == f"began {method}"
        if case == "cancel_after_begin":
            client.popen.stdin.write("cancel\n")
            client.popen.stdin.flush()
        if run_case.pair in AMBIGUOUS_PAIRS and case in AMBIGUOUS_CASES:
            endings = endings | OK
        assert server.line() in {f"ended {method} {ending}" for ending in endings}
    # The client is still running, so no server can have taken its exit for a cancellation.
    wait_until_passed(client)
    end_client(client)
    assert server.lines.empty(), server.line()


def test_a_timeout_of_one_millisecond_passes(run_case):
    _, client = run_case("timeout_on_sleeping_server")
    wait_until_passed(client)
    end_client(client)
