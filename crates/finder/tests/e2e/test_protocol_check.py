"""Requests that are rejected before any handler, sent raw because grpcio cannot send them."""

import base64
import re
import socket
import struct
import time
import urllib.parse

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from conftest import TIMEOUT_S
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from test_observe import serve_with_metrics, until, value  # noqa: F401

FIND = "/hash_name.HashFinder/Find"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
AA = b"\x0a\x02aa"


def message(body=AA):
    return b"\0" + len(body).to_bytes(4, "big") + body


class Answer:
    def __init__(self):
        self.headers, self.trailers = None, None
        self.body = b""
        self.is_over, self.reset = False, None

    @property
    def http(self):
        return int(self.headers[":status"])

    @property
    def code(self):
        """The gRPC status code, from the trailers or the headers."""
        where = self.trailers or self.headers
        return int(where["grpc-status"])

    @property
    def reason(self):
        """The reason in the ErrorInfo."""
        text = (self.trailers or self.headers)["grpc-status-details-bin"]
        return re.search(rb"[A-Z_]{6,}", b64(text))[0].decode()


def b64(text):
    return base64.b64decode(text + "=" * (-len(text) % 4))


class Raw:
    """An HTTP/2 connection that can send malformed requests."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        config = h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.answers = {}
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, path=FIND, end=False, method="POST", **headers):
        """Sends the headers of a request. Headers that are None are left out."""
        stream = self.h2.get_next_available_stream_id()
        pseudo = {":method": method, ":scheme": "http", ":authority": "x", ":path": path}
        headers = {key.replace("_", "-"): text for key, text in headers.items()}
        fields = {**pseudo, "content-type": "application/grpc", "te": "trailers", **headers}
        fields = [(key, text) for key, text in fields.items() if text is not None]
        self.h2.send_headers(stream, fields, end_stream=end)
        self.answers[stream] = Answer()
        self.flush()
        return stream

    def send(self, stream, data, end=False):
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def read(self):
        """Receives data, and handles the events in it."""
        data = self.socket.recv(65536)
        assert data, "the connection was closed"
        for event in self.h2.receive_data(data):
            answer = self.answers.get(getattr(event, "stream_id", None))
            match event:
                case h2.events.ResponseReceived():
                    answer.headers = dict(event.headers)
                case h2.events.TrailersReceived():
                    answer.trailers = dict(event.headers)
                case h2.events.DataReceived():
                    answer.body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    answer.is_over = True
                case h2.events.StreamReset():
                    answer.reset = event.error_code
        self.flush()

    def answer(self, stream):
        """Waits for the complete answer, and returns it."""
        while not self.answers[stream].is_over:
            self.read()
        return self.answers[stream]

    def call(self, *arguments, data=None, **headers):
        stream = self.begin(*arguments, **headers)
        self.send(stream, message() if data is None else data, end=True)
        return self.answer(stream)


@pytest.fixture
def raw():
    connections = []

    def connect(server):
        connections.append(Raw(server.address))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.socket.close()


REFUSED = "hashfinder_refused_total"


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "BREW"])
def test_methods_other_than_post_are_rejected(serve_with_metrics, raw, method):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    answer = connection.answer(connection.begin(method=method, end=True))
    assert (answer.http, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["server"] == "hashfinder" and not answer.body
    assert "grpc-status" not in answer.headers
    line = server.wait_for("call rejected")
    assert re.search(r'method="Find" peer=127\.0\.0\.1:\d+ code=HTTP 405 ', line), line
    samples = until(server, REFUSED, 1, reason="NOT_POST")
    assert value(samples, "grpc_server_handled_total", grpc_code="Unimplemented") == 1
    # The connection itself still works.
    assert connection.call().code == 0


@pytest.mark.parametrize(
    "content_type", [None, "", "application/grpc-web", "application/grpc+json", "application/json"]
)
def test_content_types_other_than_grpc_are_rejected(serve_with_metrics, raw, content_type):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    # It is rejected for its headers, whether or not the client continues.
    for end in [True, False]:
        stream = connection.begin(content_type=content_type, end=end)
        answer = connection.answer(stream)
        assert (answer.http, answer.body) == (415, b"")
        assert "code=HTTP 415 " in server.wait_for("call rejected")
    until(server, REFUSED, 2, reason="NOT_GRPC")


def test_requests_with_too_many_headers_are_rejected(serve_with_metrics, raw):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    # In addition to content-type and te.
    assert connection.call(**{f"x{number}": "" for number in range(98)}).code == 0
    stream = connection.begin(**{f"x{number}": "" for number in range(99)})
    answer = connection.answer(stream)
    assert (answer.http, answer.body) == (431, b"")
    assert "code=HTTP 431 " in server.wait_for("call rejected")
    until(server, REFUSED, 1, reason="TOO_MANY_FIELDS")
    until(server, "hashfinder_open_calls", 0)
    for fine in ["application/grpc", "application/grpc+proto", "application/grpc; a=b"]:
        assert connection.call(content_type=fine).code == 0
    # Servers commonly accept calls without te.
    assert connection.call(te=None).code == 0


def test_an_incomplete_request_times_out(serve_with_metrics, raw):  # noqa: F811
    server = serve_with_metrics(limits={"request-timeout": "3s"})
    connection = raw(server)
    nothing = connection.begin()
    half = connection.begin()
    connection.send(half, message()[:-1])
    # Only the end of the stream is missing. The handler would wait for it.
    whole = connection.begin()
    connection.send(whole, message())
    reflected = connection.begin(REFLECTION)
    for stream in [nothing, half, whole, reflected]:
        answer = connection.answer(stream)
        assert (answer.http, answer.code) == (200, 4), stream
        assert answer.reason == "REQUEST_TIMEOUT"
        assert "code=DeadlineExceeded" in server.wait_for("call rejected")
    until(server, REFUSED, 4, reason="REQUEST_TIMEOUT")
    until(server, "hashfinder_open_calls", 0)
    assert connection.call().code == 0


def test_a_stream_of_messages_may_last_longer_than_the_request_timeout(serve, stubs):
    server = serve(limits={"request-timeout": "1s"})
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def requests():
            for pause in [0, 2]:
                time.sleep(pause)
                yield reflection_pb2.ServerReflectionRequest(list_services="")

        answers = [answer.list_services_response for answer in stub.ServerReflectionInfo(requests())]
    assert len(answers) == 2 and all(answer.service for answer in answers)


def test_the_number_of_messages_in_a_stream_is_limited(serve_with_metrics, stubs):  # noqa: F811
    server = serve_with_metrics()
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert len(list(stub.ServerReflectionInfo(iter(100 * [request])))) == 100
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.ServerReflectionInfo(iter(101 * [request])))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "more than 100 messages" in raised.value.details()
    until(server, REFUSED, 1, reason="TOO_MANY_MESSAGES")


def test_a_second_message_is_rejected(serve_with_metrics, raw):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    answer = connection.call(data=2 * message())
    assert (answer.code, answer.reason) == (12, "TOO_MANY_MESSAGES")
    # A request that never ends is not read forever.
    endless = connection.begin()
    connection.send(endless, message())
    connection.send(endless, message())
    assert connection.answer(endless).code == 12
    until(server, REFUSED, 2, reason="TOO_MANY_MESSAGES")


HEALTH = "/grpc.health.v1.Health/Check"


def test_rejections_before_any_handler_are_counted_and_logged(serve_with_metrics, raw):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    seen = {}
    long = "/" + "a" * 300 + "/\"\u00e9"
    for request, code, reason, method in [
        ({"path": long}, 12, "UNKNOWN_METHOD", "unknown"),
        ({"path": "/hash_name.HashFinder/Fin"}, 12, "UNKNOWN_METHOD", "unknown"),
        ({"path": "/hash_name.HashFinder/Fin", "data": b""}, 12, "UNKNOWN_METHOD", "unknown"),
        ({"grpc_timeout": "soon"}, 3, "BAD_TIMEOUT", "Find"),
        ({"data": message(b"\xff")}, 3, "MALFORMED", "Find"),
        ({"data": message(b"\xff"), "path": HEALTH}, 3, "MALFORMED", "Check"),
        ({"data": message()[:3]}, 3, "MALFORMED", "Find"),
        ({"data": message()[:-1]}, 3, "MALFORMED", "Find"),
        ({"data": b""}, 12, "MESSAGE_MISSING", "Find"),
        ({"data": b"", "path": HEALTH}, 12, "MESSAGE_MISSING", "Check"),
        ({"data": b"\x01" + message()[1:]}, 3, "MALFORMED", "Find"),
        ({"data": b"\x07" + message()[1:]}, 3, "MALFORMED", "Find"),
        ({"grpc_encoding": "gzip"}, 12, "MALFORMED", "Find"),
        ({"data": message(5000 * b"a")}, 8, "MESSAGE_TOO_LONG", "Find"),
        ({"content_type": "text/plain"}, None, "NOT_GRPC", "Find"),
        ({"method": "PUT"}, None, "NOT_POST", "Find"),
        ({f"x{number}": "" for number in range(99)}, None, "TOO_MANY_FIELDS", "Find"),
    ]:
        seen[reason] = seen.get(reason, 0) + 1
        answer = connection.call(**request)
        if code is None:
            assert 400 <= answer.http < 500, request
        else:
            assert answer.code == code, request
        line = server.wait_for("call rejected")
        assert f' method="{method}" peer=127.0.0.1:' in line, line
    for reason, times in seen.items():
        samples = until(server, REFUSED, times, reason=reason)
    # None of these counts as a failure of the server.
    for failure in ["Internal", "Unknown", "DataLoss"]:
        assert value(samples, "grpc_server_handled_total", grpc_code=failure) == 0
    ended = value(samples, "grpc_server_handled_total")
    assert ended == value(samples, "grpc_server_started_total") == sum(seen.values())


# HTTP/2 error codes: PROTOCOL_ERROR, INTERNAL_ERROR, STREAM_CLOSED, CANCEL, and an undefined one.
# (With NO_ERROR the request counts as complete, and is rejected for its missing message.)
@pytest.mark.parametrize("how", ["end", "reset", 1, 2, 5, 8, 99])
@pytest.mark.parametrize("begun", [b"", b"\0\0"])
def test_a_request_that_its_client_aborts_counts_as_cancelled(serve_with_metrics, raw, how, begun):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    stream = connection.begin()
    connection.send(stream, begun)
    until(server, "hashfinder_open_calls", 1)
    if how == "end":
        connection.socket.shutdown(socket.SHUT_WR)
    elif how == "reset":
        # A linger time of 0 s: closing the socket resets the connection.
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.socket.close()
    else:
        connection.h2.reset_stream(stream, how)
        connection.flush()
    samples = until(server, "grpc_server_handled_total", 1)
    assert value(samples, "grpc_server_handled_total", grpc_code="Canceled") == 1
    assert value(samples, REFUSED) == 0


def test_a_request_without_a_message_is_rejected(serve_with_metrics, raw):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    # The stream ends with the headers, with empty data, or with trailers.
    at_once = connection.begin(end=True)
    later = connection.begin()
    connection.send(later, b"", end=True)
    trailed = connection.begin()
    connection.h2.send_headers(trailed, [("x", "y")], end_stream=True)
    connection.flush()
    for stream in [at_once, later, trailed]:
        answer = connection.answer(stream)
        assert (answer.http, answer.code, answer.reason) == (200, 12, "MESSAGE_MISSING")
    until(server, REFUSED, 3, reason="MESSAGE_MISSING")
    # Methods that accept several messages also accept none.
    none = connection.answer(connection.begin(REFLECTION, end=True))
    assert none.code == 0
    assert connection.call().code == 0


def test_a_status_quotes_only_a_part_of_a_long_request(serve, raw):
    server = serve(limits={"maximum-header-list": 65536})
    connection = raw(server)
    long = 15_000 * "x"
    wide = 15_000 * "\u00e9"
    symbol = message(b"\x22" + varint(3900) + 3900 * b"s")
    for request, start in [
        ({"path": f"/{long}/{long}"}, "unknown method /xxx"),
        ({"path": f"/{wide}/x"}, "unknown method /"),
        ({"path": f"/hash_name.HashFinder/{long}"}, "unknown method /hash_name.HashFinder/xxx"),
        ({"grpc_encoding": long}, "Content is compressed with `xxx"),
        ({"grpc_timeout": long}, ""),
        ({"path": REFLECTION, "data": symbol}, "symbol 'sss"),
        ({"data": message(b"\x0a" + varint(4000) + 4000 * b"%")}, ""),
    ]:
        answer = connection.call(**request)
        fields = answer.trailers or answer.headers
        text = urllib.parse.unquote(fields["grpc-message"])
        assert text.startswith(start), text
        assert len(text.encode()) <= 512 and answer.code not in (0, 2, 13)
        # Clients commonly accept this size.
        assert sum(len(name) + len(value) + 32 for name, value in fields.items()) < 8192


def varint(number):
    """Encodes a length as protobuf does, in two bytes."""
    return bytes([number & 0x7F | 0x80, number >> 7])


def test_a_flood_of_rejections_does_not_flood_the_log(serve_with_metrics, raw):  # noqa: F811
    server = serve_with_metrics()
    connection = raw(server)
    for _ in range(10):
        streams = [connection.begin(method="GET", end=True) for _ in range(100)]
        for stream in streams:
            assert connection.answer(stream).http == 405
    until(server, REFUSED, 1000, reason="NOT_POST")
    left_out, lines = 0, 0
    while left_out + lines < 1000:
        line = server.wait_for("call rejected|rejected calls left out of the log")
        if counted := re.search(r"refusals=(\d+)", line):
            left_out += int(counted[1])
        else:
            lines += 1
    assert left_out + lines == 1000 and left_out > lines
