"""Where sessions meet: follows the change log, knows who is online where, and wakes whom a change concerns.

Order of a change: a transaction commits (here, or by `edgelink-ctl` on the same file) → the doorbell rings or the
file watcher sees it → after a short pause, so that a burst is one round, the picture catches up → the sessions of the
networks concerned are woken, relays first → each builds its own message from the picture.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import structlog

from edgelink_controller.changes.service import ChangeRow, ChangeService
from edgelink_controller.control.channel import OVERLOADED, Refused
from edgelink_controller.control.node_session import NodeSession
from edgelink_controller.control.picture import Picture
from edgelink_controller.control.relay_session import RelaySession
from edgelink_controller.identity.service import IdentityService
from edgelink_controller.kit.db import data_version
from edgelink_controller.kit.store import Store
from edgelink_controller.latency.paths import PathBook
from edgelink_controller.latency.service import LatencyService, Sample
from edgelink_controller.nodes.presence import Presence, PresenceService
from edgelink_controller.servers.service import ServerService
from edgelink_controller.tokens.service import TokenService

COALESCE_S = 0.05
WATCH_S = 0.2
WATCH_OTHER_DATABASES_S = 2.0
FLUSH_S = 1.0
PRUNE_S = 600.0
HEARTBEAT_S = 30.0
# Each may hold a message of 1 MiB.
MAX_STRANGERS = 500
# How long the nodes of a relay that lost its controller connection are still said to be on it.
RELAY_GRACE_S = 5.0
RESTART_GRACE_S = 15.0

log = structlog.get_logger(__name__)


class Hub:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.picture = Picture()
        self.paths = PathBook()
        self.started = asyncio.Event()
        self._machines: dict[int, NodeSession] = {}
        self._networks: dict[int, set[NodeSession]] = {}
        self._relays: dict[int, RelaySession] = {}
        self._relays_of: dict[int, set[int]] = {}
        self._nodes_on: dict[int, set[int]] = {}
        self._presence_marks: dict[int, int] = {}
        self._boot_mark = 0
        self._unsaved_presence: set[int] = set()
        self._unsaved_samples: dict[tuple[tuple[str, int], tuple[str, int]], Sample] = {}
        self._moved: set[int] = set()
        self._woken: set[NodeSession | RelaySession] = set()
        self._strangers = 0
        self._bell = asyncio.Event()
        self._catching_up = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._grace: dict[int, asyncio.TimerHandle] = {}

    async def start(self) -> None:
        await self.picture.load(self.store)
        self._boot_mark = self.picture.head
        async with self.store.write() as uow:
            await ServerService(uow).none_online()
            for node_id, relay_id in await PresenceService(uow).connections():
                self._relays_of.setdefault(node_id, set()).add(relay_id)
                self._nodes_on.setdefault(relay_id, set()).add(node_id)
            for sample in await LatencyService(uow).fresh():
                self.paths.note(sample)
        self._unsaved_presence.update(self.picture.nodes)
        self._moved.update(self.picture.nodes)
        for relay_id in list(self._nodes_on):
            self._start_grace(relay_id, RESTART_GRACE_S)
        self.store.on_commit(self._bell.set)
        self._tasks = [
            asyncio.create_task(self._forever("follow", self._follow)),
            asyncio.create_task(self._forever("watch", self._watch)),
            asyncio.create_task(self._forever("flush", self._flush)),
            asyncio.create_task(self._forever("heartbeat", self._heartbeat)),
            asyncio.create_task(self._forever("prune", self._prune)),
        ]
        self.started.set()

    async def stop(self) -> None:
        for timer in self._grace.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._save()

    @property
    def counts(self) -> dict[str, int]:
        return {"machines": len(self._machines), "relays": len(self._relays)}

    async def is_ready(self) -> bool:
        """The follower runs and the database answers."""
        if not self._tasks or any(task.done() for task in self._tasks):
            return False
        try:
            async with asyncio.timeout(2), self.store.read() as uow:
                await ChangeService(uow).head()
        except Exception:
            return False
        return True

    async def usable_version(self, version: int, machine_id: int) -> int:
        """The version to send a delta from, or 0 when a machine's own memberships came or went since."""
        if version <= 0:
            return 0
        async with self.store.read() as uow:
            return 0 if await ChangeService(uow).touches_machine(machine_id, version) else version

    async def catch_up(self) -> None:
        """Bring the picture up to now at once and wake whom that concerns; for who just wrote and reads next."""
        async with self._catching_up:
            self._distribute(await self.picture.catch_up(self.store))
        if self._woken:
            self._bell.set()

    @contextlib.contextmanager
    def signing_in(self) -> Iterator[None]:
        """Holds one of the places for connections that have not signed in. Raises `Refused` 4003."""
        if self._strangers >= MAX_STRANGERS:
            raise Refused(OVERLOADED, "too many connections are signing in; try again")
        self._strangers += 1
        try:
            yield
        finally:
            self._strangers -= 1

    # Sessions come and go

    def attach_node(self, session: NodeSession) -> None:
        """Replaces an older session of the same machine."""
        old = self._machines.get(session.machine_id)
        if old is not None:
            self.detach_node(old)
            old.replace()
        self._machines[session.machine_id] = session
        for node_id, network_id in session.node_ids.items():
            self._networks.setdefault(network_id, set()).add(session)
            self._mark(node_id)

    def detach_node(self, session: NodeSession) -> None:
        if self._machines.get(session.machine_id) is session:
            del self._machines[session.machine_id]
            for sessions in self._networks.values():
                sessions.discard(session)
            self._woken.discard(session)
            for node_id in session.node_ids:
                self._mark(node_id)

    async def attach_relay(self, session: RelaySession, nodes: Iterable[int]) -> None:
        """`nodes` is who is connected to the relay now; what was believed before is replaced."""
        old = self._relays.get(session.relay_id)
        self._relays[session.relay_id] = session
        if old is not None:
            old.replace()
        timer = self._grace.pop(session.relay_id, None)
        if timer:
            timer.cancel()
        now = set(nodes)
        gone = self._nodes_on.get(session.relay_id, set()) - now
        self.relay_reports(session.relay_id, connected=now, disconnected=gone)

    async def detach_relay(self, session: RelaySession) -> None:
        """The relay may well go on without us: its nodes stay on it for a while."""
        if self._relays.get(session.relay_id) is not session:
            return
        del self._relays[session.relay_id]
        self._woken.discard(session)
        self._start_grace(session.relay_id, RELAY_GRACE_S)
        async with self.store.write() as uow:
            await ServerService(uow).set_online(session.relay_id, False)

    def _start_grace(self, relay_id: int, seconds: float) -> None:
        def over() -> None:
            self._grace.pop(relay_id, None)
            self.relay_reports(relay_id, connected=(), disconnected=set(self._nodes_on.get(relay_id, ())))

        self._grace[relay_id] = asyncio.get_running_loop().call_later(seconds, over)

    # Who is where

    def is_online(self, node_id: int) -> bool:
        node = self.picture.nodes.get(node_id)
        return bool(self._relays_of.get(node_id)) or (node is not None and node.machine_id in self._machines)

    def relays_of(self, node_id: int) -> set[int]:
        return self._relays_of.get(node_id, set())

    def relay_reports(self, relay_id: int, *, connected: Iterable[int], disconnected: Iterable[int]) -> None:
        on_relay = self._nodes_on.setdefault(relay_id, set())
        for node_id in connected:
            if node_id in self.picture.nodes and node_id not in on_relay:
                on_relay.add(node_id)
                self._relays_of.setdefault(node_id, set()).add(relay_id)
                self._mark(node_id)
        for node_id in disconnected:
            if node_id in on_relay:
                on_relay.discard(node_id)
                self._relays_of.get(node_id, set()).discard(relay_id)
                if self.paths.forget(node_id, relay_id):
                    self._moved.add(node_id)
                self._mark(node_id)

    def presence_changed_since(self, revision: int, networks: Iterable[int]) -> set[int]:
        """Nodes whose online state or relays may differ from what was true at `revision`."""
        return {
            node.id
            for network_id in set(networks)
            for node in self.picture.nodes_in(network_id)
            if self._presence_marks.get(node.id, self._boot_mark) >= revision
        }

    def _mark(self, node_id: int) -> None:
        """Its presence changed: tell its network and the relays, and write it down soon."""
        self._unsaved_presence.add(node_id)
        self._presence_marks[node_id] = self.picture.head
        node = self.picture.nodes.get(node_id)
        if node is not None:
            for session in self._networks.get(node.network_id, ()):
                session.dirty.add(node_id)
                self._woken.add(session)
        for relay in self._relays.values():
            relay.dirty.add(node_id)
            self._woken.add(relay)
        self._bell.set()

    # Latency

    def note_latency(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            self._unsaved_samples[sample.src, sample.dst] = sample
            if self.paths.note(sample):
                kind, key = sample.src
                self._moved |= {key} if kind == "node" else self._nodes_on.get(key, set())

    def _choose_paths(self) -> None:
        moved, self._moved = self._moved, set()
        by_network: dict[int, set[int]] = {}
        for node_id in moved:
            node = self.picture.nodes.get(node_id)
            if node is not None and node.authorized:
                by_network.setdefault(node.network_id, set()).add(node_id)
        for network_id, nodes in by_network.items():
            peers = [node.id for node in self.picture.nodes_in(network_id) if self._relays_of.get(node.id)]
            for sender, receiver in self.paths.recompute(nodes, peers):
                session = self._machines.get(self.picture.nodes[sender].machine_id)
                if session is not None:
                    session.dirty.add(receiver)
                    self._woken.add(session)
        if by_network:
            self._bell.set()

    # Tasks

    async def _forever(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("background work failed, trying again", work=name)
                await asyncio.sleep(1)

    async def _follow(self) -> None:
        await self._bell.wait()
        await asyncio.sleep(COALESCE_S)
        self._bell.clear()
        async with self._catching_up:
            self._distribute(await self.picture.catch_up(self.store))
        woken, self._woken = self._woken, set()
        for relay in [session for session in woken if isinstance(session, RelaySession)]:
            relay.wake()
        for node in [session for session in woken if isinstance(session, NodeSession)]:
            node.wake()

    def _distribute(self, rows: list[ChangeRow]) -> None:
        for row in rows:
            if row.network_id is None:
                self._woken.update(self._relays.values())
                if row.entity != "revocation":
                    self._woken.update(self._machines.values())
                continue
            self._woken.update(self._networks.get(row.network_id, ()))
            if row.entity == "node":
                self._on_node_changed(row.entity_id)

    def _on_node_changed(self, node_id: int) -> None:
        for relay in self._relays.values():
            relay.dirty.add(node_id)
            self._woken.add(relay)
        if node_id not in self.picture.nodes:
            self.paths.forget(node_id)
            for relay_id in self._relays_of.pop(node_id, set()):
                self._nodes_on.get(relay_id, set()).discard(node_id)
            self._presence_marks.pop(node_id, None)

    async def _watch(self) -> None:
        """Notice what another process wrote into the same database."""
        if not self.store.database.is_sqlite:
            await asyncio.sleep(WATCH_OTHER_DATABASES_S)
            self._bell.set()
            return
        async with self.store.database.watching() as connection:
            seen = await data_version(connection)
            # Something may have been written between loading the picture and this first look.
            self._bell.set()
            while True:
                await asyncio.sleep(WATCH_S)
                now = await data_version(connection)
                if now != seen:
                    seen = now
                    self._bell.set()

    async def _flush(self) -> None:
        await asyncio.sleep(FLUSH_S)
        self._choose_paths()
        await self._save()

    async def _save(self) -> None:
        presence, self._unsaved_presence = self._unsaved_presence, set()
        samples, self._unsaved_samples = self._unsaved_samples, {}
        if not presence and not samples:
            return
        try:
            async with self.store.write() as uow:
                state = {i: Presence(self.is_online(i), frozenset(self.relays_of(i))) for i in presence}
                await PresenceService(uow).store(state, self.picture.relays)
                await LatencyService(uow).store(samples.values())
        except BaseException:
            self._unsaved_presence |= presence
            self._unsaved_samples = samples | self._unsaved_samples
            raise

    async def _heartbeat(self) -> None:
        """Note that relays which say nothing new are still there."""
        await asyncio.sleep(HEARTBEAT_S)
        if self._relays:
            async with self.store.write() as uow:
                for relay_id in self._relays:
                    await ServerService(uow).set_online(relay_id, True)

    async def _prune(self) -> None:
        async with self.store.write() as uow:
            await TokenService(uow).prune()
            await IdentityService(uow).prune()
            await LatencyService(uow).prune()
            await ChangeService(uow).prune()
        await asyncio.sleep(PRUNE_S)
