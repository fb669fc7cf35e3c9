"""`hashfinder bench` and the choice of a kernel."""

import json
import os
import subprocess

import pytest
from conftest import FIRST_DOCTOR, HASHFINDER, line_of


def run(*arguments, **environment):
    return subprocess.run(
        [HASHFINDER, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
    )


def test_every_kernel_is_measured_and_finds_the_same_secret():
    arguments = ["--json", "--seconds", "0.05", "--threads", "2"]
    done = run("bench", *arguments, "--name", "doctor", "--name", "hashfinder")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    cases = {"sha1", "doctor at distance 0", "hashfinder at distance 0"}
    assert {row["case"] for row in rows} == cases
    kernels = {row["kernel"] for row in rows}
    assert "portable" in kernels
    # A row for each kernel, case and number of threads.
    assert len(rows) == len(kernels) * len(cases) * 2
    assert all(row["hashes_per_second"] > 0 for row in rows)

    # All kernels find the same secret.
    for kernel in kernels:
        for arguments, environment in [
            (["--kernel", kernel], {}),
            ([], {"HASHFINDER_KERNEL": kernel}),
        ]:
            done = run("find", "doctor", *arguments, **environment)
            assert done.stdout.splitlines() == [line_of(FIRST_DOCTOR, "doctor")]


def test_several_names_and_longer_secrets_can_be_measured():
    arguments = ["--json", "--seconds", "0.05", "--threads", "1", "--length", "5"]
    arguments += ["--name", "doctor", "--names", "1", "--names", "16", "--names", "300", "--ideal-distance", "1"]
    done = run("bench", *arguments)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["case"] for row in rows} == {
        "sha1, 5 bytes",
        "doctor at distance 1, 5 bytes",
        "1 names at distance 1, 5 bytes",
        "16 names at distance 1, 5 bytes",
        "300 names at distance 1, 5 bytes",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["bench", "--kernel", "abacus"], "portable"),
        (["find", "doctor", "--kernel", "abacus"], "portable"),
        (["serve", "--kernel", "abacus"], "portable"),
        (["bench", "--seconds", "0"], "above 0"),
        (["bench", "--name", ""], "empty"),
        (["bench", "--names", "0"], "from 1"),
        (["bench", "--length", "8"], "3 to 7"),
    ],
)
def test_an_invalid_command_line_is_rejected(arguments, expected):
    done = run(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr


def test_a_name_that_can_never_match_is_an_error():
    done = run("bench", "--name", "==")
    assert done.returncode == 4
    assert "can never match" in done.stderr


def test_without_names_a_search_of_each_kind_is_measured():
    done = run("bench", "--json", "--seconds", "0.05", "--threads", "1")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["case"] for row in rows} == {
        "sha1",
        "doctor at distance 0",
        "git-commit c0ffee1",
        "hashcash, 44 bits",
        "doctor, after a prefix",
        "c0ffee1 in hex",
        "doctor in base32",
    }
