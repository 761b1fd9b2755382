"""What endpoints share: units of work as dependencies, the caller's address, problem documents."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from edgelink_controller.config import Config
from edgelink_controller.kit.errors import Problem
from edgelink_controller.kit.paging import MAX_PER_PAGE, Paging
from edgelink_controller.kit.store import Actor, Store, Uow

PROBLEM_TYPE = "application/problem+json"


def _paging(
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    per_page: Annotated[int, Query(ge=1, le=MAX_PER_PAGE)] = 50,
) -> Paging:
    return Paging(page, per_page)


Pages = Annotated[Paging, Depends(_paging)]


def client_address(connection: HTTPConnection, config: Config) -> str | None:
    """Where a request comes from. X-Forwarded-For counts only when the peer is one of `trusted_proxies`."""
    peer = connection.client.host if connection.client else None
    forwarded = connection.headers.get("x-forwarded-for")
    if peer is None or forwarded is None or not _is_within(peer, config.trusted_proxies):
        return peer
    # From the right: the first address that is not one of our own proxies is the one that the proxies vouch for.
    for candidate in reversed([part.strip() for part in forwarded.split(",")]):
        if not _is_within(candidate, config.trusted_proxies):
            return candidate if _is_address(candidate) else peer
    return peer


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_within(text: str, networks: list[str]) -> bool:
    return _is_address(text) and any(
        ipaddress.ip_address(text) in ipaddress.ip_network(network, strict=False) for network in networks
    )


async def _authenticated(request: Request, *, write: bool) -> Actor:
    # Installed by create_app; the kit must not know the identity package.
    actor: Actor = await request.app.state.authenticate(request, write=write)
    return actor


async def _read(request: Request) -> AsyncIterator[Uow]:
    actor = await _authenticated(request, write=False)
    store: Store = request.app.state.store
    async with store.read(actor) as uow:
        yield uow


async def _write(request: Request) -> AsyncIterator[Uow]:
    actor = await _authenticated(request, write=True)
    store: Store = request.app.state.store
    async with store.write(actor) as uow:
        yield uow


# scope="function": committed before the answer goes out, so that a failed commit is a failed request.
ReadUow = Annotated[Uow, Depends(_read, scope="function")]
WriteUow = Annotated[Uow, Depends(_write, scope="function")]


def install_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def on_problem(_request: Request, problem: Problem) -> JSONResponse:
        headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else None
        return JSONResponse(problem.document(), problem.status, headers, media_type=PROBLEM_TYPE)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        fields = [{"field": ".".join(str(p) for p in e["loc"]), "message": e["msg"]} for e in error.errors()]
        return _document(422, "invalid", "A value is not acceptable", fields=fields)

    @app.exception_handler(HTTPException)
    async def on_http(_request: Request, error: HTTPException) -> JSONResponse:
        return _document(error.status_code, f"http_{error.status_code}", str(error.detail))


def _document(status: int, code: str, title: str, **extra: Any) -> JSONResponse:
    body = {"type": f"urn:edgelink:problem:{code}", "title": title, "status": status, "code": code, **extra}
    return JSONResponse(body, status, media_type=PROBLEM_TYPE)
