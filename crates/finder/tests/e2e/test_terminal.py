"""Text from the user, a file or the environment is shown as text, and cannot control a terminal."""

import os
import subprocess

import pytest
from conftest import HASHFINDER, TIMEOUT_S

# Colours, a bell, a forged line, and a control character (C1) that some terminals obey.
EVIL = "\x1b[31m\x07\nhashfinder: found\n\r\x9b1m\x7f"

# A shorter text for names. No hash is nearer to it than distance 6.
NAME = "\x1b[31m\x07\n\x9b1m\x7f"


def run(*arguments, **variables):
    """Runs the program, and checks that it prints no control characters."""
    done = subprocess.run(
        [HASHFINDER, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | variables,
        timeout=TIMEOUT_S,
    )
    for output in [done.stdout.decode(), done.stderr.decode()]:
        controls = {c for c in output if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0}
        assert controls <= {"\n", "\t"}, (arguments, output)
        # No line is forged, either.
        assert "\nhashfinder: found\n" not in output
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        [EVIL],
        ["help", EVIL],
        ["find", NAME],
        ["find", "a", f"--{EVIL}"],
        ["find", "a", f"-{EVIL}"],
        ["find", "a", "--count", EVIL],
        ["find", "a", "--color", EVIL],
        ["find", "a", "--server", EVIL],
        ["find", "a", "--server", "unix:" + EVIL, "--connect-timeout", "1ms"],
        ["find", "a", "--resume", EVIL],
        ["find", "a", "--session", EVIL],
        ["find", "a", f"--json={EVIL}"],
        ["find", "a", "--config", EVIL],
        ["find", "a", "--secret-prefix-file", EVIL],
        ["find", "a", "--server", "localhost:1", "--tls-ca", EVIL],
        ["find", "a", "--server", "localhost:1", "--credential-file", EVIL],
        ["find", "a", "--server", "localhost:1", "--tls", "--tls-server-name", EVIL],
        ["serve", "--check", "--tls-certificate", EVIL, "--tls-key", EVIL],
        ["health", "--server", "unix:" + EVIL],
        ["estimate", NAME],
        ["estimate", "a", "--rate", EVIL],
        ["bench", "--name", EVIL],
        ["verify", EVIL, "a"],
        ["verify", EVIL, "a", "--hex"],
        ["searches", EVIL],
        ["searches", "list", "--server", EVIL],
        ["searches", "cancel", "a", "--reason", EVIL],
        ["keys", "list", "--file", EVIL],
        ["keys", "revoke", "--file", "/dev/null", EVIL],
        ["git-commit", EVIL],
        ["git-commit", "c0ffee", "--repository", EVIL],
        ["hashcash", EVIL],
        ["hashcash", "--date", EVIL, "me"],
        ["completions", EVIL],
        ["man", "--directory", f"/dev/null/{EVIL}"],
        ["serve", EVIL],
        ["serve", "--host", EVIL],
        ["serve", "--operator", EVIL],
        ["serve", "--client-weight", EVIL],
        ["serve", "--tls-certificate", EVIL, "--tls-key", EVIL],
        ["serve", "--api-keys", EVIL],
        ["serve", "--metrics-address", EVIL],
        ["serve", "--unix", f"/dev/null/{EVIL}"],
    ],
)
def test_arguments_in_errors_are_escaped(arguments):
    done = run(*arguments)
    assert done.returncode in (2, 4, 5), done
    assert done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["verify", "pO0G", NAME], 1),
        (["verify", "pO0G", NAME, "--json"], 1),
        (["find", NAME, "--ideal-distance", "9"], 0),
        (["find", NAME, "--ideal-distance", "9", "--json"], 0),
        (["find", NAME, "--json"], 4),
        (["estimate", NAME, "--ideal-distance", "9", "--rate", "1"], 0),
        (["estimate", NAME, "--ideal-distance", "9", "--rate", "1", "--json"], 0),
        (["bench", "--name", NAME, "--ideal-distance", "9", "--seconds", "0.001"], 0),
        (["bench", "--name", NAME, "--ideal-distance", "9", "--seconds", "0.001", "--json"], 0),
        (["hashcash", "--check", EVIL], 1),
        (["hashcash", "--check", f"1:20:040927:{EVIL}::odVZhQMP:7ca28"], 1),
    ],
)
def test_names_and_stamps_in_output_are_escaped(arguments, code):
    assert run(*arguments).returncode == code


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("HASHFINDER_FIND_QUIET", ["find", "a"]),
        ("HASHFINDER_KERNEL", ["find", "a"]),
        ("HASHFINDER_FIND_COLOR", ["find", "a"]),
        ("HASHFINDER_SERVE_CLIENT_WEIGHT", ["serve"]),
        ("HASHFINDER_LOG", ["serve"]),
        ("HASHFINDER_CONFIG", ["find", "a"]),
        ("SSL_CERT_FILE", ["find", "a", "--server", "https://localhost:1", "--connect-timeout", "1ms"]),
    ],
)
def test_variables_in_errors_are_escaped(name, arguments):
    done = run(*arguments, **{name: EVIL})
    assert done.returncode in (2, 5), done


def test_an_unknown_variable_in_a_warning_is_escaped():
    done = run("find", "a", **{f"HASHFINDER_{EVIL}": "1"})
    assert done.returncode == 0
    assert rb"HASHFINDER_\u{1b}[31m" in done.stderr


def test_values_from_a_configuration_are_escaped(tmp_path):
    path = tmp_path / f"{EVIL}.toml"
    escaped = "".join(f"\\u{ord(c):04x}" for c in EVIL)
    for text, code in [
        (f'"{escaped}" = 1', 2),
        (f'["{escaped}"]\na = 1', 2),
        (f'[find]\n"{escaped}" = 1', 2),
        (f'[find]\ncolor = "{escaped}"', 2),
        ("[find", 2),
        (f'[find]\nsecret-prefix = "{escaped}"', 0),
    ]:
        path.write_text(text)
        for arguments in [["find", "a"], ["config", "show"], ["config", "show", "--json"]]:
            assert run(*arguments, "--config", str(path)).returncode == code, text


def test_the_path_of_a_session_is_escaped(tmp_path):
    folder = tmp_path / EVIL
    for content, code in [(None, 3), ("no session", 5)]:
        if content:
            (folder / "hashfinder/sessions/night").write_text(content)
        arguments = ["doctor", "--session", "night", "--maximum-hashes", "1"]
        assert run("find", *arguments, XDG_STATE_HOME=str(folder)).returncode == code
    # The suggested command removes the session.
    stderr = run("find", *arguments, XDG_STATE_HOME=str(folder)).stderr.decode()
    drop = stderr.rsplit("remove it with: ", 1)[1]
    subprocess.run(["bash", "-c", drop], check=True)
    assert not (folder / "hashfinder/sessions/night").exists()


def test_the_path_of_a_socket_is_escaped():
    done = run("serve", "--check", "--unix", EVIL)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 1
