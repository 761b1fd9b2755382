"""What a person meets who starts a program wrong: an exit code, and a message that says what, where and what to do next."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


def fails(*args: str) -> str:
    """What a program says that must not start."""
    done = subprocess.run(args, check=False, capture_output=True, text=True, timeout=30)
    text = done.stdout + done.stderr
    assert done.returncode not in (0, 101, -6, -9, -11, -15), text
    assert "panicked" not in text, text
    assert "Traceback" not in text, text
    return text


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def controller() -> str:
    return str(Path(sys.executable).parent / "edgelink-controller")


def test_relay_names_the_port_that_is_taken(bin_dir: Path, tmp_path: Path, taken: int) -> None:
    text = fails(
        str(bin_dir / "edgelink-relay"),
        "--dev",
        "--listen",
        f"127.0.0.1:{taken}",
        "--state-dir",
        str(tmp_path),
        "--controller",
        "wss://127.0.0.1:1/ws/server",
        "--token",
        "x",
    )
    assert str(taken) in text
    assert "in use" in text


def test_relay_without_certificate_says_how_to_get_one(bin_dir: Path, tmp_path: Path) -> None:
    text = fails(
        str(bin_dir / "edgelink-relay"),
        "--listen",
        "0.0.0.0:0",
        "--state-dir",
        str(tmp_path),
        "--controller",
        "wss://127.0.0.1:1/ws/server",
        "--token",
        "x",
    )
    assert "--dev" in text or "tls.cert" in text


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("relay.json", '{\n  "relay": {"lisen": "127.0.0.1:443"}\n}', ["relay.json", "lisen", "listen", "2"]),
        ("relay.toml", '[relay]\nlisten = 443\n', ["relay.toml", "listen", "2"]),
        ("relay.json", '{"relay": ', ["relay.json:1:10"]),
    ],
)  # fmt: skip
def test_relay_configuration_errors_name_file_line_and_key(
    bin_dir: Path, tmp_path: Path, name: str, text: str, wanted: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    said = fails(str(bin_dir / "edgelink-relay"), "check", "--config", str(tmp_path / name))
    for part in wanted:
        assert part in said, said


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("node.json", '{\n  "controler": "wss://c.example/ws/control"\n}', ["node.json", "controler", "controller", "2"]),
        ("node.toml", '[tun]\nmtu = "large"\n', ["node.toml", "mtu", "2"]),
    ],
)  # fmt: skip
def test_node_configuration_errors_name_file_line_and_key(
    bin_dir: Path, tmp_path: Path, name: str, text: str, wanted: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    said = fails(str(bin_dir / "edgelink"), "up", "--config", str(tmp_path / name), "--state-dir", str(tmp_path))
    for part in wanted:
        assert part in said, said


def test_node_without_the_right_to_make_interfaces_says_how_to_get_it(bin_dir: Path, tmp_path: Path) -> None:
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    text = fails(
        *drop,
        str(bin_dir / "edgelink"),
        "up",
        "--controller",
        "wss://127.0.0.1:1/ws/control",
        "--state-dir",
        str(tmp_path),
        "--socket",
        str(tmp_path / "s"),
    )
    assert "cap_net_admin" in text.lower()


def test_status_without_a_daemon_asks_whether_it_is_up(bin_dir: Path, tmp_path: Path) -> None:
    text = fails(str(bin_dir / "edgelink"), "status", "--socket", str(tmp_path / "none.sock"))
    assert "edgelink up" in text


def test_a_key_file_that_others_can_read_is_refused(bin_dir: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    subprocess.run(
        [str(bin_dir / "edgelink"), "keys", "--new", "--key-file", str(keys)], check=True, capture_output=True
    )
    assert keys.stat().st_mode & 0o777 == 0o600
    keys.chmod(0o644)
    text = fails(str(bin_dir / "edgelink"), "keys", "--key-file", str(keys))
    assert "chmod 600" in text or "0600" in text


def test_controller_names_the_port_that_is_taken(controller: str, tmp_path: Path, taken: int) -> None:
    text = fails(controller, "run", "--dev", "--listen", f"127.0.0.1:{taken}", "--state-dir", str(tmp_path))
    assert str(taken) in text
    assert "in use" in text


def test_controller_configuration_errors_name_the_key(controller: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[tokens]\nauth_expire_hour = 24\n")
    text = fails(controller, "run", "--dev", "--config", str(tmp_path / "c.toml"), "--state-dir", str(tmp_path))
    assert "auth_expire_hour" in text
    assert "auth_expire_hours" in text
