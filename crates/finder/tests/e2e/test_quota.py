"""Limits for addresses and clients, and the errors beyond them."""

import time

import grpc
import pytest
from conftest import decoded
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from test_auth import bearer, caller, key_file, serve_with_keys  # noqa: F401
from test_contract import HARD
from test_observe import serve_with_metrics, until  # noqa: F401
from test_protocol_check import raw  # noqa: F401
from test_v1_searches import begin

CODE = grpc.StatusCode
REFUSED = "hashfinder_refused_total"


def details(error):
    """Returns a rejection's reason, its quota's subject, and its retry delay in seconds."""
    kinds = error_details_pb2.ErrorInfo, error_details_pb2.QuotaFailure, error_details_pb2.RetryInfo
    info, quota, retry = (kind() for kind in kinds)
    details = rpc_status.from_call(error).details
    for message in [info, quota, retry]:
        assert any(detail.Unpack(message) for detail in details), details
    assert info.domain == "hashfinder"
    delay = retry.retry_delay
    return info.reason, quota.violations[0].subject, delay.seconds + delay.nanos / 1e9


def rejection(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == CODE.RESOURCE_EXHAUSTED
    return details(error.value)


def test_calls_per_second_are_limited_per_address(serve_with_metrics, connect, stubs):  # noqa: F811
    server = serve_with_metrics(limits={"maximum-calls-per-second-per-address": 2})
    stub = connect(server)

    def find():
        return stub.Find(stubs.Request(desired_name="aa"))

    # Makes many calls at once, so that some of them exceed the rate.
    began = time.monotonic()
    calls = [stub.Find.future(stubs.Request(desired_name="aa")) for _ in range(50)]
    rejected = [call for call in calls if call.exception()]
    assert 2 <= len(calls) - len(rejected) <= 2 + 2 * (time.monotonic() - began)
    for call in rejected:
        assert call.code() == CODE.RESOURCE_EXHAUSTED
        reason, subject, wait = details(call.exception())
        assert (reason, subject) == ("TOO_MANY_CALLS", "address:calls_per_second")
        assert 0 < wait <= 0.5
    assert "code=ResourceExhausted" in server.wait_for("call rejected")
    until(server, REFUSED, len(rejected), reason="TOO_MANY_CALLS")
    # After this time, a call is accepted.
    time.sleep(wait)
    assert decoded(find())


@pytest.mark.parametrize(
    ("limits", "subject"),
    [
        ({"maximum-open-calls": 3, "maximum-open-calls-per-address": 9}, "server:open_calls"),
        ({"maximum-open-calls-per-address": 3}, "address:open_calls"),
        ({"maximum-open-calls": 12}, "address:open_calls"),
    ],
)
def test_open_calls_are_limited(serve_with_metrics, raw, connect, stubs, limits, subject):  # noqa: F811
    server = serve_with_metrics(limits={"request-timeout": "1h", **limits})
    connection = raw(server)
    for _ in range(3):
        connection.begin()
    until(server, "hashfinder_open_calls", 3)
    stub = connect(server)

    def find():
        return stub.Find(stubs.Request(desired_name="aa"))

    reason, found_subject, wait = rejection(find)
    assert (reason, found_subject, wait) == ("TOO_MANY_OPEN_CALLS", subject, 1)
    # A call ends when it is cancelled, when it is answered, and when its connection is lost.
    connection.h2.reset_stream(1)
    connection.flush()
    until(server, "hashfinder_open_calls", 2)
    assert decoded(find())
    connection.send(3, b"\0\0\0\0\x04\x0a\x02aa", end=True)
    assert connection.answer(3).code == 0
    until(server, "hashfinder_open_calls", 1)
    connection.socket.close()
    until(server, "hashfinder_open_calls", 0)
    assert decoded(find())


def test_one_connection_leaves_searches_for_its_clients_other_connections(serve, finder, pb):
    server = serve("--maximum-searches-per-client", "4")
    busy, other = finder(server), finder(server)
    streams = [begin(busy, pb) for _ in range(3)]
    reason, subject, _ = rejection(lambda: begin(busy, pb))
    assert (reason, subject) == ("TOO_MANY_SEARCHES_OF_CONNECTION", "connection:searches")
    streams.append(begin(other, pb))
    reason, subject, _ = rejection(lambda: begin(other, pb))
    assert (reason, subject) == ("TOO_MANY_SEARCHES_OF_CLIENT", "client:searches")
    # When one of its searches ends, the connection can start another.
    streams[0][0].cancel()
    server.call_ended(cause='"client gone"')
    streams.append(begin(busy, pb))


def test_one_connection_leaves_open_calls_for_its_addresss_other_connections(
    serve_with_metrics, raw, connect, stubs  # noqa: F811
):
    server = serve_with_metrics(limits={"request-timeout": "1h", "maximum-open-calls-per-address": 8})
    connection = raw(server)
    # The server announces how many calls a connection may have open, and the client obeys.
    while connection.h2.remote_settings.max_concurrent_streams != 6:
        connection.read()
    for _ in range(6):
        connection.begin()
    until(server, "hashfinder_open_calls", 6)
    assert decoded(connect(server).Find(stubs.Request(desired_name="aa")))


def test_a_client_may_have_its_own_limit_of_searches(serve, finder, pb):
    limits = {"client-searches": ["127.0.0.1=2"]}
    server = serve("--maximum-searches-per-client", "5", limits=limits)
    stub = finder(server)
    streams = [begin(stub, pb) for _ in range(2)]
    reason, subject, _ = rejection(lambda: begin(stub, pb))
    assert len(streams) == 2
    assert (reason, subject) == ("TOO_MANY_SEARCHES_OF_CLIENT", "client:searches")


def test_a_key_may_have_its_own_limit_of_searches(serve_with_keys, key_file, caller, pb):  # noqa: F811
    limited, other = key_file.create(), key_file.create()
    server = serve_with_keys(limits={"client-searches": [f"key:{limited.split('.')[0]}=1"]})
    limited_client, other_client = caller(server, bearer(limited)), caller(server, bearer(other))
    streams = [limited_client.begin(pb)]
    reason, subject, _ = rejection(lambda: limited_client.begin(pb))
    assert (reason, subject) == ("TOO_MANY_SEARCHES_OF_CLIENT", "client:searches")
    # The other client has the same address.
    streams += [other_client.begin(pb) for _ in range(2)]
    assert len(streams) == 3


def test_a_client_may_have_its_own_hash_quota(serve, connect, stubs):
    limits = {"client-hashes-per-second": ["127.0.0.1=100000"]}
    server = serve("--maximum-hashes-per-second", "1", limits=limits)
    stub = connect(server)
    # These searches exceed the quota of other clients, but not that of this client.
    for _ in range(3):
        assert decoded(stub.Find(stubs.Request(desired_name="aaa")))
    # Calls are rejected until the quota has refilled. On a busy machine, that may happen before
    # the next call.
    is_rejected = False
    while not is_rejected:
        reason, subject, wait = rejection(lambda: stub.Find(stubs.Request(desired_name=HARD)))
        assert (reason, subject) == ("HASH_QUOTA_SPENT", "client:hashes")
        assert wait > 0
        early = stub.Find.future(stubs.Request(desired_name="aa"))
        is_rejected = early.exception() is not None
    again = details(early.exception())
    assert early.code() == CODE.RESOURCE_EXHAUSTED
    assert again[:2] == (reason, subject) and again[2] > 0
