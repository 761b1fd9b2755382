"""The web application: wiring only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from edgelink_controller import __version__
from edgelink_controller.apidocs import install_docs
from edgelink_controller.audit.endpoints import router as audit
from edgelink_controller.control import endpoints as channels
from edgelink_controller.control.hub import Hub
from edgelink_controller.control.metrics import HubMetrics
from edgelink_controller.identity.endpoints import router as identity
from edgelink_controller.identity.service import IdentityService
from edgelink_controller.kit.errors import Unauthenticated
from edgelink_controller.kit.http import client_address, install_problem_handlers
from edgelink_controller.kit.store import Actor, Store
from edgelink_controller.latency.endpoints import router as latency
from edgelink_controller.networks.endpoints import router as networks
from edgelink_controller.nodes.endpoints import network_router as node_networks
from edgelink_controller.nodes.endpoints import router as nodes
from edgelink_controller.routes.endpoints import router as routes
from edgelink_controller.servers.endpoints import router as servers
from edgelink_controller.settings.endpoints import router as settings
from edgelink_controller.stats.endpoints import router as stats
from edgelink_controller.tokens.endpoints import router as tokens

API = "/api/v1"


def create_app(store: Store, hub: Hub) -> FastAPI:
    """The controller over a prepared store. The caller starts and stops the hub's surroundings through lifespan."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        try:
            yield
        finally:
            await hub.stop()

    app = FastAPI(title="EdgeLink controller", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.store = store
    app.state.hub = hub
    app.state.authenticate = _authenticate
    install_problem_handlers(app)
    api = APIRouter(prefix=API)
    for router in (
        identity,
        nodes,
        networks,
        node_networks,
        routes,
        servers,
        latency,
        settings,
        stats,
        tokens,
        audit,
    ):
        api.include_router(router)
    app.include_router(api)
    app.include_router(_health(hub))
    install_docs(app)
    listen = store.config.listen
    app.add_api_websocket_route(listen.ws_control, channels.control)
    app.add_api_websocket_route(listen.ws_server, channels.server)
    return app


async def _authenticate(request: Request, *, write: bool) -> Actor:
    store: Store = request.app.state.store
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("send Authorization: Bearer with a token of /api/v1/auth/login")
    async with store.read() as uow:
        actor, request.state.jti = await IdentityService(uow).authenticate(
            token.strip(), client_address(request, store.config), write=write
        )
    return actor


def _health(hub: Hub) -> APIRouter:
    router = APIRouter(tags=["health"])
    metrics = HubMetrics(hub)

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> Response:
        """The database answers and the picture is loaded."""
        if not await hub.is_ready():
            return JSONResponse({"status": "not ready"}, 503)
        return JSONResponse({"status": "ok"})

    @router.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
