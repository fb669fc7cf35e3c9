"""`hashfinder.v1.Finder`: listing, watching and cancelling searches."""

import os
import shutil
import subprocess
import tempfile
import textwrap
import time

import grpc
import pytest
from conftest import HASHFINDER, SIGTERM, TIMEOUT_S, run_find
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from test_contract import HARD, details
from test_sharing import relay
from test_stopping import error_of

CODE = grpc.StatusCode

MINE, OTHERS = "ip:127.0.0.1", "ip:127.0.0.2"


def hard(pb, interesting=0):
    query = pb.Query(desired_names=[HARD], interesting_distance=interesting)
    return pb.SearchRequest(query=query)


def begin(stub, pb, interesting=0, **kwargs):
    """Starts a search that does not end, and returns its stream and its ID."""
    stream = stub.Search(hard(pb, interesting), **kwargs)
    return stream, next(stream).accepted.search_id


def pages(stub, pb, **fields):
    token = None
    while token != "":
        page = stub.ListSearches(pb.ListSearchesRequest(page_token=token or "", **fields))
        token = page.next_page_token
        yield page


def listed(stub, pb, **fields):
    return [search for page in pages(stub, pb, **fields) for search in page.searches]


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "timed out: the condition is still false"
        time.sleep(0.005)
    return value


def field_of(error):
    assert error.code() == CODE.INVALID_ARGUMENT, error
    [violation] = details(error, error_details_pb2.BadRequest).field_violations
    assert violation.description == error.details()
    return violation.field


def reason_of(error):
    info = details(error, error_details_pb2.ErrorInfo)
    assert info.domain == "hashfinder"
    return info.reason


def test_searches_of_both_services_are_listed(serve, finder, pb, connect, stubs):
    server = serve("--workers", "1")
    stub, reference = finder(server), connect(server)
    assert listed(stub, pb) == []
    before = time.time()
    calls, request = [], stubs.Request(desired_name=HARD, interesting_hamming_distance=13)
    methods = ["hashfinder.v1.Finder/Search", "hash_name.HashFinder/Find"]
    methods.append("hash_name.HashFinder/FindRange")
    for number, call in enumerate(
        [lambda: stub.Search(hard(pb)), lambda: reference.Find.future(request)]
        + [lambda: reference.FindRange(request)]
    ):
        calls.append(call())
        wait_until(lambda: len(listed(stub, pb)) == number + 1)
    searches = listed(stub, pb)
    assert [search.method for search in searches] == methods
    assert len({search.search_id for search in searches}) == 3
    for search in searches:
        assert (search.client, list(search.desired_names)) == (MINE, [HARD])
        assert search.state in [pb.SEARCH_STATE_QUEUED, pb.SEARCH_STATE_RUNNING]
        assert before - 1 < search.started_at.ToSeconds() + 1 and search.started_at.seconds
        assert search.end_reason == pb.END_REASON_UNSPECIFIED
        assert not search.HasField("ended_at") and search.cursor == ""
    calls[0].cancel()
    server.call_ended(method='"Search"', work='"stopped"')
    first, *others = listed(stub, pb)
    assert first.state == pb.SEARCH_STATE_ENDED
    assert first.end_reason == pb.END_REASON_CANCELLED_BY_CLIENT
    assert first.ended_at.ToNanoseconds() > first.started_at.ToNanoseconds()
    assert first.cursor.startswith("hf1_") and first.frontier > 0 and first.hashes > 0
    assert [search.search_id for search in others] == [s.search_id for s in searches[1:]]
    # Filtered by state.
    assert listed(stub, pb, states=[pb.SEARCH_STATE_ENDED]) == [first]
    active = [pb.SEARCH_STATE_RUNNING, pb.SEARCH_STATE_QUEUED]
    assert len(listed(stub, pb, states=active)) == 2
    assert listed(stub, pb, states=[pb.SEARCH_STATE_PARKED]) == []
    assert len(listed(stub, pb, states=[pb.SEARCH_STATE_UNSPECIFIED])) == 3
    for call in calls[1:]:
        call.cancel()


def test_a_finished_search_is_listed_when_its_response_arrives(serve, finder, pb, connect, stubs):
    server = serve()
    stub = finder(server)
    for number in range(1, 30):
        # The end is listed before the client receives it.
        connect(server).Find(stubs.Request(desired_name="docto"))
        searches = listed(stub, pb)
        assert len(searches) == number
        assert searches[-1].end_reason == pb.END_REASON_FOUND
        assert searches[-1].hashes == searches[-1].frontier == 899_147
    # A search that ends within its first secrets is not listed.
    connect(server).Find(stubs.Request(desired_name="aa"))
    assert len(listed(stub, pb)) == 29
    # But a client that has received its ID can still refer to it.
    query = pb.Query(desired_names=["aa"])
    accepted, *_ = stub.Search(pb.SearchRequest(query=query))
    cancelled = stub.CancelSearch(
        pb.CancelSearchRequest(search_id=accepted.accepted.search_id, reason="late")
    )
    assert cancelled.had_ended and cancelled.search.end_reason == pb.END_REASON_FOUND
    assert cancelled.search.end_message == ""


def start(kind, pb, finder, connect, stubs, server):
    """Starts a search with one of the methods. Returns its stream or future, for `end_of`."""
    request = stubs.Request(desired_name=HARD)
    if kind == "Search":
        return finder(server).Search(hard(pb))
    reference = connect(server)
    return reference.Find.future(request) if kind == "Find" else reference.FindRange(request)


def end_of(kind, call):
    return call.exception() if kind == "Find" else error_of(lambda: list(call))


@pytest.mark.parametrize("by_operator", [False, True])
@pytest.mark.parametrize("kind", ["Search", "Find", "FindRange"])
def test_a_search_can_be_cancelled_by_its_id(serve, finder, pb, connect, stubs, kind, by_operator):
    server = serve("--operator", "127.0.0.2")
    call = start(kind, pb, finder, connect, stubs, server)
    canceller = finder(relay(server, "127.0.0.2") if by_operator else server)
    server.wait_until_busy()
    [search] = listed(canceller, pb)
    reason = "tonight's backup: 10% of «you» ☂"
    request = pb.CancelSearchRequest(search_id=search.search_id, reason=reason)
    answer = canceller.CancelSearch(request)
    assert not answer.had_ended and answer.search.search_id == search.search_id
    assert answer.search.state in [pb.SEARCH_STATE_QUEUED, pb.SEARCH_STATE_RUNNING]
    error = end_of(kind, call)
    assert error.code() == CODE.CANCELLED
    assert reason in error.details()
    info = details(error, error_details_pb2.ErrorInfo)
    canceller_role = "OPERATOR" if by_operator else "CLIENT"
    assert (info.reason, info.domain) == (f"CANCELLED_BY_{canceller_role}", "hashfinder")
    assert info.metadata["reason"] == reason
    following = run_find("--resume", info.metadata["cursor"], "--maximum-hashes", "1")
    assert "hash budget spent after 1 hash\n" in following.stderr
    line = server.wait_for("search cancelled")
    assert search.search_id in line and f"by={canceller_role.title()}" in line
    line = server.call_ended(code="Cancelled", work='"stopped"', cause='"completed"')
    assert f"search={search.search_id} " in line
    server.assert_idle()
    # A second cancellation changes nothing.
    for other_reason in ["", "another one"]:
        again = pb.CancelSearchRequest(search_id=search.search_id, reason=other_reason)
        answer = canceller.CancelSearch(again)
        assert answer.had_ended
        ended = answer.search
        assert pb.EndReason.Name(ended.end_reason) == f"END_REASON_CANCELLED_BY_{canceller_role}"
        assert (ended.end_message, ended.cursor) == (reason, info.metadata["cursor"])
        assert listed(canceller, pb) == [ended]


def test_a_cancelled_search_sends_its_last_event(serve, finder, pb):
    server = serve()
    stub = finder(server)
    stream, search_id = begin(stub, pb, 16)
    server.wait_until_busy()
    stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id))
    events = []
    error = error_of(lambda: events.extend(stream))
    ended = events[-1].ended
    assert ended.reason == pb.END_REASON_CANCELLED_BY_CLIENT and ended.message == ""
    assert error.code() == CODE.CANCELLED
    assert details(error, error_details_pb2.ErrorInfo).metadata["cursor"] == ended.cursor


def test_a_parked_search_can_be_cancelled(serve, finder, pb):
    server = serve()
    stub = finder(server)
    stream, search_id = begin(stub, pb, 21)
    parked = [pb.SEARCH_STATE_PARKED]
    wait_until(lambda: listed(stub, pb, states=parked))
    stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason="it is not read"))
    wait_until(lambda: listed(stub, pb, states=[pb.SEARCH_STATE_ENDED]))
    # A client that resumes reading receives the candidates and the end.
    events = []
    error = error_of(lambda: events.extend(stream))
    assert reason_of(error) == "CANCELLED_BY_CLIENT"
    ended = events[-1].ended
    indices = [event.candidate.index for event in events if event.HasField("candidate")]
    assert indices == list(range(ended.frontier))


def test_of_many_cancellations_the_first_counts(serve, finder, pb):
    server = serve()
    stub = finder(server)
    for _ in range(10):
        stream, search_id = begin(stub, pb)
        requests = [pb.CancelSearchRequest(search_id=search_id, reason=f"{n}") for n in range(20)]
        futures = [stub.CancelSearch.future(request) for request in requests]
        error = error_of(lambda: list(stream))
        info = details(error, error_details_pb2.ErrorInfo)
        answers = [future.result() for future in futures]
        reported = {a.search.end_message for a in answers if a.search.state == pb.SEARCH_STATE_ENDED}
        assert reported <= {info.metadata["reason"]}
        assert {answer.search.search_id for answer in answers} == {search_id}


def test_a_client_sees_and_cancels_only_its_own_searches(serve, finder, pb, connect, stubs):
    server = serve()
    mine, other = finder(server), finder(relay(server, "127.0.0.2"))
    (stream, my_id), (others, other_id) = begin(mine, pb), begin(other, pb)
    for stub, search_id, client in [(mine, my_id, MINE), (other, other_id, OTHERS)]:
        for fields in [{}, {"client": client}]:
            [search] = listed(stub, pb, **fields)
            assert (search.search_id, search.client) == (search_id, client)
            first = next(stub.WatchSearches(pb.WatchSearchesRequest(**fields)))
            assert [search.search_id for search in first.searches] == [search_id]
    for stub, search_id, client in [(mine, other_id, OTHERS), (other, my_id, MINE)]:
        cancel = pb.CancelSearchRequest(search_id=search_id)
        error = error_of(lambda: stub.CancelSearch(cancel))
        assert (error.code(), reason_of(error)) == (CODE.NOT_FOUND, "SEARCH_NOT_FOUND")
        for call in [
            lambda: stub.ListSearches(pb.ListSearchesRequest(client=client)),
            lambda: list(stub.WatchSearches(pb.WatchSearchesRequest(client=client))),
        ]:
            error = error_of(call)
            assert (error.code(), reason_of(error)) == (CODE.PERMISSION_DENIED, "NOT_AN_OPERATOR")
            server.wait_for("call rejected")
    # Neither search was stopped.
    for search in [*listed(mine, pb), *listed(other, pb)]:
        assert search.state != pb.SEARCH_STATE_ENDED
    stream.cancel()
    others.cancel()


def test_an_operator_sees_and_cancels_all_searches(serve, finder, pb):
    server = serve("--operator", "127.0.0.2", "--operator", "10.0.0.7")
    mine, operator = finder(server), finder(relay(server, "127.0.0.2"))
    (stream, my_id), (own, operators_id) = begin(mine, pb), begin(operator, pb)
    assert [search.search_id for search in listed(operator, pb)] == [my_id, operators_id]
    assert [search.search_id for search in listed(mine, pb)] == [my_id]
    for client, ids in [(MINE, [my_id]), (OTHERS, [operators_id]), ("ip:10.0.0.7", [])]:
        found = listed(operator, pb, client=client)
        assert [search.search_id for search in found] == ids
    # An operator cancels its own searches as their client, not as an operator.
    for search_id, call, reason in [
        (my_id, stream, "CANCELLED_BY_OPERATOR"),
        (operators_id, own, "CANCELLED_BY_CLIENT"),
    ]:
        operator.CancelSearch(pb.CancelSearchRequest(search_id=search_id))
        assert reason_of(error_of(lambda: list(call))) == reason


# Prints the port on which it listens, and relays one connection from there to a Unix socket. The
# server sees the user that runs this program.
RELAY = """
    import socket, sys, threading
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    client, _ = listening.accept()
    onward = socket.socket(socket.AF_UNIX)
    onward.connect(sys.argv[1])
    def pump(one, other):
        while data := one.recv(65536):
            other.sendall(data)
    threading.Thread(target=pump, args=(onward, client), daemon=True).start()
    pump(client, onward)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to run as another user")
@pytest.mark.skipif(shutil.which("python3", path="/usr/bin") is None, reason="needs a python3")
def test_on_a_unix_socket_the_user_of_the_server_is_an_operator(serve, finder, pb):
    other_user = 65534
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = f"{folder}/hashfinder.sock"
        server = serve("--unix", path)
        os.chmod(path, 0o666)
        command = ["/usr/bin/python3", "-c", textwrap.dedent(RELAY), path]
        relaying = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, user=other_user)
        other = finder(f"127.0.0.1:{relaying.stdout.readline().strip()}")
        operator = finder(server)
        (stream, search_id), (own, operators_id) = begin(other, pb), begin(operator, pb)
        assert [(s.search_id, s.client) for s in listed(other, pb)] == [
            (search_id, f"user:{other_user}")
        ]
        error = error_of(
            lambda: other.CancelSearch(pb.CancelSearchRequest(search_id=operators_id))
        )
        assert error.code() == CODE.NOT_FOUND
        assert [s.search_id for s in listed(operator, pb)] == [search_id, operators_id]
        operator.CancelSearch(pb.CancelSearchRequest(search_id=search_id))
        assert reason_of(error_of(lambda: list(stream))) == "CANCELLED_BY_OPERATOR"
        own.cancel()
        relaying.kill()
        relaying.wait()
        relaying.stdout.close()


def test_bad_requests_are_rejected_with_their_field(serve, finder, pb):
    server = serve()
    stub = finder(server)
    stream, search_id = begin(stub, pb)

    def cancel_error(**fields):
        fields = {"search_id": search_id, **fields}
        return error_of(lambda: stub.CancelSearch(pb.CancelSearchRequest(**fields)))

    assert field_of(cancel_error(search_id="")) == "search_id"
    assert field_of(cancel_error(reason="x" * 257)) == "reason"
    # The limit counts bytes, not characters.
    assert field_of(cancel_error(reason="☂" * 86)) == "reason"
    for control in ["\n", "\0", "\x1b[2J", "\x7f", "\x85"]:
        assert field_of(cancel_error(reason=f"a{control}b")) == "reason"
    for unknown in ["x", search_id[:-1], search_id.upper() + "0", "0" * 32, "☂" * 32]:
        error = cancel_error(search_id=unknown)
        assert (error.code(), reason_of(error)) == (CODE.NOT_FOUND, "SEARCH_NOT_FOUND")

    def list_error(**fields):
        return error_of(lambda: stub.ListSearches(pb.ListSearchesRequest(**fields)))

    assert field_of(list_error(page_size=-1)) == "page_size"
    for token in ["x", "0" * 32, "☂" * 16, "0" * 31 + "☂"]:
        assert field_of(list_error(page_token=token)) == "page_token"
    assert field_of(list_error(states=[1, 9])) == "states[1]"
    request = pb.WatchSearchesRequest(states=[-4])
    assert field_of(error_of(lambda: list(stub.WatchSearches(request)))) == "states[0]"
    assert [search.state for search in listed(stub, pb)] != [pb.SEARCH_STATE_ENDED]
    # A reason of the maximum length arrives intact.
    longest = "☂" * 85
    stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason=longest))
    error = error_of(lambda: list(stream))
    assert longest in error.details()
    assert details(error, error_details_pb2.ErrorInfo).metadata["reason"] == longest


def longest_query(pb):
    """Returns a query of the maximum size: names, alphabet, and bytes around the searched part."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/"
    names = [letter + "qwertyuiopasdfg" for letter in letters]
    given = bytes(reversed(range(256)))
    keyspace = pb.Keyspace(prefix=bytes(range(256)) * 4, given=given)
    return pb.Query(desired_names=names, keyspace=keyspace)


# The stock client drops trailers beyond 8 KiB, and the status with them.
@pytest.mark.parametrize("reason", ["", "x" * 256, "é" * 128, "\U0001f980" * 64])
def test_the_longest_cursor_and_the_longest_reason_arrive_intact(serve, finder, pb, reason):
    stub = finder(serve())
    stream = stub.Search(pb.SearchRequest(query=longest_query(pb)))
    search_id = next(stream).accepted.search_id
    stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason=reason))
    events = []
    error = error_of(lambda: events.extend(stream))
    assert error.code() == CODE.CANCELLED, error
    info = details(error, error_details_pb2.ErrorInfo)
    assert info.metadata["reason"] == reason
    assert info.metadata["cursor"] == events[-1].ended.cursor
    # The search resumes from this cursor.
    again = pb.SearchRequest(cursor=info.metadata["cursor"], maximum_hashes=1000)
    error = error_of(lambda: list(stub.Search(again)))
    assert reason_of(error) == "HASH_BUDGET_SPENT"


def test_a_drain_sends_the_longest_cursor(serve, finder, pb):
    server = serve("--drain-grace", "0s")
    stream = finder(server).Search(pb.SearchRequest(query=longest_query(pb)))
    next(stream)
    server.send(SIGTERM)
    error = error_of(lambda: list(stream))
    assert (error.code(), reason_of(error)) == (CODE.UNAVAILABLE, "DRAINING")


def test_an_oversized_request_is_rejected_with_its_reason(serve, finder, pb):
    stub = finder(serve())
    for name in ["x" * 3000, "\U0001f980" * 900, "ïïï\u202e" * 300]:
        query = pb.Query(desired_names=[name])
        error = error_of(lambda: list(stub.Search(pb.SearchRequest(query=query))))
        assert field_of(error) == "query.desired_names[0]"
    # Longer than the maximum size of a request.
    query = pb.Query(desired_names=["x" * 5000])
    error = error_of(lambda: list(stub.Search(pb.SearchRequest(query=query))))
    assert (error.code(), reason_of(error)) == (CODE.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LONG")


def test_the_log_shows_which_cancellation_was_the_first(serve, finder, pb):
    server = serve()
    stub = finder(server)
    stream, search_id = begin(stub, pb, 21)
    wait_until(lambda: listed(stub, pb, states=[pb.SEARCH_STATE_PARKED]))
    cancel = pb.CancelSearchRequest(search_id=search_id)
    stub.CancelSearch(cancel)
    assert "is_first=true" in server.wait_for("search cancelled")
    stub.CancelSearch(cancel)
    line = server.wait_for("search cancelled")
    assert "is_first=false" in line
    stream.cancel()


def test_searches_that_have_ended_use_little_memory(serve, finder, pb):
    server = serve()
    stub = finder(server)
    query = longest_query(pb)

    def end(searches):
        for _ in range(searches):
            request = pb.SearchRequest(query=query, maximum_hashes=2000)
            assert reason_of(error_of(lambda: list(stub.Search(request)))) == "HASH_BUDGET_SPENT"

    # These searches make the allocator take the pages that it always needs.
    end(20)
    resident = server.resident_bytes()
    end(80)
    # Their names and cursors take 5 kB per search. With the queries it would be 30 kB.
    assert server.resident_bytes() - resident < 80 * 15_000
    # A page waiting to be sent takes little memory, however many searches it could hold.
    sizes = [page.ByteSize() for page in pages(stub, pb, page_size=1000)]
    assert len(sizes) > 1 and max(sizes) < 40_000


def test_pages_are_complete_while_searches_start_and_end(serve, finder, pb):
    stub = finder(serve())
    begun = [begin(stub, pb) for _ in range(25)]
    ids = [search_id for _, search_id in begun]
    seen, token, pages = [], "", 0
    while True:
        request = pb.ListSearchesRequest(page_size=4, page_token=token)
        page = stub.ListSearches(request)
        assert len(page.searches) <= 4
        seen += [search.search_id for search in page.searches]
        pages += 1
        # The same token returns the same searches.
        again = stub.ListSearches(request)
        assert [s.search_id for s in again.searches] == [s.search_id for s in page.searches]
        token = page.next_page_token
        if not token:
            break
        if pages <= 3:
            # A listed search ends, one that is not listed yet ends, and a new one starts.
            begun[pages][0].cancel()
            begun[-pages][0].cancel()
            begun.append(begin(stub, pb))
            ids.append(begun[-1][1])
    assert seen == ids
    assert pages == 7
    # Another server rejects this server's token.
    token = stub.ListSearches(pb.ListSearchesRequest(page_size=1)).next_page_token
    other = finder(serve())
    request = pb.ListSearchesRequest(page_token=token)
    assert field_of(error_of(lambda: other.ListSearches(request))) == "page_token"
    for stream, _ in begun:
        stream.cancel()


def test_a_thousand_searches_can_be_listed_watched_and_cancelled(serve, finder, pb, connect, stubs):
    limits = ["--maximum-concurrent-rpcs", "2000", "--maximum-searches-per-client", "2000"]
    server = serve(*limits)
    stub, reference = finder(server), connect(server)
    futures = [reference.Find.future(stubs.Request(desired_name=HARD)) for _ in range(1000)]
    wait_until(lambda: len(listed(stub, pb, page_size=2000)) == 1000)
    assert len(next(pages(stub, pb)).searches) == 100
    seen, token = [], ""
    while True:
        page = stub.ListSearches(pb.ListSearchesRequest(page_size=300, page_token=token))
        seen += [search.search_id for search in page.searches]
        token = page.next_page_token
        if not token:
            break
    assert len(set(seen)) == len(seen) == 1000
    watch = stub.WatchSearches(pb.WatchSearchesRequest())
    watched = set()
    while len(watched) < 1000:
        watched |= {search.search_id for search in next(watch).searches}
    watch.cancel()
    for search_id in seen:
        stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason="enough"))
    for future in futures:
        assert reason_of(future.exception()) == "CANCELLED_BY_CLIENT"
    server.assert_idle()
    # Only the searches that ended last are kept.
    assert len(listed(stub, pb, page_size=1000)) == 100


def test_many_short_calls_do_not_displace_other_clients_searches(serve, finder, pb, connect, stubs):
    server = serve("--operator", "127.0.0.1")
    stub, other = finder(server), finder(relay(server, "127.0.0.2"))
    query = pb.Query(desired_names=["doc"])
    accepted, *_ = other.Search(pb.SearchRequest(query=query))
    for _ in range(300):
        events = stub.Search(pb.SearchRequest(query=query))
        assert list(events)[-1].ended.reason == pb.END_REASON_FOUND
    [kept] = listed(other, pb)
    assert kept.search_id == accepted.accepted.search_id
    assert len(listed(stub, pb, client=MINE, page_size=1000)) == 100


def watch_request(pb, milliseconds, **fields):
    interval = duration_pb2.Duration(nanos=milliseconds * 1_000_000)
    return pb.WatchSearchesRequest(interval=interval, **fields)


def test_a_watch_reports_changes_at_a_limited_rate(serve, finder, pb, connect, stubs):
    server = serve()
    stub = finder(server)
    began = time.monotonic()
    watch = stub.WatchSearches(watch_request(pb, 1))
    assert list(next(watch).searches) == []
    stream, search_id = begin(stub, pb)
    seen, messages = [], 1

    def until(condition):
        nonlocal messages
        while True:
            message = next(watch)
            messages += 1
            # At most one message per interval (at least 100 ms), with each search at most once.
            assert time.monotonic() - began >= 0.1 * (messages - 1) - 0.01
            ids = [search.search_id for search in message.searches]
            assert message.searches and len(set(ids)) == len(ids)
            seen.extend(message.searches)
            if found := [search for search in message.searches if condition(search)]:
                return found

    until(lambda s: s.search_id == search_id and s.state == pb.SEARCH_STATE_RUNNING)
    first = seen[-1].hashes
    [search] = until(lambda s: s.search_id == search_id and s.hashes > first)
    stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason="seen"))
    [search] = until(lambda s: s.state == pb.SEARCH_STATE_ENDED)
    assert (search.search_id, search.end_message) == (search_id, "seen")
    # A search that starts and ends within one interval is reported once. Unchanged searches are not
    # reported.
    connect(server).Find(stubs.Request(desired_name="docto"))
    [search] = until(lambda s: s.search_id != search_id)
    assert search.method == "hash_name.HashFinder/Find"
    assert seen[-1] == search
    watch.cancel()
    error_of(lambda: list(stream))


def test_a_watch_can_be_limited_to_some_states(serve, finder, pb):
    server = serve()
    stub = finder(server)
    parked = stub.WatchSearches(watch_request(pb, 100, states=[pb.SEARCH_STATE_PARKED]))
    assert list(next(parked).searches) == []
    running, _ = begin(stub, pb)
    stream, search_id = begin(stub, pb, 21)

    def wait_for(state):
        # The search may leave the state briefly, until the client's windows are full.
        while True:
            [search] = next(parked).searches
            assert search.search_id == search_id
            if search.state == state:
                return

    # Only the search that is not read reaches this state.
    wait_for(pb.SEARCH_STATE_PARKED)
    # It is reported once more when it leaves this state, and not after that.
    stub.CancelSearch(pb.CancelSearchRequest(search_id=search_id))
    wait_for(pb.SEARCH_STATE_ENDED)
    again, again_id = begin(stub, pb, 21)
    [search] = next(parked).searches
    assert search.search_id == again_id
    for call in [running, stream, again, parked]:
        call.cancel()


def test_a_watch_does_not_delay_a_drain(serve, finder, pb):
    server = serve("--drain-grace", "1h")
    watch = finder(server).WatchSearches(pb.WatchSearchesRequest())
    next(watch)
    server.send(SIGTERM)
    error = error_of(lambda: list(watch))
    assert (error.code(), reason_of(error)) == (CODE.UNAVAILABLE, "DRAINING")
    assert server.wait() == 0


def test_a_watch_reports_how_a_drain_ends_searches(serve, finder, pb):
    server = serve("--drain-grace", "100ms")
    stub = finder(server)
    stream, search_id = begin(stub, pb)
    # The next message would be due in a minute, the longest interval.
    interval = duration_pb2.Duration(seconds=3600)
    watch = stub.WatchSearches(pb.WatchSearchesRequest(interval=interval))
    [search] = next(watch).searches
    assert search.state != pb.SEARCH_STATE_ENDED
    server.send(SIGTERM)
    messages = []
    error = error_of(lambda: messages.extend(watch))
    assert (error.code(), reason_of(error)) == (CODE.UNAVAILABLE, "DRAINING")
    [last] = messages[-1].searches
    assert (last.search_id, last.end_reason) == (search_id, pb.END_REASON_DRAINING)
    assert reason_of(error_of(lambda: list(stream))) == "DRAINING"
    assert server.wait() == 0


def test_the_watches_of_a_client_are_limited(serve, finder, pb):
    server = serve()
    stub, other = finder(server), finder(relay(server, "127.0.0.2"))
    watches = [stub.WatchSearches(pb.WatchSearchesRequest()) for _ in range(16)]
    for watch in watches:
        next(watch)
    error = error_of(lambda: list(stub.WatchSearches(pb.WatchSearchesRequest())))
    assert (error.code(), reason_of(error)) == (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")
    next(other.WatchSearches(pb.WatchSearchesRequest()))
    watches[0].cancel()

    def is_accepted():
        try:
            return next(stub.WatchSearches(pb.WatchSearchesRequest())) is not None
        except grpc.RpcError as error:
            assert reason_of(error) == "TOO_MANY_WATCHES"
            return False

    wait_until(is_accepted)


def test_an_unread_watch_uses_no_memory(serve, finder, pb, connect, stubs):
    server = serve()
    stub, reference = finder(server), connect(server)
    unread = [stub.WatchSearches(watch_request(pb, 100)) for _ in range(15)]
    futures = [reference.Find.future(stubs.Request(desired_name=HARD)) for _ in range(500)]
    wait_until(lambda: len(listed(stub, pb, page_size=1000)) == 500)
    watch = finder(server).WatchSearches(watch_request(pb, 100))

    def read_until(changes):
        """Reads this many changes, of about 200 bytes each."""
        while changes > 0:
            changes -= len(next(watch).searches)

    read_until(3000)
    resident = server.resident_bytes()
    read_until(10_000)
    # For the unread streams, these changes add up to 30 MB.
    assert server.resident_bytes() - resident < 5_000_000
    for call in [*futures, *unread, watch]:
        call.cancel()


@pytest.mark.parametrize("flag", ["localhost", "user:root", "10.0.0.7=2", ""])
def test_an_invalid_operator_is_rejected(flag):
    command = [HASHFINDER, "serve", "--operator", flag]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2 and "--operator" in done.stderr
    assert "IP address" in done.stderr
