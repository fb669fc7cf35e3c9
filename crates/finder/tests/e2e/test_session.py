"""`hashfinder find --session`: however a search ends, the same command resumes it."""

import json
import os
import pathlib
import re
import subprocess
import time

import pytest
from conftest import HASHFINDER, PATIENCE_S, SIGINT, SIGKILL, run_find
from test_find import HARD, cursor, cursor_in, place_of
from test_json import records
from test_resume import index_of

# A search for three answers among some thousand candidates.
SHORT = ["docto", "--show-inferior", "3", "--count", "3", "--kernel", "portable", "--threads", "1"]


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Returns the folder of this test's sessions."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/hashfinder/sessions"


def kept(state, name="night"):
    return json.loads((state / name).read_text())


@pytest.fixture(scope="module")
def unstopped():
    done = run_find(*SHORT)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(set(lines)) == len(lines) > 1000
    return lines


def test_a_session_is_written_while_it_is_searched(state, find):
    # So few are found that they fit into the pipe.
    process = find("hashfinder", "--show-inferior", "4", "--session", "night")
    first = process.popen.stdout.readline()
    seen = set()
    deadline = time.monotonic() + PATIENCE_S
    while len(seen) < 4:
        assert time.monotonic() < deadline, seen
        seen.add(kept(state)["cursor"])
        time.sleep(0.01)
    process.send(SIGKILL)
    process.wait()
    before = (first + process.popen.stdout.read()).split("\n")[:-1]
    place = kept(state)["cursor"]
    # The next run starts at the cursor that was written last, beyond all that was printed before.
    again = run_find(
        "hashfinder", "--show-inferior", "4", "--session", "night", "--maximum-hashes", "200000000"
    )
    frontier = int(re.search(r"session night: going on after (\d+) hashes", again.stderr)[1])
    assert cursor("hashfinder", frontier, interesting=4) == place_of(place)
    assert frontier > index_of(first)
    after = again.stdout.splitlines()
    assert all(index_of(line) >= frontier for line in after)
    # Together the two runs leave nothing out.
    everything = run_find(
        "hashfinder", "--show-inferior", "4", "--maximum-hashes", str(frontier + 200_000_000)
    ).stdout.splitlines()
    both = [line for line in before if index_of(line) < frontier] + after
    assert both == everything


def test_a_session_says_that_it_goes_on_and_is_gone_when_it_is_finished(state):
    first = run_find("docto", "--session", "night", "--maximum-hashes", "1000")
    assert first.returncode == 3
    assert "go on with: the same command" in first.stderr
    session = kept(state)
    session["cursor"] = place_of(session["cursor"])
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
    assert "going on" not in third.stderr
    assert third.stdout == second.stdout


def test_answers_are_counted_over_all_runs(state):
    everything = run_find("aa", "--count", "10").stdout
    told = ""
    for hashes in ["200", "300", "1000000"]:
        told += run_find(
            "aa", "--count", "10", "--session", "night", "--maximum-hashes", hashes
        ).stdout
    assert told == everything
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
def test_another_search_is_refused_and_how_to_drop_the_session_is_said(state, other, monkeypatch):
    state = state.parents[2] / "it's a place/hashfinder/sessions"
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parents[1]))
    run_find("doctor", "--session", "night", "--maximum-hashes", "1000")
    before = kept(state)
    refused = run_find(*other, "--session", "night", "--json")
    assert refused.returncode == 2
    _, end = records(refused.stdout)
    assert (end["how"], end["exit_code"], end["cursor"]) == ("refused", 2, None)
    assert f"hashfinder: {end['why']}\n" == refused.stderr
    refused = run_find(*other, "--session", "night")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "holds another search: find 'doctor' --ideal-distance 0" in refused.stderr
    assert kept(state) == before
    drop = refused.stderr.rsplit("drop it with: ", 1)[1]
    subprocess.run(["sh", "-c", drop], check=True)
    assert run_find(*other, "--session", "night", "--maximum-hashes", "1").returncode == 3


def test_a_session_is_for_one_process_at_a_time(state, find):
    first = find(HARD, "--session", "night")
    first.wait_until_busy()
    second = run_find(HARD, "--session", "night")
    assert second.returncode == 5
    assert "another process has the session night" in second.stderr
    # Another session is independent.
    other = run_find(HARD, "--session", "day", "--maximum-hashes", "1000")
    assert other.returncode == 3
    first.send(SIGKILL)
    first.wait()
    # A kill releases the session.
    third = run_find(HARD, "--session", "night", "--maximum-hashes", "1000")
    assert third.returncode == 3


def test_the_lock_file_of_a_session_is_there_only_while_it_is_used(state, find):
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


def test_of_many_processes_one_has_a_session(state):
    """Each answer is printed once, however often the lock file is created and removed."""
    search = ["aa", "--count", "1000000"]
    command = [HASHFINDER, "find", *search, "--session", "night", "--maximum-hashes", "300", "--quiet"]
    told, ran = [], 0
    for _ in range(5):
        runs = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(6)
        ]
        for run in runs:
            stdout, stderr = run.communicate(timeout=PATIENCE_S)
            told += stdout.splitlines()
            if run.returncode == 5:
                assert (stdout, "another process has the session" in stderr) == ("", True)
            else:
                assert (run.returncode, stderr) == (3, "")
                ran += 1
    assert ran >= 5
    expected = run_find(*search, "--maximum-hashes", str(300 * ran)).stdout.splitlines()
    assert sorted(told) == sorted(expected)
    assert os.listdir(state) == ["night"]


def test_a_damaged_session_is_refused(state):
    run_find("doctor", "--session", "night", "--maximum-hashes", "1000")
    text = (state / "night").read_text()
    for damaged in ["", text[:20], re.sub("(hf[13]_)A", r"\1B", text), "\0"]:
        (state / "night").write_text(damaged)
        done = run_find("doctor", "--session", "night")
        assert done.returncode == 5
        assert "is damaged" in done.stderr and "drop it with: rm " in done.stderr
        assert (state / "night").read_text() == damaged


def test_a_reader_that_has_seen_enough_goes_on_with_what_it_has_not_seen(state, unstopped):
    arguments = [*SHORT, "--session", "night"]
    finding = subprocess.Popen([HASHFINDER, "find", *arguments], stdout=subprocess.PIPE, text=True)
    finding.stdout.readline()
    finding.stdout.close()
    assert finding.wait(30) == 0
    frontier = run_find(*arguments, "--maximum-hashes", "1").stderr
    frontier = int(re.search(r"going on after (\d+) hashes", frontier)[1])
    # It resumes at one of the lines, but not at the first, which was read.
    assert frontier in [index_of(line) for line in unstopped[1:]]


def test_no_session_without_a_place_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    done = run_find("doctor", "--session", "night", "--json")
    assert done.returncode == 5
    assert "cannot make the folder" in done.stderr
    assert json.loads(done.stdout)["how"] == "failed"


def test_the_state_folder_is_in_the_home_unless_it_is_said(tmp_path, monkeypatch):
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
    ("arguments", "says"),
    [
        (["doctor", "--session", ".night"], "1 to 64 letters"),
        (["doctor", "--session", "a/b"], "1 to 64 letters"),
        (["doctor", "--session", ""], "--session"),
        (["--resume", cursor("doctor", 5), "--session", "a"], "--session"),
    ],
)
def test_a_wrong_command_line(state, arguments, says):
    done = run_find(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert not state.exists()


def nearest_in(stderr):
    """Returns the row of the nearest secret so far."""
    [row] = re.findall(r"the nearest so far:\n(.+)\n", stderr)
    return row


@pytest.mark.parametrize("server", [False, True])
def test_the_nearest_so_far_outlives_the_run_that_found_it(state, serve, server):
    """Regression: only the last run counted. After a night's search and a short one, the night's
    nearest secret was lost."""
    where = ["--server", serve().address] if server else []
    asked = [HARD, "--show-inferior", "16", *where]
    budget = ["--maximum-hashes", "100000"]
    first = run_find(*asked, *budget)
    nearest = nearest_in(first.stderr)
    # With a cursor, then with the cursor of that run.
    place = first
    for _ in range(2):
        place = run_find("--resume", cursor_in(place.stderr), *where, "--maximum-hashes", "1")
        assert (place.returncode, place.stdout, nearest_in(place.stderr)) == (3, "", nearest)
    # With a session.
    again = [*asked, "--session", "night"]
    assert nearest_in(run_find(*again, *budget).stderr) == nearest
    done = run_find(*again, "--maximum-hashes", "1", "--json")
    assert nearest_in(done.stderr) == nearest
    _, end = records(done.stdout)
    assert end["nearest"]["hex"] == nearest.split("\t")[2]
    assert end["cursor"] == json.loads((state / "night").read_text())["cursor"]


def test_a_secret_that_was_not_printed_is_not_the_nearest(state):
    """It will be found again, so a cursor before it does not contain it."""
    process = subprocess.Popen(
        [HASHFINDER, "find", *SHORT, "--session", "night"], stdout=subprocess.PIPE, text=True
    )
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 0
    place = kept(state)["cursor"]
    frontier = int(
        re.search(r"after (\d+) hashes", run_find(*SHORT, "--session", "night").stderr)[1]
    )
    assert frontier > index_of(first)
    assert place_of(place) == cursor("docto", frontier, interesting=3)
