from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.kit.http import Pages, ReadUow, WriteUow
from edgelink_controller.kit.paging import Page
from edgelink_controller.networks.schemas import NetworkCreate, NetworkOut, NetworkUpdate
from edgelink_controller.networks.service import NetworkService

router = APIRouter(prefix="/networks", tags=["networks"])


@router.get("")
async def list_networks(uow: ReadUow, pages: Pages, name: str | None = None) -> Page[NetworkOut]:
    return await NetworkService(uow).page(pages, name)


@router.post("", status_code=201)
async def create_network(uow: WriteUow, body: NetworkCreate) -> NetworkOut:
    return await NetworkService(uow).create(body)


@router.get("/{network_id}")
async def show_network(uow: ReadUow, network_id: int) -> NetworkOut:
    return await NetworkService(uow).show(network_id)


@router.put("/{network_id}")
async def update_network(uow: WriteUow, network_id: int, body: NetworkUpdate) -> NetworkOut:
    return await NetworkService(uow).update(network_id, body)
