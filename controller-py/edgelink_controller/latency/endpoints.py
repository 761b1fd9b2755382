from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from edgelink_controller.kit.http import Pages, ReadUow
from edgelink_controller.kit.paging import Page
from edgelink_controller.latency.schemas import LatencyOut, PathOut
from edgelink_controller.latency.service import LatencyService

router = APIRouter(prefix="/latency", tags=["latency"])


@router.get("/matrix")
async def latency_matrix(
    uow: ReadUow, pages: Pages, src_type: str | None = None, src_id: int | None = None
) -> Page[LatencyOut]:
    return await LatencyService(uow).matrix(pages, src_type, src_id)


@router.get("/paths")
async def latency_paths(
    uow: ReadUow, src: Annotated[int, Query(ge=1)], dst: Annotated[list[int], Query(max_length=500)]
) -> list[PathOut]:
    return await LatencyService(uow).paths(src, dst)
