"""Health checks: `hashfinder health`, and the Kubernetes manifest."""

import json
import re
import socket
import subprocess
import urllib.request
from concurrent import futures

import grpc
import pytest
import yaml
from conftest import HASHFINDER, SIGTERM, TIMEOUT_S
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from test_auth import key_file  # noqa: F401
from test_observe import REPOSITORY, check, serve_with_metrics  # noqa: F401
from test_tls import ours, serve_tls  # noqa: F401
from test_v1_searches import begin


def probe(*flags):
    command = [HASHFINDER, "health", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.returncode, done.stdout, done.stderr


def test_health_reports_serving_and_draining_servers(serve, finder, pb, tmp_path):
    for flags in [[], ["--unix", str(tmp_path / "socket")]]:
        server = serve("--drain-grace", "1h", *flags)
        stream, _ = begin(finder(server), pb)
        assert probe("--server", server.address) == (0, "SERVING\n", "")
        server.send(SIGTERM)
        server.wait_for("draining")
        # The server stops listening a moment later.
        code, stdout, stderr = probe("--server", server.address)
        assert (code, stdout) in [(1, "NOT_SERVING\n"), (5, "")] and stderr.count("\n") <= 1
        stream.cancel()
        assert server.wait() == 0


def test_health_with_tls_needs_no_credential(serve_tls, ours, key_file):  # noqa: F811
    key_file.create()
    server = serve_tls("--api-keys", str(key_file.path))
    name = ["--server", server.address, "--tls-server-name", "localhost"]
    assert probe(*name, "--tls-ca", ours.path) == (0, "SERVING\n", "")
    code, stdout, stderr = probe("--server", server.address)
    assert (code, stdout) == (5, "") and "TLS" in stderr


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (health_pb2.HealthCheckResponse.SERVING, (0, "SERVING\n")),
        (health_pb2.HealthCheckResponse.NOT_SERVING, (1, "NOT_SERVING\n")),
        (health_pb2.HealthCheckResponse.UNKNOWN, (1, "UNKNOWN\n")),
        (None, (5, "")),
    ],
)
def test_health_works_with_any_grpc_server(status, expected):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    if status is not None:
        service = health.HealthServicer()
        service.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    code, stdout, stderr = probe("--server", f"127.0.0.1:{port}")
    assert (code, stdout) == expected
    assert ("has no health service" in stderr) == (status is None)
    server.stop(None).wait()


def test_health_fails_if_no_server_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, stdout, stderr = probe("--server", address)
        assert (code, stdout) == (5, "") and f"cannot reach {address} within 2s: no answer" in stderr
    # The port is closed now, so connecting fails, and the reason is printed.
    code, stdout, stderr = probe("--server", address)
    assert (code, stdout) == (5, "") and "Connection refused" in stderr
    assert probe("--server", "nonsense:")[0] == 2


def test_the_health_checks_in_the_guide_work(serve_tls, ours):  # noqa: F811
    guide = (REPOSITORY / "docs/operations.md").read_text()
    [snippet] = re.findall(r"```yaml\n(.*?)```", guide, re.S)
    kubernetes_command = yaml.safe_load(snippet)["readinessProbe"]["exec"]["command"]
    [podman_command] = re.findall(r"--health-cmd \\\n *'(.*?)'", guide)
    server = serve_tls()
    for command in [kubernetes_command, json.loads(podman_command)]:
        program, health, *flags = command
        assert (program, health) == ("/hashfinder", "health")
        # Replaces the example's file and name with those of this test.
        flags = [re.sub(r"/etc/hashfinder/\S+", ours.path, flag) for flag in flags]
        flags = [flag.replace("find.example", "localhost") for flag in flags]
        assert probe("--server", server.address, *flags) == (0, "SERVING\n", "")


def test_the_kubernetes_manifest_matches_the_server(serve_with_metrics, key_file, ours):  # noqa: F811
    text = (REPOSITORY / "packaging/kubernetes.yaml").read_text()
    objects = {document["kind"]: document for document in yaml.safe_load_all(text)}
    assert objects.keys() == {"Deployment", "Service", "NetworkPolicy"}
    pod = objects["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    # Every file that a flag names is in a secret's volume.
    volumes = {volume["name"]: volume["secret"] for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == volumes.keys()
    key_file.create()
    certificate, key = ours.server().files
    files = {"tls.crt": certificate, "tls.key": key, "keys.toml": key_file.path}
    flags = []
    for flag in container["args"]:
        name, value = flag.split("=")
        if value.startswith("/"):
            folder, file = value.rsplit("/", 1)
            assert folder in mounts
            value = files.pop(file)
        flags.append(f"{name}={value}")
    assert not files
    # The program accepts the arguments together with the variables of the image.
    code, stdout, stderr = check(*flags, HASHFINDER_SERVE_HOST="0.0.0.0", HASHFINDER_SERVE_LOG_FORMAT="json")
    assert (code, stderr) == (0, "")
    assert stdout == f"hashfinder would listen on 0.0.0.0:{ports['grpc']}, with metrics on 0.0.0.0:{ports['metrics']}\n"

    # The server answers the probes.
    server = serve_with_metrics()
    for kind in ["readinessProbe", "livenessProbe"]:
        get = container[kind]["httpGet"]
        assert get["port"] == "metrics"
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics}{get['path']}") as response:
            assert response.status == 200
    # Kubernetes waits longer than the longest drain.
    guide = (REPOSITORY / "docs/operations.md").read_text()
    grace_s = pod["spec"]["terminationGracePeriodSeconds"]
    assert f"`terminationGracePeriodSeconds: {grace_s}`" in guide
    longest = int(re.search(r"has ended within (\d+) seconds", guide)[1])
    assert grace_s > longest
