"""The documentation: its examples print the output that they show, and its links are not broken."""

import os
import pathlib
import re
import subprocess

import pytest
from conftest import HASHFINDER, TIMEOUT_S
from markdown_it import MarkdownIt
from test_recipes import Repository

ROOT = pathlib.Path(__file__).parents[4]

LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT, check=True, capture_output=True, text=True,
)
DOCUMENTS = [name for name in LISTED.stdout.split() if (ROOT / name).exists()]

# A command, which may have several lines, and its output.
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)

# The commit that `hashfinder git-commit` changes in the examples.
COMMIT = b"""\
tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904
author Ada Example <ada@example.com> 1767225600 +0000
committer Ada Example <ada@example.com> 1767225600 +0000

Root commit
"""


def tokens(document):
    parser = MarkdownIt("commonmark").enable("table")
    return parser.parse((ROOT / document).read_text())


def examples(document):
    """Yields the commands of each console block that shows output. The other blocks are not run:
    their commands run forever, or their output differs in each run."""
    for token in tokens(document):
        if token.type == "fence" and token.info == "console":
            commands = COMMAND.findall(token.content)
            if any(output for _, output in commands):
                yield commands


def anchors(document):
    """Returns the anchors of a document's headings, as GitHub forms them."""
    found, all_tokens = [], tokens(document)
    for token, content in zip(all_tokens, all_tokens[1:]):
        if token.type == "heading_open":
            text = "".join(part.content for part in content.children)
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def links(document):
    for token in tokens(document):
        for part in token.children or []:
            target = part.attrGet("href") if part.type == "link_open" else part.attrGet("src")
            if target and not re.match(r"[a-z]+:", str(target)):
                yield str(target)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if any(examples(name))])
def test_every_example_prints_what_it_shows(document, tmp_path):
    repository = Repository(tmp_path / "repository")
    repository.git("hash-object", "-t", "tree", "-w", "--stdin")
    before = repository.git("hash-object", "-t", "commit", "-w", "--stdin", input=COMMIT)
    repository.git("update-ref", "HEAD", before.decode().strip())
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "hashfinder").symlink_to(HASHFINDER)
    environment = repository.environment | {"PATH": f"{folder}:{os.environ['PATH']}"}
    for commands in examples(document):
        for command, shown in commands:
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail; {command}"],
                cwd=repository.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
            if "hashfinder hashcash" in command and "--check" not in command:
                # Only the start of a stamp, its version and bits, is the same in each run.
                assert done.stdout[:5] == shown[:5], (command, done)
            else:
                # 3 is the exit code of a search that a limit stopped.
                assert done.stdout == shown and done.returncode in (0, 3), (command, done)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_has_the_flags_that_it_shows(document):
    """Commands are parsed, not run: with `--help`, the program only checks what comes before it."""
    for token in tokens(document):
        if token.type == "fence" and token.info in ("console", "text"):
            for command, _ in COMMAND.findall(token.content):
                words = command.replace("\\\n", " ")
                found = re.search(r"(?:^|\| )(hashfinder [^|>&#]*)", words)
                if found and "..." not in found[1] and "$(" not in found[1]:
                    line = ["bash", "-c", f"{found[1]} --help"]
                    done = subprocess.run(
                        line,
                        env=os.environ | {"PATH": f"{os.path.dirname(HASHFINDER)}:{os.environ['PATH']}"},
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        text=True,
                        timeout=TIMEOUT_S,
                    )
                    assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_documents_are_not_broken(document):
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            name = os.path.relpath(target.resolve(), ROOT)
            assert anchor in anchors(name), link
