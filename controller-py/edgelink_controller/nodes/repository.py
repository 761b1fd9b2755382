from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from edgelink_controller.kit.paging import Paging
from edgelink_controller.nodes.models import Machine, Node, NodeEndpoint, NodeServerConnection

Pair = tuple[Node, Machine]
# SQLite allows 32,766 variables per statement; other databases are slower long before.
_CHUNK = 5000


class NodeRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, row: Machine | Node) -> None:
        self._session.add(row)
        await self._session.flush()

    async def remove(self, row: Machine | Node) -> None:
        await self._session.delete(row)
        await self._session.flush()

    async def machine(self, machine_key: str) -> Machine | None:
        return await self._session.scalar(select(Machine).where(Machine.machine_key == machine_key))

    async def machine_by_id(self, machine_id: int) -> Machine | None:
        return await self._session.get(Machine, machine_id)

    async def of_machine(self, machine_id: int) -> Sequence[Node]:
        return (await self._session.scalars(select(Node).where(Node.machine_id == machine_id).order_by(Node.id))).all()

    async def get(self, node_id: int) -> Pair | None:
        row = (await self._session.execute(_pairs().where(Node.id == node_id))).first()
        return (row[0], row[1]) if row else None

    async def hosts(self, network_id: int) -> Sequence[int]:
        return (await self._session.scalars(select(Node.host).where(Node.network_id == network_id))).all()

    async def ids(self, network_id: int) -> Sequence[int]:
        return (await self._session.scalars(select(Node.id).where(Node.network_id == network_id))).all()

    async def name_taken(self, network_id: int, name: str) -> bool:
        query = select(func.count()).where(Node.network_id == network_id, Node.name == name)
        return bool(await self._session.scalar(query))

    async def names_from(self, network_id: int, base: str) -> Sequence[str]:
        """Names in a network that begin with `base`."""
        query = select(Node.name).where(Node.network_id == network_id, Node.name.startswith(base, autoescape=True))
        return (await self._session.scalars(query)).all()

    async def pairs(self, network_id: int | None, ids: Iterable[int] | None) -> list[Pair]:
        query = _pairs()
        if network_id is not None:
            query = query.where(Node.network_id == network_id)
        if ids is None:
            return [(row[0], row[1]) for row in await self._session.execute(query)]
        wanted, found = list(ids), []
        for start in range(0, len(wanted), _CHUNK):
            part = query.where(Node.id.in_(wanted[start : start + _CHUNK]))
            found += [(row[0], row[1]) for row in await self._session.execute(part)]
        return found

    async def page(
        self,
        paging: Paging,
        *,
        network_id: int | None,
        online: bool | None,
        authorized: bool | None,
        name: str | None,
    ) -> tuple[list[Pair], int]:
        query = _pairs()
        if network_id is not None:
            query = query.where(Node.network_id == network_id)
        if online is not None:
            query = query.where(Node.online.is_(online))
        if authorized is not None:
            query = query.where(Node.authorized.is_(authorized))
        if name:
            query = query.where(Node.name.contains(name, autoescape=True))
        total = await self._session.scalar(select(func.count()).select_from(query.subquery()))
        query = query.order_by(Node.id).offset(paging.offset).limit(paging.per_page)
        return [(row[0], row[1]) for row in await self._session.execute(query)], total or 0

    async def counts(self) -> dict[str, int]:
        async def count(*conditions: Any) -> int:
            return await self._session.scalar(select(func.count()).select_from(Node).where(*conditions)) or 0

        return {
            "total": await count(),
            "online": await count(Node.online.is_(True)),
            "pending": await count(Node.authorized.is_(False)),
        }

    async def endpoints(self, machine_ids: Iterable[int] | None = None) -> dict[int, list[tuple[str, str]]]:
        """By machine, in the order in which it named them; of all machines or of the given ones."""
        query = select(NodeEndpoint).order_by(NodeEndpoint.id)
        rows: list[NodeEndpoint] = []
        if machine_ids is None:
            rows += await self._session.scalars(query)
        else:
            wanted = list(machine_ids)
            for start in range(0, len(wanted), _CHUNK):
                part = query.where(NodeEndpoint.machine_id.in_(wanted[start : start + _CHUNK]))
                rows += await self._session.scalars(part)
        found: dict[int, list[tuple[str, str]]] = {}
        for row in rows:
            found.setdefault(row.machine_id, []).append((row.kind, row.address))
        return found

    async def replace_endpoints(self, machine_id: int, endpoints: Sequence[tuple[str, str]], at: int) -> None:
        await self._session.execute(delete(NodeEndpoint).where(NodeEndpoint.machine_id == machine_id))
        for kind, address in dict.fromkeys(endpoints):
            self._session.add(NodeEndpoint(machine_id=machine_id, kind=kind, address=address, updated_at=at))
        await self._session.flush()

    async def connections(self, ids: Iterable[int] | None = None) -> list[tuple[int, int]]:
        query = select(NodeServerConnection.node_id, NodeServerConnection.server_id)
        if ids is not None:
            query = query.where(NodeServerConnection.node_id.in_(list(ids)))
        return [(row[0], row[1]) for row in await self._session.execute(query)]

    async def replace_connections(self, node_id: int, servers: Iterable[int], at: int) -> None:
        await self._session.execute(delete(NodeServerConnection).where(NodeServerConnection.node_id == node_id))
        for server_id in servers:
            self._session.add(NodeServerConnection(node_id=node_id, server_id=server_id, connected_at=at))

    async def set_presence(self, node_id: int, online: bool, at: int) -> bool:
        """False when the node is gone."""
        statement = update(Node).where(Node.id == node_id).values(online=online, last_seen=at).returning(Node.id)
        return (await self._session.execute(statement)).first() is not None


def _pairs() -> Select[Node, Machine]:
    return select(Node, Machine).join(Machine, Machine.id == Node.machine_id)
