from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.kit.http import Pages, ReadUow, WriteUow
from edgelink_controller.kit.paging import Page
from edgelink_controller.servers.schemas import ServerCreate, ServerCreated, ServerOut, ServerUpdate
from edgelink_controller.servers.service import ServerService
from edgelink_controller.tokens.schemas import IssuedTokenOut, TokenLife

router = APIRouter(prefix="/servers", tags=["servers"])


@router.get("")
async def list_servers(
    uow: ReadUow, pages: Pages, enabled: bool | None = None, online: bool | None = None, region: str | None = None
) -> Page[ServerOut]:
    return await ServerService(uow).page(pages, enabled=enabled, online=online, region=region)


@router.post("", status_code=201)
async def add_server(uow: WriteUow, body: ServerCreate) -> ServerCreated:
    return await ServerService(uow).add(body)


@router.get("/{server_id}")
async def show_server(uow: ReadUow, server_id: int) -> ServerOut:
    return await ServerService(uow).show(server_id)


@router.put("/{server_id}")
async def update_server(uow: WriteUow, server_id: int, body: ServerUpdate) -> ServerOut:
    return await ServerService(uow).update(server_id, body)


@router.delete("/{server_id}", status_code=204)
async def delete_server(uow: WriteUow, server_id: int) -> None:
    await ServerService(uow).remove(server_id)


@router.post("/{server_id}/enable")
async def enable_server(uow: WriteUow, server_id: int) -> ServerOut:
    return await ServerService(uow).set_enabled(server_id, True)


@router.post("/{server_id}/disable")
async def disable_server(uow: WriteUow, server_id: int) -> ServerOut:
    return await ServerService(uow).set_enabled(server_id, False)


@router.post("/{server_id}/token", status_code=201)
async def new_server_token(uow: WriteUow, server_id: int, body: TokenLife | None = None) -> IssuedTokenOut:
    return (await ServerService(uow).new_token(server_id, body.hours if body else None)).shown()
