"""One server and many clients: hashes are shared, and no client takes more than its share."""

import itertools
import os
import re
import socket
import subprocess
import threading

import grpc
import pytest
from conftest import FIRST_DOCTOR, HASHFINDER, SIGTERM, TIMEOUT_S, decoded, oracle, run_find
from google.rpc import error_details_pb2
from test_contract import details

CODE = grpc.StatusCode

# Number of easier searches. Each of them takes eleven million hashes, in turns with the others.
EASIER = 2


def hard_names():
    letters = "bcdfghjklmnpqrstvwxz"
    return ("hashfinder" + "".join(pair) for pair in itertools.product(letters, repeat=2))


def end_of(future):
    with pytest.raises(grpc.RpcError) as raised:
        future.result()
    return raised.value


def test_searches_share_their_hashes(serve, connect, stubs):
    server = serve()
    stub = connect(server)
    names = itertools.islice(hard_names(), 50)
    futures = [stub.Find.future(stubs.Request(desired_name=name)) for name in names]
    server.wait_until_busy()
    # Easier searches among them are answered correctly.
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


def test_the_searches_of_a_client_are_limited(serve, connect, stubs):
    server = serve("--maximum-searches-per-client", "2")
    stub = connect(server)
    request = stubs.Request(desired_name="hashfinderhashfinder")
    futures = [stub.Find.future(request) for _ in range(2)]
    server.wait_until_busy()
    rejected = end_of(stub.Find.future(request))
    assert rejected.code() == CODE.RESOURCE_EXHAUSTED
    quota = details(rejected, error_details_pb2.QuotaFailure)
    assert quota.violations[0].subject == "client:searches"
    assert details(rejected, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
    server.wait_for("call rejected")
    # The place is free once the work has ended.
    futures[0].cancel()
    server.call_ended(work='"stopped"')
    assert decoded(stub.Find(stubs.Request(desired_name="doctor"))) == (FIRST_DOCTOR, 0)
    assert not futures[1].done()


def test_consecutive_calls_do_not_exceed_the_limit_of_searches(serve, connect, stubs):
    # The response arrives shortly before the end of the work, and only that frees the place.
    stub = connect(serve("--maximum-searches-per-client", "1"))
    for _ in range(200):
        stub.Find(stubs.Request(desired_name="docto"))


def test_a_spent_quota_ends_a_search_with_its_cursor(serve, connect, stubs):
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
    # No search starts before some of the quota is available again.
    rejected = end_of(stub.Find.future(request))
    assert rejected.code() == CODE.RESOURCE_EXHAUSTED
    details(rejected, error_details_pb2.RetryInfo)
    # The work done so far is not lost.
    following = run_find("--resume", info.metadata["cursor"], "--maximum-hashes", "1")
    assert "hash budget spent after 1 hash\n" in following.stderr


def test_find_reports_a_full_server(serve, connect, stubs):
    server = serve("--maximum-concurrent-rpcs", "1")
    hard = stubs.Request(desired_name="hashfinderhashfinder")
    future = connect(server).Find.future(hard)
    server.wait_until_busy()
    done = run_find("doctor", "--server", server.address)
    assert done.returncode == 3
    assert "try again later" in done.stderr
    future.cancel()


def test_find_reports_a_spent_quota(serve):
    server = serve("--maximum-hashes-per-second", "100000")
    done = run_find("hashfinderhashfinder", "--server", server.address)
    assert done.returncode == 3
    assert "quota" in done.stderr
    assert "--resume hf1_" in done.stderr


def relay(server, source):
    """Relays one connection to the server, from another address of this machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    host, port = server.address.split(":")

    def serve():
        client, _ = listening.accept()
        onward = socket.create_connection((host, int(port)), source_address=(source, 0))
        back = threading.Thread(target=pump, args=(onward, client), daemon=True)
        back.start()
        pump(client, onward)

    def pump(sender, receiver):
        try:
            while data := sender.recv(65536):
                receiver.sendall(data)
            receiver.shutdown(socket.SHUT_WR)
        except OSError:
            # Either end may close first.
            pass

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listening.getsockname()[1]}"


def test_clients_are_identified_by_their_addresses(serve, connect, stubs):
    server = serve("--maximum-searches-per-client", "1", "--client-weight", "127.0.0.2=3")
    hard = stubs.Request(desired_name="hashfinderhashfinder")
    first = connect(server).Find.future(hard)
    server.wait_until_busy()
    # The limit applies to the address, whichever connection it uses.
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as same:
        rejected = end_of(stubs.Stub(same).Find.future(hard))
    info = details(rejected, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("TOO_MANY_SEARCHES_OF_CLIENT", "hashfinder")
    # Another address has its own limit.
    with grpc.insecure_channel(relay(server, "127.0.0.2")) as other:
        answer = stubs.Stub(other).Find(stubs.Request(desired_name="doctor"))
        assert decoded(answer) == (FIRST_DOCTOR, 0)
    assert "peer=127.0.0.2:" in server.wait_for("call ended")
    first.cancel()


def test_by_default_one_client_leaves_room_for_others(serve, connect, stubs):
    server = serve("--maximum-concurrent-rpcs", "4")
    hard = stubs.Request(desired_name="hashfinderhashfinder")
    stub = connect(server)
    futures = [stub.Find.future(hard) for _ in range(3)]
    server.wait_until_busy()
    rejected = end_of(stub.Find.future(hard))
    info = details(rejected, error_details_pb2.ErrorInfo)
    assert info.reason == "TOO_MANY_SEARCHES_OF_CLIENT"
    with grpc.insecure_channel(relay(server, "127.0.0.2")) as other:
        assert stubs.Stub(other).Find(stubs.Request(desired_name="doc")).hamming_distance == 0
    for future in futures:
        future.cancel()


def test_on_a_unix_socket_clients_are_identified_by_their_users(serve, connect, stubs, tmp_path):
    path = tmp_path / "hashfinder.sock"
    server = serve("--unix", str(path), "--maximum-searches-per-client", "1")
    assert server.address == f"unix:{path}"
    hard = stubs.Request(desired_name="hashfinderhashfinder")
    first = connect(server).Find.future(hard)
    server.wait_until_busy()
    done = run_find("doctor", "--server", server.address)
    assert done.returncode == 3 and "searches for this client reached" in done.stderr
    first.cancel()
    assert f"peer=user:{os.getuid()} " in server.call_ended(work='"stopped"')
    done = run_find("doctor", "--server", server.address)
    assert done.returncode == 0, done.stderr
    assert FIRST_DOCTOR.hex() in done.stdout

    second = [HASHFINDER, "serve", "--unix", str(path)]
    second = subprocess.run(second, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert second.returncode == 5 and "another server is listening there" in second.stderr
    server.send(SIGTERM)
    assert server.wait() == 0
    assert not path.exists()


def test_a_stale_socket_is_replaced(serve, connect, stubs, tmp_path):
    path = tmp_path / "hashfinder.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = serve("--unix", str(path))
    assert connect(server).Find(stubs.Request(desired_name="doc")).hamming_distance == 0


def test_a_file_that_is_not_a_socket_is_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    command = [HASHFINDER, "serve", "--unix", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 5 and "is not a socket" in done.stderr
    assert path.read_text() == "precious"


@pytest.mark.parametrize("flag", ["localhost=2", "10.0.0.7", "10.0.0.7=0", "user:root=2"])
def test_an_invalid_weight_is_rejected(flag):
    command = [HASHFINDER, "serve", "--client-weight", flag]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2 and "--client-weight" in done.stderr


def test_the_shortest_queue_loses_nothing(serve, connect, stubs):
    stub = connect(serve(limits={"queue-length": 1}))
    request = stubs.Request(desired_name="doct", interesting_hamming_distance=3)
    found = [decoded(response) for response in stub.FindRange(request)]
    assert found == oracle("doct", 0, 3)
