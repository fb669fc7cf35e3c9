"""Kills the agents, the servers and the broker of a fleet again and again. No answer is wrong."""

import os
import random
import threading
import time
from collections import Counter

import grpc
import pytest
from conftest import SIGKILL, SIGTERM, TIMEOUT_S, free_port
from fleet import Fleet
from test_operation_kills import Oracles

# `cargo xtask long fleet` sets a greater number.
KILLS = int(os.environ.get("FLEET_KILLS", 20))
SEED = int(os.environ.get("SEED", 20_261_201))

# Names, and the distance below which secrets are reported on the way. The first ones end with a
# match. All have fewer than a thousand candidates within the greatest budget.
NAMES = [("doctor", 2), ("tardis", 2), ("search", 2), ("oxygen", 2)]
NAMES += [("hashfinder", 5), ("bruteforce", 6)]

# With the slow kernel, from less than a server tries itself to some seconds of a fleet.
LEAST_BUDGET, MOST_BUDGET = 1_000_000, 30_000_000

# Calls at a time.
CALLERS = 4


class Caller:
    """Searches again and again, at one server or another, and checks every answer."""

    def __init__(self, harness, seed):
        self.harness, self.choice = harness, random.Random(seed)
        self.thread = threading.Thread(target=self.run)
        self.failure = None
        self.thread.start()

    def run(self):
        try:
            while not self.harness.is_over.is_set():
                self.search()
        except BaseException as failure:
            self.failure = failure
            self.harness.is_over.set()

    def search(self):
        harness, choice = self.harness, self.choice
        name, interesting = choice.choice(NAMES)
        budget = choice.randint(LEAST_BUDGET, MOST_BUDGET)
        patience = choice.choice([None, None, None, choice.uniform(0.2, 3)])
        pb = harness.v1.messages
        query = pb.Query(desired_names=[name], interesting_distance=interesting)
        request = pb.SearchRequest(query=query, maximum_hashes=budget)
        port = choice.choice(harness.ports)
        found, ended = [], None
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            try:
                stub = harness.v1.Stub(channel)
                for event in stub.Search(request, timeout=patience or TIMEOUT_S):
                    if event.WhichOneof("event") == "candidate":
                        found.append(event.candidate.index)
                    elif event.WhichOneof("event") == "ended":
                        ended = event.ended
            except grpc.RpcError as error:
                code = error.code()
        expected, how, frontier = harness.oracles[name, interesting].expect(budget)
        if ended is not None:
            reason = pb.EndReason.Name(ended.reason).removeprefix("END_REASON_").lower()
            if reason == "draining":
                # Its server was stopped, and the call took longer than the grace period.
                expected = [index for index in expected if index < ended.frontier]
                how, frontier = reason, ended.frontier
            assert (found, reason, ended.frontier) == (expected, how, frontier), name
            harness.counts["ended"] += 1
            return
        # Its server was killed, or its time was over. What it has reported is right all the same.
        assert found == expected[: len(found)], name
        if code == grpc.StatusCode.UNAVAILABLE:
            time.sleep(0.05)
        else:
            assert patience and code == grpc.StatusCode.DEADLINE_EXCEEDED, code
            harness.counts["cancelled"] += 1


class Harness:
    def __init__(self, v1, fleet):
        self.v1, self.fleet = v1, fleet
        self.choice = random.Random(SEED)
        self.oracles = Oracles()
        self.is_over = threading.Event()
        self.counts = Counter()
        self.agents_cpu_s = 0
        self.ports = [free_port(), free_port()]
        self.servers = [fleet.server(port=port) for port in self.ports]
        self.agents = [fleet.agent() for _ in range(3)]

    def kill(self):
        kind = self.choice.choice(["agent"] * 5 + ["server"] * 3 + ["broker"] * 2)
        number = SIGTERM if self.choice.random() < 0.2 else SIGKILL
        pause = self.choice.choice([0, 0, 0.5, 4])
        if kind == "broker":
            self.fleet.broker.send(SIGKILL)
            self.fleet.broker.wait()
            time.sleep(pause)
            self.fleet.start_broker()
        elif kind == "server":
            which = self.choice.randrange(len(self.servers))
            self.end(self.servers[which], number)
            time.sleep(pause)
            self.servers[which] = self.fleet.server(port=self.ports[which])
        else:
            which = self.choice.randrange(len(self.agents))
            self.agents_cpu_s += self.agents[which].cpu_s()
            self.end(self.agents[which], number)
            time.sleep(pause)
            self.agents[which] = self.fleet.agent()
        self.counts[kind] += 1

    def end(self, process, number):
        process.send(number)
        if number == SIGTERM and self.choice.random() < 0.5:
            # A second one ends a drain at once.
            time.sleep(0.5)
            process.send(SIGTERM)
        process.wait()


@pytest.mark.timeout(0)
def test_whatever_is_killed_the_answers_are_right(v1, tmp_path, processes):
    harness = Harness(v1, Fleet(tmp_path / "broker", processes))
    callers = [Caller(harness, SEED + number) for number in range(CALLERS)]
    try:
        for _ in range(KILLS):
            if harness.is_over.wait(harness.choice.uniform(0.5, 3)):
                break
            harness.kill()
    finally:
        # What was begun ends.
        harness.is_over.set()
        for caller in callers:
            caller.thread.join()
    failures = [caller.failure for caller in callers if caller.failure]
    assert not failures, failures
    counts = harness.counts
    assert counts["ended"] > 0
    # The agents have searched, not only the servers.
    assert harness.agents_cpu_s + sum(agent.cpu_s() for agent in harness.agents) > KILLS / 10
    print(
        f"fleet kills: {KILLS} ({counts['agent']} agents, {counts['server']} servers,"
        f" {counts['broker']} brokers); {counts['ended']} searches ended and"
        f" {counts['cancelled']} were cancelled, each like one thread's"
    )
