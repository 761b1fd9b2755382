from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.kit.http import ReadUow
from edgelink_controller.stats.service import Overview, StatsService

router = APIRouter(prefix="/stats", tags=["stats"])


@router.get("/overview")
async def overview(uow: ReadUow) -> Overview:
    return await StatsService(uow).overview()
