"""Files that block when they are opened, that never end, or that are not regular files.

Tests block a file for real with a write lease: no other process can open the file until the lease is
released.
"""

import contextlib
import glob
import os
import select
import shlex
import shutil
import subprocess
import sys

import grpc
import pytest
from certificates import replace
from conftest import HASHFINDER, SIGINT, SIGTERM, TIMEOUT_S, Process, Server, run_find
from grpc_health.v1 import health_pb2
from test_auth import CODE, FINDER, Caller, KeyFile, bearer, key_file  # noqa: F401
from test_session import state  # noqa: F401
from test_tls import certificate_of, ours, wait_until  # noqa: F401

HEALTH = "grpc.health.v1.Health/Check"

# Holds a write lease on a file until stdin is closed. Reports when another process opens the file.
HOLDER = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
signal.sigwait([signal.SIGIO])
print("requested", flush=True)
sys.stdin.read()
"""


class Lease:
    """A lease on a file. The system ends it 45 s after another process begins to open the file."""

    def __init__(self, path):
        command = [sys.executable, "-c", HOLDER, str(path)]
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._expect("held")

    def _expect(self, line):
        ready, _, _ = select.select([self.popen.stdout], [], [], TIMEOUT_S)
        assert ready and self.popen.stdout.readline() == f"{line}\n", line

    def wait_until_requested(self):
        self._expect("requested")

    def release(self):
        self.popen.communicate(timeout=TIMEOUT_S)


@pytest.fixture
def lease():
    with contextlib.ExitStack() as leases:

        def start(path):
            new = Lease(path)
            leases.callback(new.popen.wait)
            leases.callback(new.popen.kill)
            return new

        yield start


def replace_with_leased(path, text, lease):
    """Replaces a file with a version that has a lease from the start, and returns the lease."""
    new = f"{path}.leased"
    with open(new, "wb") as file:
        file.write(text)
    os.chmod(new, 0o600)
    held = lease(new)
    os.replace(new, path)
    return held


def serve_command(*flags):
    return [HASHFINDER, "serve", "--port", "0", *map(str, flags)]


def run_for_error(command, status):
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (status, ""), done
    return done.stderr


def test_a_blocked_read_does_not_block_the_server(serve, ours, key_file, lease):  # noqa: F811
    """Regression: while a certificate could not be read, the whole server blocked, and SIGTERM did
    not end it."""
    identity, new = ours.server(), ours.server("new")
    kept, revoked = key_file.create(), key_file.create()
    server = serve(*identity.flags("--tls"), "--api-keys", key_file.path)
    tls = grpc.ssl_channel_credentials(ours.pem)

    def code(credential, method=FINDER + "ListSearches"):
        """Returns the status code of a call on a new connection."""
        caller = Caller(server, bearer(credential) if credential else (), tls)
        try:
            return caller.code(method)[0]
        finally:
            caller.channel.close()

    assert code(kept) == code(revoked) == CODE.OK
    held = replace_with_leased(identity.files[0], new.certificate, lease)
    held.wait_until_requested()
    # Handshakes, health checks and known keys still work,
    assert certificate_of(server, ours) == identity.der
    assert code(None, HEALTH) == code(kept) == CODE.OK
    # and so do changes of the keys.
    key_file.revoke(revoked)
    wait_until(lambda: code(revoked) == CODE.UNAUTHENTICATED)
    # Now the keys cannot be read, either.
    leased = replace_with_leased(key_file.path, key_file.path.read_bytes(), lease)
    leased.wait_until_requested()
    assert code(None, HEALTH) == code(kept) == CODE.OK
    assert code(revoked) == CODE.UNAUTHENTICATED
    server.send(SIGTERM)
    assert server.wait() == 0
    assert " drained" in server.rest_of_stderr()
    # All of this happened before either lease was released.
    assert held.popen.poll() is None and leased.popen.poll() is None


def test_a_blocked_file_is_read_when_it_is_released(serve, ours, lease):  # noqa: F811
    identity, new = ours.server(), ours.server("new")
    server = serve(*identity.flags("--tls"))
    replace(identity.files[1], new.key, mode=0o600)
    held = replace_with_leased(identity.files[0], new.certificate, lease)
    held.wait_until_requested()
    assert certificate_of(server, ours) == identity.der
    held.release()
    wait_until(lambda: certificate_of(server, ours) == new.der)


def test_a_blocked_read_is_logged(serve, key_file, lease):  # noqa: F811
    """While reads are blocked, keys cannot be revoked, so the log has to report it."""
    key_file.create()
    server = serve("--api-keys", key_file.path)
    held = replace_with_leased(key_file.path, key_file.path.read_bytes(), lease)
    assert 'files="api-keys"' in server.wait_for("reading files has been blocked")
    held.release()
    server.wait_for("reading files works again")


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_signal_ends_a_server_whose_start_is_blocked(processes, ours, lease, number):  # noqa: F811
    identity = ours.server()
    held = lease(identity.files[1])
    server = Process(serve_command(*identity.flags("--tls")))
    processes.append(server)
    held.wait_until_requested()
    server.send(number)
    assert server.wait() == 0
    assert "stopped before it was listening" in server.rest_of_stderr()
    assert server.popen.stdout.read() == ""


def wrong_files(tmp_path):
    """Files that are not regular or never end, and the errors that they cause."""
    pipe, link, long = tmp_path / "pipe", tmp_path / "link", tmp_path / "long"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with open(long, "wb") as file:
        file.truncate(1 << 40)
    return [
        (pipe, "it is a pipe, not a regular file"),
        (link, "it is a pipe, not a regular file"),
        ("/dev/zero", "it is a device, not a regular file"),
        (tmp_path, "it is a folder, not a regular file"),
        (long, "it is larger than "),
    ]


def test_a_server_reads_only_regular_files(ours, key_file, tmp_path):  # noqa: F811
    """Regression: a pipe blocked the start, and no signal ended it; /dev/zero filled the memory."""
    certificate, key = ours.server().files
    tokens = ["--jwt-audience", "a", "--jwt-algorithm"]
    for path, why in wrong_files(tmp_path):
        for flags in [
            ["--api-keys", path],
            ["--tls-certificate", path, "--tls-key", key],
            ["--tls-certificate", certificate, "--tls-key", path],
            ["--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", path],
            ["--jwt-keys", path, *tokens, "ES256"],
            ["--jwt-secret", path, *tokens, "HS256"],
        ]:
            error = run_for_error(serve_command(*flags), 2)
            assert str(path) in error and why in error, (flags, error)
        error = run_for_error([HASHFINDER, "keys", "list", "--file", str(path)], 5)
        assert why in error, error


def test_links_to_regular_files_are_followed(serve, key_file, ours, tmp_path):  # noqa: F811
    """Kubernetes mounts a secret as a link to a file in a folder that is a link itself. An update
    replaces the latter."""
    first, second = ours.server(), ours.server("second")
    for name, identity in [("first", first), ("second", second)]:
        (tmp_path / name).mkdir()
        identity.write_to(tmp_path / name / "tls.crt", tmp_path / name / "tls.key")
    (tmp_path / "..data").symlink_to("first")
    for name in ["tls.crt", "tls.key"]:
        (tmp_path / name).symlink_to(f"..data/{name}")
    server = serve("--tls-certificate", str(tmp_path / "tls.crt"), "--tls-key", str(tmp_path / "tls.key"))
    assert certificate_of(server, ours) == first.der
    (tmp_path / "new").symlink_to("second")
    os.replace(tmp_path / "new", tmp_path / "..data")
    wait_until(lambda: certificate_of(server, ours) == second.der)


def test_replacing_a_file_with_a_pipe_changes_nothing(serve, ours, key_file):  # noqa: F811
    identity = ours.server()
    key = key_file.create()
    server = serve(*identity.flags("--tls"), "--api-keys", key_file.path)
    for path in [identity.files[0], key_file.path]:
        os.mkfifo(f"{path}.pipe")
        os.replace(f"{path}.pipe", path)
    lines = [server.wait_for("it is a pipe, not a regular file") for _ in range(2)]
    assert sum("the loaded ones stay in use" in line for line in lines) == 1
    assert sum("the old ones stay in use" in line for line in lines) == 1
    caller = Caller(server, bearer(key), grpc.ssl_channel_credentials(ours.pem))
    assert caller.code(FINDER + "ListSearches")[0] == caller.code(HEALTH)[0] == CODE.OK
    caller.channel.close()
    server.send(SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("command", ["find", "searches"])
@pytest.mark.parametrize("file", ["credential", "authority"])
def test_a_signal_ends_a_client_whose_file_is_blocked(processes, ours, tmp_path, lease, command, file):  # noqa: F811
    path = tmp_path / file
    path.write_bytes(ours.pem)
    flags = {"credential": ["--credential-file", path], "authority": ["--tls-ca", path]}[file]
    words = {"find": ["find", "do"], "searches": ["searches", "list"]}[command]
    held = lease(path)
    command = [HASHFINDER, *words, "--server", "https://127.0.0.1:1", *map(str, flags)]
    client = Process(command)
    processes.append(client)
    held.wait_until_requested()
    client.send(SIGTERM)
    assert client.wait() != 0
    assert held.popen.poll() is None


def test_a_client_reads_only_regular_files(ours, tmp_path):  # noqa: F811
    server = ["--server", "https://127.0.0.1:1", "--connect-timeout", "0s"]
    identity = ours.client()
    for path, why in wrong_files(tmp_path):
        for flags in [
            ["--credential-file", path],
            ["--tls-ca", path],
            ["--tls-ca", ours.path, "--tls-client-certificate", path, "--tls-client-key", identity.files[1]],
            ["--tls-ca", ours.path, "--tls-client-certificate", identity.files[0], "--tls-client-key", path],
        ]:
            command = [HASHFINDER, "find", "do", *server, *flags]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
            assert done.returncode not in (0, -6, -9, -11), done
            assert str(path) in done.stderr and why in done.stderr, done


def test_a_session_must_be_a_regular_file_and_not_a_link(state, tmp_path):  # noqa: F811
    """Regression: a pipe as a session blocked the search; a link to /dev/zero filled the memory."""
    state.mkdir(parents=True)
    other_file = tmp_path / "another's"
    other_file.write_text("precious")
    for name, link, why in [
        ("night", "/dev/zero", "it is a symbolic link, not a regular file"),
        ("night", other_file, "it is a symbolic link, not a regular file"),
        ("night", None, "it is a pipe, not a regular file"),
        (".night.lock", other_file, "it is a symbolic link, not a regular file"),
        (".night.lock", None, "it is a pipe, not a regular file"),
    ]:
        path = state / name
        path.unlink(missing_ok=True)
        path.symlink_to(link) if link else os.mkfifo(path)
        done = run_find("docto", "--session", "night")
        assert done.returncode not in (0, 1) and why in done.stderr, done
        path.unlink()
    with open(state / "night", "wb") as file:
        file.truncate(1 << 40)
    done = run_find("docto", "--session", "night")
    assert done.returncode not in (0, 1) and "it is larger than 1 MiB" in done.stderr, done
    (state / "night").unlink()
    # A file with the name of the temporary file is removed, not written to.
    (state / ".night.new").symlink_to(other_file)
    done = run_find("docto", "--session", "night", "--maximum-hashes", "1000")
    assert done.returncode == 3, done
    assert other_file.read_text() == "precious"
    assert [path.name for path in state.iterdir()] == ["night"]


def test_a_session_file_that_would_block_is_an_error(state, lease):  # noqa: F811
    """Regression: the search blocked before it started, and no signal ended it."""
    for name in ["night", ".night.lock"]:
        done = run_find("docto", "--session", "night", "--maximum-hashes", "1000")
        assert done.returncode == 3, done
        # A killed run leaves this file.
        (state / ".night.lock").touch()
        held = lease(state / name)
        done = run_find("docto", "--session", "night")
        assert done.returncode not in (0, 1, 3), done
        assert "another process holds a lease on it" in done.stderr
        held.wait_until_requested()
        held.release()


def test_an_endless_prefix_or_configuration_is_an_error(tmp_path):
    """Regression: /dev/zero was read until the memory was full."""
    done = run_find("do", "--secret-prefix-file", "/dev/zero")
    assert done.returncode == 2
    assert "cannot read the prefix from /dev/zero: it is larger than 64 KiB" in done.stderr, done
    error = run_for_error([HASHFINDER, "--config", "/dev/zero", "find", "do"], 2)
    assert "cannot read the configuration file /dev/zero: it is larger than 1 MiB" in error
    # The longest prefix is read, also from a pipe.
    longest = tmp_path / "longest"
    longest.write_bytes(b"a" * (1 << 16))
    shell = f"{HASHFINDER} find a --maximum-hashes 100 --secret-prefix-file <(cat {shlex.quote(str(longest))})"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done


def test_an_endless_time_zone_file_does_not_block_a_search(find):
    """Regression: TZ=/dev/zero was read until the memory was full. Meanwhile the search showed no
    progress and did not end."""
    process = find("hashfinderh", "--threads", "1", env={**os.environ, "TZ": "/dev/zero"})
    # Times are shown as durations, or as if there was no time zone.
    process.wait_for("chance so far, 50% chance in ")
    process.send(SIGINT)
    assert process.wait() == 130


@pytest.fixture
def mounted(tmp_path):
    """Returns the path of a key file, and a function that runs `hashfinder keys` where this file is
    a mount point, as in a container. Its folder may be read-only there."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare to mount a file")
    real, folder = tmp_path / "real.toml", tmp_path / "container"
    folder.mkdir()
    (folder / "keys.toml").touch()
    mounts = 'mount --bind "$1" "$1" && '
    read_only = 'mount -o remount,bind,ro "$1" && '
    then = 'mount --bind "$0" "$1/keys.toml" && shift && exec "$@"'

    def run(*arguments, is_read_only=False):
        script = mounts + (read_only if is_read_only else "") + then
        command = ["unshare", "-m", "sh", "-c", script, str(real), str(folder)]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)

    real.touch()
    if run("true").returncode:
        pytest.skip(f"this machine does not allow mounts: {run('true').stderr}")
    real.unlink()

    def run_keys(action, *arguments, **kwargs):
        path = str(folder / "keys.toml")
        done = run(HASHFINDER, "keys", action, "--file", path, *arguments, **kwargs)
        assert done.returncode == 0, done
        # No other file is left behind.
        assert [path.name for path in folder.iterdir()] == ["keys.toml"]
        return done.stdout.strip()

    return real, run_keys


@pytest.mark.parametrize("is_read_only", [False, True])
def test_a_key_file_that_is_a_mount_point_can_be_changed(serve, mounted, is_read_only):
    """Regression: renaming failed with EBUSY, left `.keys.toml.new`, and no key was revocable."""
    real, run_keys = mounted
    first = KeyFile(real).create("--comment", "a comment that makes the file longer than the next version")
    inode, mode = real.stat().st_ino, real.stat().st_mode
    server = serve("--api-keys", str(real))
    second = run_keys("create", is_read_only=is_read_only)

    def code(key):
        caller = Caller(server, bearer(key))
        try:
            return caller.code(FINDER + "ListSearches")[0]
        finally:
            caller.channel.close()

    wait_until(lambda: code(second) == CODE.OK)
    assert code(first) == CODE.OK
    run_keys("revoke", first.split(".")[0], is_read_only=is_read_only)
    wait_until(lambda: code(first) == CODE.UNAUTHENTICATED)
    assert code(second) == CODE.OK
    assert (real.stat().st_ino, real.stat().st_mode) == (inode, mode)
    assert [key[4] for key in KeyFile(real).listed()] == ["revoked", "valid"]
    server.send(SIGTERM)
    assert server.wait() == 0
    assert "cannot reload" not in server.rest_of_stderr()


def test_a_key_file_that_cannot_be_written_stays_unchanged(key_file, tmp_path):  # noqa: F811
    key_file.create()
    before = key_file.path.read_bytes()
    # Fails like a full disk.
    script = "trap '' XFSZ; ulimit -f 0; exec \"$@\""
    command = ["sh", "-c", script, "sh", HASHFINDER, "keys", "create", "--file", str(key_file.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 5 and "cannot write the API keys" in done.stderr, done
    assert key_file.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["keys.toml"]


@pytest.mark.parametrize("when", ["@9999-12-31 23:59:59", "+9000y"])
def test_a_clock_after_the_year_9999_causes_no_panic(processes, key_file, monkeypatch, when):  # noqa: F811
    """Regression: `keys create` panicked in the last days of 9999, and a server panicked in every
    call from the year 10000 on."""
    [library, *_] = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1") or [None]
    if library is None:
        pytest.skip("needs libfaketime to set the clock")
    key = key_file.create()
    monkeypatch.setenv("LD_PRELOAD", library)
    monkeypatch.setenv("FAKETIME", when)
    for command in [["keys", "create", "--file", str(key_file.path)], ["hashcash", "a"]]:
        done = subprocess.run([HASHFINDER, *command], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 5 and "set the clock" in done.stderr, done
    assert key_file.listed()[0][4] == "valid"
    server = Server("--api-keys", str(key_file.path))
    processes.append(server)
    command = [HASHFINDER, "find", "do", "--server", server.address]
    environment = {**os.environ, "HASHFINDER_CREDENTIAL": key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done
    assert "is revoked" in key_file.revoke(key).stderr
    assert key_file.listed()[0][4] == "revoked"
