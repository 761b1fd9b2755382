from __future__ import annotations

from fastapi import APIRouter, Request

from edgelink_controller.identity import passwords
from edgelink_controller.identity.schemas import AccountOut, LoginAnswer, LoginRequest, RefreshRequest
from edgelink_controller.identity.service import IdentityService
from edgelink_controller.kit.errors import Unauthenticated
from edgelink_controller.kit.http import ReadUow, WriteUow, client_address
from edgelink_controller.kit.store import Actor, Store
from edgelink_controller.tokens.schemas import IssuedTokenOut, TokenLife

router = APIRouter(prefix="/auth", tags=["auth"])


@router.post("/login")
async def login(request: Request, body: LoginRequest) -> LoginAnswer:
    """The slow hash runs between two short transactions, so that nobody waits for a password to be checked."""
    store: Store = request.app.state.store
    address = client_address(request, store.config) or ""
    actor = Actor("account", body.username, address)
    async with store.read(actor) as uow:
        await IdentityService(uow).check_lock(body.username, address)
        stored = await IdentityService(uow).password_hash(body.username)
    good = await passwords.matches(body.password, stored)
    async with store.write(actor) as uow:
        service = IdentityService(uow)
        # Again: many attempts at once must not share one look at the counter.
        await service.check_lock(body.username, address)
        if good:
            return await service.sign_in(body.username, address)
        await service.note_failure(body.username, address)
    raise Unauthenticated("user name or password is wrong")


@router.post("/refresh")
async def refresh(request: Request, body: RefreshRequest) -> LoginAnswer:
    store: Store = request.app.state.store
    async with store.write(Actor("account", "", client_address(request, store.config))) as uow:
        answer = await IdentityService(uow).refresh(body.refresh_token)
    if answer is None:
        raise Unauthenticated("the refresh token is not good")
    return answer


@router.post("/logout", status_code=204)
async def logout(request: Request, uow: WriteUow) -> None:
    await IdentityService(uow).sign_out(request.state.jti)


@router.get("/me")
async def me(uow: ReadUow) -> AccountOut:
    return await IdentityService(uow).me()


@router.post("/tokens", status_code=201)
async def issue_token(uow: WriteUow, body: TokenLife) -> IssuedTokenOut:
    """An admin token for scripts, shown once."""
    return (await IdentityService(uow).issue_token(hours=body.hours)).shown()
