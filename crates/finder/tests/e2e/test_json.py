"""`hashfinder find` for scripts: JSON, quiet mode, colours, and several results."""

import json
import os
import pty
import re
import subprocess

import jsonschema
import pytest
from conftest import (
    HASHFINDER,
    PROTOS,
    SIGINT,
    distance,
    line_of,
    run_find,
    secrets,
)
from test_find import HARD, cursor, cursor_in, lines, position_of

SCHEMA = json.loads((PROTOS.parent / "docs/find.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def records(stdout):
    """Checks the output against the schema. Returns the records of findings, and the end record."""
    all_records = [json.loads(line) for line in stdout.splitlines()]
    for record in all_records:
        VALIDATOR.validate(record)
    *findings, end = all_records
    assert [record["type"] for record in all_records].count("end") == 1
    assert end["type"] == "end"
    return findings, end


def as_line(record):
    keys = ["hashed_name", "secret", "hex", "distance", "window", "name"]
    return "\t".join(str(record[key]) or "(empty)" for key in keys)


def index_of(digits):
    """Returns the index of the secret with this hexadecimal form."""
    return next(index for index, secret in enumerate(secrets()) if secret.hex() == digits)


def ideals(name, count):
    """Returns the lines of the first secrets that spell a name."""
    found = (secret for secret in secrets() if distance(secret, name)[0] == 0)
    return [line_of(secret, name) for secret, _ in zip(found, range(count))]


def test_the_schema_rejects_wrong_records():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    stdout = run_find("aa", "--show-inferior", "2", "--json").stdout
    for line in (stdout.splitlines()[0], *stdout.splitlines()[-2:]):
        right = json.loads(line)
        assert VALIDATOR.is_valid(right)
        for key in right:
            assert not VALIDATOR.is_valid({k: v for k, v in right.items() if k != key}), key
        assert not VALIDATOR.is_valid(right | {"more": 1})
        assert not VALIDATOR.is_valid(right | {"type": "other"})


def test_json_has_the_same_results_as_the_lines():
    arguments = ["doctor", "--ideal-distance", "2", "--show-inferior", "4"]
    done = run_find(*arguments, "--json", "--color", "always")
    assert done.returncode == 0
    findings, end = records(done.stdout)
    assert [as_line(record) for record in findings] == lines("doctor", 2, 4)
    kinds = [record["type"] for record in findings]
    assert kinds == ["candidate"] * (len(findings) - 1) + ["result"]
    hashes = 1 + index_of(findings[-1]["hex"])
    assert (end["how"], end["exit_code"], end["hashes"]) == ("found", 0, hashes)
    assert (end["names"], end["ideal_distance"], end["interesting_distance"]) == (["doctor"], 2, 4)
    assert (end["results"], end["cursor"]) == (1, None)


def test_json_of_a_search_on_a_server_has_the_same_results(serve):
    done = run_find("doc", "--show-inferior", "2", "--json", "--server", serve().address)
    findings, end = records(done.stdout)
    assert [as_line(record) for record in findings] == lines("doc", 0, 2)
    assert (end["how"], end["hashes"]) == ("found", 1 + index_of(findings[-1]["hex"]))


def test_json_has_no_hash_count_if_the_server_does_not_report_it(reference):
    done = run_find("aa", "--json", "--server", reference().address)
    findings, end = records(done.stdout)
    assert [as_line(record) for record in findings] == lines("aa", 0)
    assert (end["how"], end["hashes"]) == ("found", None)


def test_json_reports_the_end_at_a_hash_budget():
    done = run_find(HARD, "--maximum-hashes", "100000", "--json")
    assert done.returncode == 3
    findings, end = records(done.stdout)
    assert findings == []
    assert (end["how"], end["exit_code"], end["hashes"]) == ("limit", 3, 100_000)
    assert position_of(end["cursor"]) == cursor(HARD, 100_000)
    assert end["cursor"] == cursor_in(done.stderr)
    # The nearest secret is reported although no candidates were requested.
    assert distance(bytes.fromhex(end["nearest"]["hex"]), HARD)[0] == end["nearest"]["distance"]


def test_json_reports_the_end_at_a_signal(find):
    process = find(HARD, "--json")
    process.wait_until_busy()
    process.send(SIGINT)
    assert process.wait() == 130
    _, end = records(process.popen.stdout.read())
    assert (end["how"], end["exit_code"]) == ("stopped", 130)
    assert position_of(end["cursor"]) == cursor(HARD, end["hashes"])


@pytest.mark.parametrize(
    ("arguments", "how", "code"),
    [
        (["doc-tor"], "impossible", 4),
        (["doc", "--server", "127.0.0.1:1", "--connect-timeout", "100ms"], "failed", 5),
        (["--resume", cursor(HARD, 2**64 - 1000)], "exhausted", 1),
    ],
)
def test_json_always_has_an_end_record(arguments, how, code):
    done = run_find(*arguments, "--json")
    assert done.returncode == code
    findings, end = records(done.stdout)
    assert findings == []
    assert (end["how"], end["exit_code"]) == (how, code)
    assert end["why"] in done.stderr


def test_json_succeeds_if_the_reader_closes_the_pipe():
    finding = subprocess.Popen(
        [HASHFINDER, "find", HARD, "--show-inferior", "20", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert json.loads(finding.stdout.readline())["hashed_name"] == "2jmj7l5rSw0yVb/vlWAYkK/YBwk="
    finding.stdout.close()
    assert finding.wait(30) == 0
    assert finding.stderr.read() == ""


def test_quiet_prints_only_errors():
    done = run_find("doc", "--quiet")
    assert (done.stdout.splitlines(), done.stderr) == (lines("doc", 0), "")
    done = run_find(HARD, "--maximum-hashes", "1000", "--quiet")
    assert (done.returncode, done.stderr) == (3, "")
    done = run_find("doc-tor", "--quiet")
    assert (done.returncode, "can never match" in done.stderr) == (4, True)
    done = run_find("doc", "--quiet", "--server", "127.0.0.1:1", "--connect-timeout", "300ms")
    assert done.returncode == 5
    [line] = done.stderr.splitlines()
    assert "cannot reach 127.0.0.1:1" in line


def on_a_terminal(*arguments, **environment):
    """Returns what `find` prints on stdout if that is a terminal and stderr is not."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm"} | environment
    done = subprocess.run(
        [HASHFINDER, "find", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=environment,
        timeout=30,
    )
    assert done.returncode == 0
    text = os.read(controller, 10_000).decode()
    os.close(terminal)
    os.close(controller)
    return text


IN_COLOUR = "Sp0\x1b[1;32mdOCTOR\x1b[0muYUE/jHhX6sk5+8rvA=\tpO0G\ta4ed06\t0\t3\tdoctor"
PLAIN = "Sp0dOCTORuYUE/jHhX6sk5+8rvA=\tpO0G\ta4ed06\t0\t3\tdoctor"


@pytest.mark.parametrize(
    ("arguments", "environment", "shown"),
    [
        ([], {}, IN_COLOUR),
        ([], {"NO_COLOR": ""}, IN_COLOUR),
        ([], {"NO_COLOR": "1"}, PLAIN),
        ([], {"TERM": "dumb"}, PLAIN),
        (["--color", "never"], {}, PLAIN),
        (["--color", "always"], {"NO_COLOR": "1"}, IN_COLOUR),
    ],
)
def test_the_match_is_coloured_on_a_terminal(arguments, environment, shown):
    assert on_a_terminal("doctor", *arguments, **environment) == shown + "\r\n"


def test_without_a_terminal_colour_must_be_requested():
    assert run_find("doctor").stdout == PLAIN + "\n"
    assert run_find("doctor", "--color", "always").stdout == IN_COLOUR + "\n"


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("kernel", [[], ["--kernel", "portable"]])
def test_a_search_continues_until_it_has_found_the_given_count(threads, kernel):
    done = run_find("aa", "--count", "20", "--threads", threads, *kernel)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ideals("aa", 20)


def test_candidates_are_reported_between_several_results():
    several = run_find("doc", "--count", "3", "--show-inferior", "2", "--json")
    findings, end = records(several.stdout)
    assert (end["results"], end["how"]) == (3, "found")
    results = [as_line(record) for record in findings if record["type"] == "result"]
    assert results == ideals("doc", 3)
    # Several searches, of which each resumes after the last result, print the same.
    printed = []
    arguments = ["doc", "--show-inferior", "2"]
    for _ in range(3):
        printed += run_find(*arguments).stdout.splitlines()
        secret = bytes.fromhex(printed[-1].split("\t")[2])
        index = sum(256**k for k in range(len(secret))) + int.from_bytes(secret, "big")
        arguments = ["--resume", cursor("doc", index + 1, interesting=2)]
    assert [as_line(record) for record in findings] == printed


def test_the_hash_budget_covers_all_results_together():
    everything, end = records(run_find("aa", "--count", "10", "--json").stdout)
    enough = end["hashes"]
    for hashes, how, results in [(enough, "found", 10), (enough - 1, "limit", 9)]:
        done = run_find("aa", "--count", "10", "--json", "--maximum-hashes", str(hashes))
        findings, end = records(done.stdout)
        assert findings == everything[:results]
        assert (end["how"], end["results"], end["hashes"]) == (how, results, hashes)
    # The budget ends at a result that is not the last.
    done = run_find("aa", "--count", "11", "--json", "--maximum-hashes", str(enough))
    findings, end = records(done.stdout)
    assert findings == everything
    assert (end["how"], end["results"], end["hashes"]) == ("limit", 10, enough)
    assert position_of(end["cursor"]) == cursor("aa", enough)


def test_a_signal_stops_a_search_for_several_results(find):
    process = find("aa", "--count", "1000000000", "--json")
    read = [process.popen.stdout.readline() for _ in range(500)]
    process.send(SIGINT)
    rest = process.popen.stdout.read()
    assert process.wait() == 130
    findings, end = records("".join(read) + rest)
    assert end["results"] == len(findings)
    assert [as_line(record) for record in findings[:20]] == ideals("aa", 20)
    again, _ = records(run_find("--resume", end["cursor"], "--json").stdout)
    everything, _ = records(run_find("aa", "--json", "--count", str(len(findings) + 1)).stdout)
    assert everything == findings + again


def test_the_timeout_covers_all_results_together():
    done = run_find("docto", "--count", "1000000", "--maximum-time", "500ms", "--json")
    assert done.returncode == 3
    findings, end = records(done.stdout)
    # If the limit applied to each result, this would hardly ever end.
    assert (end["how"], end["results"]) == ("limit", len(findings))


def test_the_keyspace_may_end_before_the_given_count_is_found():
    begin = 2**64 - 100_000
    done = run_find("--resume", cursor("aa", begin), "--count", "100000", "--json")
    assert done.returncode == 1
    findings, end = records(done.stdout)
    assert (end["how"], end["hashes"]) == ("exhausted", 2**64 - 1 - begin)
    assert 0 < end["results"] == len(findings)
    assert f"and only {len(findings)} found" in done.stderr


def test_the_resume_command_requests_the_remaining_results():
    expected = ideals("doc", 3)
    budget = index_of(expected[0].split("\t")[2]) + 1
    first = run_find("doc", "--count", "3", "--maximum-hashes", str(budget))
    assert first.stdout.splitlines() == expected[:1]
    assert re.search(r"resume with: hashfinder find --count 2 --resume hf3_\S+\n", first.stderr)
    again = run_find("--count", "2", "--resume", cursor_in(first.stderr))
    assert again.stdout.splitlines() == expected[1:]
