"""Frames over a WebSocket, or over anything else that can carry them (the built-in relay).

Knows docs/protocol.md section 1: decoding, ACK, ERROR and the close codes. Knows no message's meaning.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from starlette.websockets import WebSocket, WebSocketState

from edgelink_controller.core import (
    FLAG_ACK_WANTED,
    FrameDecoder,
    FrameError,
    FrameType,
    MessageError,
    decode_control,
    decode_json,
    encode_control,
    encode_frame,
)

SEND_TIMEOUT_S = 30.0
# Before anybody has signed in; a relay's list of 100,000 nodes fits.
FIRST_MESSAGE_BYTES = 1024 * 1024
UNSUPPORTED_VERSION, MALFORMED, TOO_LARGE = 2001, 2002, 2003
INTERNAL, UNAVAILABLE, OVERLOADED = 4001, 4002, 4003


class Closed(Exception):
    """The other end is gone."""


class Refused(Exception):
    """What the other end did gets an ERROR frame and ends the connection."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def close_code(error: int) -> int:
    """The WebSocket close code for an ERROR code (docs/protocol.md 1.4)."""
    if error == TOO_LARGE:
        return 1009
    if error in (UNSUPPORTED_VERSION, MALFORMED):
        return 1002
    if 1000 <= error < 2000:
        return 1008
    if error in (OVERLOADED, UNAVAILABLE):
        return 1013
    return 1011


@contextmanager
def reading_message() -> Iterator[None]:
    """What does not have the expected form is malformed, wherever that is noticed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Refused(MALFORMED, f"the message does not have the expected form: {error!r:.200}") from error


class Frame:
    """A frame that arrived. `message` decodes a control payload, checked against its type."""

    __slots__ = ("flags", "kind", "payload")

    def __init__(self, kind: int, flags: int, payload: bytes) -> None:
        self.kind = kind
        self.flags = flags
        self.payload = payload

    @property
    def ack_wanted(self) -> bool:
        return bool(self.flags & FLAG_ACK_WANTED)

    def unchecked(self) -> dict[str, Any]:
        """The payload before its form is checked, for what has an error code of its own (keys: 1004)."""
        return decode_json(self.payload)

    def message(self) -> dict[str, Any]:
        """Raises `Refused`."""
        try:
            return decode_control(self.kind, self.payload)
        except MessageError as error:
            raise Refused(error.code, str(error)) from None


class Channel(Protocol):
    """Both directions of one connection. `address` is where it comes from, for logs and audit."""

    address: str | None
    max_bytes: int

    async def receive(self) -> Frame:
        """The next frame. Raises `Closed`, `Refused`."""
        ...

    async def send(self, kind: int, message: Mapping[str, Any], *, ack_wanted: bool = False) -> None:
        """Send a control message; waits while the other end is slow. Raises `Closed`."""
        ...

    async def send_raw(self, kind: int, payload: bytes) -> None:
        """Send a frame whose payload is not JSON (PING, PONG, ACK)."""
        ...

    async def acknowledge(self, kind: int) -> None:
        """Answer a frame that wanted it, after it was acted on."""
        ...

    async def close(self, code: int, reason: str = "") -> None: ...


class WebSocketChannel:
    """One accepted WebSocket."""

    def __init__(self, socket: WebSocket, address: str | None) -> None:
        self.address = address
        self.max_bytes = FIRST_MESSAGE_BYTES
        self._socket = socket
        self._decoder = FrameDecoder()
        self._ready: deque[Frame] = deque()
        self._acknowledged = 0

    async def receive(self) -> Frame:
        while not self._ready:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                raise Closed
            data = event.get("bytes")
            if data is None:
                raise Refused(MALFORMED, "text messages have no meaning here")
            if len(data) > self.max_bytes:
                raise Refused(TOO_LARGE, f"a message of {len(data)} bytes is too large")
            try:
                self._ready.extend(Frame(*frame) for frame in self._decoder.feed(data))
            except FrameError as error:
                raise Refused(error.code, str(error)) from None
        return self._ready.popleft()

    async def send(self, kind: int, message: Mapping[str, Any], *, ack_wanted: bool = False) -> None:
        await self._write(encode_control(kind, message, ack_wanted=ack_wanted))

    async def send_raw(self, kind: int, payload: bytes) -> None:
        await self._write(encode_frame(kind, payload))

    async def acknowledge(self, kind: int) -> None:
        self._acknowledged = (self._acknowledged + 1) & 0xFFFF_FFFF
        await self.send_raw(FrameType.ACK, struct.pack(">BI", kind, self._acknowledged))

    async def close(self, code: int, reason: str = "") -> None:
        if self._socket.application_state is WebSocketState.CONNECTED:
            try:
                async with asyncio.timeout(2):
                    await self._socket.close(code, reason[:120])
            except Exception:  # noqa: BLE001, S110, RUF100 - whatever it is, the connection is over
                pass

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._socket.send_bytes(data)
        except Exception as error:
            # Timeouts, resets and "already closed" come in several types from below; all mean the same here.
            raise Closed from error


async def refuse(channel: Channel, refusal: Refused) -> None:
    """Say why, then close."""
    try:
        await channel.send(FrameType.ERROR, {"code": refusal.code, "message": refusal.message, "fatal": True})
    except Closed:
        return
    await channel.close(close_code(refusal.code), refusal.message)
