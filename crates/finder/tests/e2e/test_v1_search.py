"""`hashfinder.v1.Finder/Search` and `Estimate`, for the stock client."""

import base64
import concurrent.futures
import hashlib
import itertools
import math
import queue
import time

import grpc
import pytest
from conftest import (
    FIRST_DOCTOR,
    TIMEOUT_S,
    SIGTERM,
    decoded,
    distance,
    hashed,
    oracle,
    run_find,
    secrets,
)
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from test_contract import HARD, details
from test_stopping import READS_LITTLE_AHEAD, error_of, wait_until_parked

CODE = grpc.StatusCode

# End of the keyspace: one past the last secret's index.
KEYSPACE_END = 2**64 - 1


def query(pb, name, ideal=0, interesting=0, **more):
    return pb.Query(
        desired_names=[name], ideal_distance=ideal, interesting_distance=interesting, **more
    )


def hard(pb, interesting=0, **more):
    return pb.SearchRequest(query=query(pb, HARD, interesting=interesting), **more)


def seconds(value):
    return duration_pb2.Duration(nanos=int(value % 1 * 1e9), seconds=int(value))


def kinds(events):
    return [event.WhichOneof("event") for event in events]


def candidates(events):
    return [event.candidate for event in events if event.WhichOneof("event") == "candidate"]


def read(stream):
    """Returns all events, and the error that ends the stream."""
    events = []
    error = error_of(lambda: events.extend(stream))
    return events, error


def cursor_of(name, frontier, ideal=0, interesting=0):
    """Encodes a cursor in its documented format."""
    payload = bytes([ideal, interesting]) + frontier.to_bytes(8, "big") + name.encode()
    check = hashlib.sha1(b"hf1_" + payload).digest()[:4]
    return "hf1_" + base64.urlsafe_b64encode(payload + check).decode().rstrip("=")


@pytest.mark.parametrize("workers", ["1", "2", "5"])
def test_events_arrive_in_order(serve, finder, pb, workers):
    server = serve("--workers", workers)
    stub = finder(server)
    for name, ideal, interesting in [("doc", 0, 2), ("Doctor", 2, 4), ("aa", 0, 0), ("ab", 0, 9)]:
        stream = stub.Search(pb.SearchRequest(query=query(pb, name, ideal, interesting)))
        events = list(stream)
        assert stream.code() == CODE.OK
        received = [kind for kind in kinds(events) if kind != "progress"]
        expected = oracle(name, ideal, interesting)
        assert received == ["accepted", *["candidate"] * len(expected), "ended"]
        assert kinds(events)[0] == "accepted" and kinds(events)[-1] == "ended"
        found = candidates(events)
        assert [(c.secret, c.distance) for c in found] == expected
        for candidate in found:
            assert candidate.hashed_name == hashed(candidate.secret)
            assert (candidate.distance, candidate.window) == distance(candidate.secret, name)
            assert candidate.desired_name == name
            assert candidate.is_ideal == (candidate is found[-1])
        places = {secret: place for place, secret in zip(range(found[-1].index + 1), secrets())}
        assert [c.index for c in found] == [places[c.secret] for c in found]
        accepted, ended = events[0].accepted, events[-1].ended
        assert accepted.search_id and accepted.maximum_hashes == 10**12
        assert ended.reason == pb.END_REASON_FOUND and ended.cursor == ""
        assert ended.hashes == ended.frontier == found[-1].index + 1
        line = server.call_ended(method='"Search"', code="Ok", work='"found"')
        assert f"search={accepted.search_id} " in line


def with_odds(begin):
    """Starts a search with `begin`. Returns its stream, and the odds in its first event.

    On a busy machine, the odds may take too long. Then the server starts the search without them,
    but keeps them for the next time that the same search is started.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        stream = begin()
        accepted = next(stream).accepted
        if accepted.HasField("odds"):
            return stream, accepted.odds
        stream.cancel()
        assert time.monotonic() < deadline, "the server never sent the odds"


def test_the_odds_are_in_the_first_event(serve, finder, pb):
    stub = finder(serve())
    request = pb.SearchRequest(query=query(pb, "doctor"))
    stream, odds = with_odds(lambda: stub.Search(request))
    assert f"{odds.chance.low:.3e}" == "1.956e-08" and odds.chance.low == odds.chance.high
    assert odds.expected_hashes.low == pytest.approx(1 / odds.chance.low)
    assert odds.median_hashes.low == pytest.approx(math.log(2) / odds.chance.low)
    assert odds.p90_hashes.low == pytest.approx(math.log(10) / odds.chance.low)
    assert odds.p99_hashes.low == pytest.approx(math.log(100) / odds.chance.low)
    [found] = candidates(list(stream))
    assert found.secret == FIRST_DOCTOR


BUDGET = 1_000_000


@pytest.mark.parametrize("requested", [0, 1000, 2**64 - 1])
@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_hash_budget_is_exact(serve, finder, pb, requested, workers):
    server = serve("--workers", workers, "--maximum-hashes", str(BUDGET))
    stub = finder(server)
    events, error = read(stub.Search(hard(pb, 15, maximum_hashes=requested)))
    budget = requested if requested == 1000 else BUDGET
    assert events[0].accepted.maximum_hashes == budget
    ended = events[-1].ended
    assert ended.reason == pb.END_REASON_HASH_BUDGET_SPENT
    assert ended.hashes == ended.frontier == budget
    # The flag for the reference contract's status code does not apply here.
    assert error.code() == CODE.RESOURCE_EXHAUSTED
    info = details(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("HASH_BUDGET_SPENT", "hashfinder")
    assert info.metadata["hashes_tried"] == str(budget)
    assert info.metadata["cursor"] == ended.cursor == cursor_of(HARD, budget, 0, 15)
    server.call_ended(code="ResourceExhausted", work='"hash budget spent"')


def test_resuming_from_cursors_gives_the_same_as_an_uninterrupted_search(serve, finder, pb):
    stub = finder(serve())
    whole = candidates(stub.Search(pb.SearchRequest(query=query(pb, "docto", 0, 3))))
    parts, request = [], pb.SearchRequest(query=query(pb, "docto", 0, 3), maximum_hashes=100_003)
    for _ in range(10):
        events = []
        try:
            events.extend(stub.Search(request))
        except grpc.RpcError as error:
            assert error.code() == CODE.RESOURCE_EXHAUSTED
        parts += candidates(events)
        ended = events[-1].ended
        if ended.reason == pb.END_REASON_FOUND:
            break
        request = pb.SearchRequest(cursor=ended.cursor, maximum_hashes=100_003)
    assert parts == whole
    assert len(whole) > 10 and whole[-1].is_ideal


def test_the_end_of_the_keyspace_ends_the_search(serve, finder, pb):
    stub = finder(serve())
    cursor = cursor_of(HARD, KEYSPACE_END - 5000)
    events, error = read(stub.Search(pb.SearchRequest(cursor=cursor)))
    assert kinds(events) == ["accepted", "ended"]
    ended = events[-1].ended
    assert ended.reason == pb.END_REASON_KEYSPACE_EXHAUSTED
    assert (ended.hashes, ended.frontier, ended.cursor) == (5000, KEYSPACE_END, "")
    assert error.code() == CODE.NOT_FOUND
    assert details(error, error_details_pb2.ErrorInfo).reason == "KEYSPACE_EXHAUSTED"
    # A cursor at the end leaves nothing to search.
    events, error = read(stub.Search(pb.SearchRequest(cursor=cursor_of(HARD, KEYSPACE_END))))
    assert (events[-1].ended.hashes, error.code()) == (0, CODE.NOT_FOUND)


def test_a_spent_quota_ends_a_search_with_its_cursor(serve, finder, pb):
    server = serve("--maximum-hashes-per-second", "100000")
    stub = finder(server)
    events, error = read(stub.Search(hard(pb)))
    ended = events[-1].ended
    assert ended.reason == pb.END_REASON_HASH_QUOTA_SPENT
    assert error.code() == CODE.RESOURCE_EXHAUSTED
    info = details(error, error_details_pb2.ErrorInfo)
    assert info.reason == "HASH_QUOTA_SPENT" and info.metadata["cursor"] == ended.cursor
    details(error, error_details_pb2.RetryInfo)
    following = run_find("--resume", ended.cursor, "--maximum-hashes", "1")
    assert "hash budget spent after 1 hash\n" in following.stderr
    # Rejected before any work, unless a part of the quota is available again on a slow machine.
    while events:
        events, error = read(stub.Search(hard(pb)))
    assert error.code() == CODE.RESOURCE_EXHAUSTED
    server.wait_for('call rejected method="Search"')


def test_a_cancelled_call_frees_the_cores(serve, finder, pb):
    server = serve()
    stub = finder(server)
    stream = stub.Search(hard(pb, 18))
    search_id = next(stream).accepted.search_id
    server.wait_until_busy()
    stream.cancel()
    assert stream.code() == CODE.CANCELLED
    line = server.call_ended(cause='"client gone"', work='"stopped"')
    assert f"search={search_id} " in line
    server.assert_idle()
    [listed] = stub.ListSearches(pb.ListSearchesRequest()).searches
    assert listed.end_reason == pb.END_REASON_CANCELLED_BY_CLIENT and listed.cursor


def test_a_deadline_ends_the_stream(serve, finder, pb):
    server = serve()
    stub = finder(server)
    # Connects first, so that the deadline does not pass before the call reaches the server.
    assert list(stub.ListSearches(pb.ListSearchesRequest()).searches) == []
    events, error = read(stub.Search(hard(pb), timeout=1.5))
    assert kinds(events)[0] == "accepted" and "ended" not in kinds(events)
    assert error.code() == CODE.DEADLINE_EXCEEDED
    # The client gives up at the same moment, so the server may notice either first.
    line = server.call_ended(work='"stopped"')
    by_deadline = "deadline exceeded" in line
    assert by_deadline or "client gone" in line
    server.assert_idle()
    [listed] = stub.ListSearches(pb.ListSearchesRequest()).searches
    expected = "DEADLINE_EXCEEDED" if by_deadline else "CANCELLED_BY_CLIENT"
    assert pb.EndReason.Name(listed.end_reason) == f"END_REASON_{expected}"


def test_a_drain_is_reported_by_event_and_status(serve, finder, pb):
    server = serve("--drain-grace", "100ms")
    stream = finder(server).Search(hard(pb, 13))
    next(stream)
    server.wait_until_busy()
    server.send(SIGTERM)
    events, error = read(stream)
    ended = events[-1].ended
    assert ended.reason == pb.END_REASON_DRAINING
    assert error.code() == CODE.UNAVAILABLE
    info = details(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("DRAINING", "hashfinder")
    assert info.metadata["cursor"] == ended.cursor
    assert details(error, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
    assert server.wait() == 0
    server.call_ended(cause='"server draining"', code="Unavailable")
    # No candidate lies beyond the cursor, so a resumed search neither misses nor repeats one.
    found = candidates(events)
    assert all(candidate.index < ended.frontier for candidate in found)
    following = run_find("--resume", ended.cursor, "--maximum-hashes", "1")
    assert "hash budget spent after 1 hash\n" in following.stderr


def test_a_full_server_rejects_searches(serve, finder, pb, connect, stubs):
    server = serve("--maximum-concurrent-rpcs", "1")
    stub = finder(server)
    stream = stub.Search(hard(pb))
    next(stream)
    # Both services share the permits.
    for call in [
        lambda: list(stub.Search(hard(pb))),
        lambda: connect(server).Find(stubs.Request(desired_name=HARD)),
    ]:
        error = error_of(call)
        assert error.code() == CODE.RESOURCE_EXHAUSTED
        assert details(error, error_details_pb2.ErrorInfo).reason.startswith("TOO_MANY_SEARCHES")
    stream.cancel()
    server.call_ended(work='"stopped"')
    assert decoded(connect(server).Find(stubs.Request(desired_name="aa"))) == oracle("aa", 0)[-1]


BAD_QUERIES = [
    ({"desired_names": []}, "query.desired_names", "0 names"),
    ({"desired_names": [""]}, "query.desired_names[0]", "empty"),
    ({"desired_names": ["a" * 29]}, "query.desired_names[0]", "29 characters"),
    ({"desired_names": ["doc-tor"]}, "query.desired_names[0]", "'-' appears in no hash"),
    ({"desired_names": ["a", "-"]}, "query.desired_names[1]", "it can match in base64url"),
    ({"desired_names": ["+"], "encoding": "ENCODING_BASE64URL"}, "query.desired_names[0]", "it can match in base64"),
    ({"desired_names": ["\u00fc"]}, "query.desired_names[0]", "'\u00fc' appears in no hash"),
    ({"desired_names": ["naïve"], "ideal_distance": 0}, "query.desired_names[0]", "'ï'"),
    ({"ideal_distance": -1}, "query.ideal_distance", "-1"),
    ({"interesting_distance": -(2**31)}, "query.interesting_distance", "-2147483648"),
    ({"algorithm": 99}, "query.algorithm", "99"),
    ({"encoding": -1}, "query.encoding", "-1"),
    ({"anchor": 77}, "query.anchor", "77"),
    ({"keyspace": {"named": 12}}, "query.keyspace.named", "12"),
]


def test_bad_queries_are_rejected_with_their_field(serve, finder, pb):
    server = serve()
    stub = finder(server)
    for fields, field, reason in BAD_QUERIES:
        bad_query = pb.Query(**{"desired_names": ["doctor"], **fields})
        for call in [
            lambda: list(stub.Search(pb.SearchRequest(query=bad_query))),
            lambda: stub.Estimate(pb.EstimateRequest(query=bad_query)),
        ]:
            error = error_of(call)
            assert error.code() == CODE.INVALID_ARGUMENT, fields
            assert reason in error.details(), (fields, error.details())
            [violation] = details(error, error_details_pb2.BadRequest).field_violations
            assert violation.field == field
            assert violation.description == error.details()
            server.wait_for("call rejected")
    assert stub.ListSearches(pb.ListSearchesRequest()).searches == []


def test_a_request_needs_a_query_or_a_valid_cursor(serve, finder, pb):
    stub = finder(serve())
    good = cursor_of("doctor", 5)
    for request, field in [
        (pb.SearchRequest(), "query"),
        (pb.SearchRequest(cursor=""), "cursor"),
        (pb.SearchRequest(cursor="doctor"), "cursor"),
        (pb.SearchRequest(cursor=good[:-1]), "cursor"),
        (pb.SearchRequest(cursor=good.replace("hf1_", "hf9_")), "cursor"),
    ]:
        error = error_of(lambda: list(stub.Search(request)))
        assert error.code() == CODE.INVALID_ARGUMENT
        [violation] = details(error, error_details_pb2.BadRequest).field_violations
        assert violation.field == field
    error = error_of(lambda: stub.Estimate(pb.EstimateRequest()))
    [violation] = details(error, error_details_pb2.BadRequest).field_violations
    assert (error.code(), violation.field) == (CODE.INVALID_ARGUMENT, "query")


def test_the_defaults_can_be_set_explicitly(serve, finder, pb):
    spelled = query(
        pb,
        "doc",
        algorithm=pb.ALGORITHM_SHA1,
        encoding=pb.ENCODING_BASE64,
        anchor=pb.ANCHOR_ANYWHERE,
        keyspace=pb.Keyspace(named=pb.NAMED_ALPHABET_BYTES),
    )
    events = list(finder(serve()).Search(pb.SearchRequest(query=spelled)))
    [found] = candidates(events)
    assert [(found.secret, found.distance)] == oracle("doc", 0)


def test_the_rate_of_progress_events_is_limited(serve, finder, pb):
    stub = finder(serve())
    # Requests an interval below the minimum of 100 ms.
    began = []

    def begin():
        began[:] = [time.monotonic()]
        return stub.Search(hard(pb, 14, progress_interval=seconds(0.001)))

    stream, odds = with_odds(begin)
    chance = odds.chance.low
    updates = []
    while len(updates) < 6:
        event = next(stream)
        if event.WhichOneof("event") == "candidate":
            continue
        update = event.progress
        updates.append(update)
        # However late the stream is read, there was at most one update per interval.
        assert time.monotonic() - began[0] >= 0.1 * len(updates) - 0.01
        expected = -math.expm1(update.hashes * math.log1p(-chance))
        assert update.chance_by_now.low == pytest.approx(expected)
        assert update.frontier <= update.hashes
        assert update.state in [pb.SEARCH_STATE_QUEUED, pb.SEARCH_STATE_RUNNING]
        assert update.average_hashes_per_second > 0
    stream.cancel()
    assert sorted(update.hashes for update in updates) == [update.hashes for update in updates]
    assert updates[-1].hashes > updates[0].hashes > 0


def test_messages_are_padded_so_that_no_frame_is_small(serve, finder, pb):
    stub = finder(serve())
    # HTTP/2 libraries close a connection with more than 100 unread frames smaller than this.
    stream = stub.Search(hard(pb, progress_interval=seconds(0.1)))
    watch = stub.WatchSearches(pb.WatchSearchesRequest(interval=seconds(0.1)))
    for messages in [stream, watch]:
        next(messages)
        for _ in range(10):
            assert next(messages).ByteSize() >= 256
    for messages in [stream, watch]:
        messages.cancel()


def test_candidates_below_a_frontier_are_sent_before_it(serve, finder, pb):
    stream = finder(serve()).Search(hard(pb, 17, progress_interval=seconds(0.1)))
    frontier, progresses = 0, 0
    for event in stream:
        kind = event.WhichOneof("event")
        if kind == "candidate":
            assert event.candidate.index >= frontier
        elif kind == "progress":
            assert event.progress.frontier >= frontier
            frontier = event.progress.frontier
            progresses += 1
            if progresses == 10:
                break
    stream.cancel()


def test_an_unread_stream_uses_no_core_and_no_memory(serve, finder, v1, pb):
    server = serve()
    channel = grpc.insecure_channel(server.address, READS_LITTLE_AHEAD)
    stub = v1.Stub(channel)
    # Every secret is a candidate, and progress is reported ten times a second.
    request, began = hard(pb, 21, progress_interval=seconds(0.1)), time.monotonic()
    streams = [stub.Search(request) for _ in range(20)]
    server.wait_until_busy()
    wait_until_parked(finder(server), pb, 20)
    resident = server.resident_bytes()
    server.assert_idle()
    assert server.resident_bytes() - resident < 1_000_000

    # A client that starts reading gets all candidates from the first one on, and the missed
    # progress only once.
    for stream in streams[:2]:
        found, updates = [], 0
        while len(found) < 20_000:
            event = next(stream)
            if event.WhichOneof("event") == "candidate":
                found.append(event.candidate.secret)
            updates += event.WhichOneof("event") == "progress"
        assert updates <= (time.monotonic() - began) / 0.1
        assert all(secret == expected for secret, expected in zip(found, secrets()))
    for stream in streams:
        stream.cancel()
    for _ in range(20):
        server.call_ended(cause='"client gone"')


def test_an_estimate_has_odds_and_durations(serve, finder, pb):
    stub = finder(serve())
    for name, ideal, chance in [
        ("doctor", 0, 1.956e-8),
        ("doctor", 1, 3.747e-6),
        ("doctor", 2, 2.985e-4),
        ("hashfinder", 3, 5.738e-8),
    ]:
        estimate = stub.Estimate(pb.EstimateRequest(query=query(pb, name, ideal)))
        odds, rate = estimate.odds, estimate.hashes_per_second
        assert odds.chance.low == odds.chance.high == pytest.approx(chance, rel=5e-4)
        assert rate > 1e5
        for hashes, seconds in [
            (odds.expected_hashes, estimate.expected_seconds),
            (odds.median_hashes, estimate.median_seconds),
            (odds.p90_hashes, estimate.p90_seconds),
            (odds.p99_hashes, estimate.p99_seconds),
        ]:
            assert seconds.low == pytest.approx(hashes.low / rate)
            assert seconds.high == pytest.approx(hashes.high / rate)


def test_an_estimate_may_have_bounds(serve, finder, pb):
    estimate = finder(serve()).Estimate(pb.EstimateRequest(query=query(pb, "hashfinderhash", 7)))
    assert 0 < estimate.odds.chance.low <= estimate.odds.chance.high < 1
    assert estimate.odds.expected_hashes.low <= estimate.odds.expected_hashes.high


def test_many_estimates_at_once_share_one_measurement(serve, finder, pb):
    stub = finder(serve())
    request = pb.EstimateRequest(query=query(pb, "doctor"))
    futures = [stub.Estimate.future(request) for _ in range(50)]
    rates = {future.result().hashes_per_second for future in futures}
    # No measurement gives the same number twice.
    assert len(rates) == 1


def other_kinds(pb, count):
    """Returns queries of different kinds. The server has to measure a rate for each of them."""
    kinds = itertools.product([2, 3, 4, 1], [0, 1, 3], [0, 100, 250])
    return [
        query(pb, "hashfinder", ideal, algorithm=algorithm, keyspace={"suffix": b"x" * suffix})
        for algorithm, ideal, suffix in itertools.islice(kinds, count)
    ]


def test_a_search_does_not_wait_for_estimates(serve, finder, pb):
    server = serve()
    stub, measuring = finder(server), finder(server)
    requests = [pb.EstimateRequest(query=other) for other in other_kinds(pb, 24)]
    futures = [measuring.Estimate.future(request) for request in requests]
    measured = queue.Queue()
    for future in futures:
        future.add_done_callback(measured.put)
    measured.get(timeout=TIMEOUT_S)
    # Most of the other estimates wait now. Searches start and end without waiting for them.
    for name in ["doc", "doct", "hashf"]:
        accepted, *_, ended = stub.Search(pb.SearchRequest(query=query(pb, name, 1)))
        assert accepted.accepted.search_id and ended.ended.reason == pb.END_REASON_FOUND
    stream = stub.Search(hard(pb))
    search_id = next(stream).accepted.search_id
    stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason="at once"))
    assert "at once" in error_of(lambda: list(stream)).details()
    assert not all(future.done() for future in futures)
    for future in futures:
        future.cancel()


def test_the_cost_of_estimates_is_limited(serve, finder, pb):
    server = serve()
    stub = finder(server)
    # Many queries, but only two kinds: one or two blocks are hashed for each secret.
    rates = set()
    for suffix in range(1, 60, 3):
        keyspace = pb.Keyspace(suffix=b"x" * suffix)
        doctor = query(pb, "doctor", keyspace=keyspace)
        rates.add(stub.Estimate(pb.EstimateRequest(query=doctor)).hashes_per_second)
    # No measurement gives the same number twice.
    assert len(rates) <= 2, rates
    # The number of estimates that a client may have waiting is limited.
    requests = [pb.EstimateRequest(query=other) for other in other_kinds(pb, 36)] * 3
    futures = [stub.Estimate.future(request) for request in requests]
    rejected = queue.Queue()
    for future in futures:
        future.add_done_callback(lambda done: done.code() == CODE.OK or rejected.put(done))
    error = rejected.get(timeout=TIMEOUT_S)
    assert error.code() == CODE.RESOURCE_EXHAUSTED
    assert details(error, error_details_pb2.ErrorInfo).reason == "TOO_MANY_ESTIMATES"
    details(error, error_details_pb2.RetryInfo)
    for future in futures:
        future.cancel()


def test_health_and_reflection_know_the_service(serve):
    with grpc.insecure_channel(serve().address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        response = stub.Check(health_pb2.HealthCheckRequest(service="hashfinder.v1.Finder"))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
        file = ProtoReflectionDescriptorDatabase(channel).FindFileContainingSymbol(
            "hashfinder.v1.Finder"
        )
        [service] = file.service
        methods = ["Search", "Estimate", "ListSearches", "WatchSearches", "CancelSearch"]
        methods += ["StartSearch", "WatchOperation", "ListCandidates"]
        assert [method.name for method in service.method] == methods


def test_simultaneous_calls_have_different_ids(serve, finder, pb):
    stub = finder(serve())
    request = pb.SearchRequest(query=query(pb, "aa"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = pool.map(lambda _: list(stub.Search(request)), range(200))
        ids = {events[0].accepted.search_id for events in calls}
    assert len(ids) == 200 and all(len(search_id) == 32 for search_id in ids)


def searched_parts(alphabet):
    for length in itertools.count():
        yield from map(bytes, itertools.product(alphabet, repeat=length))


DIGITS = b"0123456789"

# Fields of a query, and the same in Python: the alphabet, the prefix, the suffix, a function that
# returns the hashed name, and the anchor.
QUERIES = [
    (
        {"desired_names": ["beef"], "algorithm": 2, "encoding": 3, "anchor": 2},
        (range(256), b"", b"", lambda secret: hashlib.sha256(secret).hexdigest(), "prefix"),
    ),
    (
        {
            "desired_names": ["Zz9", "aB1"],
            "algorithm": 3,
            "encoding": 2,
            "case_sensitive": True,
            "keyspace": {"prefix": b"a stamp: ", "suffix": b"!", "named": 4},
        },
        (
            DIGITS,
            b"a stamp: ",
            b"!",
            lambda s: base64.urlsafe_b64encode(hashlib.sha512(s).digest()).decode(),
            "anywhere",
        ),
    ),
    (
        {
            "desired_names": ["abcd", "qrs"],
            "ideal_distance": 1,
            "interesting_distance": 3,
            "encoding": 4,
            "anchor": 3,
            "keyspace": {"given": b"ba"},
        },
        (b"ba", b"", b"", lambda s: base64.b32encode(hashlib.sha1(s).digest()).decode(), "suffix"),
    ),
]


@pytest.mark.parametrize(("fields", "model"), QUERIES)
def test_every_kind_of_query_agrees_with_python(serve, finder, pb, fields, model):
    alphabet, prefix, suffix, text_of, anchor = model
    stub = finder(serve())
    found = candidates(stub.Search(pb.SearchRequest(query=pb.Query(**fields))))
    names, ideal = fields["desired_names"], fields.get("ideal_distance", 0)
    fold = (lambda text: text) if fields.get("case_sensitive") else str.lower

    def nearest(text):
        places = []
        for number, name in enumerate(names):
            last = len(text) - len(name)
            windows = {"prefix": [0], "suffix": [last], "anywhere": range(last + 1)}[anchor]
            for window in windows:
                pairs = zip(fold(text)[window:], fold(name))
                places.append((sum(a != b for a, b in pairs), number, window))
        return min(places)

    expected = []
    for index, part in enumerate(searched_parts(alphabet)):
        secret = prefix + part + suffix
        text = text_of(secret)
        d, number, window = nearest(text)
        if d <= ideal or d < fields.get("interesting_distance", 0):
            expected.append((secret, text, names[number], d, window, d <= ideal, index))
        if d <= ideal:
            break
    received = [
        (c.secret, c.hashed_name, c.desired_name, c.distance, c.window, c.is_ideal, c.index)
        for c in found
    ]
    assert received == expected
