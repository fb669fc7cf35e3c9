"""What an operator sees: metrics, the log as JSON, and `serve --check`."""

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
from conftest import HASHFINDER, PATIENCE_S, PROTOS, SIGTERM
from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_contract import HARD
from test_v1_searches import begin

CODE = grpc.StatusCode
REPOSITORY = PROTOS.parent


@pytest.fixture
def watched(serve):
    """Returns a function that starts a server with metrics. `server.metrics` is their port."""

    def start(*flags, **kwargs):
        server = serve("--metrics-address", "127.0.0.1:0", *flags, **kwargs)
        server.metrics = re.search(r'address="?127\.0\.0\.1:(\d+)', server.wait_for("metrics"))
        server.metrics = int(server.metrics[1])
        return server

    return start


OPENMETRICS = "application/openmetrics-text"


def get(server, path="/metrics", method="GET", accept=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics, timeout=PATIENCE_S)
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
    fits = [
        number
        for (of, others), number in samples.items()
        if of == name and labels.items() <= dict(others).items()
    ]
    return sum(fits)


def until(server, name, expected, **labels):
    """Waits until a metric has the value, which may take a second longer than the event itself."""
    deadline = time.monotonic() + PATIENCE_S
    while (seen := value(samples := scrape(server), name, **labels)) != expected:
        assert time.monotonic() < deadline, (name, labels, seen)
        time.sleep(0.05)
    return samples


def test_each_way_to_end_is_counted(watched, connect, finder, pb, stubs):
    server = watched("--maximum-hashes", "2000000000", "--maximum-concurrent-rpcs", "8")
    stub, v1 = connect(server), finder(server)
    before = scrape(server)
    assert value(before, "grpc_server_started_total") == 0
    assert value(before, "hashfinder_searches_ended_total") == 0
    # Counters exist before their first event, so that queries find them.
    assert {"grpc_server_handled_total", "hashfinder_refused_total"} <= {name for name, _ in before}

    stub.Find(stubs.Request(desired_name="aa"))
    handled = "grpc_server_handled_total"
    find = {"grpc_service": "hash_name.HashFinder", "grpc_method": "Find", "grpc_type": "unary"}
    # Sometimes the client notices first, and cancels its call before the server ends it.
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
    assert 0 < value(after, "hashfinder_stop_seconds_sum") < PATIENCE_S
    assert value(after, "hashfinder_refused_total", reason="BAD_REQUEST") == 1
    assert value(after, "hashfinder_refused_total") == 1
    assert value(after, "hashfinder_hashes_total") > 10_000
    assert value(after, "hashfinder_slices_total") > 0
    assert value(after, "hashfinder_draining") == 0
    assert value(after, "hashfinder_log_lines_lost_total") == 0
    assert value(after, "hashfinder_build_info") == 1


def test_what_is_refused_is_counted_by_its_reason(watched, connect, finder, pb, stubs):
    server = watched("--maximum-concurrent-rpcs", "1")
    stub, v1 = connect(server), finder(server)
    stream, _ = begin(v1, pb)
    refused = "hashfinder_refused_total"
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
        until(server, refused, 1, reason=reason)
    assert value(scrape(server), refused) == 4
    stream.cancel()


def test_strangers_make_no_labels(watched, connect):
    server = watched()
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


def test_a_drain_is_seen_as_long_as_it_lasts(watched, finder, pb):
    server = watched("--drain-grace", "30s")
    stream, _ = begin(finder(server), pb)
    until(server, "hashfinder_draining", 0)
    server.send(SIGTERM)
    until(server, "hashfinder_draining", 1)
    stream.cancel()
    assert server.wait() == 0


def test_only_metrics_are_shown(watched):
    server = watched()
    assert get(server, "/")[0].status == 404
    assert get(server, "/metrics/")[0].status == 404
    for method in ["POST", "PUT", "DELETE", "OPTIONS"]:
        for path in ["/metrics", "/healthz"]:
            response, _ = get(server, path, method=method)
            assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")
    assert get(server, "/metrics?name[]=x")[0].status == 200


def test_metrics_are_prometheus_text_unless_openmetrics_is_named(watched):
    server = watched()
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


def test_head_is_answered_as_get_without_the_body(watched):
    server = watched()
    for path in ["/metrics", "/healthz", "/nothing"]:
        headed, nothing = get(server, path, method="HEAD")
        gotten, text = get(server, path)
        assert nothing == "" and text
        assert headed.status == gotten.status
        assert headed.headers["content-type"] == gotten.headers["content-type"]
        assert int(headed.headers["content-length"]) > 0


def test_health_follows_the_health_service(watched, finder, pb):
    server = watched("--drain-grace", "30s")
    stream, _ = begin(finder(server), pb)
    response, text = get(server, "/healthz")
    assert (response.status, text) == (200, "SERVING\n")
    server.send(SIGTERM)
    until(server, "hashfinder_draining", 1)
    server.wait_for("draining")
    seen = None
    deadline = time.monotonic() + PATIENCE_S
    while seen != (503, "NOT_SERVING\n"):
        assert time.monotonic() < deadline, seen
        response, text = get(server, "/healthz")
        seen = response.status, text
    stream.cancel()
    assert server.wait() == 0


def exchanged(server, request):
    """Returns everything that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.metrics), PATIENCE_S) as stream:
        stream.sendall(request)
        answer = b""
        try:
            while data := stream.recv(4096):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def test_careless_scrapers_are_let_go(watched):
    server = watched()
    long = b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 20_000
    assert exchanged(server, long).startswith(b"HTTP/1.1 431 ")
    assert exchanged(server, b"\x16\x03\x01\x02\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    # The server answers one request, then closes the connection.
    answer = exchanged(server, b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\n")


@pytest.mark.parametrize("half", [b"", b"GET /metrics HTTP/1.1\r\nhost:"])
def test_half_open_requests_make_room_for_a_scrape(watched, half):
    server = watched()

    def round():
        """Whether a scrape was answered while most of the half-open requests were still waiting."""
        opened = []
        for _ in range(32):
            opened.append(socket.create_connection(("127.0.0.1", server.metrics), PATIENCE_S))
            opened[-1].sendall(half)
        assert get(server)[0].status == 200
        # More than the limit per address: the longest silent ones were closed to make room.
        for stream in opened[:16]:
            assert closed(stream)
        opened[-1].setblocking(False)
        try:
            is_open = opened[-1].recv(1) != b""
        except BlockingIOError:
            is_open = True
        except ConnectionResetError:
            is_open = False
        # In the end all are closed.
        for stream in opened[16:]:
            assert closed(stream)
        return is_open

    # On a busy machine a round can take so long that all of them time out.
    deadline = time.monotonic() + PATIENCE_S
    while not round():
        assert time.monotonic() < deadline


def closed(stream):
    """Waits until the server closes the connection, and ignores what it sends."""
    stream.settimeout(PATIENCE_S)
    try:
        while stream.recv(4096):
            pass
    except ConnectionResetError:
        pass
    stream.close()
    return True


def test_nothing_is_tested_after_the_calls_have_ended(watched, connect, stubs):
    # A worker that missed the end of its search would keep testing secrets.
    server = watched()
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


def test_a_scrape_costs_no_more_than_one_a_second(watched, connect, stubs):
    server = watched()
    stub = connect(server)
    began = time.monotonic()
    texts = set()
    for _ in range(50):
        stub.Find(stubs.Request(desired_name="aa"))
        texts.add(get(server)[1])
    assert len(texts) <= time.monotonic() - began + 1


def test_no_metrics_unless_asked_for(serve):
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


def test_the_log_as_json(serve, connect, finder, pb, stubs):
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
    lines = [json.loads(server.wait_for("call (ended|refused)")) for _ in range(3)]
    server.send(SIGTERM)
    assert server.wait() == 0
    text = "\n".join(server.log) + "\n" + server.rest_of_stderr()
    records = [json.loads(line) for line in text.splitlines()]
    assert {"timestamp", "level", "message", "target"} <= set.intersection(*map(set, records))
    assert "canary" not in text
    assert not any(c != "\n" and ord(c) < 32 for c in text)

    refused, found, stopped = lines
    assert (refused["message"], refused["code"]) == ("call refused", "InvalidArgument")
    assert refused["method"] == found["method"] == "Find"
    assert (found["message"], found["code"], found["work"]) == ("call ended", "Ok", "found")
    assert (refused["reason"], refused["field"]) == ("BAD_REQUEST", "desired_name")
    assert (found["names"], found["characters"]) == (1, 2)
    assert found["peer"].startswith("127.0.0.1:") and found["client"] == "ip:127.0.0.1"
    assert isinstance(found["hashes"], int) and isinstance(found["tests"], int)
    assert stopped["method"] == "Search" and stopped["search"] == search_id
    assert (stopped["code"], stopped["work"]) == ("Cancelled", "stopped")
    assert 0 <= stopped["stopped_in_ms"] <= stopped["took_ms"] < 1000 * PATIENCE_S
    assert "trace" not in stopped


def serves(*flags, **environment):
    command = [HASHFINDER, "serve", *flags]
    kwargs = {"env": {**environment}} if environment else {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, **kwargs)
    return done.returncode, done.stdout, done.stderr


def check(*flags, **environment):
    return serves("--check", *flags, **environment)


def test_check_tells_where_it_would_listen(serve, tmp_path):
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


def test_check_tells_what_is_wrong(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("[serve]\nprot = 1234\n")
    for flags, environment, word in [
        (["--config", str(file)], {}, "did you mean port"),
        ([], {"HASHFINDER_SERVE_PORT": "70000"}, "HASHFINDER_SERVE_PORT=70000"),
        ([], {"HASHFINDER_LOG": "a=b=c"}, "HASHFINDER_LOG=a=b=c: give off, error"),
        (["--host", "no.such.host.invalid"], {}, "cannot resolve the host"),
        (["--unix", "/" + "x" * 200], {}, "can be no socket's path"),
        (["--metrics-address", "9464"], {}, "give HOST:PORT"),
        (["--metrics-address", "::1:9464"], {}, "brackets"),
        (["--metrics-address", "127.0.0.1:50051"], {}, "a port of their own"),
    ]:
        status, stdout, stderr = check(*flags, **environment)
        assert (status, stdout) == (2, ""), (flags, environment, stderr)
        assert word in stderr
        # `serve` rejects it too, with the same output.
        assert serves(*flags, **environment) == (status, stdout, stderr)


# Suffixes of a family's samples, by its type.
SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "info": ["_info"],
    "histogram": ["_bucket", "_count", "_sum"],
}


@pytest.fixture
def with_all_metrics(watched, tmp_path):
    """A server with values in every metric."""
    ours = Authority(tmp_path, "ours")
    return watched(*ours.server().flags("--tls"), "--tls-client-ca", ours.path)


def test_the_dashboard_asks_for_what_there_is(with_all_metrics):
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
    asked = set()
    for target in targets:
        expression = target["expr"]
        assert expression.count("(") == expression.count(")")
        (name,) = re.findall(r"\b(?:hashfinder|grpc_server)_\w+", expression)
        assert name in labels, expression
        asked.add(name)
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert set(by.split(", ")) <= labels[name], expression
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert label in labels[name], target
        # Quantiles are computed from a histogram's buckets.
        assert ("histogram_quantile" in expression) == name.endswith("_bucket")
    shown = {name for name in labels if not name.endswith(("_count", "_sum"))}
    assert asked == shown
    (job,) = [one for one in dashboard["templating"]["list"] if one["name"] == "job"]
    assert re.search(r"\((\w+), job\)", job["query"]["query"])[1] in labels


def test_the_guide_asks_for_what_there_is(with_all_metrics):
    shown = {name for name, _ in scrape(with_all_metrics)}
    text = (REPOSITORY / "docs/operations.md").read_text()
    asked = set(re.findall(r"\b(?:hashfinder|grpc_server)_\w+", text))
    assert len(asked) > 5 and asked <= shown, asked - shown


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_the_unit_is_sound_and_tight(tmp_path):
    text = (REPOSITORY / "packaging/hashfinder.service").read_text()
    unit = tmp_path / "hashfinder.service"
    unit.write_text(text.replace("/usr/local/bin/hashfinder", HASHFINDER))
    for command in [["verify"], ["security", "--offline=yes", "--threshold=20"]]:
        done = subprocess.run(
            ["systemd-analyze", *command, str(unit)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    # The unit's command line is one that the program accepts.
    [(setting, line)] = re.findall(r"^(Exec\w+)=(.*)$", unit.read_text(), re.M)
    # RestartPreventExitStatus= does not apply to commands that run before ExecStart=.
    assert setting == "ExecStart"
    program, command, *flags = line.split()
    assert (program, command) == (HASHFINDER, "serve")
    assert check(*flags)[0] == 0
    wrong = [HASHFINDER, command, *flags, "--api-keys", str(tmp_path / "none")]
    wrong = subprocess.run(wrong, capture_output=True, timeout=PATIENCE_S)
    assert f"RestartPreventExitStatus={wrong.returncode}" in text.splitlines()
