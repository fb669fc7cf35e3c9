"""The recipes, each seen to be right by another program: git, hashcash, sha1sum and the like."""

import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest
from conftest import HASHFINDER, PATIENCE_S, Process
from test_status import Terminal

README = pathlib.Path(__file__).parents[4] / "README.md"

# A command that the README shows, and what it prints.
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:[^$].*\n)*)", re.MULTILINE)

# One whose nonce takes years.
LONG = "0123456789abcdef"


def recipe(*arguments, **kwargs):
    return subprocess.run(
        [HASHFINDER, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        **kwargs,
    )


class Repository:
    """A repository, with a branch `main` and a user of its own."""

    def __init__(self, path, format="sha1"):
        self.path = path
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_")
        } | {
            "HOME": str(path.parent),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Åsa Author",
            "GIT_AUTHOR_EMAIL": "asa@example.com",
            "GIT_AUTHOR_DATE": "2001-02-03T04:05:06+0700",
            "GIT_COMMITTER_NAME": "Carl Committer",
            "GIT_COMMITTER_EMAIL": "carl@example.com",
            "GIT_COMMITTER_DATE": "2002-03-04T05:06:07-0800",
        }
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main", f"--object-format={format}")

    def git(self, *arguments, input=b"", check=True):
        """What git prints."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=self.environment,
            input=input,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        assert not check or done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    def commit(self, message, *flags):
        """Commits the message as it is, and a file that holds it."""
        (self.path / "file").write_bytes(message)
        self.git("add", "file")
        if message:
            flags = ["--file=-", *flags]
        else:
            flags = ["--allow-empty-message", "--message=", *flags]
        self.git("commit", "--quiet", "--cleanup=verbatim", *flags, input=message)

    def head(self):
        return self.git("rev-parse", "HEAD").decode().strip()

    def nonce(self, *arguments):
        return recipe("git-commit", *arguments, cwd=self.path, env=self.environment)

    def checked(self, prefix, *flags):
        """Gives HEAD an ID with the prefix, and checks that nothing but its message has changed."""
        what = "--format=%T%n%P%n%an%n%ae%n%ad%n%cn%n%ce%n%cd%n%e"
        before = self.git("log", "-1", what)
        done = self.nonce(prefix, "--write", "--quiet", *flags)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == self.head() + "\n"
        assert done.stdout.startswith(prefix)
        assert self.git("log", "-1", what) == before
        self.git("fsck", "--strict")
        return self.message()

    def message(self):
        return self.git("cat-file", "commit", "HEAD").split(b"\n\n", 1)[1]


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.mark.parametrize(
    "message, expected",
    [
        (b"One line\n", rb"One line\n\nNonce: \w+\n"),
        (b"No end", rb"No end\n\nNonce: \w+\n"),
        (b"", rb"\nNonce: \w+\n"),
        (b"Some\n\nlines\nof text\n\n\n", rb"Some\n\nlines\nof text\n\nNonce: \w+\n"),
        (
            b"With\n\ntext\n\nFixes: 12\nSigned-off-by: A <a@b>\n",
            rb"With\n\ntext\n\nFixes: 12\nSigned-off-by: A <a@b>\nNonce: \w+\n",
        ),
    ],
)
def test_the_nonce_is_a_trailer_at_the_end_of_the_message(repository, message, expected):
    repository.commit(message)
    assert re.fullmatch(expected, repository.checked("abc"))
    trailers = repository.git("log", "-1", "--format=%(trailers)").decode().split()
    # Of an empty message it is the first line, and no trailer to Git.
    assert trailers.count("Nonce:") == int(message != b"")
    assert ("Fixes:" in trailers) == (b"Fixes:" in message)


def test_another_run_replaces_the_nonce(repository):
    repository.commit(b"One\n\nAcked-by: A <a@b>\n")
    first = repository.checked("abc")
    second = repository.checked("def")
    assert first != second
    assert second.count(b"Nonce:") == 1
    # And finds the same as the first did, where the prefix is the same.
    assert repository.checked("abc") == first
    # Also one to which somebody has added something.
    repository.commit(first + b"Reviewed-by: B <b@c>\n", "--amend")
    found = repository.checked("123")
    assert re.fullmatch(
        rb"One\n\nAcked-by: A <a@b>\nReviewed-by: B <b@c>\nNonce: \w+\n", found
    )


def test_without_write_it_is_only_told(repository):
    repository.commit(b"One\n")
    before, objects = repository.head(), repository.git("count-objects")
    done = repository.nonce("abc")
    assert done.returncode == 0
    assert re.fullmatch(r"abc[0-9a-f]{37}\n", done.stdout)
    assert (repository.head(), repository.git("count-objects")) == (before, objects)
    command = re.search(r"make it HEAD with: hashfinder (git-commit abc --from \w+ --write)", done.stderr)
    again = recipe(*command[1].split(), cwd=repository.path, env=repository.environment)
    assert again.stdout == done.stdout
    assert repository.head() + "\n" == done.stdout


def test_merges_and_those_after_them(repository):
    repository.commit(b"One\n")
    repository.git("checkout", "--quiet", "-b", "other")
    repository.git("commit", "--quiet", "--allow-empty", "--message=Other")
    repository.git("checkout", "--quiet", "main")
    repository.git("commit", "--quiet", "--allow-empty", "--message=Main")
    repository.git("merge", "--quiet", "--message=Merge", "other")
    assert len(repository.git("log", "-1", "--format=%P").split()) == 2
    assert re.fullmatch(rb"Merge\n\nNonce: \w+\n", repository.checked("abc"))


def test_a_message_in_another_encoding(repository):
    repository.git("config", "i18n.commitEncoding", "ISO-8859-1")
    repository.commit(b"\xe9t\xe9\n\nG\xfcnther war hier\n")
    assert re.fullmatch(
        rb"\xe9t\xe9\n\nG\xfcnther war hier\n\nNonce: \w+\n", repository.checked("abc")
    )
    assert repository.git("log", "-1", "--encoding=UTF-8", "--format=%s").decode() == "été\n"


def test_signed_commits_are_refused(repository, tmp_path):
    key = tmp_path / "key"
    if shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh-keygen to sign with")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    repository.git("config", "gpg.format", "ssh")
    repository.git("config", "user.signingKey", str(key))
    repository.commit(b"Signed\n", "--gpg-sign")
    before = repository.head()
    assert b"gpgsig" in repository.git("cat-file", "commit", "HEAD")
    done = repository.nonce("abc", "--write")
    assert (done.returncode, done.stdout) == (2, "")
    assert "signed" in done.stderr and "--drop-signature" in done.stderr
    assert repository.head() == before
    assert re.fullmatch(rb"Signed\n\nNonce: \w+\n", repository.checked("abc", "--drop-signature"))
    assert b"gpgsig" not in repository.git("cat-file", "commit", "HEAD")


def test_the_index_and_the_work_tree_are_not_touched(repository):
    repository.commit(b"One\n")
    (repository.path / "file").write_text("changed")
    (repository.path / "staged").write_text("staged")
    (repository.path / "new").write_text("new")
    repository.git("add", "staged")
    before = repository.git("status", "--porcelain"), repository.git("diff")
    repository.checked("abc")
    assert (repository.git("status", "--porcelain"), repository.git("diff")) == before


def test_a_detached_head(repository):
    repository.commit(b"One\n")
    main = repository.head()
    repository.git("checkout", "--quiet", "--detach")
    repository.checked("abc")
    assert repository.git("rev-parse", "main").decode().strip() == main
    assert repository.git("symbolic-ref", "--quiet", "HEAD", check=False) == b""


def test_what_is_there_is_kept_in_the_reflog(repository):
    repository.commit(b"One\n")
    before = repository.head()
    repository.checked("abc")
    for reference in ["HEAD", "main"]:
        assert repository.git("rev-parse", f"{reference}@{{1}}").decode().strip() == before
        log = repository.git("reflog", "-1", reference).decode()
        assert f"commit (nonce): {repository.head()} instead of {before}" in log


def test_a_newer_commit_of_somebody_else_is_not_lost(repository, tmp_path):
    repository.commit(b"One\n")
    # It stands in for git, and commits something just before the branch is moved.
    real = shutil.which("git")
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "git"
    script.write_text(
        "#!/bin/sh\n"
        f'case " $* " in *" update-ref "*) "{real}" commit --quiet --allow-empty -m Theirs;; esac\n'
        f'exec "{real}" "$@"\n'
    )
    script.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    arguments = ["git-commit", "abc", "--write"]
    done = recipe(*arguments, cwd=repository.path, env=repository.environment | {"PATH": path})
    assert (done.returncode, done.stdout) == (5, "")
    assert "refs/heads/main was not moved" in done.stderr and "run this again" in done.stderr
    assert repository.message() == b"Theirs\n"
    repository.git("fsck", "--strict")
    assert re.fullmatch(rb"Theirs\n\nNonce: \w+\n", repository.checked("abc"))


def test_sha256(tmp_path):
    repository = Repository(tmp_path / "repository", format="sha256")
    repository.commit(b"One\n")
    assert len(repository.head()) == 64
    repository.checked("abc")


def test_a_replaced_commit_is_itself(repository):
    repository.commit(b"One\n")
    first = repository.head()
    repository.commit(b"Other\n", "--amend")
    repository.git("replace", first, "HEAD")
    repository.git("update-ref", "refs/heads/main", first)
    assert b"Other" in repository.git("log", "-1", "--format=%s")
    assert repository.nonce("abc", "--write").returncode == 0
    assert repository.message().startswith(b"One\n")


def test_a_length_that_is_exhausted_is_followed_by_the_next(repository):
    repository.commit(b"One\n")
    # The last two nonces of two letters, of which none will do, and the first ones of three.
    done = repository.nonce("abcd", "--write", "--from", "zy")
    assert done.returncode == 0
    assert re.fullmatch(rb"One\n\nNonce: \w{3,4}\n", repository.message())
    tried = int(re.search(r"hashfinder: (\d+) secrets in ", done.stderr)[1])
    assert tried > 2
    repository.git("fsck", "--strict")


def test_stopped_it_goes_on_where_it_was(repository, processes):
    repository.commit(b"One\n")
    where = {"cwd": repository.path, "env": repository.environment}
    process = Process([HASHFINDER, "git-commit", LONG, "--write"], **where)
    processes.append(process)
    process.wait_until_busy()
    process.send(signal.SIGINT)
    assert process.wait() == 130
    said = process.rest_of_stderr()
    assert "stopped by SIGINT" in said
    found = re.search(rf"go on with: hashfinder (git-commit {LONG} --from (\w+) --write)$", said)
    stopped_at = found[2]
    done = recipe(*found[1].split(), "--maximum-time", "1ms", **where)
    assert done.returncode == 3
    assert "the maximum time of 1ms has passed" in done.stderr
    again = re.search(r"--from (\w+) --write", done.stderr)[1]
    # Digits, capitals and small letters are tried in this order, and so they are compared.
    assert len(again) == len(stopped_at) and again >= stopped_at
    assert repository.message() == b"One\n"


def test_quietly(repository):
    repository.commit(b"One\n")
    done = repository.nonce(LONG, "--quiet", "--maximum-time", "1ms")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


class GitCommit(Terminal):
    COMMAND = "git-commit"


def test_a_terminal_shows_how_it_comes_on(repository):
    repository.commit(b"One\n")
    where = ["--repository", str(repository.path)]
    terminal = GitCommit(LONG, *where, size=(200, 24), **repository.environment)
    try:
        terminal.wait_for("chance by now under 0.01%")
        terminal.press(b"\x03")
        assert terminal.wait() == 130
    finally:
        terminal.end()
    said = "\n".join(terminal.screen())
    assert "chance by now" not in said
    assert re.search(rf"git-commit {LONG} --repository {repository.path} --from \w+$", said, re.M)


def test_what_is_no_commit(repository, tmp_path):
    # A branch without commits, a folder without a repository, and none at all.
    assert "git says" in repository.nonce("abc").stderr
    environment = repository.environment | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    for path in [tmp_path, tmp_path / "nowhere"]:
        done = recipe("git-commit", "abc", "--repository", str(path), env=environment)
        assert (done.returncode, done.stdout) == (5, "")
        assert "git says: fatal" in done.stderr
    done = recipe("git-commit", "abc", cwd=tmp_path, env=environment | {"PATH": str(tmp_path)})
    assert done.returncode == 5
    assert "cannot run git" in done.stderr


def test_a_prefix_that_is_too_long(repository):
    repository.commit(b"One\n")
    done = repository.nonce("0" * 41)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the prefix has 41 digits; an ID here has only 40" in done.stderr
    done = repository.nonce("0" * 40, "--maximum-time", "1ms")
    assert done.returncode == 3


def test_a_commit_that_is_too_long(repository):
    repository.commit(b"x" * 70_000 + b"\n")
    done = repository.nonce("abc")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the commit is too long" in done.stderr


def zero_bits(stamp):
    digest = hashlib.sha1(stamp.encode()).digest()
    return 160 - int.from_bytes(digest, "big").bit_length()


@pytest.mark.parametrize("bits", [1, 4, 10, 11, 12, 15, 20])
def test_stamps(bits):
    done = recipe("hashcash", "me@example.com", "--bits", str(bits), "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    stamp = done.stdout.removesuffix("\n")
    form = rf"1:{bits}:\d{{6}}:me@example\.com::[\w+/]{{16}}:[0-9A-Za-z]+"
    assert re.fullmatch(form, stamp)
    assert zero_bits(stamp) >= bits
    done = recipe("hashcash", "--check", stamp, "me@example.com", "--bits", str(bits))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"right: {bits} bits for me@example.com")
    for wrong in [["me"], ["--bits", str(bits + 1)]]:
        done = recipe("hashcash", "--check", stamp, *wrong)
        assert done.returncode == 1
        assert done.stdout.startswith("wrong: ")


@pytest.mark.skipif(shutil.which("hashcash") is None, reason="there is no hashcash to ask")
def test_stamps_are_what_hashcash_takes_and_makes():
    stamp = recipe("hashcash", "me@example.com", "--bits", "14", "--quiet").stdout.strip()
    check = ["hashcash", "-c", "-b", "14", "-r", "me@example.com", stamp]
    said = subprocess.run(check, capture_output=True, text=True).stderr
    assert f"matched stamp: {stamp}" in said and "check: ok" in said
    mint = ["hashcash", "-m", "-q", "-b", "12", "-r", "me@example.com"]
    theirs = subprocess.run(mint, capture_output=True, text=True, check=True).stdout.strip()
    done = recipe("hashcash", "--check", theirs, "me@example.com", "--bits", "12")
    assert done.returncode == 0, (theirs, done)


def test_a_stamp_has_its_date():
    done = recipe("hashcash", "x", "--bits", "1", "--date", "2402291530", "--quiet")
    assert done.stdout.startswith("1:1:2402291530:x::")
    assert recipe("hashcash", "--check", done.stdout.strip()).returncode == 0


def test_no_two_stamps_are_the_same():
    stamps = {recipe("hashcash", "x", "--bits", "1").stdout for _ in range(5)}
    assert len(stamps) == 5


def test_a_stamp_that_takes_too_long():
    done = recipe("hashcash", "x", "--bits", "160", "--maximum-time", "1ms")
    assert (done.returncode, done.stdout) == (3, "")
    assert "under 0.01% of such searches" in done.stderr
    assert "the same command" in done.stderr


def test_the_readme_is_right(tmp_path):
    """What stands under "Recipes" is what happens, to the letter, but for the commit and the stamp."""
    section = README.read_text().split("\n## Recipes\n")[1].split("\n## ")[0]
    repository = Repository(tmp_path / "repository")
    repository.commit(b"One\n")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "hashfinder").symlink_to(HASHFINDER)
    environment = repository.environment | {"PATH": f"{folder}:{os.environ['PATH']}"}
    count = 0
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for command, expected in COMMAND.findall(block):
            count += 1
            said = subprocess.run(
                ["bash", "-c", f"set -o pipefail; {command}"],
                cwd=repository.path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            assert said.returncode == 0, (command, said)
            if "git" in command or "hashcash" in command:
                # The prefix and the form are the same.
                assert bool(said.stdout) == bool(expected), (command, said)
                for ours, theirs in zip(said.stdout.splitlines(), expected.splitlines()):
                    assert ours[:4] == theirs[:4], (command, said)
            else:
                assert said.stdout == expected, (command, said)
    assert count > 10
