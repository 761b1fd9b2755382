"""The change log. A row says that something is different, not how: readers look at what it is now.

That makes rows small, updates idempotent, and lets a reader merge any number of changes of one thing into one.
Revisions are one ascending sequence for the whole controller; a network's revision is its newest change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgelink_controller.changes.models import Change
from edgelink_controller.changes.repository import ChangeRepository
from edgelink_controller.kit.store import Uow

_WHOLE = 0
KEPT = 50_000


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """`network_id` is None for what concerns everybody (relays, settings, revocations)."""

    id: int
    network_id: int | None
    entity: str
    entity_id: int
    reason: str


class ChangeService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = ChangeRepository(uow.session)

    async def record(
        self,
        entity: str,
        entity_id: int,
        *,
        network_id: int | None = None,
        machine_id: int | None = None,
        reason: str = "",
    ) -> int:
        """Note that `entity` (node, route, network, relay, settings, revocation) is different; gives the revision.

        `machine_id` is given when a machine's own membership is concerned.
        """
        revision = await self._rows.bump(_WHOLE)
        if network_id is not None:
            await self._rows.set_revision(network_id, revision)
        await self._rows.add(
            Change(
                id=revision,
                network_id=network_id,
                entity=entity,
                entity_id=entity_id,
                machine_id=machine_id,
                reason=reason,
                created_at=self._uow.now(),
            )
        )
        return revision

    async def head(self) -> int:
        return await self._rows.revision(_WHOLE)

    async def network_revision(self, network_id: int) -> int:
        return await self._rows.revision(network_id)

    async def after(self, revision: int, limit: int = 10_000) -> list[ChangeRow]:
        return _plain(await self._rows.after(revision, limit))

    async def last(self, limit: int) -> list[ChangeRow]:
        """The newest `limit` rows, oldest first."""
        return _plain(await self._rows.last(limit))

    async def touches_machine(self, machine_id: int, after: int) -> bool:
        """Whether a membership of this machine came or went since `after`."""
        return await self._rows.touches_machine(machine_id, after)

    async def prune(self) -> None:
        """Forget the oldest rows; whoever is further behind gets a whole configuration."""
        await self._rows.prune(await self.head() - KEPT + 1)


def _plain(rows: Sequence[Change]) -> list[ChangeRow]:
    return [ChangeRow(row.id, row.network_id, row.entity, row.entity_id, row.reason) for row in rows]
