"""Spans that a collector receives, and servers whose collector is missing or silent."""

import json
import os
import queue
import re
import socket
import threading
import time
from concurrent import futures

import grpc
import pytest
from conftest import SIGTERM, TIMEOUT_S
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from test_contract import HARD
from test_observe import get, serve_with_metrics, until  # noqa: F401
from test_v1_searches import begin

CODE = grpc.StatusCode

# The examples in W3C Trace Context.
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OpenTelemetry collector that keeps what it receives."""

    def __init__(self, address="127.0.0.1:0"):
        self.spans = queue.Queue()
        self.requests = []
        self.metadata = []
        self.server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=2), options=[("grpc.so_reuseport", 0)]
        )
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port(address)}"
        self.url = f"http://{self.address}"
        self.server.start()

    def Export(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put((span, attributes(resource.resource)))
        return trace_service_pb2.ExportTraceServiceResponse()

    def next(self):
        return self.spans.get(timeout=TIMEOUT_S)[0]


@pytest.fixture
def collector():
    started = Collector()
    yield started
    started.server.stop(None)


def attributes(message):
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value"))
        for attribute in message.attributes
    }


def trace_metadata(flags="01", trace=TRACE, state=None):
    metadata = [("traceparent", f"00-{trace}-{PARENT}-{flags}")]
    return metadata + ([("tracestate", state)] if state else [])


def test_a_call_is_a_span_of_its_callers_trace(serve, connect, stubs, collector):
    server = serve("--otlp-endpoint", collector.url)
    before = time.time_ns()
    request = stubs.Request(desired_name="aa")
    connect(server).Find(request, metadata=trace_metadata(state="vendor=1,other=2"))
    line = server.call_ended(trace=TRACE)
    span, resource = collector.spans.get(timeout=TIMEOUT_S)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert len(span.span_id) == 8 and span.span_id.hex() != PARENT and any(span.span_id)
    assert (span.name, span.kind) == ("hash_name.HashFinder/Find", Span.SPAN_KIND_SERVER)
    assert span.trace_state == "vendor=1,other=2"
    assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    assert span.status.code == Status.STATUS_CODE_UNSET
    seen = attributes(span)
    port = int(re.search(r"peer=127\.0\.0\.1:(\d+)", line)[1])
    hashes = int(re.search(r"\bhashes=(\d+)", line)[1])
    tests = int(re.search(r"\btests=(\d+)", line)[1])
    assert seen == {
        "rpc.system": "grpc",
        "rpc.service": "hash_name.HashFinder",
        "rpc.method": "Find",
        "rpc.grpc.status_code": 0,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": port,
        "hashfinder.search.cause": "completed",
        "hashfinder.search.work": "found",
        "hashfinder.search.hashes": hashes,
        "hashfinder.search.tests": tests,
    }
    assert resource["service.name"] == "hashfinder" and resource["service.version"]


def test_a_span_shows_how_its_search_was_stopped(serve, finder, pb, collector):
    server = serve("--otlp-endpoint", collector.url)
    v1 = finder(server)
    stream, search_id = begin(v1, pb, metadata=trace_metadata())
    v1.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason="a reason"))
    with pytest.raises(grpc.RpcError) as error:
        list(stream)
    assert error.value.code() == CODE.CANCELLED
    # The call that cancelled it had no trace context, so it starts a new trace.
    spans = {span.name: span for span in [collector.next(), collector.next()]}
    search = spans["hashfinder.v1.Finder/Search"]
    seen = attributes(search)
    assert (search.trace_id.hex(), seen["hashfinder.search.id"]) == (TRACE, search_id)
    assert seen["rpc.grpc.status_code"] == CODE.CANCELLED.value[0]
    assert seen["hashfinder.search.work"] == "stopped"
    # Zero if no worker was busy with the search at the moment of the cancellation.
    took = (search.end_time_unix_nano - search.start_time_unix_nano) / 1e9
    assert 0 <= seen["hashfinder.search.stop_seconds"] <= took < TIMEOUT_S
    cancel = spans["hashfinder.v1.Finder/CancelSearch"]
    assert cancel.parent_span_id == b"" and cancel.trace_id not in (b"", search.trace_id)
    assert "hashfinder.search.work" not in attributes(cancel)


def test_a_clients_error_is_not_an_error_of_the_span(serve, connect, stubs, collector):
    stub = connect(serve("--otlp-endpoint", collector.url))
    for request, timeout, code, status in [
        (stubs.Request(desired_name=""), None, CODE.INVALID_ARGUMENT, Status.STATUS_CODE_UNSET),
        (stubs.Request(desired_name="a" * 5000), None, CODE.RESOURCE_EXHAUSTED, 0),
    ]:
        with pytest.raises(grpc.RpcError):
            stub.Find(request, timeout=timeout, metadata=trace_metadata())
        span = collector.next()
        assert attributes(span)["rpc.grpc.status_code"] == code.value[0]
        assert span.status.code == status
    stub.Find(stubs.Request(desired_name="aa"), metadata=trace_metadata())
    collector.next()


def test_a_call_that_its_caller_does_not_sample_is_not_traced(serve, connect, stubs, collector):
    server = serve("--otlp-endpoint", collector.url)
    stub = connect(server)
    request = stubs.Request(desired_name="aa")
    stub.Find(request, metadata=trace_metadata("00"))
    # The log has the caller's trace although it is not sampled.
    server.call_ended(trace=TRACE)
    # Unknown flags are ignored. The next span is that of the next call.
    other = TRACE[::-1]
    stub.Find(request, metadata=trace_metadata("03", trace=other))
    assert collector.next().trace_id.hex() == other
    server.send(SIGTERM)
    assert server.wait() == 0
    assert collector.spans.empty()


def test_calls_without_a_parent_are_sampled(serve, connect, stubs, collector):
    server = serve("--otlp-endpoint", collector.url, limits={"otlp-sampling": 0})
    stub = connect(server)
    request = stubs.Request(desired_name="aa")
    for _ in range(20):
        stub.Find(request)
        assert "trace=" not in server.call_ended(code="Ok")
    stub.Find(request, metadata=trace_metadata())
    assert collector.next().trace_id.hex() == TRACE
    server.send(SIGTERM)
    assert server.wait() == 0
    assert collector.spans.empty()


@pytest.mark.parametrize(
    "wrong",
    [
        "canary",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-canary",
        f"00-{TRACE}-{PARENT}" + "-01" * 1000,
    ],
)
def test_an_invalid_parent_is_ignored(serve, connect, stubs, collector, wrong):
    server = serve("--otlp-endpoint", collector.url)
    metadata = [("traceparent", wrong), ("tracestate", "canary=1")]
    connect(server).Find(stubs.Request(desired_name="aa"), metadata=metadata)
    span = collector.next()
    assert span.parent_span_id == b"" and span.trace_id.hex() not in (TRACE, "0" * 32)
    assert (span.trace_state, "canary" in str(span)) == ("", False)


def test_a_long_trace_state_is_dropped(serve, connect, stubs, collector):
    stub = connect(serve("--otlp-endpoint", collector.url))
    state = ",".join(f"vendor{n}={'x' * 200}" for n in range(5))
    stub.Find(stubs.Request(desired_name="aa"), metadata=trace_metadata(state=state))
    span = collector.next()
    assert (span.trace_id.hex(), span.trace_state) == (TRACE, "")


@pytest.mark.parametrize("broken", ["canary", "a=1,canary", "=canary", "a=", "a=1,a=2", "A=1"])
def test_a_malformed_trace_state_is_dropped(serve, connect, stubs, collector, broken):
    stub = connect(serve("--otlp-endpoint", collector.url))
    stub.Find(stubs.Request(desired_name="aa"), metadata=trace_metadata(state=broken))
    span = collector.next()
    assert (span.trace_id.hex(), span.trace_state) == (TRACE, "")


def test_no_span_contains_data_from_a_request(serve, connect, finder, pb, stubs, collector):
    server = serve("--otlp-endpoint", collector.url)
    connect(server).Find(stubs.Request(desired_name="aa"))
    metadata = [
        ("authorization", "Bearer canary"),
        ("cookie", "canary"),
        ("baggage", "canary=canary"),
        ("canary", "canary"),
        ("user-agent", "canary"),
    ]
    stub, v1 = connect(server), finder(server)
    names = ["canarycanarycanary", "no canary!"]
    for name in names:
        with pytest.raises(grpc.RpcError):
            stub.Find(stubs.Request(desired_name=name), metadata=metadata, timeout=1)
    stream = v1.Search(
        pb.SearchRequest(query=pb.Query(desired_names=["canary", HARD])), metadata=metadata
    )
    next(stream)
    stream.cancel()
    channel = grpc.insecure_channel(server.address)
    for method in ["/canary.Service/Method", "/hash_name.HashFinder/Canary"]:
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(method)(b"", metadata=metadata)
    channel.close()
    for _ in range(6):
        collector.next()
    server.send(SIGTERM)
    assert server.wait() == 0
    text = "".join(map(str, collector.requests))
    assert "rpc.method" in text and "canary" not in text.lower()


def test_the_remaining_spans_are_sent_at_the_end(serve, connect, stubs, collector):
    server = serve("--otlp-endpoint", collector.url)
    stub = connect(server)
    calls = 100
    for _ in range(calls):
        stub.Find(stubs.Request(desired_name="aa"))
    # One call is still running, and the drain ends it.
    last = stub.Find.future(stubs.Request(desired_name=HARD), metadata=trace_metadata())
    server.wait_until_busy()
    server.send(SIGTERM)
    with pytest.raises(grpc.RpcError):
        last.result()
    server.wait_for("stopped.* lost_spans=0$")
    assert server.wait() == 0
    # All spans have arrived by the time the server has exited.
    spans = [collector.spans.get_nowait()[0] for _ in range(calls + 1)]
    assert collector.spans.empty()
    (drained,) = [span for span in spans if span.trace_id.hex() == TRACE]
    assert attributes(drained)["rpc.grpc.status_code"] == CODE.UNAVAILABLE.value[0]
    assert drained.status.code == Status.STATUS_CODE_ERROR
    assert attributes(drained)["hashfinder.search.work"] == "stopped"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_a_collector_calls_continue_and_lost_spans_are_counted(
    serve_with_metrics, connect, stubs  # noqa: F811
):
    port = free_port()
    server = serve_with_metrics("--otlp-endpoint", f"http://127.0.0.1:{port}")
    stub = connect(server)
    request = stubs.Request(desired_name="aa")
    stub.Find(request)
    server.wait_for("WARN.* cannot send spans to the collector")
    lost = "hashfinder_spans_lost_total"
    until(server, lost, 1)
    # Makes far more calls than there is room for in the queue.
    calls = [stub.Find.future(request) for _ in range(6000)]
    for call in calls:
        call.result()
    # The collector comes back, and receives new spans.
    collector = Collector(f"127.0.0.1:{port}")
    deadline = time.monotonic() + TIMEOUT_S
    while collector.spans.empty():
        assert time.monotonic() < deadline
        stub.Find(request)
        time.sleep(0.05)
    server.wait_for("the collector accepts spans again")
    server.send(SIGTERM)
    stopped = server.wait_for("stopped")
    assert server.wait() == 0
    text = "\n".join(server.log)
    assert text.count("cannot send spans to the collector") == 1
    ended = text.count("call ended")
    assert ended > 6000
    # Each span has either arrived or is counted as lost.
    arrived = collector.spans.qsize()
    collector.server.stop(None)
    assert arrived + int(re.search(r"lost_spans=(\d+)", stopped)[1]) == ended


@pytest.mark.parametrize("second_signal", [False, True])
def test_a_silent_collector_does_not_delay_the_end(serve, connect, stubs, second_signal):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        server = serve("--otlp-endpoint", f"http://127.0.0.1:{silent.getsockname()[1]}")
        stub = connect(server)
        for _ in range(600):
            stub.Find(stubs.Request(desired_name="aa"))
        # The exporter has connected, and waits for an answer.
        connection, _ = silent.accept()
        server.send(SIGTERM)
        if second_signal:
            server.wait_for("draining")
            server.send(SIGTERM)
        # An export may take five seconds. On a busy machine, this loop slows down like the server.
        hundredths = 0
        while server.popen.poll() is None:
            time.sleep(0.01)
            hundredths += 1
        assert hundredths < 450
        server.wait_for("stopped.* lost_spans=600$")
        assert server.wait() == 0
        connection.close()


def test_without_the_flag_there_are_no_traces(serve, connect, stubs):
    server = serve()
    connect(server).Find(stubs.Request(desired_name="aa"), metadata=trace_metadata())
    line = server.call_ended(code="Ok")
    assert "trace=" not in line
    server.send(SIGTERM)
    assert "lost_spans" not in server.wait_for("stopped")
    assert "OpenTelemetry" not in threads_of(serve().pid)


def threads_of(pid):
    tasks = f"/proc/{pid}/task"
    return "".join(open(f"{tasks}/{task}/comm").read() for task in os.listdir(tasks))


def test_the_json_log_has_the_trace(serve, connect, stubs, collector):
    server = serve("--otlp-endpoint", collector.url, "--log-format", "json")
    connect(server).Find(stubs.Request(desired_name="aa"), metadata=trace_metadata())
    record = json.loads(server.wait_for("call ended"))
    assert record["trace"] == TRACE and record["took_ms"] > 0
    assert collector.next().trace_id.hex() == record["trace"]


def test_the_standard_variables_of_opentelemetry_are_used(serve, connect, stubs, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=one,zone=north")
    server = serve("--otlp-endpoint", collector.url)
    connect(server).Find(stubs.Request(desired_name="aa"))
    _, resource = collector.spans.get(timeout=TIMEOUT_S)
    assert (resource["service.instance.id"], resource["zone"]) == ("one", "north")
    assert collector.metadata[0]["authorization"] == "Bearer secret"
    server.send(SIGTERM)
    assert server.wait() == 0
    assert "secret" not in "\n".join(server.log) + server.rest_of_stderr()
