"""Metrics, the log as JSON, and `serve --check`."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import time

import grpc
import pytest
from certificates import Authority
from conftest import HASHFINDER, PROTOS, SIGTERM, TIMEOUT_S
from fleet import Fleet
from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_contract import HARD
from test_v1_searches import begin

CODE = grpc.StatusCode
REPOSITORY = PROTOS.parent


@pytest.fixture
def serve_with_metrics(serve):
    """Returns a function that starts a server with metrics. `server.metrics` is their port."""

    def start(*flags, **kwargs):
        server = serve("--metrics-address", "127.0.0.1:0", *flags, **kwargs)
        server.metrics = re.search(r'address="?127\.0\.0\.1:(\d+)', server.wait_for("metrics"))
        server.metrics = int(server.metrics[1])
        return server

    return start


OPENMETRICS = "application/openmetrics-text"


def get(server, path="/metrics", method="GET", accept=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics, timeout=TIMEOUT_S)
    connection.request(method, path, headers={"accept": accept} if accept else {})
    response = connection.getresponse()
    return response, response.read().decode()


def scrape(server):
    """Returns every sample, by name and labels. The parser accepts only valid OpenMetrics."""
    response, text = get(server, accept=OPENMETRICS)
    assert response.status == 200
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples, name, **labels):
    """Returns the sum of the samples with this name and these labels."""
    matching = [
        number
        for (sample_name, sample_labels), number in samples.items()
        if sample_name == name and labels.items() <= dict(sample_labels).items()
    ]
    return sum(matching)


def until(server, name, expected, **labels):
    """Waits until a metric has the value, and returns all samples. They may be a second old."""
    deadline = time.monotonic() + TIMEOUT_S
    while (seen := value(samples := scrape(server), name, **labels)) != expected:
        assert time.monotonic() < deadline, (name, labels, seen)
        time.sleep(0.05)
    return samples


def test_each_way_to_end_a_call_is_counted(serve_with_metrics, connect, finder, pb, stubs):
    server = serve_with_metrics("--maximum-hashes", "2000000000", "--maximum-concurrent-rpcs", "8")
    stub, v1 = connect(server), finder(server)
    before = scrape(server)
    assert value(before, "grpc_server_started_total") == 0
    assert value(before, "hashfinder_searches_ended_total") == 0
    # Counters exist before their first event, so that queries find them.
    assert {"grpc_server_handled_total", "hashfinder_refused_total"} <= {name for name, _ in before}

    stub.Find(stubs.Request(desired_name="aa"))
    handled = "grpc_server_handled_total"
    find = {"grpc_service": "hash_name.HashFinder", "grpc_method": "Find", "grpc_type": "unary"}
    # Sometimes the client notices the deadline first, and cancels the call itself.
    late = 0
    while not late or not value(seen, handled, grpc_code="DeadlineExceeded", **find):
        late += 1
        assert late < 20
        with pytest.raises(grpc.RpcError) as error:
            stub.Find(stubs.Request(desired_name=HARD), timeout=0.3)
        assert error.value.code() == CODE.DEADLINE_EXCEEDED
        seen = until(server, handled, 1 + late)
    with pytest.raises(grpc.RpcError) as wrong:
        stub.Find(stubs.Request(desired_name="not base64!"))
    assert wrong.value.code() == CODE.INVALID_ARGUMENT
    stream, search_id = begin(v1, pb)
    until(server, "hashfinder_active_calls", 1)
    v1.CancelSearch(pb.CancelSearchRequest(search_id=search_id, reason="a reason"))
    with pytest.raises(grpc.RpcError) as cancelled:
        list(stream)
    assert cancelled.value.code() == CODE.CANCELLED
    gone, _ = begin(v1, pb)
    until(server, "hashfinder_active_calls", 1)
    gone.cancel()

    search = {"grpc_method": "Search", "grpc_type": "server_stream"}
    until(server, handled, 2, grpc_service="hashfinder.v1.Finder", grpc_code="Canceled", **search)
    until(server, "hashfinder_searches", 0)
    after = until(server, "hashfinder_active_calls", 0)
    assert value(after, handled, grpc_code="OK", **find) == 1
    assert value(after, handled, grpc_code="DeadlineExceeded", **find) == 1
    assert value(after, handled, grpc_code="InvalidArgument", **find) == 1
    assert value(after, handled, grpc_code="OK", grpc_method="CancelSearch") == 1
    assert value(after, handled) == value(after, "grpc_server_started_total") == 5 + late
    assert value(after, "grpc_server_handling_seconds_count") == 5 + late
    assert value(after, "grpc_server_handling_seconds_sum", **find) > 0.05
    ended = "hashfinder_searches_ended_total"
    assert value(after, ended, how="found") == 1
    assert value(after, ended, how="deadline") == 1
    assert value(after, ended, how="client") == 1 + late
    assert value(after, ended) == 3 + late
    assert value(after, "hashfinder_stop_seconds_count") == 2 + late
    assert 0 < value(after, "hashfinder_stop_seconds_sum") < TIMEOUT_S
    assert value(after, "hashfinder_refused_total", reason="BAD_REQUEST") == 1
    assert value(after, "hashfinder_refused_total") == 1
    assert value(after, "hashfinder_hashes_total") > 10_000
    assert value(after, "hashfinder_slices_total") > 0
    assert value(after, "hashfinder_draining") == 0
    assert value(after, "hashfinder_log_lines_lost_total") == 0
    assert value(after, "hashfinder_build_info") == 1


def test_rejections_are_counted_by_reason(serve_with_metrics, connect, finder, pb, stubs):
    server = serve_with_metrics("--maximum-concurrent-rpcs", "1")
    stub, v1 = connect(server), finder(server)
    stream, _ = begin(v1, pb)
    rejected = "hashfinder_refused_total"
    for call, reason in [
        (lambda: stub.Find(stubs.Request(desired_name="aa")), "TOO_MANY_SEARCHES"),
        (lambda: stub.Find(stubs.Request(desired_name="a" * 5000)), "MESSAGE_TOO_LONG"),
        (
            lambda: v1.CancelSearch(pb.CancelSearchRequest(search_id="0" * 32)),
            "SEARCH_NOT_FOUND",
        ),
        (
            lambda: v1.ListSearches(pb.ListSearchesRequest(client="ip:127.0.0.2")),
            "NOT_AN_OPERATOR",
        ),
    ]:
        with pytest.raises(grpc.RpcError):
            call()
        until(server, rejected, 1, reason=reason)
    assert value(scrape(server), rejected) == 4
    stream.cancel()


def test_unknown_methods_create_no_labels(serve_with_metrics, connect):
    server = serve_with_metrics()
    before = scrape(server)
    channel = grpc.insecure_channel(server.address)
    for method in ["/canary.Service/Method", "/hash_name.HashFinder/Canary", "/canary"]:
        with pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(method)(b"", metadata=[("canary", "canary")])
        assert error.value.code() == CODE.UNIMPLEMENTED
    channel.close()
    labels = {"grpc_method": "unknown", "grpc_code": "Unimplemented"}
    after = until(server, "grpc_server_handled_total", 3, **labels)
    assert before.keys() == after.keys()
    assert "canary" not in get(server)[1].lower()


def test_a_drain_is_visible_in_the_metrics_while_it_lasts(serve_with_metrics, finder, pb):
    server = serve_with_metrics("--drain-grace", "30s")
    stream, _ = begin(finder(server), pb)
    until(server, "hashfinder_draining", 0)
    server.send(SIGTERM)
    until(server, "hashfinder_draining", 1)
    stream.cancel()
    assert server.wait() == 0


def test_the_metrics_port_rejects_other_paths_and_methods(serve_with_metrics):
    server = serve_with_metrics()
    assert get(server, "/")[0].status == 404
    assert get(server, "/metrics/")[0].status == 404
    for method in ["POST", "PUT", "DELETE", "OPTIONS"]:
        for path in ["/metrics", "/healthz"]:
            response, _ = get(server, path, method=method)
            assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
    assert get(server, "/metrics?name[]=x")[0].status == 200


def test_metrics_are_prometheus_text_unless_openmetrics_is_requested(serve_with_metrics):
    server = serve_with_metrics()
    for accept in [None, "*/*", "text/plain", f"{OPENMETRICS};q=0.4,text/plain;q=0.5"]:
        response, text = get(server, accept=accept)
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "# EOF" not in text
        families = list(parser.text_string_to_metric_families(text))
        assert all(family.documentation and family.type != "unknown" for family in families)
        # The parser removes a counter's suffix.
        classic = {(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples}
        assert classic == scrape(server).keys()
    prometheus = f"{OPENMETRICS};version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    for accept in [OPENMETRICS, f"{OPENMETRICS};q=0.5,text/plain;q=0.5", prometheus]:
        response, text = get(server, accept=accept)
        assert response.headers["content-type"].startswith(OPENMETRICS)
        assert text.endswith("# EOF\n")


def test_head_returns_the_headers_of_get_without_a_body(serve_with_metrics):
    server = serve_with_metrics()
    for path in ["/metrics", "/healthz", "/nothing"]:
        head, empty = get(server, path, method="HEAD")
        full, text = get(server, path)
        assert empty == "" and text
        assert head.status == full.status
        assert head.headers["content-type"] == full.headers["content-type"]
        assert int(head.headers["content-length"]) > 0


def test_healthz_reports_the_status_of_the_health_service(serve_with_metrics, finder, pb):
    server = serve_with_metrics("--drain-grace", "30s")
    stream, _ = begin(finder(server), pb)
    response, text = get(server, "/healthz")
    assert (response.status, text) == (200, "SERVING\n")
    server.send(SIGTERM)
    until(server, "hashfinder_draining", 1)
    server.wait_for("draining")
    seen = None
    deadline = time.monotonic() + TIMEOUT_S
    while seen != (503, "NOT_SERVING\n"):
        assert time.monotonic() < deadline, seen
        response, text = get(server, "/healthz")
        seen = response.status, text
    stream.cancel()
    assert server.wait() == 0


def exchange(server, request):
    """Returns everything that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.metrics), TIMEOUT_S) as stream:
        stream.sendall(request)
        answer = b""
        try:
            while data := stream.recv(4096):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def test_bad_scrapes_are_rejected_and_their_connections_closed(serve_with_metrics):
    server = serve_with_metrics()
    long = b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 20_000
    assert exchange(server, long).startswith(b"HTTP/1.1 431 ")
    assert exchange(server, b"\x16\x03\x01\x02\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    # The server answers one request, then closes the connection.
    answer = exchange(server, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\n")


@pytest.mark.parametrize("half", [b"", b"GET /metrics HTTP/1.1\r\nhost:"])
def test_half_open_requests_do_not_prevent_a_scrape(serve_with_metrics, half):
    server = serve_with_metrics()

    def attempt():
        """Returns whether a scrape was answered while the last half-open request was still open."""
        opened = []
        for _ in range(32):
            opened.append(socket.create_connection(("127.0.0.1", server.metrics), TIMEOUT_S))
            opened[-1].sendall(half)
        assert get(server)[0].status == 200
        # They exceed the limit per address, so the oldest ones were closed to make room.
        for stream in opened[:16]:
            assert closed(stream)
        opened[-1].setblocking(False)
        try:
            is_open = opened[-1].recv(1) != b""
        except BlockingIOError:
            is_open = True
        except ConnectionResetError:
            is_open = False
        # In the end, all are closed.
        for stream in opened[16:]:
            assert closed(stream)
        return is_open

    # On a busy machine, an attempt can take so long that all of them time out.
    deadline = time.monotonic() + TIMEOUT_S
    while not attempt():
        assert time.monotonic() < deadline


def closed(stream):
    """Waits until the server closes the connection, and ignores what it sends."""
    stream.settimeout(TIMEOUT_S)
    try:
        while stream.recv(4096):
            pass
    except ConnectionResetError:
        pass
    stream.close()
    return True


def test_no_secret_is_tested_after_the_calls_have_ended(serve_with_metrics, connect, stubs):
    # A worker that missed the end of its search would keep testing secrets.
    server = serve_with_metrics()
    stub = connect(server)
    futures = [stub.Find.future(stubs.Request(desired_name=HARD)) for _ in range(20)]
    server.wait_until_busy()
    for future in futures:
        future.cancel()
    ends = [server.call_ended(cause='"client gone"') for _ in futures]
    tests = sum(int(re.search(r" tests=(\d+)", line)[1]) for line in ends)
    for _ in range(2):
        until(server, "hashfinder_tests_total", tests)
        # The metrics shown may be a second old.
        time.sleep(1.1)


def test_metrics_are_collected_at_most_once_per_second(serve_with_metrics, connect, stubs):
    server = serve_with_metrics()
    stub = connect(server)
    began = time.monotonic()
    texts = set()
    for _ in range(50):
        stub.Find(stubs.Request(desired_name="aa"))
        texts.add(get(server)[1])
    assert len(texts) <= time.monotonic() - began + 1


def test_by_default_there_is_no_metrics_port(serve):
    server = serve()
    inodes = set()
    for line in open(f"/proc/{server.pid}/net/tcp").read().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            inodes.add(fields[9])
    links = subprocess.run(
        ["ls", "-l", f"/proc/{server.pid}/fd"], capture_output=True, text=True, check=True
    )
    ours = set(re.findall(r"socket:\[(\d+)\]", links.stdout)) & inodes
    assert len(ours) == 1


def test_the_json_log_has_every_call_and_no_credential(serve, connect, finder, pb, stubs):
    server = serve("--log-format", "json")
    stub, v1 = connect(server), finder(server)
    hostile = 'no"\\\n\x1b[31m\u202ename'
    with pytest.raises(grpc.RpcError):
        stub.Find(stubs.Request(desired_name=hostile), metadata=[("authorization", "canary")])
    stub.Find(stubs.Request(desired_name="aa"), metadata=[("authorization", "Bearer canary")])
    stream, search_id = begin(v1, pb)
    v1.CancelSearch(pb.CancelSearchRequest(search_id=search_id))
    with pytest.raises(grpc.RpcError):
        list(stream)
    lines = [json.loads(server.wait_for("call (ended|rejected)")) for _ in range(3)]
    server.send(SIGTERM)
    assert server.wait() == 0
    text = "\n".join(server.log) + "\n" + server.rest_of_stderr()
    records = [json.loads(line) for line in text.splitlines()]
    assert {"timestamp", "level", "message", "target"} <= set.intersection(*map(set, records))
    assert "canary" not in text
    assert not any(c != "\n" and ord(c) < 32 for c in text)

    rejected, found, stopped = lines
    assert (rejected["message"], rejected["code"]) == ("call rejected", "InvalidArgument")
    assert rejected["method"] == found["method"] == "Find"
    assert (found["message"], found["code"], found["work"]) == ("call ended", "Ok", "found")
    assert (rejected["reason"], rejected["field"]) == ("BAD_REQUEST", "desired_name")
    assert (found["names"], found["characters"]) == (1, 2)
    assert found["peer"].startswith("127.0.0.1:") and found["client"] == "ip:127.0.0.1"
    assert isinstance(found["hashes"], int) and isinstance(found["tests"], int)
    assert stopped["method"] == "Search" and stopped["search"] == search_id
    assert (stopped["code"], stopped["work"]) == ("Cancelled", "stopped")
    assert 0 <= stopped["stopped_in_ms"] <= stopped["took_ms"] < 1000 * TIMEOUT_S
    assert "trace" not in stopped


def run_serve(*flags, **environment):
    command = [HASHFINDER, "serve", *flags]
    kwargs = {"env": {**environment}} if environment else {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, **kwargs)
    return done.returncode, done.stdout, done.stderr


def check(*flags, **environment):
    return run_serve("--check", *flags, **environment)


def test_check_prints_where_the_server_would_listen(serve, tmp_path):
    # A server already uses the port, but `--check` does not bind it.
    port = serve().address.split(":")[1]
    line = f"hashfinder would listen on 127.0.0.1:{port}, with metrics on [::1]:9464\n"
    assert check("--port", port, "--metrics-address", "[::1]:9464") == (0, line, "")
    path = tmp_path / "socket"
    assert check("--unix", str(path)) == (0, f"hashfinder would listen on unix:{path}\n", "")
    assert not path.exists()
    file = tmp_path / "config.toml"
    file.write_text('[serve]\nport = 1234\nmetrics-address = "127.0.0.1:4321"\n')
    line = "hashfinder would listen on 127.0.0.1:1234, with metrics on 127.0.0.1:4321\n"
    assert check("--config", str(file)) == (0, line, "")


def test_check_reports_invalid_settings(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[serve]\nprot = 1234\n")
    for flags, environment, word in [
        (["--config", str(file)], {}, 'did you mean "port"'),
        ([], {"HASHFINDER_SERVE_PORT": "70000"}, "HASHFINDER_SERVE_PORT=70000"),
        ([], {"HASHFINDER_LOG": "a=b=c"}, "invalid HASHFINDER_LOG=a=b=c: expected off, error"),
        (["--host", "no.such.host.invalid"], {}, "cannot resolve the host"),
        (["--unix", "/" + "x" * 200], {}, "is not a valid socket path"),
        (["--metrics-address", "9464"], {}, "expected HOST:PORT"),
        (["--metrics-address", "::1:9464"], {}, "brackets"),
        (["--metrics-address", "127.0.0.1:50051"], {}, "use another port"),
    ]:
        status, stdout, stderr = check(*flags, **environment)
        assert (status, stdout) == (2, ""), (flags, environment, stderr)
        assert word in stderr
        # `serve` rejects it too, with the same output.
        assert run_serve(*flags, **environment) == (status, stdout, stderr)


# Suffixes of a family's samples, by its type.
SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "info": ["_info"],
    "histogram": ["_bucket", "_count", "_sum"],
}


@pytest.fixture
def with_all_metrics(serve_with_metrics, tmp_path, processes):
    """Returns a server with values in every metric."""
    fleet = Fleet(tmp_path / "broker", processes)
    ours = Authority(tmp_path, "ours")
    tls = [*ours.server().flags("--tls"), "--tls-client-ca", ours.path]
    # Its operations are saved at the broker.
    return serve_with_metrics(*tls, "--fleet", fleet.url)


def test_the_dashboard_shows_all_metrics_and_no_others(with_all_metrics):
    _, text = get(with_all_metrics, accept=OPENMETRICS)
    labels = {}
    for family in text_string_to_metric_families(text):
        names = {family.name + suffix for suffix in SUFFIXES[family.type]}
        for sample in family.samples:
            assert sample.name in names
            labels.setdefault(sample.name, {"job"}).update(sample.labels)
    dashboard = json.loads((REPOSITORY / "docs/grafana.json").read_text())
    panels = dashboard["panels"]
    targets = [target for panel in panels for target in panel["targets"]]
    assert len({panel["id"] for panel in panels}) == len(panels)
    used = set()
    for target in targets:
        expression = target["expr"]
        assert expression.count("(") == expression.count(")")
        (name,) = re.findall(r"\b(?:hashfinder|grpc_server)_\w+", expression)
        assert name in labels, expression
        used.add(name)
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert set(by.split(", ")) <= labels[name], expression
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert label in labels[name], target
        # Quantiles are computed from a histogram's buckets.
        assert ("histogram_quantile" in expression) == name.endswith("_bucket")
    shown = {name for name in labels if not name.endswith(("_count", "_sum"))}
    assert used == shown
    (job,) = [variable for variable in dashboard["templating"]["list"] if variable["name"] == "job"]
    assert re.search(r"\((\w+), job\)", job["query"]["query"])[1] in labels


def test_the_guide_has_every_metric_and_no_other(with_all_metrics):
    shown = {name for name, _ in scrape(with_all_metrics)}
    # Without the suffixes of a histogram's samples.
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in shown}
    text = (REPOSITORY / "docs/metrics.md").read_text()
    documented = set(re.findall(r"\b(?:hashfinder|grpc_server)_\w+", text))
    assert families <= documented, families - documented
    assert documented <= shown | families, documented - shown - families


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_systemd_unit_is_valid_and_secure(tmp_path):
    text = (REPOSITORY / "packaging/hashfinder.service").read_text()
    unit = tmp_path / "hashfinder.service"
    unit.write_text(text.replace("/usr/local/bin/hashfinder", HASHFINDER))
    for command in [["verify"], ["security", "--offline=yes", "--threshold=20"]]:
        done = subprocess.run(
            ["systemd-analyze", *command, str(unit)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    # The program accepts the command line of the unit.
    [(setting, line)] = re.findall(r"^(Exec\w+)=(.*)$", unit.read_text(), re.M)
    # RestartPreventExitStatus= does not apply to commands that run before ExecStart=.
    assert setting == "ExecStart"
    program, command, *flags = line.split()
    assert (program, command) == (HASHFINDER, "serve")
    assert check(*flags)[0] == 0
    wrong = [HASHFINDER, command, *flags, "--api-keys", str(tmp_path / "none")]
    wrong = subprocess.run(wrong, capture_output=True, timeout=TIMEOUT_S)
    assert f"RestartPreventExitStatus={wrong.returncode}" in text.splitlines()
