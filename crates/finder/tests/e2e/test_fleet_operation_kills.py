"""Kills the processes of a fleet again and again while it runs operations, and makes its broker lose
values. Nothing that was acknowledged is lost, and each event is seen once."""

import asyncio
import os
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import nats
import pytest
from conftest import SIGTERM, TIMEOUT_S
from fleet import Fleet
from test_fleet_kills import Caller
from test_fleet_kills import Harness as FleetHarness
from test_fleet_operations import BUCKET
from test_operation_kills import LEAST_BUDGET, MOST_BUDGET, NAMES
from test_operations import CODE, Client, unpacked

# `cargo xtask long fleet operations` sets greater numbers.
KILLS = int(os.environ.get("FLEET_OPERATION_KILLS", 8))
LOSSES = int(os.environ.get("FLEET_OPERATION_LOSSES", 8))
SEED = int(os.environ.get("SEED", 20_261_201))

# Operations that run at a time.
RUNNING = 6

# What a call of a client may fail with while processes are killed.
AWAY = (CODE.UNAVAILABLE, CODE.CANCELLED)


class Watcher:
    """Watches an operation, at one server after another, with the next index each time."""

    def __init__(self, harness, name, seed):
        self.harness, self.name, self.choice = harness, name, random.Random(seed)
        self.indices, self.ended, self.attached = [], None, 0
        self.failure = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            while self.ended is None:
                self.watch(self.choice.choice(self.harness.clients))
        except BaseException as failure:
            self.failure = failure

    def watch(self, client):
        self.attached += 1
        patience = self.choice.uniform(0.2, 4)
        after = self.indices[-1] + 1 if self.indices else 0
        request = client.pb.WatchOperationRequest(name=self.name, from_index=after)
        try:
            for response in client.finder.WatchOperation(request, timeout=patience):
                event = response.event
                if event.WhichOneof("event") == "candidate":
                    self.indices.append(event.candidate.index)
                elif event.WhichOneof("event") == "ended":
                    self.ended = event.ended
        except grpc.RpcError as error:
            assert error.code() in (*AWAY, CODE.DEADLINE_EXCEEDED), error
            time.sleep(0.05)


class Harness(FleetHarness):
    def __init__(self, v1, fleet):
        super().__init__(v1, fleet)
        self.clients = [Client(v1, f"127.0.0.1:{port}") for port in self.ports]
        # What each operation searches for, and its budget.
        self.wanted, self.cancelled, self.maybe_cancelled = {}, set(), set()
        self.watchers, self.watched = {}, 0
        self.ended, self.deleted = set(), set()
        self.threads = ThreadPoolExecutor()
        self.fleet.leader(*self.servers)

    def insist(self, call):
        """Calls one server or another until one answers."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return call(self.choice.choice(self.clients))
            except grpc.RpcError as error:
                if error.code() not in AWAY:
                    raise
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def start(self):
        name, interesting = self.choice.choice(NAMES)
        budget = self.choice.randint(LEAST_BUDGET, MOST_BUDGET)
        pb = self.v1.messages
        wanted = {
            "query": pb.Query(desired_names=[name], interesting_distance=interesting),
            "maximum_hashes": budget,
            "request_id": str(uuid.uuid4()),
        }
        starting = [lambda client: client.start(**wanted).name]
        if self.choice.random() < 0.3:
            # The same request at two servers at a time.
            starting *= 2
        names = list(self.threads.map(self.insist, starting))
        assert len(set(names)) == 1, names
        self.wanted[names[0]] = (name, interesting), budget
        if self.choice.random() < 0.4:
            self.watchers[names[0]] = Watcher(self, names[0], self.choice.random())
            self.watched += 1

    def cancel(self, name):
        self.maybe_cancelled.add(name)
        try:
            self.choice.choice(self.clients).cancel(name)
            self.cancelled.add(name)
        except grpc.RpcError as error:
            assert error.code() in AWAY, error

    def delete(self, name):
        """Deletes an operation. If the first answer was lost, a later one says that it is gone."""
        attempts = []

        def attempt(client):
            attempts.append(client)
            try:
                client.delete(name)
            except grpc.RpcError as error:
                if error.code() != CODE.NOT_FOUND or len(attempts) == 1:
                    raise

        self.insist(attempt)

    def left(self):
        return sorted(self.wanted.keys() - self.ended)

    def keep_running(self):
        """Starts operations, and checks those that have ended."""
        for name in self.left():
            # What was acknowledged is there, at every server.
            operation = self.insist(lambda client: client.get(name))
            if operation.done:
                self.check(name, operation)
        while len(self.left()) < RUNNING:
            self.start()

    def wait_for_an_end(self):
        """Waits until another operation has ended: however slow the machine is, losses that follow
        one another set none back for ever."""
        deadline, before = time.monotonic() + TIMEOUT_S, len(self.ended)
        while len(self.ended) == before:
            assert time.monotonic() < deadline, self.left()
            time.sleep(0.1)
            self.keep_running()

    def check(self, name, operation):
        """Compares an operation that has ended with the oracle."""
        about, budget = self.wanted[name]
        expected, end, hashes = self.oracles[about].expect(budget)
        metadata = unpacked(operation.metadata, self.v1.messages.SearchMetadata)
        reason = self.v1.messages.EndReason.Name(metadata.end_reason)
        reason = reason.removeprefix("END_REASON_").lower()
        found = self.insist(lambda client: client.candidates(name))
        indices = [one.index for one in found]
        if reason == "cancelled_by_client":
            assert name in self.maybe_cancelled
            assert indices == [index for index in expected if index < metadata.frontier]
        else:
            assert (reason, metadata.hashes) == (end, hashes), name
            assert indices == expected, name
        if watcher := self.watchers.pop(name, None):
            # Each event once, at whatever servers.
            watcher.thread.join(TIMEOUT_S)
            assert watcher.failure is None, watcher.failure
            assert watcher.indices == indices, name
            self.counts["attached"] += watcher.attached
        self.counts[reason] += 1
        self.ended.add(name)

    def finish(self):
        deadline = time.monotonic() + 10 * TIMEOUT_S
        while left := self.left():
            assert time.monotonic() < deadline, left
            for name in left:
                operation = self.insist(lambda client: client.wait(name))
                assert operation.done
                self.check(name, operation)
        for name in sorted(self.cancelled - self.deleted):
            assert self.insist(lambda client: client.get(name)).done
        for name in sorted(self.ended - self.deleted):
            self.insist(lambda client: client.delete(name))
            self.deleted.add(name)
        for name in sorted(self.deleted):
            with pytest.raises(grpc.RpcError) as error:
                self.insist(lambda client: client.get(name))
            assert error.value.code() == CODE.NOT_FOUND
        assert not self.watchers

    def summary(self):
        counts = self.counts
        ends = "found", "hash_budget_spent", "cancelled_by_client"
        ends = ", ".join(f"{counts[end]:,} {end}" for end in ends)
        return (
            f"{len(self.wanted):,} operations ({ends}), {self.watched:,} watchers attached"
            f" {counts['attached']:,} times"
        )


@pytest.fixture
def harness(v1, tmp_path, processes):
    return Harness(v1, Fleet(tmp_path / "broker", processes))


@pytest.mark.timeout(0)
def test_operations_survive_every_kill_of_a_fleets_processes(harness):
    choice = harness.choice
    for _ in range(KILLS):
        harness.keep_running()
        time.sleep(choice.uniform(0.1, 2))
        cancelling = None
        if choice.random() < 0.3:
            cancelling = harness.threads.submit(harness.cancel, choice.choice(harness.left()))
            time.sleep(choice.random() * 0.01)
        harness.kill()
        if cancelling:
            cancelling.result(TIMEOUT_S)
        for name in sorted(harness.ended - harness.deleted)[:2]:
            harness.delete(name)
            harness.deleted.add(name)
    harness.finish()
    counts = harness.counts
    assert counts["found"] + counts["hash_budget_spent"] > 0
    print(
        f"fleet operation kills: {KILLS} ({counts['agent']} agents, {counts['server']} servers,"
        f" {counts['broker']} brokers); {harness.summary()}"
    )


@pytest.mark.timeout(0)
def test_an_upgrade_of_one_machine_after_another_loses_nothing(harness):
    """Stops and starts each server and each agent, with operations, watchers and calls under way."""
    callers = [Caller(harness, SEED + number) for number in range(2)]
    try:
        for kind, number in [("server", 0), ("server", 1), ("agent", 0), ("agent", 1), ("agent", 2)]:
            harness.keep_running()
            machines = getattr(harness, kind + "s")
            machines[number].send(SIGTERM)
            machines[number].wait()
            if kind == "server":
                machines[number] = harness.fleet.server(port=harness.ports[number])
            else:
                machines[number] = harness.fleet.agent()
    finally:
        harness.is_over.set()
        for caller in callers:
            caller.thread.join()
    failures = [caller.failure for caller in callers if caller.failure]
    assert not failures, failures
    assert not harness.maybe_cancelled
    harness.finish()


class Losses:
    """Removes values of the bucket, and sets others back, like a broker that has lost data."""

    def __init__(self, harness):
        self.harness, self.choice, self.old = harness, harness.choice, {}

    async def run(self):
        connection = await nats.connect(self.harness.fleet.url)
        try:
            bucket = await connection.jetstream().key_value(BUCKET)
            ids = [name.removeprefix("operations/") for name in self.harness.left()]
            for key in ["progress", *(f"state.{id}" for id in ids)]:
                try:
                    value = (await bucket.get(key)).value
                except nats.js.errors.KeyNotFoundError:
                    continue
                self.old.setdefault(key, []).append(value)
                what = self.choice.random()
                if what < 0.25:
                    await bucket.purge(key)
                elif what < 0.5:
                    await bucket.put(key, self.choice.choice(self.old[key]))
        finally:
            await connection.close()


@pytest.mark.timeout(0)
def test_what_the_broker_loses_is_searched_again(harness):
    losses = Losses(harness)
    for _ in range(LOSSES):
        harness.keep_running()
        time.sleep(harness.choice.uniform(0, 2))
        asyncio.run(losses.run())
        harness.wait_for_an_end()
    harness.finish()
    print(f"fleet operation losses: {LOSSES}; {harness.summary()}")
