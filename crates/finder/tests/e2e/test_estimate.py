"""`hashfinder estimate` and `hashfinder verify`."""

import base64
import json
import math
import subprocess

import pytest
from conftest import FIRST_DOCTOR, HASHFINDER, hashed, line_of


def run(*arguments):
    return subprocess.run(
        [HASHFINDER, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def estimate(*arguments):
    done = run("estimate", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "distance", "chance"),
    [
        ("doctor", 0, "1.956e-08"),
        ("doctor", 1, "3.747e-06"),
        ("doctor", 2, "2.985e-04"),
        ("hashfinder", 3, "5.738e-08"),
    ],
)
def test_the_chance_determines_hashes_and_seconds(name, distance, chance):
    result = estimate(name, "--ideal-distance", str(distance), "--rate", "2e6")
    assert set(result) == {
        *("names", "algorithm", "encoding", "ideal_distance", "exact", "chance", "hashes"),
        *("hashes_per_second", "measured", "seconds"),
    }
    assert (result["names"], result["ideal_distance"]) == ([name], distance)
    assert (result["hashes_per_second"], result["measured"], result["exact"]) == (2e6, False, True)
    p = result["chance"]["low"]
    assert p == result["chance"]["high"]
    assert f"{p:.3e}" == chance
    points = {"expected": 1 / p}
    for key, ended in [("median", 0.5), ("p90", 0.9), ("p99", 0.99)]:
        points[key] = math.log1p(-ended) / math.log1p(-p)
    assert set(result["hashes"]) == set(result["seconds"]) == set(points)
    for key, hashes in points.items():
        for bound in ["low", "high"]:
            assert math.isclose(result["hashes"][key][bound], hashes, rel_tol=1e-9)
            assert math.isclose(result["seconds"][key][bound], hashes / 2e6, rel_tol=1e-9)


def test_an_inexact_chance_has_bounds():
    result = estimate("thequickbrownf", "--ideal-distance", "11", "--rate", "1e6")
    assert not result["exact"]
    for bounds in [result["chance"], *result["hashes"].values(), *result["seconds"].values()]:
        assert 0 < bounds["low"] < bounds["high"] < 1.2 * bounds["low"]
    done = run("estimate", "thequickbrownf", "--ideal-distance", "11", "--rate", "1e6")
    assert "lower and upper bounds" in done.stdout


def test_the_rate_is_measured_by_default():
    result = estimate("doctor")
    assert result["measured"]
    assert result["hashes_per_second"] > 1e4
    done = run("estimate", "doctor", "--kernel", "portable")
    assert "measured on this machine, portable" in done.stdout


def test_the_estimate_is_printed_as_a_table():
    done = run("estimate", "doctor", "--rate", "3e8")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "1 in 51 million hashes is within distance 0 of doctor (a chance of 1.956e-8)",
        "",
        "searches                               hashes   at 300 million per second (as given)",
        "on average                         51 million   170 ms",
        "50% finish within                  35 million   118 ms",
        "90% finish within                 118 million   392 ms",
        "99% finish within                 235 million   785 ms",
        "",
        "A search has no memory: however long it has run, these numbers stay the same.",
    ]


def test_an_estimate_says_if_the_secrets_may_not_suffice():
    done = run("estimate", "hashfinderhashfinder", "--rate", "3e8")
    assert "There are 1.8e19 secrets to try" in done.stdout
    assert "matches is 1.019e-10." in done.stdout


def test_at_a_distance_of_the_whole_name_every_hash_matches():
    done = run("estimate", "doctor", "--ideal-distance", "6", "--rate", "1")
    assert "every hash is within distance 6 of doctor" in done.stdout
    result = estimate("doctor", "--ideal-distance", "99", "--rate", "1")
    assert result["chance"] == {"low": 1, "high": 1}
    assert result["hashes"]["p99"] == {"low": 1, "high": 1}


@pytest.mark.parametrize("name", ["doc-tor", "==", "b=", "naïve"])
def test_a_name_that_can_never_match_is_an_error(name):
    done, found = run("estimate", name), run("find", name)
    assert done.returncode == found.returncode == 4
    assert done.stderr == found.stderr
    assert "can never match" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["estimate"], "NAME"),
        (["estimate", ""], "empty"),
        (["estimate", "doctor", "--rate", "0"], "3e8"),
        (["estimate", "doctor", "--rate", "inf"], "3e8"),
        (["estimate", "doctor", "--ideal-distance", "-1"], "-1"),
        (["verify", "pO0G"], "NAME"),
        (["verify", "pO0G", ""], "empty"),
        (["verify", "pO0", "doctor"], "not standard base64"),
        (["verify", "a4ed0", "doctor"], "--hex"),
        (["verify", "a4ed0", "doctor", "--hex"], "two digits"),
        (["verify", "0xa4ed06", "doctor", "--hex"], "not hexadecimal"),
    ],
)
def test_an_invalid_command_line_is_rejected(arguments, expected):
    done = run(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("secret", [b"", FIRST_DOCTOR, b"a secret that no search reaches"])
def test_verify_prints_what_find_prints(secret):
    text = base64.b64encode(secret).decode()
    for arguments in [[text, "doctor"], [secret.hex().upper(), "doctor", "--hex"]]:
        done = run("verify", *arguments, "--ideal-distance", "6")
        assert done.returncode == 0, done.stderr
        assert done.stdout == line_of(secret, "doctor") + "\n"


def test_verify_reports_whether_a_secret_is_near_enough():
    # This secret is at distance 4 from hashfinder, nearer than all before it.
    secret = bytes.fromhex("5de6")
    for distance, within in [(0, False), (3, False), (4, True), (5, True)]:
        arguments = ["5de6", "hashfinder", "--hex", "--ideal-distance", str(distance)]
        assert run("verify", *arguments).returncode == (0 if within else 1)
        done = run("verify", *arguments, "--json")
        assert done.returncode == (0 if within else 1)
        assert json.loads(done.stdout) == {
            "name": "hashfinder",
            "ideal_distance": distance,
            "hashed_name": hashed(secret),
            "secret": "XeY=",
            "hex": "5de6",
            "distance": 4,
            "window": 11,
            "within": within,
        }


def test_verify_accepts_what_find_prints():
    found = run("find", "doc", "--ideal-distance", "0").stdout
    secret = found.split("\t")[1]
    done = run("verify", secret, "doc")
    assert (done.returncode, done.stdout) == (0, found)


@pytest.mark.parametrize("command", ["estimate", "verify"])
def test_the_help_has_examples(command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"\n  hashfinder {command} " in done.stdout
    assert "Exit codes:" in done.stdout
