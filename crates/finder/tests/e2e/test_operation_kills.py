"""Kills a server again and again while it runs operations. Nothing that it acknowledged is lost."""

import json
import os
import random
import subprocess
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from conftest import HASHFINDER, SIGKILL, SIGTERM, TIMEOUT_S, Server, free_port, run_find
from google.longrunning import operations_pb2 as lro
from google.longrunning import operations_pb2_grpc as lro_grpc

# `cargo xtask long operations` sets greater numbers.
KILLS = int(os.environ.get("KILLS", 50))
# Time between the starts of operations that search the same secrets.
APART_S = float(os.environ.get("APART_S", 1))
SEED = 20_261_130

# Operations that run at a time. All search the same secrets, so they share scans.
RUNNING = 10

# Names with few or many candidates. The first ones end with a match.
NAMES = [("doctor", 2), ("tardis", 2), ("search", 2), ("hashes", 2), ("oxygen", 2), ("finder", 2)]
NAMES += [("hashfinder", 5), ("bruteforce", 6), ("searchable", 6)]

# Budgets from a fraction of a second to some seconds of searching.
LEAST_BUDGET, MOST_BUDGET = 2_000_000, 30_000_000

# A crash repeats at most this much searching.
MOST_REPEATED_S = 1.0

# Names of ten operations without an end, with some candidates at a distance below 4.
ENDLESS = ["hashfinder", "searchable", "bruteforce", "doctorsong", "lighthouse"]
ENDLESS += ["blacksmith", "watermelon", "strawberry", "typewriter", "background"]


def exported(state):
    """Returns the saved operations by their names. The server must not be running."""
    command = [HASHFINDER, "operations", "export", "--state", state]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    operations = map(json.loads, done.stdout.splitlines())
    return {operation["name"]: operation for operation in operations}


class Oracle:
    """What one thread finds that tries one secret after another, up to the greatest budget."""

    def __init__(self, name, interesting):
        arguments = [name, "--show-inferior", str(interesting), "--threads", "1", "--json"]
        done = run_find(*arguments, "--maximum-hashes", str(MOST_BUDGET))
        *found, end = map(json.loads, done.stdout.splitlines())
        index_of = lambda secret: sum(256**k for k in range(len(secret))) + int.from_bytes(secret)
        indices = [index_of(bytes.fromhex(one["hex"])) for one in found]
        self.ideal = indices[-1] if end["how"] == "found" else None
        self.indices = indices

    def expect(self, budget):
        """Returns the indices that an operation with this budget reports, and how it ends."""
        below = [index for index in self.indices if index < budget]
        if self.ideal is not None and self.ideal < budget:
            return below, "found", self.ideal + 1
        return below, "hash_budget_spent", budget


class Oracles(dict):
    """Oracles by name and distance, each made when it is first needed."""

    def __missing__(self, about):
        self[about] = Oracle(*about)
        return self[about]


class Watcher:
    """Watches an operation, and attaches again after each kill, with the next index."""

    def __init__(self, harness, name):
        self.harness, self.name = harness, name
        self.indices, self.ended, self.attached = [], None, 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        # Its own channel, which connects again after each kill.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
        with grpc.insecure_channel(f"127.0.0.1:{self.harness.port}", options) as channel:
            self.watch(self.harness.v1.Stub(channel))

    def watch(self, stub):
        while self.ended is None:
            after = self.indices[-1] + 1 if self.indices else 0
            pb = self.harness.pb
            request = pb.WatchOperationRequest(name=self.name, from_index=after)
            self.attached += 1
            try:
                for response in stub.WatchOperation(request):
                    event = response.event
                    if event.WhichOneof("event") == "candidate":
                        self.indices.append(event.candidate.index)
                    elif event.WhichOneof("event") == "ended":
                        self.ended = event.ended
            except grpc.RpcError as error:
                codes = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
                assert error.code() in codes, error
                time.sleep(0.02)


class Harness:
    def __init__(self, v1, state, choice):
        self.v1, self.pb, self.state, self.choice = v1, v1.messages, state, choice
        self.oracles = Oracles()
        # Operations that may be saved, and those of them that were acknowledged.
        self.budgets, self.names, self.cancelled = {}, {}, set()
        self.maybe_cancelled = set()
        # Operations that have ended and were checked, and those of them that were deleted.
        self.checked, self.deleted = set(), set()
        self.saved = {}
        self.watchers = {}
        self.kinds = Counter()
        self.lost_s, self.watched, self.attached = [], 0, 0
        self.port, self.metrics_port = free_port(), free_port()
        self.server = None
        self.threads = ThreadPoolExecutor()
        self.channel = None
        self.start_server()

    def start_server(self):
        at = f"127.0.0.1:{self.metrics_port}"
        flags = ["--state", self.state, "--metrics-address", at, "--workers", "2"]
        limits = {"maximum-saved-operations-per-client": 100_000}
        self.server = Server(*flags, port=self.port, limits=limits)
        self.channel = grpc.insecure_channel(
            self.server.address, [("grpc.use_local_subchannel_pool", 1)]
        )
        self.began = time.monotonic()

    def stub(self):
        return self.v1.Stub(self.channel)

    def operations(self):
        return lro_grpc.OperationsStub(self.channel)

    def metric(self, name):
        import urllib.request

        page = urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10)
        for line in page.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def start(self, name, interesting, budget):
        query = self.pb.Query(desired_names=[name], interesting_distance=interesting)
        request = self.pb.StartSearchRequest(
            query=query, maximum_hashes=budget, request_id=str(uuid.uuid4())
        )
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                operation = self.stub().StartSearch(request)
                break
            except grpc.RpcError as error:
                # It is being loaded. The request id makes the repetition safe.
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                assert time.monotonic() < deadline
                time.sleep(0.01)
        self.budgets[operation.name] = budget
        self.names[operation.name] = name, interesting
        return operation.name

    def start_any(self):
        budget = self.choice.randint(LEAST_BUDGET, MOST_BUDGET)
        name = self.start(*self.choice.choice(NAMES), budget)
        if self.choice.random() < 0.3:
            self.watchers[name] = Watcher(self, name)
            self.watched += 1

    def cancel(self, name):
        self.maybe_cancelled.add(name)
        try:
            self.operations().CancelOperation(lro.CancelOperationRequest(name=name))
            self.cancelled.add(name)
        except grpc.RpcError as error:
            # The server was killed before it answered, or had not loaded the operations yet.
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error

    def wait_for_progress(self):
        """Waits until every operation has made progress since the last kill, or has ended."""
        deadline = time.monotonic() + TIMEOUT_S
        for name in self.budgets.keys() - self.checked:
            before = self.saved[name]["hashes"] if name in self.saved else 0
            while True:
                assert time.monotonic() < deadline
                metadata = self.pb.SearchMetadata()
                try:
                    operation = self.operations().GetOperation(lro.GetOperationRequest(name=name))
                    operation.metadata.Unpack(metadata)
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                if metadata.hashes > before or metadata.end_reason:
                    break
                time.sleep(0.02)

    def kill(self):
        """Kills the server, perhaps while a cancellation is under way. Reads what was saved."""
        left = self.budgets.keys() - self.checked
        running = sorted(name for name in left if self.saved_end(name) is None)
        cancel = None
        if running and self.choice.random() < 0.2:
            cancelled = self.choice.choice(running)
            cancel = self.threads.submit(self.cancel, cancelled)
            time.sleep(self.choice.random() * 0.01)
        tests = self.metric("hashfinder_tests_total")
        vain = self.metric("hashfinder_tests_in_vain_total")
        ran_s = time.monotonic() - self.began
        self.server.send(SIGKILL)
        self.server.wait()
        if cancel:
            cancel.result(TIMEOUT_S)
        self.server.end()
        self.channel.close()
        before, self.saved = self.saved, exported(self.state)
        for name in self.budgets.keys() - self.checked:
            assert name in self.saved, f"{name} was acknowledged, and is lost"
        for name in self.cancelled - self.checked:
            # It may have ended in another way just before.
            assert self.saved_end(name), f"{name}: its cancellation was acknowledged, and is lost"
        for name in self.deleted:
            assert name not in self.saved, f"{name}: its deletion was acknowledged, and is lost"
        done = sum(
            one["hashes"] - (before[name]["hashes"] if name in before else 0)
            for name, one in self.saved.items()
        )
        if ran_s > 0.2 and tests > 0:
            self.lost_s.append((tests - vain - done) / (tests / ran_s))

    def tidy(self):
        """Checks the operations that have ended, and deletes them."""
        for name, one in self.saved.items():
            if name in self.deleted or not one["end_reason"]:
                continue
            if name not in self.checked:
                self.check(name, one)
                self.checked.add(name)
            try:
                self.operations().DeleteOperation(lro.DeleteOperationRequest(name=name))
                self.deleted.add(name)
            except grpc.RpcError as error:
                # It is being loaded. The next kill comes soon, so this one is deleted later.
                codes = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND
                assert error.code() in codes, error

    def saved_end(self, name):
        return self.saved.get(name, {}).get("end_reason")

    def check(self, name, one):
        """Compares an operation that has ended with the oracle."""
        about = self.names[name]
        expected, end, hashes = self.oracles[about].expect(self.budgets[name])
        indices = [candidate["index"] for candidate in one["candidates"]]
        if one["end_reason"] == "cancelled_by_client":
            assert name in self.maybe_cancelled
            assert indices == [index for index in expected if index < one["frontier"]]
        else:
            assert (one["end_reason"], one["hashes"]) == (end, hashes), one["name"]
            assert indices == expected
        self.kinds[one["end_reason"]] += 1
        if watcher := self.watchers.pop(name, None):
            # Each event once, although the watcher attached again and again.
            watcher.thread.join(TIMEOUT_S)
            assert watcher.ended is not None and watcher.indices == indices, name
            self.attached += watcher.attached


@pytest.fixture
def harness(v1, tmp_path):
    started = Harness(v1, str(tmp_path / "state"), random.Random(SEED))
    yield started
    started.server.popen.kill()


def repeated(harness):
    """Returns how much searching the kills have repeated, as a text, and checks that it was little."""
    lost = sorted(harness.lost_s)
    assert lost[-1] <= MOST_REPEATED_S, lost
    return f"searching repeated by a kill: median {lost[len(lost) // 2]:.2f} s, at most {lost[-1]:.2f} s"


def test_an_operation_survives_every_kill_of_its_server(harness):
    choice = harness.choice
    for number in range(KILLS):
        running = sum(harness.saved_end(name) is None for name in harness.budgets.keys() - harness.checked)
        # At first one operation alone, then many that start late.
        wanted = 1 if number < KILLS // 10 else RUNNING
        for _ in range(max(0, wanted - running)):
            harness.start_any()
        harness.tidy()
        if number % 3 == 0:
            # Three crashes in a row before any progress is saved would end an operation.
            harness.wait_for_progress()
        time.sleep(choice.choice([0.02, 0.3, 0.8, 1.3]) * (0.5 + choice.random()))
        harness.kill()
        harness.start_server()
    # Now they end.
    deadline = time.monotonic() + 20 * TIMEOUT_S
    for name in harness.budgets.keys() - harness.checked:
        while True:
            assert time.monotonic() < deadline
            try:
                wait = lro.WaitOperationRequest(name=name)
                if harness.operations().WaitOperation(wait).done:
                    break
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                time.sleep(0.05)
    harness.kill()
    harness.start_server()
    while harness.deleted != harness.budgets.keys():
        assert time.monotonic() < deadline
        harness.tidy()
    assert not harness.watchers
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in harness.kinds.items())
    print(
        f"kills: {KILLS:,} kills, {len(harness.budgets):,} operations ({kinds}), "
        f"{harness.watched:,} watchers attached {harness.attached:,} times; {repeated(harness)}"
    )
    assert harness.kinds["found"] > 0 and harness.kinds["hash_budget_spent"] > 0
    assert len(harness.lost_s) > KILLS / 2


def test_a_kill_repeats_little_of_operations_that_began_one_after_another(harness):
    for name in ENDLESS:
        # All search the same secrets, and each finds the scan of the others further ahead.
        harness.start(name, 4, 10**15)
        time.sleep(APART_S)
        harness.kill()
        harness.start_server()
    print(f"apart: {len(ENDLESS)} operations, begun {APART_S:g} s apart: {repeated(harness)}")
    assert len(harness.lost_s) == len(ENDLESS)
