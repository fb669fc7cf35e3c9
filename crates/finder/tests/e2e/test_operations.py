"""Operations: searches that outlive their call, their client and their server."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import socket
import sqlite3
import stat
import subprocess
import tempfile
import textwrap
import time

import grpc
import jsonschema
import pytest
from conftest import (
    FIRST_DOCTOR,
    HASHFINDER,
    PROTOS,
    SIGINT,
    SIGKILL,
    SIGTERM,
    TIMEOUT_S,
    Process,
    distance,
    hashed,
    oracle,
    run_find,
    secrets,
)
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_auth import bearer, key_file, serve_with_keys  # noqa: F401
from test_contract import HARD
from test_find import cursor_in, position_of
from test_json import VALIDATOR as FIND_JSON
from test_observe import get, serve_with_metrics, until, value  # noqa: F401
from test_resume import index_of
from test_sharing import relay
from test_status import Terminal
from test_stopping import error_of
from test_traces import attributes, collector  # noqa: F401
from test_v1_search import candidates, cursor_of, kinds, query, seconds
from test_v1_searches import MINE, RELAY, field_of, reason_of, wait_until

CODE = grpc.StatusCode
OTHER_USER = 65534

# Name, ideal and interesting distance of a search that does not end while a test runs. About three
# secrets in a million are candidates.
ENDLESS = ("hashfinder", 0, 5)

# Slows down a server, so that an operation finds few candidates before it can be stopped.
SLOW = ["--workers", "1", "--kernel", "portable"]

# Index of the first secret that spells "doctor".
DOCTOR = 10_874_375


def unpacked(wrapped, kind):
    message = kind()
    assert wrapped.Unpack(message), wrapped.type_url
    return message


class Client:
    """A client with its own connection. It sends this metadata with each call."""

    def __init__(self, v1, address, metadata=()):
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(address, options)
        self.finder = v1.Stub(self.channel)
        self.operations = operations_pb2_grpc.OperationsStub(self.channel)
        self.pb = v1.messages
        self.call = {"metadata": list(metadata), "timeout": TIMEOUT_S}

    def start(self, **fields):
        return self.finder.StartSearch(self.pb.StartSearchRequest(**fields), **self.call)

    def begin(self, *about, **fields):
        """Starts an operation, by default an endless one, and returns its name."""
        return self.start(query=query(self.pb, *about or ENDLESS), **fields).name

    def get(self, name):
        return self.operations.GetOperation(
            operations_pb2.GetOperationRequest(name=name), **self.call
        )

    def wait(self, name, timeout=None):
        """Waits for the timeout or, without one, until the operation has ended."""
        request = operations_pb2.WaitOperationRequest(name=name, timeout=timeout)
        while True:
            operation = self.operations.WaitOperation(request, **self.call)
            # A call waits for a minute at most.
            if timeout is not None or operation.done:
                return operation

    def cancel(self, name):
        request = operations_pb2.CancelOperationRequest(name=name)
        return self.operations.CancelOperation(request, **self.call)

    def delete(self, name):
        request = operations_pb2.DeleteOperationRequest(name=name)
        return self.operations.DeleteOperation(request, **self.call)

    def list(self, **fields):
        request = operations_pb2.ListOperationsRequest(**fields)
        return self.operations.ListOperations(request, **self.call)

    def names(self, **fields):
        """Returns the names of all operations in the list."""
        names, token = [], None
        while token != "":
            page = self.list(page_token=token or "", **fields)
            token = page.next_page_token
            names += [operation.name for operation in page.operations]
        return names

    def watch(self, name, **fields):
        request = self.pb.WatchOperationRequest(name=name, **fields)
        return self.finder.WatchOperation(request, **self.call)

    def candidates(self, name, page_size=0):
        found, token = [], None
        while token != "":
            request = self.pb.ListCandidatesRequest(
                name=name, page_size=page_size, page_token=token or ""
            )
            page = self.finder.ListCandidates(request, **self.call)
            token = page.next_page_token
            found += page.candidates
        return found

    def metadata(self, name):
        return unpacked(self.get(name).metadata, self.pb.SearchMetadata)

    def state(self, name):
        state = self.pb.OperationState.Name(self.metadata(name).state)
        return state.removeprefix("OPERATION_STATE_")

    def wait_for_state(self, name, state):
        wait_until(lambda: self.state(name) == state)
        return self.metadata(name)

    def wait_for_progress(self, name, hashes=0):
        """Waits until more hashes are saved than this number, or until the operation has ended.
        Returns the number of hashes."""

        def progress():
            metadata = self.metadata(name)
            return metadata if metadata.hashes > hashes or metadata.end_reason else None

        return wait_until(progress).hashes

    def end_reason(self, name):
        """Returns why an operation ended, whether it was found or has an error."""
        reason = self.pb.EndReason.Name(self.metadata(name).end_reason)
        return reason.removeprefix("END_REASON_")

    def search(self, **fields):
        """Returns the events of a plain search until it is found or its hash budget is spent."""
        events = []
        try:
            events.extend(self.finder.Search(self.pb.SearchRequest(**fields), **self.call))
        except grpc.RpcError as error:
            assert reason_of(error) == "HASH_BUDGET_SPENT"
        return events

    def searched(self, hashes, *about):
        """Returns the candidates that a plain search reports within this many hashes."""
        if hashes == 0:
            # A budget of 0 is no budget.
            return []
        about = query(self.pb, *about or ENDLESS)
        return candidates(self.search(query=about, maximum_hashes=hashes))


@pytest.fixture
def client(v1):
    """Returns a function that connects a client to a server. It waits until the server, which
    already listens, has loaded its operations."""
    clients = []

    def connect(server, metadata=(), is_loaded=True):
        address = getattr(server, "address", server)
        clients.append(Client(v1, address, metadata))
        if is_loaded:
            retried(clients[-1].list)
        return clients[-1]

    yield connect
    for connected in clients:
        connected.channel.close()


@pytest.fixture
def folder(tmp_path):
    """Returns the folder in which the test's servers save their operations."""
    return tmp_path / "state"


@pytest.fixture
def serve_operations(serve, folder):
    """Returns a function that starts a server with operations."""

    def start(*flags, **kwargs):
        return serve("--state", str(folder), *flags, **kwargs)

    return start


def stop(server, number):
    server.send(number)
    return server.wait()


def port_of(server):
    return int(server.address.rsplit(":", 1)[1])


def events_of(stream):
    return [response.event for response in stream]


def first_candidates(stream, count):
    """Reads a stream of WatchOperation until it has reported this many candidates."""
    found = []
    for response in stream:
        found += candidates([response.event])
        if len(found) >= count:
            return found
    pytest.fail(f"the operation ended after {len(found)} candidates")


def error_in(operation):
    """Returns the code of an operation that ended with an error, and its ErrorInfo."""
    assert operation.done and operation.WhichOneof("result") == "error"
    [info] = [
        unpacked(detail, error_details_pb2.ErrorInfo)
        for detail in operation.error.details
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    ]
    assert info.domain == "hashfinder"
    return operation.error.code, info


def rejection(call):
    """Returns the code and the reason with which a call is rejected."""
    error = error_of(call)
    return error.code(), reason_of(error)


def retried(call):
    """Repeats a call while the server cannot save operations, and returns its response."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            assert (error.code(), reason_of(error)) == (CODE.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert time.monotonic() < deadline, "the server still cannot save operations"
        time.sleep(0.01)


def as_line(candidate):
    """Returns the line that `find` prints for a candidate."""
    texts = base64.b64encode(candidate.secret).decode(), candidate.secret.hex()
    columns = candidate.hashed_name, *(text or "(empty)" for text in texts)
    return "\t".join([*columns, str(candidate.distance), str(candidate.window), candidate.desired_name])


def assert_correct(found, name):
    """Checks candidates with Python's SHA-1."""
    for candidate in found:
        assert candidate.hashed_name == hashed(candidate.secret)
        assert (candidate.distance, candidate.window) == distance(candidate.secret, name)
        assert candidate.desired_name == name


# The service google.longrunning.Operations, and StartSearch.


def test_an_operation_ends_with_the_first_secret(serve_operations, client, pb):
    mine = client(serve_operations())
    before = time.time()
    started = mine.start(query=query(pb, "doc", 0, 2), display_name="my «first» one")
    assert re.fullmatch("operations/[0-9a-f]{32}", started.name)
    done = mine.wait(started.name)
    assert done == mine.get(started.name)
    expected = oracle("doc", 0, 2)
    secret, _ = expected[-1]
    index = next(index for index, other in enumerate(secrets()) if other == secret)

    result = unpacked(done.response, pb.SearchResult)
    assert done.done and result.hashes == index + 1
    assert (result.found.secret, result.found.index) == (secret, index)
    assert result.found.is_ideal
    assert_correct([result.found], "doc")

    metadata = unpacked(done.metadata, pb.SearchMetadata)
    assert (metadata.display_name, metadata.client) == ("my «first» one", "local")
    assert list(metadata.query.desired_names) == ["doc"]
    assert (metadata.query.ideal_distance, metadata.query.interesting_distance) == (0, 2)
    assert (metadata.start, metadata.maximum_hashes) == (0, 10**16)
    assert (metadata.state, metadata.state_message) == (pb.OPERATION_STATE_ENDED, "")
    assert metadata.hashes == metadata.frontier == index + 1
    assert metadata.candidates == len(expected)
    assert (metadata.end_reason, metadata.end_message) == (pb.END_REASON_FOUND, "")
    assert (metadata.cursor, metadata.search_id) == ("", "")
    assert metadata.start_cursor == cursor_of("doc", 0, 0, 2)
    created, updated = metadata.create_time.ToMilliseconds(), metadata.update_time.ToMilliseconds()
    ended, expires = metadata.end_time.ToMilliseconds(), metadata.expire_time.ToMilliseconds()
    assert before * 1000 - 1 <= created <= ended <= updated <= time.time() * 1000
    assert expires == ended + 30 * 24 * 60 * 60 * 1000

    found = mine.candidates(started.name)
    assert [(candidate.secret, candidate.distance) for candidate in found] == expected
    assert found[-1] == result.found
    assert not any(candidate.is_ideal for candidate in found[:-1])
    assert_correct(found, "doc")


def test_an_operation_finds_the_same_as_find(serve_operations, client, pb):
    mine = client(serve_operations())
    name = mine.begin("doctor", 0, 3)
    events = events_of(mine.watch(name))
    result = unpacked(mine.get(name).response, pb.SearchResult)
    assert result.found.secret == FIRST_DOCTOR
    assert result.hashes == result.found.index + 1 == DOCTOR + 1
    found = candidates(events)
    assert list(map(as_line, found)) == run_find("doctor", "--show-inferior", "3").stdout.splitlines()
    assert found == mine.candidates(name) == mine.candidates(name, page_size=7)
    assert mine.metadata(name).candidates == len(found)
    ended = events[-1].ended
    assert ended.reason == pb.END_REASON_FOUND and ended.cursor == ""
    assert ended.hashes == ended.frontier == DOCTOR + 1


def test_a_watch_reports_what_a_search_reports(serve_operations, client, pb):
    mine = client(serve_operations())
    about = query(pb, "docto", 0, 3)
    searched = mine.search(query=about)
    name = mine.start(query=about).name
    for _ in range(2):
        # First while it is searched, then when it has ended.
        events = events_of(mine.watch(name, progress_interval=seconds(0.1)))
        assert kinds(events)[0] == "accepted" and kinds(events)[-1] == "ended"
        assert events[0].accepted.maximum_hashes == 10**16
        assert candidates(events) == candidates(searched)
        assert events[-1].ended == searched[-1].ended
    found = candidates(searched)
    middle = found[len(found) // 2].index
    for begin, expected in [
        (middle, found[len(found) // 2 :]),
        (middle + 1, found[len(found) // 2 + 1 :]),
        (found[-1].index, found[-1:]),
        (found[-1].index + 1, []),
        (2**64 - 1, []),
    ]:
        events = events_of(mine.watch(name, from_index=begin))
        assert candidates(events) == expected
        assert events[-1].ended == searched[-1].ended


def test_progress_is_reported_after_the_candidates_below_its_frontier(serve_operations, client, pb):
    mine = client(serve_operations(*SLOW))
    name = mine.begin()
    frontiers, found = [0], []
    for response in mine.watch(name, progress_interval=seconds(0.1)):
        event = response.event
        if event.WhichOneof("event") == "candidate":
            found.append(event.candidate)
            assert event.candidate.index >= frontiers[-1]
        if event.WhichOneof("event") == "progress":
            progress = event.progress
            assert progress.state == pb.SEARCH_STATE_RUNNING
            assert progress.hashes == progress.frontier >= frontiers[-1]
            if found:
                assert progress.frontier > found[-1].index
            if progress.frontier > frontiers[-1]:
                frontiers.append(progress.frontier)
        if len(frontiers) > 3 and len(found) > 5:
            break
    mine.cancel(name)
    assert mine.searched(frontiers[-1]) == [c for c in found if c.index < frontiers[-1]]


def test_only_the_secret_that_ended_an_operation_is_ideal(serve_operations, client, pb):
    """Its candidates, its result and its end are often saved within the same millisecond."""
    mine, others = client(serve_operations()), []
    expected = [secret for secret, _ in oracle("doc", 0, 2)]
    for _ in range(30):
        name = mine.begin("doc", 0, 2)
        streams = [mine.watch(name) for _ in range(4)]
        others.append(mine.candidates(name))
        for stream in streams:
            others.append(candidates(events_of(stream)))
            assert [candidate.secret for candidate in others[-1]] == expected
    for found in others:
        for candidate in found:
            assert candidate.is_ideal == (candidate.secret == expected[-1])


def test_a_cursor_starts_an_operation_in_the_middle(serve_operations, client, pb):
    mine = client(serve_operations())
    cursor = cursor_of("doctor", 5_000_000, 0, 3)
    name = mine.start(cursor=cursor).name
    done = mine.wait(name)
    assert unpacked(done.response, pb.SearchResult).hashes == DOCTOR + 1 - 5_000_000
    metadata = unpacked(done.metadata, pb.SearchMetadata)
    assert (metadata.start, metadata.frontier) == (5_000_000, DOCTOR + 1)
    assert metadata.start_cursor == cursor
    searched = mine.search(query=query(pb, "doctor", 0, 3))
    expected = [candidate for candidate in candidates(searched) if candidate.index >= 5_000_000]
    assert mine.candidates(name) == expected
    assert candidates(events_of(mine.watch(name))) == expected


def test_the_end_of_the_keyspace_ends_an_operation(serve_operations, client, pb):
    mine = client(serve_operations())
    name = mine.start(cursor=cursor_of(HARD, 2**64 - 1 - 5000)).name
    code, info = error_in(mine.wait(name))
    assert (code, info.reason) == (CODE.NOT_FOUND.value[0], "KEYSPACE_EXHAUSTED")
    metadata = mine.metadata(name)
    assert (metadata.hashes, metadata.frontier, metadata.cursor) == (5000, 2**64 - 1, "")


def test_wait_returns_the_latest_state_at_its_timeout(serve_operations, client):
    mine = client(serve_operations())
    name = mine.begin()
    for timeout in [0, 1]:
        began = time.monotonic()
        waited = mine.wait(name, timeout=seconds(timeout))
        assert time.monotonic() >= began + timeout
        assert (waited.name, waited.done) == (name, False)


def test_wait_returns_the_latest_state_before_the_deadline_of_its_call(serve_operations, client):
    mine = client(serve_operations())
    name = mine.begin()
    request = operations_pb2.WaitOperationRequest(name=name)
    # On a busy machine, a response may miss a short deadline.
    for deadline in [1, 2, 4, 8]:
        try:
            waited = mine.operations.WaitOperation(request, timeout=deadline)
        except grpc.RpcError as error:
            assert error.code() == CODE.DEADLINE_EXCEEDED
            continue
        assert (waited.name, waited.done) == (name, False)
        return
    pytest.fail("each WaitOperation ended with DEADLINE_EXCEEDED")


def test_operations_are_listed_by_state_and_client(serve_operations, client):
    mine = client(serve_operations())
    ended = [mine.begin("doc") for _ in range(3)]
    for name in ended:
        assert mine.wait(name).done
    running = [mine.begin() for _ in range(2)]
    for name in running:
        mine.wait_for_state(name, "RUNNING")
    everything = ended + running
    for text, expected in [
        ("", everything),
        ("  ", everything),
        ("state = ENDED", ended),
        ("state=RUNNING", running),
        ("state = PAUSED", []),
        ("state:QUEUED", []),
        ("done = true", ended),
        ("done:false", running),
        ('client = "local"', everything),
        ("client=local AND state = ENDED", ended),
        ("done = true AND state = RUNNING", []),
    ]:
        assert mine.names(filter=text) == mine.names(filter=text, name="operations") == expected, text
        assert mine.names(filter=text, page_size=1) == expected, text
    assert rejection(lambda: mine.list(filter='client = "key:0123"')) == (
        CODE.PERMISSION_DENIED,
        "NOT_AN_OPERATOR",
    )
    # The list has the same as GetOperation.
    assert list(mine.list(filter="state = ENDED").operations) == [mine.get(name) for name in ended]


def test_pages_continue_after_a_restart(serve_operations, client):
    server = serve_operations()
    mine = client(server)
    names = [mine.begin("doc") for _ in range(7)]
    for name in names:
        assert mine.wait(name).done
    first = mine.list(page_size=3)
    assert [operation.name for operation in first.operations] == names[:3]
    request = {"name": mine.begin("docto", 0, 3)}
    mine.wait(request["name"])
    page = mine.finder.ListCandidates(mine.pb.ListCandidatesRequest(page_size=3, **request))
    assert stop(server, SIGTERM) == 0
    mine = client(serve_operations())
    # What the first page has listed may be deleted meanwhile.
    mine.delete(names[2])
    second = mine.list(page_size=3, page_token=first.next_page_token)
    assert [operation.name for operation in second.operations] == names[3:6]
    following = mine.finder.ListCandidates(
        mine.pb.ListCandidatesRequest(page_size=3, page_token=page.next_page_token, **request)
    )
    found = mine.candidates(request["name"])
    assert [*page.candidates, *following.candidates] == found[:6]


def test_large_pages_are_limited(serve_operations, client):
    mine = client(serve_operations())
    # Every secret is a candidate.
    name = mine.begin(HARD, 0, 21, maximum_hashes=1500)
    mine.wait(name)
    for size, expected in [(0, 100), (1000, 1000), (2**31 - 1, 1000)]:
        request = mine.pb.ListCandidatesRequest(name=name, page_size=size)
        page = mine.finder.ListCandidates(request)
        assert [candidate.index for candidate in page.candidates] == list(range(expected))
    assert [candidate.index for candidate in mine.candidates(name)] == list(range(1500))


def test_cancelling_an_operation_ends_it_with_a_cursor(serve_operations, client, pb):
    mine = client(serve_operations(*SLOW))
    name = mine.begin()
    mine.wait_for_progress(name)
    mine.cancel(name)
    cancelled = mine.get(name)
    code, info = error_in(cancelled)
    assert (code, info.reason) == (CODE.CANCELLED.value[0], "CANCELLED_BY_CLIENT")
    metadata = unpacked(cancelled.metadata, pb.SearchMetadata)
    assert metadata.end_reason == pb.END_REASON_CANCELLED_BY_CLIENT
    assert metadata.hashes == metadata.frontier > 0
    assert info.metadata["cursor"] == metadata.cursor == cursor_of("hashfinder", metadata.frontier, 0, 5)
    assert mine.candidates(name) == mine.searched(metadata.frontier)
    # Nothing changes it any more.
    mine.cancel(name)
    for same in [mine.get(name), mine.wait(name)]:
        assert (same.metadata, error_in(same)) == (cancelled.metadata, (code, info))
    # Both operations together cover what one would have.
    following = mine.start(cursor=metadata.cursor, maximum_hashes=2_000_000).name
    mine.wait(following)
    together = mine.candidates(name) + mine.candidates(following)
    assert together == mine.searched(metadata.frontier + 2_000_000)


def test_cancelling_an_operation_frees_the_cores(serve_with_metrics, client, folder):  # noqa: F811
    server = serve_with_metrics("--state", str(folder))
    mine = client(server)
    # More than the workers, so that some are between two turns.
    names = [mine.begin() for _ in range(20)]
    for name in names:
        mine.wait_for_progress(name)
    until(server, "hashfinder_operations", 20, state="running")
    for name in names:
        mine.cancel(name)
    server.assert_idle()
    after = until(server, "hashfinder_operations_ended_total", 20, how="cancelled_by_client")
    assert value(after, "hashfinder_searches", state="active") == 0
    assert value(after, "hashfinder_searches") == value(after, "hashfinder_operations") == 0
    # All places are free again.
    assert mine.search(query=query(mine.pb, "doc"))[-1].ended.reason == mine.pb.END_REASON_FOUND


def test_only_an_operation_that_has_ended_can_be_deleted(serve_operations, client, folder):
    mine = client(serve_operations())
    name, other = mine.begin(), mine.begin("docto", 0, 3)
    mine.wait(other)
    rejected = (CODE.FAILED_PRECONDITION, "OPERATION_RUNNING")
    assert rejection(lambda: mine.delete(name)) == rejected
    assert mine.state(name) == "RUNNING"
    mine.cancel(name)
    mine.delete(name)
    missing = (CODE.NOT_FOUND, "OPERATION_NOT_FOUND")
    for call in [mine.get, mine.wait, mine.cancel, mine.delete, mine.candidates]:
        assert rejection(lambda: call(name)) == missing
    assert rejection(lambda: list(mine.watch(name))) == missing
    assert mine.names() == [other]
    left = sql(folder / "operations.db", "SELECT DISTINCT operation FROM candidates")
    assert left == [(other.removeprefix("operations/"),)]


def test_cancelling_the_search_of_an_operation_cancels_the_operation(serve_operations, client, pb):
    mine = client(serve_operations())
    name = mine.begin()
    mine.wait_for_progress(name)
    request = pb.CancelSearchRequest(search_id=mine.metadata(name).search_id)
    cancelled = mine.finder.CancelSearch(request)
    assert not cancelled.had_ended and cancelled.search.operation == name
    code, info = error_in(mine.get(name))
    assert (code, info.reason) == (CODE.CANCELLED.value[0], "CANCELLED_BY_CLIENT")
    again = mine.finder.CancelSearch(request)
    assert again.had_ended and again.search.end_reason == pb.END_REASON_CANCELLED_BY_CLIENT


def test_leaving_a_watch_or_a_wait_does_not_stop_the_operation(serve_operations, client):
    server = serve_operations(*SLOW)
    mine = client(server)
    name = mine.begin()
    leaving = client(server)
    first_candidates(leaving.watch(name), 1)
    waiting = leaving.operations.WaitOperation.future(operations_pb2.WaitOperationRequest(name=name))
    leaving.channel.close()
    assert waiting.code() == CODE.CANCELLED
    mine.wait_for_progress(name, mine.metadata(name).hashes)
    assert mine.state(name) == "RUNNING"


def test_each_search_of_an_operation_is_a_span(serve_operations, client, collector):  # noqa: F811
    def next_span():
        while True:
            span = collector.next()
            if span.name == "operation":
                return span, attributes(span)

    server = serve_operations("--otlp-endpoint", collector.url)
    mine = client(server)
    name = mine.begin()
    mine.wait_for_progress(name)
    search_id = mine.metadata(name).search_id
    assert stop(server, SIGTERM) == 0
    paused, first = next_span()
    mine = client(serve_operations("--otlp-endpoint", collector.url))
    mine.wait_for_progress(name, mine.metadata(name).hashes)
    mine.cancel(name)
    cancelled, second = next_span()
    for seen, cause in [(first, "drain"), (second, "client")]:
        assert seen["hashfinder.operation"] == name
        assert seen["hashfinder.search.cause"] == cause
        assert seen["hashfinder.search.work"] == "stopped"
        assert seen["hashfinder.search.hashes"] > 0
    assert first["hashfinder.search.id"] == search_id != second["hashfinder.search.id"]
    assert paused.trace_id != cancelled.trace_id
    assert paused.start_time_unix_nano < paused.end_time_unix_nano < cancelled.end_time_unix_nano


def test_the_operations_service_is_healthy(serve_operations, client):
    mine = client(serve_operations())
    request = health_pb2.HealthCheckRequest(service="google.longrunning.Operations")
    response = health_pb2_grpc.HealthStub(mine.channel).Check(request)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_a_server_without_a_folder_rejects_operations(serve, client, pb):
    server = serve()
    mine = client(server, is_loaded=False)
    name = "operations/" + "0" * 32
    by_name = [mine.get, mine.wait, mine.cancel, mine.delete, mine.candidates]
    by_name.append(lambda name: list(mine.watch(name)))
    for call in [mine.begin, mine.list, *(lambda call=call: call(name) for call in by_name)]:
        error = error_of(call)
        assert (error.code(), reason_of(error)) == (CODE.FAILED_PRECONDITION, "OPERATIONS_DISABLED")
        assert "--state" in error.details()
    done = run_find(HARD, "--server", server.address, "--detach")
    assert (done.returncode, done.stdout) == (5, "") and "--state" in done.stderr
    for command in [["list"], *([command, name] for command in ONE_NAME)]:
        done = run(command[0], server, *command[1:])
        assert (done.returncode, done.stdout) == (5, "") and "--state" in done.stderr, command


# Validation.


def test_bad_requests_are_rejected_with_their_field(serve_operations, client, pb):
    mine = client(serve_operations())
    good = {"query": query(pb, *ENDLESS)}

    def start(**fields):
        return lambda: mine.start(**good | fields)

    keep = {text: duration_pb2.Duration() for text in ["negative", "short", "long"]}
    keep["negative"].FromSeconds(-1)
    keep["short"].FromSeconds(59)
    keep["long"].FromSeconds(30 * 24 * 60 * 60 + 1)
    for call, field in [
        (start(request_id="x" * 65), "request_id"),
        (start(request_id="two words"), "request_id"),
        (start(request_id="line\n"), "request_id"),
        (start(request_id="\x7f"), "request_id"),
        (start(request_id="é"), "request_id"),
        (start(display_name="x" * 129), "display_name"),
        (start(display_name="é" * 65), "display_name"),
        (start(display_name="a\tb"), "display_name"),
        (start(display_name="\x1b[2J"), "display_name"),
        (start(keep=keep["negative"]), "keep"),
        (start(keep=keep["short"]), "keep"),
        (start(keep=keep["long"]), "keep"),
        (start(query=query(pb, "")), "query.desired_names[0]"),
        (lambda: mine.start(cursor="hf1_"), "cursor"),
        (lambda: mine.start(), "query"),
        (lambda: mine.list(page_size=-1), "page_size"),
        (lambda: mine.list(page_token="x"), "page_token"),
        (lambda: mine.list(page_token="!"), "page_token"),
        (lambda: mine.list(name="searches"), "name"),
        (lambda: mine.list(filter="state"), "filter"),
        (lambda: mine.list(filter="state = ON"), "filter"),
        (lambda: mine.list(filter="state = running"), "filter"),
        (lambda: mine.list(filter="done = yes"), "filter"),
        (lambda: mine.list(filter="name = x"), "filter"),
        (lambda: mine.list(filter="state = ENDED OR done = true"), "filter"),
    ]:
        assert field_of(error_of(call)) == field
    name = mine.begin("doc")
    for fields, field in [({"page_size": -1}, "page_size"), ({"page_token": "x"}, "page_token")]:
        request = pb.ListCandidatesRequest(name=name, **fields)
        assert field_of(error_of(lambda: mine.finder.ListCandidates(request))) == field
    assert field_of(error_of(lambda: mine.wait(name, timeout=keep["negative"]))) == "timeout"
    for wrong in ["", name.removeprefix("operations/"), name.upper(), name + "0", "operations/x", f" {name}"]:
        for call in [mine.get, mine.wait, mine.cancel, mine.delete, mine.candidates]:
            assert field_of(error_of(lambda: call(wrong))) == "name", wrong
        assert field_of(error_of(lambda: list(mine.watch(wrong)))) == "name", wrong
    # Nothing was started.
    assert mine.names() == [name]


def test_the_longest_values_are_accepted(serve_operations, client):
    mine = client(serve_operations())
    keep = duration_pb2.Duration(seconds=60)
    name = mine.begin("doc", request_id="~" * 64, display_name="é" * 64, keep=keep)
    mine.wait(name)
    metadata = mine.metadata(name)
    assert metadata.display_name == "é" * 64
    assert metadata.expire_time.ToMilliseconds() == metadata.end_time.ToMilliseconds() + 60_000


# Requests that are repeated.


def test_a_repeated_request_returns_the_same_operation(serve_operations, client, pb):
    server = serve_operations()
    mine = client(server)
    name = mine.begin(request_id="mine")

    def repeated():
        """Repeats the request in each form that is the same."""
        again = {mine.begin(request_id="mine"), mine.begin(request_id="mine", display_name="x")}
        again.add(mine.start(cursor=cursor_of("hashfinder", 0, 0, 5), request_id="mine").name)
        return again

    others = [{"maximum_hashes": 10**15}, {"query": query(pb, "hashfinder", 0, 4)}]
    others.append({"cursor": cursor_of("hashfinder", 1, 0, 5)})

    def assert_remembered():
        assert repeated() == {name}
        for other in others:
            fields = {"query": query(pb, *ENDLESS), "request_id": "mine"} | other
            if "cursor" in other:
                del fields["query"]
            rejected = rejection(lambda: mine.start(**fields))
            assert rejected == (CODE.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert mine.names() == [name]

    assert_remembered()
    assert stop(server, SIGKILL) == -SIGKILL
    server = serve_operations()
    mine = client(server)
    assert_remembered()
    mine.cancel(name)
    assert_remembered()
    assert mine.start(query=query(pb, *ENDLESS), request_id="mine").done
    assert stop(server, SIGTERM) == 0
    server = serve_operations()
    mine = client(server)
    assert_remembered()
    # A delayed duplicate does not start the work again.
    mine.delete(name)
    deleted = (CODE.ALREADY_EXISTS, "OPERATION_DELETED")
    assert rejection(lambda: mine.begin(request_id="mine")) == deleted
    assert stop(server, SIGKILL) == -SIGKILL
    mine = client(serve_operations())
    assert rejection(lambda: mine.begin(request_id="mine")) == deleted
    rejected = rejection(lambda: mine.begin(request_id="mine", maximum_hashes=1))
    assert rejected == (CODE.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert mine.names() == []


def test_concurrent_identical_requests_start_one_operation(serve_operations, client, pb):
    server = serve_operations()
    clients = [client(server) for _ in range(4)]
    for number in range(10):
        request = pb.StartSearchRequest(query=query(pb, *ENDLESS), request_id=str(number))
        calls = [
            mine.finder.StartSearch.future(request, timeout=TIMEOUT_S) for mine in clients * 3
        ]
        [name] = {call.result().name for call in calls}
        assert clients[0].names(filter="done = false") == [name]
        clients[0].cancel(name)


def test_without_a_request_id_each_request_starts_an_operation(serve_operations, client):
    mine = client(serve_operations())
    names = [mine.begin() for _ in range(3)]
    assert len(set(names)) == 3 and mine.names() == names


# Restarts.


def test_a_killed_server_loses_and_repeats_no_candidate(serve, serve_operations, client, pb):
    server = serve_operations(*SLOW)
    mine = client(server)
    abouts = {mine.begin(): ENDLESS}
    # The second operation starts when the first one has made progress.
    first_candidates(mine.watch(*abouts), 3)
    abouts[mine.begin("Hash/inder", 0, 5)] = ("Hash/inder", 0, 5)
    found = {name: [] for name in abouts}
    hashes = dict.fromkeys(abouts, 0)

    def following(name):
        """Watches an operation from where the last watch ended."""
        return mine.watch(name, from_index=found[name][-1].index + 1 if found[name] else 0)

    for _ in range(3):
        streams = {name: following(name) for name in abouts}
        for name, stream in streams.items():
            found[name] += first_candidates(stream, 5)
            hashes[name] = mine.metadata(name).hashes
        assert stop(server, SIGKILL) == -SIGKILL
        for name, stream in streams.items():
            try:
                found[name] += candidates(events_of(stream))
                pytest.fail("the stream ended without an error")
            except grpc.RpcError as error:
                assert error.code() == CODE.UNAVAILABLE
        server = serve_operations(*SLOW)
        mine = client(server)
        assert mine.names() == list(abouts)
        for name in abouts:
            metadata = mine.metadata(name)
            assert metadata.hashes >= hashes[name]
            assert found[name][-1].index < metadata.frontier
    oracles = client(serve(), is_loaded=False)
    for name, about in abouts.items():
        mine.wait_for_progress(name, hashes[name])
        mine.cancel(name)
        events = events_of(following(name))
        found[name] += candidates(events)
        ended = events[-1].ended
        assert ended.reason == pb.END_REASON_CANCELLED_BY_CLIENT
        assert ended.hashes == ended.frontier == mine.metadata(name).frontier
        expected = oracles.searched(ended.frontier, *about)
        assert found[name] == mine.candidates(name) == expected
        assert len(expected) >= 15
        assert_correct(expected, about[0])


def test_the_hash_budget_is_exact_even_if_the_server_is_killed(serve, serve_operations, client):
    budget, begin = 100_000_000, 1_000_000
    server = serve_operations(*SLOW)
    mine = client(server)
    cursor = cursor_of("hashfinder", begin, 0, 5)
    name = mine.start(cursor=cursor, maximum_hashes=budget).name
    hashes = 0
    for _ in range(3):
        hashes = mine.wait_for_progress(name, hashes)
        assert not mine.get(name).done
        assert stop(server, SIGKILL) == -SIGKILL
        server = serve_operations(*SLOW)
        mine = client(server)
        assert mine.metadata(name).maximum_hashes == budget
    mine.wait(name)
    code, info = error_in(mine.get(name))
    assert (code, info.reason) == (CODE.RESOURCE_EXHAUSTED.value[0], "HASH_BUDGET_SPENT")
    assert info.metadata["hashes_tried"] == str(budget)
    metadata = mine.metadata(name)
    assert (metadata.hashes, metadata.frontier) == (budget, begin + budget)
    assert metadata.cursor == info.metadata["cursor"] == cursor_of("hashfinder", begin + budget, 0, 5)
    expected = client(serve(), is_loaded=False).searched(begin + budget)
    assert mine.candidates(name) == [found for found in expected if found.index >= begin]
    assert len(expected) > 50


def test_a_search_that_was_killed_finds_the_same_secret(serve_operations, client, pb):
    server = serve_operations(*SLOW)
    mine = client(server)
    # Several at once, so that they are saved at other places.
    begins = [0, 1_000_000, 5_000_000, 9_000_000]
    names = [mine.start(cursor=cursor_of("doctor", begin, 0, 2)).name for begin in begins]
    for _ in range(3):
        mine.wait_for_progress(names[0], mine.metadata(names[0]).hashes)
        if mine.get(names[0]).done:
            break
        assert stop(server, SIGKILL) == -SIGKILL
        server = serve_operations(*SLOW)
        mine = client(server)
    expected = candidates(mine.search(query=query(pb, "doctor", 0, 2)))
    for begin, name in zip(begins, names):
        result = unpacked(mine.wait(name).response, pb.SearchResult)
        assert (result.found.index, result.hashes) == (DOCTOR, DOCTOR + 1 - begin)
        assert mine.candidates(name) == [found for found in expected if found.index >= begin]


def test_a_drain_saves_everything_and_the_next_server_resumes(serve, serve_operations, client, pb):
    server = serve_operations(*SLOW)
    mine = client(server)
    name = mine.begin()
    stream = mine.watch(name)
    found = first_candidates(stream, 5)
    waiting = mine.operations.WaitOperation.future(operations_pb2.WaitOperationRequest(name=name))
    # The call has reached the server.
    mine.get(name)
    server.send(SIGTERM)
    error = error_of(lambda: found.extend(candidates(events_of(stream))))
    assert (error.code(), reason_of(error)) == (CODE.UNAVAILABLE, "DRAINING")
    # The call may end with the server before it has a response.
    if waiting.exception() is None:
        assert not waiting.result().done
    else:
        assert waiting.exception().code() == CODE.UNAVAILABLE
    assert server.wait() == 0
    [saved] = exported(server_folder(server))
    assert saved["end_reason"] is None
    # The drain has saved all progress.
    assert saved["hashes"] == saved["frontier"] > found[-1].index
    mine = client(serve_operations(*SLOW))
    assert mine.wait_for_progress(name, saved["hashes"]) > saved["hashes"]
    found += first_candidates(mine.watch(name, from_index=found[-1].index + 1), 5)
    mine.cancel(name)
    found += candidates(events_of(mine.watch(name, from_index=found[-1].index + 1)))
    assert found == client(serve(), is_loaded=False).searched(mine.metadata(name).frontier)


def test_an_operation_continues_although_its_server_is_stopped_often(serve_operations, client):
    """Only crashes count against an operation, even if it has made no progress."""
    for _ in range(6):
        server = serve_operations()
        mine = client(server)
        [name] = mine.names() or [mine.begin()]
        assert mine.get(name).done is False
        assert stop(server, SIGTERM) == 0
    mine = client(serve_operations())
    mine.wait_for_progress(name, mine.metadata(name).hashes)


def test_an_operation_that_crashes_the_server_is_not_resumed_forever(serve_operations, client, pb):
    server = serve_operations()
    mine = client(server)
    name = mine.begin()
    crashes, deadline = 0, time.monotonic() + TIMEOUT_S
    while True:
        wait_until(lambda: mine.state(name) in ["RUNNING", "ENDED"])
        if mine.state(name) == "ENDED":
            break
        # On a busy machine, some progress may already be saved. Then this crash does not count.
        assert stop(server, SIGKILL) == -SIGKILL
        crashes += 1
        assert time.monotonic() < deadline, f"it was resumed after {crashes} crashes"
        server = serve_operations()
        mine = client(server)
    assert crashes >= 3
    code, info = error_in(mine.get(name))
    assert (code, info.reason) == (CODE.INTERNAL.value[0], "SEARCH_FAILED")
    metadata = mine.metadata(name)
    assert metadata.end_reason == pb.END_REASON_FAILED and "3 times" in metadata.end_message
    assert info.metadata["cursor"] == metadata.cursor == cursor_of("hashfinder", metadata.frontier, 0, 5)
    # The server continues, and the operation can be resumed on request.
    mine.wait_for_progress(mine.start(cursor=metadata.cursor).name)


def test_a_cancelled_operation_is_not_resumed_after_a_kill(serve_operations, client):
    for _ in range(5):
        server = serve_operations()
        mine = client(server)
        names = [mine.begin() for _ in range(3)]
        for name in names:
            mine.cancel(name)
        assert stop(server, SIGKILL) == -SIGKILL
    mine = client(serve_operations())
    assert mine.names(filter="state = ENDED") == mine.names()
    for name in mine.names():
        assert mine.end_reason(name) == "CANCELLED_BY_CLIENT"


def test_what_was_started_or_deleted_is_saved_before_the_response(serve_operations, client):
    kept, deleted = [], []
    for _ in range(5):
        server = serve_operations()
        mine = client(server)
        kept.append(mine.begin("doc"))
        deleted.append(mine.begin("doc"))
        mine.wait(deleted[-1])
        mine.delete(deleted[-1])
        assert stop(server, SIGKILL) == -SIGKILL
    assert client(serve_operations()).names() == kept


def test_two_servers_do_not_use_the_same_folder(serve_operations, client, folder):
    server = serve_operations()
    mine = client(server)
    name = mine.begin()
    command = [HASHFINDER, "serve", "--port", "0", "--state", str(folder)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (second.returncode, second.stdout) == (5, "")
    [line] = [line for line in second.stderr.splitlines() if line.startswith("hashfinder: ")]
    assert f"process {server.pid}" in line and str(folder) in line
    # The first one is not disturbed.
    mine.wait_for_progress(name, mine.metadata(name).hashes)
    mine.cancel(name)
    # A kill releases the folder.
    assert stop(server, SIGKILL) == -SIGKILL
    assert client(serve_operations()).names() == [name]


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    command = [HASHFINDER, "serve", "--port", "0", "--state", str(tmp_path / "file/state")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (5, "")
    assert f'cannot use the folder "{tmp_path}/file/state": ' in done.stderr


def test_the_folder_may_be_a_link(serve, client, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    server = serve("--state", str(tmp_path / "link"))
    mine = client(server)
    name = mine.begin("doc")
    mine.wait(name)
    [operation] = exported(tmp_path / "link")
    assert operation["name"] == name
    assert run("backup", None, "--state", tmp_path / "link", tmp_path / "copy").returncode == 0
    assert stop(server, SIGTERM) == 0
    assert run("recover", None, "--state", tmp_path / "link").returncode == 0
    assert client(serve("--state", str(tmp_path / "target"))).names() == [name]


def test_only_the_servers_user_can_read_the_folder(serve_operations, client, folder):
    old = os.umask(0)
    try:
        server = serve_operations()
        mine = client(server)
    finally:
        os.umask(old)
    mine.wait(mine.begin("doc"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


# Owners.


def calls_about(mine, name):
    calls = [mine.get, mine.wait, mine.cancel, mine.delete, mine.candidates]
    calls.append(lambda name: list(mine.watch(name)))
    return [lambda call=call: call(name) for call in calls]


def test_clients_see_only_their_own_operations(serve_with_keys, key_file, client, folder, pb):  # noqa: F811
    keys = [key_file.create(), key_file.create(), key_file.create("--role", "operator")]
    server = serve_with_keys("--state", str(folder))
    mine, theirs, operator = (client(server, bearer(key)) for key in keys)
    name = mine.begin(request_id="1")
    owner = f"key:{keys[0].split('.')[0]}"
    assert mine.metadata(name).client == owner
    for call in calls_about(theirs, name):
        assert rejection(call) == (CODE.NOT_FOUND, "OPERATION_NOT_FOUND")
    assert theirs.names() == []
    for other, expected in [(mine, None), (operator, [name]), (theirs, "NOT_AN_OPERATOR")]:
        if expected == "NOT_AN_OPERATOR":
            rejected = rejection(lambda: other.names(filter=f'client = "{owner}"'))
            assert rejected == (CODE.PERMISSION_DENIED, expected)
        else:
            assert other.names(filter=f'client = "{owner}"') == other.names() == [name]
    # Another client's request with the same id is another request.
    other = theirs.begin("doc", request_id="1")
    assert other != name and mine.names() == [name] and operator.names() == [name, other]
    assert mine.state(name) == "RUNNING"
    assert kinds([next(operator.watch(name)).event]) == ["accepted"]
    operator.cancel(name)
    code, info = error_in(mine.get(name))
    assert (code, info.reason) == (CODE.CANCELLED.value[0], "CANCELLED_BY_OPERATOR")
    assert mine.metadata(name).end_reason == pb.END_REASON_CANCELLED_BY_OPERATOR
    operator.delete(name)
    assert mine.names() == []
    anonymous = client(server, is_loaded=False)
    assert rejection(anonymous.begin) == (CODE.UNAUTHENTICATED, "CREDENTIAL_MISSING")


@pytest.mark.parametrize("is_running", [True, False])
def test_revoking_a_key_ends_its_operations(serve_with_keys, key_file, client, folder, pb, is_running):  # noqa: F811
    keys = [key_file.create(), key_file.create(), key_file.create("--role", "operator")]
    server = serve_with_keys("--state", str(folder))
    revoked, other, operator = (client(server, bearer(key)) for key in keys)
    name, kept = revoked.begin(), other.begin()
    ended = revoked.begin("doc")
    revoked.wait(ended)
    revoked.wait_for_progress(name)
    if not is_running:
        assert stop(server, SIGTERM) == 0
    key_file.revoke(keys[0])
    if not is_running:
        server = serve_with_keys("--state", str(folder))
        operator = client(server, bearer(keys[2]))
    wait_until(lambda: operator.get(name).done)
    code, info = error_in(operator.get(name))
    assert (code, info.reason) == (CODE.CANCELLED.value[0], "KEY_REVOKED")
    metadata = operator.metadata(name)
    assert metadata.end_reason == pb.END_REASON_KEY_REVOKED
    assert info.metadata["cursor"] == metadata.cursor == cursor_of("hashfinder", metadata.frontier, 0, 5)
    assert operator.end_reason(ended) == "FOUND"
    assert operator.get(kept).done is False


def test_clients_of_the_servers_machine_are_one_owner(serve_operations, client):
    server = serve_operations()
    mine = client(server)
    name = mine.begin()
    assert mine.metadata(name).client == "local"
    other = client(relay(server, "127.0.0.2"))
    assert other.names() == [name]
    other.cancel(name)
    assert mine.end_reason(name) == "CANCELLED_BY_CLIENT"
    name = mine.begin()
    mine.wait_for_progress(name)
    cancel = mine.pb.CancelSearchRequest(search_id=mine.metadata(name).search_id, reason="canary")
    other.finder.CancelSearch(cancel)
    assert mine.end_reason(name) == "CANCELLED_BY_CLIENT"
    line = server.wait_for("search cancelled")
    assert "by=Client" in line and "canary" not in line


def own_address():
    """Returns an address of this machine that is not a loopback address, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # This sends nothing.
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def test_an_address_that_can_change_hands_owns_no_operation(processes, client, folder):
    host = own_address()
    if host is None:
        pytest.skip("needs an address that is not a loopback address")
    command = [HASHFINDER, "serve", "--host", host, "--port", "0", "--listen-unprotected"]
    server = Process([*command, "--state", str(folder)])
    processes.append(server)
    mine = client(server.popen.stdout.readline().split()[-1])
    error = error_of(mine.begin)
    assert (error.code(), reason_of(error)) == (CODE.UNAUTHENTICATED, "CREDENTIAL_MISSING")
    assert "credential" in error.details()
    assert mine.names() == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to run as another user")
@pytest.mark.skipif(shutil.which("python3", path="/usr/bin") is None, reason="needs a python3")
def test_on_a_unix_socket_the_user_owns_operations(serve_operations, client):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        path = f"{place}/socket"
        server = serve_operations("--unix", path)
        os.chmod(path, 0o666)
        command = ["/usr/bin/python3", "-c", textwrap.dedent(RELAY), path]
        relaying = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, user=OTHER_USER)
        try:
            other = client(f"127.0.0.1:{relaying.stdout.readline().strip()}")
            mine = client(server)
            name, others = mine.begin(), other.begin()
            assert mine.metadata(name).client == f"user:{os.getuid()}"
            assert other.metadata(others).client == f"user:{OTHER_USER}"
            # The user that runs the server is an operator.
            assert mine.names() == [name, others] and other.names() == [others]
            for call in calls_about(other, name):
                assert rejection(call) == (CODE.NOT_FOUND, "OPERATION_NOT_FOUND")
            mine.cancel(others)
            assert other.end_reason(others) == "CANCELLED_BY_OPERATOR"
        finally:
            relaying.kill()
            relaying.wait()
            relaying.stdout.close()


# Places and limits.


def test_an_operation_takes_a_place_only_while_it_is_searched(serve_operations, client, pb):
    mine = client(serve_operations("--maximum-concurrent-rpcs", "1"))
    first, second = mine.begin(), mine.begin()
    mine.wait_for_progress(first)
    metadata = mine.metadata(second)
    assert metadata.state == pb.OPERATION_STATE_QUEUED and "maximum" in metadata.state_message
    assert (metadata.hashes, metadata.search_id) == (0, "")
    # A watch of an operation that waits takes no place, and reports its state.
    watching = mine.watch(second, progress_interval=seconds(0.1))
    assert kinds([next(watching).event]) == ["accepted"]
    assert next(watching).event.progress.state == pb.SEARCH_STATE_QUEUED
    [search] = mine.finder.ListSearches(pb.ListSearchesRequest()).searches
    assert (search.operation, search.search_id) == (first, mine.metadata(first).search_id)
    assert (search.state, search.client) == (pb.SEARCH_STATE_RUNNING, MINE)
    assert search.method == "hashfinder.v1.Finder/StartSearch"
    call = mine.finder.Search(pb.SearchRequest(query=query(pb, "doc")))
    assert rejection(lambda: list(call)) == (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_SEARCHES")
    mine.cancel(first)
    mine.wait_for_progress(second)
    assert mine.state(second) == "RUNNING"
    running = pb.ListSearchesRequest(states=[pb.SEARCH_STATE_RUNNING])
    [search] = mine.finder.ListSearches(running).searches
    assert search.operation == second
    mine.cancel(second)
    # A plain search can have the place as well, and is not stopped for an operation.
    with_place = mine.finder.Search(pb.SearchRequest(query=query(pb, HARD)))
    next(with_place)
    third = mine.begin()
    assert mine.state(third) == "QUEUED"
    with_place.cancel()
    mine.wait_for_progress(third)


def test_an_operation_waits_for_other_searches_of_its_client(serve_operations, client):
    server = serve_operations("--maximum-searches-per-client", "1")
    mine = client(server)
    first = mine.begin()
    # Operations wait in the order of their creation, in milliseconds.
    created = mine.metadata(first).create_time.ToMilliseconds()
    wait_until(lambda: time.time() * 1000 >= created + 1)
    second = mine.begin("doctor")
    metadata = mine.metadata(second)
    assert (metadata.state, metadata.hashes) == (mine.pb.OPERATION_STATE_QUEUED, 0)
    assert "client" in mine.wait_for_state(second, "QUEUED").state_message
    mine.wait_for_progress(first)
    # It is the same after a restart, and a call of the client is rejected, too.
    assert stop(server, SIGTERM) == 0
    mine = client(serve_operations("--maximum-searches-per-client", "1"))
    mine.wait_for_progress(first, mine.metadata(first).hashes)
    assert "client" in mine.wait_for_state(second, "QUEUED").state_message
    search = mine.pb.SearchRequest(query=query(mine.pb, HARD))
    too_many = (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_SEARCHES_OF_CLIENT")
    assert rejection(lambda: list(mine.finder.Search(search))) == too_many
    mine.cancel(first)
    assert mine.wait(second).done


def test_an_operation_waits_for_the_quota_of_its_client(serve_operations, client):
    mine = client(serve_operations("--maximum-hashes-per-second", "100000"))
    # More than the quota of a minute, and of the seconds that a slow machine takes.
    name = mine.begin("doctor", maximum_hashes=6_800_000)
    paused = mine.wait_for_state(name, "PAUSED")
    assert "quota" in paused.state_message
    assert paused.hashes < 6_800_000
    code, info = error_in(mine.wait(name))
    assert (code, info.reason) == (CODE.RESOURCE_EXHAUSTED.value[0], "HASH_BUDGET_SPENT")
    assert mine.metadata(name).hashes == 6_800_000


def test_the_operations_of_a_client_are_limited(serve_operations, client):
    limits = {
        "maximum-running-operations-per-client": 2,
        "maximum-saved-operations-per-client": 3,
        "maximum-hashes-per-operation": 10**7,
    }
    server = serve_operations("--maximum-concurrent-rpcs", "1", limits=limits)
    mine = client(server)
    names = [mine.begin(HARD), mine.begin(HARD, request_id="1")]
    too_many = (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_OPERATIONS")
    error = error_of(mine.begin)
    assert (error.code(), reason_of(error)) == too_many and "2 operations that have not ended" in error.details()
    # A repeated request starts nothing.
    assert mine.begin(HARD, request_id="1") == names[1]
    mine.cancel(names[0])
    # The budget of a request may be below the limit, and not above it.
    small = mine.begin(HARD, maximum_hashes=1000)
    mine.wait(names[1])
    assert mine.metadata(names[1]).hashes == mine.metadata(names[1]).maximum_hashes == 10**7
    mine.wait(small)
    assert mine.metadata(small).hashes == 1000
    error = error_of(mine.begin)
    assert (error.code(), reason_of(error)) == too_many and "3 saved" in error.details()
    # Nothing was deleted to make room, and a restart changes nothing.
    assert mine.names() == [*names, small]
    assert stop(server, SIGTERM) == 0
    mine = client(serve_operations(limits=limits))
    assert rejection(mine.begin) == too_many
    mine.delete(names[0])
    large = mine.begin(HARD, maximum_hashes=2**64 - 1)
    assert mine.metadata(large).maximum_hashes == 10**7


@pytest.mark.parametrize("workers", ["1", "4"])
def test_the_last_candidate_ends_an_operation_with_too_many(serve_operations, client, pb, workers):
    limits = {"maximum-candidates-per-operation": 7}
    mine = client(serve_operations("--workers", workers, limits=limits))
    searched = candidates(mine.search(query=query(pb, "docto", 0, 3)))
    begin, cursor = 0, cursor_of("docto", 0, 0, 3)
    for number in range(0, 35, 7):
        expected = searched[number : number + 7]
        name = mine.start(cursor=cursor).name
        code, info = error_in(mine.wait(name))
        assert (code, info.reason) == (CODE.RESOURCE_EXHAUSTED.value[0], "TOO_MANY_CANDIDATES")
        metadata = mine.metadata(name)
        assert metadata.end_reason == pb.END_REASON_TOO_MANY_CANDIDATES
        assert metadata.candidates == 7 and mine.candidates(name) == expected
        assert metadata.frontier == expected[-1].index + 1
        assert metadata.hashes == metadata.frontier - begin
        assert metadata.cursor == info.metadata["cursor"]
        assert metadata.cursor == cursor_of("docto", metadata.frontier, 0, 3)
        ended = events_of(mine.watch(name))[-1].ended
        assert (ended.hashes, ended.cursor) == (metadata.hashes, metadata.cursor)
        begin, cursor = metadata.frontier, metadata.cursor


def test_the_watches_of_a_client_are_limited(serve_operations, client):
    mine = client(serve_operations())
    name = mine.begin()
    streams = []
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        streams.append(mine.watch(name))
        try:
            next(streams[-1])
        except grpc.RpcError as error:
            assert (error.code(), reason_of(error)) == (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")
            break
        assert time.monotonic() < deadline
    assert len(streams) > 1
    streams[0].cancel()
    # The server notices that a moment later.
    wait_until(lambda: code_of(mine.watch(name)) != CODE.RESOURCE_EXHAUSTED)


def code_of(stream, stays=False):
    """Returns the status with which a stream begins: OK if it has a first message. Then ends the
    stream, unless it stays."""
    try:
        next(stream)
    except grpc.RpcError as error:
        return error.code()
    if not stays:
        stream.cancel()
    return CODE.OK


# The log and the metrics.


def test_operations_are_logged_without_what_is_private(serve_operations, client, folder):
    server = serve_operations()
    mine = client(server)
    name = mine.begin(display_name="canary", request_id="canary")
    line = server.wait_for("operation started")
    assert f"operation={name} " in line and "client=local" in line and "names=1" in line
    # The same request starts nothing.
    assert mine.begin(display_name="canary", request_id="canary") == name
    mine.cancel(name)
    line = server.wait_for("operation ended")
    assert f"operation={name} " in line and 'reason="cancelled_by_client"' in line
    mine.delete(name)
    assert f"operation={name} " in server.wait_for("operation deleted")
    mine.begin(display_name="canary")
    assert stop(server, SIGTERM) == 0
    log = "\n".join(server.log) + server.rest_of_stderr()
    assert log.count("operation started") == 2
    assert "canary" not in log and "hashfinder\"" not in log
    assert "operations=1" in serve_operations().wait_for("operations loaded")


def test_operations_are_counted(serve_with_metrics, client, folder):  # noqa: F811
    server = serve_with_metrics("--state", str(folder), "--maximum-concurrent-rpcs", "1")
    mine = client(server)
    mine.wait(mine.begin("doc"))
    first, second = mine.begin(), mine.begin()
    mine.wait_for_progress(first)
    until(server, "hashfinder_operations", 1, state="running")
    until(server, "hashfinder_operations", 1, state="queued")
    mine.cancel(second)
    after = until(server, "hashfinder_operations_ended_total", 1, how="cancelled_by_client")
    assert value(after, "hashfinder_operations_ended_total", how="found") == 1
    assert value(after, "hashfinder_operations_ended_total") == 2
    assert value(after, "hashfinder_operations") == 1
    assert value(after, "hashfinder_operations_store_working") == 1
    assert value(after, "hashfinder_operations_store_bytes") > 0
    assert value(after, "hashfinder_operations_commits_failed_total") == 0
    assert value(after, "hashfinder_operations_commit_seconds_count") >= 4
    assert value(after, "hashfinder_operations_commit_seconds_sum") > 0


# The commands.


# The commands that take the name of an operation and ask a server.
ONE_NAME = ["show", "candidates", "cancel", "delete", "watch", "wait"]


def run(command, server, *arguments, stdout=subprocess.PIPE):
    """Runs `hashfinder operations` to its end."""
    where = ["--server", server.address] if server else []
    return subprocess.run(
        [HASHFINDER, "operations", command, *map(str, arguments), *where],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
    )


def server_folder(server):
    command = server.popen.args
    return command[command.index("--state") + 1]


def operations_json(kind):
    """Returns the schema of this kind of line, as the documents describe it."""
    schema = json.loads((PROTOS.parent / "docs/operations.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert {"$ref": f"#/$defs/{kind}"} in schema["oneOf"]
    return jsonschema.Draft202012Validator(schema["$defs"][kind] | {"$defs": schema["$defs"]})


def exported(folder):
    """Returns the operations that `export` prints for a folder."""
    done = run("export", None, "--state", folder)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def follow(processes):
    """Returns a function that starts `operations watch` or `wait`, and does not wait for its end."""

    def start(command, server, *arguments):
        at = ["--server", server.address]
        processes.append(Process([HASHFINDER, "operations", command, *arguments, *at]))
        return processes[-1]

    return start


def detach(server, *arguments):
    done = run_find(*arguments, "--server", server.address, "--detach")
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def test_find_detach_prints_the_name_and_how_to_watch_it(serve_operations, client):
    server = serve_operations()
    mine = client(server)
    done = run_find("doctor", "--show-inferior", "3", "--server", server.address, "--detach")
    assert done.returncode == 0
    [name] = mine.names()
    assert done.stdout == f"{name}\n"
    hint = re.fullmatch(r"hashfinder: started; watch it with: hashfinder (.+)\n", done.stderr)[1]
    watched = subprocess.run(
        [HASHFINDER, *shlex.split(hint)], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert watched.returncode == 0
    found = run_find("doctor", "--show-inferior", "3")
    assert watched.stdout == found.stdout
    quiet = run_find(HARD, "--server", server.address, "--detach", "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout == f"{mine.names()[-1]}\n"


def test_find_detach_prints_json(serve_operations, client):
    server = serve_operations()
    mine = client(server)
    done = run_find("doc", "--server", server.address, "--detach", "--json")
    assert done.returncode == 0
    started, end = map(json.loads, done.stdout.splitlines())
    for record in [started, end]:
        FIND_JSON.validate(record)
    assert started == {"type": "operation", "name": mine.names()[0]}
    assert (end["how"], end["exit_code"], end["names"]) == ("detached", 0, ["doc"])
    assert (end["results"], end["nearest"], end["cursor"]) == (0, None, None)


def test_find_detach_sends_the_whole_query(serve_operations, client, pb):
    server = serve_operations()
    mine = client(server)
    arguments = ["c0ffee", "BEEF", "--algorithm", "sha256", "--encoding", "hex"]
    arguments += ["--anchor", "prefix", "--maximum-hashes", "1000", "--show-inferior", "2"]
    name = detach(server, *arguments)
    metadata = unpacked(mine.wait(name).metadata, pb.SearchMetadata)
    about = metadata.query
    assert list(about.desired_names) == ["c0ffee", "BEEF"]
    assert (about.algorithm, about.encoding) == (pb.ALGORITHM_SHA256, pb.ENCODING_HEX)
    assert (about.anchor, about.interesting_distance) == (pb.ANCHOR_PREFIX, 2)
    assert metadata.hashes == metadata.maximum_hashes == 1000
    # A cursor, too.
    name = detach(server, "--resume", metadata.cursor, "--maximum-hashes", "500")
    following = unpacked(mine.wait(name).metadata, pb.SearchMetadata)
    assert (following.start, following.frontier, following.query) == (1000, 1500, about)


@pytest.mark.parametrize(
    "arguments",
    [["--session", "night"], ["--count", "2"], ["--maximum-time", "1s"], None],
)
def test_find_detach_rejects_what_an_operation_cannot_do(serve_operations, arguments, tmp_path):
    if arguments is None:
        done = run_find(HARD, "--detach")
        assert "--server" in done.stderr
    else:
        server = serve_operations()
        done = run_find(HARD, "--detach", "--server", server.address, *arguments)
        assert arguments[0] in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


def test_list_prints_the_operations(serve_operations, client, pb):
    server = serve_operations()
    mine = client(server)
    assert run("list", server).stdout == ""
    ended = mine.begin("doc", 0, 2, display_name="a name")
    mine.wait(ended)
    running = mine.start(query=pb.Query(desired_names=["hash,finder+", HARD], ideal_distance=1)).name
    mine.wait_for_progress(running)
    done = run("list", server)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    metadata = mine.metadata(ended)
    time_of = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert lines[0][:3] == [ended, "ended", "local"] and re.fullmatch(time_of, lines[0][3])
    numbers = [str(metadata.hashes), str(metadata.candidates)]
    assert lines[0][4:] == [*numbers, "doc", "found", ""]
    assert lines[1][:2] == [running, "running"] and lines[1][6] == rf"hash\,finder+,{HARD}"
    assert len(lines[1]) == 9 and lines[1][7:] == ["", ""]
    mine.cancel(running)
    line = run("list", server).stdout.splitlines()[1].split("\t")
    assert line[7:] == ["cancelled by client", mine.metadata(running).cursor]
    for flags, expected in [
        (["--state", "ended"], [ended, running]),
        (["--state", "running"], []),
        (["--client", "local"], [ended, running]),
    ]:
        done = run("list", server, *flags)
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected
    done = run("list", server, "--client", "key:0123")
    assert (done.returncode, done.stdout) == (5, "") and "only an operator" in done.stderr


def test_list_and_show_print_json(serve_operations, client):
    schema = operations_json("operation")
    server = serve_operations()
    mine = client(server)
    names = [mine.begin("doc", 0, 2, display_name="a name"), mine.begin()]
    mine.wait(names[0])
    mine.wait_for_progress(names[1])
    mine.cancel(names[1])
    done = run("list", server, "--json")
    records = list(map(json.loads, done.stdout.splitlines()))
    assert [record["name"] for record in records] == names
    for record in records:
        schema.validate(record)
        for key in record:
            assert not schema.is_valid({k: v for k, v in record.items() if k != key}), key
        shown = run("show", server, record["name"], "--json")
        assert shown.returncode == 0 and json.loads(shown.stdout) == record
    found, cancelled = records
    metadata = mine.metadata(names[0])
    assert (found["state"], found["end_reason"], found["cursor"]) == ("ended", "found", None)
    assert (found["display_name"], found["client"]) == ("a name", "local")
    assert (found["desired_names"], found["interesting_distance"]) == (["doc"], 2)
    assert (found["hashes"], found["frontier"]) == (metadata.hashes, metadata.frontier)
    assert (found["candidates"], found["maximum_hashes"]) == (metadata.candidates, 10**16)
    secret, _ = oracle("doc", 0)[-1]
    assert found["found"]["hex"] == secret.hex()
    assert found["found"]["hashed_name"] == hashed(secret)
    assert cancelled["end_reason"] == "cancelled_by_client" and cancelled["found"] is None
    assert cancelled["cursor"] == mine.metadata(names[1]).cursor


def test_show_prints_an_operation_for_people(serve_operations, client):
    server = serve_operations()
    mine = client(server)
    name = mine.begin("doc", display_name="a name")
    mine.wait(name)
    secret, _ = oracle("doc", 0)[-1]
    # The collection may be left out.
    for given in [name, name.removeprefix("operations/")]:
        done = run("show", server, given)
        assert (done.returncode, done.stderr) == (0, "")
        lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
        assert (lines["name"], lines["display name"]) == (name, "a name")
        assert (lines["state"], lines["end"]) == ("ended", "found")
        assert lines["found"] == hashed(secret)
        assert lines["secret (base64)"] == base64.b64encode(secret).decode()


class OperationsTerminal(Terminal):
    COMMAND = "operations"


@pytest.fixture
def terminal():
    started = []

    def start(command, server, *arguments):
        started.append(OperationsTerminal(command, "--server", server.address, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.end()


def test_list_prints_a_table_on_a_terminal(serve_operations, client, terminal):
    server = serve_operations()
    mine = client(server)
    empty = terminal("list", server)
    assert empty.wait() == 0
    assert empty.seen == f"hashfinder: no operations at {server.address}\r\n"
    name = mine.begin("doc")
    mine.wait(name)
    listed = terminal("list", server)
    assert listed.wait() == 0
    titles, row = listed.seen.splitlines()
    assert titles.split() == "OPERATION STATE CLIENT STARTED HASHES CANDIDATES NAMES END".split()
    assert row.startswith(f"{name}  ended")
    for title, text in [("CLIENT", "local"), ("NAMES", "doc"), ("END", "found")]:
        assert row.index(text, titles.index(title)) == titles.index(title)


def test_candidates_prints_the_lines_of_find(serve_operations, client):
    server = serve_operations()
    mine = client(server)
    # More than a page.
    name = mine.begin("doctor", 0, 3)
    mine.wait(name)
    done = run("candidates", server, name)
    assert (done.returncode, done.stderr) == (0, "")
    found = run_find("doctor", "--show-inferior", "3")
    assert done.stdout == found.stdout
    in_json = run("candidates", server, name, "--json")
    records = list(map(json.loads, in_json.stdout.splitlines()))
    for record in records:
        FIND_JSON.validate(record)
    *expected, _ = map(json.loads, run_find("doctor", "--show-inferior", "3", "--json").stdout.splitlines())
    assert records == expected


def test_the_commands_exit_with_their_documented_codes(serve_operations, client):
    server = serve_operations()
    mine = client(server)
    name, missing = mine.begin(), "operations/" + "0" * 32
    done = run("delete", server, name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"hashfinder: {name}: the operation has not ended")
    # An operation that is missing does not prevent the others.
    done = run("cancel", server, missing, name)
    assert (done.returncode, done.stdout) == (1, f"{name}\tcancelled\n")
    assert missing in done.stderr
    assert mine.end_reason(name) == "CANCELLED_BY_CLIENT"
    other = mine.begin("doc")
    mine.wait(other)
    done = run("delete", server, name, other)
    assert (done.returncode, done.stdout) == (0, f"{name}\tdeleted\n{other}\tdeleted\n")
    assert mine.names() == []
    for command in ONE_NAME:
        for arguments in [[], ["--json"]] if command in ["show", "candidates"] else [[]]:
            done = run(command, server, missing, *arguments)
            assert (done.returncode, done.stdout) == (1, ""), command
            assert "or it belongs to another client" in done.stderr
        done = run(command, server, "operations/x")
        assert (done.returncode, done.stdout) == (2, "") and "operations list" in done.stderr
    for command in ["list", *ONE_NAME]:
        arguments = [] if command == "list" else [missing]

        class Nowhere:
            address = "127.0.0.1:1"

        done = run(command, Nowhere, *arguments, "--connect-timeout", "100ms")
        assert (done.returncode, done.stdout) == (5, "")
        assert "cannot reach 127.0.0.1:1 within 100ms" in done.stderr


def test_watch_and_wait_exit_like_find(serve_operations, client):
    server = serve_operations(limits={"maximum-candidates-per-operation": 5})
    mine = client(server)
    found = detach(server, "doc")
    limited = detach(server, HARD, "--maximum-hashes", "1000")
    many = detach(server, "docto", "--show-inferior", "3")
    exhausted = mine.start(cursor=cursor_of(HARD, 2**64 - 1 - 10)).name
    # It has no candidates, of which five would end it.
    cancelled = mine.begin(HARD)
    mine.wait_for_progress(cancelled)
    search = mine.metadata(cancelled).search_id
    mine.finder.CancelSearch(mine.pb.CancelSearchRequest(search_id=search, reason="enough"))
    mine.wait(cancelled)
    expected = run_find("docto", "--show-inferior", "3").stdout.splitlines()
    for command in ["watch", "wait"]:
        done = run(command, server, found)
        assert (done.returncode, done.stdout) == (0, run_find("doc").stdout)
        done = run(command, server, limited)
        assert (done.returncode, done.stdout) == (3, "")
        assert "hash budget spent after 1,000 hashes\n" in done.stderr
        assert position_of(cursor_in(done.stderr)) == cursor_of(HARD, 1000)
        done = run(command, server, exhausted)
        assert (done.returncode, done.stdout) == (1, "")
        done = run(command, server, cancelled)
        assert done.returncode == 3 and "cancelled by its client: enough\n" in done.stderr
        done = run(command, server, many)
        assert done.returncode == 3 and "5 candidates, the maximum\n" in done.stderr
        assert done.stdout.splitlines() == (expected[:5] if command == "watch" else [])
        # The last line is a command that continues in another operation.
        hint = done.stderr.splitlines()[-1].removeprefix("hashfinder: resume with: hashfinder ")
        following = subprocess.run(
            [HASHFINDER, *shlex.split(hint)], capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert following.returncode == 0
        name = following.stdout.strip()
        mine.wait(name)
        assert list(map(as_line, mine.candidates(name))) == expected[5:10]
        for name, how, code in [
            (found, "found", 0),
            (limited, "limit", 3),
            (exhausted, "exhausted", 1),
            (many, "limit", 3),
            (cancelled, "limit", 3),
        ]:
            done = run(command, server, name, "--json")
            records = list(map(json.loads, done.stdout.splitlines()))
            for record in records:
                FIND_JSON.validate(record)
            assert (done.returncode, records[-1]["how"], records[-1]["exit_code"]) == (code, how, code)
            assert records[-1]["hashes"] == mine.metadata(name).hashes


@pytest.mark.parametrize("command", ["watch", "wait"])
@pytest.mark.parametrize(("number", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_a_signal_ends_the_command_and_not_the_operation(
    serve_with_metrics, client, follow, folder, command, number, code  # noqa: F811
):
    server = serve_with_metrics("--state", str(folder), *SLOW)
    mine = client(server)
    name = mine.begin()
    mine.wait_for_progress(name)
    following = follow(command, server, name)
    wait_until(lambda: watches_of(server) == 1)
    following.send(number)
    assert following.wait() == code
    stderr = following.rest_of_stderr()
    assert "; the operation continues\n" in stderr
    assert f"watch it again with: hashfinder operations watch {name} " in stderr
    assert "--resume" not in stderr
    mine.wait_for_progress(name, mine.metadata(name).hashes)
    assert mine.state(name) == "RUNNING"


def test_watch_and_wait_wait_for_other_watches_of_their_client(serve_operations, client, follow):
    server = serve_operations(*SLOW)
    mine = client(server)
    name, other = mine.begin(), mine.begin("doc")
    mine.wait(other)
    mine.wait_for_progress(name)
    streams = []
    while not streams or code_of(streams[-1], stays=True) == CODE.OK:
        streams.append(mine.watch(name))
    # Stopped before the first event, a watch knows what the operation had done before.
    before = mine.metadata(name).hashes
    watching = follow("watch", server, name, "--json")
    watching.wait_for(f"waiting: this client already has {len(streams) - 1} watch calls")
    watching.send(SIGINT)
    assert watching.wait() == 130
    end = json.loads(watching.popen.stdout.read())
    FIND_JSON.validate(end)
    assert (end["how"], end["cursor"]) == ("stopped", None)
    # All secrets below the frontier were tried.
    assert 0 < end["hashes"] <= mine.metadata(name).hashes and before > 0
    waiting = follow("wait", server, other)
    waiting.wait_for("waiting: ")
    streams[0].cancel()
    assert waiting.wait() == 0
    assert waiting.popen.stdout.read() == run_find("doc").stdout


def test_watch_says_why_an_operation_does_not_run(serve_operations, client, follow):
    server = serve_operations("--maximum-concurrent-rpcs", "1")
    mine = client(server)
    first, second = mine.begin(), mine.begin()
    mine.wait_for_progress(first)
    queued = follow("watch", server, second)
    queued.wait_for("the operation is queued: .* maximum number of searches")
    assert stop(server, SIGTERM) == 0
    server = serve_operations("--maximum-hashes-per-second", "100000")
    client(server).wait_for_state(first, "PAUSED")
    follow("watch", server, first).wait_for("the operation is paused: its client's quota of hashes is spent")


def watches_of(server):
    """Returns how many calls of WatchOperation have begun on a server with metrics."""
    _, text = get(server)
    sample = r'^grpc_server_started_total\{.*grpc_method="WatchOperation".*\} (\d+)$'
    return int(re.search(sample, text, re.MULTILINE)[1])


def test_wait_runs_a_command_at_the_end(serve_with_metrics, client, follow, folder, tmp_path):  # noqa: F811
    server = serve_with_metrics("--state", str(folder))
    mine = client(server)
    name = mine.begin("doctor", 0, 2)
    out = tmp_path / "out"
    variables = ["NAME", "STATE", "SECRET_HEX", "HASHED_NAME"]
    shown = "|".join(f"$HASHFINDER_{variable}" for variable in variables)
    done = run("wait", server, name, "--exec", f'echo "{shown}" > {out}')
    assert (done.returncode, done.stdout) == (0, run_find("doctor").stdout)
    expected = f"{name}|found|{FIRST_DOCTOR.hex()}|{hashed(FIRST_DOCTOR)}\n"
    assert out.read_text() == expected
    # The secret is the result even if the result cannot be printed.
    reader, closed = os.pipe()
    os.close(reader)
    for stdout in [os.open("/dev/full", os.O_WRONLY), closed]:
        out.unlink()
        done = run("wait", server, name, "--exec", f'echo "{shown}" > {out}', stdout=stdout)
        os.close(stdout)
        assert out.read_text() == expected, done.stderr
    name = mine.begin()
    watches = watches_of(server)
    waiting = follow("wait", server, name, "--exec", f'echo "{shown}" > {out}')
    wait_until(lambda: watches_of(server) > watches)
    mine.cancel(name)
    assert waiting.wait() == 3
    assert out.read_text() == f"{name}|cancelled_by_client||\n"
    done = run("wait", server, name, "--exec", "exit 7")
    assert done.returncode == 5 and "the command of --exec failed: exit status: 7" in done.stderr
    # It does not run if this command ends before the operation does.
    out.unlink()
    name = mine.begin()
    watches = watches_of(server)
    waiting = follow("wait", server, name, "--exec", f"touch {out}")
    wait_until(lambda: watches_of(server) > watches)
    waiting.send(SIGINT)
    assert waiting.wait() == 130 and not out.exists()


def test_watch_continues_after_the_server_was_killed(serve, serve_operations, client, follow):
    server = serve_operations(*SLOW)
    mine = client(server)
    name = mine.begin()
    watching = follow("watch", server, name)
    lines = [watching.popen.stdout.readline()]
    for number in [SIGKILL, SIGTERM, SIGKILL]:
        stop(server, number)
        server = serve_operations(*SLOW, port=port_of(server))
        mine = client(server)
        frontier = mine.metadata(name).frontier
        # This candidate was found by the new server.
        while index_of(lines[-1]) < frontier:
            lines.append(watching.popen.stdout.readline())
    mine.cancel(name)
    lines += watching.popen.stdout.readlines()
    assert watching.wait() == 3
    stderr = watching.rest_of_stderr()
    assert f"lost the connection to the server at {server.address}; reconnecting\n" in stderr
    metadata = mine.metadata(name)
    assert position_of(cursor_in(stderr)) == cursor_of("hashfinder", metadata.frontier, 0, 5)
    expected = client(serve(), is_loaded=False).searched(metadata.frontier)
    assert "".join(lines).splitlines() == list(map(as_line, expected))


def test_watch_gives_up_if_the_server_does_not_return(serve_operations, client, follow):
    server = serve_operations(*SLOW)
    name = client(server).begin()
    watching = follow("watch", server, name, "--connect-timeout", "500ms")
    watching.popen.stdout.readline()
    stop(server, SIGKILL)
    assert watching.wait() == 5
    assert f"cannot reach {server.address}" in watching.rest_of_stderr()


def test_export_prints_every_operation_with_its_candidates(serve_operations, client, folder):
    schema = operations_json("exported")
    server = serve_operations()
    mine = client(server)
    # More than are read at a time.
    names = [mine.begin("doc", 0, 2, display_name=f"number {n}") for n in range(101)]
    names.append(mine.begin())
    for name in names[:-1]:
        mine.wait(name)
    mine.wait_for_progress(names[-1])
    records = exported(folder)
    assert [record["name"] for record in records] == names
    for record in records:
        schema.validate(record)
    expected = mine.candidates(names[0])
    first, last = records[0], records[-1]
    assert (first["display_name"], first["client"]) == ("number 0", "local")
    assert (first["end_reason"], first["cursor"]) == ("found", None)
    assert first["hashes"] == mine.metadata(names[0]).hashes
    assert [(c["index"], c["hashed_name"], c["distance"], c["window"]) for c in first["candidates"]] == [
        (c.index, c.hashed_name, c.distance, c.window) for c in expected
    ]
    assert [base64.b64decode(c["secret"]) for c in first["candidates"]] == [c.secret for c in expected]
    assert (last["end_reason"], last["ended_at"]) == (None, None)
    assert last["start_cursor"] == cursor_of("hashfinder", 0, 0, 5)
    # Without a server, too.
    assert stop(server, SIGTERM) == 0
    assert exported(folder)[:-1] == records[:-1]


def test_a_backup_of_a_running_server_can_be_served(serve, serve_operations, client, folder, tmp_path):
    server = serve_operations(*SLOW)
    mine = client(server)
    ended, running = mine.begin("docto", 0, 3), mine.begin(request_id="1")
    mine.wait(ended)
    first_candidates(mine.watch(running), 5)
    copy = tmp_path / "copy.db"
    hashes = mine.metadata(running).hashes
    done = run("backup", None, "--state", folder, copy)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"hashfinder: copied 2 operations to {copy}\n"
    # Names are private, in a copy as well.
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    # An existing file is not replaced.
    before = copy.read_bytes()
    done = run("backup", None, "--state", folder, copy)
    assert done.returncode == 5 and str(copy) in done.stderr
    assert copy.read_bytes() == before
    # The server was not disturbed.
    mine.wait_for_progress(running, mine.metadata(running).hashes)
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    shutil.copy(copy, other / "operations.db")
    theirs = client(serve("--state", str(other), *SLOW))
    assert theirs.names() == [ended, running]
    assert theirs.get(ended) == mine.get(ended)
    assert theirs.candidates(ended) == mine.candidates(ended)
    assert theirs.begin(request_id="1") == running
    theirs.wait_for_progress(running, hashes)
    theirs.cancel(running)
    frontier = theirs.metadata(running).frontier
    assert theirs.candidates(running) == theirs.searched(frontier)
    # The original continues.
    assert mine.state(running) == "RUNNING"


def test_the_folder_commands_report_a_missing_folder(tmp_path):
    missing = tmp_path / "missing"
    for command, *arguments in [["export"], ["backup", tmp_path / "copy"]]:
        done = run(command, None, "--state", missing, *arguments)
        assert (done.returncode, done.stdout) == (5, "")
        assert str(missing) in done.stderr
    assert not missing.exists() and not (tmp_path / "copy").exists()


# Damage and full disks.

PAGE = 4096

# Moves what is in the log of a database to its file.
CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"


def sql(file, statement, *values):
    """Runs a statement on a database, and returns the rows."""
    with contextlib.closing(sqlite3.connect(file)) as store, store:
        return store.execute(statement, values).fetchall()


DAY_MS = 24 * 3_600_000


def test_doubts_about_the_clock_outlast_a_restart(serve_operations, client, folder):
    file = folder / "operations.db"

    def doubtful_until():
        rows = sql(file, "SELECT value FROM meta WHERE key = 'doubtful_until'")
        return rows[0][0]

    server = serve_operations()
    mine = client(server)
    mine.wait(mine.begin("doc"))
    assert stop(server, SIGTERM) == 0
    assert doubtful_until() == 0
    # The server was off for forty days. The doubt is saved although nothing else is.
    sql(file, "UPDATE meta SET value = value - ? WHERE key = 'last_commit'", 40 * DAY_MS)
    before = time.time() * 1000
    server = serve_operations()
    wait_until(lambda: doubtful_until() > 0)
    until = doubtful_until()
    assert before + DAY_MS - 1 <= until <= time.time() * 1000 + DAY_MS
    assert stop(server, SIGTERM) == 0
    server = serve_operations()
    mine = client(server)
    mine.wait(mine.begin("doc"))
    assert doubtful_until() == until


@pytest.fixture
def saved(serve_operations, client, folder):
    """Returns the operations that a stopped server has saved in a file of some dozen pages."""
    server = serve_operations()
    mine = client(server)
    names = [mine.begin("docto", 0, 2, display_name="x" * 100) for _ in range(60)]
    for name in names:
        mine.wait(name)
    names.append(mine.begin())
    mine.wait_for_progress(names[-1])
    assert stop(server, SIGTERM) == 0
    sql(folder / "operations.db", CHECKPOINT)
    assert (folder / "operations.db").stat().st_size > 20 * PAGE
    operations = exported(folder)
    assert [operation["name"] for operation in operations] == names
    return operations


def pages_of(file, table):
    """Returns the numbers of the leaf pages of a table or an index, from 0, with the number of rows
    on each."""
    select = "SELECT pageno - 1, ncell FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY 1"
    return sql(file, select, table)


def damage(file, *pages):
    content = bytearray(file.read_bytes())
    for page in pages:
        content[page * PAGE : (page + 1) * PAGE] = random.Random(page).randbytes(PAGE)
    file.write_bytes(content)
    return bytes(content)


def test_a_damaged_store_stops_operations_until_it_is_recovered(
    serve_operations, client, connect, stubs, folder, saved
):
    file = folder / "operations.db"
    middle = file.stat().st_size // PAGE // 2
    content = damage(file, middle, middle + 1)
    server = serve_operations()
    line = server.wait_for("operations are damaged")
    assert "ERROR" in line and "operations recover" in line and f"store={folder}" in line
    mine = client(server, is_loaded=False)
    for call in [mine.begin, lambda: mine.cancel(saved[0]["name"])]:
        error = error_of(call)
        assert (error.code(), reason_of(error)) == (CODE.UNAVAILABLE, "STORE_DAMAGED")
        assert "hashfinder operations recover" in error.details()
    # Calls are not affected.
    assert connect(server).Find(stubs.Request(desired_name="doc")).hamming_distance == 0
    assert mine.search(query=query(mine.pb, "doc"))[-1].ended.hashes == 450
    # A server that runs has to be stopped first.
    done = run("recover", None, "--state", folder)
    assert done.returncode == 5 and f"process {server.pid}" in done.stderr
    assert stop(server, SIGTERM) == 0
    assert file.read_bytes() == content

    done = run("recover", None, "--state", folder)
    assert (done.returncode, done.stdout) == (0, "")
    report = r"hashfinder: recovered (\d+) operations and (\d+) candidates; the damaged file is (.+)\n"
    first, *changed = done.stderr.splitlines(keepends=True)
    operations, found, kept = re.fullmatch(report, first).groups()
    for line in changed:
        assert re.search(r"(: lost|: starts again, because some of its candidates are lost|: has lost \d+ of its candidates)$", line)
    assert pathlib.Path(kept).parent == folder and pathlib.Path(kept).read_bytes() == content
    left = exported(folder)
    assert len(left) == int(operations) > 0
    assert sum(len(operation["candidates"]) for operation in left) == int(found)
    # A second recovery has nothing to do.
    done = run("recover", None, "--state", folder)
    assert done.returncode == 0 and done.stderr.endswith("are not damaged\n")
    assert exported(folder) == left

    mine = client(serve_operations())
    assert mine.names() == [operation["name"] for operation in left]
    before = {operation["name"]: operation for operation in saved}
    for operation in left:
        name = operation["name"]
        expected = [candidate["index"] for candidate in before[name]["candidates"]]
        recovered = [candidate.index for candidate in mine.candidates(name)]
        if operation["end_reason"]:
            # Lost candidates of an operation that has ended stay lost; all others are right.
            assert set(recovered) <= set(expected)
            # The result is not lost with the candidates, because the operation has it too.
            assert operation["end_reason"] != "found" or recovered[-1] == expected[-1]
            assert mine.metadata(name).candidates == len(recovered)
    name = mine.begin()
    mine.wait_for_progress(name)
    mine.cancel(name)
    assert mine.candidates(name) == mine.searched(mine.metadata(name).frontier)


def test_recovery_restarts_an_operation_that_has_lost_candidates(serve_operations, client, folder):
    server = serve_operations(*SLOW)
    mine = client(server)
    name = mine.begin("docto", 0, 2, maximum_hashes=899_000)
    found = mine.begin("docto", 0, 2)
    running = mine.begin()
    first_candidates(mine.watch(running), 10)
    mine.wait(name)
    mine.wait(found)
    assert stop(server, SIGTERM) == 0
    file = folder / "operations.db"
    before = exported(folder)[1]
    assert len(before["candidates"]) > 1
    sql(file, "DELETE FROM candidates WHERE operation = ?1", found.removeprefix("operations/"))
    first = "SELECT min(place) FROM candidates WHERE operation = ?1"
    for one in [name, running]:
        identity = one.removeprefix("operations/")
        sql(file, f"DELETE FROM candidates WHERE operation = ?1 AND place = ({first})", identity)
    # Damages a page that recovery does not need.
    sql(file, "CREATE TABLE filler (x)")
    sql(file, "INSERT INTO filler VALUES (1)")
    sql(file, CHECKPOINT)
    damage(file, *(page for page, _ in pages_of(file, "filler")))
    done = run("recover", None, "--state", folder)
    assert done.returncode == 0 and "recovered 3 operations" in done.stderr
    lost = len(before["candidates"]) - 1
    assert f"{found}: has lost {lost} of its candidates\n" in done.stderr
    assert f"{name}: has lost 1 of its candidates\n" in done.stderr
    assert f"{running}: starts again, because some of its candidates are lost\n" in done.stderr
    first, result, second = exported(folder)
    assert (first["name"], first["end_reason"]) == (name, "hash_budget_spent")
    # The result is saved with the operation.
    assert (result["name"], result["candidates"]) == (found, before["candidates"][-1:])
    assert (second["name"], second["hashes"], second["candidates"]) == (running, 0, [])
    mine = client(serve_operations(*SLOW))
    first_candidates(mine.watch(running), 10)
    mine.cancel(running)
    assert mine.candidates(running) == mine.searched(mine.metadata(running).frontier)


@pytest.mark.parametrize("table", ["operations", "candidates"])
def test_recovery_loses_only_what_is_on_a_damaged_page(folder, saved, table):
    file = folder / "operations.db"
    content, pages = file.read_bytes(), pages_of(file, table)
    assert len(pages) > 3
    for page, rows in pages[:: len(pages) // 4]:
        file.write_bytes(content)
        damage(file, page)
        assert run("recover", None, "--state", folder).returncode == 0
        left = {operation["name"]: operation for operation in exported(folder)}
        if table == "operations":
            assert len(left) >= len(saved) - rows, page
            assert [left.get(before["name"], before) for before in saved] == saved
        else:
            assert len(left) == len(saved)
            lost = sum(
                len(before["candidates"]) - len(left[before["name"]]["candidates"])
                for before in saved
                # An operation that has not ended starts again.
                if before["end_reason"]
            )
            # Some entries are on the pages above.
            assert lost <= rows + 2, page


@pytest.mark.parametrize(
    "index", ["sqlite_autoindex_operations_1", "operations_by_time", "operations_by_client"]
)
def test_recovery_loses_nothing_if_only_an_index_is_damaged(folder, saved, index):
    file = folder / "operations.db"
    damage(file, *(page for page, _ in pages_of(file, index)))
    assert run("recover", None, "--state", folder).returncode == 0
    assert exported(folder) == saved


def test_a_file_that_is_not_a_store_is_not_replaced_by_the_server(serve_operations, client, folder):
    folder.mkdir()
    file = folder / "operations.db"
    file.write_text("something else\n" * 1000)
    before = file.read_bytes()
    server = serve_operations()
    line = server.wait_for("operations are damaged")
    assert "ERROR" in line and "operations recover" in line and f"store={folder}" in line
    assert rejection(client(server, is_loaded=False).begin) == (CODE.UNAVAILABLE, "STORE_DAMAGED")
    assert stop(server, SIGTERM) == 0
    assert file.read_bytes() == before
    done = run("recover", None, "--state", folder)
    assert done.returncode == 0 and "recovered 0 operations" in done.stderr
    [kept] = folder.glob("operations.db.damaged-*")
    assert kept.read_bytes() == before
    client(serve_operations()).begin()


@pytest.fixture
def later(folder, saved):
    """Returns the path and the content of a file that a later version has written."""
    file = folder / "operations.db"
    sql(file, "PRAGMA user_version = 99")
    sql(file, CHECKPOINT)
    return file, file.read_bytes()


def test_the_file_of_a_later_version_is_refused_and_not_changed(folder, later):
    file, content = later
    serving = [HASHFINDER, "serve", "--port", "0", "--state", str(folder)]
    done = subprocess.run(serving, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (5, "")
    assert "later version" in done.stderr and "99" in done.stderr
    # It is not damaged, so recovery would not help.
    assert "recover" not in done.stderr
    assert file.read_bytes() == content
    for command in ["export", "recover"]:
        done = run(command, None, "--state", folder)
        assert (done.returncode, done.stdout) == (5, ""), command
        assert "version" in done.stderr
        assert file.read_bytes() == content
    assert list(folder.glob("operations.db.*")) == []


@pytest.fixture
def small_disk(tmp_path):
    """Returns the folder of a file system of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"needs mount: {error}")
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr}")
    yield disk
    # The server may still use it.
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk):
    """Fills a file system, and returns the path of the file that does."""
    path = disk / "filler"
    with open(path, "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def test_on_a_full_disk_operations_pause_and_continue_without_loss(serve, client, connect, stubs, small_disk):
    folder = small_disk / "state"
    server = serve("--state", str(folder), *SLOW)
    mine = client(server)
    first, second = mine.begin(), mine.begin("Hash/inder", 0, 5)
    ended = mine.begin("doc")
    mine.wait(ended)
    mine.wait_for_progress(first)
    filler = fill(small_disk)
    for name in [first, second]:
        assert "full" in mine.wait_for_state(name, "PAUSED").state_message
    # Calls are not affected.
    assert connect(server).Find(stubs.Request(desired_name="doc")).hamming_distance == 0
    # Starts are rejected. What was saved can still be read.
    assert rejection(mine.begin) == (CODE.UNAVAILABLE, "STORE_UNAVAILABLE")
    hashes = mine.metadata(first).hashes
    assert mine.get(ended).done and mine.names() == [first, second, ended]
    # There is room to cancel and to delete, as soon as the server has opened the file again.
    retried(lambda: mine.cancel(second))
    assert mine.end_reason(second) == "CANCELLED_BY_CLIENT"
    retried(lambda: mine.delete(ended))
    assert mine.names() == [first, second]
    assert "full" in mine.wait_for_state(first, "PAUSED").state_message
    filler.unlink()
    mine.wait_for_progress(first, hashes)
    mine.wait_for_state(first, "RUNNING")
    assert mine.wait(retried(lambda: mine.begin("doc"))).done
    mine.cancel(first)
    for name, about in [(first, ENDLESS), (second, ("Hash/inder", 0, 5))]:
        frontier = mine.metadata(name).frontier
        assert mine.candidates(name) == mine.searched(frontier, *about)
    assert stop(server, SIGTERM) == 0


def test_a_disk_that_is_full_again_and_again_costs_no_candidate(serve, client, small_disk):
    server = serve("--state", str(small_disk / "state"), *SLOW)
    mine = client(server)
    name = mine.begin()
    found = []
    for _ in range(3):
        stream = mine.watch(name, from_index=found[-1].index + 1 if found else 0)
        found += first_candidates(stream, 3)
        filler = fill(small_disk)
        frontier = mine.wait_for_state(name, "PAUSED").frontier
        filler.unlink()
        # The watch itself continues, with what is found from now on.
        while found[-1].index < frontier:
            found += first_candidates(stream, 1)
        stream.cancel()
    retried(lambda: mine.cancel(name))
    found += candidates(events_of(mine.watch(name, from_index=found[-1].index + 1)))
    assert found == mine.candidates(name) == mine.searched(mine.metadata(name).frontier)


def strace(*flags):
    """Returns a command that traces all threads of a process. Skips the test if that is not
    possible."""
    try:
        traced = subprocess.run(["strace", "--output=/dev/null", "true"], capture_output=True)
    except OSError as error:
        pytest.skip(f"needs strace: {error}")
    if traced.returncode != 0:
        pytest.skip(f"needs the right to trace processes: {traced.stderr.decode()}")
    return ["strace", "--follow-forks", "--quiet=all", "--output=/dev/null", *flags]


def injecting(fault):
    """Returns a command that replaces itself with the one after it. Some of that one's system calls
    fail, as strace's option `--inject` describes them."""
    # The traced process is strace's parent, so it receives the signals of the test.
    return strace("--daemonize", "--seccomp-bpf", f"--inject={fault}")


@pytest.mark.parametrize(
    "fault",
    [
        "fsync,fdatasync:error=EIO:when=20..25",
        "fsync,fdatasync:error=EIO:when=12..40+7",
        "pwrite64:error=EIO:when=40..45",
        "pwrite64:error=ENOSPC:when=40..45",
    ],
)
def test_failed_writes_pause_operations_and_cost_no_candidate(
    serve, serve_operations, client, connect, stubs, fault
):
    server = serve_operations(*SLOW, under=injecting(fault))
    mine = client(server)
    name = retried(lambda: mine.begin(request_id="1"))
    stream = mine.watch(name)
    assert "error=" in server.wait_for("operations cannot be saved; they are paused")
    # Calls are not affected.
    assert connect(server).Find(stubs.Request(desired_name="doc")).hamming_distance == 0
    # The watch itself continues, and so does the operation.
    found = first_candidates(stream, 10)
    hashes = mine.wait_for_progress(name, mine.metadata(name).hashes)
    found += first_candidates(stream, 10)
    mine.wait_for_progress(name, hashes)
    retried(lambda: mine.cancel(name))
    events = events_of(stream)
    found += candidates(events)
    frontier = events[-1].ended.frontier
    assert found == mine.candidates(name) == client(serve(), is_loaded=False).searched(frontier)
    assert stop(server, SIGTERM) == 0


def test_on_a_slow_disk_operations_pause_and_calls_continue(serve, serve_operations, client, connect, stubs):
    # Each synchronization takes two seconds, from the 20th to the 30th.
    slow = "fsync,fdatasync:delay_exit=2000000:when=20..30"
    server = serve_operations(*SLOW, under=injecting(slow))
    mine = client(server)
    name = retried(mine.begin)
    stream = mine.watch(name)
    paused = mine.wait_for_state(name, "PAUSED")
    assert paused.state_message == "the server's disk is slow"
    # No search of the operation is left, and calls are not affected.
    assert connect(server).Find(stubs.Request(desired_name="doc")).hamming_distance == 0
    hashes = mine.wait_for_progress(name, paused.hashes)
    found = first_candidates(stream, 10)
    mine.wait_for_progress(name, hashes)
    mine.cancel(name)
    events = events_of(stream)
    found += candidates(events)
    frontier = events[-1].ended.frontier
    assert found == mine.candidates(name) == client(serve(), is_loaded=False).searched(frontier)
    assert stop(server, SIGTERM) == 0


def crash_at(number):
    """Returns a fault: the process is killed at this write or synchronization of any thread."""
    return f"fsync,fdatasync,pwrite64:signal=KILL:when={number}"


def test_a_crash_at_any_write_costs_no_candidate(serve, serve_operations, client):
    name, found = None, []
    for number in range(1, 30, 3):
        server = serve_operations(*SLOW)
        mine = client(server)
        name = name or mine.begin()
        # Afterwards, the operation is not suspected of the crash.
        mine.wait_for_progress(name, mine.metadata(name).hashes)
        stream = mine.watch(name, from_index=found[-1].index + 1 if found else 0)
        command = strace(f"--inject={crash_at(number)}", f"--attach={server.pid}")
        tracer = subprocess.Popen(command)
        with pytest.raises(grpc.RpcError):
            for response in stream:
                found += candidates([response.event])
        assert server.wait() == -SIGKILL
        tracer.wait(TIMEOUT_S)
    mine = client(serve_operations(*SLOW))
    mine.wait_for_progress(name, mine.metadata(name).hashes)
    mine.cancel(name)
    found += candidates(events_of(mine.watch(name, from_index=found[-1].index + 1)))
    frontier = mine.metadata(name).frontier
    assert found == mine.candidates(name) == client(serve(), is_loaded=False).searched(frontier)


def test_a_crash_at_any_write_of_the_first_start_is_repaired_by_the_next(
    serve_operations, client, processes, folder
):
    for number in itertools.count(1, 4):
        command = [HASHFINDER, "serve", "--port", "0", "--state", str(folder)]
        first = Process([*injecting(crash_at(number)), *command])
        processes.append(first)
        # The crash can come before the server listens.
        if line := first.popen.stdout.readline():
            mine = client(line.split()[-1], is_loaded=False)
            wait_until(lambda: first.popen.poll() is not None or succeeds(mine.list))
            first.send(SIGTERM)
        code = first.wait()
        if code == 0:
            break
        assert code == -SIGKILL
        server = serve_operations()
        mine = client(server)
        assert mine.wait(mine.begin("doc")).done
        assert stop(server, SIGTERM) == 0
        shutil.rmtree(folder)
    assert number > 10


def succeeds(call):
    try:
        call()
    except grpc.RpcError:
        return False
    return True
