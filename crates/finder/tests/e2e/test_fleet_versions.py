"""An agent of an earlier build. `cargo xtask long fleet versions` builds it and runs this test."""

import json
import os

from conftest import Process, run_find
from fleet import Fleet

BUDGET = 40_000_000


def test_an_earlier_build_is_told_to_update(tmp_path, processes):
    # Without rights at the broker: an earlier agent uses other subjects.
    fleet = Fleet(tmp_path / "broker", processes)
    server = fleet.server()
    fleet.leader(server)
    command = [os.environ["OLD_HASHFINDER"], "agent", "--fleet", fleet.url, "--threads", "1"]
    old = fleet.keep(Process(command))
    old.wait_for("no leases: this agent speaks version 1 .* and the leader version 2; update")
    new = fleet.agent()
    find = ["--server", server.address, "hashfinderhash", "--maximum-hashes", str(BUDGET), "--json"]
    assert json.loads(run_find(*find).stdout.splitlines()[-1])["hashes"] == BUDGET
    assert new.cpu_s() > 0.1
