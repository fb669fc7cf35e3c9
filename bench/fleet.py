"""Measures a fleet on this machine: its rate beside one process, how soon a cancelled search frees
the agents, how many messages it costs, how soon another server leads, and how much is repeated.
Then the shares of clients, beside one with many operations, and what these cost.

Usage: fleet.py PROGRAM BROKER SECONDS CANCELS OPERATIONS. Prints lines `NAME: VALUE`. Everything runs on the
loopback.
"""

import asyncio
import atexit
import datetime
import json
import math
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

PROGRAM, BROKER = sys.argv[1:3]
SECONDS, CANCELS, OPERATIONS = float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
HARD = "hashfinderhashfinder"


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


class Process:
    """A process whose log is a file."""

    def __init__(self, log, *command, **kwargs):
        self.log = pathlib.Path(log)
        with open(log, "wb") as file:
            self.popen = subprocess.Popen(command, stdout=file, stderr=file, **kwargs)
        atexit.register(self.kill)

    def text(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, text, since=0):
        deadline = time.monotonic() + 60
        while text not in self.text()[since:]:
            if time.monotonic() > deadline or self.popen.poll() is not None:
                sys.exit(f"{self.log}: no {text!r}:\n{self.text()}")
            time.sleep(0.005)

    def kill(self):
        self.popen.kill()
        self.popen.wait()


class Fleet:
    def __init__(self, folder, servers=1, agents=2, brokers=1, flags=()):
        self.folder, self.processes = folder, []
        ports = [free_port() for _ in range(brokers)]
        routes = [free_port() for _ in range(brokers)]
        self.monitors = [free_port() for _ in range(brokers)]
        self.port = ports[0]
        self.url = "nats://" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self.brokers = []
        for port, route, monitor in zip(ports, routes, self.monitors):
            config = pathlib.Path(f"{folder}/nats-{port}.conf")
            text = f"server_name: b{port}\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\n"
            text += f'jetstream {{ store_dir: "{folder}/store{port}" }}\n'
            if brokers > 1:
                to = ", ".join(f"nats://127.0.0.1:{route}" for route in routes)
                text += f"cluster {{ name: c, listen: 127.0.0.1:{route}, routes: [{to}] }}\n"
            config.write_text(text)
            self.brokers.append(self.start("broker", BROKER, "-c", config))
        for broker in self.brokers:
            broker.wait_for("Server is ready")
        self.ports = [free_port() for _ in range(servers)]
        self.servers, self.metrics = [], [free_port() for _ in range(servers)]
        for port, metrics in zip(self.ports, self.metrics):
            at = ["--port", str(port), "--metrics-address", f"127.0.0.1:{metrics}"]
            at += ["--workers", "1", "--fleet", self.url, *flags]
            self.servers.append(self.start("server", PROGRAM, "serve", *at))
            self.servers[-1].wait_for("listening on")
        environment = {"HASHFINDER_LOG": "info,hashfinder_fleet_nats=debug"}
        self.agents = []
        for _ in range(agents):
            at = ["--threads", "1", "--fleet", self.url]
            self.agents.append(self.start("agent", PROGRAM, "agent", *at, env=environment))
        for agent in self.agents:
            agent.wait_for("following the leader")
        deadline = time.monotonic() + 60
        while any(
            self.metric("hashfinder_fleet_agents", server) < agents for server in range(servers)
        ):
            assert time.monotonic() < deadline, "the servers see no agents"
            time.sleep(0.1)

    def start(self, name, *command, **kwargs):
        log = f"{self.folder}/{name}-{len(self.processes)}-{self.port}.log"
        self.processes.append(Process(log, *command, **kwargs))
        return self.processes[-1]

    def messages(self):
        """Returns the number of messages from and to agents."""
        url = f"http://127.0.0.1:{self.monitors[0]}/connz"
        with urllib.request.urlopen(url) as page:
            connections = json.load(page)["connections"]
        agents = [one for one in connections if one.get("name", "").startswith("agent.")]
        assert len(agents) == len(self.agents)
        return sum(one["in_msgs"] + one["out_msgs"] for one in agents)

    def leader(self):
        """Returns the number of the server that leads."""
        leads = [self.metric("hashfinder_fleet_leads", number) for number in range(len(self.ports))]
        return leads.index(1)

    def key_broker(self):
        """Returns the broker that leads the stream with the leader's key."""
        stream = self.stream("KV_hf_default")
        ports = [int(port) for port in re.findall(r"127.0.0.1:(\d+)", self.url)]
        return self.brokers[ports.index(int(stream["cluster"]["leader"][1:]))]

    def writes(self):
        """Returns how often the operations' bucket was written."""
        return self.stream("KV_hfops_default")["state"]["last_seq"]

    def stream(self, name):
        """Returns what the broker says about a stream."""
        url = f"http://127.0.0.1:{self.monitors[0]}/jsz?streams=1"
        with urllib.request.urlopen(url) as page:
            (account,) = json.load(page)["account_details"]
        return next(one for one in account["stream_detail"] if one["name"] == name)

    def metric(self, name, server=0):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics[server]}/metrics") as page:
            text = page.read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])

    def tests(self):
        """Returns how many secrets were tested for searches of the first server."""
        return self.metric("hashfinder_tests_total") + self.metric("hashfinder_fleet_secrets_total")

    def end(self):
        for process in self.processes:
            process.kill()


def find(*arguments):
    return subprocess.Popen(
        [PROGRAM, "find", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def rate_alone(seconds=SECONDS):
    """Returns the hashes per second of a search on two threads that runs for some seconds."""
    searching = find(HARD, "--maximum-time", f"{seconds}s", "--threads", "2")
    text = searching.communicate()[1]
    return 1e6 * float(re.search(r"([\d.]+) million per second", text)[1])


def rate_of(fleet):
    """Returns the same for a fleet, by the metrics of its server: the client does not learn what
    was tried after the last message."""
    before = fleet.tests()
    at = f"127.0.0.1:{fleet.ports[0]}"
    find(HARD, "--maximum-time", f"{SECONDS}s", "--server", at).communicate()
    deadline = time.monotonic() + 60
    while fleet.metric("hashfinder_active_work"):
        assert time.monotonic() < deadline, "the search does not end"
        time.sleep(0.1)
    return (fleet.tests() - before) / SECONDS


def stamps(agent, text):
    """Returns when the agent logged a text."""
    lines = re.findall(rf"^(\S+)Z .*{text}", agent.text(), re.M)
    utc = datetime.timezone.utc
    return [datetime.datetime.fromisoformat(at).replace(tzinfo=utc).timestamp() for at in lines]


def first_stamp(agent, text, since):
    """Returns when the agent first logged a text from a moment on; None if not within a second."""
    deadline = time.time() + 1
    while time.time() < deadline:
        later = [at for at in stamps(agent, text) if at >= since]
        if later:
            return min(later)
        time.sleep(0.01)
    return None


def one_query(folder):
    fleet = Fleet(folder)
    # Both have two threads, and the server waits.
    alone = rate_alone()
    print(f"one query: {rate_of(fleet) / alone}")
    # The only search now is the one that follows.
    searching = find(HARD, "--server", f"127.0.0.1:{fleet.ports[0]}")
    time.sleep(3)
    before, began = fleet.messages(), time.monotonic()
    time.sleep(SECONDS)
    per_second = (fleet.messages() - before) / (time.monotonic() - began)
    searching.kill()
    searching.wait()
    print(f"messages: {per_second / 2}")
    fleet.end()


def many_queries(folder):
    names = [f"{HARD[:12]}{chr(97 + n // 8)}{chr(97 + n % 8)}" for n in range(64)]
    totals = {}
    for kind in ("alone", "fleet"):
        if kind == "alone":
            port, metrics = free_port(), free_port()
            at = ["--port", str(port), "--metrics-address", f"127.0.0.1:{metrics}"]
            server = Process(f"{folder}/alone.log", PROGRAM, "serve", *at, "--workers", "2")
            server.wait_for("listening on")
        else:
            fleet = Fleet(folder)
            port, metrics = fleet.ports[0], fleet.metrics[0]
        searches = [find(name, "--server", f"127.0.0.1:{port}") for name in names]
        time.sleep(15 if SECONDS > 10 else 3)

        def tests():
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as page:
                text = page.read().decode()
            found = re.findall(r"^hashfinder_(?:tests|fleet_secrets)_total (\S+)$", text, re.M)
            return sum(map(float, found))

        before, began = tests(), time.monotonic()
        time.sleep(SECONDS)
        totals[kind] = (tests() - before) / (time.monotonic() - began)
        for search in searches:
            search.kill()
            search.wait()
        server.kill() if kind == "alone" else fleet.end()
    print(f"64 queries: {totals['fleet'] / totals['alone']}")


async def idle_clients(port, count, ready, over):
    async def idle(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'CONNECT {"verbose":false}\r\nSUB idle.%d 1\r\nPING\r\n' % number)
        while (line := await reader.readline()) and not line.startswith(b"PONG"):
            pass
        return reader, writer

    clients = [await idle(number) for number in range(count)]
    ready.set()
    while not over.is_set():
        await asyncio.sleep(0.1)
    for _, writer in clients:
        writer.close()


def cancels(folder, count):
    fleet = Fleet(folder)
    ready, over = threading.Event(), threading.Event()
    clients = idle_clients(fleet.port, count, ready, over)
    thread = threading.Thread(target=asyncio.run, args=[clients], daemon=True)
    thread.start()
    ready.wait()
    waits = []
    while len(waits) < CANCELS:
        since = [len(agent.text()) for agent in fleet.agents]
        searching = find(HARD, "--server", f"127.0.0.1:{fleet.ports[0]}")
        for agent, at in zip(fleet.agents, since):
            agent.wait_for("trying a lease", at)
        time.sleep(0.3)
        # A killed client is gone at once; a signal would be handled first.
        cancelled = time.time()
        searching.kill()
        searching.wait()
        idle = [first_stamp(agent, "no lease is left", cancelled) for agent in fleet.agents]
        # An agent that had no lease at this moment says nothing.
        if None not in idle:
            waits.append(1e3 * (max(idle) - cancelled))
    over.set()
    thread.join()
    fleet.end()
    waits.sort()
    print(f"cancel p50 {count}: {statistics.median(waits)}")
    # By nearest rank.
    print(f"cancel p99 {count}: {waits[math.ceil(len(waits) * 0.99) - 1]}")


def cpu_s(process):
    """Returns the CPU seconds that a process has used."""
    fields = pathlib.Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def failover(folder, brokers):
    """Kills the leader during a search, and with it the broker that leads the stream of its key, if
    there are several."""
    fleet = Fleet(folder, servers=2, brokers=brokers)
    leader = fleet.leader()
    at = ["--server", f"127.0.0.1:{fleet.ports[1 - leader]}"]

    def agents_cpu_s(disturb):
        before = sum(map(cpu_s, fleet.agents))
        since = [len(agent.text()) for agent in fleet.agents]
        searching = find(HARD, "--maximum-hashes", budget, *at)
        for agent, begin in zip(fleet.agents, since):
            agent.wait_for("trying a lease", begin)
        disturb()
        searching.wait()
        return sum(map(cpu_s, fleet.agents)) - before

    first = []

    def kill():
        time.sleep(work / 4)
        since = [len(agent.text()) for agent in fleet.agents]
        killed = time.time()
        if brokers > 1:
            fleet.key_broker().popen.kill()
        fleet.servers[leader].popen.kill()
        for agent, begin in zip(fleet.agents, since):
            agent.wait_for("following the leader", begin)
            followed = begin + agent.text()[begin:].index("following the leader")
            agent.wait_for("trying a lease", followed)
            lines = agent.text()[followed:].splitlines()
            line = next(line for line in lines if "trying a lease" in line)
            utc = datetime.timezone.utc
            begun = datetime.datetime.fromisoformat(line.split("Z ")[0]).replace(tzinfo=utc)
            first.append(begun.timestamp() - killed)

    # Seconds of work for both agents.
    work = max(4, SECONDS / 4)
    budget = str(int(rate_alone(2) * work))
    undisturbed = agents_cpu_s(lambda: None)
    repeated = (agents_cpu_s(kill) - undisturbed) / len(fleet.agents)
    fleet.end()
    what = "" if brokers == 1 else ", with its stream's leader"
    print(f"first lease{what}: {max(first)}")
    print(f"repeated{what}: {max(0, repeated)}")


def shares(folder):
    """Nine clients with an operation each, beside one with many. None of them finds anything."""
    keys = pathlib.Path(folder) / "keys.toml"
    clients = []
    for number in range(10):
        command = [PROGRAM, "keys", "create", "--file", keys]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        clients.append(pathlib.Path(folder) / f"{number}.key")
        clients[-1].write_text(made.stdout.split()[-1] + "\n")
    config = pathlib.Path(folder) / "config.toml"
    limits = ["running", "saved"]
    lines = [f"maximum-{kind}-operations-per-client = {OPERATIONS + 9}" for kind in limits]
    config.write_text("\n".join(["[serve.limits]", "maximum-streams-per-second = 1000000", *lines]))
    places = ["--maximum-concurrent-rpcs", str(2 * OPERATIONS + 100)]
    fleet = Fleet(folder, flags=["--api-keys", keys, "--config", config, *places])
    at = ["--server", f"127.0.0.1:{fleet.ports[0]}", "--credential-file"]

    def start(client, number):
        # Each has other secrets, so that they share nothing.
        own = ["--secret-prefix", f"{number}.", "--detach", "--quiet"]
        subprocess.run([PROGRAM, "find", HARD, *own, *at, client], check=True, capture_output=True)

    def hashes():
        totals = []
        for client in clients:
            command = [PROGRAM, "operations", "list", "--json", *at, client]
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            totals.append(sum(json.loads(line)["hashes"] for line in listed.splitlines()))
        return totals

    for number in range(OPERATIONS):
        start(clients[0], number)
    time.sleep(5)
    before, written, began = cpu_s(fleet.servers[0]), fleet.writes(), time.monotonic()
    time.sleep(SECONDS)
    took = time.monotonic() - began
    print(f"leader cores: {(cpu_s(fleet.servers[0]) - before) / took}")
    print(f"writes: {(fleet.writes() - written) / took}")
    for number, client in enumerate(clients[1:]):
        start(client, OPERATIONS + number)
    time.sleep(5)
    before = hashes()
    time.sleep(SECONDS)
    spent = [after - first for after, first in zip(hashes(), before)]
    fleet.end()
    print(f"least share: {min(spent[1:]) * len(spent) / sum(spent)}")


with tempfile.TemporaryDirectory() as folder:
    one_query(folder)
    many_queries(folder)
    cancels(folder, 48)
    cancels(folder, 498)
    shares(folder)
    failover(folder, brokers=1)
    if SECONDS > 10:
        failover(folder, brokers=3)
