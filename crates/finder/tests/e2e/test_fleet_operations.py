"""Operations of a fleet: saved at its broker, run by its leader, and served by every server."""

import asyncio
import subprocess
import threading
import time

import grpc
import nats
import pytest
from conftest import HASHFINDER, SIGKILL, SIGTERM, TIMEOUT_S
from fleet import Fleet
from test_fleet import rights
from test_operation_kills import MOST_BUDGET, Oracle
from test_operations import CODE, DOCTOR, ENDLESS, Client, unpacked
from test_v1_search import query
from test_v1_searches import reason_of

BUCKET = "hfops_default"


@pytest.fixture
def fleet(tmp_path, processes):
    return Fleet(tmp_path / "broker", processes)


@pytest.fixture
def clients(v1, fleet):
    """Two servers, the first of which leads, and a client of each."""
    servers = fleet.leader(fleet.server(), fleet.server())
    servers = [servers[0], *servers[1]]
    return servers, [Client(v1, server.address) for server in servers]


def rejected(call):
    """Returns the reason for which a call is rejected."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    return reason_of(error.value)


def progress_of(client, name):
    return unpacked(client.get(name).metadata, client.pb.SearchMetadata)


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def hashes(client, name):
    """Returns the number of hashes of an operation; 0 while its server cannot say."""
    try:
        return progress_of(client, name).hashes
    except grpc.RpcError as error:
        assert error.code() == CODE.UNAVAILABLE, error
        return 0


def change_bucket(fleet, change):
    """Changes the bucket of the operations as something else than a server does."""

    async def connect():
        connection = await nats.connect(fleet.url)
        try:
            await change(await connection.jetstream().key_value(BUCKET))
        finally:
            await connection.close()

    asyncio.run(connect())


def test_every_server_serves_every_operation(clients):
    _, (leader, other) = clients
    for starter, reader in [(leader, other), (other, leader)]:
        operation = starter.start(query=query(starter.pb, *ENDLESS), display_name="mine")
        name = operation.name
        # At once, and everywhere.
        assert progress_of(reader, name).display_name == "mine"
        wait_for(lambda: progress_of(reader, name).hashes > 0)
        assert name in reader.names()
        assert rejected(lambda: reader.delete(name)) == "OPERATION_RUNNING"
        reader.cancel(name)
        for client in (leader, other):
            operation = client.get(name)
            assert operation.done and operation.error.code == CODE.CANCELLED.value[0]
        reader.delete(name)
        for client in (leader, other):
            with pytest.raises(grpc.RpcError) as error:
                client.get(name)
            assert error.value.code() == CODE.NOT_FOUND


def test_agents_search_for_operations(clients, fleet):
    _, (leader, other) = clients
    agent = fleet.agent()
    name = other.begin("doctor", 0, 2)
    done = other.wait(name)
    result = unpacked(done.response, other.pb.SearchResult)
    assert result.found.index == DOCTOR
    assert agent.cpu_s() > 0.1
    found = [one.index for one in leader.candidates(name)]
    assert found == Oracle("doctor", 2).indices
    events = [one.event for one in other.watch(name)]
    watched = [one.candidate.index for one in events if one.WhichOneof("event") == "candidate"]
    assert watched == found


def test_a_request_starts_one_operation_at_whatever_servers(clients):
    _, both = clients
    wanted = {"query": query(both[0].pb, *ENDLESS), "request_id": "one"}
    names = []

    def start(client):
        names.append(client.start(**wanted).name)

    threads = [threading.Thread(target=start, args=(client,)) for client in both * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8 and len(set(names)) == 1
    leader, other = both
    wrong = lambda: other.start(**{**wanted, "maximum_hashes": 5})
    assert rejected(wrong) == "REQUEST_ID_REUSED"
    other.cancel(names[0])
    assert other.start(**wanted).name == names[0]
    leader.delete(names[0])
    for client in both:
        assert rejected(lambda: client.start(**wanted)) == "OPERATION_DELETED"


def test_limits_hold_for_all_servers_together(v1, fleet):
    limits = {
        "maximum-running-operations-per-client": 2,
        "maximum-saved-operations-per-client": 3,
    }
    servers = [fleet.server(limits=limits), fleet.server(limits=limits)]
    fleet.leader(*servers)
    first, second = [Client(v1, server.address) for server in servers]
    names = [first.begin(), second.begin()]
    for client in (first, second):
        assert rejected(lambda: client.begin()) == "TOO_MANY_OPERATIONS"
    first.cancel(names[1])
    names.append(second.begin())
    first.cancel(names[0])
    assert rejected(lambda: second.begin()) == "TOO_MANY_OPERATIONS"
    second.delete(names[0])
    first.begin()


@pytest.mark.parametrize("number", [SIGKILL, SIGTERM])
def test_operations_continue_at_the_next_leader(clients, fleet, number):
    (leading, other), (_, client) = clients
    fleet.agent()
    name = client.begin()
    before = wait_for(lambda: hashes(client, name))
    leading.send(number)
    leading.wait()
    fleet.leader(other)
    wait_for(lambda: hashes(client, name) > before)
    found = [one.index for one in client.candidates(name)]
    assert found == sorted(set(found))


def test_a_watcher_sees_each_candidate_once(clients, fleet):
    (leading, other), (first, client) = clients
    fleet.agent()
    budget = 20_000_000
    name = client.begin("hashfinder", 0, 5, maximum_hashes=budget)
    expected, _, _ = Oracle("hashfinder", 5).expect(budget)
    indices, ended = [], None
    for round in range(1000):
        watching = [first, client][round % 2 if leading.popen.poll() is None else 1]
        try:
            for response in watching.watch(name, from_index=indices[-1] + 1 if indices else 0):
                event = response.event
                if event.WhichOneof("event") == "candidate":
                    indices.append(event.candidate.index)
                    if len(indices) % 7 == 0:
                        break
                elif event.WhichOneof("event") == "ended":
                    ended = event.ended
        except grpc.RpcError as error:
            assert error.code() in (CODE.UNAVAILABLE, CODE.CANCELLED), error
            time.sleep(0.05)
        if len(indices) > 20 and leading.popen.poll() is None:
            leading.send(SIGKILL)
            leading.wait()
        if ended is not None:
            break
    assert indices == expected
    assert ended.frontier == budget


def test_operations_survive_a_restart_of_the_broker(clients, fleet):
    _, (leader, other) = clients
    fleet.agent()
    name = other.begin()
    before = wait_for(lambda: hashes(other, name))
    fleet.restart_broker()
    for client in (leader, other):
        wait_for(lambda: hashes(client, name) > before)
    other.cancel(name)
    assert leader.get(name).done


def test_without_a_broker_requests_fail_and_say_why(clients, fleet):
    _, (leader, other) = clients
    name = other.begin()
    fleet.broker.send(SIGKILL)
    fleet.broker.wait()
    for client in (leader, other):
        with pytest.raises(grpc.RpcError) as error:
            client.call["timeout"] = 30
            client.begin()
        assert error.value.code() == CODE.UNAVAILABLE
        assert "broker" in error.value.details() or "leader" in error.value.details()
    fleet.start_broker()
    wait_for(lambda: hashes(other, name))
    assert leader.begin() != name


def test_values_that_the_broker_loses_are_found_again(clients, fleet):
    _, (leader, other) = clients
    fleet.agent()
    name = other.begin()
    wait_for(lambda: len(other.candidates(name)) > 20)
    id = name.removeprefix("operations/")

    async def lose(bucket):
        await bucket.purge(f"state.{id}")
        await bucket.purge("progress")

    before = progress_of(leader, name)
    change_bucket(fleet, lose)
    # It begins anew, and finds the same.
    wait_for(lambda: hashes(other, name) > before.hashes)
    for client in (leader, other):
        frontier = progress_of(client, name).frontier
        found = [one.index for one in client.candidates(name) if one.index < frontier]
        below = [index for index in Oracle("hashfinder", 5).indices if index < frontier]
        assert found[: len(below)] == below


def test_an_old_value_is_searched_on_from(clients, fleet):
    _, (leader, other) = clients
    fleet.agent()
    name = other.begin()
    id = name.removeprefix("operations/")
    old = {}

    async def remember(bucket):
        old["value"] = (await bucket.get(f"state.{id}")).value

    async def restore(bucket):
        await bucket.put(f"state.{id}", old["value"])

    wait_for(lambda: len(other.candidates(name)) > 5)
    change_bucket(fleet, remember)
    known = len(leader.candidates(name))
    wait_for(lambda: len(other.candidates(name)) > known + 20)
    before = progress_of(leader, name)
    change_bucket(fleet, restore)
    wait_for(lambda: hashes(other, name) > before.hashes)
    other.cancel(name)
    # A fast machine comes further than the oracle.
    end = min(progress_of(other, name).frontier, MOST_BUDGET)
    expected = [index for index in Oracle("hashfinder", 5).indices if index < end]
    for client in (leader, other):
        assert [one.index for one in client.candidates(name) if one.index < end] == expected


def test_a_folder_and_a_fleet_cannot_both_save_operations(fleet, tmp_path):
    command = [HASHFINDER, "serve", "--check", "--fleet", fleet.url]
    command += ["--state", tmp_path / "state"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert "remove --state" in done.stderr


def test_saving_many_operations_takes_few_writes(v1, fleet):
    server = fleet.server(limits={"maximum-running-operations-per-client": 1000})
    fleet.leader(server)
    client = Client(v1, server.address)
    fleet.agent()
    names = [client.begin(f"hashfinder{number:03}", 0, 0) for number in range(60)]
    last = {}

    async def revision(bucket):
        last["revision"] = (await bucket.get("progress")).revision

    def revisions():
        change_bucket(fleet, revision)
        return last["revision"]

    # Nothing is found, and all of them are saved together, once a second.
    wait_for(lambda: all(hashes(client, name) > 0 for name in names))
    before, began = revisions(), time.monotonic()
    wait_for(lambda: revisions() >= before + 5)
    took = time.monotonic() - began
    assert revisions() - before <= 2 * took + 3


def test_agents_cannot_read_operations(v1, tmp_path, processes):
    users = {"servers": "serve", "agents": "search"}
    config = tmp_path / "nats.conf"
    each = [f'{{ user: "{user}", password: "{key}", {rights(user, user)} }}' for user, key in users.items()]
    config.write_text(f"authorization {{ users: [ {', '.join(each)} ] }}\n")
    fleet = Fleet(tmp_path / "broker", processes, config=config)
    flags = {}
    for user, key in users.items():
        path = tmp_path / user
        path.write_text(f"{user}:{key}\n")
        flags[user] = ["--fleet-credentials", str(path)]
    server = fleet.server(*flags["servers"])
    agent = fleet.agent(*flags["agents"])
    fleet.leader(server)
    client = Client(v1, server.address)
    name = client.begin()
    # With these rights, the agent searches for the operation.
    wait_for(lambda: hashes(client, name) > 0)
    agent.wait_until_busy()
    id = name.removeprefix("operations/")

    async def attempts():
        refused = []

        async def note(error):
            refused.append(str(error).lower())

        connection = await nats.connect(
            fleet.url, user="agents", password="search", error_cb=note, inbox_prefix="_INBOX.agent.agents"
        )
        received = []

        async def read(message):
            received.append(message)

        subjects = ["_INBOX.>", "_INBOX.server.>", "$KV.hfops_default.>", "hf.default.>"]
        for subject in subjects:
            await connection.subscribe(subject, cb=read)
        targets = [f"$KV.hfops_default.state.{id}", "hf.default.operation"]
        targets += ["$JS.API.STREAM.MSG.GET.KV_hfops_default", "hf.default.update.x"]
        for target in targets:
            await connection.publish(target, b"{}", reply="_INBOX.agent.agents.1")
        await connection.flush()
        deadline = time.monotonic() + TIMEOUT_S
        while len(refused) < len(subjects) + len(targets):
            assert time.monotonic() < deadline, refused
            await asyncio.sleep(0.05)
        await connection.close()
        assert all("permissions violation" in error for error in refused), refused
        assert not received

    asyncio.run(attempts())
    before = hashes(client, name)
    wait_for(lambda: hashes(client, name) > before)
