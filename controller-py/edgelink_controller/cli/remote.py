"""A running controller as the back end: REST over HTTPS, signed in with a token or a password."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from edgelink_controller.cli.backend import Backend, CommandError, Target

API = "/api/v1"
TIMEOUT_S = 15.0


class RemoteBackend(Backend):
    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def call(self, method: str, path: str, *, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        try:
            answer = await self._client.request(method, API + path, json=body, params=query)
        except httpx2.TransportError as error:
            raise CommandError(f"{self._client.base_url}: {error or type(error).__name__}") from None
        if answer.is_success:
            return answer.json() if answer.content else None
        raise CommandError(_problem(answer))


@asynccontextmanager
async def remote_backend(target: Target, url: str) -> AsyncIterator[RemoteBackend]:
    """Raises `CommandError`."""
    context = _pinned(url, target.tls_pin) if target.tls_pin else ssl.create_default_context()
    async with httpx2.AsyncClient(base_url=url.rstrip("/"), timeout=TIMEOUT_S, verify=context) as client:
        backend = RemoteBackend(client)
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
        raise CommandError(f"{url}: the certificate is {found}, not the pinned one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=der)
    return context
