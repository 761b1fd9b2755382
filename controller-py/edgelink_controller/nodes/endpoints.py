from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.kit.http import Pages, ReadUow, WriteUow
from edgelink_controller.kit.paging import Page
from edgelink_controller.nodes.schemas import NodeOut, NodeUpdate
from edgelink_controller.nodes.service import NodeService
from edgelink_controller.routes.schemas import RouteCreate, RouteOut, RouteUpdate
from edgelink_controller.routes.service import RouteService
from edgelink_controller.tokens.schemas import IssuedTokenOut, TokenLife

router = APIRouter(prefix="/nodes", tags=["nodes"])
network_router = APIRouter(prefix="/networks", tags=["networks"])


@router.get("")
async def list_nodes(
    uow: ReadUow,
    pages: Pages,
    network_id: int | None = None,
    online: bool | None = None,
    authorized: bool | None = None,
    name: str | None = None,
) -> Page[NodeOut]:
    return await NodeService(uow).page(pages, network_id=network_id, online=online, authorized=authorized, name=name)


@router.get("/{node_id}")
async def show_node(uow: ReadUow, node_id: int) -> NodeOut:
    return await NodeService(uow).show(node_id)


@router.put("/{node_id}")
async def rename_node(uow: WriteUow, node_id: int, body: NodeUpdate) -> NodeOut:
    return await NodeService(uow).rename(node_id, body.name)


@router.post("/{node_id}/authorize")
async def authorize_node(uow: WriteUow, node_id: int) -> NodeOut:
    return await NodeService(uow).authorize(node_id)


@router.post("/{node_id}/deauthorize")
async def deauthorize_node(uow: WriteUow, node_id: int) -> NodeOut:
    return await NodeService(uow).deauthorize(node_id)


@router.delete("/{node_id}", status_code=204)
async def delete_node(uow: WriteUow, node_id: int) -> None:
    await NodeService(uow).delete(node_id)


@router.post("/{node_id}/token", status_code=201)
async def issue_relay_token(uow: WriteUow, node_id: int, body: TokenLife | None = None) -> IssuedTokenOut:
    return (await NodeService(uow).issue_relay_token(node_id, body.hours if body else None)).shown()


@router.get("/{node_id}/routes")
async def list_node_routes(uow: ReadUow, pages: Pages, node_id: int) -> Page[RouteOut]:
    return await NodeService(uow).routes(node_id, pages)


@router.post("/{node_id}/routes", status_code=201)
async def add_node_route(uow: WriteUow, node_id: int, body: RouteCreate) -> RouteOut:
    return await NodeService(uow).add_route(node_id, body)


@router.put("/{node_id}/routes/{route_id}")
async def update_node_route(uow: WriteUow, node_id: int, route_id: int, body: RouteUpdate) -> RouteOut:
    return await RouteService(uow).update(route_id, body, node_id)


@router.delete("/{node_id}/routes/{route_id}", status_code=204)
async def delete_node_route(uow: WriteUow, node_id: int, route_id: int) -> None:
    await RouteService(uow).remove(route_id, node_id)


@network_router.delete("/{network_id}", status_code=204)
async def delete_network(uow: WriteUow, network_id: int) -> None:
    """With all of its nodes: their tokens are void at once."""
    await NodeService(uow).delete_network(network_id)
