"""Upgrades as in docs/operations.md: start a second server, then send SIGTERM to the first."""

import subprocess
import threading

import grpc
from conftest import HASHFINDER, SIGTERM, TIMEOUT_S, decoded, oracle, run_find
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from test_contract import details
from test_find import cursor_in, position_of
from test_v1_searches import begin

CODE = grpc.StatusCode
NAME = "aa"


class Callers:
    """Clients that call without a pause until they are stopped, and count how their calls ended."""

    def __init__(self, stubs, address):
        self.stubs, self.address = stubs, address
        self.ok, self.rejected, self.failed = 0, 0, []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._seen = threading.Condition(self._lock)
        # Two clients keep their connection, two open one for each call.
        loops = [self._keep_connection, self._keep_connection, self._reconnect, self._reconnect]
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def _channel(self):
        return grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])

    def _call(self, channel):
        try:
            # A client that connects while the old server closes its socket is reset by the kernel,
            # before any data is sent. A call that waits for its connection then connects again.
            response = self.stubs.Stub(channel).Find(
                self.stubs.Request(desired_name=NAME), timeout=TIMEOUT_S, wait_for_ready=True
            )
            assert decoded(response) == oracle(NAME, 0)[-1]
            how = "ok"
        except grpc.RpcError as error:
            draining = error.code() == CODE.UNAVAILABLE and is_draining(error)
            how = "rejected" if draining else repr(error)
        with self._lock:
            if how == "ok":
                self.ok += 1
            elif how == "rejected":
                self.rejected += 1
            else:
                self.failed.append(how)
            self._seen.notify_all()

    def _keep_connection(self):
        with self._channel() as channel:
            while not self._done.is_set():
                self._call(channel)

    def _reconnect(self):
        while not self._done.is_set():
            with self._channel() as channel:
                self._call(channel)

    def wait_for(self, more):
        """Waits until this many more calls were answered."""
        with self._lock:
            enough = self.ok + more
            assert self._seen.wait_for(lambda: self.ok >= enough or self.failed, TIMEOUT_S)

    def stop(self):
        self._done.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)


def is_draining(error):
    # A lost connection has no details.
    has_details = rpc_status.from_call(error) is not None
    return has_details and details(error, error_details_pb2.ErrorInfo).reason == "DRAINING"


def test_during_an_upgrade_calls_fail_only_with_draining(serve, stubs, finder, pb):
    old = serve("--reuse-port", "--drain-grace", "1s")
    port = old.address.split(":")[1]
    address = f"127.0.0.1:{port}"
    callers = Callers(stubs, address)
    stream, _ = begin(finder(old), pb)
    callers.wait_for(100)
    for _ in range(3):
        new = serve("--reuse-port", "--drain-grace", "1s", port=port)
        callers.wait_for(100)
        old.send(SIGTERM)
        assert old.wait() == 0
        # The search on the old server received its cursor, and resumes at the same address.
        try:
            events = list(stream)
            raise AssertionError(events)
        except grpc.RpcError as error:
            assert error.code() == CODE.UNAVAILABLE and is_draining(error)
            cursor = details(error, error_details_pb2.ErrorInfo).metadata["cursor"]
        assert cursor.startswith("hf1_")
        stream = finder(address).Search(pb.SearchRequest(cursor=cursor))
        assert next(stream).accepted.search_id
        callers.wait_for(100)
        old = new
    stream.cancel()
    callers.stop()
    assert callers.failed == []
    assert callers.ok >= 700


def test_a_session_resumes_on_the_new_server(serve, find, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    slow = ["--kernel", "portable", "--workers", "1", "--reuse-port", "--drain-grace", "0s"]
    old = serve(*slow)
    port = old.address.split(":")[1]
    search = ["docto", "--show-inferior", "3", "--count", "3"]
    command = [*search, "--server", old.address, "--session", "upgrade"]
    process = find(*command)
    first = process.popen.stdout.readline()
    serve(*slow, port=port)
    old.send(SIGTERM)
    # The pipe is read all the time, because it cannot hold all of the output.
    before = first + process.popen.stdout.read()
    assert process.wait() == 5
    assert old.wait() == 0
    after = run_find(*command)
    assert after.returncode == 0, after.stderr
    assert "resuming after" in after.stderr
    # No line is lost or repeated, compared with a command that is not stopped.
    assert before + after.stdout == run_find(*search, "--threads", "1").stdout


def test_health_reports_draining_while_calls_still_run(serve):
    server = serve("--drain-grace", "1h")
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="hashfinder.v1.Finder"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        busy = subprocess.Popen(
            [HASHFINDER, "find", "hashfinderhashfinder", "--server", server.address, "--quiet"],
            stdout=subprocess.DEVNULL,
        )
        try:
            server.wait_until_busy()
            server.send(SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            # The running call still has its grace period.
            server.wait_until_busy()
            assert busy.poll() is None
        finally:
            busy.terminate()
            busy.wait(TIMEOUT_S)
    assert server.wait() == 0


def test_a_cursor_of_the_first_version_still_works():
    # Printed by the first version. Cursors in scripts and sessions have to work forever.
    kept = "hf1_AAAAAAAAAA9CQGhhc2hmaW5kZXJgc2wH"
    done = run_find("--resume", kept, "--maximum-hashes", "1000000")
    assert done.returncode == 3, done.stderr
    # It still means the same: the search resumes after the same number of secrets.
    whole = run_find("hashfinder", "--maximum-hashes", "2000000")
    assert position_of(cursor_in(done.stderr)) == position_of(cursor_in(whole.stderr))
