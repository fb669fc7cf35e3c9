"""Limits of connections, tested with single HTTP/2 frames (RFC 9113)."""

import resource
import select
import socket
import subprocess
import time
import urllib.parse

import grpc
import hpack
import pytest
from conftest import HASHFINDER, SIGTERM, TIMEOUT_S, limits_as_toml
from test_contract import HARD
from test_observe import scrape, serve_with_metrics, until, value  # noqa: F401
from test_wire import PREFACE

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 2, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
PROTOCOL_ERROR = 1


def frame(kind, flags=0, stream=0, payload=b""):
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def headers(*fields):
    """Returns a header block without compression (RFC 7541, section 6.2.2)."""
    text = lambda value: hpack_length(len(value)) + value.encode()
    return b"".join(b"\0" + text(name) + text(value) for name, value in fields)


def hpack_length(length):
    if length < 127:
        return bytes([length])
    rest = length - 127
    out = bytearray([127])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


def call(path, authority="localhost"):
    return headers(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )


class Raw:
    """A connection that sends given frames. Unless `answers` is false, it acknowledges SETTINGS and
    PING."""

    def __init__(self, server, source="127.0.0.1", settings=b"", answers=True, receive_buffer=None):
        host, port = server.address.rsplit(":", 1)
        if host == "unix":
            self.socket = socket.socket(socket.AF_UNIX)
            where = port
        else:
            self.socket = socket.socket()
            self.socket.bind((source, 0))
            where = host, int(port)
        self.socket.settimeout(TIMEOUT_S)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(where)
        self.settings = settings
        self.answers = answers
        self._buffer = b""
        self.seen = []

    def greet(self):
        self.socket.sendall(PREFACE + frame(SETTINGS, payload=self.settings))
        self.until(SETTINGS)
        return self

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def call(self, path, message, stream=1):
        prefixed = b"\0" + len(message).to_bytes(4, "big") + message
        self.send(frame(HEADERS, END_HEADERS, stream, call(path)))
        self.send(frame(DATA, END_STREAM, stream, prefixed))

    def find(self, stubs, name="aa", stream=1):
        message = stubs.Request(desired_name=name).SerializeToString()
        self.call("/hash_name.HashFinder/Find", message, stream)
        while True:
            kind, flags, of, _ = self.until(HEADERS)
            if of == stream and flags & END_STREAM:
                return

    def next(self):
        """Returns the next frame as (kind, flags, stream, payload), or None at the end."""
        while len(self._buffer) < 9 or len(self._buffer) < 9 + self._length():
            try:
                chunk = self.socket.recv(65536)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return None
            self._buffer += chunk
        end = 9 + self._length()
        head, payload = self._buffer[:9], self._buffer[9:end]
        self._buffer = self._buffer[end:]
        got = head[3], head[4], int.from_bytes(head[5:9], "big"), payload
        self.seen.append(got)
        if self.answers and got[0] in (SETTINGS, PING) and not got[1] & ACK:
            try:
                self.send(frame(got[0], ACK, payload=payload if got[0] == PING else b""))
            except OSError:
                pass
        return got

    def _length(self):
        return int.from_bytes(self._buffer[:3], "big")

    def until(self, kind):
        while got := self.next():
            if got[0] == kind:
                return got
        pytest.fail(f"the connection ended before a frame of kind {kind}: {self.seen}")

    def rest(self):
        """Returns the kinds of all frames until the connection ends."""
        kinds = []
        while got := self.next():
            kinds.append(got[0])
        return kinds

    def close(self):
        self.socket.close()


@pytest.fixture
def raw():
    connections = []

    def connect(*arguments, **kwargs):
        connections.append(Raw(*arguments, **kwargs))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


def test_a_connection_without_a_handshake_is_closed(serve, raw):
    server = serve(limits={"handshake-timeout": "300ms"})
    # An acknowledgement of the server's settings would count as a sign of life.
    silent, half, no_settings = (raw(server, answers=False) for _ in range(3))
    half.send(PREFACE[:10])
    no_settings.send(PREFACE)
    assert silent.rest() == []
    assert GOAWAY not in half.rest()
    assert GOAWAY not in no_settings.rest()


def test_a_connection_without_a_request_receives_goaway(serve, raw):
    # The first-request timeout starts when the handshake ends, not when its timeout would pass.
    server = serve(limits={"handshake-timeout": "1h", "first-request-timeout": "1s"})
    kinds = raw(server).greet().rest()
    assert GOAWAY in kinds


def test_the_maximum_age_also_applies_before_the_handshake(serve, raw):
    server = serve(limits={"handshake-timeout": "1h", "maximum-connection-age": "1s"})
    silent, no_settings = (raw(server, answers=False) for _ in range(2))
    no_settings.send(PREFACE)
    assert silent.rest() == []
    # Before the client speaks HTTP/2, the server cannot send a GOAWAY.
    assert GOAWAY not in no_settings.rest()


def test_an_idle_connection_receives_goaway_and_a_busy_one_stays(serve, raw, stubs, connect):
    server = serve("--maximum-hashes", str(10**15), limits={"idle-timeout": "200ms"})
    stub = connect(server)
    stream = stub.FindRange(stubs.Request(desired_name=HARD, interesting_hamming_distance=21))
    next(stream)
    idle = raw(server).greet()
    idle.find(stubs)
    _, _, _, payload = idle.until(GOAWAY)
    # NO_ERROR: the client makes its next call on another connection.
    assert int.from_bytes(payload[4:8], "big") == 0
    idle.rest()
    # This connection is as old, but was busy in the meantime.
    assert next(stream).secret
    stream.cancel()
    # The gRPC library reconnects without an error.
    for _ in range(3):
        assert stub.Find(stubs.Request(desired_name="aa")).secret


def test_the_maximum_age_ends_searches_with_cursors(serve, stubs, connect, finder, pb):
    # A maximum age below the handshake timeout applies, too.
    soon = {"handshake-timeout": "1h", "maximum-connection-age": "2s"}
    server = serve(limits={**soon, "connection-grace": "100ms"})
    stream = connect(server).FindRange(stubs.Request(desired_name=HARD))
    with pytest.raises(grpc.RpcError) as error:
        next(stream)
    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert b"hf1_" in dict(error.value.trailing_metadata())["grpc-status-details-bin"]
    # The age limits a connection, not a client. With a long grace period, no call fails.
    server = serve(limits={**soon, "connection-grace": "1m"})
    stub = connect(server)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert stub.Find(stubs.Request(desired_name="aa")).secret


def test_the_connections_of_an_address_are_limited(serve, raw, stubs):
    server = serve(limits={"maximum-connections-per-address": 2})
    kept = [raw(server).greet() for _ in range(2)]
    assert raw(server).rest() == []
    other = raw(server, source="127.0.0.2").greet()
    for connection in [*kept, other]:
        connection.find(stubs)
    kept[0].close()
    # Its place is free as soon as the server has noticed the end.
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        again = raw(server)
        again.send(PREFACE + frame(SETTINGS))
        if again.next():
            break
        assert time.monotonic() < deadline
    again.find(stubs)


def test_silent_connections_of_an_address_make_room_for_its_other_connections(serve, raw, stubs):
    server = serve(limits={"maximum-connections-per-address": 3, "handshake-timeout": "1h"})
    other = raw(server, source="127.0.0.2")
    speaking = raw(server).greet()
    silent = [raw(server) for _ in range(2)]
    newcomers = [raw(server).greet() for _ in range(2)]
    for connection in silent:
        assert connection.rest() == []
    # All three speak HTTP/2, so this address has no room left.
    assert raw(server).rest() == []
    for connection in [speaking, *newcomers, other.greet()]:
        connection.find(stubs)


def test_silent_connections_make_room_for_connections_that_speak(serve, raw, stubs):
    server = serve(limits={"maximum-connections": 4, "maximum-connections-per-address": 4})
    speaking = raw(server).greet()
    silent = [raw(server, source="127.0.0.2") for _ in range(3)]
    newcomers = [raw(server, source="127.0.0.3").greet() for _ in range(3)]
    for connection in silent:
        assert connection.rest() == []
    # All four speak HTTP/2, so there is no room left.
    assert raw(server, source="127.0.0.4").rest() == []
    for connection in [speaking, *newcomers]:
        connection.find(stubs)


@pytest.mark.parametrize(
    ("flood", "reason"),
    [
        (frame(PING, payload=bytes(8)), "too_many_control_frames"),
        (frame(PRIORITY, stream=1, payload=bytes(5)), "too_many_control_frames"),
        (frame(77, payload=bytes(8)), "too_many_control_frames"),
    ],
    ids=["ping", "priority", "unknown"],
)
def test_a_flooding_connection_is_closed_and_others_are_not_affected(
    serve, raw, stubs, connect, flood, reason
):
    server = serve(limits={"maximum-control-frames-per-second": 100})
    healthy = connect(server)
    # Uses another address, because connections from one address share its limits.
    hostile = raw(server, source="127.0.0.2").greet()
    hostile.socket.setblocking(False)
    sent, ended = 0, False
    deadline = time.monotonic() + TIMEOUT_S
    while not ended:
        assert time.monotonic() < deadline, "the server did not close the connection"
        readable, writable, _ = select.select([hostile.socket], [hostile.socket], [], 0.05)
        try:
            if readable and not hostile.socket.recv(1 << 20):
                ended = True
            if writable:
                sent += hostile.socket.send(flood * 1000)
        except BlockingIOError:
            pass
        except OSError:
            ended = True
        assert healthy.Find(stubs.Request(desired_name="aa")).secret
    assert reason in server.wait_for("connection closed")


def test_connections_that_the_library_closes_are_counted_and_logged(serve_with_metrics, raw, stubs):  # noqa: F811
    server = serve_with_metrics()
    closed = "hashfinder_connections_closed_total"
    # Streams that are reset right after they are opened, all in one write.
    hostile = raw(server).greet()
    path, frames = call("/hash_name.HashFinder/Find"), []
    for stream in range(1, 101, 2):
        frames.append(frame(HEADERS, END_HEADERS, stream, path))
        frames.append(frame(RST_STREAM, stream=stream, payload=bytes(4)))
    hostile.send(*frames)
    assert GOAWAY in hostile.rest()
    until(server, closed, 1, reason="calm")
    assert "calm" in server.wait_for("connection closed")
    # A window update of zero (RFC 9113, section 6.9).
    rude = raw(server).greet()
    rude.send(frame(WINDOW_UPDATE, payload=bytes(4)))
    assert GOAWAY in rude.rest()
    until(server, closed, 1, reason="broken")
    # This client answers nothing, not even keepalive pings.
    server = serve_with_metrics(limits={"keepalive-interval": "500ms", "keepalive-timeout": "500ms"})
    raw(server).greet().find(stubs)
    until(server, closed, 1, reason="keepalive")


def test_unread_responses_do_not_pile_up(serve_with_metrics, raw):  # noqa: F811
    limits = {"keepalive-interval": "3s", "keepalive-timeout": "2s"}
    server = serve_with_metrics(limits={"maximum-streams-per-second": 1_000_000, **limits})
    # A small buffer, so that a few hundred answers fill it.
    unread = raw(server, receive_buffer=4096).greet()
    unread.socket.setblocking(False)
    began = resident = server.resident_bytes()
    # Each call is rejected. Its answer quotes the path, so that no two answers are alike.
    sent, number = b"", 0
    deadline = time.monotonic() + TIMEOUT_S
    while value(scrape(server), "hashfinder_connections_closed_total", reason="keepalive") == 0:
        assert time.monotonic() < deadline, "the server did not close the connection"
        try:
            while True:
                if not sent:
                    path = f"/{number}/{'x' * 3000}"
                    sent = frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, call(path))
                    number += 1
                sent = sent[unread.socket.send(sent) :]
        except BlockingIOError:
            pass
        except OSError:
            sent = b""
        resident = max(resident, server.resident_bytes())
    # More answers than may wait for room in the socket's buffer.
    assert number > 100
    assert resident - began < 8 << 20
    until(server, "hashfinder_connections", 0)


def test_streams_above_the_rate_limit_are_delayed_and_not_lost(serve, stubs, connect):
    server = serve(limits={"maximum-streams-per-second": 100})
    stub = connect(server)
    calls = [stub.Find.future(stubs.Request(desired_name="aa")) for _ in range(300)]
    assert all(call.result(TIMEOUT_S).secret for call in calls)


def wait_until_unread(pb, finder, server, count=1):
    """Waits until this many searches have ended unread, and returns them."""
    ended = {}
    request = pb.WatchSearchesRequest(interval={"nanos": 100_000_000})
    for response in finder(server).WatchSearches(request, timeout=TIMEOUT_S):
        for search in response.searches:
            if search.state == pb.SEARCH_STATE_ENDED:
                ended[search.search_id] = search
        if len(ended) == count:
            return list(ended.values())


def test_an_unread_stream_loses_its_search_but_no_work(serve, raw, stubs, finder, pb):
    limits = {"stream-stall-timeout": "400ms", "connection-grace": "1m"}
    server = serve("--maximum-concurrent-rpcs", "1", limits=limits)
    no_window = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
    reader = raw(server, settings=no_window).greet()
    request = stubs.Request(desired_name=HARD, interesting_hamming_distance=21)
    reader.call("/hash_name.HashFinder/FindRange", request.SerializeToString())
    (search,) = wait_until_unread(pb, finder, server)
    assert search.end_reason == pb.END_REASON_STREAM_NOT_READ and search.cursor
    # Another search can take its place.
    other = raw(server).greet()
    other.find(stubs)
    # A client that starts reading late receives the candidates and the cursor.
    window = (1 << 24).to_bytes(4, "big")
    reader.send(
        frame(WINDOW_UPDATE, payload=window), frame(WINDOW_UPDATE, stream=1, payload=window)
    )
    while True:
        _, flags, _, block = reader.until(HEADERS)
        if flags & END_STREAM:
            break
    assert any(kind == DATA and payload for kind, _, _, payload in reader.seen)
    # HPACK may use its Huffman code or not. Either way, only a block with the cursor is this long.
    assert len(block) > 100


def test_a_connection_that_reads_nothing_is_closed(serve, raw, stubs, finder, pb):
    server = serve(limits={"stream-stall-timeout": "2s", "connection-grace": "200ms"})
    no_window = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
    reader = raw(server, settings=no_window).greet()
    message = stubs.Request(desired_name=HARD, interesting_hamming_distance=21).SerializeToString()
    for stream in (1, 3, 5):
        reader.call("/hash_name.HashFinder/FindRange", message, stream)
    wait_until_unread(pb, finder, server, count=3)
    kinds = reader.rest()
    assert GOAWAY in kinds
    server.call_ended(method='"FindRange"', work='"stopped"')


def test_a_call_is_open_until_its_response_was_written(serve, raw, stubs):
    server = serve(limits={"maximum-open-calls": 2, "maximum-open-calls-per-address": 4})
    # A window of one byte: HTTP/2 accepts all of an answer, but can write almost none of it.
    little = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + (1).to_bytes(4, "big")
    client = raw(server, settings=little).greet()
    message = stubs.Request(desired_name="aa").SerializeToString()
    for stream in (1, 3):
        client.call("/hash_name.HashFinder/Find", message, stream)
        assert client.until(DATA)[2] == stream
    client.call("/hash_name.HashFinder/Find", message, 5)
    kind, flags, stream, _ = client.until(HEADERS)
    assert stream == 5 and flags & END_STREAM, "the third open call was not rejected"
    window = (1 << 16).to_bytes(4, "big")
    for stream in (1, 3):
        client.send(frame(WINDOW_UPDATE, stream=stream, payload=window))
        assert client.until(HEADERS)[2] == stream
    client.call("/hash_name.HashFinder/Find", message, 7)
    assert client.until(DATA)[2] == 7


def test_the_length_of_headers_is_limited(serve, raw, stubs):
    server = serve(limits={"maximum-header-list": 2048})
    connection = raw(server).greet()
    long = call("/hash_name.HashFinder/Find") + headers(("x", "y" * 3000))
    connection.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, long))
    _, flags, stream, block = connection.until(HEADERS)
    # Request Header Fields Too Large.
    assert stream == 1 and dict(hpack.Decoder().decode(block))[":status"] == "431"
    connection.find(stubs, stream=3)


def test_a_drain_sends_goaway(serve, raw, stubs):
    server = serve()
    connection = raw(server).greet()
    connection.find(stubs)
    server.send(SIGTERM)
    assert GOAWAY in connection.rest()
    assert server.wait() == 0


def test_a_connection_limit_above_the_limit_of_open_files_is_rejected(tmp_path):
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    config = tmp_path / "config.toml"
    config.write_text(limits_as_toml({"maximum-connections": 1000}))
    command = [HASHFINDER, "serve", "--port", "0", "--config", str(config)]
    for check in ([], ["--check"]):
        done = subprocess.run(
            [*command, *check], capture_output=True, text=True, preexec_fn=few, timeout=TIMEOUT_S
        )
        assert done.returncode == 2 and "LimitNOFILE" in done.stderr, done


def test_a_request_that_is_rejected_as_malformed_is_logged(serve, raw, stubs, tmp_path):
    """Regression: requests with a socket's path as :authority were reset without a log line."""
    path = tmp_path / "socket"
    server = serve("--unix", str(path))
    # First as grpc-java sends it, then as gRPC's C core and grpc-swift 2 do.
    for authority in [str(path), urllib.parse.quote(str(path)[1:], safe="")]:
        connection = raw(server).greet()
        for stream in [1, 3]:
            rejected = call("/hash_name.HashFinder/Find", authority)
            connection.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, rejected))
            assert connection.until(RST_STREAM)[2:] == (stream, PROTOCOL_ERROR.to_bytes(4, "big"))
        # The connection itself still works.
        connection.find(stubs, stream=5)
        line = server.wait_for("request rejected")
        assert "WARN" in line and "peer=user:" in line and str(path) not in line
        assert "its :authority is probably the socket's path; set the client's authority to localhost" in line
        server.call_ended(code="Ok")
    # If a new version of grpcio sends something else, docs/api.md has to say so.
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            stubs.Stub(channel).Find(stubs.Request(desired_name="aa"), timeout=TIMEOUT_S)
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    server.wait_for("request rejected")
    server.send(SIGTERM)
    assert server.wait() == 0
    # One line for each connection.
    log = "\n".join(server.log) + server.rest_of_stderr()
    assert log.count("request rejected") == 3

    server = serve()
    connection = raw(server).greet()
    rejected = call("/hash_name.HashFinder/Find", "two words")
    connection.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, rejected))
    assert connection.until(RST_STREAM)[2:] == (1, PROTOCOL_ERROR.to_bytes(4, "big"))
    line = server.wait_for("request rejected")
    assert "rejected as malformed HTTP/2" in line and "words" not in line
