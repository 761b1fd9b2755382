from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.kit.http import Pages, ReadUow, WriteUow
from edgelink_controller.kit.paging import Page
from edgelink_controller.routes.schemas import RouteGroup, RouteOut, RouteUpdate
from edgelink_controller.routes.service import RouteService

router = APIRouter(prefix="/routes", tags=["routes"])


@router.get("")
async def grouped_routes(uow: ReadUow, pages: Pages, network_id: int | None = None) -> Page[RouteGroup]:
    return await RouteService(uow).grouped(pages, network_id)


@router.get("/all")
async def list_routes(
    uow: ReadUow,
    pages: Pages,
    network_id: int | None = None,
    node_id: int | None = None,
    enabled: bool | None = None,
    cidr: str | None = None,
) -> Page[RouteOut]:
    return await RouteService(uow).page(pages, network_id=network_id, node_id=node_id, enabled=enabled, cidr=cidr)


@router.put("/{route_id}")
async def update_route(uow: WriteUow, route_id: int, body: RouteUpdate) -> RouteOut:
    return await RouteService(uow).update(route_id, body)


@router.delete("/{route_id}", status_code=204)
async def delete_route(uow: WriteUow, route_id: int) -> None:
    await RouteService(uow).remove(route_id)
