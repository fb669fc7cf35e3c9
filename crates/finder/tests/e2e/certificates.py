"""Certificates for tests: authorities, and the certificates that they sign."""

import datetime
import ipaddress
import os

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)

# Default validity, long enough that no certificate expires soon.
MONTH = 30 * DAY

LOCALHOST = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


class Authority:
    """Signs certificates, and writes them and their keys to files."""

    def __init__(self, folder, name, valid_for=MONTH, parent=None):
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = _common_name(name)
        issuer = parent.certificate.subject if parent else subject
        builder = _builder(subject, issuer, self.key, valid_for)
        builder = builder.add_extension(_basic_constraints(True), True)
        self.certificate = builder.sign((parent or self).key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        self.path = str(folder / f"{name}.pem")
        (folder / f"{name}.pem").write_bytes(self.pem)

    def issue(
        self,
        file,
        *names,
        valid_for=MONTH,
        valid_since=-9 * DAY,
        usage=ExtendedKeyUsageOID.SERVER_AUTH,
        extensions=(),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_common_name(file), self.certificate.subject, key, valid_for, valid_since)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), False)
        for extension in extensions:
            builder = builder.add_extension(extension, True)
        return Identity(self.folder, file, key, builder.sign(self.key, hashes.SHA256()))

    def server(self, file="server", **kwargs):
        return self.issue(file, *LOCALHOST, **kwargs)

    def client(self, file="client", *names, **kwargs):
        names = names or [x509.DNSName("client.example")]
        return self.issue(file, *names, usage=ExtendedKeyUsageOID.CLIENT_AUTH, **kwargs)


def self_signed(folder, file, is_authority):
    """Returns a self-signed server certificate. With `is_authority` it is a CA certificate, as from
    `openssl req -x509`."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_common_name(file), _common_name(file), key, MONTH)
    builder = builder.add_extension(x509.SubjectAlternativeName(LOCALHOST), False)
    builder = builder.add_extension(_basic_constraints(is_authority), True)
    return Identity(folder, file, key, builder.sign(key, hashes.SHA256()))


def _common_name(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _basic_constraints(is_authority):
    return x509.BasicConstraints(ca=is_authority, path_length=None)


def _builder(subject, issuer, key, valid_for, valid_since=-9 * DAY):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now + valid_since).not_valid_after(now + valid_for)


class Identity:
    """A certificate and its key."""

    def __init__(self, folder, file, key, certificate):
        self.parsed = certificate
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM)
        self.der = certificate.public_bytes(serialization.Encoding.DER)
        self.key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.files = str(folder / f"{file}-cert.pem"), str(folder / f"{file}-key.pem")
        self.write_to(*self.files)

    def write_to(self, certificate, key):
        """Replaces both files, each of them atomically."""
        for path, text in [(key, self.key), (certificate, self.certificate)]:
            replace(path, text, mode=0o600)

    def expiry(self):
        return self.parsed.not_valid_after_utc.timestamp()

    def flags(self, prefix="--tls-client"):
        certificate, key = self.files
        return [f"{prefix}-certificate", certificate, f"{prefix}-key", key]


def replace(path, text, mode=0o644):
    with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(text)
    os.replace(f"{path}.new", path)
