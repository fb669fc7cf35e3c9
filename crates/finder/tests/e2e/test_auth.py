"""Authentication, what each role may see, and that no secret is logged or printed."""

import base64
import hashlib
import hmac
import json
import os
import re
import stat
import subprocess
import tempfile
import time

import grpc
import jwt
import pytest
from conftest import HASHFINDER, PATIENCE_S, SIGTERM, Process
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from test_contract import HARD
from test_observe import REPOSITORY, get, scrape, until, value
from test_v1_searches import reason_of, wait_until

CODE = grpc.StatusCode
INFO = error_details_pb2.ErrorInfo.DESCRIPTOR
FINDER = "hashfinder.v1.Finder/"
AUDIENCE, ISSUER = "hashfinder", "https://issuer.example"


def keys(*arguments, status=0):
    command = [HASHFINDER, "keys", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == status, done.stderr
    return done


class KeyFile:
    """A file of API keys, managed with `hashfinder keys`."""

    def __init__(self, path):
        self.path = path

    def create(self, *flags):
        return keys("create", "--file", self.path, *flags).stdout.removesuffix("\n")

    def revoke(self, credential):
        return keys("revoke", "--file", self.path, credential.split(".")[0])

    def listed(self):
        lines = keys("list", "--file", self.path).stdout.splitlines()
        return [line.split("\t") for line in lines]


@pytest.fixture
def key_file(tmp_path):
    return KeyFile(tmp_path / "keys.toml")


def bearer(credential):
    return [("authorization", f"Bearer {credential}")]


class Caller:
    """A client with its own connection, which sends this metadata with each call."""

    def __init__(self, server, metadata=(), tls=None):
        self.metadata = list(metadata)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")]
        if tls:
            self.channel = grpc.secure_channel(server.address, tls, options)
        else:
            self.channel = grpc.insecure_channel(server.address, options)

    def call(self, method, request=b""):
        """Starts a call of any kind: on the wire, one message is a stream of one."""
        if not isinstance(request, bytes):
            request = request.SerializeToString()
        call = self.channel.stream_stream(f"/{method}")
        return call(iter([request]), metadata=self.metadata, timeout=PATIENCE_S)

    def one(self, method, request, response):
        """Returns the only response to a call."""
        [message] = self.call(method, request)
        return response.FromString(message)

    def code(self, method, request=b""):
        """Returns the status code, or OK if a response begins, and the reason it received."""
        call = self.call(method, request)
        try:
            next(call, None)
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            found = [one for one in status.details if one.Is(INFO)] if status else []
            return error.code(), reason_of(error) if found else None
        call.cancel()
        return CODE.OK, None

    def begin(self, pb):
        """Starts a search that does not end, and returns its stream and its ID."""
        request = pb.SearchRequest(query=pb.Query(desired_names=[HARD]))
        stream = self.call(FINDER + "Search", request)
        accepted = pb.SearchEvent.FromString(next(stream)).accepted
        return stream, accepted.search_id

    def listed(self, pb, **fields):
        request = pb.ListSearchesRequest(**fields)
        return self.one(FINDER + "ListSearches", request, pb.ListSearchesResponse).searches


@pytest.fixture
def caller():
    callers = []

    def connect(server, metadata=()):
        callers.append(Caller(server, metadata))
        return callers[-1]

    yield connect
    for one in callers:
        one.channel.close()


@pytest.fixture
def guarded(serve, key_file):
    """Returns a function that starts a server with the API keys of a file, and with metrics."""

    def start(*flags, **kwargs):
        if not key_file.path.exists():
            key_file.create()
        flags = ["--metrics-address", "127.0.0.1:0", "--api-keys", str(key_file.path), *flags]
        server = serve(*flags, **kwargs)
        found = re.search(r'address"?[=:]"?127\.0\.0\.1:(\d+)', server.wait_for("showing metrics"))
        server.metrics = int(found[1])
        return server

    return start


def methods_of(someone):
    """Returns every method that the server's reflection reports."""
    found = set()
    for version in ["v1", "v1alpha"]:
        reflection = f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"

        def ask(answer=reflection, **fields):
            request = reflection_pb2.ServerReflectionRequest(**fields)
            return someone.one(answer, request, reflection_pb2.ServerReflectionResponse)

        for service in ask(list_services="").list_services_response.service:
            files = ask(file_containing_symbol=service.name).file_descriptor_response
            for file in files.file_descriptor_proto:
                described = descriptor_pb2.FileDescriptorProto.FromString(file)
                for one in described.service:
                    name = f"{described.package}.{one.name}"
                    if name == service.name:
                        found |= {f"{name}/{method.name}" for method in one.method}
    return found


def documented():
    """Returns the table in SECURITY.md: each method, and its codes by kind of credential."""
    text = (REPOSITORY / "SECURITY.md").read_text()
    lines = text.split("| method | none |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {method.split(",")[0].strip("`"): codes for method, *codes in rows}


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token_without_a_library(header, claims, sign):
    parts = [base64url(json.dumps(part).encode()) for part in (header, claims)]
    signed = ".".join(parts)
    return f"{signed}.{base64url(sign(signed.encode()))}"


def pem_of(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def claims(**changes):
    now = int(time.time())
    usual = {"sub": "alice", "aud": AUDIENCE, "iss": ISSUER, "exp": now + 600, "nbf": now - 60}
    return usual | {name: now + value if name in ["exp", "nbf"] else value for name, value in changes.items()}


@pytest.fixture(scope="module")
def issuer():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def jwt_flags(issuer, tmp_path):
    path = tmp_path / "issuer.pem"
    path.write_bytes(pem_of(issuer))
    flags = ["--jwt-keys", str(path), "--jwt-algorithm", "RS256"]
    return [*flags, "--jwt-audience", AUDIENCE, "--jwt-issuer", ISSUER]


def bad_tokens(issuer):
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    rs256, hs256 = {"alg": "RS256", "typ": "JWT"}, {"alg": "HS256", "typ": "JWT"}

    def hmac_with(secret):
        return lambda signed: hmac.digest(secret, signed, hashlib.sha256)

    def sign(key=issuer, algorithm="RS256", headers=None, **changes):
        return jwt.encode(claims(**changes), key, algorithm, headers)

    def without(claim):
        left = {name: value for name, value in claims().items() if name != claim}
        return jwt.encode(left, issuer, "RS256")

    good = sign()
    signed = good.rsplit(".", 1)[0]
    other = sign(sub="operator").split(".")
    return {
        "alg none": token_without_a_library({"alg": "none"}, claims(), lambda signed: b""),
        "alg None, unsigned": token_without_a_library({"alg": "None"}, claims(), lambda signed: b""),
        "alg none, signed": token_without_a_library({"alg": "none"}, claims(), hmac_with(b"x")),
        "the public key as a secret": token_without_a_library(
            hs256, claims(), hmac_with(pem_of(issuer))
        ),
        "a secret's algorithm renamed": token_without_a_library(
            rs256, claims(), hmac_with(pem_of(issuer))
        ),
        "an algorithm that is not allowed": sign(algorithm="RS512"),
        "another kind of key": sign(ec.generate_private_key(ec.SECP256R1()), "ES256"),
        "another audience": sign(aud="somebody else"),
        "no audience": without("aud"),
        "expired": sign(exp=-60),
        "no expiry": without("exp"),
        "not yet valid": sign(nbf=60),
        "another issuer": sign(iss="https://else.example"),
        "no subject": without("sub"),
        "a subject of two words": sign(sub="alice bob"),
        "another's signature": sign(stranger),
        "no signature": f"{signed}.",
        "half a signature": good[:-100],
        "other claims": ".".join([other[0], other[1], good.rsplit(".", 1)[1]]),
        "an extension": sign(headers={"crit": ["b64"], "b64": True}),
    }


def bad_keys(key_file, good):
    identity, secret = good.split(".")
    revoked = key_file.create()
    key_file.revoke(revoked)
    expired = key_file.create("--role", "operator", "--expires", "1s")
    wait_until(lambda: key_file.listed()[-1][4] == "expired")
    return {
        "expired": expired,
        "revoked": revoked,
        "another secret": f"{identity}.{base64url(os.urandom(32))}",
        "another's secret": f"{revoked.split('.')[0]}.{secret}",
        "unknown": f"0123456789abcdef.{secret}",
        "the secret alone": secret,
        "the id alone": identity,
        "without a secret": f"{identity}.",
        "without an id": f".{secret}",
        "too short": good[:-1],
        "too long": f"{good}A",
        "padded": f"{good}=",
        "in capitals": good.upper(),
        "nothing": "",
        "huge": "a" * 8000,
    }


def test_the_matrix(guarded, key_file, caller, issuer, jwt_flags, stubs, pb):
    user, other = key_file.create(), key_file.create()
    operator = key_file.create("--role", "operator")
    named = jwt.encode(claims(sub="the-boss"), issuer, "RS256")
    bad = {what: bearer(key) for what, key in bad_keys(key_file, user).items()}
    bad |= {what: bearer(token) for what, token in bad_tokens(issuer).items()}
    bad["another scheme"] = [("authorization", f"Basic {user}")]
    bad["no scheme"] = [("authorization", user)]
    bad["twice"] = bearer(user) + bearer(user)
    # About forty calls of each method are rejected.
    limits = {"maximum-refused-credentials-per-second": 100_000}
    server = guarded(*jwt_flags, "--operator", "jwt:the-boss", limits=limits)

    mine, table = caller(server, bearer(user)), documented()
    missing = table.pop("any that there is not")
    assert set(table) == methods_of(mine)
    query = pb.Query(desired_names=["aa"])
    name = f"key:{user.split('.')[0]}"
    requests = {
        "Find": stubs.Request(desired_name="aa"),
        "FindRange": stubs.Request(desired_name="aa"),
        "Search": pb.SearchRequest(query=query),
        "Estimate": pb.EstimateRequest(query=query),
        "ListSearches": pb.ListSearchesRequest(client=name),
        "WatchSearches": pb.WatchSearchesRequest(client=name),
        "Check": health_pb2.HealthCheckRequest(),
        "Watch": health_pb2.HealthCheckRequest(),
        "List": b"",
        "ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(list_services=""),
        "IsNot": b"",
    }
    table |= {"hashfinder.v1.Finder/IsNot": missing, "no.Such/IsNot": missing}

    def request(method):
        method = method.split("/")[1]
        if method != "CancelSearch":
            return requests[method]
        return pb.CancelSearchRequest(search_id=mine.begin(pb)[1])

    strangers = [("nothing", caller(server), 0, "CREDENTIAL_MISSING")]
    strangers += [(what, caller(server, bad[what]), 1, "CREDENTIAL_REFUSED") for what in bad]
    before = scrape(server)
    refusals = 0
    watched = caller(server, bearer(operator))
    [search] = [mine.begin(pb)[1]]
    mine.one(FINDER + "CancelSearch", pb.CancelSearchRequest(search_id=search), pb.CancelSearchResponse)
    at_rest = until(server, "hashfinder_searches", 0)
    at_rest = until(server, "hashfinder_searches_ended_total", 1)
    for method, codes in table.items():
        for what, stranger, column, reason in strangers:
            cancel = pb.CancelSearchRequest(search_id=search)
            asked = cancel if method.endswith("CancelSearch") else request(method)
            got, why = stranger.code(method, asked)
            assert got.name == codes[column], (method, what)
            if got != CODE.OK:
                assert why == reason, (method, what)
                refusals += 1
    # No work was started, and each rejection was counted.
    after = until(server, "hashfinder_refused_total", value(before, "hashfinder_refused_total") + refusals)
    for counter in ["hashes", "tests", "slices", "searches_ended"]:
        counter = f"hashfinder_{counter}_total"
        assert value(after, counter) == value(at_rest, counter), counter
    assert [one.search_id for one in watched.listed(pb)] == [search]

    friends = [
        (mine, 2),
        (caller(server, bearer(other)), 3),
        (caller(server, bearer(jwt.encode(claims(), issuer, "RS256"))), 3),
        (watched, 4),
        (caller(server, bearer(named)), 4),
    ]
    for method, codes in table.items():
        for friend, column in friends:
            got, _ = friend.code(method, request(method))
            assert got.name == codes[column], (method, column)


def test_nobody_sees_what_is_anothers(guarded, key_file, caller, pb):
    one, other = key_file.create(), key_file.create()
    operator = key_file.create("--role", "operator")
    server = guarded()
    mine, theirs, boss = (caller(server, bearer(key)) for key in [one, other, operator])
    stream, search_id = mine.begin(pb)
    name = f"key:{one.split('.')[0]}"
    for who, sees in [(mine, [search_id]), (theirs, []), (boss, [search_id])]:
        assert [search.search_id for search in who.listed(pb)] == sees
        watching = who.call(FINDER + "WatchSearches", pb.WatchSearchesRequest())
        first = pb.WatchSearchesResponse.FromString(next(watching))
        assert [search.search_id for search in first.searches] == sees
        watching.cancel()
    [search] = boss.listed(pb, client=name)
    assert search.client == name
    cancel = pb.CancelSearchRequest(search_id=search_id, reason="not yours")
    assert theirs.code(FINDER + "CancelSearch", cancel) == (CODE.NOT_FOUND, "SEARCH_NOT_FOUND")
    cancel.reason = "it is late"
    assert boss.code(FINDER + "CancelSearch", cancel)[0] == CODE.OK
    with pytest.raises(grpc.RpcError) as ended:
        list(stream)
    assert reason_of(ended.value) == "CANCELLED_BY_OPERATOR"
    assert f"client=key:{operator.split('.')[0]} " in server.wait_for("search cancelled")
    assert f"client={name} " in server.call_ended(method='"Search"')


def test_what_is_revoked_ends(guarded, key_file, caller, pb):
    gone, stays = key_file.create("--role", "operator"), key_file.create()
    server = guarded()
    one, other = caller(server, bearer(gone)), caller(server, bearer(stays))
    stream, _ = one.begin(pb)
    bystander, _ = other.begin(pb)
    watching = one.call(FINDER + "WatchSearches", pb.WatchSearchesRequest())
    next(watching)
    key_file.revoke(gone)
    for call in [stream, watching]:
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert ended.value.code() == CODE.UNAUTHENTICATED
        assert reason_of(ended.value) == "CREDENTIAL_REFUSED"
    line = server.call_ended(method='"Search"', code="Unauthenticated", work='"stopped"')
    assert f"client=key:{gone.split('.')[0]} " in line
    refused = (CODE.UNAUTHENTICATED, "CREDENTIAL_REFUSED")
    # Also on the same connection.
    assert one.code(FINDER + "ListSearches") == refused
    line = server.wait_for("call refused")
    assert 'why="revoked"' in line and f"client=key:{gone.split('.')[0]}" in line
    assert len(other.listed(pb, states=[pb.SEARCH_STATE_RUNNING])) == 1
    # A new key is accepted, and a removed key is rejected, without a restart.
    made = caller(server, bearer(key_file.create()))
    wait_until(lambda: made.code(FINDER + "ListSearches")[0] == CODE.OK)
    text = key_file.path.read_text()
    place = text.index(stays.split(".")[0])
    begin, end = text.rindex("[[key]]", 0, place), text.find("[[key]]", place)
    key_file.path.write_text(text[:begin] + text[end:])
    with pytest.raises(grpc.RpcError) as ended:
        list(bystander)
    assert ended.value.code() == CODE.UNAUTHENTICATED
    assert other.code(FINDER + "ListSearches") == refused


def test_a_key_file_that_breaks_changes_nothing(guarded, key_file, caller):
    key = key_file.create()
    server = guarded()
    who = caller(server, bearer(key))
    good = key_file.path.read_text()
    for bad, why in [(good + "[[key]]\n", "it has no id"), ("", "it has no `version"), (None, "No such file")]:
        if bad is None:
            key_file.path.unlink()
        else:
            key_file.path.write_text(bad)
        assert why in server.wait_for("the API keys stay as they were")
        assert who.code(FINDER + "ListSearches")[0] == CODE.OK
    key_file.path.write_text(good)
    server.wait_for("can be used again")
    assert who.code(FINDER + "ListSearches")[0] == CODE.OK


def test_strangers_who_watch_health_leave_calls_to_others(guarded, key_file, caller):
    key = key_file.create()
    server = guarded(limits={"maximum-open-calls": 32, "maximum-open-calls-per-address": 32})
    stranger, request = caller(server), health_pb2.HealthCheckRequest()
    # Health checks may have a quarter of the open calls, and one address a quarter of these.
    watching = [stranger.call("grpc.health.v1.Health/Watch", request) for _ in range(2)]
    for watch in watching:
        next(watch)
    for method in ["Check", "Watch"]:
        refused = stranger.code(f"grpc.health.v1.Health/{method}", request)
        assert refused == (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN_CALLS")
    known = caller(server, bearer(key))
    assert known.code(FINDER + "ListSearches")[0] == CODE.OK
    watching[0].cancel()
    wait_until(lambda: stranger.code("grpc.health.v1.Health/Check", request)[0] == CODE.OK)


def test_what_others_can_reach_is_told(guarded, key_file, processes):
    key_file.create()
    key_file.path.chmod(0o666)
    server = guarded()
    assert any("everybody on this machine can make API keys" in line for line in server.log)
    assert not any("metrics, which have no TLS" in line for line in server.log)
    command = [HASHFINDER, "serve", "--port", "0", "--metrics-address", "0.0.0.0:0"]
    processes.append(Process(command))
    processes[-1].wait_for("other machines can reach the metrics, which have no TLS")


def test_tokens_by_a_shared_secret(guarded, caller, issuer, tmp_path):
    secret, path = base64url(os.urandom(64)).encode(), tmp_path / "secret"
    path.write_bytes(secret + b"\n")
    path.chmod(0o644)
    flags = ["--jwt-secret", str(path), "--jwt-algorithm", "HS256", "--jwt-audience", AUDIENCE]
    server = guarded(*flags, "--operator", "jwt:alice")
    assert any("everybody on this machine can make tokens" in line for line in server.log)
    good = caller(server, bearer(jwt.encode(claims(), secret, "HS256")))
    assert good.code(FINDER + "ListSearches", b"")[0] == CODE.OK

    def by_hand(header):
        return token_without_a_library(header, claims(), lambda s: hmac.digest(secret, s, "sha256"))

    for what, token in {
        "another secret": jwt.encode(claims(), secret[:-1], "HS256"),
        "an algorithm that is not allowed": jwt.encode(claims(), secret, "HS512"),
        "a public key's": jwt.encode(claims(), issuer, "RS256"),
        "renamed": by_hand({"alg": "RS256"}),
        "none": by_hand({"alg": "none"}),
        "two algorithms": by_hand({"alg": ["HS256", "none"]}),
        "in small letters": by_hand({"alg": "hs256"}),
        "an extension": by_hand({"alg": "HS256", "crit": []}),
        "another audience": jwt.encode(claims(aud=["else", AUDIENCE + "s"]), secret, "HS256"),
        "expired": jwt.encode(claims(exp=-60), secret, "HS256"),
        "an expiry that is a text": jwt.encode(claims() | {"exp": None}, secret, "HS256"),
    }.items():
        refused = caller(server, bearer(token)).code(FINDER + "ListSearches")
        assert refused == (CODE.UNAUTHENTICATED, "CREDENTIAL_REFUSED"), what


def test_behind_a_unix_socket_the_system_says_who_it_is(serve, key_file, caller, pb):
    key = key_file.create()
    with tempfile.TemporaryDirectory() as folder:
        server = serve("--unix", f"{folder}/socket", "--api-keys", str(key_file.path))
        user, shown = caller(server), caller(server, bearer(key))
        _, search_id = user.begin(pb)
        _, other = shown.begin(pb)
        # The user that runs the server is an operator. A credential takes precedence over the user.
        clients = {search.search_id: search.client for search in user.listed(pb)}
        assert clients == {search_id: f"user:{os.getuid()}", other: f"key:{key.split('.')[0]}"}
        assert [search.search_id for search in shown.listed(pb)] == [other]
        wrong = caller(server, bearer(key[:-1]))
        assert wrong.code(FINDER + "ListSearches") == (CODE.UNAUTHENTICATED, "CREDENTIAL_REFUSED")


def test_without_credentials_nobody_needs_one(serve, caller, pb):
    server = serve()
    for metadata in [[], bearer("whatever"), [("authorization", "Basic whatever")]]:
        who = caller(server, metadata)
        stream, _ = who.begin(pb)
        [search] = who.listed(pb, states=[pb.SEARCH_STATE_QUEUED, pb.SEARCH_STATE_RUNNING])
        assert search.client == "ip:127.0.0.1"
        stream.cancel()
        server.call_ended(method='"Search"')


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_strangers_are_not_listened_to(processes, key_file, host):
    key_file.create()
    here = ["--host", host, "--port", "0"]
    for flags, why in [
        ([], "without TLS and authentication anybody could use it"),
        (["--api-keys", str(key_file.path)], "without TLS anybody on the way could read credentials"),
    ]:
        for check in [[], ["--check"]]:
            command = [HASHFINDER, "serve", *here, *flags, *check]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
            assert (done.returncode, done.stdout) == (2, ""), done
            assert why in done.stderr and "--listen-unprotected" in done.stderr
    server = Process([HASHFINDER, "serve", *here, "--listen-unprotected"])
    processes.append(server)
    assert server.popen.stdout.readline().startswith("hashfinder listening on ")


def test_the_keys_commands(key_file, tmp_path):
    done = keys("create", "--file", key_file.path, "--comment", "the first", "--expires", "90d")
    assert re.fullmatch(r"[0-9a-f]{16}\.[A-Za-z0-9_-]{43}\n", done.stdout)
    identity, secret = done.stdout.strip().split(".")
    assert identity in done.stderr and secret not in done.stderr
    assert stat.S_IMODE(key_file.path.stat().st_mode) == 0o600
    second = key_file.create("--role", "operator")
    first, last = key_file.listed()
    time_of = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert first[:2] + first[4:] == [identity, "user", "valid", "the first"]
    assert re.fullmatch(time_of, first[2]) and re.fullmatch(time_of, first[3])
    assert last[1] == "operator" and last[3:] == ["-", "valid", "-"]
    assert "is revoked" in key_file.revoke(second).stderr
    assert "was revoked already" in key_file.revoke(second).stderr
    assert [key[4] for key in key_file.listed()] == ["valid", "revoked"]
    done = keys("revoke", "--file", key_file.path, "nobody", status=1)
    assert "there is no key nobody" in done.stderr
    # An error may end up in a ticket, so it does not repeat the secret of a whole key.
    done = keys("revoke", "--file", key_file.path, second, status=2)
    assert "before the dot" in done.stderr and second.split(".")[1] not in done.stderr
    text = key_file.path.read_text()
    digest = base64.b64encode(hashlib.sha256(secret.encode()).digest()).decode()
    assert digest in text and secret not in text and digest not in str(key_file.listed())
    # Parallel runs lose no keys, and leave no other files behind.
    command = [HASHFINDER, "keys", "create", "--file", str(key_file.path)]
    many = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    made = {process.communicate(timeout=PATIENCE_S)[0].strip() for process in many}
    assert {key.split(".")[0] for key in made} == {key[0] for key in key_file.listed()[2:]}
    assert [path.name for path in tmp_path.iterdir()] == ["keys.toml"]


CANARY = "canaryCANARYcanary"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_told(
    guarded, key_file, caller, issuer, jwt_flags, stubs, pb, monkeypatch, log_format
):
    """Nothing that the server writes contains the secrets that were planted in its input."""
    good = key_file.create("--comment", f"a comment {CANARY}", "--role", "operator")
    other = key_file.create()
    token = jwt.encode(claims(jti=CANARY), issuer, "RS256")
    secrets = [good.split(".")[1], other.split(".")[1], token.split(".")[1], token.split(".")[2]]
    secrets += re.findall(r'sha256 = "(.+)"', key_file.path.read_text())
    monkeypatch.setenv("HASHFINDER_LOG", "trace,h2=trace,hyper=trace,tonic=trace")
    server = guarded(*jwt_flags, "--log-format", log_format, "--maximum-hashes", "100000")
    planted = [("x-secret", CANARY), ("x-secret-bin", CANARY.encode()), ("cookie", CANARY)]
    planted += [("user-agent", CANARY), ("x-" + CANARY.lower(), "1")]
    credentials = [bearer(good), bearer(other), bearer(token), []]
    credentials += [bearer(text) for text in [CANARY, f"{CANARY}.{CANARY}", good[:-1], token[:-9]]]
    credentials += [[("authorization", CANARY)], bearer(f"{CANARY}.{other.split('.')[1]}")]
    credentials += [bearer(f"{other.split('.')[1]}.{other.split('.')[0]}"), bearer(good) * 2]
    credentials += [bearer(jwt.encode(claims(sub=f"{CANARY} {CANARY}"), issuer, "RS256"))]
    queries = [
        pb.Query(desired_names=[CANARY]),
        pb.Query(desired_names=[CANARY, HARD], ideal_distance=1),
        # Rejected, with messages that quote the name.
        pb.Query(desired_names=[CANARY * 9]),
        pb.Query(desired_names=[CANARY + "!"]),
        pb.Query(desired_names=["aa"], anchor=77),
    ]
    for credential in credentials:
        who = caller(server, credential + planted)
        for method in ["Find", "FindRange"]:
            for name in [CANARY, CANARY + "!", "aa"]:
                who.code(f"hash_name.HashFinder/{method}", stubs.Request(desired_name=name))
        for query in queries:
            list_of(who.call(FINDER + "Search", pb.SearchRequest(query=query)))
            who.code(FINDER + "Estimate", pb.EstimateRequest(query=query))
        who.code(FINDER + "Search", pb.SearchRequest(cursor=CANARY))
        who.code(FINDER + "ListSearches", pb.ListSearchesRequest(client=CANARY))
        who.code(FINDER + "ListSearches", pb.ListSearchesRequest(page_token=CANARY))
        who.code(FINDER + "CancelSearch", pb.CancelSearchRequest(search_id=CANARY, reason=CANARY))
        who.code("grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service=CANARY))
        who.code(f"no.{CANARY}/{CANARY}")
    _, text = get(server)
    key_file.path.write_text(key_file.path.read_text() + f"\n[[{CANARY}")
    server.wait_for("the API keys stay as they were")
    server.send(SIGTERM)
    assert server.wait() == 0
    log = "\n".join(server.log) + "\n" + server.rest_of_stderr()
    # The log has what it may contain.
    for told in ["call ended", "call refused", "BAD_REQUEST", "CREDENTIAL_REFUSED"]:
        assert told in log, told
    assert f"key:{good.split('.')[0]}" in log and "jwt:alice" in log
    # It has no lines of the libraries about connections.
    assert not re.search(r"\b(h2|hyper|tonic)::", log)
    everything = log + text + server.popen.stdout.read()
    encoded = base64.b64encode(CANARY.encode()).decode().rstrip("=")
    for secret in [CANARY, encoded, *secrets]:
        place = everything.lower().find(secret.lower())
        assert place < 0, everything[max(0, place - 300) : place + 100]


def list_of(call):
    try:
        return list(call)
    except grpc.RpcError as error:
        return error
