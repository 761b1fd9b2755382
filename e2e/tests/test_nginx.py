"""nginx before the relay, as a CDN would stand there: it ends TLS and passes HTTP/1.1 WebSockets on."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from e2e.demo import MARKER
from e2e.measure import Capture, iperf3, ping

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.mesh import Mesh

CONFIG = """
daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log; worker_processes 1; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{
    listen {address}:443 ssl; ssl_protocols TLSv1.3; ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;
    location /ws/ {{
      proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_read_timeout 60s; proxy_buffering off;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"""


def certificate(path: Path, address: str) -> str:
    """Write a self-signed certificate for `address`; gives its pin."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return "sha256:" + hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()


def test_packets_pass_nginx_before_the_relay(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    host = mesh.lab.host("relay-1")
    path = mesh.lab.path / "nginx"
    path.mkdir()
    pin = certificate(path, host.address)
    (path / "nginx.conf").write_text(CONFIG.format(dir=path, address=host.address))
    nginx = host.start("nginx", "nginx", "-c", str(path / "nginx.conf"))

    relay = mesh.add_relay("relay-1", host=host, plain="127.0.0.1:8080", tls_pin=pin)
    for name in ("node-a", "node-b"):
        mesh.add_node(name)
    mesh.authorise_all()
    mesh.wait_connected()
    a, b = mesh.nodes
    ping(a.host, b.v4, 3)

    # Between nginx and the relay there is no TLS: what the relay itself sees.
    capture = Capture(host, "lo")
    assert ping(a.host, b.v4, 20, size=400, pattern=MARKER.hex()).loss_percent == 0
    assert ping(a.host, b.v6, 20).loss_percent == 0
    seen = capture.stop()
    assert len(seen) > 10_000
    assert MARKER not in seen
    assert iperf3(a.host, b.host, b.v4, 2) > 0
    assert nginx.alive()
    assert relay.process is not None
    assert relay.process.alive()
