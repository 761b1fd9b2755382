from __future__ import annotations

from fastapi import APIRouter

from edgelink_controller.kit.http import Pages, ReadUow, WriteUow
from edgelink_controller.kit.paging import Page
from edgelink_controller.tokens.schemas import RevokeRequest, TokenRow
from edgelink_controller.tokens.service import TokenService

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.get("")
async def list_tokens(
    uow: ReadUow, pages: Pages, kind: str | None = None, subject: str | None = None, revoked: bool | None = None
) -> Page[TokenRow]:
    return await TokenService(uow).page(pages, kind=kind, subject=subject, revoked=revoked)


@router.post("/{jti}/revoke")
async def revoke_token(uow: WriteUow, jti: str, body: RevokeRequest) -> TokenRow:
    return await TokenService(uow).revoke(jti, body.reason)
