"""Where a command is carried out: at a running controller over REST, or here on its database file.

Both speak the same resources, because the second runs the controller's own endpoints in this process, without a
socket and without signing in: whoever may write the file is the administrator. The running controller notices the
change log within half a second.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from edgelink_controller.config import ConfigError

API = "/api/v1"
TIMEOUT_S = 15.0
PER_PAGE = 500


class CommandError(Exception):
    """What a command says instead of a result."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the global options chose."""

    url: str | None = None
    token: str | None = None
    username: str = "admin"
    password: str | None = None
    tls_pin: str | None = None
    db: Path | None = None
    state_dir: Path | None = None
    config: Path | None = None


class Backend:
    """The REST resources, wherever they are answered."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def call(self, method: str, path: str, *, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        """The decoded answer, None for 204. Raises `CommandError` with the problem's own words."""
        wanted = {key: value for key, value in (query or {}).items() if value is not None}
        try:
            answer = await self._client.request(method, API + path, json=body, params=wanted)
        except httpx2.TransportError as error:
            raise CommandError(f"{self._client.base_url}: {error or type(error).__name__}") from None
        if answer.is_success:
            return answer.json() if answer.content else None
        raise CommandError(_problem(answer))

    async def get(self, path: str, **query: Any) -> Any:
        return await self.call("GET", path, query=query)

    async def all(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Every item of a paged list."""
        items: list[dict[str, Any]] = []
        page = 1
        while True:
            answer = await self.get(path, page=page, per_page=PER_PAGE, **query)
            items += answer["items"]
            if page * PER_PAGE >= answer["total"]:
                return items
            page += 1

    async def find(self, path: str, what: str, wanted: str) -> int:
        """The id for an id or a name. Raises `CommandError` when no or several things are called that."""
        if wanted.isdigit():
            return int(wanted)
        found = [item for item in await self.all(path) if item["name"] == wanted]
        if len(found) == 1:
            return int(found[0]["id"])
        if found:
            ids = ", ".join(str(item["id"]) for item in found)
            raise CommandError(f"several {what}s are called {wanted}: {ids}; name one by its id")
        raise CommandError(f"no {what} is called {wanted}")


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Backend]:
    """Raises `CommandError`, `ConfigError`."""
    if target.url:
        async with _remote(target, target.url) as backend:
            yield backend
    else:
        # Here and not above: it is the whole controller, and REST mode, help and completion do without.
        from edgelink_controller.cli.local import local_client  # noqa: PLC0415

        async with local_client(target.db, target.state_dir, target.config) as client:
            yield Backend(client)


@asynccontextmanager
async def _remote(target: Target, url: str) -> AsyncIterator[Backend]:
    context = _pinned(url, target.tls_pin) if target.tls_pin else ssl.create_default_context()
    async with httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=TIMEOUT_S, verify=context) as client:
        backend = Backend(client)
        token = target.token
        if token is None:
            if target.password is None:
                raise CommandError("give EDGELINK_TOKEN, or EDGELINK_PASSWORD for the account admin")
            credentials = {"username": target.username, "password": target.password}
            token = (await backend.call("POST", "/auth/login", body=credentials))["access_token"]
        client.headers["authorization"] = f"Bearer {token}"
        yield backend


def _problem(answer: httpx2.Response) -> str:
    try:
        document = answer.json()
    except ValueError:
        return f"HTTP {answer.status_code}"
    fields = "; ".join(f"{f['field']}: {f['message']}" for f in document.get("fields", []))
    return str(fields or document.get("detail") or document.get("title") or f"HTTP {answer.status_code}")


def _pinned(url: str, pin: str) -> ssl.SSLContext:
    """Trust exactly the certificate with this SHA-256, looked at before anything secret is sent."""
    parsed = httpx2.URL(url)
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    probe.check_hostname = False
    probe.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((parsed.host, parsed.port or 443), TIMEOUT_S) as plain,
            probe.wrap_socket(plain, server_hostname=parsed.host) as secured,
        ):
            der = secured.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise CommandError(f"{url}: {error}") from None
    found = f"sha256:{hashlib.sha256(der).hexdigest()}"
    if found != pin.lower():
        raise ConfigError(f"{url}: the certificate is {found}, not the pinned one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=der)
    return context
