"""The two programs as they are started by people: real processes, real signals, the file written from outside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import typer
from meshdp import FrameType
from typer.testing import CliRunner

from edgelink_controller.cli.controller import app as controller_app
from edgelink_controller.cli.ctl import app as ctl_app
from tests.conftest import Running
from tests.peers import FakeNode

CONTROLLER = [sys.executable, "-m", "edgelink_controller"]
CTL = [sys.executable, "-c", "from edgelink_controller.cli.ctl import main; main()"]
ALONE = ("--no-builtin-relay", "--no-builtin-stun")
pytestmark = pytest.mark.timeout(120)


@dataclass
class Ran:
    code: int
    out: str
    err: str


def clean_environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EDGELINK_")}
    return {**kept, "HOME": "/nonexistent", **extra}


async def run(*command: str, **environment: str) -> Ran:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(**environment)
    )
    out, err = await asyncio.wait_for(process.communicate(), 40)
    return Ran(process.returncode or 0, out.decode(), err.decode())


async def ctl(*arguments: str, **environment: str) -> Ran:
    """The program in a thread: every start of an interpreter costs more than what it then does."""
    return await asyncio.to_thread(_invoke, ctl_app, arguments, environment)


def _invoke(app: typer.Typer, arguments: tuple[str, ...], environment: dict[str, str]) -> Ran:
    done = CliRunner().invoke(app, arguments, env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)


@dataclass
class Dev:
    process: asyncio.subprocess.Process
    port: int
    pin: str
    password: str
    state_dir: Path


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    process = await asyncio.create_subprocess_exec(
        *CONTROLLER, "run", "--dev", "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path), *ALONE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    password = re.search(rb"admin password .*: (\w+)", await asyncio.wait_for(process.stdout.readline(), 30))
    seen = b""
    while b"listening on" not in seen:
        line = await asyncio.wait_for(process.stderr.readline(), 30)
        assert line, seen
        seen += line
    pin = re.search(rb"pin (sha256:[0-9a-f]{64})", seen)
    port = re.search(rb"https://127.0.0.1:(\d+)", seen)
    assert password
    assert pin
    assert port
    yield Dev(process, int(port[1]), pin[1].decode(), password[1].decode(), tmp_path)
    if process.returncode is None:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 10)


async def test_dev_run_signs_in_stops_fast_and_keeps_its_state(dev: Dev) -> None:
    context = ssl.create_default_context(cafile=dev.state_dir / "dev-cert.pem")
    node = FakeNode()
    node.tls = context
    await node.connect(f"wss://127.0.0.1:{dev.port}")
    assert node.answer["state"] == "pending"

    rest = {"EDGELINK_URL": f"https://127.0.0.1:{dev.port}", "EDGELINK_TLS_PIN": dev.pin}
    listed = await ctl("-o", "json", "node", "list", EDGELINK_PASSWORD=dev.password, **rest)
    assert listed.code == 0, listed.err
    assert [item["id"] for item in json.loads(listed.out)] == [node.node_id]
    wrong = await ctl("node", "list", EDGELINK_PASSWORD="wrong", **rest)
    assert (wrong.code, wrong.err.strip()) == (1, "error: user name or password is wrong")
    strange = await ctl("node", "list", EDGELINK_PASSWORD="x", **{**rest, "EDGELINK_TLS_PIN": "sha256:" + "0" * 64})
    assert strange.code == 1
    assert "not the pinned one" in strange.err

    started = time.monotonic()
    dev.process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(dev.process.communicate(), 10)
    assert dev.process.returncode == 0
    assert time.monotonic() - started < 3
    await node.closed()
    for secret in ("token-signing.key", "dev-key.pem"):
        assert (dev.state_dir / secret).stat().st_mode & 0o777 == 0o600
    again = await ctl("--state-dir", str(dev.state_dir), "-o", "json", "node", "list")
    assert [item["id"] for item in json.loads(again.out)] == [node.node_id]


async def test_writing_the_file_is_noticed_by_the_running_controller(running: Running) -> None:
    node = await running.node(hostname="laptop")
    await node.expect(FrameType.ERROR)
    noticed: list[float] = []

    async def wait_for_config() -> None:
        await node.until(FrameType.CONFIG, timeout=30)
        noticed.append(time.time())

    waiting = asyncio.create_task(wait_for_config())
    done = await run(*CTL, "--state-dir", str(running.state_dir), "node", "authorize", "laptop")
    assert done.code == 0, done.err
    await waiting
    listed = await ctl("--state-dir", str(running.state_dir), "-o", "json", "audit", "--action", "node.authorize")
    (row,) = json.loads(listed.out)
    assert (row["actor_type"], row["target_id"]) == ("cli", str(node.node_id))
    # The row's time has whole seconds, so this bound is the loosest that still means something.
    assert noticed[0] - row["created_at"] < 2
    await node.close()


async def test_ctl_covers_the_tables_on_a_file(running: Running) -> None:
    state = ("--state-dir", str(running.state_dir))

    async def good(*arguments: str) -> str:
        done = await ctl(*state, *arguments)
        assert done.code == 0, done.err
        return done.out.strip()

    assert await good("-q", "network", "create", "--name", "main", "--subnet", "10.100.0.0/16") == "2"
    server_id, token = (await good("-q", "server", "add", "--name", "r1", "--url", "wss://r1.test/ws/data")).split()
    relay = await running.relay(token)
    assert relay.config["relay_id"] == int(server_id)
    node = await running.node(hostname="box", networks=["main"])
    await good("node", "authorize", "box")
    await node.until(FrameType.CONFIG)
    route_id = await good("-q", "route", "add", "--cidr", "192.168.1.0/24", "--node", "box")
    change = await node.change("route_set")
    assert change["route"]["cidr"] == "192.168.1.0/24"
    await good("route", "disable", route_id)
    assert (await node.change("route_set"))["route"]["enabled"] is False
    await good("node", "rename", "box", "crate")
    assert (await node.change("membership_set"))["membership"]["name"] == "crate"
    relay_token = json.loads(await good("-o", "json", "token", "generate", "--node", "crate"))
    await good("token", "blacklist", relay_token["jti"])
    assert (await relay.until(FrameType.SERVER_BLACKLIST))["tokens"][0]["jti"] == relay_token["jti"]
    await good("server", "disable", "r1")
    assert (await relay.until(FrameType.ERROR))["code"] == 1003
    assert await relay.closed() == 1008
    assert (await node.change("relay_remove"))["relay_id"] == int(server_id)
    await good("network", "delete", "main")
    assert (await node.change("membership_remove"))["reason"] == "deleted"
    assert "intact" in await good("audit", "--verify")
    await node.close()


async def test_ctl_says_what_to_do(tmp_path: Path) -> None:
    missing = await ctl("--db", str(tmp_path / "none.db"), "status")
    assert missing.code == 1
    assert "edgelink-controller init" in missing.err
    nobody = await ctl("--url", "http://127.0.0.1:9", "--token", "x", "status")
    assert nobody.code == 1
    assert nobody.err.startswith("error: http://127.0.0.1:9")


async def test_controller_says_what_to_do(tmp_path: Path) -> None:
    plain = await run(*CONTROLLER, "run", "--listen", "0.0.0.0:0", "--state-dir", str(tmp_path))
    assert plain.code == 2
    assert "--dev" in plain.err
    assert "tls.cert" in plain.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = await run(*CONTROLLER, "run", "--listen", f"127.0.0.1:{port}", "--state-dir", str(tmp_path))
    assert busy.code == 2
    assert f"port {port} on 127.0.0.1 is in use" in busy.err
    (tmp_path / "token-signing.key").chmod(0o644)
    loose = await run(*CONTROLLER, "run", "--dev", "--state-dir", str(tmp_path))
    assert loose.code == 2
    assert "chmod 600" in loose.err


async def test_init_and_a_new_password(tmp_path: Path) -> None:
    made = await run(*CONTROLLER, "init", "--state-dir", str(tmp_path))
    assert made.code == 0, made.err
    assert (tmp_path / "controller.toml").stat().st_mode & 0o777 == 0o600
    first = re.search(r"admin password .*: (\w+)", made.out)
    state = ("--state-dir", str(tmp_path))
    again = await asyncio.to_thread(_invoke, controller_app, ("init", *state), {})
    assert "password" not in again.out.replace("accounts are as they were", "")
    assert again.code == 0
    reset = await asyncio.to_thread(_invoke, controller_app, ("password", *state), {})
    second = re.search(r"password of admin .*: (\w+)", reset.out)
    assert first
    assert second
    assert first[1] != second[1]


async def test_dev_brings_its_own_relay_and_stun(tmp_path: Path) -> None:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        relay, stun = tcp.getsockname()[1], udp.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *CONTROLLER, "run", "--dev", "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=clean_environment(
            EDGELINK_BUILTIN_RELAY_LISTEN=f"127.0.0.1:{relay}", EDGELINK_BUILTIN_STUN_LISTEN=f"127.0.0.1:{stun}"
        ),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    password = re.search(rb": (\w+)", await asyncio.wait_for(process.stdout.readline(), 30))
    assert password
    seen = b""
    while b"STUN server on" not in seen:
        line = await asyncio.wait_for(process.stderr.readline(), 30)
        assert line, seen
        seen += line
    port = re.search(rb"https://127.0.0.1:(\d+)", seen)
    assert port
    context = ssl.create_default_context(cafile=tmp_path / "dev-cert.pem")
    async with httpx2.AsyncClient(base_url=f"https://127.0.0.1:{int(port[1])}/api/v1", verify=context) as client:
        login = {"username": "admin", "password": password[1].decode()}
        token = (await client.post("/auth/login", json=login)).json()["access_token"]
        async with asyncio.timeout(20):
            while True:
                answer = await client.get("/servers", headers={"authorization": f"Bearer {token}"})
                (server,) = answer.json()["items"]
                if server["online"]:
                    break
                await asyncio.sleep(0.1)
    assert (server["url"], server["stun"]) == (f"wss://127.0.0.1:{relay}/ws/data", f"127.0.0.1:{stun}")
    pin = re.search(rb"pin (sha256:[0-9a-f]{64})", seen)
    assert pin
    assert server["tls_pin"] == pin[1].decode()
    started = time.monotonic()
    process.terminate()
    _, rest = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert time.monotonic() - started < 3
    assert b"Traceback" not in rest
