"""Who is online and on which relays, written behind the control channels' own picture of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgelink_controller.kit.store import Uow
from edgelink_controller.nodes.repository import NodeRepository


@dataclass(frozen=True, slots=True)
class Presence:
    online: bool
    relays: frozenset[int]


class PresenceService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = NodeRepository(uow.session)

    async def connections(self) -> list[tuple[int, int]]:
        """Every (node, relay) as last written."""
        return await self._rows.connections()

    async def store(self, presence: Mapping[int, Presence], relays: Iterable[int]) -> None:
        """Write the state of the given nodes; nodes and relays that are gone meanwhile are left out."""
        known = set(relays)
        for node_id, state in presence.items():
            if await self._rows.set_presence(node_id, state.online, self._uow.now()):
                await self._rows.replace_connections(node_id, sorted(state.relays & known), self._uow.now())
