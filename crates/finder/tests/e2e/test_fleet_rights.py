"""Users of a broker with the rights of `fleet nats-config`, agents that lie, and what operators do."""

import asyncio
import json
import re
import stat
import subprocess
import sys
import time

import nats
import pytest
from conftest import HASHFINDER, HERE, SIGKILL, SIGTERM, TIMEOUT_S, run_find
from fleet import Fleet
from test_operations import Client

PROTOS = HERE.parents[3] / "proto"
BUDGET = 40_000_000
# Hashes per second that an agent which tries nothing claims to do.
CLAIMED_RATE = 20_000_000


def run(*command, **kwargs):
    done = subprocess.run(
        [HASHFINDER, *map(str, command)], capture_output=True, text=True, timeout=TIMEOUT_S, **kwargs
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="session")
def messages(tmp_path_factory):
    """The messages of a fleet."""
    out = tmp_path_factory.mktemp("fleet-proto")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={out}"]
    subprocess.run([*command, "hashfinder/fleet/v1/fleet.proto"], check=True)
    code = (out / "hashfinder/fleet/v1/fleet_pb2.py").read_text()
    (out / "fleet_pb2.py").write_text(code)
    sys.path.insert(0, str(out))
    import fleet_pb2

    return fleet_pb2


class Configured(Fleet):
    """A fleet whose broker has the configuration that `fleet nats-config` writes."""

    def __init__(self, folder, processes, *agents):
        self.config = folder / "config"
        code, _, told = run("fleet", "nats-config", self.config, *agents)
        assert code == 0 and "nats-server -c" in told, told
        # The tests choose the folder of the broker.
        broker = self.config / "nats.conf"
        broker.write_text(re.sub('store_dir: "[^"]*", ', "", broker.read_text()))
        super().__init__(folder / "broker", processes, config=self.config / "nats.conf")

    def flags(self, user):
        return ["--fleet-credentials", str(self.config / f"{user}.txt")]

    def operate(self, *command):
        return run("fleet", *command, "--fleet", self.url, *self.flags("operator"))

    def agents(self):
        """Returns the lines of `fleet agents`: names, states, false reports, reasons."""
        code, lines, why = self.operate("agents")
        return [line.split("\t") for line in lines.splitlines()] if code == 0 else why

    def wait_for_agents(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not (isinstance(rows := self.agents(), list) and condition(rows)):
            assert time.monotonic() < deadline, rows
            time.sleep(0.1)
        return rows

    def seed(self, user):
        return (self.config / f"{user}.txt").read_text().strip().split(":")[1].encode()


@pytest.fixture
def fleet(tmp_path, processes):
    return Configured(tmp_path, processes, "one", "two")


def connect(fleet, user, inbox):
    """Connects as a user of the broker. Errors are collected, as texts."""
    refused = []

    async def note(error):
        refused.append(str(error).lower())

    connecting = nats.connect(
        fleet.url, nkeys_seed_str=fleet.seed(user).decode(), error_cb=note, inbox_prefix=inbox
    )
    return connecting, refused


def test_an_agent_can_neither_read_what_others_get_nor_speak_for_them(fleet):
    server = fleet.server(*fleet.flags("server"))
    one = fleet.agent(*fleet.flags("agents/one"))
    fleet.agent(*fleet.flags("agents/two"))
    rows = fleet.wait_for_agents(lambda rows: len(rows) == 2)
    assert [row[0].split(".")[0] for row in rows] == ["one", "two"]
    (victim,) = (row[0] for row in rows if row[0].startswith("two."))
    code, shown, _ = fleet.operate("status", "--json")
    term = json.loads(shown)["term"]
    find = ["--server", server.address, "hashfinderhash", "--maximum-hashes", str(BUDGET), "--json"]

    async def attempts():
        connecting, refused = connect(fleet, "agents/one", "_INBOX.agent.one")
        connection = await connecting
        received = []

        async def read(message):
            received.append(message.subject)

        subjects = ["hf.default.>", f"hf.default.notice.{victim}", "hf.default.notice.>"]
        subjects += ["hf.default.*.work.>", "hf.default.update.>", "hf.default.beat"]
        subjects += ["_INBOX.>", "_INBOX.agent.>", "_INBOX.agent.two.>", "$KV.hf_default.>"]
        for subject in subjects:
            await connection.subscribe(subject, cb=read)
        targets = [f"hf.default.{term}-0.work.{victim}", f"hf.default.notice.{victim}"]
        targets += ["hf.default.term", "hf.default.beat", "hf.default.any.status"]
        targets += ["hf.default.any.manage", f"hf.default.{term}-0.renew", f"hf.default.{term}-0.end"]
        targets += ["$KV.hf_default.leader", "$KV.hf_default.bans", "$JS.API.STREAM.LIST"]
        targets += ["$JS.API.STREAM.DELETE.KV_hf_default", "_INBOX.agent.two.x", "hf.default.update.x"]
        for target in targets:
            await connection.publish(target, b"", reply="_INBOX.agent.one.1")
        await connection.flush()
        deadline = time.monotonic() + TIMEOUT_S
        while len(refused) < len(subjects) + len(targets):
            assert time.monotonic() < deadline, refused
            await asyncio.sleep(0.05)
        # While others search, it still hears nothing.
        searching = await asyncio.create_subprocess_exec(
            HASHFINDER, "find", *find, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await searching.communicate()
        await connection.close()
        assert all("permissions violation" in error for error in refused), refused
        assert not received
        return json.loads(out.splitlines()[-1])

    end = asyncio.run(attempts())
    assert end["hashes"] == BUDGET, end
    assert one.cpu_s() > 0.1


def test_a_reply_goes_only_to_the_agent_itself(fleet, messages):
    """The leader may write everywhere: it must not send its replies where an agent says."""
    server = fleet.server(*fleet.flags("server"))
    fleet.leader(server)
    fleet.wait_for_agents(lambda rows: rows == [])

    async def attempt():
        connecting, _ = connect(fleet, "agents/one", "_INBOX.agent.one")
        connection = await connecting
        asked = await connection.request("hf.default.any.leader", b"", timeout=TIMEOUT_S)
        term = messages.Beat.FromString(asked.data).term
        work = messages.Work(protocol=2, agent="one.x.1", sequence=1, rate=1e6, features=["cursor-4"])
        work.term.CopyFrom(term)
        subject = f"hf.default.{term.number}-{term.nonce:x}.work.one.x.1"
        targets = ["$KV.hf_default.leader", "$KV.hf_default.bans", "hf.default.term", "_INBOX.server.x"]
        for reply in [*targets, "_INBOX.agent.two.1", "_INBOX.operator.1"]:
            await connection.publish(subject, work.SerializeToString(), reply=reply)
        for reply in targets:
            await connection.publish("hf.default.any.leader", b"", reply=reply)
        # Nor does it speak for another agent on its own subject.
        work.agent = "two.x.1"
        await connection.publish(subject, work.SerializeToString(), reply="_INBOX.agent.one.1")
        work.agent = "one.x.1"
        # Its own reply arrives after all of these.
        work.sequence = 2
        reply = await connection.request(subject, work.SerializeToString(), timeout=TIMEOUT_S)
        assert messages.Orders.FromString(reply.data).term == term
        await connection.close()
        listed = fleet.agents()
        assert [row[0] for row in listed] == ["one.x.1"]
        operator, _ = connect(fleet, "server", "_INBOX.server.test")
        connection = await operator
        stream = connection.jetstream()
        leader = await stream.get_last_msg("KV_hf_default", "$KV.hf_default.leader")
        assert messages.Claim.FromString(leader.data).server
        with pytest.raises(nats.js.errors.NotFoundError):
            await stream.get_last_msg("KV_hf_default", "$KV.hf_default.bans")
        await connection.close()

    asyncio.run(attempt())


def test_the_configuration_grows_and_keeps_its_keys(tmp_path):
    folder = tmp_path / "fleet"
    assert run("fleet", "nats-config", folder, "b", "a")[0] == 0
    files = ["nats.conf", "users.conf", "server.txt", "operator.txt", "agents/a.txt", "agents/b.txt"]
    before = {name: (folder / name).read_text() for name in files}
    for name in files:
        mode = stat.S_IMODE((folder / name).stat().st_mode)
        assert mode == 0o600 or not name.endswith(".txt"), name
    # What the broker reads has no secrets.
    seeds = [text.strip().split(":")[1] for name, text in before.items() if name.endswith(".txt")]
    assert len(set(seeds)) == 4
    assert not any(seed in before["users.conf"] + before["nats.conf"] for seed in seeds)
    (folder / "nats.conf").write_text("# mine\n" + before["nats.conf"])
    code, _, told = run("fleet", "nats-config", folder, "c")
    assert (code, "3 agents" in told, "--signal reload" in told) == (0, True, True), told
    assert (folder / "nats.conf").read_text().startswith("# mine\n")
    assert all((folder / name).read_text() == before[name] for name in files[2:])
    keys = re.findall("nkey: (U[A-Z2-7]{55}),", (folder / "users.conf").read_text())
    assert len(keys) == 5 and set(re.findall("nkey: (U[A-Z2-7]{55}),", before["users.conf"])) < set(keys)
    (folder / "agents/b.txt").unlink()
    assert run("fleet", "nats-config", folder)[0] == 0
    assert len(re.findall("nkey: ", (folder / "users.conf").read_text())) == 4
    for arguments, message in [
        ([folder, "a.b"], "letters, digits"),
        ([folder, "--pool", "a b"], "the pool's name"),
        ([folder, "--pool", ""], "the name is empty"),
    ]:
        code, _, told = run("fleet", "nats-config", *arguments)
        assert (code, message in told) == (2, True), (arguments, told)
    # The fleet of the folder is kept.
    night = tmp_path / "night"
    assert run("fleet", "nats-config", night, "a", "--pool", "night")[0] == 0
    assert run("fleet", "nats-config", night, "b")[0] == 0
    assert "hf.night.*.work.b.>" in (night / "users.conf").read_text()
    code, _, told = run("fleet", "nats-config", night, "--pool", "day")
    assert (code, "the users of the fleet night" in told) == (2, True), told
    (folder / "agents/c.txt").write_text("c:nonsense\n")
    code, _, told = run("fleet", "nats-config", folder)
    assert (code, "its seed is wrong" in told) == (5, True), told


def test_operators_drain_ban_and_unban_agents(fleet):
    servers = [fleet.server(*fleet.flags("server")) for _ in range(2)]
    leader, (other,) = fleet.leader(*servers)
    one, two = (fleet.agent(*fleet.flags(f"agents/{name}")) for name in ("one", "two"))
    rows = fleet.wait_for_agents(lambda rows: len(rows) == 2)
    (name,) = (row[0] for row in rows if row[0].startswith("two."))
    user, machine, _ = name.split(".")
    for wrong in (["drain", "three"], ["unban", "one"], ["ban", "a b"]):
        code, _, told = fleet.operate(*wrong)
        assert (code, told.count("\n")) == (1, 1), told
    code, _, told = fleet.operate("ban", f"{user}.{machine}", "--reason", "its fan is broken")
    assert (code, "banned; this name means 1 agent now" in told) == (0, True), told
    two.wait_for(r"two\.\S+ is banned: its fan is broken; to end this: hashfinder fleet unban two\.")
    rows = fleet.wait_for_agents(lambda rows: [row[1] for row in rows] == ["idle", "banned"])
    assert rows[1][3] == "its fan is broken"
    # Only the other agent searches.
    busy = two.cpu_s()
    done = run_find("--server", leader.address, "--json", "hashfinderhash", "--maximum-hashes", str(BUDGET))
    assert json.loads(done.stdout.splitlines()[-1])["hashes"] == BUDGET
    assert two.cpu_s() < busy + 0.2 and one.cpu_s() > 0.5
    # The ban holds when the agent starts again, and under the next leader.
    two.send(SIGTERM)
    assert two.wait() == 0
    leader.send(SIGKILL)
    leader.wait()
    other.wait_for("this server leads the fleet")
    two = fleet.agent(*fleet.flags("agents/two"))
    two.wait_for("is banned: its fan is broken")
    code, _, told = fleet.operate("unban", f"{user}.{machine}")
    assert code == 0, told
    fleet.wait_for_agents(lambda rows: [row[1] for row in rows if row[0] != name] == ["idle", "idle"])
    # An agent that is drained ends as after SIGTERM.
    code, _, told = fleet.operate("drain", "two")
    assert (code, "1 agent will end" in told) == (0, True), told
    two.wait_for("an operator ends this agent")
    assert two.wait() == 0


def fake_agent(fleet, messages, user, work_of, seen=lambda end: None):
    """Speaks as an agent that tries nothing, until the leader rejects it. Returns the number of its
    reports, and the rejection. `seen` learns how far they went."""

    async def speak():
        connecting, _ = connect(fleet, f"agents/{user}", f"_INBOX.agent.{user}")
        connection = await connecting
        asked = await connection.request("hf.default.any.leader", b"", timeout=TIMEOUT_S)
        term = messages.Beat.FromString(asked.data).term
        agent = f"{user}.machine.1"
        subject = f"hf.default.{term.number}-{term.nonce:x}.work.{agent}"
        reports, count, sequence, end = [], 0, 0, 0
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            sequence += 1
            work = messages.Work(agent=agent, sequence=sequence, answered=sequence - 1, rate=CLAIMED_RATE)
            work.term.CopyFrom(term)
            work_of(work)
            work.reports.extend(reports)
            reply = await connection.request(subject, work.SerializeToString(), timeout=TIMEOUT_S)
            orders = messages.Orders.FromString(reply.data)
            if orders.rejected:
                await connection.close()
                return count, orders
            reported, reports = end, []
            for lease in orders.leases:
                report = messages.Report(lease=lease.id, tried=lease.range.end)
                # At a steady rate, so that no lease is longer than the one before.
                tried = lease.range.end.low - lease.range.start.low
                report.took.FromNanoseconds(tried * 10**9 // CLAIMED_RATE)
                reports.append(report)
                count, end = count + 1, max(end, lease.range.end.low)
            assert time.monotonic() < deadline, (count, end, orders)
            await asyncio.to_thread(seen, reported)
            await asyncio.sleep(0.1)

    return asyncio.run(speak())


def current(work):
    work.protocol = 2
    work.features.append("cursor-4")


def test_an_agent_that_lies_is_banned(fleet, messages):
    server = fleet.server("--fleet-untrusted", *fleet.flags("server"))
    fleet.leader(server)
    find = [HASHFINDER, "find", "--server", server.address, "hashfinderhash"]
    searching = subprocess.Popen(find, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # With no other agent, all leases are those of the liar.
        count, orders = fake_agent(fleet, messages, "one", current)
        assert count > 0
        assert "one is banned: it reported secrets as tried, but missed the hit at" in orders.rejected
        server.wait_for("the fleet has banned an agent")
        rows = fleet.wait_for_agents(lambda rows: len(rows) == 1)
        assert rows[0][:2] == ["one.machine.1", "banned"]
    finally:
        searching.kill()
        searching.wait()


@pytest.mark.parametrize("interesting", [0, 2])
def test_the_work_of_a_banned_agent_is_done_again(fleet, messages, v1, interesting):
    """It has hidden the answers of a call at another server, and of an operation."""
    servers = [fleet.server(*fleet.flags("server")) for _ in range(2)]
    leader, (other,) = fleet.leader(*servers)
    fleet.wait_for_agents(lambda rows: rows == [])
    # The first answer is far enough for the searches to move to the agent before it.
    search = ["driver", "--maximum-hashes", "1000000000", "--json"]
    search += ["--show-inferior", str(interesting)] if interesting else []

    def answer_in(lines):
        lines = [line for line in map(json.loads, lines.splitlines()) if line["type"] != "end"]
        (answer,) = [line for line in lines if line["distance"] == 0]
        assert answer == lines[-1]
        return answer

    answer = answer_in(run_find("--threads", "1", *search).stdout)
    index = sum(256**k for k in range(len(answer["hex"]) // 2)) + int(answer["hex"], 16)
    client = Client(v1, leader.address)
    name = client.begin("driver", 0, interesting, maximum_hashes=1_000_000_000)
    find = [HASHFINDER, "find", "--server", other.address, *search]
    searching = subprocess.Popen(find, stdout=subprocess.PIPE, text=True)
    agents = []

    def seen(end):
        if end > index + 2_000_000 and not agents:
            agents.append(fleet.agent(*fleet.flags("agents/two")))
            code, _, told = fleet.operate("ban", "one")
            assert code == 0, told

    try:
        fake_agent(fleet, messages, "one", current, seen)
        found = answer_in(searching.communicate(timeout=TIMEOUT_S)[0])
    finally:
        searching.kill()
    assert found["secret"] == answer["secret"]
    assert client.wait(name).done
    code, shown, why = run("operations", "wait", name, "--server", other.address, "--json")
    assert code == 0 and answer_in(shown)["secret"] == answer["secret"], (shown, why)


@pytest.mark.parametrize(
    "protocol, oldest, features, why",
    [
        (1, 0, [], "speaks version 1 of the fleet's protocol, and the leader version 2; update hashfinder on this machine"),
        (4, 3, ["cursor-4"], "speaks versions 3 to 4 of the fleet's protocol, and the leader version 2; update hashfinder on the servers"),
        (2, 2, [], "lacks the feature cursor-4; update hashfinder on this machine"),
    ],
)
def test_an_agent_of_another_version_gets_no_lease_and_says_why(
    fleet, messages, protocol, oldest, features, why
):
    server = fleet.server(*fleet.flags("server"))
    fleet.leader(server)

    def other(work):
        work.protocol, work.oldest_protocol = protocol, oldest
        work.features.extend(features)

    count, orders = fake_agent(fleet, messages, "one", other)
    assert (count, len(orders.leases)) == (0, 0)
    assert why in orders.rejected


def test_an_agent_of_a_later_version_that_knows_this_one_works(fleet, messages):
    server = fleet.server("--fleet-untrusted", *fleet.flags("server"))
    fleet.leader(server)
    find = ["--server", server.address, "hashfinderhash"]
    process = subprocess.Popen([HASHFINDER, "find", *find], stdout=subprocess.DEVNULL)

    def later(work):
        work.protocol, work.oldest_protocol = 3, 2
        work.features.extend(["cursor-4", "cursor-5"])

    try:
        count, orders = fake_agent(fleet, messages, "one", later)
        # It has got leases, and is banned only because it lies about them.
        assert count > 0 and "is banned" in orders.rejected
    finally:
        process.kill()
        process.wait()
