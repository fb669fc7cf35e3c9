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
from conftest import HASHFINDER, SIGTERM, TIMEOUT_S, Process
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.longrunning import operations_pb2
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
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
        """Starts a call of any kind: on the wire, a single message is a stream of one message."""
        if not isinstance(request, bytes):
            request = request.SerializeToString()
        call = self.channel.stream_stream(f"/{method}")
        return call(iter([request]), metadata=self.metadata, timeout=TIMEOUT_S)

    def unary(self, method, request, response):
        """Returns the only response to a call."""
        [message] = self.call(method, request)
        return response.FromString(message)

    def code(self, method, request=b""):
        """Returns the status code, or OK if a response begins, and the reason in it, if any."""
        call = self.call(method, request)
        try:
            next(call, None)
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            found = [detail for detail in status.details if detail.Is(INFO)] if status else []
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
        return self.unary(FINDER + "ListSearches", request, pb.ListSearchesResponse).searches

    def ended_operation(self, pb):
        """Starts an operation, and returns its name once it has ended."""
        method = FINDER + "StartSearch"
        query = pb.Query(desired_names=["aa"])
        started = self.unary(method, pb.StartSearchRequest(query=query), operations_pb2.Operation)
        wait = operations_pb2.WaitOperationRequest(name=started.name)
        method = "google.longrunning.Operations/WaitOperation"
        while not self.unary(method, wait, operations_pb2.Operation).done:
            pass
        return started.name


@pytest.fixture
def caller():
    callers = []

    def connect(server, metadata=()):
        callers.append(Caller(server, metadata))
        return callers[-1]

    yield connect
    for opened in callers:
        opened.channel.close()


@pytest.fixture
def serve_with_keys(serve, key_file):
    """Returns a function that starts a server with API keys and metrics."""

    def start(*flags, **kwargs):
        if not key_file.path.exists():
            key_file.create()
        flags = ["--metrics-address", "127.0.0.1:0", "--api-keys", str(key_file.path), *flags]
        server = serve(*flags, **kwargs)
        found = re.search(r'address"?[=:]"?127\.0\.0\.1:(\d+)', server.wait_for("serving metrics"))
        server.metrics = int(found[1])
        return server

    return start


def methods_of(caller):
    """Returns every method that the server's reflection reports."""
    found = set()
    for version in ["v1", "v1alpha"]:
        reflection = f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"

        def reflect(method=reflection, **fields):
            request = reflection_pb2.ServerReflectionRequest(**fields)
            return caller.unary(method, request, reflection_pb2.ServerReflectionResponse)

        for service in reflect(list_services="").list_services_response.service:
            files = reflect(file_containing_symbol=service.name).file_descriptor_response
            for file in files.file_descriptor_proto:
                descriptor = descriptor_pb2.FileDescriptorProto.FromString(file)
                for declared in descriptor.service:
                    name = f"{descriptor.package}.{declared.name}"
                    if name == service.name:
                        found |= {f"{name}/{method.name}" for method in declared.method}
    return found


def documented_codes():
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
    defaults = {"sub": "alice", "aud": AUDIENCE, "iss": ISSUER, "exp": now + 600, "nbf": now - 60}
    return defaults | {name: now + value if name in ["exp", "nbf"] else value for name, value in changes.items()}


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
    other_issuer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    rs256, hs256 = {"alg": "RS256", "typ": "JWT"}, {"alg": "HS256", "typ": "JWT"}

    def hmac_with(secret):
        return lambda signed: hmac.digest(secret, signed, hashlib.sha256)

    def sign(key=issuer, algorithm="RS256", headers=None, **changes):
        return jwt.encode(claims(**changes), key, algorithm, headers)

    def without(claim):
        remaining = {name: value for name, value in claims().items() if name != claim}
        return jwt.encode(remaining, issuer, "RS256")

    good = sign()
    signed = good.rsplit(".", 1)[0]
    other = sign(sub="operator").split(".")
    return {
        "alg none": token_without_a_library({"alg": "none"}, claims(), lambda signed: b""),
        "alg None, unsigned": token_without_a_library({"alg": "None"}, claims(), lambda signed: b""),
        "alg none, signed": token_without_a_library({"alg": "none"}, claims(), hmac_with(b"x")),
        "the public key as an HMAC secret": token_without_a_library(
            hs256, claims(), hmac_with(pem_of(issuer))
        ),
        "an HMAC declared as RS256": token_without_a_library(
            rs256, claims(), hmac_with(pem_of(issuer))
        ),
        "an algorithm that is not allowed": sign(algorithm="RS512"),
        "another kind of key": sign(ec.generate_private_key(ec.SECP256R1()), "ES256"),
        "another audience": sign(aud="another service"),
        "no audience": without("aud"),
        "expired": sign(exp=-60),
        "no expiry": without("exp"),
        "not yet valid": sign(nbf=60),
        "another issuer": sign(iss="https://else.example"),
        "no subject": without("sub"),
        "a subject with a space": sign(sub="alice bob"),
        "a signature by another key": sign(other_issuer),
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
        "expired key": expired,
        "revoked": revoked,
        "another secret": f"{identity}.{base64url(os.urandom(32))}",
        "another key's secret": f"{revoked.split('.')[0]}.{secret}",
        "unknown": f"0123456789abcdef.{secret}",
        "only the secret": secret,
        "only the id": identity,
        "without a secret": f"{identity}.",
        "without an id": f".{secret}",
        "too short": good[:-1],
        "too long": f"{good}A",
        "padded": f"{good}=",
        "in upper case": good.upper(),
        "empty": "",
        "huge": "a" * 8000,
    }


def test_each_credential_gets_the_documented_status_from_each_method(
    serve_with_keys, key_file, caller, issuer, jwt_flags, stubs, pb, tmp_path
):
    user, other = key_file.create(), key_file.create()
    operator = key_file.create("--role", "operator")
    named = jwt.encode(claims(sub="the-boss"), issuer, "RS256")
    bad = {label: bearer(key) for label, key in bad_keys(key_file, user).items()}
    bad |= {label: bearer(token) for label, token in bad_tokens(issuer).items()}
    bad["another scheme"] = [("authorization", f"Basic {user}")]
    bad["no scheme"] = [("authorization", user)]
    bad["twice"] = bearer(user) + bearer(user)
    # About forty calls of each method are rejected.
    limits = {"maximum-refused-credentials-per-second": 100_000}
    flags = [*jwt_flags, "--operator", "jwt:the-boss", "--state", str(tmp_path / "state")]
    server = serve_with_keys(*flags, limits=limits)

    mine, table = caller(server, bearer(user)), documented_codes()
    missing = table.pop("unknown method")
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
        "StartSearch": pb.StartSearchRequest(query=query),
        "ListOperations": operations_pb2.ListOperationsRequest(filter=f"client = {name}"),
        "Check": health_pb2.HealthCheckRequest(),
        "Watch": health_pb2.HealthCheckRequest(),
        "List": b"",
        "ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(list_services=""),
        "IsNot": b"",
    }
    table |= {"hashfinder.v1.Finder/IsNot": missing, "no.Such/IsNot": missing}

    of_operation = {
        "WatchOperation": pb.WatchOperationRequest,
        "ListCandidates": pb.ListCandidatesRequest,
        "GetOperation": operations_pb2.GetOperationRequest,
        "WaitOperation": operations_pb2.WaitOperationRequest,
        "CancelOperation": operations_pb2.CancelOperationRequest,
        "DeleteOperation": operations_pb2.DeleteOperationRequest,
    }

    def request(method):
        method = method.split("/")[1]
        if method in of_operation:
            return of_operation[method](name=mine.ended_operation(pb))
        if method != "CancelSearch":
            return requests[method]
        return pb.CancelSearchRequest(search_id=mine.begin(pb)[1])

    rejected_clients = [("no credential", caller(server), 0, "CREDENTIAL_MISSING")]
    rejected_clients += [(label, caller(server, bad[label]), 1, "CREDENTIAL_REFUSED") for label in bad]
    before = scrape(server)
    rejections = 0
    operator_client = caller(server, bearer(operator))
    [search] = [mine.begin(pb)[1]]
    mine.unary(FINDER + "CancelSearch", pb.CancelSearchRequest(search_id=search), pb.CancelSearchResponse)
    at_rest = until(server, "hashfinder_searches", 0)
    at_rest = until(server, "hashfinder_searches_ended_total", 1)
    for method, codes in table.items():
        for label, client, column, reason in rejected_clients:
            message = pb.CancelSearchRequest(search_id=search)
            if (short := method.split("/")[1]) in of_operation:
                message = of_operation[short](name="operations/" + "0" * 32)
            elif short != "CancelSearch":
                message = request(method)
            code, found_reason = client.code(method, message)
            assert code.name == codes[column], (method, label)
            if code != CODE.OK:
                assert found_reason == reason, (method, label)
                rejections += 1
    # No work was started, and each rejection was counted.
    after = until(server, "hashfinder_refused_total", value(before, "hashfinder_refused_total") + rejections)
    for counter in ["hashes", "tests", "slices", "searches_ended"]:
        counter = f"hashfinder_{counter}_total"
        assert value(after, counter) == value(at_rest, counter), counter
    assert [listed.search_id for listed in operator_client.listed(pb)] == [search]

    accepted_clients = [
        (mine, 2),
        (caller(server, bearer(other)), 3),
        (caller(server, bearer(jwt.encode(claims(), issuer, "RS256"))), 3),
        (operator_client, 4),
        (caller(server, bearer(named)), 4),
    ]
    for method, codes in table.items():
        for client, column in accepted_clients:
            code, _ = client.code(method, request(method))
            assert code.name == codes[column], (method, column)


def test_clients_see_only_their_own_searches(serve_with_keys, key_file, caller, pb):
    one, other = key_file.create(), key_file.create()
    operator = key_file.create("--role", "operator")
    server = serve_with_keys()
    mine, theirs, operator_client = (caller(server, bearer(key)) for key in [one, other, operator])
    stream, search_id = mine.begin(pb)
    name = f"key:{one.split('.')[0]}"
    for client, expected in [(mine, [search_id]), (theirs, []), (operator_client, [search_id])]:
        assert [search.search_id for search in client.listed(pb)] == expected
        watching = client.call(FINDER + "WatchSearches", pb.WatchSearchesRequest())
        first = pb.WatchSearchesResponse.FromString(next(watching))
        assert [search.search_id for search in first.searches] == expected
        watching.cancel()
    [search] = operator_client.listed(pb, client=name)
    assert search.client == name
    cancel = pb.CancelSearchRequest(search_id=search_id, reason="not yours")
    assert theirs.code(FINDER + "CancelSearch", cancel) == (CODE.NOT_FOUND, "SEARCH_NOT_FOUND")
    cancel.reason = "it is late"
    assert operator_client.code(FINDER + "CancelSearch", cancel)[0] == CODE.OK
    with pytest.raises(grpc.RpcError) as ended:
        list(stream)
    assert reason_of(ended.value) == "CANCELLED_BY_OPERATOR"
    assert f"client=key:{operator.split('.')[0]} " in server.wait_for("search cancelled")
    assert f"client={name} " in server.call_ended(method='"Search"')


def test_revoking_a_key_ends_its_calls(serve_with_keys, key_file, caller, pb):
    revoked_key, other_key = key_file.create("--role", "operator"), key_file.create()
    server = serve_with_keys()
    revoked_client, other_client = caller(server, bearer(revoked_key)), caller(server, bearer(other_key))
    stream, _ = revoked_client.begin(pb)
    other_stream, _ = other_client.begin(pb)
    watching = revoked_client.call(FINDER + "WatchSearches", pb.WatchSearchesRequest())
    next(watching)
    key_file.revoke(revoked_key)
    for call in [stream, watching]:
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert ended.value.code() == CODE.UNAUTHENTICATED
        assert reason_of(ended.value) == "CREDENTIAL_REFUSED"
    line = server.call_ended(method='"Search"', code="Unauthenticated", work='"stopped"')
    assert f"client=key:{revoked_key.split('.')[0]} " in line
    rejected = (CODE.UNAUTHENTICATED, "CREDENTIAL_REFUSED")
    # Also on the same connection.
    assert revoked_client.code(FINDER + "ListSearches") == rejected
    line = server.wait_for("call rejected")
    assert 'why="revoked"' in line and f"client=key:{revoked_key.split('.')[0]}" in line
    assert len(other_client.listed(pb, states=[pb.SEARCH_STATE_RUNNING])) == 1
    # A new key is accepted, and a removed key is rejected, without a restart.
    new_client = caller(server, bearer(key_file.create()))
    wait_until(lambda: new_client.code(FINDER + "ListSearches")[0] == CODE.OK)
    text = key_file.path.read_text()
    place = text.index(other_key.split(".")[0])
    begin, end = text.rindex("[[key]]", 0, place), text.find("[[key]]", place)
    key_file.path.write_text(text[:begin] + text[end:])
    with pytest.raises(grpc.RpcError) as ended:
        list(other_stream)
    assert ended.value.code() == CODE.UNAUTHENTICATED
    assert other_client.code(FINDER + "ListSearches") == rejected


def test_an_invalid_key_file_changes_nothing(serve_with_keys, key_file, caller):
    key = key_file.create()
    server = serve_with_keys()
    client = caller(server, bearer(key))
    good = key_file.path.read_text()
    for bad, why in [(good + "[[key]]\n", "id is missing"), ("", "unsupported version"), (None, "No such file")]:
        if bad is None:
            key_file.path.unlink()
        else:
            key_file.path.write_text(bad)
        assert why in server.wait_for("cannot reload the API keys")
        assert client.code(FINDER + "ListSearches")[0] == CODE.OK
    key_file.path.write_text(good)
    server.wait_for("the file of API keys is usable again")
    assert client.code(FINDER + "ListSearches")[0] == CODE.OK


def test_health_checks_without_a_credential_leave_room_for_other_calls(serve_with_keys, key_file, caller):
    key = key_file.create()
    server = serve_with_keys(limits={"maximum-open-calls": 32, "maximum-open-calls-per-address": 32})
    client, request = caller(server), health_pb2.HealthCheckRequest()
    # Health checks may have a quarter of the open calls, and one address a quarter of these.
    watching = [client.call("grpc.health.v1.Health/Watch", request) for _ in range(2)]
    for watch in watching:
        next(watch)
    for method in ["Check", "Watch"]:
        rejected = client.code(f"grpc.health.v1.Health/{method}", request)
        assert rejected == (CODE.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN_CALLS")
    authenticated = caller(server, bearer(key))
    assert authenticated.code(FINDER + "ListSearches")[0] == CODE.OK
    watching[0].cancel()
    wait_until(lambda: client.code("grpc.health.v1.Health/Check", request)[0] == CODE.OK)


def test_a_writable_key_file_and_exposed_metrics_cause_a_warning(serve_with_keys, key_file, processes):
    key_file.create()
    key_file.path.chmod(0o666)
    server = serve_with_keys()
    assert any("other users of this machine can write this file and make API keys" in line for line in server.log)
    assert not any("metrics port, which has no TLS" in line for line in server.log)
    command = [HASHFINDER, "serve", "--port", "0", "--metrics-address", "0.0.0.0:0"]
    processes.append(Process(command))
    processes[-1].wait_for("other machines can reach the metrics port, which has no TLS")


def test_tokens_signed_with_a_shared_secret_are_checked(serve_with_keys, caller, issuer, tmp_path):
    secret, path = base64url(os.urandom(64)).encode(), tmp_path / "secret"
    path.write_bytes(secret + b"\n")
    path.chmod(0o644)
    flags = ["--jwt-secret", str(path), "--jwt-algorithm", "HS256", "--jwt-audience", AUDIENCE]
    server = serve_with_keys(*flags, "--operator", "jwt:alice")
    assert any("other users of this machine can access this secret and make tokens" in line for line in server.log)
    good = caller(server, bearer(jwt.encode(claims(), secret, "HS256")))
    assert good.code(FINDER + "ListSearches", b"")[0] == CODE.OK

    def hand_made(header):
        return token_without_a_library(header, claims(), lambda s: hmac.digest(secret, s, "sha256"))

    for label, token in {
        "another secret": jwt.encode(claims(), secret[:-1], "HS256"),
        "an algorithm that is not allowed": jwt.encode(claims(), secret, "HS512"),
        "signed with RS256": jwt.encode(claims(), issuer, "RS256"),
        "renamed": hand_made({"alg": "RS256"}),
        "none": hand_made({"alg": "none"}),
        "two algorithms": hand_made({"alg": ["HS256", "none"]}),
        "in lower case": hand_made({"alg": "hs256"}),
        "an extension": hand_made({"alg": "HS256", "crit": []}),
        "another audience": jwt.encode(claims(aud=["else", AUDIENCE + "s"]), secret, "HS256"),
        "expired": jwt.encode(claims(exp=-60), secret, "HS256"),
        "a null expiry": jwt.encode(claims() | {"exp": None}, secret, "HS256"),
    }.items():
        rejected = caller(server, bearer(token)).code(FINDER + "ListSearches")
        assert rejected == (CODE.UNAUTHENTICATED, "CREDENTIAL_REFUSED"), label


def test_on_a_unix_socket_clients_need_no_credential(serve, key_file, caller, pb):
    key = key_file.create()
    with tempfile.TemporaryDirectory() as folder:
        server = serve("--unix", f"{folder}/socket", "--api-keys", str(key_file.path))
        user, with_key = caller(server), caller(server, bearer(key))
        _, search_id = user.begin(pb)
        _, other = with_key.begin(pb)
        # The user that runs the server is an operator. A credential takes precedence over the user.
        clients = {search.search_id: search.client for search in user.listed(pb)}
        assert clients == {search_id: f"user:{os.getuid()}", other: f"key:{key.split('.')[0]}"}
        assert [search.search_id for search in with_key.listed(pb)] == [other]
        wrong = caller(server, bearer(key[:-1]))
        assert wrong.code(FINDER + "ListSearches") == (CODE.UNAUTHENTICATED, "CREDENTIAL_REFUSED")


def test_without_authentication_credentials_are_ignored(serve, caller, pb):
    server = serve()
    for metadata in [[], bearer("whatever"), [("authorization", "Basic whatever")]]:
        client = caller(server, metadata)
        stream, _ = client.begin(pb)
        [search] = client.listed(pb, states=[pb.SEARCH_STATE_QUEUED, pb.SEARCH_STATE_RUNNING])
        assert search.client == "ip:127.0.0.1"
        stream.cancel()
        server.call_ended(method='"Search"')


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_a_public_address_needs_tls_and_authentication(processes, key_file, host):
    key_file.create()
    here = ["--host", host, "--port", "0"]
    for flags, why in [
        ([], "without TLS and authentication: other machines could use it and read requests"),
        (["--api-keys", str(key_file.path)], "without TLS: others on the network could read credentials"),
    ]:
        for check in [[], ["--check"]]:
            command = [HASHFINDER, "serve", *here, *flags, *check]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
            assert (done.returncode, done.stdout) == (2, ""), done
            assert why in done.stderr and "set listen-unprotected" in done.stderr
    server = Process([HASHFINDER, "serve", *here, "--listen-unprotected"])
    processes.append(server)
    assert server.popen.stdout.readline().startswith("hashfinder listening on ")


def test_keys_can_be_created_listed_and_revoked(key_file, tmp_path):
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
    assert "was already revoked" in key_file.revoke(second).stderr
    assert [key[4] for key in key_file.listed()] == ["valid", "revoked"]
    done = keys("revoke", "--file", key_file.path, "missing", status=1)
    assert "unknown key missing" in done.stderr
    # An error may end up in a ticket, so it does not repeat the secret of a whole key.
    done = keys("revoke", "--file", key_file.path, second, status=2)
    assert "before the dot" in done.stderr and second.split(".")[1] not in done.stderr
    text = key_file.path.read_text()
    digest = base64.b64encode(hashlib.sha256(secret.encode()).digest()).decode()
    assert digest in text and secret not in text and digest not in str(key_file.listed())
    # Parallel runs lose no keys, and leave no other files behind.
    command = [HASHFINDER, "keys", "create", "--file", str(key_file.path)]
    many = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(16)]
    made = {process.communicate(timeout=TIMEOUT_S)[0].strip() for process in many}
    assert {key.split(".")[0] for key in made} == {key[0] for key in key_file.listed()[2:]}
    assert [path.name for path in tmp_path.iterdir()] == ["keys.toml"]


CANARY = "canaryCANARYcanary"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_written(
    serve_with_keys, key_file, caller, issuer, jwt_flags, stubs, pb, monkeypatch, log_format
):
    """Plants secrets in the server's input, and checks that its output has none of them."""
    good = key_file.create("--comment", f"a comment {CANARY}", "--role", "operator")
    other = key_file.create()
    token = jwt.encode(claims(jti=CANARY), issuer, "RS256")
    secrets = [good.split(".")[1], other.split(".")[1], token.split(".")[1], token.split(".")[2]]
    secrets += re.findall(r'sha256 = "(.+)"', key_file.path.read_text())
    monkeypatch.setenv("HASHFINDER_LOG", "trace,h2=trace,hyper=trace,tonic=trace")
    server = serve_with_keys(*jwt_flags, "--log-format", log_format, "--maximum-hashes", "100000")
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
        client = caller(server, credential + planted)
        for method in ["Find", "FindRange"]:
            for name in [CANARY, CANARY + "!", "aa"]:
                client.code(f"hash_name.HashFinder/{method}", stubs.Request(desired_name=name))
        for query in queries:
            list_of(client.call(FINDER + "Search", pb.SearchRequest(query=query)))
            client.code(FINDER + "Estimate", pb.EstimateRequest(query=query))
        client.code(FINDER + "Search", pb.SearchRequest(cursor=CANARY))
        client.code(FINDER + "ListSearches", pb.ListSearchesRequest(client=CANARY))
        client.code(FINDER + "ListSearches", pb.ListSearchesRequest(page_token=CANARY))
        client.code(FINDER + "CancelSearch", pb.CancelSearchRequest(search_id=CANARY, reason=CANARY))
        client.code("grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service=CANARY))
        client.code(f"no.{CANARY}/{CANARY}")
    _, text = get(server)
    key_file.path.write_text(key_file.path.read_text() + f"\n[[{CANARY}")
    server.wait_for("cannot reload the API keys")
    server.send(SIGTERM)
    assert server.wait() == 0
    log = "\n".join(server.log) + "\n" + server.rest_of_stderr()
    # The log has the lines and fields that it may contain.
    for expected in ["call ended", "call rejected", "BAD_REQUEST", "CREDENTIAL_REFUSED"]:
        assert expected in log, expected
    assert f"key:{good.split('.')[0]}" in log and "jwt:alice" in log
    # It has no lines of the HTTP libraries.
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
