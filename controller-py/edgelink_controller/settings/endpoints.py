from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.kit.http import ReadUow, WriteUow
from edgelink_controller.settings.schemas import SettingOut, SettingsPatch
from edgelink_controller.settings.service import SettingService

router = APIRouter(prefix="/settings", tags=["settings"])


@router.get("")
async def list_settings(uow: ReadUow) -> list[SettingOut]:
    return await SettingService(uow).all()


@router.put("")
async def put_settings(uow: WriteUow, body: SettingsPatch) -> list[SettingOut]:
    return await SettingService(uow).put(body.values)
