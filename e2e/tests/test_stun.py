"""Stock STUN clients (Debian's coturn) against our server: plain, and finding out what a NAT does (RFC 5780)."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from e2e.netns import lab, run, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2e.netns import Host

SECOND = "192.0.2.200"
KEY = "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw="


@pytest.fixture(scope="module")
def hosts(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host, Host]]:
    """A server with two addresses, a client beside it, and one behind a NAT on the client's host."""
    with lab(tmp_path_factory.mktemp("stun")) as made:
        server, client = made.host("server"), made.host("client")
        server.run("ip", "address", "add", f"{SECOND}/24", "dev", "eth0")
        config = {
            "relay": {"id": 1, "listen": "127.0.0.1:8080"},
            "jwt": {"public_key": KEY},
            "stun": {"listen": "0.0.0.0:3478", "external_ip": server.address, "secondary_ip": SECOND},
            "state_dir": str(made.path / "state"),
        }
        file = made.path / "relay.json"
        file.write_text(json.dumps(config))
        process = server.start("relay", str(bin_dir / "edgelink-relay"), "--config", str(file))
        process.wait_for("STUN listens")

        inside = made.host("inside")
        inside.run("ip", "address", "flush", "dev", "eth0")
        inside.run("ip", "link", "set", "eth0", "down")
        run(
            *("ip", "-n", client.netns, "link", "add", "lan", "type", "veth"),
            *("peer", "name", "wan", "netns", inside.netns),
        )
        client.run("ip", "address", "add", "10.7.0.1/24", "dev", "lan")
        client.run("ip", "link", "set", "lan", "up")
        inside.run("ip", "address", "add", "10.7.0.2/24", "dev", "wan")
        inside.run("ip", "link", "set", "wan", "up")
        inside.run("ip", "route", "add", "default", "via", "10.7.0.1")
        client.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield server, client, inside


def stock(host: Host, name: str, *args: str) -> str:
    """What a program of coturn prints; they wait for ever for an answer that does not come."""
    return host.run("timeout", "30", f"turnutils_{name}", *args)


def nat(host: Host, how: str) -> None:
    """Translate what leaves `host`."""
    host.run("nft", "flush", "ruleset")
    host.run("nft", "add", "table", "ip", "nat")
    host.run("nft", "add", "chain", "ip", "nat", "post", "{ type nat hook postrouting priority 100; }")
    host.run("nft", "add", "rule", "ip", "nat", "post", "oifname", "eth0", *how.split())


def test_a_stock_client_learns_its_address_on_all_four_faces(hosts: tuple[Host, Host, Host]) -> None:
    server, client, _ = hosts
    for address in (server.address, SECOND):
        for port in ("3478", "3479"):
            said = stock(client, "stunclient", "-p", port, address)
            assert f"UDP reflexive addr: {client.address}:" in said, said


def test_stock_discovery_agrees_that_there_is_no_nat(hosts: tuple[Host, Host, Host]) -> None:
    server, client, _ = hosts
    said = stock(client, "natdiscovery", "-m", "-f", "-L", client.address, server.address)
    assert "No NAT" in said, said
    assert "Endpoint Independent Filtering" in said, said
    assert f"Other addr: : {SECOND}:3479" in said, said


@pytest.mark.parametrize(
    ("how", "mapping"),
    [
        ("masquerade", "NAT with Endpoint Independent Mapping"),
        ("masquerade fully-random", "NAT with Address and Port Dependent Mapping"),
    ],
)
def test_stock_discovery_tells_a_linux_nat_by_our_answers(
    hosts: tuple[Host, Host, Host], how: str, mapping: str
) -> None:
    server, outside, inside = hosts
    nat(outside, how)
    said = stock(inside, "natdiscovery", "-m", "-f", "-L", "10.7.0.2", server.address)
    assert mapping in said, said
    assert "Address and Port Dependent Filtering" in said, said
    assert f"UDP reflexive addr: {outside.address}:" in said, said


def test_who_asks_too_often_is_limited_and_no_answer_is_much_longer_than_its_question(
    hosts: tuple[Host, Host, Host],
) -> None:
    server, client, _ = hosts
    with client.inside():
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ours.settimeout(2)
    head = bytes.fromhex("2112a442") + bytes(12)
    ours.sendto(b"\0\1\0\0" + head, (server.address, 3478))
    assert 32 <= len(ours.recv(2048)) <= 5 * 20
    ours.sendto(b"\0\1\0\x08" + head + b"\0\x77\0\4\0\0\0\0", (server.address, 3478))
    answer = ours.recv(2048)
    assert b"\0\x0a\0\2\0\x77" in answer, "420 names what is not known"
    assert len(answer) <= 5 * 28
    for _ in range(2000):
        ours.sendto(b"\0\1\0\0" + head, (server.address, 3478))
    text = server.run("curl", "-sS", "http://127.0.0.1:9090/metrics")
    limited = until(
        "some were limited",
        10,
        lambda: next(float(line.split()[1]) for line in text.splitlines() if 'outcome="limited"' in line),
    )
    assert isinstance(limited, float)
    assert limited > 500
    ours.close()
