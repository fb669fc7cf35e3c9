"""Measures calls beside many running operations, and beside as many ordinary searches.

usage: operations.py PROGRAM COUNT CALLS

Starts PROGRAM as a server twice: with COUNT operations of ten clients that are saved in a folder,
and without a folder, with COUNT searches of ten clients. Both have the same names, so the searching
costs the same. Then another client makes CALLS calls.

Prints lines of `NAME: VALUE`.
"""

import pathlib
import random
import re
import string
import subprocess
import sys
import tempfile
import time
import urllib.request

import grpc

PROGRAM, COUNT, CALLS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
CLIENTS = 10
# Time over which commits are counted.
SECONDS = 10
STOPS = CALLS // 20
LIMITS = """[serve.limits]
maximum-streams-per-second = 1000000
maximum-calls-per-second-per-address = 1000000
maximum-open-calls-per-address = 10000
"""


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def start_request(name):
    """Encodes a SearchRequest or a StartSearchRequest, in protobuf: the query is field 1."""
    return field(1, field(1, name.encode()))


def unchanged(message):
    return message


class Server:
    def __init__(self, folder, *flags):
        keys = folder / "keys.toml"
        self.keys = []
        for _ in range(CLIENTS + 1):
            command = [PROGRAM, "keys", "create", "--file", str(keys)]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
            self.keys.append(made.stdout.split()[-1])
        config = folder / "config.toml"
        config.write_text(LIMITS)
        command = [PROGRAM, "serve", "--port", "0", "--api-keys", str(keys), "--config", str(config)]
        command += ["--metrics-address", "127.0.0.1:0", "--log-format", "json", *flags]
        command += ["--maximum-concurrent-rpcs", str(2 * COUNT + 100)]
        log = open(folder / "log", "w+")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.address = self.process.stdout.readline().split()[-1]
        # The log may be written a moment later.
        deadline = time.monotonic() + 60
        metrics = None
        while metrics is None:
            assert time.monotonic() < deadline, "the server serves no metrics"
            lines = (folder / "log").read_text().splitlines()
            lines = [line for line in lines if "serving metrics" in line]
            metrics = lines and re.search(r'"address":"(127\.0\.0\.1:\d+)"', lines[0]) or None
        self.metrics = metrics[1]
        self.channels = [
            grpc.insecure_channel(self.address, [("bench.connection", n)]) for n in range(CLIENTS + 1)
        ]

    def bearer(self, client):
        return [("authorization", f"Bearer {self.keys[client]}")]

    def metric(self, name):
        page = urllib.request.urlopen(f"http://{self.metrics}/metrics").read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def end(self):
        for channel in self.channels:
            channel.close()
        self.process.kill()
        self.process.wait()


def measure(kind, server):
    message = server.metrics and pathlib.Path(tempfile.mkstemp()[1])
    message.write_bytes(bytes([0, 0, 0, 0, 4, 0x0A, 2]) + b"aa")
    times = pathlib.Path(tempfile.mkstemp()[1])
    command = ["h2load", "-c", "4", "-m", "4", "-n", str(CALLS), "-d", str(message)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command += ["-H", f"authorization: Bearer {server.keys[CLIENTS]}", f"--log-file={times}"]
    command += [f"http://{server.address}/hash_name.HashFinder/Find"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f" {CALLS} succeeded" in done.stdout, done.stdout
    rate = float(re.search(r"finished in \S+ ([\d.]+) req/s", done.stdout)[1])
    took = sorted(int(line.split()[2]) for line in times.read_text().splitlines())
    print(f"{kind} Find: {rate}")
    print(f"{kind} p99: {took[len(took) * 99 // 100] / 1000}")
    # Each search is cancelled after its first event.
    search = server.channels[CLIENTS].unary_stream(
        "/hashfinder.v1.Finder/Search", unchanged, unchanged
    )
    names = ["hashfinder_stop_seconds_sum", "hashfinder_stop_seconds_count"]
    before = [server.metric(name) for name in names]
    for number in range(STOPS):
        call = search(start_request("hashfinderfinder"), metadata=server.bearer(CLIENTS))
        next(call)
        call.cancel()
    while server.metric(names[1]) < before[1] + STOPS:
        time.sleep(0.01)
    after = [server.metric(name) for name in names]
    print(f"{kind} stop: {1000 * (after[0] - before[0]) / (after[1] - before[1])}")
    message.unlink()
    times.unlink()


def hard_names():
    choice = random.Random(COUNT)
    return ["".join(choice.choices(string.ascii_lowercase, k=12)) for _ in range(COUNT)]


def with_operations(folder):
    server = Server(folder, "--state", str(folder / "state"))
    method = "/hashfinder.v1.Finder/StartSearch"
    for number, name in enumerate(hard_names()):
        client = number % CLIENTS
        start = server.channels[client].unary_unary(method, unchanged, unchanged)
        while True:
            try:
                start(start_request(name), metadata=server.bearer(client))
                break
            except grpc.RpcError as error:
                # They are being loaded.
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                time.sleep(0.05)
    running = 'hashfinder_operations{state="running"}'
    while server.metric(running) < COUNT:
        time.sleep(0.05)
    commits = "hashfinder_operations_commit_seconds_count"
    spent = "hashfinder_operations_commit_seconds_sum"
    before, took, began = server.metric(commits), server.metric(spent), time.monotonic()
    time.sleep(SECONDS)
    count = server.metric(commits) - before
    print(f"commits a second: {count / (time.monotonic() - began)}")
    print(f"commit ms: {1000 * (server.metric(spent) - took) / count}")
    measure("operations", server)
    assert server.metric(running) == COUNT
    server.end()


def with_searches(folder):
    server = Server(folder)
    calls = []
    for number, name in enumerate(hard_names()):
        client = number % CLIENTS
        search = server.channels[client].unary_stream(
            "/hashfinder.v1.Finder/Search", unchanged, unchanged
        )
        # Field 4: progress once a minute.
        request = start_request(name) + field(4, b"\x08" + varint(60))
        call = search(request, metadata=server.bearer(client))
        next(call)
        calls.append(call)
    time.sleep(SECONDS)
    measure("searches", server)
    server.end()


for run in [with_operations, with_searches]:
    with tempfile.TemporaryDirectory() as folder:
        run(pathlib.Path(folder))
