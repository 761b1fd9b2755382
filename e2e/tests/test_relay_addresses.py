"""Relays with several addresses, of which one leads nowhere, and relays that ask for a client certificate."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e.certificates import certificate
from e2e.measure import ping
from e2e.netns import until

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.mesh import Mesh, Node, Relay
    from e2e.netns import Host

NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log; worker_processes 1; user root;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  server {{
    listen {address}:443 ssl;
    ssl_protocols TLSv1.3;
    ssl_certificate {dir}/cert.pem;
    ssl_certificate_key {dir}/key.pem;
    ssl_verify_client on;
    ssl_client_certificate {client}/cert.pem;
    location /ws/ {{
      proxy_pass http://127.0.0.1:8080;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""


def black_hole(host: Host, family: str) -> None:
    """What comes to port 443 by IPv4 (ip) or IPv6 (ip6) vanishes."""
    host.run("nft", "add", "table", family, "hole")
    host.run("nft", "add", "chain", family, "hole", "in", "{ type filter hook input priority 0; }")
    host.run("nft", "add", "rule", family, "hole", "in", "tcp", "dport", "443", "drop")


def with_hosts(path: Path, lines: str) -> tuple[str, ...]:
    """What goes before a program that is to know these hosts."""
    path.write_text(lines)
    # `ip netns exec` gives each program mounts of its own.
    return ("sh", "-c", f'mount --bind {path} /etc/hosts && exec "$@"', "sh")


def milliseconds_to(node: Node, relay: Relay, attempts: str) -> tuple[list[str], float]:
    """Which addresses the node tried when it dialled (those with `attempts` in them), and how long it took to be let in."""
    assert node.process is not None
    tried: list[tuple[str, dt.datetime]] = []
    for line in node.process.text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        fields, at = entry["fields"], dt.datetime.fromisoformat(entry["timestamp"])
        if fields["message"] == "connecting" and attempts in (fields["to"], fields["host"]):
            tried.append((fields["to"], at))
        if fields["message"] == "relay" and fields["relay"] == str(relay.relay_id) and fields["ready"]:
            return [to for to, _ in tried], (at - tried[0][1]).total_seconds() * 1000
    msg = f"{node.name} was never on {relay.name}"
    raise AssertionError(msg)


def test_a_name_whose_first_address_is_a_black_hole_is_reached_within_a_second(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    host = mesh.lab.host("named")
    urls = {"data_url": "wss://named.test/ws/data", "listen": "[::]:443"}
    relay = mesh.add_relay("named", host=host, relay=urls)
    black_hole(host, "ip6")
    names = f"{host.address6} named.test\n{host.address} named.test\n"
    wrapper = with_hosts(mesh.lab.path / "hosts", names)
    log = ("--log", "debug", "--log-format", "json")
    nodes = [mesh.add_node(name, *log, wrapper=wrapper) for name in ("node-a", "node-b")]
    mesh.authorise_all()
    mesh.wait_connected()
    for node in nodes:
        tried, took = milliseconds_to(node, relay, "named.test")
        assert tried == [f"[{host.address6}]:443", f"{host.address}:443"]
        assert 250 <= took < 1000, f"{node.name}: {took} ms"
    assert ping(nodes[0].host, nodes[1].v4, 5, 0.2).loss_percent < 100


def test_a_relay_with_several_names_is_reached_by_whichever_answers(empty_mesh: Mesh) -> None:
    mesh = empty_mesh
    host = mesh.lab.host("many")
    relay = mesh.add_relay(
        "many", host=host, relay={"listen": "[::]:443"}, more_urls=[f"wss://[{host.address6}]/ws/data"]
    )
    black_hole(host, "ip")
    mesh.wait_connected()
    for node in mesh.nodes:
        assert relay.relay_id in {known["id"] for known in node.status()["relays"] if known["state"] == "ready"}
    assert {node.host.address6 for node in mesh.nodes} == {
        entry["peer"] for entry in relay.connections() if entry["kind"] == "data"
    }


@pytest.fixture
def keyed(empty_mesh: Mesh) -> tuple[Relay, Path]:
    """A relay behind an nginx that asks for a client certificate, and the folder with that certificate."""
    mesh = empty_mesh
    host = mesh.lab.host("keyed")
    path, client = mesh.lab.path / "keyed-nginx", mesh.lab.path / "client"
    path.mkdir()
    client.mkdir()
    pin = certificate(path, host.address)
    certificate(client, "192.0.2.1")
    (path / "nginx.conf").write_text(NGINX.format(dir=path, client=client, address=host.address))
    host.start("nginx", "nginx", "-c", str(path / "nginx.conf"))
    settings = {"trusted_proxies": ["127.0.0.0/8"], "client_address": "X-Forwarded-For"}
    relay = mesh.add_relay("keyed", host=host, plain="127.0.0.1:8080", tls_pin=pin, relay=settings)
    until("the relay runs", 20, lambda: relay.connections() is not None)
    return relay, client


def test_a_relay_that_asks_for_a_client_certificate_gets_it(empty_mesh: Mesh, keyed: tuple[Relay, Path]) -> None:
    mesh, (relay, client) = empty_mesh, keyed
    files = ("--client-cert", str(client / "cert.pem"), "--client-key", str(client / "key.pem"))
    node = mesh.add_node("has-one", *files)
    mesh.authorise_all()

    def on(known: Node) -> dict[str, Any]:
        return next(entry for entry in known.status()["relays"] if entry["id"] == relay.relay_id)

    until("it is let in", 20, lambda: on(node)["state"] == "ready")
    without = mesh.nodes[0]
    until("the others are told", 20, lambda: "client certificate" in str(on(without)["error"]))
    assert "client_cert" in without.cli("status")
    assert node.host.address in {entry["peer"] for entry in relay.connections()}
