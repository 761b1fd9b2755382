"""`edgelink-ctl` on a database file: the same resources as REST, and none of its imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from edgelink_controller.app import API, create_app
from edgelink_controller.cli.backend import CommandError, Target, connect
from edgelink_controller.cli.local import RESOURCES
from edgelink_controller.config import load
from edgelink_controller.control.hub import Hub
from edgelink_controller.migrations.runner import alembic_config
from edgelink_controller.migrations.state import newest
from edgelink_controller.runtime import open_store, prepare
from tests.conftest import Running

# Sessions are a matter of HTTP; paths come from what the running controller has measured.
ONLY_REST = {
    "POST /auth/login",
    "POST /auth/refresh",
    "POST /auth/logout",
    "GET /auth/me",
    "GET /latency/paths",
}
HEAVY = ("fastapi", "starlette", "uvicorn", "alembic", "prometheus_client", "cryptography", "pwdlib", "httpx2")


def test_a_file_has_every_resource_of_the_rest_api(running_store: Hub) -> None:
    paths = create_app(running_store.store, running_store).openapi()["paths"]
    rest = {
        f"{method.upper()} {path.removeprefix(API)}"
        for path, methods in paths.items()
        if path.startswith(API)
        for method in methods
    }
    assert RESOURCES.keys() == rest - ONLY_REST


@pytest.fixture
def running_store(tmp_path: Path) -> Hub:
    return Hub(open_store(load(None, {}), tmp_path))


async def test_both_back_ends_answer_the_same(running: Running) -> None:
    file = Target(state_dir=running.state_dir)
    rest = Target(url=running.url, password=running.password)
    body = {"name": "main", "subnet": "10.7.0.0/24"}
    async with connect(file) as local, connect(rest) as remote:
        made = await local.call("POST", "/networks", body=body)
        assert await remote.get(f"/networks/{made['id']}") == made
        assert await local.all("/networks") == await remote.all("/networks")
        assert await local.find("/networks", "network", "main") == made["id"]
        assert await local.get("/settings") == await remote.get("/settings")
        for method, path, sent in (
            ("POST", "/networks", body),
            ("GET", "/nodes/9", None),
            ("PUT", "/settings", {"values": {"listen.http": "x"}}),
        ):
            said = []
            for backend in (local, remote):
                with pytest.raises(CommandError) as refused:
                    await backend.call(method, path, body=sent)
                said.append(str(refused.value))
            assert said[0] == said[1]
        with pytest.raises(CommandError, match=r"name: .*pattern"):
            await local.call("POST", "/networks", body={**body, "name": "No Good"})


def test_the_newest_schema_is_known_without_alembic() -> None:
    assert newest() == ScriptDirectory.from_config(alembic_config()).get_current_head()


async def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    store = open_store(load(None, {}), tmp_path)
    await prepare(store)
    async with store.write() as uow:
        await (await uow.session.connection()).exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    await store.database.close()
    with pytest.raises(CommandError, match="another version"):
        async with connect(Target(state_dir=tmp_path)):
            pass


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import edgelink_controller.cli.local", HEAVY),
        ("import edgelink_controller.cli.ctl", (*HEAVY, "sqlalchemy", "pydantic")),
        ("import edgelink_controller.cli.controller", (*HEAVY, "sqlalchemy", "pydantic")),
    ],
)
def test_commands_import_only_what_they_need(code: str, unwanted: tuple[str, ...]) -> None:
    show = f"import sys; {code}; print(*sorted({set(unwanted)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
