"""One server and many: what is hashed is shared, and nobody takes more than it may."""

import itertools
import re

import grpc
import pytest
from conftest import FIRST_DOCTOR, decoded, run_find
from google.rpc import error_details_pb2
from test_contract import details

CODE = grpc.StatusCode

# Each of them has its own eleven million secrets hashed, in its turns among the others'.
EASIER = 2


def hard_names():
    letters = "bcdfghjklmnpqrstvwxz"
    return ("hashfinder" + "".join(pair) for pair in itertools.product(letters, repeat=2))


def end_of(future):
    with pytest.raises(grpc.RpcError) as raised:
        future.result()
    return raised.value


def test_searches_share_what_is_hashed(serve, connect, stubs):
    server = serve()
    stub = connect(server)
    names = itertools.islice(hard_names(), 50)
    futures = [stub.Find.future(stubs.Request(desired_name=name)) for name in names]
    server.wait_until_busy()
    # Easier searches among them are answered, and rightly.
    for _ in range(EASIER):
        assert decoded(stub.Find(stubs.Request(desired_name="doctor"))) == (FIRST_DOCTOR, 0)
    for future in futures:
        assert not future.done()
        future.cancel()
    hashes = tests = 0
    for _ in range(len(futures) + EASIER):
        line = server.wait_for("call ended")
        hashes += int(re.search(r" hashes=(\d+)", line)[1])
        tests += int(re.search(r" tests=(\d+)", line)[1])
    assert tests > 5 * hashes, (hashes, tests)
    server.assert_idle()


def test_a_client_has_only_so_many_searches(serve, connect, stubs):
    server = serve("--maximum-searches-per-client", "2")
    stub = connect(server)
    request = stubs.Request(desired_name="hashfinderhashfinder")
    futures = [stub.Find.future(request) for _ in range(2)]
    server.wait_until_busy()
    refused = end_of(stub.Find.future(request))
    assert refused.code() == CODE.RESOURCE_EXHAUSTED
    quota = details(refused, error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "client:searches"
    assert details(refused, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
    server.wait_for("call refused")
    # The place is free when the work has ended.
    futures[0].cancel()
    server.call_ended(work='"stopped"')
    assert decoded(stub.Find(stubs.Request(desired_name="doctor"))) == (FIRST_DOCTOR, 0)
    assert not futures[1].done()


def test_one_call_after_another_is_not_in_its_own_way(serve, connect, stubs):
    # The answer comes a little before the work's end, which gives the place back.
    stub = connect(serve("--maximum-searches-per-client", "1"))
    for _ in range(200):
        stub.Find(stubs.Request(desired_name="docto"))


def test_a_quota_ends_a_search_with_its_cursor(serve, connect, stubs):
    server = serve("--maximum-hashes-per-second", "100000")
    stub = connect(server)
    request = stubs.Request(desired_name="hashfinderhashfinder")
    ended = end_of(stub.Find.future(request))
    assert ended.code() == CODE.RESOURCE_EXHAUSTED
    info = details(ended, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("HASH_QUOTA_SPENT", "hashfinder")
    quota = details(ended, error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "client:hashes"
    server.call_ended(work='"hash quota spent"')
    # No more is begun before something is left again.
    refused = end_of(stub.Find.future(request))
    assert refused.code() == CODE.RESOURCE_EXHAUSTED
    details(refused, error_details_pb2.RetryInfo)
    # What was searched is not lost.
    following = run_find("--resume", info.metadata["cursor"], "--maximum-hashes", "1")
    assert "secrets tried: 1\n" in following.stderr


def test_the_command_line_tells_a_full_server(serve, connect, stubs):
    server = serve("--maximum-concurrent-rpcs", "1")
    hard = stubs.Request(desired_name="hashfinderhashfinder")
    future = connect(server).Find.future(hard)
    server.wait_until_busy()
    done = run_find("doctor", "--server", server.address)
    assert done.returncode == 3
    assert "try again later" in done.stderr
    future.cancel()


def test_the_command_line_tells_a_spent_quota(serve):
    server = serve("--maximum-hashes-per-second", "100000")
    done = run_find("hashfinderhashfinder", "--server", server.address)
    assert done.returncode == 3
    assert "quota" in done.stderr
    assert "--resume hf1_" in done.stderr
