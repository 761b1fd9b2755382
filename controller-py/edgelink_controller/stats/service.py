from __future__ import annotations

from pydantic import BaseModel

from edgelink_controller import __version__
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.kit.paging import Paging
from edgelink_controller.kit.store import Uow
from edgelink_controller.networks.service import NetworkService
from edgelink_controller.nodes.service import NodeService
from edgelink_controller.routes.service import RouteService
from edgelink_controller.servers.service import ServerService


class Overview(BaseModel):
    version: str
    revision: int
    networks: int
    nodes: int
    nodes_online: int
    nodes_pending: int
    servers: int
    servers_online: int
    routes: int


class StatsService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow

    async def overview(self) -> Overview:
        one = Paging(1, 1)
        nodes = await NodeService(self._uow).counts()
        return Overview(
            version=__version__,
            revision=await ChangeService(self._uow).head(),
            networks=(await NetworkService(self._uow).page(one)).total,
            nodes=nodes["total"],
            nodes_online=nodes["online"],
            nodes_pending=nodes["pending"],
            servers=(await ServerService(self._uow).page(one)).total,
            servers_online=(await ServerService(self._uow).page(one, online=True)).total,
            routes=(await RouteService(self._uow).page(one)).total,
        )
