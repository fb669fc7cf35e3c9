"""`git-commit` and `hashcash`, checked with the programs git and hashcash."""

import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest
from conftest import HASHFINDER, TIMEOUT_S, Process
from test_status import Terminal

# A prefix whose nonce takes years to find.
LONG = "0123456789abcdef"


def recipe(*arguments, **kwargs):
    return subprocess.run(
        [HASHFINDER, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        **kwargs,
    )


class Repository:
    """A Git repository with a branch `main` and its own user."""

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

    def clone(self, path, *flags):
        """Clones with a `file://` URL, so that `flags` can cut off the history."""
        self.git("clone", "--quiet", *flags, f"file://{self.path}", str(path))
        clone = object.__new__(Repository)
        clone.path, clone.environment = path, self.environment
        return clone

    def git(self, *arguments, input=b"", check=True):
        """Returns git's stdout."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env=self.environment,
            input=input,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
        assert not check or done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    def commit(self, message, *flags):
        """Commits a file with exactly this message. The file contains it, too."""
        (self.path / "file").write_bytes(message)
        self.git("add", "file")
        if message:
            flags = ["--file=-", *flags]
        else:
            flags = ["--allow-empty-message", "--message=", *flags]
        self.git("commit", "--quiet", "--cleanup=verbatim", *flags, input=message)

    def head(self):
        return self.git("rev-parse", "HEAD").decode().strip()

    def find_nonce(self, *arguments, **environment):
        environment = self.environment | environment
        return recipe("git-commit", *arguments, cwd=self.path, env=environment)

    def hook(self, name, script):
        """Installs a hook that runs `script` (lines of shell)."""
        path = self.path / self.git("rev-parse", "--git-path", f"hooks/{name}").decode().strip()
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def assert_rejected(self, reason, **environment):
        """Checks that HEAD is rejected before the search, then runs the suggested command."""
        before = self.head(), self.git("cat-file", "--batch-check", "--batch-all-objects")
        for flags in [[], ["--write"], ["--write", "--repository", "."], ["--quiet"]]:
            # A search for this prefix would never end.
            done = self.find_nonce(LONG, *flags, **environment)
            assert (done.returncode, done.stdout) == (2, ""), done
            assert reason in done.stderr
            assert before == (self.head(), self.git("cat-file", "--batch-check", "--batch-all-objects"))
            if "." in flags:
                assert re.search("`git -C [.] .*`", done.stderr)
        advice = re.search("`git (.*)`, then run this again$", done.stderr)[1]
        self.environment = self.environment | environment
        return self.git(*advice.split())

    def parents(self):
        return self.git("log", "-1", "--format=%P").decode().split()

    def rewrite_head(self, prefix, *flags):
        """Gives HEAD an ID with the prefix, changing only its message, and returns the message."""
        form = "--format=%T%n%P%n%an%n%ae%n%ad%n%cn%n%ce%n%cd%n%e"
        before = self.git("log", "-1", form)
        done = self.find_nonce(prefix, "--write", "--quiet", *flags)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout == self.head() + "\n"
        assert done.stdout.startswith(prefix)
        assert self.git("log", "-1", form) == before
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
        # Regression: an author's trailer that only resembles the nonce's trailer was lost.
        (b"Own\n\nNonce: 17\n", rb"Own\n\nNonce: 17\nHashfinder-Nonce: \w+\n"),
        (b"One line\n", rb"One line\n\nHashfinder-Nonce: \w+\n"),
        (b"No end", rb"No end\n\nHashfinder-Nonce: \w+\n"),
        (b"", rb"\nHashfinder-Nonce: \w+\n"),
        (b"Some\n\nlines\nof text\n\n\n", rb"Some\n\nlines\nof text\n\nHashfinder-Nonce: \w+\n"),
        (
            b"With\n\ntext\n\nFixes: 12\nSigned-off-by: A <a@b>\n",
            rb"With\n\ntext\n\nFixes: 12\nSigned-off-by: A <a@b>\nHashfinder-Nonce: \w+\n",
        ),
    ],
)
def test_the_nonce_is_a_trailer_at_the_end_of_the_message(repository, message, expected):
    repository.commit(message)
    assert re.fullmatch(expected, repository.rewrite_head("abc"))
    trailers = repository.git("log", "-1", "--format=%(trailers)").decode().split()
    # In an empty message, the nonce is the first line. Git does not see it as a trailer.
    assert trailers.count("Hashfinder-Nonce:") == int(message != b"")
    assert ("Fixes:" in trailers) == (b"Fixes:" in message)


def test_another_run_replaces_the_nonce(repository):
    repository.commit(b"One\n\nAcked-by: A <a@b>\n")
    first = repository.rewrite_head("abc")
    second = repository.rewrite_head("def")
    assert first != second
    assert second.count(b"Hashfinder-Nonce:") == 1
    # With the same prefix, the search finds the same nonce again.
    assert repository.rewrite_head("abc") == first
    # The nonce is replaced although another trailer follows it.
    repository.commit(first + b"Reviewed-by: B <b@c>\n", "--amend")
    found = repository.rewrite_head("123")
    assert re.fullmatch(
        rb"One\n\nAcked-by: A <a@b>\nReviewed-by: B <b@c>\nHashfinder-Nonce: \w+\n", found
    )


def test_without_write_the_id_is_only_printed(repository):
    repository.commit(b"One\n")
    before, objects = repository.head(), repository.git("count-objects")
    done = repository.find_nonce("abc")
    assert done.returncode == 0
    assert re.fullmatch(r"abc[0-9a-f]{37}\n", done.stdout)
    assert (repository.head(), repository.git("count-objects")) == (before, objects)
    command = re.search(r"replace HEAD's commit with: hashfinder (git-commit abc --from \w+ --write)", done.stderr)
    again = recipe(*command[1].split(), cwd=repository.path, env=repository.environment)
    assert again.stdout == done.stdout
    assert repository.head() + "\n" == done.stdout


def test_a_merge_commit_can_be_rewritten(repository):
    repository.commit(b"One\n")
    repository.git("checkout", "--quiet", "-b", "other")
    repository.git("commit", "--quiet", "--allow-empty", "--message=Other")
    repository.git("checkout", "--quiet", "main")
    repository.git("commit", "--quiet", "--allow-empty", "--message=Main")
    repository.git("merge", "--quiet", "--message=Merge", "other")
    assert len(repository.git("log", "-1", "--format=%P").split()) == 2
    assert re.fullmatch(rb"Merge\n\nHashfinder-Nonce: \w+\n", repository.rewrite_head("abc"))


def test_a_message_in_another_encoding_is_kept(repository):
    repository.git("config", "i18n.commitEncoding", "ISO-8859-1")
    repository.commit(b"\xe9t\xe9\n\nG\xfcnther war hier\n")
    assert re.fullmatch(
        rb"\xe9t\xe9\n\nG\xfcnther war hier\n\nHashfinder-Nonce: \w+\n", repository.rewrite_head("abc")
    )
    assert repository.git("log", "-1", "--encoding=UTF-8", "--format=%s").decode() == "été\n"


def test_signed_commits_are_rejected_unless_their_signature_is_dropped(repository, tmp_path):
    key = tmp_path / "key"
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    repository.git("config", "gpg.format", "ssh")
    repository.git("config", "user.signingKey", str(key))
    repository.commit(b"Signed\n", "--gpg-sign")
    before = repository.head()
    assert b"gpgsig" in repository.git("cat-file", "commit", "HEAD")
    done = repository.find_nonce("abc", "--write")
    assert (done.returncode, done.stdout) == (2, "")
    assert "signed" in done.stderr and "--drop-signature" in done.stderr
    assert repository.head() == before
    assert re.fullmatch(rb"Signed\n\nHashfinder-Nonce: \w+\n", repository.rewrite_head("abc", "--drop-signature"))
    assert b"gpgsig" not in repository.git("cat-file", "commit", "HEAD")


def test_the_index_and_the_work_tree_are_not_touched(repository):
    repository.commit(b"One\n")
    (repository.path / "file").write_text("changed")
    (repository.path / "staged").write_text("staged")
    (repository.path / "new").write_text("new")
    repository.git("add", "staged")
    before = repository.git("status", "--porcelain"), repository.git("diff")
    repository.rewrite_head("abc")
    assert (repository.git("status", "--porcelain"), repository.git("diff")) == before


def test_a_detached_head_is_moved(repository):
    repository.commit(b"One\n")
    main = repository.head()
    repository.git("checkout", "--quiet", "--detach")
    repository.rewrite_head("abc")
    assert repository.git("rev-parse", "main").decode().strip() == main
    assert repository.git("symbolic-ref", "--quiet", "HEAD", check=False) == b""


def test_the_old_commit_is_kept_in_the_reflog(repository):
    repository.commit(b"One\n")
    before = repository.head()
    repository.rewrite_head("abc")
    for reference in ["HEAD", "main"]:
        assert repository.git("rev-parse", f"{reference}@{{1}}").decode().strip() == before
        log = repository.git("reflog", "-1", reference).decode()
        assert f"commit (nonce): {repository.head()} instead of {before}" in log


def wrap_git(folder, script):
    """Returns a PATH with a `git` that runs `script` (lines of shell) before the real git."""
    real = shutil.which("git")
    folder.mkdir()
    git = folder / "git"
    git.write_text(f'#!/bin/sh\ngit() {{ "{real}" "$@"; }}\n{script}\nexec "{real}" "$@"\n')
    git.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_newer_commit_is_not_lost(repository, tmp_path):
    repository.commit(b"One\n")
    # The script commits something just before the branch is moved.
    path = wrap_git(
        tmp_path / "bin",
        'case " $* " in *" update-ref -m "*) git commit --quiet --allow-empty -m Theirs;; esac',
    )
    done = repository.find_nonce("abc", "--write", **path)
    assert (done.returncode, done.stdout) == (5, "")
    assert "refs/heads/main was not moved" in done.stderr and "run this again" in done.stderr
    assert repository.message() == b"Theirs\n"
    repository.git("fsck", "--strict")
    assert re.fullmatch(rb"Theirs\n\nHashfinder-Nonce: \w+\n", repository.rewrite_head("abc"))


@pytest.mark.parametrize("switch", ["checkout --quiet -b other", "checkout --quiet --detach"])
def test_a_branch_that_was_left_during_the_search_is_not_moved(repository, tmp_path, switch):
    """Regression: HEAD's first branch was moved, although HEAD had left it during the search."""
    repository.commit(b"One\n")
    before = repository.head()
    path = wrap_git(tmp_path / "bin", f'case " $* " in *" -w "*) git {switch};; esac')
    done = repository.find_nonce("abc", "--write", **path)
    assert (done.returncode, done.stdout) == (5, "")
    now = "refs/heads/other" if "other" in switch else "HEAD"
    assert "refs/heads/main was not moved" in done.stderr
    assert f"HEAD is now at {now}" in done.stderr
    for name in ["main", "HEAD"]:
        assert repository.git("rev-parse", name).decode().strip() == before


def test_repositories_with_sha256_are_supported(tmp_path):
    repository = Repository(tmp_path / "repository", format="sha256")
    repository.commit(b"One\n")
    assert len(repository.head()) == 64
    repository.rewrite_head("abc")


@pytest.fixture
def source(repository):
    """A repository with commits on several days, the last of which is a merge."""
    for day, message in enumerate([b"One\n", b"Two\n", b"Three\n"], 1):
        repository.environment["GIT_COMMITTER_DATE"] = f"2002-03-0{day}T05:06:07Z"
        repository.commit(message)
        repository.git("tag", message.decode().strip())
    repository.git("checkout", "--quiet", "-b", "other", "Two")
    repository.git("commit", "--quiet", "--allow-empty", "--message=Other")
    repository.git("checkout", "--quiet", "main")
    repository.environment["GIT_COMMITTER_DATE"] = "2002-03-04T05:06:07Z"
    repository.git("merge", "--quiet", "--message=Merge", "other")
    repository.git("config", "uploadpack.allowFilter", "true")
    return repository


@pytest.mark.parametrize(
    "flags",
    [
        ["--depth=1"],
        ["--depth=1", "--branch=Three"],
        ["--depth=1", "--no-checkout"],
        ["--depth=1", "--bare"],
        ["--depth=1", "--filter=blob:none"],
        ["--shallow-since=2002-03-03T12:00:00Z"],
        ["--shallow-exclude=Three", "--shallow-exclude=other"],
    ],
)
def test_the_end_of_a_shallow_history_is_rejected(source, tmp_path, flags):
    """Regression: a commit was written whose parents are missing, so `git log` failed."""
    clone = source.clone(tmp_path / "clone", *flags)
    expected = source.git("log", "-1", "--format=%P", clone.head()).decode().split()
    assert expected and not clone.parents()
    clone.assert_rejected("shallow clone")
    assert clone.parents() == expected
    clone.rewrite_head("abc")
    assert clone.parents() == expected
    clone.git("log")


def test_the_end_of_a_shallow_history_is_rejected_in_a_linked_work_tree(source, tmp_path):
    clone = source.clone(tmp_path / "clone", "--depth=1")
    clone.git("worktree", "add", "--quiet", "../linked")
    clone.path = tmp_path / "linked"
    clone.assert_rejected("shallow clone")
    clone.rewrite_head("abc")
    clone.git("log")


def test_the_remote_of_a_shallow_clone_may_have_new_commits(source, tmp_path):
    clone = source.clone(tmp_path / "clone", "--depth=1")
    for message in [b"Four\n", b"Five\n"]:
        source.commit(message)
    clone.assert_rejected("shallow clone")
    clone.rewrite_head("abc")
    clone.git("log")


@pytest.mark.parametrize(
    "flags",
    [
        ["--depth=2"],
        ["--shallow-since=2002-03-02T12:00:00Z"],
        ["--filter=blob:none"],
        ["--filter=tree:0"],
        ["--filter=tree:0", "--depth=2", "--no-checkout"],
        ["--bare"],
        ["--mirror"],
    ],
)
def test_commits_above_the_end_of_a_shallow_history_are_accepted(source, tmp_path, flags):
    clone = source.clone(tmp_path / "clone", *flags)
    parents = clone.parents()
    assert len(parents) == 2
    clone.rewrite_head("abc")
    assert clone.parents() == parents
    # A new commit on top of a shallow history is accepted, too.
    clone = source.clone(tmp_path / "another", "--depth=1")
    clone.commit(b"New\n")
    clone.rewrite_head("abc")
    assert clone.parents() == [source.head()]
    clone.git("log")


@pytest.mark.parametrize("place", ["info/grafts", "variable"])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_grafts_are_rejected(source, tmp_path, place, bare, count):
    """Regression: the commit was written with its parents from before the graft."""
    repository = source.clone(tmp_path / "clone", *(["--mirror"] if bare else []))
    parents = repository.git("log", "-3", "--format=%H", "Three").decode().split()[:count]
    if place == "variable":
        grafts = tmp_path / "grafts"
        environment = {"GIT_GRAFT_FILE": str(grafts)}
        repository.environment = repository.environment | environment
    else:
        grafts = pathlib.Path(repository.git("rev-parse", "--absolute-git-dir").decode().strip(), place)
    grafts.write_text(" ".join([repository.head(), *parents]) + "\n")
    assert repository.parents() == parents
    if place == "variable":
        # --repository ignores variables that name another repository, so `assert_rejected` does
        # not work here.
        done = repository.find_nonce(LONG, "--write")
        assert done.returncode == 2 and "graft" in done.stderr
        advice = re.search("`git (.*)`, then run this again$", done.stderr)[1]
        repository.git(*advice.split())
    else:
        repository.assert_rejected("graft")
    if bare:
        # The suggested command has converted the graft into a replace reference.
        assert not grafts.exists()
        repository.assert_rejected("replace reference")
    assert repository.parents() == parents
    repository.rewrite_head("abc")
    assert repository.parents() == parents


@pytest.mark.parametrize("bare", [False, True])
def test_replaced_commits_are_rejected(repository, tmp_path, bare):
    """Regression: the replaced commit was rewritten, not the replacement that git shows."""
    repository.commit(b"One\n")
    first = repository.head()
    repository.commit(b"Other\n", "--amend")
    other = repository.head()
    repository.git("replace", first, other)
    repository.git("update-ref", "refs/heads/main", first)
    if bare:
        repository = repository.clone(tmp_path / "bare", "--mirror")
    assert b"Other" in repository.git("log", "-1", "--format=%s")
    repository.assert_rejected("replace reference")
    assert repository.head() == other
    assert repository.rewrite_head("abc").startswith(b"Other\n")


def test_replace_references_are_looked_up_as_git_does(repository):
    repository.commit(b"One\n")
    first = repository.head()
    repository.commit(b"Other\n", "--amend")
    other = repository.head()
    repository.git("update-ref", f"refs/mine/{first}", other)
    repository.git("update-ref", "refs/heads/main", first)
    base = {"GIT_REPLACE_REF_BASE": "refs/mine/"}
    done = repository.find_nonce(LONG, "--write", **base)
    assert done.returncode == 2
    assert f"`git reset --soft {other}`" in done.stderr
    repository.git("config", "core.useReplaceRefs", "false")
    assert repository.find_nonce("abc", **base).returncode == 0
    repository.git("config", "core.useReplaceRefs", "true")
    assert repository.find_nonce("abc", GIT_NO_REPLACE_OBJECTS="1", **base).returncode == 0
    assert repository.rewrite_head("abc").startswith(b"One\n")


def test_replace_references_of_other_commits_do_not_matter(repository):
    repository.commit(b"One\n")
    first = repository.head()
    repository.commit(b"Other\n", "--amend")
    repository.git("replace", first, repository.head())
    repository.git("update-ref", "refs/heads/main", first)
    repository.commit(b"Two\n")
    repository.rewrite_head("abc")
    assert repository.parents() == [first]


def test_the_given_repository_overrides_the_environment(repository, tmp_path):
    """Regression: GIT_DIR overrode --repository, and HEAD of another repository was moved."""
    repository.commit(b"One\n")
    other = Repository(tmp_path / "other")
    other.commit(b"Other\n")
    folder = other.path / ".git"
    state = other.head(), other.git("count-objects"), repository.head()
    names = repository.git("rev-parse", "--local-env-vars").decode().split()
    chosen = {
        "GIT_DIR": folder,
        "GIT_WORK_TREE": other.path,
        "GIT_COMMON_DIR": folder,
        "GIT_OBJECT_DIRECTORY": folder / "objects",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": folder / "objects",
        "GIT_INDEX_FILE": folder / "index",
        "GIT_GRAFT_FILE": folder / "grafts",
        "GIT_SHALLOW_FILE": folder / "shallow",
        "GIT_CONFIG": folder / "config",
    }
    assert set(chosen) < set(names)
    (folder / "grafts").write_text(f"{repository.head()} {other.head()}\n")
    chosen = {name: str(path) for name, path in chosen.items()}
    for environment in [chosen, *({name: path} for name, path in chosen.items())]:
        before = repository.head()
        prefix = "abc" if before[:3] != "abc" else "def"
        where = ["--repository", str(repository.path), "--write", "--quiet"]
        done = recipe(
            "git-commit", prefix, *where, cwd=other.path, env=repository.environment | environment
        )
        assert (done.returncode, done.stderr) == (0, ""), (environment, done)
        assert done.stdout == repository.head() + "\n" and done.stdout.startswith(prefix)
        assert (other.head(), other.git("count-objects")) == state[:2]
    # Without --repository, the environment selects the repository, as it does for git.
    done = repository.find_nonce("abc", "--write", "--quiet", GIT_DIR=str(folder))
    assert done.stdout == other.head() + "\n" != state[0] + "\n"


def test_configuration_from_the_environment_applies_to_the_given_repository(repository, tmp_path):
    repository.commit(b"One\n")
    hooks = tmp_path / "hooks"
    repository.git("config", "core.hooksPath", str(hooks))
    repository.hook("post-rewrite", "echo It ran")
    repository.git("config", "--unset", "core.hooksPath")
    where = ["--repository", str(repository.path), "--write"]
    configuration = {"COUNT": "1", "KEY_0": "core.hooksPath", "VALUE_0": str(hooks)}
    environment = {f"GIT_CONFIG_{name}": value for name, value in configuration.items()}
    assert "It ran" in repository.find_nonce("abc", *where, **environment).stderr
    environment = {"GIT_CONFIG_PARAMETERS": f"'core.hooksPath'='{hooks}'"}
    assert "It ran" in repository.find_nonce("def", *where, **environment).stderr
    assert "It ran" not in repository.find_nonce("abc", *where).stderr


def test_the_moved_reference_is_printed(repository):
    repository.commit(b"One\n")
    before = repository.head()
    done = repository.find_nonce("abc", "--write")
    assert done.stdout == repository.head() + "\n"
    assert f"\nhashfinder: refs/heads/main: {before} -> {repository.head()}\n" in "\n" + done.stderr
    repository.git("checkout", "--quiet", "--detach")
    before = repository.head()
    done = repository.find_nonce("def", "--write")
    assert f"hashfinder: HEAD: {before} -> {repository.head()}\n" in done.stderr
    done = repository.find_nonce("abc", "--write", "--quiet")
    assert (done.stdout, done.stderr) == (repository.head() + "\n", "")
    assert "->" not in repository.find_nonce("def").stderr


def test_a_commit_that_a_remote_has_causes_a_warning(source, tmp_path):
    clone = source.clone(tmp_path / "clone")
    for flags in [[], ["--write"]]:
        # This search finds nothing, so the warning does not depend on a result.
        done = clone.find_nonce(LONG, "--maximum-time", "1ms", *flags)
        assert done.returncode == 3
        assert done.stderr.startswith("hashfinder: warning: HEAD's commit is already on origin/main;")
    assert clone.find_nonce(LONG, "--maximum-time", "1ms", "--quiet").stderr == ""
    # A remote branch contains the commit even if it has advanced since.
    clone.git("reset", "--quiet", "--hard", "Two")
    assert "is already on origin/main" in clone.find_nonce("abc").stderr
    # Other people name remote branches, and a name may contain terminal control characters.
    clone.git("update-ref", "refs/remotes/another/\u009b31m", "HEAD")
    assert "is already on another/\\u{9b}31m" in clone.find_nonce("abc").stderr
    clone.commit(b"New\n")
    done = clone.find_nonce("abc", "--write")
    assert done.returncode == 0 and "warning" not in done.stderr


@pytest.mark.parametrize("flags", [[], ["--quiet"]])
def test_an_error_after_head_was_moved_reports_the_move(repository, flags):
    """Regression: the error did not say that HEAD was moved."""
    repository.commit(b"One\n")
    before = repository.head()
    marker = repository.path.parent / "marker"
    repository.hook("post-rewrite", f"cat > {marker}")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [HASHFINDER, "git-commit", "abc", "--write", *flags],
            cwd=repository.path,
            env=repository.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 5
    moved = f"refs/heads/main: {before} -> {repository.head()}"
    assert f"the commit was written ({moved}), but its ID could not be printed: cannot write to stdout" in done.stderr
    assert repository.head().startswith("abc")
    assert marker.read_text() == f"{before} {repository.head()}\n"


RECORD = """
{ echo "arguments $*"; echo "folder $PWD"; echo "prefix $GIT_PREFIX"; cat; } > "$RECORD"
echo "On stdout"
echo "On stderr" >&2
exit 3
"""


@pytest.mark.parametrize("hooks_path", [None, "my hooks"])
@pytest.mark.parametrize("folder", [".", "sub"])
def test_the_post_rewrite_hook_runs_as_for_amend(repository, tmp_path, hooks_path, folder):
    """Regression: the hook did not run, so tools that follow rewritten commits lost them."""
    repository.commit(b"One\n")
    if hooks_path:
        repository.git("config", "core.hooksPath", hooks_path)
    repository.hook("post-rewrite", RECORD)
    (repository.path / "sub").mkdir()
    repository.path /= folder
    record = tmp_path / "record"
    repository.environment["RECORD"] = str(record)
    seen = []
    for run in [
        lambda: repository.find_nonce("abc", "--write"),
        lambda: repository.git("commit", "--amend", "--quiet", "--message=Amended"),
        # As with `commit --amend`, a failed hook is not an error, and --quiet keeps its output.
        lambda: repository.find_nonce("def", "--write", "--quiet"),
    ]:
        before = repository.head()
        done = run()
        text = record.read_text()
        record.unlink()
        assert text.endswith(f"\n{before} {repository.head()}\n")
        seen.append(text.rsplit("\n", 2)[0])
        if not isinstance(done, bytes):
            assert (done.returncode, done.stdout) == (0, repository.head() + "\n")
            assert "On stdout\nOn stderr\n" in done.stderr
    assert seen[0] == seen[1] == seen[2]
    assert seen[0].startswith("arguments amend\nfolder ")
    # Without --write, nothing is rewritten.
    assert "On std" not in repository.find_nonce("123").stderr
    assert not record.exists()


def test_a_git_that_cannot_run_hooks_causes_a_warning(repository, tmp_path):
    repository.commit(b"One\n")
    old = wrap_git(tmp_path / "bin", 'case " $* " in *" hook "*) exit 1;; esac')
    done = repository.find_nonce("abc", "--write", **old)
    assert done.returncode == 0 and "warning" not in done.stderr
    record = tmp_path / "record"
    repository.hook("post-rewrite", f"echo $* > {record}; cat >> {record}")
    before = repository.head()
    done = repository.find_nonce("def", "--write", **old)
    assert (done.returncode, done.stdout) == (0, repository.head() + "\n")
    warning = "warning: the post-rewrite hook was not run, because that needs git 2.40 or newer; run it with: "
    command = done.stderr.split(warning)[1]
    subprocess.run(["sh", "-c", command], cwd=repository.path, check=True)
    assert record.read_text() == f"amend\n{before} {repository.head()}\n"


def test_a_hook_that_hangs_can_be_stopped(repository, tmp_path, processes):
    repository.commit(b"One\n")
    before = repository.head()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    repository.hook("post-rewrite", f"echo It runs; cat {fifo}")
    where = {"cwd": repository.path, "env": repository.environment}
    process = Process([HASHFINDER, "git-commit", "abc", "--write", "--quiet"], **where)
    processes.append(process)
    process.wait_for("It runs")
    process.send(signal.SIGTERM)
    line = process.wait_for("hashfinder: ")
    # The hook ends when the other end of its pipe is closed.
    open(fifo, "w").close()
    assert process.wait() == 143
    moved = f"refs/heads/main: {before} -> {repository.head()}"
    assert line == f"hashfinder: stopped by SIGTERM during the post-rewrite hook; HEAD was moved ({moved})"


def test_notes_are_copied_as_for_amend(repository):
    repository.commit(b"One\n")
    repository.git("notes", "add", "--message=Seen")
    listed = repository.git("notes", "list")
    repository.rewrite_head("abc")
    assert repository.git("notes", "list") == listed
    repository.git("notes", "add", "--message=Seen")
    repository.git("config", "notes.rewriteRef", "refs/notes/*")
    repository.rewrite_head("def")
    assert repository.git("notes", "show") == b"Seen\n"
    repository.git("config", "notes.rewrite.amend", "false")
    repository.rewrite_head("123")
    assert repository.git("notes", "show", check=False) == b""


def test_notes_that_cannot_be_copied_cause_a_warning(repository):
    repository.commit(b"One\n")
    repository.git("notes", "add", "--message=Seen")
    repository.git("config", "notes.rewriteRef", "refs/notes/*")
    (repository.path / ".git/refs/notes/commits.lock").touch()
    before = repository.head()
    done = repository.find_nonce("abc", "--write", "--quiet")
    assert (done.returncode, done.stdout) == (0, repository.head() + "\n")
    assert f"warning: the notes of {before} were not all copied" in done.stderr


def test_errors_that_can_be_predicted_are_reported_before_the_search(repository, tmp_path):
    """Regression: a search failed with "permission denied" after hours."""
    repository.commit(b"One\n")
    before = repository.head()
    # These searches would never end.
    objects = {
        # Not even root can write to this folder.
        "GIT_OBJECT_DIRECTORY": "/proc",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(repository.path / ".git/objects"),
    }
    done = repository.find_nonce(LONG, "--write", **objects)
    assert (done.returncode, done.stdout) == (5, "")
    assert "cannot write to /proc" in done.stderr
    lock = repository.path / ".git/refs/heads/main.lock"
    lock.touch()
    done = repository.find_nonce(LONG, "--write")
    assert done.returncode == 5
    assert "cannot move refs/heads/main: git failed" in done.stderr and "main.lock" in done.stderr
    lock.unlink()
    repository.hook("reference-transaction", "printf 'No \\033[31m\\n' >&2; test $1 != prepared")
    done = repository.find_nonce(LONG, "--write")
    assert done.returncode == 5
    assert r"No \u{1b}[31m" in done.stderr
    (repository.path / ".git/hooks/reference-transaction").unlink()
    # Without --write, none of this matters.
    assert repository.find_nonce("abc", **objects).returncode == 0
    malformed = repository.git("cat-file", "commit", "HEAD").replace(b"<asa@example.com>", b"")
    malformed = repository.git("hash-object", "--literally", "-t", "commit", "-w", "--stdin", input=malformed)
    repository.git("update-ref", "HEAD", malformed.decode().strip())
    for flags in [[], ["--write"]]:
        done = repository.find_nonce(LONG, *flags)
        assert (done.returncode, done.stdout) == (5, "")
        assert "missingEmail" in done.stderr
    repository.git("update-ref", "HEAD", before)
    assert repository.find_nonce("abc", "--write").returncode == 0
    assert not list((repository.path / ".git/objects").glob("**/tmp_obj*"))


def test_a_commit_in_the_middle_of_a_rebase_can_be_rewritten(repository):
    for message in [b"One\n", b"Two\n", b"Three\n"]:
        repository.commit(message)
    repository.environment["GIT_SEQUENCE_EDITOR"] = "sed -i 1s/pick/edit/"
    repository.git("rebase", "--quiet", "--interactive", "HEAD~2")
    repository.rewrite_head("abc")
    found = repository.head()
    repository.git("rebase", "--continue")
    assert repository.parents() == [found]


def test_linked_work_trees_and_bare_repositories_are_supported(repository, tmp_path):
    repository.commit(b"One\n")
    main = repository.head()
    repository.git("worktree", "add", "--quiet", "-b", "linked", "../linked")
    repository.path = tmp_path / "linked"
    repository.rewrite_head("abc")
    assert repository.git("rev-parse", "main", "linked").decode().split() == [main, repository.head()]
    repository.path = tmp_path / "repository"
    bare = repository.clone(tmp_path / "bare", "--bare")
    bare.hook("post-rewrite", "echo It ran")
    done = bare.find_nonce("abc", "--write")
    assert (done.returncode, done.stdout) == (0, bare.head() + "\n")
    assert "It ran" in done.stderr


def test_a_branch_name_need_not_be_utf8(repository):
    repository.commit(b"One\n")
    repository.git("checkout", "--quiet", "-b", b"caf\xe9")
    before = repository.head()
    repository.rewrite_head("abc")
    assert repository.git("rev-parse", "main", b"caf\xe9").decode().split() == [before, repository.head()]


def test_an_exhausted_nonce_length_is_followed_by_the_next(repository):
    repository.commit(b"One\n")
    # Tries the last two nonces with two letters, which do not match, then those with three letters.
    done = repository.find_nonce("abcd", "--write", "--from", "zy")
    assert done.returncode == 0
    assert re.fullmatch(rb"One\n\nHashfinder-Nonce: \w{3,4}\n", repository.message())
    tried = int(re.search(r"hashfinder: ([\d,]+) hashes in ", done.stderr)[1].replace(",", ""))
    assert tried > 2
    repository.git("fsck", "--strict")


def test_a_stopped_search_resumes_where_it_was(repository, processes):
    repository.commit(b"One\n")
    where = {"cwd": repository.path, "env": repository.environment}
    process = Process([HASHFINDER, "git-commit", LONG, "--write"], **where)
    processes.append(process)
    process.wait_until_busy()
    process.send(signal.SIGINT)
    assert process.wait() == 130
    stderr = process.rest_of_stderr()
    assert "stopped by SIGINT" in stderr
    found = re.search(rf"resume with: hashfinder (git-commit {LONG} --from (\w+) --write)$", stderr)
    stopped_at = found[2]
    done = recipe(*found[1].split(), "--maximum-time", "1ms", **where)
    assert done.returncode == 3
    assert "the maximum time of 1ms has passed" in done.stderr
    again = re.search(r"--from (\w+) --write", done.stderr)[1]
    # Digits, capitals and small letters are tried in this order, which is also their string order.
    assert len(again) == len(stopped_at) and again >= stopped_at
    assert repository.message() == b"One\n"


def test_quiet_prints_nothing_at_a_timeout(repository):
    repository.commit(b"One\n")
    done = repository.find_nonce(LONG, "--quiet", "--maximum-time", "1ms")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


class GitCommit(Terminal):
    COMMAND = "git-commit"


def test_a_terminal_shows_progress(repository):
    repository.commit(b"One\n")
    where = ["--repository", str(repository.path)]
    terminal = GitCommit(LONG, *where, size=(200, 24), **repository.environment)
    try:
        terminal.wait_for("under 0.01% chance so far")
        terminal.press(b"\x03")
        assert terminal.wait() == 130
    finally:
        terminal.end()
    screen = "\n".join(terminal.screen())
    assert "chance so far" not in screen
    assert re.search(rf"git-commit {LONG} --repository {repository.path} --from \w+$", screen, re.M)


def test_a_missing_commit_or_repository_is_an_error(repository, tmp_path):
    # A branch without commits, a folder without a repository, and a missing folder.
    assert "git failed" in repository.find_nonce("abc").stderr
    environment = repository.environment | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    for path in [tmp_path, tmp_path / "nowhere"]:
        done = recipe("git-commit", "abc", "--repository", str(path), env=environment)
        assert (done.returncode, done.stdout) == (5, "")
        assert "git failed: fatal" in done.stderr
    done = recipe("git-commit", "abc", cwd=tmp_path, env=environment | {"PATH": str(tmp_path)})
    assert done.returncode == 5
    assert "cannot run git" in done.stderr


def test_a_prefix_that_is_too_long_is_an_error(repository):
    repository.commit(b"One\n")
    done = repository.find_nonce("0" * 41)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the prefix has 41 digits; IDs in this repository have only 40" in done.stderr
    done = repository.find_nonce("0" * 40, "--maximum-time", "1ms")
    assert done.returncode == 3


def test_a_commit_that_is_too_large_is_an_error(repository):
    """Regression: the error was about a prefix, which the user had not given."""
    repository.commit(b"x" * 70_000 + b"\n")
    done = repository.find_nonce("abc")
    assert (done.returncode, done.stdout) == (2, "")
    found = re.search(
        r"HEAD's commit is too large: with the nonce it has (\d+) bytes, and at most (\d+) are supported; "
        r"shorten its message by at least (\d+) bytes? \(git commit --amend\)",
        done.stderr,
    )
    size, maximum, excess = map(int, found.groups())
    assert size - maximum == excess
    # The search adds a blank line and the nonce's line.
    assert size > int(repository.git("cat-file", "-s", "HEAD"))
    repository.commit(b"x" * (70_000 - excess + 1) + b"\n", "--amend")
    assert "by at least 1 byte (" in repository.find_nonce("abc").stderr
    repository.commit(b"x" * (70_000 - excess) + b"\n", "--amend")
    repository.rewrite_head("abc", "--from", "000")
    assert int(repository.git("cat-file", "-s", "HEAD")) <= maximum + 1


def zero_bits(stamp):
    digest = hashlib.sha1(stamp.encode()).digest()
    return 160 - int.from_bytes(digest, "big").bit_length()


@pytest.mark.parametrize("bits", [1, 4, 10, 11, 12, 15, 20])
def test_stamps_are_valid(bits):
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


@pytest.mark.skipif(shutil.which("hashcash") is None, reason="needs hashcash")
def test_stamps_are_compatible_with_hashcash():
    stamp = recipe("hashcash", "me@example.com", "--bits", "14", "--quiet").stdout.strip()
    check = ["hashcash", "-c", "-b", "14", "-r", "me@example.com", stamp]
    stderr = subprocess.run(check, capture_output=True, text=True).stderr
    assert f"matched stamp: {stamp}" in stderr and "check: ok" in stderr
    mint = ["hashcash", "-m", "-q", "-b", "12", "-r", "me@example.com"]
    theirs = subprocess.run(mint, capture_output=True, text=True, check=True).stdout.strip()
    done = recipe("hashcash", "--check", theirs, "me@example.com", "--bits", "12")
    assert done.returncode == 0, (theirs, done)


@pytest.mark.skipif(shutil.which("hashcash") is None, reason="needs hashcash")
@pytest.mark.parametrize("minted", ["me@example.com", "Me@Example.COM", "Ü@Example.com"])
@pytest.mark.parametrize("checked", ["me@example.com", "ME@example.com", "Ü@example.COM", "ü@example.com"])
def test_case_is_handled_as_by_hashcash(minted, checked):
    """Regression: `hashcash -m` makes the address lower case, but our check did not."""
    bits = ["--bits", "10"]
    ours = recipe("hashcash", minted, *bits, "--quiet").stdout.strip()
    theirs = []
    for flags in [[], ["-C"]]:
        mint = ["hashcash", "-m", "-q", "-b", "10", *flags, "-r", minted]
        theirs.append(subprocess.run(mint, capture_output=True, text=True, check=True).stdout.strip())
    assert ours.split(":")[3] == theirs[0].split(":")[3]
    for stamp in [ours, *theirs]:
        check = ["hashcash", "-c", "-b", "10", "-r", checked, stamp]
        accepted = "matched stamp" in subprocess.run(check, capture_output=True, text=True).stderr
        done = recipe("hashcash", "--check", stamp, checked, *bits)
        assert (done.returncode == 0) == accepted, (stamp, done)


def test_case_does_not_matter():
    done = recipe("hashcash", "Me@Example.COM", "--bits", "10", "--quiet")
    stamp = done.stdout.strip()
    assert stamp.split(":")[3] == "me@example.com"
    for resource in ["me@example.com", "Me@Example.COM"]:
        done = recipe("hashcash", "--check", stamp, resource)
        assert (done.returncode, done.stdout[:8]) == (0, "right: 1")
    assert recipe("hashcash", "--check", stamp, "you@example.com").returncode == 1


def test_a_resource_that_is_too_long_is_an_error():
    """Regression: the error was about a prefix, which the user had not given."""
    maximum = 2**16 - len("1:20:261129:::0123456789abcdef:")
    for excess, expected in [(1, "at least 1 byte\n"), (100, "at least 100 bytes\n")]:
        done = recipe("hashcash", "--date", "261129", "r" * (maximum + excess))
        assert (done.returncode, done.stdout) == (2, "")
        assert "the resource is too long: the stamp has " in done.stderr
        assert done.stderr.endswith(expected) and "prefix" not in done.stderr
    done = recipe("hashcash", "--date", "261129", "r" * maximum, "--bits", "1", "--quiet")
    assert zero_bits(done.stdout.strip()) >= 1


def test_a_stamp_has_the_given_date():
    done = recipe("hashcash", "x", "--bits", "1", "--date", "2402291530", "--quiet")
    assert done.stdout.startswith("1:1:2402291530:x::")
    assert recipe("hashcash", "--check", done.stdout.strip()).returncode == 0


def test_no_two_stamps_are_equal():
    stamps = {recipe("hashcash", "x", "--bits", "1").stdout for _ in range(5)}
    assert len(stamps) == 5


def test_the_maximum_time_ends_a_search_for_a_stamp():
    done = recipe("hashcash", "x", "--bits", "160", "--maximum-time", "1ms")
    assert (done.returncode, done.stdout) == (3, "")
    assert "under 0.01% of searches like this one" in done.stderr
    assert "the same command" in done.stderr
