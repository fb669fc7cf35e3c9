"""Calls that are stopped before they have a result, by the client or by the server."""

import fcntl
import os
import re
import subprocess
import sys
import textwrap
import time

import grpc
import pytest
from conftest import (
    HASHFINDER,
    TIMEOUT_S,
    SIGINT,
    SIGKILL,
    SIGTERM,
    decoded,
    distance,
    hashed,
    oracle,
    run_find,
    secrets,
)
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_contract import HARD, details

CODE = grpc.StatusCode


def hard(stubs, interesting=0):
    return stubs.Request(desired_name=HARD, interesting_hamming_distance=interesting)


def error_of(call):
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


def test_cancelling_a_future_frees_the_cores(serve, connect, stubs):
    server = serve()
    future = connect(server).Find.future(hard(stubs))
    server.wait_until_busy()
    with pytest.raises(grpc.FutureTimeoutError):
        future.result(timeout=0.01)
    assert future.cancel()
    assert future.cancelled()
    server.call_ended(code="Cancelled", cause='"client gone"', work='"stopped"')
    server.assert_idle()


def test_cancelling_a_stream_frees_the_cores(serve, connect, stubs):
    server = serve()
    stream = connect(server).FindRange(hard(stubs, interesting=18))
    next(stream)
    server.wait_until_busy()
    stream.cancel()
    assert stream.code() == CODE.CANCELLED
    server.call_ended(method='"FindRange"', cause='"client gone"', work='"stopped"')
    server.assert_idle()


def test_many_calls_can_be_cancelled_at_once(serve, connect, stubs):
    server = serve()
    stub = connect(server)
    futures = [stub.Find.future(hard(stubs)) for _ in range(100)]
    streams = [stub.FindRange(hard(stubs)) for _ in range(100)]
    server.wait_until_busy()
    # An easy search is answered among them.
    assert decoded(stub.Find(stubs.Request(desired_name="aa"))) == oracle("aa", 0)[-1]
    server.call_ended(code="Ok")
    for call in futures + streams:
        call.cancel()
    for _ in range(200):
        line = server.call_ended(cause='"client gone"')
        assert re.search(r" stopped_in_ms=[\d.]+$", line)
    server.assert_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_the_call_and_its_work(serve, connect, stubs, stream):
    server = serve()
    stub = connect(server)
    # Connects first, so that the deadline does not pass before the call reaches the server.
    stub.Find(stubs.Request(desired_name="aa"))
    server.call_ended(code="Ok")
    if stream:
        error = error_of(lambda: list(stub.FindRange(hard(stubs, interesting=18), timeout=1)))
    else:
        error = error_of(lambda: stub.Find(hard(stubs), timeout=1))
    assert error.code() == CODE.DEADLINE_EXCEEDED
    # The client gives up at the same moment, so the server may notice either first.
    line = server.call_ended(work='"stopped"')
    assert "deadline exceeded" in line or "client gone" in line
    server.assert_idle()


def test_closing_a_channel_frees_the_cores(serve, stubs):
    server = serve()
    channel = grpc.insecure_channel(server.address)
    stub = stubs.Stub(channel)
    future, stream = stub.Find.future(hard(stubs)), stub.FindRange(hard(stubs))
    server.wait_until_busy()
    channel.close()
    for _ in range(2):
        server.call_ended(cause='"client gone"')
    assert (future.code(), stream.code()) == (CODE.CANCELLED, CODE.CANCELLED)
    server.assert_idle()


def test_killing_a_client_frees_the_cores(serve, stubs):
    server = serve()
    program = f"""
        import sys
        sys.path.insert(0, {stubs.path!r})
        import grpc, hash_name_pb2, hash_name_pb2_grpc
        channel = grpc.insecure_channel({server.address!r})
        stub = hash_name_pb2_grpc.HashFinderStub(channel)
        request = hash_name_pb2.HashNameRequest(desired_name={HARD!r})
        future = stub.Find.future(request)
        next(stub.FindRange(request))
    """
    client = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    server.wait_until_busy()
    client.send_signal(SIGKILL)
    client.wait()
    for _ in range(2):
        server.call_ended(cause='"client gone"')
    server.assert_idle()


BUDGET = 1_000_000


@pytest.mark.parametrize("workers", ["1", "2", "7"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_hash_budget_is_exact(serve, connect, stubs, workers, stream):
    server = serve("--workers", workers, "--maximum-hashes", str(BUDGET))
    stub = connect(server)
    request = hard(stubs, interesting=15)
    error = error_of(lambda: list(stub.FindRange(request)) if stream else stub.Find(request))
    assert error.code() == CODE.CANCELLED
    info = details(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("HASH_BUDGET_SPENT", "hashfinder")
    assert info.metadata["hashes_tried"] == str(BUDGET)
    quota = details(error, error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "rpc:maximum_hashes"
    server.call_ended(hashes=str(BUDGET), work='"hash budget spent"', cause='"completed"')
    server.assert_idle()
    # The cursor resumes at the very next secret.
    following = run_find("--resume", info.metadata["cursor"], "--maximum-hashes", "1")
    assert following.returncode == 3
    assert "hash budget spent after 1 hash\n" in following.stderr


def test_the_result_within_a_budget_does_not_depend_on_the_workers(serve, connect, stubs):
    # "docto" is first found at the 899,147th secret.
    answers = set()
    for workers in ["1", "2", "3", "8"]:
        stub = connect(serve("--workers", workers, "--maximum-hashes", str(BUDGET)))
        answers.add(stub.Find(stubs.Request(desired_name="docto")).secret)
    assert len(answers) == 1
    # It takes exactly this many hashes: with one less there is no result.
    for hashes, code in [(899_147, CODE.OK), (899_146, CODE.CANCELLED)]:
        stub = connect(serve("--maximum-hashes", str(hashes)))
        future = stub.Find.future(stubs.Request(desired_name="docto"))
        assert future.code() == code


def test_a_stream_sends_its_candidates_before_the_budget_ends_it(serve, connect, stubs):
    hashes = 3000
    stream = connect(serve("--maximum-hashes", str(hashes))).FindRange(hard(stubs, interesting=18))
    received = []
    error = error_of(lambda: received.extend(decoded(response) for response in stream))
    assert error.code() == CODE.CANCELLED
    tried = [secret for secret, _ in zip(secrets(), range(hashes))]
    near = [(secret, distance(secret, HARD)[0]) for secret in tried]
    assert received == [(secret, d) for secret, d in near if d < 18]
    assert len(received) > 10


def test_a_spent_budget_can_be_reported_as_resource_exhausted(serve, connect, stubs):
    limits = {"budget-status": "resource-exhausted"}
    stub = connect(serve("--maximum-hashes", "1000", limits=limits))
    error = error_of(lambda: stub.Find(hard(stubs)))
    assert error.code() == CODE.RESOURCE_EXHAUSTED
    assert details(error, error_details_pb2.ErrorInfo).reason == "HASH_BUDGET_SPENT"


def test_too_many_calls_are_rejected_until_one_has_ended(serve, connect, stubs):
    server = serve("--maximum-concurrent-rpcs", "2")
    stub = connect(server)
    first, second = stub.Find.future(hard(stubs)), stub.FindRange(hard(stubs))
    server.wait_until_busy()
    for call in [lambda: stub.Find(hard(stubs)), lambda: list(stub.FindRange(hard(stubs)))]:
        error = error_of(call)
        assert error.code() == CODE.RESOURCE_EXHAUSTED
        quota = details(error, error_details_pb2.QuotaFailure)
        assert quota.violations[0].subject == "server:maximum_concurrent_rpcs"
        assert details(error, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
    # Invalid requests are still reported as such.
    error = error_of(lambda: stub.Find(stubs.Request(desired_name="")))
    assert error.code() == CODE.INVALID_ARGUMENT
    first.cancel()
    server.call_ended(cause='"client gone"')
    assert decoded(stub.Find(stubs.Request(desired_name="aa"))) == oracle("aa", 0)[-1]
    second.cancel()


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_drain_sends_cursors(serve, connect, stubs, number):
    server = serve("--drain-grace", "100ms")
    stub = connect(server)
    # Its candidates are rare, so the stream's end does not wait for thousands of them to be read.
    stream = stub.FindRange(hard(stubs, interesting=13))
    future = stub.Find.future(hard(stubs))
    next(stream)
    server.wait_until_busy()
    server.send(number)
    for error in [future.exception(), error_of(lambda: list(stream))]:
        assert error.code() == CODE.UNAVAILABLE
        info = details(error, error_details_pb2.ErrorInfo)
        assert (info.reason, info.domain) == ("DRAINING", "hashfinder")
        assert details(error, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
        following = run_find("--resume", info.metadata["cursor"], "--maximum-hashes", "1")
        assert "hash budget spent after 1 hash\n" in following.stderr
    assert server.wait() == 0
    for _ in range(2):
        server.call_ended(cause='"server draining"', code="Unavailable")


def test_a_drain_lets_a_search_finish_within_the_grace_period(serve, connect, stubs):
    server = serve("--drain-grace", "1h")
    stub = connect(server)
    watch = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address)).Watch(
        health_pb2.HealthCheckRequest(service="hash_name.HashFinder"), timeout=50
    )
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    # It tries 57 million secrets, so that it runs long enough to be noticed even on a fast CPU.
    future = stub.Find.future(stubs.Request(desired_name="engine"))
    server.wait_until_busy()
    server.send(SIGTERM)
    server.wait_for("draining")
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    # New calls are rejected.
    error = error_of(lambda: stub.Find(hard(stubs), timeout=TIMEOUT_S))
    assert error.code() == CODE.UNAVAILABLE
    secret, least = decoded(future.result())
    assert least == 0 and "engine" in hashed(secret).lower()
    assert server.wait() == 0


def test_a_drain_does_not_wait_for_health_watches(serve, connect, stubs):
    server = serve("--drain-grace", "1h")
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="hash_name.HashFinder")
        watch = stub.Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.send(SIGTERM)
        received = []
        error = error_of(lambda: received.extend(response.status for response in watch))
        assert received == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert error.code() == CODE.UNAVAILABLE
    assert server.wait() == 0


def test_a_drain_ends_even_if_a_stream_is_not_read(serve, connect, stubs):
    server = serve("--drain-grace", "100ms")
    # Every secret is a candidate, and the client does not read them.
    stream = connect(server).FindRange(hard(stubs, interesting=21))
    next(stream)
    server.send(SIGTERM)
    # The search itself would never end.
    assert server.wait() == 0


def test_a_second_signal_ends_a_drain_at_once(serve, connect, stubs):
    server = serve("--drain-grace", "1h")
    future = connect(server).Find.future(hard(stubs))
    server.wait_until_busy()
    server.send(SIGTERM)
    server.wait_for("draining")
    # A signal right after the first is treated as the same one.
    deadline = time.monotonic() + TIMEOUT_S
    while server.popen.poll() is None:
        assert time.monotonic() < deadline
        server.send(SIGTERM)
        time.sleep(0.5)
    assert server.wait() == 0
    assert "stopping at once" in server.rest_of_stderr()
    assert future.exception() is not None


# Limits how far the client's library reads ahead. By default, it reads megabytes.
READS_LITTLE_AHEAD = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]


def wait_until_parked(stub, pb, count):
    """Waits until this many searches are parked, being unread, and hashing has stopped."""
    deadline = time.monotonic() + TIMEOUT_S
    before = None
    while True:
        searches = stub.ListSearches(pb.ListSearchesRequest()).searches
        now = sorted((search.search_id, search.hashes) for search in searches)
        are_parked = all(search.state == pb.SEARCH_STATE_PARKED for search in searches)
        if are_parked and now == before:
            assert len(now) == count
            return
        assert time.monotonic() < deadline, "the searches continue although they are not read"
        before = now
        time.sleep(0.5)


def test_an_unread_stream_uses_no_core_and_no_memory(serve, finder, pb, connect, stubs):
    server = serve()
    channel = grpc.insecure_channel(server.address, READS_LITTLE_AHEAD)
    stub = stubs.Stub(channel)
    # Every secret is a candidate.
    streams = [stub.FindRange(hard(stubs, interesting=21)) for _ in range(20)]
    server.wait_until_busy()
    wait_until_parked(finder(server), pb, 20)
    resident = server.resident_bytes()
    server.assert_idle()
    assert server.resident_bytes() - resident < 1_000_000

    # A client that starts reading gets all candidates from the first one on.
    for stream in streams[:2]:
        for secret, _ in zip(secrets(), range(20_000)):
            assert next(stream).hashed_name == hashed(secret)
    # Another search is not delayed.
    assert decoded(stub.Find(stubs.Request(desired_name="aa"))) == oracle("aa", 0)[-1]
    for stream in streams:
        stream.cancel()
    ends = [server.wait_for("call ended") for _ in range(21)]
    assert sum('cause="client gone"' in line for line in ends) == 20


def test_a_stalled_stream_ends_at_its_deadline(serve, connect, stubs):
    server = serve()
    stream = connect(server).FindRange(hard(stubs, interesting=21), timeout=2)
    # The client gives up at the same moment, so the server may notice either first.
    line = server.call_ended(work='"stopped"')
    assert "deadline exceeded" in line or "client gone" in line
    assert stream.code() == CODE.DEADLINE_EXCEEDED


def test_a_port_in_use_is_an_error(serve):
    port = serve().address.rsplit(":", 1)[1]
    second = subprocess.run(
        [HASHFINDER, "serve", "--port", port], capture_output=True, text=True, timeout=30
    )
    assert second.returncode == 5
    assert "cannot listen on 127.0.0.1:" in second.stderr
    assert "port 0" in second.stderr
    assert second.stdout == ""


def test_a_server_that_cannot_print_its_address_ends():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [HASHFINDER, "serve", "--port", "0"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    assert done.returncode == 5
    last = done.stderr.splitlines()[-1]
    assert "cannot print on stdout that the server listens on 127.0.0.1:" in last


@pytest.mark.parametrize("log", ["unread", "closed"])
def test_an_unread_log_does_not_block_the_server(processes, stubs, log):
    read, write = os.pipe()
    # A small pipe, which is soon full.
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    server = subprocess.Popen(
        [HASHFINDER, "serve", "--port", "0"], stdout=subprocess.PIPE, stderr=write, text=True
    )
    try:
        os.close(write)
        if log == "closed":
            os.close(read)
        address = server.stdout.readline().split()[-1]
        with grpc.insecure_channel(address) as channel:
            stub = stubs.Stub(channel)
            for _ in range(200):
                response = stub.Find(stubs.Request(desired_name="aa"), timeout=30)
                assert decoded(response) == oracle("aa", 0)[-1]
                error = error_of(lambda: stub.Find(stubs.Request(desired_name=""), timeout=30))
                assert error.code() == CODE.INVALID_ARGUMENT
        server.send_signal(SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        if log == "unread":
            os.close(read)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--workers", "0"], "1 to 1024"),
        (["--workers", "99999999"], "1 to 1024"),
        (["--maximum-hashes", "0"], "--maximum-hashes"),
        (["--port", "65536"], "--port"),
        (["--drain-grace", "soon"], "90s"),
    ],
)
def test_an_invalid_command_line_is_rejected(flags, expected):
    done = subprocess.run(
        [HASHFINDER, "serve", *flags], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert expected in done.stderr


def test_the_greatest_limits_are_accepted(serve, connect, stubs):
    greatest = str(2**64 - 1)
    server = serve("--maximum-concurrent-rpcs", greatest, "--maximum-hashes", greatest)
    response = connect(server).Find(stubs.Request(desired_name="aa"), timeout=30)
    assert decoded(response) == oracle("aa", 0)[-1]
