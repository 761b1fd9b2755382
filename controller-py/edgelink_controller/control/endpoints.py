"""`/ws/control` and `/ws/server`: accepting, signing in, then a session."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from typing import Any

import structlog
from starlette.websockets import WebSocket

from edgelink_controller.control.channel import (
    INTERNAL,
    MALFORMED,
    UNAVAILABLE,
    Channel,
    Closed,
    Refused,
    WebSocketChannel,
    reading_message,
    refuse,
)
from edgelink_controller.control.hub import Hub
from edgelink_controller.control.node_session import (
    BAD_SIGNATURE,
    INVALID_KEY,
    NodeSession,
    check_node_key_form,
    parse_machine_key,
    parse_node_key,
    parse_routes,
)
from edgelink_controller.control.relay_session import RelaySession
from edgelink_controller.control.session import AUTH_S, unexpected
from edgelink_controller.core import BadKey, FrameType, decode_key, encode_bytes, verify_control
from edgelink_controller.kit.errors import Problem
from edgelink_controller.kit.http import client_address
from edgelink_controller.kit.store import Actor
from edgelink_controller.nodes.registration import RegistrationService, SignIn
from edgelink_controller.servers.service import RelayReport, ServerService
from edgelink_controller.tokens.service import TokenRefused

INVALID_TOKEN = 1001
NONCE_BYTES = 32
log = structlog.get_logger(__name__)


async def control(socket: WebSocket) -> None:
    hub: Hub = socket.app.state.hub
    await socket.accept()
    await serve_node(WebSocketChannel(socket, client_address(socket, hub.store.config)), hub)


async def server(socket: WebSocket) -> None:
    hub: Hub = socket.app.state.hub
    await socket.accept()
    await serve_relay(WebSocketChannel(socket, client_address(socket, hub.store.config)), hub)


async def serve_node(channel: Channel, hub: Hub) -> None:
    """A machine, from its first frame to its last."""
    try:
        with hub.signing_in(), reading_message():
            session = await _sign_in(channel, hub)
    except Closed:
        return
    except Refused as refusal:
        log.info("sign-in refused", code=refusal.code, message=refusal.message, address=channel.address)
        await refuse(channel, refusal)
        return
    except Exception:
        log.exception("sign-in failed", address=channel.address)
        await refuse(channel, Refused(INTERNAL, "internal error"))
        return
    hub.attach_node(session)
    try:
        await session.run()
    finally:
        hub.detach_node(session)
        await channel.close(1000)


async def serve_relay(channel: Channel, hub: Hub) -> None:
    """A relay, from its first frame to its last."""
    try:
        with hub.signing_in(), reading_message():
            session, nodes = await _register(channel, hub)
    except Closed:
        return
    except Refused as refusal:
        log.warning("relay refused", code=refusal.code, message=refusal.message, address=channel.address)
        await refuse(channel, refusal)
        return
    except Exception:
        log.exception("registration failed", address=channel.address)
        await refuse(channel, Refused(INTERNAL, "internal error"))
        return
    await hub.attach_relay(session, nodes)
    try:
        await session.run()
    finally:
        await asyncio.shield(hub.detach_relay(session))
        await channel.close(1000)


async def _first(channel: Channel, kind: FrameType) -> dict[str, Any]:
    """The one message that may come first; whoever says nothing is cut."""
    try:
        async with asyncio.timeout(AUTH_S):
            while (frame := await channel.receive()).kind == FrameType.PING:
                await channel.send_raw(FrameType.PONG, frame.payload)
    except TimeoutError:
        raise Refused(INVALID_TOKEN, f"nothing was signed in within {AUTH_S:.0f} s") from None
    if frame.kind != kind:
        raise unexpected(frame)
    # A bad key has a code of its own, so it is looked at before the form of the whole.
    raw = frame.unchecked() if kind == FrameType.AUTH_REQUEST else {}
    if "machine_key" in raw:
        parse_machine_key(raw["machine_key"])
        check_node_key_form(raw.get("node_key"))
    message = frame.message()
    if frame.ack_wanted:
        await channel.acknowledge(frame.kind)
    return message


async def _sign_in(channel: Channel, hub: Hub) -> NodeSession:
    nonce = secrets.token_bytes(NONCE_BYTES)
    challenge = {"nonce": encode_bytes(nonce), "server_time": int(hub.store.clock.now())}
    await channel.send(FrameType.AUTH_CHALLENGE, challenge)
    message = await _first(channel, FrameType.AUTH_REQUEST)
    if message.get("kind") != "machine":
        raise Refused(MALFORMED, "kind: expected machine")
    machine_key = parse_machine_key(message.get("machine_key"))
    _check_signature(message, machine_key, nonce, hub.store.config.names)
    request = SignIn(
        machine_key=machine_key,
        node_key=parse_node_key(message.get("node_key"), machine_key),
        hostname=str(message.get("hostname") or ""),
        os=str(message.get("os") or ""),
        arch=str(message.get("arch") or ""),
        version=str(message.get("version") or ""),
        networks=[str(name) for name in message.get("networks") or []],
        enrolment_key=message.get("enrolment_key"),
        routes=parse_routes(message.get("routes")),
    )
    version = int(message.get("config_version") or 0)
    actor = Actor("node", encode_bytes(machine_key), channel.address)
    try:
        async with hub.store.write(actor) as uow:
            signed_in = await RegistrationService(uow).sign_in(request)
    except Problem as problem:
        raise Refused(MALFORMED, problem.detail) from None
    if not signed_in.nodes:
        raise Refused(UNAVAILABLE, "; ".join(signed_in.refused))
    for reason in signed_in.refused:
        await channel.send(FrameType.ERROR, {"code": UNAVAILABLE, "message": reason, "fatal": False})
    version = await hub.usable_version(version, signed_in.machine_id)
    # The session reads the picture, which must not be older than the registration.
    await hub.catch_up()
    return NodeSession(channel, hub, signed_in, machine_key, version)


def _check_signature(message: dict[str, Any], machine_key: bytes, nonce: bytes, names: list[str]) -> None:
    name = str(message.get("controller") or "")
    if names and name not in names:
        raise Refused(BAD_SIGNATURE, f"controller: this one is not called {name[:100]}")
    try:
        echoed = decode_key(message.get("nonce"), NONCE_BYTES)
        signature = decode_key(message.get("signature"), 64)
    except BadKey as error:
        raise Refused(BAD_SIGNATURE, f"nonce or signature: {error}") from None
    if not hmac.compare_digest(echoed, nonce):
        raise Refused(BAD_SIGNATURE, "nonce: not the one of this connection")
    try:
        good = verify_control(machine_key, nonce, name, signature)
    except Exception as error:
        raise Refused(INVALID_KEY, f"machine_key: {error}") from None
    if not good:
        raise Refused(BAD_SIGNATURE, "the signature over the challenge is not by this machine_key")


async def _register(channel: Channel, hub: Hub) -> tuple[RelaySession, list[int]]:
    message = await _first(channel, FrameType.SERVER_REGISTER)
    token = str(message["token"])
    async with hub.store.read() as uow:
        try:
            known, issued, expires = await ServerService(uow).authenticate(token)
        except TokenRefused as refusal:
            raise Refused(refusal.code, str(refusal)) from None
    report = RelayReport(
        version=str(message.get("version") or "")[:50],
        data_url=message.get("data_url"),
        mesh_url=message.get("mesh_url"),
        stun=message.get("stun"),
        tls_pin=message.get("tls_pin"),
    )
    async with hub.store.write(Actor("relay", str(known.id), channel.address)) as uow:
        server = await ServerService(uow).register(known.id, report)
    await hub.catch_up()
    nodes = [int(node) for node in message.get("nodes") or []]
    return RelaySession(channel, hub, server, issued, expires), nodes
