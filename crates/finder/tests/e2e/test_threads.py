"""Limits on the number of threads: commands use fewer threads or end with an error.

No command panics or hangs.
"""

import os
import re
import shutil
import subprocess
import tempfile

import grpc
import pytest
from conftest import HASHFINDER, PROTOS, SIGTERM, TIMEOUT_S, Process, run_find

# The limit counts every thread, including the main one.
LIMITS = range(1, 13)

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv") or not shutil.which("prlimit"),
    reason="needs setpriv, prlimit, and root to switch to a user with a limit on threads",
)


@pytest.fixture(scope="module")
def limited():
    """Returns a function that adds a limit on threads to a command line, for a user without other
    processes."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program = shutil.copy(HASHFINDER, folder)
        user = str(100_000 + os.getpid())

        def command(limit, *arguments):
            become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
            # Without a home there is no configuration and no session.
            home = ["env", "HOME=/nonexistent", f"HASHFINDER_CONFIG={os.devnull}"]
            return [*become, *home, "prlimit", f"--nproc={limit}", program, *arguments]

        yield command


def run(command):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert "panicked" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "pO0G", "doctor"],
        ["estimate", "doctor"],
        ["hashcash", "--check", "1:20:040927:mertz@gnosis.cx::odVZhQMP:7ca28"],
        ["config", "show"],
        ["completions", "bash"],
        ["serve", "--check"],
        ["bench", "--threads", "1", "--seconds", "0.01", "--kernel", "portable"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_simple_commands_need_only_one_thread(limited, arguments):
    """Regression: these panicked inside tokio or hung, because every command started a runtime."""
    done = run(limited(1, *arguments))
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("limit", LIMITS)
def test_a_search_uses_the_threads_that_can_be_started(limited, limit):
    done = run(limited(limit, "find", "doctor", "--threads", "4"))
    if limit < 3:
        assert done.returncode == 5
        assert "thread" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_find("doctor").stdout
    if limit < 6:
        assert f"searching with {limit - 2} of 4 threads" in done.stderr


def test_a_benchmark_of_more_threads_than_can_be_started_is_an_error(limited):
    done = run(limited(2, "bench", "--threads", "4", "--seconds", "0.01", "--kernel", "portable"))
    assert done.returncode == 5
    assert "cannot start more than 2 of 4 threads" in done.stderr


@pytest.mark.parametrize("limit", [1, 2])
def test_a_connection_that_lacks_a_thread_is_an_error(limited, limit):
    command = ["searches", "list", "--server", "localhost:9", "--connect-timeout", "300ms"]
    done = run(limited(limit, *command))
    assert done.returncode == 5
    assert "cannot start another thread" in done.stderr


@pytest.mark.parametrize("limit", [*LIMITS, 20])
def test_a_server_with_keys_and_spans_starts_or_prints_an_error(limited, processes, limit, tmp_path):
    """Regression: the search threads left none for the server's other threads, and the exporter of
    spans panicked without one."""
    os.chmod(tmp_path, 0o755)
    keys = tmp_path / "keys.toml"
    subprocess.run([HASHFINDER, "keys", "create", "--file", keys], check=True, capture_output=True)
    os.chmod(keys, 0o644)
    for folder in list(tmp_path.parents)[:-2]:
        os.chmod(folder, 0o755)
    flags = ["--api-keys", keys, "--otlp-endpoint", "http://127.0.0.1:9", "--workers", "4"]
    server = Process(limited(limit, "serve", "--port", "0", *map(str, flags)))
    processes.append(server)
    if server.popen.stdout.readline():
        server.send(SIGTERM)
        assert server.wait() == 0
    else:
        assert server.wait() == 5
        assert "cannot start another thread" in server.rest_of_stderr()
        # Besides the search: main, runtime, log, two for the keys, the spans, and one during the
        # start.
        assert limit < 8
    assert "panicked" not in "\n".join(server.log)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_server_uses_the_threads_that_can_be_started_or_prints_an_error(limited, processes, v1, limit):
    server = Process(limited(limit, "serve", "--port", "0", "--workers", "4"))
    processes.append(server)
    line = server.popen.stdout.readline()
    if not line:
        assert server.wait() == 5
        assert "thread" in server.rest_of_stderr()
        # The main thread, the runtime's, the log's, and one that searches.
        assert limit < 4 + 1
        return
    address = re.fullmatch(r"hashfinder listening on (\S+)\n", line)[1]
    done = run_find("doctor", "--server", address)
    assert (done.returncode, done.stdout) == (0, run_find("doctor").stdout)
    with grpc.insecure_channel(address) as channel:
        request = v1.messages.EstimateRequest(
            query=v1.messages.Query(desired_names=["doctor"], ideal_distance=0)
        )
        # Without a free thread, only this call fails.
        try:
            assert v1.Stub(channel).Estimate(request, timeout=TIMEOUT_S).hashes_per_second > 0
        except grpc.RpcError as error:
            assert error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            ), error
    assert run_find("doctor", "--server", address).returncode == 0
    server.send(SIGTERM)
    assert server.wait() == 0
