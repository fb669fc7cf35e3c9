"""Checks packaging/Containerfile against the program and the repository.

`cargo xtask long image` builds the image.
"""

import os
import re
import shlex
import subprocess

from conftest import HASHFINDER, PROTOS

REPOSITORY = PROTOS.parent


def instructions():
    text = (REPOSITORY / "packaging/Containerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line.split(" ", 1) for line in joined.splitlines() if line]


def test_the_containerfile_matches_the_repository():
    (run,) = [argument for name, argument in instructions() if name == "RUN" and "cargo" in argument]
    assert "--package hashfinder " in run and "--locked" in run
    # Only these paths are ignored, so the build context has every part of the build.
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    ignored = [line for line in ignored if not line.startswith("#")]
    assert ignored == [".git", "target", "**/target", "rust-toolchain.toml"]
    # The build image's toolchain is new enough.
    (image,) = [argument for name, argument in instructions() if name == "FROM" and "rust" in argument]
    cargo = (REPOSITORY / "Cargo.toml").read_text()
    minimum = re.search(r'^rust-version = "1\.(\d+)"', cargo, re.M)[1]
    assert int(re.fullmatch(r"rust:1\.(\d+)-slim AS build", image)[1]) >= int(minimum)
    # The last stage copies the file that the build leaves behind.
    (copied,) = [argument for name, argument in instructions() if name == "COPY" and "--from" in argument]
    built = re.search(r"&& cp \S+ (\S+)$", run)[1]
    assert copied == f"--from=build /source/{built} /hashfinder"


def test_the_program_accepts_the_command_and_variables_of_the_image():
    last = dict(instructions())
    assert (last["USER"], last["EXPOSE"]) == ("65532:65532", "50051")
    entry = re.findall(r'"([^"]+)"', last["ENTRYPOINT"])
    assert entry == ["/hashfinder", "serve"]
    variables = dict(pair.split("=") for pair in shlex.split(last["ENV"]))
    done = subprocess.run(
        [HASHFINDER, "config", "show"],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    # The program knows all of these variables.
    assert (done.returncode, done.stderr) == (0, "")
    for variable in variables:
        assert re.search(rf"\s{variable}$", done.stdout, re.M), variable
