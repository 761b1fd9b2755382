"""What node and relay sessions have in common: two tasks on one channel, liveness, and a wake-up call.

A session holds a revision cursor and sets of ids, never a queue of messages: a slow one falls behind in revisions,
and when it can be written to again gets what is true then, once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

import structlog

from edgelink_controller.control.channel import (
    INTERNAL,
    MALFORMED,
    Channel,
    Closed,
    Frame,
    Refused,
    reading_message,
    refuse,
)
from edgelink_controller.core import MAX_MESSAGE_BYTES, FrameType

# docs/protocol.md 3.6
PING_S = 15.0
DEAD_S = 45.0
AUTH_S = 10.0

log = structlog.get_logger(__name__)


class Replaced(Exception):
    """A newer connection of the same machine or relay took over."""


class Session(ABC):
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._wake = asyncio.Event()
        self._replaced = asyncio.Event()
        self._heard = 0.0

    def wake(self) -> None:
        """There is something to tell; the session looks for itself what it is."""
        self._wake.set()

    def replace(self) -> None:
        """End this session because a newer one has its place."""
        self._replaced.set()

    async def run(self) -> None:
        """Until the connection ends, for whatever reason; the channel is closed afterwards."""
        self.channel.max_bytes = MAX_MESSAGE_BYTES
        tasks = [asyncio.create_task(c) for c in (self._read(), self._write(), self._until_replaced())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Refused as refusal:
            log.info("refused", code=refusal.code, message=refusal.message, address=self.channel.address)
            await refuse(self.channel, refusal)
        except Replaced:
            await self.channel.close(1000, "replaced by a newer connection")
        except TimeoutError:
            log.info("silent", address=self.channel.address)
            await self.channel.close(1001, "nothing heard for 45 s")
        except Closed:
            pass
        except Exception:
            log.exception("session failed", address=self.channel.address)
            await refuse(self.channel, Refused(INTERNAL, "internal error"))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            async with asyncio.timeout(DEAD_S):
                frame = await self.channel.receive()
            self._heard = loop.time()
            if frame.kind == FrameType.PING:
                await self.channel.send_raw(FrameType.PONG, frame.payload)
            elif frame.kind not in (FrameType.PONG, FrameType.ACK):
                with reading_message():
                    await self.handle(frame)
            if frame.ack_wanted:
                await self.channel.acknowledge(frame.kind)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        await self.start()
        while True:
            try:
                async with asyncio.timeout(min(PING_S / 3, self.due_s())):
                    await self._wake.wait()
            except TimeoutError:
                if loop.time() - self._heard >= PING_S:
                    await self.channel.send_raw(FrameType.PING, b"")
            self._wake.clear()
            await self.sync()

    async def _until_replaced(self) -> None:
        await self._replaced.wait()
        raise Replaced

    def due_s(self) -> float:
        """Seconds until `sync` has something to do that nobody wakes the session for."""
        return PING_S

    @abstractmethod
    async def start(self) -> None:
        """Send what the other end waits for first."""

    @abstractmethod
    async def sync(self) -> None:
        """Send whatever the other end does not have yet; called after every wake-up and every few seconds."""

    @abstractmethod
    async def handle(self, frame: Frame) -> None:
        """Act on a frame. Raises `Refused`."""


def unexpected(frame: Frame) -> Refused:
    try:
        name = FrameType(frame.kind).name
    except ValueError:
        name = f"type {frame.kind:#x}"
    return Refused(MALFORMED, f"{name} has no use here")
