"""A self-signed certificate for `--dev`, kept so that its pin stays the same."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgelink_controller.kit.secrets import write_private

LIFE_DAYS = 3650


@dataclass(frozen=True, slots=True)
class DevCertificate:
    """`pin` is `sha256:` and the hexadecimal SHA-256 of the certificate's DER."""

    cert: Path
    key: Path
    pin: str


def dev_certificate(state_dir: Path, names: list[str]) -> DevCertificate:
    """Load or make it. `names` are put in beside localhost and this host's name when it is made."""
    cert, key = state_dir / "dev-cert.pem", state_dir / "dev-key.pem"
    if not cert.exists() or not key.exists():
        _make(cert, key, names)
    loaded = x509.load_pem_x509_certificate(cert.read_bytes())
    der = loaded.public_bytes(serialization.Encoding.DER)
    return DevCertificate(cert, key, f"sha256:{hashlib.sha256(der).hexdigest()}")


def _make(cert: Path, key: Path, names: list[str]) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "EdgeLink development")])
    now = datetime.datetime.now(datetime.UTC)
    wanted = dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname(), *names])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=LIFE_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted if name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    write_private(
        key,
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
    cert.write_bytes(built.public_bytes(serialization.Encoding.PEM))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
