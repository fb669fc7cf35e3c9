"""Searches over several machines: real agents and servers around a real NATS broker."""

import base64
import json
import re
import shutil
import subprocess
import time

import grpc
import jsonschema
import pytest
from certificates import Authority
from conftest import HASHFINDER, HERE, SIGKILL, SIGTERM, TIMEOUT_S, Process, free_port, run_find
from cryptography.hazmat.primitives.asymmetric import ed25519
from fleet import TOO_OLD, Broker, Fleet

SCHEMA = HERE.parents[3] / "docs/fleet-status.schema.json"

# More secrets than a server tries with the slow kernel before it passes a search on.
BUDGET = 40_000_000


@pytest.fixture
def fleet(tmp_path, processes):
    return Fleet(tmp_path / "broker", processes)


def searched(server, *arguments):
    """Returns the lines that a search at a server prints, and how it ends."""
    return told(run_find("--server", server.address, "--json", *arguments))


def told(done):
    *found, end = map(json.loads, done.stdout.splitlines())
    return found, end["how"], end["hashes"]


def expected(*arguments):
    """Returns what a search in this process prints."""
    return told(run_find("--threads", "1", "--json", *arguments))


def status(fleet, *flags):
    command = [HASHFINDER, "fleet", "status", "--fleet", fleet.url, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)


def wait_until_ready(fleet, agents):
    """Waits until the fleet has a leader and this number of agents."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        done = status(fleet, "--json")
        if done.returncode == 0:
            listed = [one for one in json.loads(done.stdout)["agents"] if one["state"] != "silent"]
            if len(listed) == agents:
                return json.loads(done.stdout)
        assert time.monotonic() < deadline, done
        time.sleep(0.1)


def test_a_fleet_answers_like_one_process(fleet):
    servers = [fleet.server(), fleet.server()]
    agents = [fleet.agent(), fleet.agent()]
    wait_until_ready(fleet, 2)
    for server, arguments in zip(
        servers * 2,
        [
            ["doctorwho", "--maximum-hashes", str(BUDGET)],
            ["doctor", "--show-inferior", "2"],
            ["doctorwho", "hashfinder", "--show-inferior", "4", "--maximum-hashes", str(BUDGET)],
            ["decafbad", "--algorithm", "sha256", "--encoding", "hex", "--maximum-hashes", "5000000"],
        ],
    ):
        before = sum(agent.cpu_s() for agent in agents)
        assert searched(server, *arguments) == expected(*arguments), arguments
        assert sum(agent.cpu_s() for agent in agents) > before + 0.1


def test_a_cancelled_search_frees_the_agents(fleet, find):
    server = fleet.server()
    agents = [fleet.agent(), fleet.agent()]
    wait_until_ready(fleet, 2)
    for number in (2, 15, 9):
        searching = find("hashfinderhashfinder", "--server", server.address)
        for agent in agents:
            agent.wait_until_busy()
        searching.send(number)
        searching.wait()
        server.call_ended(work='"stopped"')
        for agent in agents:
            agent.assert_idle()


def test_a_deadline_frees_the_agents(fleet, finder, pb):
    server, agent = fleet.server(), fleet.agent()
    wait_until_ready(fleet, 1)
    request = pb.SearchRequest(query=pb.Query(desired_names=["hashfinderhashfinder"]))
    with pytest.raises(grpc.RpcError) as error:
        list(finder(server).Search(request, timeout=2))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.call_ended(work='"stopped"')
    agent.assert_idle()


def test_without_agents_a_server_searches_itself_until_some_come(fleet, find):
    server = fleet.server()
    arguments = ["doctorwho", "--maximum-hashes", str(BUDGET)]
    assert searched(server, *arguments) == expected(*arguments)
    searching = find("hashfinderhashfinder", "--server", server.address)
    server.wait_until_busy()
    agent = fleet.agent()
    agent.wait_until_busy()
    server.assert_idle()
    # Without agents again, the server continues the search.
    agent.send(SIGKILL)
    agent.wait()
    server.wait_until_busy()
    searching.send(SIGTERM)
    searching.wait()


def test_an_agent_hands_back_its_work_when_it_is_stopped(fleet, find):
    server, first = fleet.server(), fleet.agent()
    wait_until_ready(fleet, 1)
    # Long enough for the second agent to get leases on a fast machine, too.
    arguments = ["doctorwho", "--maximum-hashes", str(5 * BUDGET)]
    searching = find("--server", server.address, "--json", *arguments)
    first.wait_until_busy()
    second = fleet.agent()
    second.wait_until_busy()
    first.send(SIGTERM)
    assert first.wait() == 0
    first.wait_for("returning unfinished leases")
    # The fleet knows at once, not after the silence of an agent that was killed.
    listed = json.loads(status(fleet, "--json").stdout)["agents"]
    states = [agent["state"] for agent in listed if agent["state"] != "draining"]
    assert states in [["idle"], ["working"]]
    searching.wait()
    done = subprocess.CompletedProcess([], 0, searching.popen.stdout.read())
    assert told(done) == expected(*arguments)


def test_another_server_leads_when_the_leader_is_killed(fleet, find):
    agent = fleet.agent()
    leader, (other,) = fleet.leader(fleet.server(), fleet.server())
    wait_until_ready(fleet, 1)
    arguments = ["doctorwho", "--maximum-hashes", str(BUDGET)]
    searching = find("--server", other.address, "--json", *arguments)
    agent.wait_until_busy()
    leader.send(SIGKILL)
    other.wait_for("this server leads the fleet")
    searching.wait()
    done = subprocess.CompletedProcess([], 0, searching.popen.stdout.read())
    assert told(done) == expected(*arguments)


def test_a_leader_that_shuts_down_hands_over_at_once(fleet):
    leader, (other,) = fleet.leader(fleet.server(), fleet.server())
    leader.send(SIGTERM)
    leader.wait_for("resigned")
    other.wait_for("this server leads the fleet")
    assert leader.wait() == 0


def test_a_restart_of_the_broker_changes_no_answer(fleet, find):
    server, agent = fleet.server(), fleet.agent()
    wait_until_ready(fleet, 1)
    arguments = ["doctorwho", "--maximum-hashes", str(BUDGET)]
    searching = find("--server", server.address, "--json", *arguments)
    agent.wait_until_busy()
    fleet.restart_broker()
    searching.wait()
    done = subprocess.CompletedProcess([], 0, searching.popen.stdout.read())
    assert told(done) == expected(*arguments)
    wait_until_ready(fleet, 1)


def test_a_broker_that_forgets_everything_changes_no_answer(fleet, find):
    server, agent = fleet.server(), fleet.agent()
    wait_until_ready(fleet, 1)
    arguments = ["doctorwho", "--maximum-hashes", str(BUDGET)]
    searching = find("--server", server.address, "--json", *arguments)
    agent.wait_until_busy()
    fleet.broker.send(SIGKILL)
    fleet.broker.wait()
    shutil.rmtree(fleet.folder)
    fleet.start_broker()
    searching.wait()
    done = subprocess.CompletedProcess([], 0, searching.popen.stdout.read())
    assert told(done) == expected(*arguments)
    # A leader that cannot write its key deals leases for ten seconds at most.
    find("hashfinderhashfinder", "--server", server.address)
    before, deadline = agent.cpu_s(), time.monotonic() + TIMEOUT_S
    while agent.cpu_s() < before + 13:
        assert time.monotonic() < deadline, "the leader deals no leases"
        time.sleep(0.1)


def test_servers_and_agents_wait_for_their_broker(fleet):
    fleet.broker.send(SIGKILL)
    fleet.broker.wait()
    server = fleet.server()
    server.wait_for("cannot be reached")
    command = [HASHFINDER, "agent", "--fleet", fleet.url]
    agent = fleet.keep(Process(command))
    agent.wait_for("cannot be reached")
    arguments = ["doctorwho", "--maximum-hashes", "5000000"]
    assert searched(server, *arguments) == expected(*arguments)
    fleet.start_broker()
    agent.wait_for("ready agent=")
    wait_until_ready(fleet, 1)


@pytest.mark.parametrize("command", ["serve", "agent"])
def test_a_broker_that_is_too_old_is_rejected(command, tmp_path, processes):
    port = free_port()
    processes.append(Broker(tmp_path, port, TOO_OLD))
    url = f"nats://127.0.0.1:{port}"
    flags = ["--port", "0"] if command == "serve" else []
    done = subprocess.run(
        [HASHFINDER, command, "--fleet", url, *flags],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 5
    assert f"the broker {url} is NATS {TOO_OLD}; hashfinder needs 2.12.3 or later" in done.stderr


def test_a_broker_without_jetstream_is_rejected(tmp_path, processes):
    port = free_port()
    broker = Process([Broker.program(), "-a", "127.0.0.1", "-p", str(port)])
    processes.append(broker)
    broker.wait_for("Server is ready")
    done = subprocess.run(
        [HASHFINDER, "serve", "--port", "0", "--fleet", f"nats://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, "start it with -js" in done.stderr) == (5, True), done


def test_a_broker_with_small_messages_is_rejected(tmp_path, processes):
    port = free_port()
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 256KB\n")
    processes.append(Broker(tmp_path / "broker", port, config=config))
    done = subprocess.run(
        [HASHFINDER, "agent", "--fleet", f"nats://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, "set its max_payload to 1048576" in done.stderr) == (5, True), done


def test_the_status_of_a_fleet(fleet):
    done = status(fleet)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no server leads this fleet" in done.stderr
    fleet.server()
    fleet.agent()
    shown = wait_until_ready(fleet, 1)
    jsonschema.validate(shown, json.loads(SCHEMA.read_text()))
    (agent,) = shown["agents"]
    assert (agent["state"], agent["leases"], agent["false_reports"]) == ("idle", 0, 0)
    assert agent["hashes_per_second"] > 1e5
    columns = status(fleet).stdout.rstrip("\n").split("\t")
    assert columns[:2] == [agent["agent"], "idle"] and columns[6] == agent["version"]
    # A fleet of another name on the same broker has no leader.
    fleet.url += "/other"
    assert status(fleet).returncode == 1


def nkey():
    """Returns the public key and the seed of an NKey for a user."""

    def encoded(data):
        crc = 0
        for byte in data:
            crc ^= byte << 8
            for _ in range(8):
                crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
        return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")

    key = ed25519.Ed25519PrivateKey.generate()
    seed_kind, user_kind = 18 << 3, 20 << 3
    seed = bytes([seed_kind | user_kind >> 5, (user_kind & 31) << 3]) + key.private_bytes_raw()
    return encoded(bytes([user_kind]) + key.public_key().public_bytes_raw()), encoded(seed)


def rights(user, name=""):
    """Returns the rights of a user, as the table in docs/fleet.md has them."""
    text = (HERE.parents[3] / "docs/fleet.md").read_text()
    (row,) = re.findall(rf"^\| {user}.*hf\.POOL.*\|$", text, re.M)
    publish, subscribe = (re.findall("`([^`]*\\.[^`]*)`", cell) for cell in row.split("|")[2:4])
    rights = json.dumps({"publish": publish, "subscribe": subscribe}).replace("POOL", "default").replace("USER", name)
    return f'"permissions": {rights}'


def test_credentials_and_tls(tmp_path, processes):
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificate, private_key = ours.server().files
    public, seed = nkey()
    config = tmp_path / "nats.conf"
    config.write_text(
        f'tls {{ cert_file: "{certificate}", key_file: "{private_key}" }}\n'
        f'authorization {{ users: [ {{ user: "fleet", password: "let me in", {rights("servers")} }}, '
        f'{{ nkey: "{public}", {rights("agents", public)} }}, '
        f'{{ user: "operator", password: "let me see", {rights("operators")} }} ] }}\n'
    )
    fleet = Fleet(tmp_path / "broker", processes, config=config)
    fleet.url = fleet.url.replace("nats://", "tls://")
    files = (tmp_path / name for name in ("password", "key", "wrong", "operator"))
    password, key, wrong, operator = files
    password.write_text("fleet:let me in\n")
    key.write_text(seed + "\n")
    wrong.write_text("fleet:let me out\n")
    operator.write_text("operator:let me see\n")
    trust = ["--fleet-ca", ours.path]
    server = fleet.server("--fleet-credentials", str(password), *trust)
    agent = fleet.agent("--fleet-credentials", str(key), *trust)
    searching = ["doctorwho", "--maximum-hashes", str(BUDGET)]
    server.wait_for("this server leads the fleet")
    deadline = time.monotonic() + TIMEOUT_S
    while (done := status(fleet, "--fleet-credentials", str(operator), *trust)).stdout == "":
        assert time.monotonic() < deadline, done
        time.sleep(0.1)
    before = agent.cpu_s()
    assert searched(server, *searching) == expected(*searching)
    assert agent.cpu_s() > before + 0.1
    # Over an unencrypted connection to another machine, a password is not sent.
    fleet.url = fleet.url.replace("tls://127.0.0.1", "nats://192.0.2.1")
    done = status(fleet, "--fleet-credentials", str(password))
    assert (done.returncode, "would be sent unencrypted" in done.stderr) == (2, True), done
    fleet.url = fleet.url.replace("nats://192.0.2.1", "tls://127.0.0.1")
    for flags, code, message in [
        ([*trust], 5, "rejects a connection without credentials"),
        (["--fleet-credentials", str(wrong), *trust], 5, f"rejects the credentials in {wrong}"),
        (["--fleet-credentials", str(key), "--fleet-ca", theirs.path], 5, "no TLS connection"),
        (["--fleet-credentials", str(tmp_path / "none"), *trust], 2, "none"),
        (["--fleet-credentials", ours.path, *trust], 2, "expected a .creds file"),
        (["--fleet-credentials", str(key), "--fleet-ca", str(key)], 2, "expected certificates in PEM"),
    ]:
        done = status(fleet, *flags)
        assert (done.returncode, message in done.stderr) == (code, True), (flags, done)
    # Neither the credentials nor parts of them are in a log.
    for process in (server, agent):
        process.send(SIGKILL)
        text = "\n".join(process.log) + process.rest_of_stderr()
        assert "let me" not in text and seed not in text


@pytest.mark.parametrize(
    "url, message",
    [
        ("nats://me:secret@127.0.0.1", "credentials file"),
        ("http://127.0.0.1", "expected nats://HOST"),
        ("nats://127.0.0.1/a.b", "pool"),
    ],
)
def test_wrong_addresses_are_rejected(url, message):
    done = subprocess.run([HASHFINDER, "agent", "--fleet", url], capture_output=True, text=True)
    assert (done.returncode, message in done.stderr) == (2, True), done
