"""One relay on `/ws/server` after it has registered (docs/protocol.md section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgelink_controller.control import messages
from edgelink_controller.control.channel import MALFORMED, Channel, Frame, Refused
from edgelink_controller.control.node_session import parse_samples
from edgelink_controller.control.session import Session, unexpected
from edgelink_controller.core import FrameType
from edgelink_controller.kit.store import Actor
from edgelink_controller.servers.schemas import ServerOut
from edgelink_controller.servers.service import ServerService
from edgelink_controller.tokens.service import REVOKED, Issued, TokenService

if TYPE_CHECKING:
    from edgelink_controller.control.hub import Hub

MESH_RENEW_S = 2 * 3600
SERVER_RENEW_S = 30 * 24 * 3600


class RelaySession(Session):
    """`issued` is the `iat` of the token that the relay came with: a later revocation voids it."""

    def __init__(self, channel: Channel, hub: Hub, server: ServerOut, issued: int, expires: int) -> None:
        super().__init__(channel)
        self.relay_id = server.id
        # Nodes whose location this relay was not told yet.
        self.dirty: set[int] = set()
        self._hub = hub
        self._actor = Actor("relay", str(server.id), channel.address)
        self._issued = issued
        self._renew_at = expires - min(SERVER_RENEW_S, (expires - issued) / 3)
        self._version = 0  # what the relay was told last
        self._cursor = 0  # up to where the change log was looked through for it
        self._mesh_tokens: dict[int, Issued] = {}
        self._mesh_renew_at: dict[int, float] = {}

    async def start(self) -> None:
        await self._issue_mesh_tokens()
        hub, picture = self._hub, self._hub.picture
        self.dirty.clear()
        self._version = self._cursor = picture.head
        await self.channel.send(
            FrameType.CONFIG,
            {
                "version": picture.head,
                "relay_id": self.relay_id,
                "server_time": int(hub.store.clock.now()),
                "token_keys": hub.store.keyring.public_keys(),
                "relays": [
                    messages.relay_for_relay(server, self._mesh_tokens[server.id])
                    for server in self._others()
                    if server.id in self._mesh_tokens
                ],
                "nodes": [
                    messages.location(node, hub.relays_of(node.id))
                    for node in picture.nodes.values()
                    if node.authorized
                ],
                "revocations": messages.revocations(picture.live_revocations(hub.store.clock.now())),
                "settings": messages.relay_settings(picture.settings),
            },
        )

    async def sync(self) -> None:
        picture = self._hub.picture
        rows = picture.since(self._cursor, [None])
        if rows is None:
            await self._check_still_welcome(list(picture.revocations))
            await self.start()
            return
        head = picture.head
        revoked = [row.entity_id for row in rows if row.entity == "revocation"]
        changed = list(dict.fromkeys(row.entity_id for row in rows if row.entity == "relay"))
        settings = any(row.entity == "settings" for row in rows)
        # What cuts connections goes first.
        if revoked:
            items = [picture.revocations[key] for key in revoked if key in picture.revocations]
            await self.channel.send(FrameType.SERVER_BLACKLIST, messages.revocations(items), ack_wanted=True)
        await self._check_still_welcome(revoked)
        await self._send_locations()
        changed += [relay_id for relay_id in await self._issue_mesh_tokens() if relay_id not in changed]
        changes = self._relay_changes(changed)
        if settings:
            changes.append({"op": "settings_set", "settings": messages.relay_settings(picture.settings)})
        if self._hub.store.clock.now() >= self._renew_at:
            changes += await self._renew_server_token()
        if changes:
            update = {"version": head, "base": self._version, "changes": changes}
            self._version = head
            await self.channel.send(FrameType.CONFIG_UPDATE, update)
        self._cursor = head

    async def _check_still_welcome(self, revoked: list[int]) -> None:
        for key in revoked:
            item = self._hub.picture.revocations.get(key)
            if item and item.kind == "relay" and item.subject_id == self.relay_id and self._issued < (item.before or 0):
                raise Refused(REVOKED, "the token of this relay was revoked")
        if self.relay_id not in self._hub.picture.relays:
            raise Refused(REVOKED, "this relay is disabled")

    async def _send_locations(self) -> None:
        dirty, self.dirty = self.dirty, set()
        if not dirty:
            return
        nodes = self._hub.picture.nodes
        known = {i for i in dirty if i in nodes and nodes[i].authorized}
        await self.channel.send(
            FrameType.SERVER_NODE_LOC,
            {
                "set": [messages.location(nodes[i], self._hub.relays_of(i)) for i in sorted(known)],
                "remove": sorted(dirty - known),
            },
        )

    def _relay_changes(self, relay_ids: list[int]) -> list[dict[str, Any]]:
        changes: list[dict[str, Any]] = []
        others = {server.id: server for server in self._others()}
        for relay_id in relay_ids:
            if relay_id in others and relay_id in self._mesh_tokens:
                relay = messages.relay_for_relay(others[relay_id], self._mesh_tokens[relay_id])
                changes.append({"op": "relay_set", "relay": relay})
            elif relay_id != self.relay_id:
                changes.append({"op": "relay_remove", "relay_id": relay_id})
        return changes

    def _others(self) -> list[ServerOut]:
        """Relays that this one has a mesh link with."""
        return [
            server
            for server in self._hub.picture.relays.values()
            if server.id != self.relay_id and server.mesh_url and "relay" in server.capabilities
        ]

    async def _issue_mesh_tokens(self) -> list[int]:
        """Tokens for peers that have none or whose token runs out soon; gives the peers."""
        now = self._hub.store.clock.now()
        due = [
            server.id
            for server in self._others()
            if server.id not in self._mesh_tokens or now >= self._mesh_renew_at[server.id]
        ]
        if due:
            async with self._hub.store.write(self._actor) as uow:
                for peer_id in due:
                    token = await TokenService(uow).issue_mesh(server_id=self.relay_id, peer_id=peer_id)
                    self._mesh_tokens[peer_id] = token
                    self._mesh_renew_at[peer_id] = token.expires_at - min(MESH_RENEW_S, (token.expires_at - now) / 3)
        return due

    async def _renew_server_token(self) -> list[dict[str, Any]]:
        async with self._hub.store.write(self._actor) as uow:
            issued = await ServerService(uow).renew_token(self.relay_id)
        now = self._hub.store.clock.now()
        self._renew_at = issued.expires_at - min(SERVER_RENEW_S, (issued.expires_at - now) / 3)
        return [{"op": "server_token", "token": issued.token}]

    async def handle(self, frame: Frame) -> None:
        if frame.kind == FrameType.SERVER_NODE_LOC:
            message = frame.message()
            connected, gone = message.get("connected") or [], message.get("disconnected") or []
            self._hub.relay_reports(self.relay_id, connected=connected, disconnected=gone)
        elif frame.kind == FrameType.LATENCY_REPORT:
            message = frame.message()
            if message["from"].get("kind") != "relay" or message["from"].get("id") != self.relay_id:
                raise Refused(MALFORMED, "from: not this relay")
            self._hub.note_latency(parse_samples("relay", self.relay_id, message["samples"]))
        else:
            raise unexpected(frame)
