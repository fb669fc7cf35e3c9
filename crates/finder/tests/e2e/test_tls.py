"""TLS: handshakes with good and bad peers, changes of certificates, and the commands as clients."""

import datetime
import os
import re
import shlex
import socket
import ssl
import subprocess
import threading
import time
from concurrent import futures

import grpc
import pytest
from certificates import DAY, Authority, replace, self_signed
from conftest import HASHFINDER, SIGTERM, TIMEOUT_S
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from test_auth import CODE, FINDER, Caller, KeyFile, bearer, key_file  # noqa: F401
from test_observe import scrape, value
from test_v1_searches import reason_of

# A search that reports candidates forever.
ENDLESS = dict(desired_name="hashfinderhashfinder", interesting_hamming_distance=20)


@pytest.fixture
def ours(tmp_path):
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path):
    return Authority(tmp_path, "theirs")


@pytest.fixture
def serve_tls(serve, ours):
    def start(*flags, identity=None, **kwargs):
        identity = identity or ours.server()
        return serve(*identity.flags("--tls"), *flags, **kwargs)

    return start


@pytest.fixture
def secure(stubs):
    """Returns a function that connects with TLS. Each call opens its own connection."""
    channels = []

    def open_channel(server, authority, identity=None):
        identity_pair = (identity.key, identity.certificate) if identity else (None, None)
        credentials = grpc.ssl_channel_credentials(authority.pem, *identity_pair)
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels.append(grpc.secure_channel(server.address, credentials, options))
        return stubs.Stub(channels[-1])

    yield open_channel
    for channel in channels:
        channel.close()


def finds(stubs, stub, **kwargs):
    answer = stub.Find(stubs.Request(desired_name="do"), timeout=TIMEOUT_S, **kwargs)
    return "do" in answer.hashed_name.lower()


def cannot_connect(stubs, stub):
    with pytest.raises(grpc.RpcError) as failed:
        stub.Find(stubs.Request(desired_name="do"), timeout=TIMEOUT_S)
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE, failed.value
    return True


def is_unauthenticated(stubs, stub, **kwargs):
    """Returns whether the server no longer accepts the client of an open connection."""
    try:
        return not finds(stubs, stub, **kwargs)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error
        assert reason_of(error) == "CREDENTIAL_REFUSED"
        return True


def context(authority, alpn=("h2",), identity=None):
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if identity:
        context.load_cert_chain(*identity.files)
    return context


def connect_by(context, server, session=None):
    host, port = server.address.split(":")
    tcp = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
    try:
        return context.wrap_socket(tcp, server_hostname="localhost", session=session)
    except BaseException:
        tcp.close()
        raise


def certificate_of(server, authority):
    with connect_by(context(authority), server) as tls:
        return tls.getpeercert(binary_form=True)


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out: the condition is still false"
        time.sleep(0.1)


def wait_for_log_while_connecting(server, authority, pattern):
    """Connects again and again until a line of the log matches `pattern`, and returns that line."""
    found = threading.Event()

    def connect():
        while not found.is_set():
            certificate_of(server, authority)
            time.sleep(0.1)

    with futures.ThreadPoolExecutor(max_workers=1) as pool:
        connecting = pool.submit(connect)
        try:
            line = server.wait_for(pattern)
        finally:
            found.set()
        connecting.result(TIMEOUT_S)
    return line


def test_calls_work_over_tls(serve_tls, secure, stubs, ours):
    server = serve_tls()
    assert finds(stubs, secure(server, ours))


def test_clients_without_tls_or_with_another_authority_cannot_connect(
    serve_tls, connect, secure, stubs, ours, theirs
):
    server = serve_tls()
    assert cannot_connect(stubs, connect(server))
    assert cannot_connect(stubs, secure(server, theirs))
    assert finds(stubs, secure(server, ours))


def test_required_client_certificates_are_checked(serve_tls, secure, stubs, ours, theirs):
    server = serve_tls("--tls-client-ca", ours.path)
    assert cannot_connect(stubs, secure(server, ours))
    assert cannot_connect(stubs, secure(server, ours, theirs.client()))
    # This certificate is only for servers.
    assert cannot_connect(stubs, secure(server, ours, ours.server("other")))
    assert finds(stubs, secure(server, ours, ours.client()))


def test_optional_client_certificates_are_checked(serve_tls, secure, stubs, ours, theirs):
    server = serve_tls("--tls-client-ca", ours.path, "--tls-client-certificates", "optional")
    # The server accepts the connection, but does not know the client.
    with pytest.raises(grpc.RpcError) as failed:
        finds(stubs, secure(server, ours))
    assert failed.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert finds(stubs, secure(server, ours, ours.client()))
    assert cannot_connect(stubs, secure(server, ours, theirs.client()))


@pytest.fixture
def tls_client(ours):
    """Returns a function that creates a `Caller` with its own TLS connection."""
    callers = []

    def connect(server, identity=None, metadata=()):
        identity_pair = (identity.key, identity.certificate) if identity else (None, None)
        callers.append(Caller(server, metadata, grpc.ssl_channel_credentials(ours.pem, *identity_pair)))
        return callers[-1]

    yield connect
    for client in callers:
        client.channel.close()


def test_a_certificate_identifies_the_client(serve_tls, tls_client, ours, tmp_path, pb):
    key_file = KeyFile(tmp_path / "keys.toml")
    key = key_file.create()
    flags = ["--tls-client-ca", ours.path, "--tls-client-certificates", "optional"]
    flags += ["--api-keys", str(key_file.path), "--operator", "cert:boss.example"]
    server = serve_tls(*flags)
    first = ours.client("first", x509.DNSName("One.example"), x509.DNSName("boss.example"))
    owner = tls_client(server, first)
    renewed = tls_client(server, ours.client("renewed", x509.DNSName("one.example")))
    other = tls_client(server, ours.client("other", x509.DNSName("other.example")))
    # This is not a valid URI, so it does not name a client.
    alike = ours.client("alike", x509.UniformResourceIdentifier("one.example"))
    alike = tls_client(server, alike)
    operator = tls_client(server, ours.client("boss", x509.DNSName("boss.example")))
    # If a client has a key and a certificate, the key identifies it.
    keyed, both = tls_client(server, None, bearer(key)), tls_client(server, first, bearer(key))
    stream, search_id = owner.begin(pb)
    _, by_key = keyed.begin(pb)
    for client, expected in [
        (owner, {search_id}),
        (renewed, {search_id}),
        (other, set()),
        (alike, set()),
        (keyed, {by_key}),
        (both, {by_key}),
        (operator, {search_id, by_key}),
    ]:
        assert {search.search_id for search in client.listed(pb)} == expected
    clients = {search.search_id: search.client for search in operator.listed(pb)}
    assert clients == {search_id: "cert:one.example", by_key: f"key:{key.split('.')[0]}"}
    cancel = pb.CancelSearchRequest(search_id=search_id)
    for client in [other, alike, keyed, both]:
        assert client.code(FINDER + "CancelSearch", cancel)[0] == CODE.NOT_FOUND
    missing, rejected = tls_client(server), tls_client(server, first, bearer(key[:-1]))
    assert missing.code(FINDER + "ListSearches") == (CODE.UNAUTHENTICATED, "CREDENTIAL_MISSING")
    # An invalid key is rejected, even with a valid certificate.
    assert rejected.code(FINDER + "ListSearches") == (CODE.UNAUTHENTICATED, "CREDENTIAL_REFUSED")
    assert operator.code(FINDER + "CancelSearch", cancel)[0] == CODE.OK
    with pytest.raises(grpc.RpcError) as ended:
        list(stream)
    assert reason_of(ended.value) == "CANCELLED_BY_OPERATOR"
    assert "client=cert:one.example " in server.call_ended(method='"Search"')
    # If client certificates are required, a client without one cannot even connect.
    server = serve_tls(*flags[:2], "--api-keys", str(key_file.path))
    assert tls_client(server, None, bearer(key)).code(FINDER + "ListSearches")[0] == CODE.UNAVAILABLE
    assert tls_client(server, first).code(FINDER + "ListSearches")[0] == CODE.OK


def test_the_resume_command_includes_the_tls_flags(serve_tls, ours, tmp_path):
    key_file = KeyFile(tmp_path / "keys.toml")
    credential = tmp_path / "my key"
    credential.write_text(key_file.create())
    server = serve_tls("--tls-client-ca", ours.path, "--api-keys", str(key_file.path))
    flags = ["--tls-ca", ours.path, *ours.client().flags(), "--tls-server-name", "localhost"]
    flags += ["--credential-file", credential, "--maximum-hashes", "1000"]
    done = find_on(server, *flags, name="hashfinderhashfinder")
    assert done.returncode == 3, done
    _, command = done.stderr.splitlines()[-1].split("resume with: ")
    assert f"--server https://{server.address} " in command
    assert credential.read_text().split(".")[1] not in done.stderr
    program, *command = shlex.split(command)
    assert program == "hashfinder"
    # Runs the command exactly as printed.
    command = [HASHFINDER, *command, "--maximum-hashes", "1000"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert again.returncode == 3, again
    assert "hash budget spent after 1,000 hashes\n" in again.stderr


def test_a_new_certificate_applies_to_new_connections(serve_tls, secure, stubs, ours):
    old = ours.server()
    server = serve_tls(identity=old)
    assert certificate_of(server, ours) == old.der
    stream = secure(server, ours).FindRange(stubs.Request(**ENDLESS))
    next(stream)
    new = ours.server("new")
    new.write_to(*old.files)
    wait_until(lambda: certificate_of(server, ours) == new.der)
    assert finds(stubs, secure(server, ours))
    # The old connection is not interrupted.
    for _ in range(3):
        next(stream)
    stream.cancel()
    server.wait_for("certificates reloaded")


def test_a_key_that_does_not_match_its_certificate_changes_nothing(serve_tls, ours):
    old = ours.server()
    server = serve_tls(identity=old)
    other, new = ours.server("other"), ours.server("new")
    replace(old.files[1], other.key, mode=0o600)
    line = wait_for_log_while_connecting(server, ours, "cannot use the new certificates")
    assert "does not match the first certificate" in line
    assert certificate_of(server, ours) == old.der
    replace(old.files[0], b"")
    line = wait_for_log_while_connecting(server, ours, "cannot use the new certificates")
    assert "no certificate in " in line
    assert certificate_of(server, ours) == old.der
    new.write_to(*old.files)
    wait_for_log_while_connecting(server, ours, "certificates reloaded")
    assert certificate_of(server, ours) == new.der
    # Each error was logged once.
    assert sum("cannot use the new certificates" in line for line in server.log) == 2


def test_a_new_client_authority_replaces_the_old_one(serve_tls, secure, stubs, ours, theirs):
    path = str(ours.folder / "clients.pem")
    replace(path, ours.pem)
    server = serve_tls("--tls-client-ca", path)
    before, after = ours.client(), theirs.client("after")
    connected = secure(server, ours, before)
    assert finds(stubs, connected)
    replace(path, theirs.pem)

    def is_accepted():
        try:
            return finds(stubs, secure(server, ours, after))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            return False

    wait_until(is_accepted)
    assert cannot_connect(stubs, secure(server, ours, before))
    # Open connections of such a client are rejected, too.
    wait_until(lambda: is_unauthenticated(stubs, connected))
    line = server.wait_for("call rejected")
    assert "client=cert:client.example " in line and "certificate expired or no longer trusted" in line


def test_a_client_whose_certificate_has_expired_is_rejected(serve_tls, secure, stubs, ours, key_file):  # noqa: F811
    by_key = {"metadata": bearer(key_file.create())}
    server = serve_tls("--tls-client-ca", ours.path, "--api-keys", str(key_file.path))
    lasting = secure(server, ours, ours.client())
    usage, seconds = ExtendedKeyUsageOID.CLIENT_AUTH, datetime.timedelta(seconds=8)
    short = ours.issue("short", x509.DNSName("short.example"), valid_for=seconds, usage=usage)
    short = secure(server, ours, short)
    assert finds(stubs, short) and finds(stubs, lasting)
    # A key takes precedence, but only while the certificate is valid.
    assert finds(stubs, short, **by_key)
    wait_until(lambda: is_unauthenticated(stubs, short))
    assert is_unauthenticated(stubs, short, **by_key)
    assert finds(stubs, lasting) and finds(stubs, lasting, **by_key)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_only_http2_over_tls_1_2_and_1_3_is_accepted(serve_tls, ours):
    server = serve_tls()
    for version in [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]:
        current = context(ours)
        current.minimum_version = current.maximum_version = version
        with connect_by(current, server) as tls:
            assert tls.selected_alpn_protocol() == "h2"
            session = tls.session
        # The server resumes no sessions: a resumed session would skip all checks.
        with connect_by(current, server, session=session) as tls:
            assert not tls.session_reused
    old = context(ours)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="(?i)alert (protocol version|handshake failure)"):
        connect_by(old, server)
    with pytest.raises(ssl.SSLError, match="(?i)no.application.protocol"):
        connect_by(context(ours, alpn=["http/1.1"]), server)
    with connect_by(context(ours, alpn=None), server) as tls:
        assert tls.recv(1) == b""


# Matches names of rustls' enum variants and lists of bytes, which do not belong in a message.
NOT_WORDS = re.compile(r"\b[A-Z][a-z0-9]+[A-Z]|\[\d+, ")


def is_readable(text, wanted):
    assert wanted in text, (wanted, text)
    assert not NOT_WORDS.search(text), text
    # A line of a key does not belong in a message, either.
    assert not re.search(r"[A-Za-z0-9+/]{60}", text), text
    return True


def write_file(folder, name, text):
    (folder / name).write_bytes(text)
    return str(folder / name)


@pytest.fixture
def wrong_files(ours, tmp_path):
    """Files that cannot be used as a certificate or as a key, and the errors that they cause."""
    good = ours.server("good")
    key = serialization.load_pem_private_key(good.key, None)
    pem, encrypted = serialization.Encoding.PEM, serialization.BestAvailableEncryption(b"secret")
    pkcs8, openssl = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
    odd = ec.generate_private_key(ec.SECP521R1())
    plain = serialization.NoEncryption()
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    critical = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    first, rest = good.certificate.split(b"\n", 1)
    file = lambda name, text: write_file(tmp_path, name, text)
    garbage = b"%s\n" + b"QUJD" * 20 + b"\n%s\n"
    certificates = [
        (file("nothing", b"nothing\n"), "no certificate in "),
        (good.files[1], f"no certificate in {good.files[1]}, only PRIVATE KEY; give a PEM"),
        (file("request", request.public_bytes(pem)), "only CERTIFICATE REQUEST"),
        (file("der", good.der), "it is binary, perhaps DER or PKCS #12"),
        (file("wide", good.certificate.decode().encode("utf-16")), "it is binary"),
        (file("cut", good.certificate[:300]), "is truncated: it has no line -----END CERTIFICATE-----"),
        (file("hyphen", first[:-1] + b"\n" + rest), "does not end with five hyphens"),
        (file("stars", first + b"\n****" + rest), "is not valid base64"),
        (
            file("garbage", garbage % (first, first.replace(b"BEGIN", b"END"))),
            "certificate 1 in " + str(tmp_path / "garbage") + " is malformed",
        ),
        (
            ours.server("critical", extensions=[critical]).files[0],
            "has a critical extension that is not supported",
        ),
    ]
    begin, end = b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----"
    keys = [
        (file("nothing", b"nothing\n"), "no private key in "),
        (good.files[0], f"no private key in {good.files[0]}, only CERTIFICATE"),
        (file("pkcs8", key.private_bytes(pem, pkcs8, encrypted)), "is encrypted; give it without a passphrase"),
        # An old format, with headers that are not base64 (RFC 1421).
        (file("old", key.private_bytes(pem, openssl, encrypted)), "is encrypted; give it without a passphrase"),
        (file("odd", odd.private_bytes(pem, pkcs8, plain)), "or its type is not supported; use RSA"),
        (file("garbage-key", garbage % (begin, end)), "is damaged, or its type is not supported"),
        (ours.server("other").files[1], "does not match the first certificate in"),
    ]
    return good, certificates, keys


def test_wrong_server_files_are_explained(ours, wrong_files):
    good, certificates, keys = wrong_files
    certificate, key = good.files
    cases = [
        (["--tls-certificate", certificate], "--tls-certificate needs its private key"),
        (["--tls-key", key], "--tls-key needs its certificate"),
        (["--tls-client-ca", ours.path], "needs TLS: give --tls-certificate"),
        (["--tls-certificate", "/none", "--tls-key", key], "cannot read /none: No such file"),
    ]
    for path, text in certificates:
        cases.append((["--tls-certificate", path, "--tls-key", key], text))
        # An authority's certificate does not have to be valid for a server.
        if "critical" not in text:
            cases.append(([*good.flags("--tls"), "--tls-client-ca", path], text))
    for path, text in keys:
        cases.append((["--tls-certificate", certificate, "--tls-key", path], text))
    for flags, text in cases:
        for check in [[], ["--check"]]:
            command = [HASHFINDER, "serve", "--port", "0", *flags, *check]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
            assert (done.returncode, done.stdout) == (2, ""), (flags, done)
            assert is_readable(done.stderr, text)


def test_pem_files_may_begin_with_a_byte_order_mark(serve_tls, ours):
    identity = ours.server()
    for path, text in zip(identity.files, [identity.certificate, identity.key]):
        replace(path, b"\xef\xbb\xbf" + text, mode=0o600)
    assert certificate_of(serve_tls(identity=identity), ours) == identity.der


def check_warnings(*flags):
    """Returns the warnings of `serve --check`."""
    command = [HASHFINDER, "serve", "--check", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, "hashfinder would listen on 127.0.0.1:0\n"), done
    return done.stderr


@pytest.mark.parametrize(
    "case, text",
    [
        ("good", None),
        ("expired", "the server's certificate has expired; clients reject it"),
        ("soon", "the server's certificate expires soon; replace the file"),
        ("short", "the server's certificate expires soon; replace the file"),
        ("early", "the server's certificate is not valid yet; clients reject it"),
        ("chain", "a certificate in the server's chain has expired; clients may reject the server"),
        ("self-signed", None),
        ("authority", "reject the server's certificate: it is a CA certificate"),
        ("purpose", "reject the server's certificate: it is not for servers: its extendedKeyUsage"),
        ("nameless", "reject the server's certificate: it has no subjectAltName, so it is valid for no host"),
        ("readable", "other users of this machine can read the private key"),
        ("clients", "an authority for client certificates has expired, but the server still trusts it"),
    ],
)
def test_problems_with_a_certificate_in_use_cause_a_warning(serve, ours, tmp_path, case, text):
    """Regression: an expired certificate caused no warning if it was not the first in its file, or
    if it expired while it was served. `serve --check` warned of none of these problems."""
    flags = []
    match case:
        case "good" | "readable":
            identity = ours.server()
        case "expired":
            identity = ours.server(valid_for=-DAY)
        case "soon":
            identity = ours.server(valid_since=-76 * DAY, valid_for=13 * DAY)
        case "short":
            # Three of its ten days are left, which is more than a quarter.
            assert check_warnings(*ours.server(valid_since=-7 * DAY, valid_for=3 * DAY).flags("--tls")) == ""
            identity = ours.server(valid_since=-8 * DAY, valid_for=2 * DAY)
        case "early":
            identity = ours.server(valid_since=DAY)
        case "chain":
            between = Authority(tmp_path, "between", valid_for=-DAY, parent=ours)
            identity = between.server()
            replace(identity.files[0], identity.certificate + between.pem)
        case "self-signed" | "authority":
            identity = self_signed(tmp_path, case, is_authority=case == "authority")
        case "purpose":
            identity = ours.server(usage=ExtendedKeyUsageOID.CLIENT_AUTH)
        case "nameless":
            identity = ours.issue("nameless")
        case "clients":
            identity = ours.server()
            flags = ["--tls-client-ca", Authority(tmp_path, "old", valid_for=-DAY).path]
    if case == "readable":
        os.chmod(identity.files[1], 0o644)
    flags += identity.flags("--tls")
    printed = check_warnings(*flags)
    server = serve(*flags)
    server.send(SIGTERM)
    assert server.wait() == 0
    logged = [line for line in server.rest_of_stderr().splitlines() if " WARN " in line]
    if text is None:
        assert (printed, logged) == ("", [])
        return
    (line,) = logged
    assert is_readable(line, text)
    assert re.fullmatch(r"hashfinder: warning: \S+: .*\n", printed) and is_readable(printed, text)
    if case in ("expired", "soon", "short", "chain", "clients"):
        assert re.search(r" not_after=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line), line
        assert re.search(r"\((certificate 2, )?not after \d{4}-", printed), printed
    assert ("certificate=2" in line) == ("certificate 2" in printed) == (case == "chain")


def test_a_certificate_that_expires_while_in_use_is_logged(serve_tls, ours):
    """Regression: an expired certificate was logged only if it had expired before it was read."""
    first = ours.server("first", valid_for=datetime.timedelta(seconds=8))
    server = serve_tls("--metrics-address", "127.0.0.1:0", identity=first)
    server.metrics = int(re.search(r":(\d+)\"", server.wait_for("serving metrics"))[1])
    metric = "hashfinder_tls_certificate_expiration_timestamp_seconds"
    assert value(scrape(server), metric, file="certificate") == int(first.expiry())
    # On a busy machine, the certificate may expire before the server has started.
    if not any("has expired" in line for line in server.log):
        server.wait_for("the server's certificate has expired")
    # One line for each file that is read, no matter how often the time is checked.
    replace(first.files[1], b"")
    server.wait_for("cannot use the new certificates")
    again = ours.server("again", valid_for=-DAY)
    again.write_to(*first.files)
    server.wait_for("certificates reloaded")
    server.wait_for("the server's certificate has expired")
    last = ours.server("last")
    last.write_to(*first.files)
    server.wait_for("certificates reloaded")
    wait_until(lambda: value(scrape(server), metric, file="certificate") == int(last.expiry()))
    server.send(SIGTERM)
    assert server.wait() == 0
    log = "\n".join(server.log) + server.rest_of_stderr()
    assert log.count("has expired") == 2 and log.count("expires soon") <= 1, log


def test_the_metrics_show_when_the_first_certificate_expires(serve_tls, ours, tmp_path):
    between = Authority(tmp_path, "between", valid_for=40 * DAY, parent=ours)
    identity = between.server(valid_for=50 * DAY)
    replace(identity.files[0], identity.certificate + between.pem)
    clients = write_file(tmp_path, "clients", Authority(tmp_path, "long", 60 * DAY).pem + ours.pem)
    server = serve_tls("--metrics-address", "127.0.0.1:0", "--tls-client-ca", clients, identity=identity)
    server.metrics = int(re.search(r":(\d+)\"", server.wait_for("serving metrics"))[1])
    metric = "hashfinder_tls_certificate_expiration_timestamp_seconds"
    for file, first in [("certificate", between), ("client_ca", ours)]:
        expiry = first.certificate.not_valid_after_utc.timestamp()
        assert value(scrape(server), metric, file=file) == int(expiry)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_failed_handshakes_are_explained_in_the_log(serve_tls, ours, theirs):
    plain = serve_tls()
    mutual = serve_tls("--tls-client-ca", ours.path)
    old, groups = context(ours), context(ours)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    ciphers = context(ours)
    ciphers.maximum_version = ssl.TLSVersion.TLSv1_2
    ciphers.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    groups.set_ecdh_curve("secp521r1")
    with_identity = lambda identity: context(ours, identity=identity)
    for server, client, reason in [
        (plain, old, "no TLS version (1.2 or 1.3) in common with the client"),
        (plain, ciphers, "no cipher suite in common with the client"),
        (plain, groups, "no key exchange group (X25519, P-256 or P-384) in common with the client"),
        (plain, context(ours, alpn=["http/1.1"]), "the client does not speak HTTP/2 (ALPN h2)"),
        (plain, context(ours, alpn=None), "the client does not offer HTTP/2 (ALPN h2)"),
        (
            plain,
            context(theirs),
            "the client rejected our certificate: it was signed by an unknown authority",
        ),
        (mutual, context(ours), "the client sent no certificate"),
        (mutual, with_identity(theirs.client()), "the client's certificate was signed by an unknown authority"),
        (mutual, with_identity(ours.server("wrong")), "the client's certificate is not for clients: its extended"),
        (
            mutual,
            with_identity(ours.client("late", valid_for=-DAY)),
            "the client's certificate expired on 20",
        ),
        (
            mutual,
            with_identity(ours.client("early", valid_since=DAY)),
            "the client's certificate is not valid before 20",
        ),
        (
            mutual,
            with_identity(self_signed(ours.folder, "self", is_authority=True)),
            "the client's certificate is a CA certificate",
        ),
    ]:
        # With TLS 1.3, the client notices the failure only when it reads.
        try:
            with connect_by(client, server) as tls:
                assert tls.recv(1) == b""
        except OSError:
            pass
        assert is_readable(server.wait_for("TLS handshake failed"), reason)
    host, port = plain.address.split(":")
    for sent, reason in [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the client does not speak TLS"),
        (b"\x16\x03\x01\x00\x05hello", "the client violated the TLS protocol ("),
        (b"\x16\x03\x01", "the client closed the connection during the handshake"),
    ]:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as tcp:
            tcp.sendall(sent)
            tcp.shutdown(socket.SHUT_WR)
            while tcp.recv(100):
                pass
        assert is_readable(plain.wait_for("TLS handshake failed"), reason)


def test_a_flood_of_bad_handshakes_does_not_flood_the_log(serve_tls, ours):
    limits = {"maximum-connections-per-second-per-address": 100_000}
    server = serve_tls("--metrics-address", "127.0.0.1:0", limits=limits)
    server.metrics = int(re.search(r":(\d+)\"", server.wait_for("serving metrics"))[1])
    server.wait_for("listening")
    host, port = server.address.split(":")
    for _ in range(400):
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as tcp:
            tcp.sendall(b"GET / HTTP/1.1\r\n\r\n")
            # The server sends an alert and closes the connection.
            while tcp.recv(100):
                pass
    # All are counted, but not all are logged.
    wait_until(lambda: value(scrape(server), "hashfinder_connections_closed_total", reason="tls") == 400)
    assert certificate_of(server, ours)
    server.send(SIGTERM)
    assert server.wait() == 0
    logged = server.rest_of_stderr().count("TLS handshake failed")
    assert 100 <= logged < 400, logged


def find_on(server, *flags, env=None, address=None, timeout="20s", name="do"):
    """Runs `find` for `name` on a server, and returns the finished process."""
    command = [HASHFINDER, "find", name, "--server", address or server.address, *flags]
    command += ["--connect-timeout", timeout]
    env = {**os.environ, **(env or {})}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S + 20, env=env
    )


def has_one_readable_line(done, wanted):
    """Checks that exactly one line has the text, and is readable. Other lines may contain a cursor,
    which is not."""
    lines = [line for line in done.stderr.splitlines() if wanted in line]
    assert len(lines) == 1, (wanted, done)
    return is_readable(lines[0], wanted)


def test_commands_work_over_tls(serve_tls, ours):
    server = serve_tls("--tls-client-ca", ours.path)
    port = server.address.split(":")[1]
    flags = ["--tls-ca", ours.path, *ours.client().flags()]
    localhost = f"localhost:{port}"
    for address, more in [
        (server.address, []),
        (localhost, ["--tls"]),
        (f"https://{localhost}", []),
        (f"https://{localhost}", ["--tls-server-name", "localhost"]),
    ]:
        done = find_on(server, *flags, *more, address=address)
        assert done.returncode == 0 and "do" in done.stdout.split("\t")[0].lower(), done
    by_system = find_on(serve_tls(), "--tls", env={"SSL_CERT_FILE": ours.path})
    assert by_system.returncode == 0, by_system
    listed = [HASHFINDER, "searches", "list", "--server", localhost, *flags]
    done = subprocess.run(listed, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0 and "\tended\t" in done.stdout, done


def test_tls_errors_are_reported_at_once(serve, serve_tls, ours, theirs):
    server = serve_tls()
    mutual = serve_tls("--tls-client-ca", ours.path)
    plain = serve()
    trusting = ["--tls-ca", ours.path]
    wrong = lambda identity: serve_tls(identity=identity)
    late = wrong(ours.server("late", valid_for=-DAY))
    early = wrong(ours.server("early", valid_since=DAY))
    elsewhere = wrong(ours.issue("elsewhere", x509.DNSName("b.example"), x509.DNSName("c.example")))
    nameless = wrong(ours.issue("nameless"))
    purpose = wrong(ours.server("purpose", usage=ExtendedKeyUsageOID.CLIENT_AUTH))
    own_authority = self_signed(ours.folder, "own-authority", is_authority=True)
    authority = wrong(own_authority)
    by_name = ["--tls-server-name", "localhost"]
    key_alone = ["--tls-client-key", ours.client().files[1]]
    old = ours.client("old", valid_for=-DAY)
    for to, flags, text in [
        (server, ["--tls-ca", theirs.path], "was signed by an unknown authority; give the authority's certificate"),
        # Without --tls-ca, the system's authorities are trusted.
        (server, ["--tls"], "was signed by an unknown authority; give the authority's certificate"),
        (
            server,
            [*trusting, "--tls-server-name", "a.example"],
            "is valid for localhost, 127.0.0.1, not for a.example; give the right name with --tls-server-name",
        ),
        (server, [*trusting, "--tls-server-name", "a b"], "invalid server name"),
        (server, ["--tls-ca", "/none"], "cannot read /none: No such file"),
        (server, [*trusting, *key_alone], "--tls-client-key requires --tls-client-certificate"),
        (late, trusting, "expired on 20"),
        (early, trusting, "is not valid before 20"),
        (elsewhere, [*trusting, *by_name], "is valid for b.example, c.example, not for localhost; give"),
        (nameless, [*trusting, *by_name], "has no subjectAltName, so it is valid for no host; the server needs another certificate"),
        (purpose, trusting, "is not for servers: its extendedKeyUsage lacks serverAuth"),
        (authority, ["--tls-ca", own_authority.files[0]], "is a CA certificate; a server's or client's needs basicConstraints=CA:FALSE"),
        (server, [], "uses TLS; give --tls or --server https://"),
        (plain, trusting, "does not speak TLS"),
        (mutual, [], "uses TLS; give --tls or --server https://"),
        (mutual, trusting, "requires a client certificate; give one with --tls-client-"),
        (
            mutual,
            [*trusting, *theirs.client().flags()],
            "rejected the client certificate: it was signed by an unknown authority; give another",
        ),
        (
            mutual,
            [*trusting, *old.flags()],
            "rejected the client certificate: it has expired or is not valid yet; give another",
        ),
        (
            mutual,
            [*trusting, *ours.server("not-ours").flags()],
            "rejected the client certificate: it is for another purpose",
        ),
    ]:
        # The client reports these errors at once, without waiting this long.
        env = {"SSL_CERT_FILE": theirs.path}
        done = find_on(to, *flags, env=env, timeout="1h")
        assert done.returncode == 5 and done.stdout == "", done
        assert has_one_readable_line(done, text)


def test_wrong_client_files_are_explained(ours, wrong_files):
    good, certificates, keys = wrong_files
    for path, text in certificates:
        flags = ["--tls-client-certificate", path, "--tls-client-key", good.files[1]]
        cases = [["--tls-ca", ours.path, *flags]]
        if "critical" not in text:
            cases.append(["--tls-ca", path])
        for flags in cases:
            done = find_on(None, *flags, address="127.0.0.1:1")
            assert done.returncode == 5 and has_one_readable_line(done, text)
    for path, text in keys:
        flags = ["--tls-client-certificate", good.files[0], "--tls-client-key", path]
        done = find_on(None, "--tls-ca", ours.path, *flags, address="127.0.0.1:1")
        assert done.returncode == 5 and has_one_readable_line(done, text)


SECRET = "key7.3vQmS0g-_Zx9"


class Curious:
    """A server that rejects every call, and records the credentials that it received."""

    def __init__(self, v1, identity=None):
        self.received = []

        def search(_, request, context):
            metadata = dict(context.invocation_metadata())
            self.received.append(metadata.get("authorization"))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown credential")

        def list_searches(_, request, context):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not for you")

        methods = dict(Search=search, ListSearches=list_searches)
        servicer = type("Servicer", (v1.Servicer,), methods)
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        v1.add_to_server(servicer(), self.server)
        if identity:
            credentials = grpc.ssl_server_credentials([(identity.key, identity.certificate)])
            port = self.server.add_secure_port("127.0.0.1:0", credentials)
        else:
            port = self.server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self.server.start()


@pytest.fixture
def curious(v1):
    servers = []

    def start(identity=None):
        servers.append(Curious(v1, identity))
        return servers[-1]

    yield start
    for started in servers:
        started.server.stop(None)


def test_a_credential_is_sent_with_every_call(curious, ours, tmp_path):
    file, other = tmp_path / "credential", tmp_path / "other.toml"
    file.write_text(f"{SECRET}\nwhatever\n")
    other.write_text(f'credential-file = "{file}"\n')
    by_variable = {"HASHFINDER_CREDENTIAL": "another"}
    plain, secure = curious(), curious(ours.server())
    for server, flags, env, sent in [
        (plain, [], {}, None),
        (plain, [], {"HASHFINDER_CREDENTIAL": ""}, None),
        (plain, ["--credential-file", file], {}, SECRET),
        (plain, [], by_variable, "another"),
        (plain, ["--credential-file", file], by_variable, SECRET),
        (plain, ["--config", other], {}, SECRET),
        (plain, ["--config", other], by_variable, "another"),
        (plain, [], {"HASHFINDER_CREDENTIAL_FILE": str(file)}, SECRET),
        (secure, ["--tls-ca", ours.path, "--credential-file", file], {}, SECRET),
    ]:
        done = find_on(server, *flags, env=env)
        assert server.received.pop() == (sent and f"Bearer {sent}")
        assert done.returncode == 5, done
        text = ": unknown credential; give a valid one with"
        assert f"{text} --credential-file PATH or in HASHFINDER_CREDENTIAL" in done.stderr
        assert "resume with: hashfinder find" in done.stderr
        assert SECRET not in done.stderr and "another" not in done.stderr
    listed = [HASHFINDER, "searches", "list", "--server", plain.address]
    done = subprocess.run(listed, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 5, done
    assert ": not for you; give another credential with --credential-file" in done.stderr


def test_a_credential_is_kept_secret(tmp_path):
    file, empty = tmp_path / "credential", tmp_path / "empty"
    file.write_text(f"{SECRET}\n")
    empty.write_text("\nx\n")
    env = {"HASHFINDER_CREDENTIAL": SECRET}
    # An address reserved for documentation. No connection is attempted.
    for flags, env in [(["--credential-file", file], {}), ([], env)]:
        done = find_on(None, *flags, env=env, address="192.0.2.1:1", timeout="1h")
        assert done.returncode == 5 and SECRET not in done.stderr, done
        text = "cannot send a credential to 192.0.2.1:1 without TLS"
        assert text in done.stderr and "--send-credential-unencrypted" in done.stderr
    flags = ["--credential-file", file, "--send-credential-unencrypted"]
    done = find_on(None, *flags, address="192.0.2.1:1", timeout="10ms")
    assert "cannot reach 192.0.2.1:1 within 10ms" in done.stderr, done
    for flags, env, place in [
        (["--credential-file", empty], {}, f"invalid credential in the first line of {empty}"),
        (["--credential-file", "/none"], {}, "cannot read /none: No such file"),
        ([], {"HASHFINDER_CREDENTIAL": "two words"}, "invalid credential in HASHFINDER_CREDENTIAL"),
    ]:
        done = find_on(None, *flags, env=env, address="127.0.0.1:1")
        assert done.returncode == 5 and place in done.stderr, done
        assert "words" not in done.stderr
    for command in [["config", "show"], ["config", "show", "--json"], ["config", "default"]]:
        done = subprocess.run(
            [HASHFINDER, *command],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "HASHFINDER_CREDENTIAL": SECRET},
        )
        assert done.returncode == 0 and SECRET not in done.stdout + done.stderr, done
        assert "HASHFINDER_CREDENTIAL" not in done.stderr
