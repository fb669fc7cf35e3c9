"""`hashfinder find --session`: the same command resumes a search, no matter how it ended."""

import json
import os
import pathlib
import re
import subprocess
import time

import pytest
from conftest import HASHFINDER, SIGINT, SIGKILL, TIMEOUT_S, run_find
from test_find import HARD, cursor, cursor_in, position_of
from test_json import records
from test_resume import index_of

# A search for three results with some thousand candidates.
SHORT = ["docto", "--show-inferior", "3", "--count", "3", "--kernel", "portable", "--threads", "1"]


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Returns the folder of this test's sessions."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/hashfinder/sessions"


def read_session(state, name="night"):
    return json.loads((state / name).read_text())


@pytest.fixture(scope="module")
def unstopped():
    done = run_find(*SHORT)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(set(lines)) == len(lines) > 1000
    return lines


def test_a_session_is_saved_during_the_search(state, find):
    # Few candidates are found, so that they fit into the pipe.
    process = find("hashfinder", "--show-inferior", "4", "--session", "night")
    first = process.popen.stdout.readline()
    seen = set()
    deadline = time.monotonic() + TIMEOUT_S
    while len(seen) < 4:
        assert time.monotonic() < deadline, seen
        seen.add(read_session(state)["cursor"])
        time.sleep(0.01)
    process.send(SIGKILL)
    process.wait()
    before = (first + process.popen.stdout.read()).split("\n")[:-1]
    saved = read_session(state)["cursor"]
    # The next run starts at the cursor that was written last, beyond all that was printed before.
    again = run_find(
        "hashfinder", "--show-inferior", "4", "--session", "night", "--maximum-hashes", "200000000"
    )
    tried = re.search(r"session night: resuming after ([\d,]+) hashes", again.stderr)[1]
    frontier = int(tried.replace(",", ""))
    assert cursor("hashfinder", frontier, interesting=4) == position_of(saved)
    assert frontier > index_of(first)
    after = again.stdout.splitlines()
    assert all(index_of(line) >= frontier for line in after)
    # Together, the two runs miss nothing.
    everything = run_find(
        "hashfinder", "--show-inferior", "4", "--maximum-hashes", str(frontier + 200_000_000)
    ).stdout.splitlines()
    both = [line for line in before if index_of(line) < frontier] + after
    assert both == everything


def test_a_session_is_resumed_and_removed_when_it_is_finished(state):
    first = run_find("docto", "--session", "night", "--maximum-hashes", "1000")
    assert first.returncode == 3
    assert "resume with: the same command" in first.stderr
    session = read_session(state)
    session["cursor"] = position_of(session["cursor"])
    assert session == {
        "version": 1,
        "cursor": cursor("docto", 1000),
        "count": 1,
        "found": 0,
    }
    second = run_find("docto", "--session", "night", "--quiet")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == run_find("docto").stdout
    assert list(state.iterdir()) == []
    third = run_find("docto", "--session", "night")
    assert "resuming" not in third.stderr
    assert third.stdout == second.stdout


def test_results_are_counted_over_all_runs(state):
    everything = run_find("aa", "--count", "10").stdout
    printed = ""
    for hashes in ["200", "300", "1000000"]:
        printed += run_find(
            "aa", "--count", "10", "--session", "night", "--maximum-hashes", hashes
        ).stdout
    assert printed == everything
    assert list(state.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        ["docto"],
        ["doctor", "--ideal-distance", "1"],
        ["doctor", "--show-inferior", "3"],
        ["doctor", "--count", "2"],
        ["Doctor"],
    ],
)
def test_a_session_rejects_another_search_and_prints_how_to_drop_it(state, other, monkeypatch):
    state = state.parents[2] / "it's a place/hashfinder/sessions"
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parents[1]))
    run_find("doctor", "--session", "night", "--maximum-hashes", "1000")
    before = read_session(state)
    rejected = run_find(*other, "--session", "night", "--json")
    assert rejected.returncode == 2
    _, end = records(rejected.stdout)
    assert (end["how"], end["exit_code"], end["cursor"]) == ("refused", 2, None)
    assert f"hashfinder: {end['why']}\n" == rejected.stderr
    rejected = run_find(*other, "--session", "night")
    assert (rejected.returncode, rejected.stdout) == (2, "")
    assert "holds another search: find 'doctor' --ideal-distance 0" in rejected.stderr
    assert read_session(state) == before
    drop = rejected.stderr.rsplit("remove the session with: ", 1)[1]
    subprocess.run(["sh", "-c", drop], check=True)
    assert run_find(*other, "--session", "night", "--maximum-hashes", "1").returncode == 3


def test_only_one_process_at_a_time_can_use_a_session(state, find):
    first = find(HARD, "--session", "night")
    first.wait_until_busy()
    second = run_find(HARD, "--session", "night")
    assert second.returncode == 5
    assert "another process uses session night" in second.stderr
    # Another session is independent.
    other = run_find(HARD, "--session", "day", "--maximum-hashes", "1000")
    assert other.returncode == 3
    first.send(SIGKILL)
    first.wait()
    # A kill releases the session.
    third = run_find(HARD, "--session", "night", "--maximum-hashes", "1000")
    assert third.returncode == 3


def test_the_lock_file_of_a_session_exists_only_while_it_is_in_use(state, find):
    """Regression: lock files of sessions without results, or removed by hand, stayed forever."""
    process = find(HARD, "--session", "night")
    process.wait_until_busy()
    assert (state / ".night.lock").exists()
    process.send(SIGINT)
    assert process.wait() == 130
    assert os.listdir(state) == ["night"]
    # A run that is rejected, or whose session is in use, leaves no lock file and removes none.
    assert run_find("other", "--session", "night").returncode == 2
    assert os.listdir(state) == ["night"]
    process = find(HARD, "--session", "night")
    process.wait_until_busy()
    assert run_find(HARD, "--session", "night").returncode == 5
    assert (state / ".night.lock").exists()
    # A kill leaves the lock file, and the next run removes it.
    process.send(SIGKILL)
    process.wait()
    assert (state / ".night.lock").exists()
    assert run_find(HARD, "--session", "night", "--maximum-hashes", "1000").returncode == 3
    assert os.listdir(state) == ["night"]


def test_of_many_processes_only_one_uses_a_session(state):
    """Each result is printed once, no matter how often the lock file is created and removed."""
    search = ["aa", "--count", "1000000"]
    command = [HASHFINDER, "find", *search, "--session", "night", "--maximum-hashes", "300", "--quiet"]
    printed, ran = [], 0
    for _ in range(5):
        runs = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(6)
        ]
        for run in runs:
            stdout, stderr = run.communicate(timeout=TIMEOUT_S)
            printed += stdout.splitlines()
            if run.returncode == 5:
                assert (stdout, "another process uses session" in stderr) == ("", True)
            else:
                assert (run.returncode, stderr) == (3, "")
                ran += 1
    assert ran >= 5
    expected = run_find(*search, "--maximum-hashes", str(300 * ran)).stdout.splitlines()
    assert sorted(printed) == sorted(expected)
    assert os.listdir(state) == ["night"]


def test_a_damaged_session_is_rejected(state):
    run_find("doctor", "--session", "night", "--maximum-hashes", "1000")
    text = (state / "night").read_text()
    for damaged in ["", text[:20], re.sub("(hf[13]_)A", r"\1B", text), "\0"]:
        (state / "night").write_text(damaged)
        done = run_find("doctor", "--session", "night")
        assert done.returncode == 5
        assert "is damaged" in done.stderr and "remove it with: rm " in done.stderr
        assert (state / "night").read_text() == damaged


def test_a_session_resumes_at_a_line_that_was_not_read(state, unstopped):
    arguments = [*SHORT, "--session", "night"]
    finding = subprocess.Popen([HASHFINDER, "find", *arguments], stdout=subprocess.PIPE, text=True)
    finding.stdout.readline()
    finding.stdout.close()
    assert finding.wait(30) == 0
    stderr = run_find(*arguments, "--maximum-hashes", "1").stderr
    frontier = int(re.search(r"resuming after ([\d,]+) hashes", stderr)[1].replace(",", ""))
    # It resumes at one of the lines, but not at the first one, because that was read.
    assert frontier in [index_of(line) for line in unstopped[1:]]


def test_a_session_needs_a_folder_that_can_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    done = run_find("doctor", "--session", "night", "--json")
    assert done.returncode == 5
    assert "cannot create the folder" in done.stderr
    assert json.loads(done.stdout)["how"] == "failed"


def test_by_default_the_state_folder_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in [None, "", "relative"]:
        if given is None:
            monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_STATE_HOME", given)
        run_find("doctor", "--session", "night", "--maximum-hashes", "1000")
        folder = pathlib.Path(tmp_path, ".local/state/hashfinder/sessions")
        assert (folder / "night").exists()
        assert os.stat(folder).st_mode & 0o777 == 0o700
        (folder / "night").unlink()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["doctor", "--session", ".night"], "1 to 64 letters"),
        (["doctor", "--session", "a/b"], "1 to 64 letters"),
        (["doctor", "--session", ""], "--session"),
        (["--resume", cursor("doctor", 5), "--session", "a"], "--session"),
    ],
)
def test_an_invalid_command_line_is_rejected(state, arguments, expected):
    done = run_find(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert not state.exists()


def nearest_in(stderr):
    """Returns the row of the nearest secret so far."""
    [row] = re.findall(r"nearest candidate so far:\n(.+)\n", stderr)
    return row


@pytest.mark.parametrize("server", [False, True])
def test_the_nearest_secret_is_kept_across_runs(state, serve, server):
    """Regression: only the last run counted. A short run after a long one lost the nearest secret
    of the long one."""
    where = ["--server", serve().address] if server else []
    arguments = [HARD, "--show-inferior", "16", *where]
    budget = ["--maximum-hashes", "100000"]
    first = run_find(*arguments, *budget)
    nearest = nearest_in(first.stderr)
    # With a cursor, then with the cursor of that run.
    last = first
    for _ in range(2):
        last = run_find("--resume", cursor_in(last.stderr), *where, "--maximum-hashes", "1")
        assert (last.returncode, last.stdout, nearest_in(last.stderr)) == (3, "", nearest)
    # With a session.
    again = [*arguments, "--session", "night"]
    assert nearest_in(run_find(*again, *budget).stderr) == nearest
    done = run_find(*again, "--maximum-hashes", "1", "--json")
    assert nearest_in(done.stderr) == nearest
    _, end = records(done.stdout)
    assert end["nearest"]["hex"] == nearest.split("\t")[2]
    assert end["cursor"] == json.loads((state / "night").read_text())["cursor"]


def test_a_secret_that_was_not_printed_is_not_the_nearest(state):
    """The search will find it again, so a cursor before this secret does not contain it."""
    process = subprocess.Popen(
        [HASHFINDER, "find", *SHORT, "--session", "night"], stdout=subprocess.PIPE, text=True
    )
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(TIMEOUT_S) == 0
    saved = read_session(state)["cursor"]
    stderr = run_find(*SHORT, "--session", "night").stderr
    frontier = int(re.search(r"after ([\d,]+) hashes", stderr)[1].replace(",", ""))
    assert frontier > index_of(first)
    assert position_of(saved) == cursor("docto", frontier, interesting=3)
