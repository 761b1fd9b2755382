from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.audit.schemas import AuditCheck, AuditRow
from edgelink_controller.audit.service import AuditService
from edgelink_controller.kit.http import Pages, ReadUow
from edgelink_controller.kit.paging import Page

router = APIRouter(prefix="/audit", tags=["audit"])


@router.get("")
async def list_audit(
    uow: ReadUow,
    pages: Pages,
    action: str | None = None,
    target_type: str | None = None,
    target_id: str | None = None,
) -> Page[AuditRow]:
    return await AuditService(uow).page(pages, action=action, target_type=target_type, target_id=target_id)


@router.get("/verify")
async def verify_audit(uow: ReadUow) -> AuditCheck:
    return await AuditService(uow).verify()
