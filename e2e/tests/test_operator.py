"""What an operator puts around a relay: the systemd unit, metrics and their dashboard, and the TLS that strangers find."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.netns import lab, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.netns import Host, Process

PACKAGING = Path(__file__).parents[2] / "relay/packaging"
KEY = "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw="
MOST_EXPOSED = 2.0


@pytest.fixture(scope="module")
def relay(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Process]]:
    """A relay by itself, with TLS and STUN, that logs at debug."""
    with lab(tmp_path_factory.mktemp("operator")) as made:
        host = made.host("relay")
        config = {
            "relay": {"id": 1, "listen": f"{host.address}:443"},
            "jwt": {"public_key": KEY},
            "stun": {"listen": f"{host.address}:3478"},
            "log": {"level": "debug", "format": "json"},
            "state_dir": str(made.path / "state"),
        }
        file = made.path / "relay.json"
        file.write_text(json.dumps(config))
        process = host.start("relay", str(bin_dir / "edgelink-relay"), "--config", str(file), "--dev")
        process.wait_for("admin HTTP listens")
        yield host, process


def test_the_unit_is_well_formed_and_gives_little_away(tmp_path: Path, bin_dir: Path) -> None:
    unit = tmp_path / "edgelink-relay.service"
    text = (PACKAGING / "edgelink-relay.service").read_text()
    unit.write_text(text.replace("/usr/bin/edgelink-relay", str(bin_dir / "edgelink-relay")))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    said = run("systemd-analyze", "security", "--offline=true", str(unit))
    level = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= MOST_EXPOSED, said


def test_the_unit_lets_io_uring_through(tmp_path: Path) -> None:
    text = (PACKAGING / "edgelink-relay.service").read_text()
    allowed = re.findall(r"^SystemCallFilter=([^~].*)", text, re.MULTILINE)
    assert {"io_uring_setup", "io_uring_enter", "io_uring_register"} <= set(" ".join(allowed).split())
    assert int(re.findall(r"^LimitNOFILE=(\d+)", text, re.MULTILINE)[0]) >= 100_256, "as check asks for by default"
    assert tmp_path.exists()


def test_metrics_are_as_prometheus_wants_them(relay: tuple[Host, Process]) -> None:
    host, _ = relay
    text = host.run("curl", "-sS", "http://127.0.0.1:9090/metrics")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + text
    helped = set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE))
    typed = set(re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", text, re.MULTILINE))
    samples = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"^([a-z_]+)[ {]", text, re.MULTILINE)}
    assert helped == typed
    assert samples <= typed | {name.removesuffix("_bucket") for name in typed}


def test_every_metric_of_the_dashboard_exists(relay: tuple[Host, Process]) -> None:
    host, _ = relay
    text = host.run("curl", "-sS", "http://127.0.0.1:9090/metrics")
    typed = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    dashboard = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [variable["query"] for variable in dashboard["templating"]["list"]]
    named = {name for expression in expressions for name in re.findall(r"\b(?:edgelink|process)_[a-z_]+", expression)}
    assert len(named) > 20
    assert {name.removesuffix("_bucket") for name in named} - typed == set()
    shown = {name for name in typed if name.startswith("edgelink_")}
    # What is there and not shown is one thing for each mesh link, and the version of the configuration.
    assert {name for name in shown - {name.removesuffix("_bucket") for name in named} if "mesh_link" not in name} <= {
        "edgelink_relay_config_version",
        "edgelink_relay_known_nodes",
    }


def s_client(host: Host, *args: str) -> str:
    """What openssl says of a handshake."""
    command = host.command("openssl", "s_client", "-connect", f"{host.address}:443", *args)
    done = subprocess.run(command, check=False, capture_output=True, text=True, input="", timeout=20)
    return done.stdout + done.stderr


def test_nothing_below_tls_1_3_and_no_early_data(relay: tuple[Host, Process]) -> None:
    host, _ = relay
    for old in ("-tls1_2", "-tls1_1", "-tls1"):
        assert "Cipher is (NONE)" in s_client(host, old), old
    said = s_client(host, "-tls1_3")
    assert "TLSv1.3, Cipher is TLS_" in said, said
    assert "Max Early Data: 0" in said or "Early data was not sent" in said, said


def test_a_stock_client_without_the_hybrid_is_served_and_the_log_says_how(relay: tuple[Host, Process]) -> None:
    host, process = relay
    said = s_client(host, "-tls1_3", "-groups", "X25519")
    assert "TLSv1.3, Cipher is TLS_" in said, said
    assert '"group":"Some(X25519)"' in process.wait_for("TLS handshake is done")


def test_log_lines_are_json_objects_with_the_same_fields(relay: tuple[Host, Process]) -> None:
    _, process = relay
    lines = [json.loads(line) for line in process.text().splitlines()]
    assert len(lines) > 3
    for line in lines:
        assert {"timestamp", "level", "fields", "target"} <= line.keys(), line
