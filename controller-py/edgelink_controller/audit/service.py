"""Audit rows are written in the transaction of the change they tell of, so neither exists without the other.

Each row's hash covers its content and the hash before it: a row that is altered or taken out breaks the chain from
there on. SQLite has one writer at a time, which gives the chain its order.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from edgelink_controller.audit.models import AuditLog
from edgelink_controller.audit.repository import AuditRepository
from edgelink_controller.audit.schemas import AuditCheck, AuditRow
from edgelink_controller.kit.paging import Page, Paging
from edgelink_controller.kit.store import Uow

GENESIS = "0" * 64
_BATCH = 1000


class AuditService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = AuditRepository(uow.session)

    async def record(self, action: str, target_type: str, target_id: object, **details: Any) -> None:
        """Note that the acting one did `action` to a target. Secrets do not belong into `details`."""
        actor = self._uow.actor
        row = AuditLog(
            actor_type=actor.kind,
            actor_id=actor.id,
            action=action,
            target_type=target_type,
            target_id=str(target_id),
            details=json.dumps(details, sort_keys=True, separators=(",", ":")),
            ip_address=actor.address,
            created_at=self._uow.now(),
            previous_hash=await self._rows.last_hash() or GENESIS,
        )
        row.hash = _digest(row)
        await self._rows.add(row)

    async def page(
        self,
        paging: Paging,
        *,
        action: str | None = None,
        target_type: str | None = None,
        target_id: str | None = None,
    ) -> Page[AuditRow]:
        """Newest first. `action` matches by its beginning (`node.` for everything about nodes)."""
        rows, total = await self._rows.page(paging, action=action, target_type=target_type, target_id=target_id)
        return Page.of([_shown(row) for row in rows], total, paging)

    async def verify(self) -> AuditCheck:
        """Walk the whole chain."""
        previous, last, count = GENESIS, 0, 0
        while batch := await self._rows.after(last, _BATCH):
            for row in batch:
                if row.previous_hash != previous or row.hash != _digest(row):
                    return AuditCheck(rows=count, intact=False, broken_at=row.id)
                previous, last, count = row.hash, row.id, count + 1
        return AuditCheck(rows=count, intact=True, broken_at=None)


def _digest(row: AuditLog) -> str:
    content = [
        row.previous_hash,
        row.actor_type,
        row.actor_id,
        row.action,
        row.target_type,
        row.target_id,
        row.details,
        row.ip_address,
        row.created_at,
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _shown(row: AuditLog) -> AuditRow:
    return AuditRow(
        id=row.id,
        actor_type=row.actor_type,
        actor_id=row.actor_id,
        action=row.action,
        target_type=row.target_type,
        target_id=row.target_id,
        details=json.loads(row.details),
        ip_address=row.ip_address,
        created_at=row.created_at,
        hash=row.hash,
    )
