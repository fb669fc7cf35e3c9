"""Checks packaging/Containerfile against program and repository. `cargo xtask long image` builds it."""

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


def test_what_is_built_is_what_there_is():
    (run,) = [of for what, of in instructions() if what == "RUN" and "cargo" in of]
    assert "--package hashfinder " in run and "--locked" in run
    # The build context has every part of the build, because only these paths are ignored.
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    ignored = [line for line in ignored if not line.startswith("#")]
    assert ignored == [".git", "target", "**/target", "rust-toolchain.toml"]
    # The build image's toolchain is new enough.
    (image,) = [of for what, of in instructions() if what == "FROM" and "rust" in of]
    cargo = (REPOSITORY / "Cargo.toml").read_text()
    needed = re.search(r'^rust-version = "1\.(\d+)"', cargo, re.M)[1]
    assert int(re.fullmatch(r"rust:1\.(\d+)-slim AS build", image)[1]) >= int(needed)
    # The last stage copies the file that the build leaves behind.
    (copied,) = [of for what, of in instructions() if what == "COPY" and "--from" in of]
    built = re.search(r"&& cp \S+ (\S+)$", run)[1]
    assert copied == f"--from=build /source/{built} /hashfinder"


def test_the_image_starts_what_the_program_takes():
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
