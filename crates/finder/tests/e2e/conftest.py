"""Fixtures for end-to-end tests, with real processes, real sockets and the stock Python client.

They start `hashfinder` (its path is in HASHFINDER) and wait for its output.

Tests do not limit how long something takes, because other processes may keep every core busy.
They wait for events, count work, and assert only lower bounds of durations.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures

import grpc
import pytest

HERE = pathlib.Path(__file__).parent
PROTOS = HERE.parents[3] / "proto"
HASHFINDER = os.environ["HASHFINDER"]

# Ignores the configuration of the user who runs the tests.
os.environ["HASHFINDER_CONFIG"] = os.devnull

# Needs an earlier build, which takes minutes.
collect_ignore = [] if "OLD_HASHFINDER" in os.environ else ["test_fleet_versions.py"]

# A signal that is ignored here, as under nohup or in a shell's background job, would be ignored by
# every process that the tests start.
for number in [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# Timeout for any event. It is generous, so that it expires only if the event never occurs.
TIMEOUT_S = 120

# Matches a panic in the server's log, as text or as JSON, or on stderr without a log.
PANIC = re.compile(r'ERROR hashfinder_server::log: panic |"message":"panic"|^thread .* panicked at ')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Turns a skipped test into a failure in CI, where .ci/run installs what tests need."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"no test may be skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """Returns the modules of the reference contract, generated with the standard tools."""
    out = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={out}"]
    command += [f"--grpc_python_out={out}", "hash_name.proto"]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(out))
    import hash_name_pb2
    import hash_name_pb2_grpc

    class Stubs:
        Request = hash_name_pb2.HashNameRequest
        Response = hash_name_pb2.HashNameResponse
        Stub = hash_name_pb2_grpc.HashFinderStub
        Servicer = hash_name_pb2_grpc.HashFinderServicer
        add_to_server = staticmethod(hash_name_pb2_grpc.add_HashFinderServicer_to_server)
        path = str(out)

    return Stubs


@pytest.fixture(scope="session")
def v1(tmp_path_factory):
    """Returns the modules of hashfinder.v1."""
    out = tmp_path_factory.mktemp("v1")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={out}"]
    command += [f"--grpc_python_out={out}", "hashfinder/v1/finder.proto"]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(out))
    from hashfinder.v1 import finder_pb2, finder_pb2_grpc

    class V1:
        messages = finder_pb2
        Stub = finder_pb2_grpc.FinderStub
        Servicer = finder_pb2_grpc.FinderServicer
        add_to_server = staticmethod(finder_pb2_grpc.add_FinderServicer_to_server)

    return V1


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def wait_until_caught(process, number):
    """Waits until a process catches a signal, or ignores it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not any(int(status_of(process, field), 16) >> (number - 1) & 1 for field in ["SigCgt", "SigIgn"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status_of(process, field):
    with open(f"/proc/{process}/status") as text:
        return re.search(rf"^{field}:\s*(\w+)$", text.read(), re.MULTILINE)[1]


class Process:
    """A process. Tests can wait for lines on its stderr."""

    def __init__(self, command, **kwargs):
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )
        self.pid = self.popen.pid
        self._stderr = queue.Queue()
        self.log = []
        self._panics = []
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()

    def _read_stderr(self):
        for line in self.popen.stderr:
            self._stderr.put(line.rstrip("\n"))
            if PANIC.search(line):
                self._panics.append(line)
        self._stderr.put(None)

    def wait_for(self, pattern):
        """Waits for the next line on stderr that matches the pattern, and returns it."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                line = self._stderr.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                seen = "\n".join(self.log)
                pytest.fail(f"no line on stderr matches {pattern!r}; lines so far:\n{seen}")
            self.log.append(line)
            if re.search(pattern, line):
                return line

    def rest_of_stderr(self):
        """Returns the rest of stderr once the process has ended."""
        self._reader.join(TIMEOUT_S)
        lines = []
        while (line := self._stderr.get()) is not None:
            lines.append(line)
        return "\n".join(lines)

    def send(self, number):
        self.popen.send_signal(number)

    def wait(self):
        return self.popen.wait(TIMEOUT_S)

    def cpu_s(self):
        """Returns the CPU time of all threads of the process, in seconds."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        pages = pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def assert_idle(self):
        """Waits until the process uses less than a tenth of a core for half a second.

        A process that is still searching never becomes idle; a busy machine only delays this.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            began, before = time.monotonic(), self.cpu_s()
            time.sleep(0.5)
            cores = (self.cpu_s() - before) / (time.monotonic() - began)
            if cores < 0.1:
                return
            assert time.monotonic() < deadline, f"the process still uses {cores} cores"

    def wait_until_busy(self):
        """Waits until the process has used some CPU time, so that its search has begun.

        It has to do so within two seconds: an idle process needs minutes for as much. The start of
        the program does not count: until signals are caught, the first one would kill it.
        """
        wait_until_caught(self.popen.pid, SIGTERM)
        began, before = time.monotonic(), self.cpu_s()
        deadline = began + TIMEOUT_S
        while self.cpu_s() < before + 0.05:
            if time.monotonic() > began + 2:
                began, before = time.monotonic(), self.cpu_s()
            assert time.monotonic() < deadline, "the process uses no CPU time"
            time.sleep(0.01)

    def end(self):
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self.popen.stdout.close()
        # A server survives a panic, so its test might pass without this check.
        self._reader.join(TIMEOUT_S)
        assert not self._panics, "".join(self._panics)


def limits_as_toml(limits):
    """Returns the content of a configuration file with these settings in `[serve.limits]`."""
    # In JSON, strings, numbers and arrays of them are written as in TOML.
    settings = (f"{name} = {json.dumps(value)}\n" for name, value in limits.items())
    return "[serve.limits]\n" + "".join(settings)


class Server(Process):
    """A running server. `limits` maps settings that only the configuration file can have to their
    values. `under` is a command that replaces itself with the server, such as `strace -D`."""

    def __init__(self, *flags, port=0, limits=None, under=()):
        where = [] if "--unix" in flags else ["--port", str(port)]
        command = [*under, HASHFINDER, "serve", *where, *flags]
        # The server reads its configuration once, before it listens.
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            if limits:
                config.write(limits_as_toml(limits))
                config.flush()
                command += ["--config", config.name]
            super().__init__(command)
            line = self.popen.stdout.readline()
        address = r"hashfinder listening on (127\.0\.0\.1:\d+|unix:.+)\n"
        found = re.fullmatch(address, line)
        assert found, (line, self.popen.poll())
        self.address = found[1]

    def call_ended(self, **fields):
        """Waits for the log line of a call's end, checks its fields, and returns it."""
        line = self.wait_for("call ended")
        for key, value in fields.items():
            assert re.search(rf"\b{key}={re.escape(value)}(?= |$)", line), (key, value, line)
        return line


class Reference(Process):
    def __init__(self, stubs, budget):
        command = [sys.executable, str(HERE / "reference_server.py"), str(budget), stubs.path]
        super().__init__(command)
        self.address = f"localhost:{self.next_event().removeprefix('listening on ')}"

    def next_event(self):
        return self.popen.stdout.readline().rstrip("\n")


class Fake:
    """A server of hashfinder.v1 with the given methods."""

    def __init__(self, v1, **methods):
        servicer = type("Servicer", (v1.Servicer,), methods)
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        v1.add_to_server(servicer(), self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()


@pytest.fixture
def processes():
    started = []
    yield started
    with contextlib.ExitStack() as ends:
        for process in started:
            ends.callback(process.end)


@pytest.fixture
def serve(processes):
    def start(*flags, **kwargs):
        server = Server(*flags, **kwargs)
        processes.append(server)
        return server

    return start


@pytest.fixture
def reference(stubs, processes):
    def start(budget=10**9):
        server = Reference(stubs, budget)
        processes.append(server)
        return server

    return start


@pytest.fixture
def fake(v1):
    servers = []

    def start(**methods):
        servers.append(Fake(v1, **methods))
        return servers[-1]

    yield start
    for server in servers:
        server.server.stop(None)


@pytest.fixture
def find(processes):
    """Returns a function that starts `hashfinder find` and does not wait for its end."""

    def start(*arguments, **kwargs):
        process = Process([HASHFINDER, "find", *arguments], **kwargs)
        processes.append(process)
        return process

    return start


@pytest.fixture
def connect(stubs):
    channels = []

    def open_channel(server):
        # For a Unix socket grpcio sends the socket's path as :authority, which the server rejects.
        options = [("grpc.default_authority", "localhost")] if "unix:" in server.address else []
        channel = grpc.insecure_channel(server.address, options)
        channels.append(channel)
        return stubs.Stub(channel)

    yield open_channel
    for channel in channels:
        channel.close()


@pytest.fixture(scope="session")
def pb(v1):
    """Returns the messages of hashfinder.v1."""
    return v1.messages


@pytest.fixture
def finder(v1):
    """Returns a function that opens a new connection to `hashfinder.v1.Finder`."""
    channels = []

    def open_channel(address):
        address = getattr(address, "address", address)
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(address, options)
        channels.append(channel)
        return v1.Stub(channel)

    yield open_channel
    for channel in channels:
        channel.close()


def run_find(*arguments):
    """Runs `hashfinder find` to its end."""
    return subprocess.run(
        [HASHFINDER, "find", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def secrets():
    """Yields all secrets in enumeration order."""
    for length in itertools.count():
        for counter in range(256**length):
            yield counter.to_bytes(length, "big")


def hashed(secret):
    return base64.b64encode(hashlib.sha1(secret).digest()).decode()


def distance(secret, name):
    """Returns the smallest distance of any window, and the first window that has it."""
    text, name = hashed(secret).lower(), name.lower()
    windows = range(len(text) - len(name) + 1)
    return min((sum(a != b for a, b in zip(text[w:], name)), w) for w in windows)


def oracle(name, ideal, interesting=0):
    """Returns (secret, distance) of each response that FindRange must send, the ideal one last."""
    found = []
    for secret in secrets():
        d, _ = distance(secret, name)
        if d <= ideal or d < interesting:
            found.append((secret, d))
        if d <= ideal:
            return found


def line_of(secret, name):
    """Returns the line that `find` prints for a secret."""
    d, window = distance(secret, name)
    texts = base64.b64encode(secret).decode(), secret.hex()
    columns = hashed(secret), *(text or "(empty)" for text in texts), d, window, name
    return "\t".join(map(str, columns))


# First secret that spells "doctor", the 10,874,376th. The crates' tests find it in a single pass.
FIRST_DOCTOR = bytes.fromhex("a4ed06")


def decoded(response):
    """Checks a response, and returns it as (secret, distance)."""
    secret = base64.b64decode(response.secret, validate=True)
    assert response.hashed_name == hashed(secret)
    return secret, response.hamming_distance


SIGINT, SIGTERM, SIGKILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
