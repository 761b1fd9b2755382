from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from meshdp import FrameType

from edgelink_controller.audit.service import AuditService
from edgelink_controller.identity import service as identity
from edgelink_controller.kit.clock import SystemClock
from edgelink_controller.kit.errors import Invalid, ReadOnlySetting
from edgelink_controller.kit.paging import Paging
from edgelink_controller.kit.store import Actor
from edgelink_controller.networks.schemas import NetworkCreate
from edgelink_controller.networks.service import NetworkService
from edgelink_controller.settings.service import SettingService
from tests.conftest import Running, controller

LOGIN = "/api/v1/auth/login"


class StoppedClock(SystemClock):
    """Moves only when a test moves it."""

    def __init__(self) -> None:
        self.time = super().now()

    def now(self) -> float:
        return self.time


class MovedClock(SystemClock):
    """Real time plus an offset that a test sets."""

    offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset


@pytest.fixture
async def client(running: Running) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=running.url) as made:
        body = {"username": "admin", "password": running.password}
        answer = (await made.post(LOGIN, json=body)).json()
        assert answer["token_type"] == "Bearer"
        assert 8 * 3600 - 10 < answer["expires_in"] <= 8 * 3600
        made.headers["authorization"] = f"Bearer {answer['access_token']}"
        yield made


async def problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/problem+json")
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"]) == (status, code)
    return document


async def test_nothing_without_a_token(running: Running, client: httpx2.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    async with httpx2.AsyncClient(base_url=running.url) as stranger:
        tried = 0
        for path, methods in schema["paths"].items():
            if not path.startswith("/api/v1") or path in (LOGIN, "/api/v1/auth/refresh"):
                continue
            for method in methods:
                address = path.replace("{jti}", "x")
                for name in ("node_id", "network_id", "route_id", "server_id"):
                    address = address.replace("{" + name + "}", "1")
                response = await stranger.request(method, address, json={})
                assert response.status_code == 401, (method, path)
                tried += 1
        assert tried > 35
        assert (await stranger.get("/healthz")).json() == {"status": "ok"}
        assert (await stranger.get("/readyz")).status_code == 200
        assert "edgelink_nodes 0.0" in (await stranger.get("/metrics")).text
        assert "swagger" in (await stranger.get("/docs")).text.lower()


async def test_networks_nodes_and_routes(running: Running, client: httpx2.AsyncClient) -> None:
    made = await client.post("/api/v1/networks", json={"name": "main", "subnet": "10.100.0.0/16"})
    assert made.status_code == 201
    await problem(
        await client.post("/api/v1/networks", json={"name": "main", "subnet": "10.2.0.0/16"}), 409, "conflict"
    )
    await problem(await client.post("/api/v1/networks", json={"name": "m", "subnet": "10.2.0.1/16"}), 422, "invalid")
    shape = await problem(await client.post("/api/v1/networks", json={"name": "No Good"}), 422, "invalid")
    assert {field["field"] for field in shape["fields"]} == {"body.name", "body.subnet"}
    page = (await client.get("/api/v1/networks", params={"per_page": 1, "page": 2})).json()
    assert {key: page[key] for key in ("total", "page", "per_page")} == {"total": 2, "page": 2, "per_page": 1}
    assert [item["name"] for item in page["items"]] == ["main"]

    node = await running.node(hostname="box")
    path = f"/api/v1/nodes/{node.node_id}"
    await problem(await client.post(path + "/token"), 409, "conflict")
    assert (await client.post(path + "/authorize")).json()["authorized"] is True
    await problem(await client.post(path + "/authorize"), 409, "conflict")
    await node.until(FrameType.CONFIG)
    route = (await client.post(path + "/routes", json={"cidr": "192.168.0.0/16"})).json()
    await problem(await client.post(path + "/routes", json={"cidr": "192.168.0.0/16"}), 409, "conflict")
    grouped = (await client.get("/api/v1/routes")).json()["items"]
    assert [(group["cidr"], group["routes"][0]["id"]) for group in grouped] == [("192.168.0.0/16", route["id"])]
    assert (await client.delete(f"{path}/routes/{route['id']}")).status_code == 204

    # What a node advertises is enabled at once, unless it is wide.
    offers = ["192.168.9.0/24", "0.0.0.0/0", "::/0", "128.0.0.0/1", "fc00::/7"]
    await node.send(FrameType.NODE_UPDATE, {"routes": [{"cidr": cidr} for cidr in offers]})
    async with asyncio.timeout(5):
        while len(rows := (await client.get("/api/v1/routes/all")).json()["items"]) < len(offers):
            await asyncio.sleep(0.02)
    assert {row["cidr"]: row["enabled"] for row in rows} == {cidr: cidr == offers[0] for cidr in offers}
    await node.send(FrameType.NODE_UPDATE, {"routes": []})
    renamed = await client.put(path, json={"name": "crate"})
    assert renamed.json()["name"] == "crate"
    assert (await client.delete(path)).status_code == 204
    await problem(await client.get(path), 404, "not_found")
    overview = (await client.get("/api/v1/stats/overview")).json()
    assert (overview["nodes"], overview["networks"]) == (0, 2)
    await node.close()


async def test_a_failed_request_leaves_no_trace(running: Running, client: httpx2.AsyncClient) -> None:
    before = (await client.get("/api/v1/audit")).json()["total"]
    body = {"values": {"mesh.mtu": 1300, "listen.http": "0.0.0.0:1"}}
    await problem(await client.put("/api/v1/settings", json=body), 409, "read_only")
    settings = {item["key"]: item for item in (await client.get("/api/v1/settings")).json()}
    assert (settings["mesh.mtu"]["value"], settings["mesh.mtu"]["source"]) == (1400, "default")
    assert (await client.get("/api/v1/audit")).json()["total"] == before


async def test_settings_say_where_they_come_from(tmp_path: Path) -> None:
    environment = {"EDGELINK_MESH_MTU": "1300", "EDGELINK_SECURITY_ENROLMENT_KEY": "hunter2hunter2"}
    async with controller(tmp_path, environment) as running:
        async with running.store.write() as uow:
            service = SettingService(uow)
            with pytest.raises(ReadOnlySetting, match="environment"):
                await service.put({"mesh.mtu": 1400})
            with pytest.raises(Invalid):
                await service.put({"security.node_key_rotate_hours": -1})
            await service.put({"security.node_key_rotate_hours": 12})
            shown = {item.key: item for item in await service.all()}
        assert (shown["mesh.mtu"].value, shown["mesh.mtu"].source) == (1300, "environment")
        rotate = shown["security.node_key_rotate_hours"]
        assert (rotate.value, rotate.source, rotate.default) == (12, "database", 24)
        assert shown["security.enrolment_key"].value == "********"

        node = await running.node(enrolment_key="wrong")
        assert node.answer["state"] == "pending"
        welcome = await running.node(enrolment_key="hunter2hunter2")
        assert welcome.answer["state"] == "authorised"
        await node.close()
        await welcome.close()


async def test_sign_out_and_refresh(running: Running, client: httpx2.AsyncClient) -> None:
    assert (await client.get("/api/v1/auth/me")).json()["name"] == "admin"
    body = {"username": "admin", "password": running.password}
    pair = (await client.post(LOGIN, json=body)).json()
    second = await client.post("/api/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})
    assert second.status_code == 200
    bearer = {"authorization": f"Bearer {second.json()['access_token']}"}
    assert (await client.get("/api/v1/auth/me", headers=bearer)).status_code == 200
    # Used twice: somebody has a copy, so the whole family ends.
    reused = await client.post("/api/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})
    await problem(reused, 401, "unauthenticated")
    await problem(await client.get("/api/v1/auth/me", headers=bearer), 401, "unauthenticated")
    later = {"refresh_token": second.json()["refresh_token"]}
    await problem(await client.post("/api/v1/auth/refresh", json=later), 401, "unauthenticated")

    assert (await client.post("/api/v1/auth/logout")).status_code == 204
    gone = await problem(await client.get("/api/v1/auth/me"), 401, "unauthenticated")
    assert gone["token_error"] == 1003


async def test_five_failures_lock_the_pair_for_half_an_hour(running: Running) -> None:
    clock = MovedClock()
    running.store.clock = clock
    async with httpx2.AsyncClient(base_url=running.url) as client:
        for _ in range(identity.MAX_FAILURES):
            response = await client.post(LOGIN, json={"username": "admin", "password": "wrong"})
            await problem(response, 401, "unauthenticated")
        right = {"username": "admin", "password": running.password}
        locked = await problem(await client.post(LOGIN, json=right), 429, "locked")
        assert 0 < locked["retry_after"] <= identity.LOCK_S
        other = await client.post(LOGIN, json={"username": "other", "password": "wrong"})
        await problem(other, 401, "unauthenticated")
        clock.offset = identity.LOCK_S + 1
        assert (await client.post(LOGIN, json=right)).status_code == 200


async def test_an_attack_from_many_addresses_delays_strangers_only(tmp_path: Path) -> None:
    async with controller(tmp_path, {"EDGELINK_TRUSTED_PROXIES": '["127.0.0.0/8"]'}) as running:
        clock = StoppedClock()
        running.store.clock = clock
        async with httpx2.AsyncClient(base_url=running.url) as client:
            right = {"username": "admin", "password": running.password}

            async def sign_in(address: str, body: Mapping[str, str | None]) -> httpx2.Response:
                return await client.post(LOGIN, json=body, headers={"x-forwarded-for": address})

            wrong = {"username": "admin", "password": "wrong"}
            assert (await sign_in("192.0.2.1", right)).status_code == 200
            for number in range(identity.FREE_FAILURES):
                await problem(await sign_in(f"203.0.113.{number}", wrong), 401, "unauthenticated")
            # Each further failure doubles the wait, up to a bound; what is tried before it is over is not looked at.
            for failure in range(1, 12):
                delay = min(2**failure, identity.MAX_DELAY_S)
                early = await problem(await sign_in("198.51.100.9", right), 429, "locked")
                assert early["retry_after"] == delay
                clock.time += delay
                await problem(await sign_in(f"203.0.113.{100 + failure}", wrong), 401, "unauthenticated")
            assert (await sign_in("192.0.2.1", right)).status_code == 200
            other = {"username": "other", "password": "wrong"}
            await problem(await sign_in("198.51.100.9", other), 401, "unauthenticated")
            # A stranger who waits gets in, and is none from then on.
            clock.time += identity.MAX_DELAY_S
            assert (await sign_in("198.51.100.9", right)).status_code == 200
            await problem(await sign_in("203.0.113.200", wrong), 401, "unauthenticated")
            assert (await sign_in("198.51.100.9", right)).status_code == 200


async def test_tampering_with_the_audit_log_shows(running: Running, client: httpx2.AsyncClient) -> None:
    async with running.store.write(Actor("account", "admin", "192.0.2.1")) as uow:
        await NetworkService(uow).create(NetworkCreate(name="x", subnet="10.3.0.0/24"))
    row = (await client.get("/api/v1/audit", params={"action": "network.create"})).json()["items"][0]
    assert (row["actor_id"], row["ip_address"], row["details"]["name"]) == ("admin", "192.0.2.1", "x")
    assert (await client.get("/api/v1/audit/verify")).json()["intact"] is True
    async with running.store.write() as uow:
        connection = await uow.session.connection()
        await connection.exec_driver_sql("UPDATE audit_logs SET ip_address = '192.0.2.2' WHERE id = ?", (row["id"],))
    check = (await client.get("/api/v1/audit/verify")).json()
    assert (check["intact"], check["broken_at"]) == (False, row["id"])


async def test_forwarded_addresses_count_only_from_trusted_proxies(tmp_path: Path) -> None:
    for proxies, expected in (("[]", "127.0.0.1"), ('["127.0.0.0/8"]', "198.51.100.7")):
        async with controller(tmp_path / expected, {"EDGELINK_TRUSTED_PROXIES": proxies}) as running:
            async with httpx2.AsyncClient(base_url=running.url) as client:
                headers = {"x-forwarded-for": "203.0.113.9, 198.51.100.7"}
                body = {"username": "admin", "password": "wrong"}
                assert (await client.post(LOGIN, json=body, headers=headers)).status_code == 401
            async with running.store.read() as uow:
                rows = (await AuditService(uow).page(Paging(), action="auth.failed")).items
            assert [row.ip_address for row in rows] == [expected]
