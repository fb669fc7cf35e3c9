"""Digests, encodings, anchors and secrets other than the reference's, and several names at once."""

import base64
import hashlib
import itertools
import random
import string
import subprocess

import blake3
import pytest
from conftest import HASHFINDER, TIMEOUT_S, Server, run_find
from test_find import cursor_in
from test_json import records

DIGESTS = {
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "blake3": blake3.blake3,
}
ENCODINGS = {
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
    "hex": base64.b16encode,
    "base32": base64.b32encode,
}
ALPHABETS = {
    "bytes": bytes(range(256)),
    "printable": bytes(range(32, 127)),
    "alphanumeric": (string.digits + string.ascii_uppercase + string.ascii_lowercase).encode(),
    "digits": string.digits.encode(),
    "of:ba-": b"ba-",
}


class RandomQuery:
    """A random search: its command line, and its results as computed in Python."""

    def __init__(self, number):
        choice = random.Random(f"spelling {number}")
        self.algorithm = list(DIGESTS)[number % 4]
        self.encoding = list(ENCODINGS)[number // 4 % 4]
        self.anchor = choice.choice(["anywhere", "prefix", "suffix"])
        self.cases_matter = choice.random() < 0.4
        self.alphabet = choice.choice(list(ALPHABETS))
        self.prefix = choice.choice(["", "I say: ", "x" * 200])
        self.suffix = choice.choice(["", "!", "\n"])
        digits = "0123456789abcdef" if self.encoding == "hex" else "abcdefgxyz234567"
        if self.encoding == "base32" and self.cases_matter:
            digits = digits.upper()
        text = self.hashed(b"")
        padding = text[len(text.rstrip("=")) :] if self.anchor == "suffix" else ""
        names = [choice.choices(digits, k=choice.randint(1, 3)) for _ in range(choice.randint(1, 3))]
        self.names = ["".join(name) + padding for name in names]
        # Greater distances are rejected, because every secret would match.
        shortest = min(map(len, self.names))
        self.ideal = min(choice.choice([0, 0, 0, 1]), shortest - 1)
        self.interesting = min(self.ideal + choice.choice([0, 2]), shortest)

    def arguments(self):
        flags = [
            *(*self.names, "--algorithm", self.algorithm, "--encoding", self.encoding),
            *("--anchor", self.anchor, "--alphabet", self.alphabet),
            *(f"--secret-prefix={self.prefix}", f"--secret-suffix={self.suffix}"),
            *("--ideal-distance", str(self.ideal), "--show-inferior", str(self.interesting)),
        ]
        return [*flags, "--case-sensitive"] if self.cases_matter else flags

    def hashed(self, secret):
        text = ENCODINGS[self.encoding](DIGESTS[self.algorithm](secret).digest()).decode()
        return text.lower() if self.encoding == "hex" else text

    def secrets(self):
        for length in itertools.count():
            for part in itertools.product(ALPHABETS[self.alphabet], repeat=length):
                yield self.prefix.encode() + bytes(part) + self.suffix.encode()

    def nearest(self, secret):
        """Returns the distance, the number of the nearest name, and the window."""
        fold = str if self.cases_matter else str.lower
        text = fold(self.hashed(secret))
        near = []
        for number, name in enumerate(self.names):
            last = len(text) - len(name)
            windows = {"anywhere": range(last + 1), "prefix": [0], "suffix": [last]}
            for window in windows[self.anchor]:
                pairs = zip(text[window:], fold(name))
                near.append((sum(a != b for a, b in pairs), number, window))
        return min(near)

    def expected(self, limit):
        """Returns the findings in the first `limit` secrets, and whether one is the result."""
        findings = []
        for secret in itertools.islice(self.secrets(), limit):
            distance, name, window = self.nearest(secret)
            if distance <= self.ideal or distance < self.interesting:
                finding = (secret.hex(), self.hashed(secret), distance, self.names[name], window)
                findings.append(finding)
            if distance <= self.ideal:
                return findings, True
        return findings, False


def fields_of(finding):
    keys = ["hex", "hashed_name", "distance", "name", "window"]
    return tuple(finding[key] for key in keys)


LIMIT = 3000


@pytest.fixture(scope="module")
def serve_once():
    server = Server()
    yield server
    server.end()


@pytest.mark.parametrize("number", range(48))
def test_find_agrees_with_python(number, serve_once):
    query = RandomQuery(number)
    arguments = [*query.arguments(), "--json", "--maximum-hashes", str(LIMIT)]
    expected, is_found = query.expected(LIMIT)
    for where in ([], ["--server", serve_once.address]):
        done = run_find(*arguments, *where)
        if done.returncode == 4:
            # A name has a digit that is impossible in its place, such as right before the padding.
            assert query.anchor == "suffix" and "can never match" in done.stderr
            continue
        findings, end = records(done.stdout)
        assert [fields_of(finding) for finding in findings] == expected, arguments
        assert done.returncode == (0 if is_found else 3), done.stderr
        assert (end["names"], end["algorithm"], end["encoding"]) == (
            query.names,
            query.algorithm,
            query.encoding,
        )


@pytest.mark.parametrize("number", range(0, 48, 3))
def test_resuming_loses_nothing(number, serve_once):
    # Takes the first query with a result in the first secrets.
    for candidate in itertools.count(number, 48):
        query = RandomQuery(candidate)
        expected, is_found = query.expected(LIMIT)
        if is_found:
            break
    arguments = [*query.arguments(), "--json"]
    findings = []
    for step in itertools.count(1):
        where = ["--server", serve_once.address] if step % 2 else []
        done = run_find(*arguments, *where, "--maximum-hashes", str(97 * step))
        more, end = records(done.stdout)
        findings += more
        if done.returncode == 0:
            break
        assert done.returncode == 3, done.stderr
        assert cursor_in(done.stderr) == end["cursor"]
        arguments = ["--resume", end["cursor"], "--json"]
    assert [fields_of(finding) for finding in findings] == expected


def test_the_last_column_is_the_name_that_was_found():
    """Regression: with only one name there were five columns, so scripts had to count the names."""
    for names in [["zzzzzzz", "doc", "doc"], ["doc"]]:
        columns = run_find(*names).stdout.rstrip("\n").split("\t")
        assert (len(columns), columns[-1]) == (6, "doc")


def test_a_prefix_can_be_read_from_a_file(tmp_path):
    file = tmp_path / "photo"
    file.write_bytes(bytes(range(256)) * 200)
    arguments = ["c0de", "--encoding", "hex", "--anchor", "prefix", "--algorithm", "sha256"]
    done = run_find(*arguments, "--secret-prefix-file", str(file))
    secret = base64.b64decode(done.stdout.split("\t")[1])
    assert secret.startswith(file.read_bytes())
    assert hashlib.sha256(secret).hexdigest().startswith("c0de")


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["a" * 41, "--encoding", "hex"], 2, "has 41 characters, but a hash has only 40"),
        (["xyz", "--encoding", "hex"], 4, "'x', 'y' and 'z' appear in no hash"),
        (["ABC", "--encoding", "hex", "--case-sensitive"], 4, "(sha1 in hex); it can match if case is ignored"),
        (["1", "--encoding", "base32"], 4, "'1' appears in no hash"),
        (["a=", "--algorithm", "sha256", "--anchor", "prefix"], 4, "'=' occurs only at the end"),
        (["ab", "cd=e"], 4, '"cd=e" can never match'),
        (["a", "--alphabet", "of:"], 2, "the alphabet is empty"),
        (["a", "--alphabet", "of:aba"], 2, "contains the byte 'a' twice"),
        (["a", "--alphabet", "letters"], 2, "expected bytes, printable"),
        (["a", "--algorithm", "md5"], 2, "possible values: sha1, sha256, sha512, blake3"),
        (["a", "--secret-prefix-file", "/no/such"], 2, "cannot read the prefix from /no/such"),
        (["a", "--secret-suffix", "x" * 1025], 2, "the suffix has 1025 bytes; give at most 1024"),
        (["a"] * 65, 2, "too many names: 65; give at most 64"),
    ],
)
def test_invalid_queries_are_rejected(arguments, code, why):
    done = run_find(*arguments)
    assert done.returncode == code
    assert why in done.stderr
    assert done.stdout == ""


def test_an_alphabet_of_one_letter_is_exhausted():
    done = run_find("doctor", "--alphabet", "of:x", "--json")
    assert done.returncode == 1
    _, end = records(done.stdout)
    assert (end["how"], end["hashes"], end["cursor"]) == ("exhausted", 65, None)


def test_verify_and_estimate_support_other_digests_and_encodings():
    secret = base64.b64encode(b"abc").decode()
    arguments = ["--algorithm", "sha256", "--encoding", "hex", "--anchor", "prefix"]
    verify = [HASHFINDER, "verify", secret, "ba7816bf", *arguments]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0
    assert done.stdout.startswith(hashlib.sha256(b"abc").hexdigest() + "\t")
    estimate = [HASHFINDER, "estimate", "ba7816bf", *arguments, "--rate", "1e6"]
    done = subprocess.run(estimate, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert "1 in 4.3 billion hashes" in done.stdout
