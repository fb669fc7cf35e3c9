"""The files that run the parts of a fleet: units of systemd, a compose file, a manifest, a cluster."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import HASHFINDER, HERE, TIMEOUT_S, Process, free_port
from fleet import Broker, Fleet

REPOSITORY = HERE.parents[3]

PACKAGING = REPOSITORY / "packaging"


@pytest.fixture
def fleet(tmp_path, processes):
    return Fleet(tmp_path / "broker", processes)


def starts(processes, *command, **variables):
    """Checks that an agent with this command line connects to the fleet."""
    agent = Process([HASHFINDER, *command], env={**os.environ, **variables})
    processes.append(agent)
    agent.wait_for("ready agent=")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_unit_of_agents_is_valid_and_secure(tmp_path, fleet, processes):
    text = (PACKAGING / "hashfinder-agent.service").read_text()
    unit = tmp_path / "hashfinder-agent.service"
    unit.write_text(text.replace("/usr/local/bin/hashfinder", HASHFINDER))
    for command in [["verify"], ["security", "--offline=yes", "--threshold=20"]]:
        done = subprocess.run(
            ["systemd-analyze", *command, str(unit)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    [line] = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.M)
    program, *command = line.split()
    assert program == HASHFINDER
    [(variable, _)] = re.findall(r"^#\s+(HASHFINDER_AGENT_FLEET)=(\S+)$", text, re.M)
    starts(processes, *command, **{variable: fleet.url})
    # The program knows the variable for credentials, too, and rejects a file that is missing.
    [(variable, _)] = re.findall(r"Environment=(HASHFINDER_AGENT_\w+)=(\S+)$", text, re.M)
    wrong = subprocess.run(
        [HASHFINDER, *command],
        env={**os.environ, variable: str(tmp_path / "none")},
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert f"RestartPreventExitStatus={wrong.returncode}" in text.splitlines()


def test_the_compose_file_runs_a_fleet(tmp_path, processes):
    services = yaml.safe_load((PACKAGING / "compose.yaml").read_text())["services"]
    port = free_port()
    broker = [flag.replace("/data", str(tmp_path)) for flag in services["broker"]["command"]]
    broker = Process([Broker.program(), *broker, "--addr", "127.0.0.1", "--port", str(port)])
    processes.append(broker)
    broker.wait_for("Server is ready")
    at = f"nats://127.0.0.1:{port}"
    url = lambda flags: [flag.replace("nats://broker:4222", at) for flag in flags]
    for name in ("server1", "server2"):
        command = [HASHFINDER, "serve", "--check", *url(services[name]["command"])]
        done = subprocess.run(
            command,
            env={**os.environ, "HASHFINDER_SERVE_HOST": "0.0.0.0"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        # Without TLS and credentials, other machines must not reach it.
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    program, command = services["agent"]["entrypoint"]
    assert program == "/hashfinder"
    starts(processes, command, *url(services["agent"]["command"]))


def test_the_manifest_of_agents_matches_the_program(fleet, processes):
    text = (PACKAGING / "kubernetes-agent.yaml").read_text()
    deployment, policy = yaml.safe_load_all(text)
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    (container,) = pod["spec"]["containers"]
    program, command = container["command"]
    assert program == "/hashfinder"
    (mount,) = container["volumeMounts"]
    (volume,) = pod["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    flags, files = [], []
    for flag in container["args"]:
        name, value = flag.split("=")
        if value.startswith("/"):
            folder, file = value.rsplit("/", 1)
            assert folder == mount["mountPath"]
            files.append(file)
        else:
            flags.append(f"{name}={fleet.url}")
    # The comment creates a secret with these files.
    assert re.findall(r"--from-file (\S+)", text) == files
    starts(processes, command, *flags)


def test_the_configuration_of_a_broker_is_valid(tmp_path):
    guide = (REPOSITORY / "docs/fleet.md").read_text()
    configurations = re.findall(r"```text\n(# nats\.conf.*?)```", guide, re.S)
    assert len(configurations) == 1
    written = subprocess.run([HASHFINDER, "fleet", "nats-config", tmp_path, "one"], capture_output=True)
    assert written.returncode == 0
    for text in configurations:
        # The certificates are not there.
        text = re.sub(r"tls \{.*?\}\n", "", text)
        path = tmp_path / "nats.conf"
        path.write_text(text.replace("/var/lib/nats", str(tmp_path / "store")))
        done = subprocess.run(
            [Broker.program(), "-c", path, "-t"], capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
