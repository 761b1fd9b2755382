"""Proxies before relays, as docs/operations.md section 4 has them: nodes pass them, and each client is limited by its own address."""

from __future__ import annotations

import re
import socket
import ssl
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e.certificates import certificate
from e2e.demo import MARKER
from e2e.measure import Capture, iperf3, ping
from e2e.netns import until

if TYPE_CHECKING:
    from e2e.mesh import Mesh, Relay
    from e2e.netns import Host, Process

DOCS = Path(__file__).parents[2] / "docs/operations.md"
PER_ADDRESS = 3
LIMITS = {"max_unauthenticated_per_address": PER_ADDRESS, "handshake_timeout_s": 60}

NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log; worker_processes 1; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  {example}
}}
"""
CADDY = "{{\n  admin off\n  auto_https disable_redirects\n  storage file_system {dir}\n}}\n{example}"


def example(language: str) -> str:
    """The code block of that language in the section about proxies."""
    section = DOCS.read_text().split("\n## 4. ")[1].split("\n## 5. ")[0]
    return str(re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0])


def relay_section(listen: str) -> dict[str, Any]:
    """The relay's settings that stand in that section for this listener, without the certificate (`--dev` makes one)."""
    section = DOCS.read_text().split("\n## 4. ")[1].split("\n## 5. ")[0]
    blocks = re.findall(r"^```toml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    found = next(block for block in blocks if f'listen = "{listen}"' in block)
    return {key: value for key, value in tomllib.loads(found)["relay"].items() if key != "tls"}


def start_proxy(kind: str, host: Host, path: Path) -> Process:
    """The example of the documentation with this host's address and certificate."""
    text = example(kind)
    for folder in ("/etc/nginx", "/etc/haproxy", "/etc/caddy"):
        text = text.replace(folder, str(path))
    text = text.replace("listen 443", f"listen {host.address}:443").replace("bind :443", f"bind {host.address}:443")
    text = text.replace("relay-1.example {", f"https://{host.address}:443 {{")
    if kind == "nginx":
        text = NGINX.format(dir=path, example=text)
    elif kind == "caddy":
        text = CADDY.format(dir=path, example=text)
    file = path / f"{kind}.conf"
    file.write_text(text)
    command = {
        "nginx": ["nginx", "-c", str(file)],
        "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)],
    }.get(kind, ["haproxy", "-db", "-f", str(file)])
    return host.start(kind, *command, env={"XDG_DATA_HOME": str(path), "XDG_CONFIG_HOME": str(path)})


class Opened:
    """A WebSocket of a client that never signs in, opened from `host` with whatever headers it likes."""

    def __init__(self, host: Host, relay: Relay, forged: str) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with host.inside():
            plain = socket.create_connection((relay.host.address, 443), 10)
        self.socket: socket.socket = plain
        try:
            self.socket = context.wrap_socket(plain)
            self.socket.sendall(
                b"GET /ws/data HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                + f"Host: {relay.host.address}\r\nX-Forwarded-For: {forged}\r\nForwarded: for={forged}\r\n\r\n".encode()
            )
            self.answer = self.socket.recv(4096)
        except OSError:
            self.answer = b""

    def refused(self) -> bool:
        """Whether the relay ended it: at once, or with a close frame after the upgrade."""
        if b"101 Switching" not in self.answer:
            return True
        if not self.answer.endswith(b"\r\n\r\n"):
            return True
        self.socket.settimeout(0.7)
        try:
            self.socket.recv(4096)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Let it go."""
        self.socket.close()


PROXIES = {
    "nginx": "127.0.0.1:8080",
    "haproxy": "127.0.0.1:8080",
    "caddy": "127.0.0.1:8080",
    "haproxy-tcp": "127.0.0.1:8443",
}


@pytest.fixture(scope="module")
def proxied(empty_mesh: Mesh) -> Mesh:
    """A relay behind each proxy, and two nodes on all of them."""
    mesh = empty_mesh
    for kind, listen in PROXIES.items():
        host = mesh.lab.host(kind)
        path = mesh.lab.path / f"{kind}-proxy"
        path.mkdir()
        pin = certificate(path, host.address)
        proxy = start_proxy(kind, host, path)
        settings = {**relay_section(listen), "workers": 1}
        plain = listen if settings.get("behind_proxy") else None
        relay = mesh.add_relay(
            f"relay-{kind}", host=host, plain=plain, tls_pin=pin if plain else None, relay=settings, limits=LIMITS
        )
        until(f"{kind} and its relay run", 20, lambda relay=relay: relay.connections() is not None)
        assert proxy.alive(), proxy.text()
    for name in ("node-a", "node-b"):
        mesh.add_node(name)
    mesh.authorise_all()
    mesh.wait_connected()
    return mesh


def test_nodes_pass_every_proxy_and_the_relay_knows_their_addresses(proxied: Mesh) -> None:
    nodes = {node.host.address for node in proxied.nodes}
    for relay in proxied.relays:
        listed = {entry["peer"] for entry in relay.connections() if entry["kind"] == "data"}
        assert listed == nodes, relay.name
        assert {entry["proxy"] for entry in relay.connections() if entry["kind"] == "data"} == {"127.0.0.1"}


def test_packets_pass_every_proxy(proxied: Mesh) -> None:
    a, b = proxied.nodes
    for relay in proxied.relays:
        for node in proxied.nodes:
            for other in proxied.relays:
                verb = "del" if other is relay else "replace"
                node.host.run("ip", "route", verb, "blackhole", f"{other.host.address}/32", check=False)
        until(f"packets pass {relay.name}", 40, lambda: ping(a.host, b.v4, 3).loss_percent == 0)
        ready = {known["id"] for known in a.status()["relays"] if known["state"] == "ready"}
        until(f"only {relay.name} is left", 40, lambda ready=ready, relay=relay: ready >= {relay.relay_id})
        # Between proxy and relay: what the relay itself sees is not the packets' plaintext, with TLS or without.
        capture = Capture(relay.host, "lo")
        assert ping(a.host, b.v4, 20, size=400, pattern=MARKER.hex()).loss_percent == 0
        assert ping(a.host, b.v6, 20).loss_percent == 0
        seen = capture.stop()
        assert len(seen) > 10_000, relay.name
        assert MARKER not in seen
        assert iperf3(a.host, b.host, b.v4, 2) > 0
    for node in proxied.nodes:
        for relay in proxied.relays:
            node.host.run("ip", "route", "del", "blackhole", f"{relay.host.address}/32", check=False)


def test_two_clients_behind_one_proxy_are_limited_apart_whatever_they_claim(proxied: Mesh) -> None:
    clients = [proxied.lab.host("client-1"), proxied.lab.host("client-2")]
    for relay in proxied.relays:
        held = []
        for client in clients:
            for number in range(PER_ADDRESS + 1):
                opened = Opened(client, relay, f"198.51.100.{number}")
                held.append(opened)
                assert opened.refused() == (number == PER_ADDRESS), (relay.name, client.name, number, opened.answer)
        waiting = [entry["peer"] for entry in relay.connections() if not entry["nodes"] and entry["relay"] is None]
        assert sorted(waiting) == sorted(client.address for client in clients for _ in range(PER_ADDRESS)), relay.name
        for opened in held:
            opened.close()
