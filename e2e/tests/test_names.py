"""Nodes by name: NAME.NETWORK.edge.internal, asked at the node's own resolver, which takes the place of resolv.conf and gives it back."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from e2e.netns import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2e.mesh import Mesh, Node
    from e2e.netns import Host

A, PTR, AAAA = 1, 12, 28
NXDOMAIN, REFUSED = 3, 5
BEFORE = "nameserver 127.0.0.53\nsearch example.com\n"


def question(name: str, kind: int) -> bytes:
    """A query as RFC 1035 has it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    head = struct.pack("!HHHHHH", secrets.randbelow(65536), 0x0100, 1, 0, 0, 0)
    return head + labels + b"\0" + struct.pack("!HH", kind, 1)


def read_name(message: bytes, at: int) -> tuple[str, int]:
    """A name, compressed or not, and where it ends."""
    labels, end = [], 0
    while message[at]:
        if message[at] & 0xC0:
            end = end or at + 2
            at = struct.unpack_from("!H", message, at)[0] & 0x3FFF
            continue
        labels.append(message[at + 1 : at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels), end or at + 1


def answers(message: bytes) -> tuple[int, list[str]]:
    """Response code, and what the answers say."""
    _, flags, questions, count, _, _ = struct.unpack_from("!HHHHHH", message)
    at = 12
    for _ in range(questions):
        at = read_name(message, at)[1] + 4
    said = []
    for _ in range(count):
        at = read_name(message, at)[1]
        kind, _, _, length = struct.unpack_from("!HHIH", message, at)
        at += 10
        data = message[at : at + length]
        said.append(read_name(message, at)[0] if kind == PTR else str(ipaddress.ip_address(data)))
        at += length
    return flags & 15, said


def ask(host: Host, server: str, name: str, kind: int, *, tcp: bool = False) -> tuple[int, list[str]]:
    """One question from `host`."""
    query = question(name, kind)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with host.inside():
        asking = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(3)
        asking.connect((server, 53))
        asking.sendall(struct.pack("!H", len(query)) + query if tcp else query)
        message = asking.recv(4096)
    message = message[2:] if tcp else message
    assert message[:2] == query[:2]
    return answers(message)


@pytest.fixture(scope="module")
def named(empty_mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Node, Path]:
    """A node that only answers, and one that takes over a resolv.conf of its own."""
    mesh = empty_mesh
    mesh.add_relay("relay-1")
    conf = tmp_path_factory.mktemp("etc") / "resolv.conf"
    conf.write_text(BEFORE)
    file = mesh.lab.path / "names.toml"
    file.write_text(f'[names]\nmode = "resolv-conf"\nresolv_conf = "{conf}"\n')
    plain = mesh.add_node("plain")
    taking = mesh.add_node("taking", "--names", "resolv-conf", "--config", str(file))
    mesh.authorise_all()
    mesh.wait_connected()
    until("it has taken over", 20, lambda: "edgelink" in conf.read_text())
    return plain, taking, conf


@pytest.fixture(scope="module")
def upstream(named: tuple[Node, Node, Path]) -> Iterator[None]:
    """The name server that was there before: answers everything with 192.0.2.77."""
    with named[1].host.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.53", 53))

    server.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            try:
                query, asker = server.recvfrom(4096)
            except TimeoutError:
                continue
            record = b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 60, 4) + socket.inet_aton("192.0.2.77")
            server.sendto(query[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0) + query[12:] + record, asker)

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    over.set()
    thread.join(5)
    server.close()


def test_every_node_has_a_name(named: tuple[Node, Node, Path]) -> None:
    plain, taking, _ = named
    for server in (plain.v4, plain.v6):
        until("it answers", 10, lambda s=server: ask(plain.host, s, "taking.default.edge.internal", A)[1])
        assert ask(plain.host, server, "Taking.Default.edge.internal", A) == (0, [taking.v4])
        assert ask(plain.host, server, "taking.default.edge.internal", AAAA) == (0, [taking.v6])
        assert ask(plain.host, server, "plain.default.edge.internal", A, tcp=True) == (0, [plain.v4])
        back = ipaddress.ip_address(taking.v4).reverse_pointer
        assert ask(plain.host, server, back, PTR) == (0, ["taking.default.edge.internal"])
        assert ask(plain.host, server, "nobody.default.edge.internal", A) == (NXDOMAIN, [])
        assert ask(plain.host, server, "example.com", A) == (REFUSED, [])


def test_a_new_node_has_a_name_at_once_and_others_may_not_ask(named: tuple[Node, Node, Path], empty_mesh: Mesh) -> None:
    plain, taking, _ = named
    late = empty_mesh.add_node("late")
    empty_mesh.authorise_all()
    until("it has a name", 10, lambda: ask(plain.host, plain.v4, "late.default.edge.internal", A) == (0, [late.v4]))
    with pytest.raises(TimeoutError):
        ask(taking.host, plain.v4, "late.default.edge.internal", A)


@pytest.mark.usefixtures("upstream")
def test_other_names_go_to_the_name_server_that_was_there_before(named: tuple[Node, Node, Path]) -> None:
    _, taking, conf = named
    text = conf.read_text()
    assert f"nameserver {taking.v4}" in text
    assert "search default.edge.internal example.com" in text
    assert ask(taking.host, taking.v4, "www.example.com", A) == (0, ["192.0.2.77"])
    assert ask(taking.host, taking.v4, "plain.default.edge.internal", A)[1] != ["192.0.2.77"]


def test_resolv_conf_is_what_it_was_after_down_and_after_a_kill(named: tuple[Node, Node, Path]) -> None:
    _, taking, conf = named
    taking.kill()
    assert "edgelink" in conf.read_text(), "kill -9 leaves it"
    taking.start()
    until("it is up again", 20, lambda: taking.status()["memberships"])
    until("taken over again", 20, lambda: "edgelink" in conf.read_text())
    assert taking.cli("down").strip() == "down"
    assert conf.read_text() == BEFORE

    taking.start()
    until("taken over once more", 20, lambda: "edgelink" in conf.read_text())
    taking.kill()
    assert "had left" in taking.cli("down", "--state-dir", str(taking.state))
    assert conf.read_text() == BEFORE
