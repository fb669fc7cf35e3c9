"""gRPC's interoperability cases about cancellation, between tonic-cancel and others.

Real processes and sockets. INTEROP is the path of `tonic-cancel-interop`; INTEROP_NODE is where npm
has installed what peers/package.json asks for, and without it grpc-js is skipped. Both ends are
looked at: the client asserts what gRPC's description of a case does, and the server tells how it saw
the calls end.
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

# How long anything may take that is waited for.
PATIENCE_S = 120


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    out = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}"]
    command += [f"--python_out={out}", f"--grpc_python_out={out}", PROTO.name]
    subprocess.run(command, check=True)
    return str(out)


class Process:
    """A process whose lines on stdout can be waited for."""

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
        """The next line; None when there is none to come."""
        return self.lines.get(timeout=PATIENCE_S)

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


# How a server may call the end of a call; grpcio's handlers learn no more than that it is gone.
CANCELLED = {"ClientGone", "Gone"}
# Either side's timer may be the first.
EXPIRED = {"DeadlineExceeded", "ClientGone", "Gone"}
UNKNOWN = {"Unknown", "Finished"}
OK = {"Ok", "Finished"}

# The calls that each case makes, and how they end as the server sees it.
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

# Where a cancelled stream of requests may look like one that has ended, to a handler that waits for
# that end and then answers in time: Node ends the client's half of a call before it resets the call,
# and grpcio's server tells its handler of the one before it looks for the other.
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
def played(request, stubs, start):
    """Starts a server, and a client that plays a case with it."""
    client, server = request.param
    environment = dict(os.environ)
    if client is grpc_js_client:
        if NODE is None:
            pytest.skip("grpc-js is not installed")
        environment["NODE_PATH"] = os.path.join(NODE, "node_modules")
    server = start(server(stubs))
    port = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", server.line())[1]

    def play(case, *arguments):
        command = [*client(stubs), "--port", port, "--case", case, *arguments]
        return server, start(command, env=environment)

    play.pair = request.param

    return play


def passes(client):
    assert client.line() == "passed", f"it ended with {client.popen.wait(PATIENCE_S)}"


def leaves(client):
    client.popen.stdin.close()
    assert client.popen.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("case", CASES)
def test_case(played, case):
    # Longer than the case's own millisecond, so that the server sees the call, also on a busy machine.
    timeout = ["--timeout-ms", "2000"] if case == "timeout_on_sleeping_server" else []
    server, client = played(case, *timeout)
    for number, (method, endings) in enumerate(CASES[case]):
        assert server.line() == f"began {method}"
        if case == "cancel_after_begin":
            client.popen.stdin.write("cancel\n")
            client.popen.stdin.flush()
        if played.pair in AMBIGUOUS_PAIRS and case in AMBIGUOUS_CASES:
            endings = endings | OK
        assert server.line() in {f"ended {method} {ending}" for ending in endings}
    # It is still there, so that no server can have taken its leaving for a cancellation.
    passes(client)
    leaves(client)
    assert server.lines.empty(), server.line()


def test_a_timeout_of_a_millisecond(played):
    _, client = played("timeout_on_sleeping_server")
    passes(client)
    leaves(client)
