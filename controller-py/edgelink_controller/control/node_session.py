"""One machine on `/ws/control` after it has signed in (docs/protocol.md section 3)."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from edgelink_controller.changes.service import ChangeRow
from edgelink_controller.control import messages
from edgelink_controller.control.channel import MALFORMED, Channel, Frame, Refused
from edgelink_controller.control.session import PING_S, Session, unexpected
from edgelink_controller.core import BadKey, FrameType, NodeKeyClaim, decode_key, verify_node_key
from edgelink_controller.kit.errors import Problem
from edgelink_controller.kit.store import Actor
from edgelink_controller.latency.service import Sample
from edgelink_controller.nodes.registration import RegistrationService, SignedIn
from edgelink_controller.nodes.service import NodeView
from edgelink_controller.routes.service import Advertised
from edgelink_controller.tokens.service import Issued, TokenService

if TYPE_CHECKING:
    from edgelink_controller.control.hub import Hub

INVALID_KEY, BAD_SIGNATURE, NOT_AUTHORISED = 1004, 1005, 1006
HEARTBEAT_S = 15
# Renewed this long before they run out (source section 4.3), or after two thirds of a shorter life.
RELAY_RENEW_S, AUTH_RENEW_S = 15 * 60, 2 * 3600
MAX_SAMPLES = 1000
MAX_KIND = 20
MAX_PORT = 65535
MAX_RTT_MS = 60_000.0


class NodeSession(Session):
    def __init__(self, channel: Channel, hub: Hub, signed_in: SignedIn, machine_key: bytes, version: int) -> None:
        super().__init__(channel)
        self.machine_id = signed_in.machine_id
        self.node_ids = {node.id: node.network_id for node in signed_in.nodes}
        # Peers whose online state, relays or path is not what this machine was told last.
        self.dirty: set[int] = set()
        self._hub = hub
        self._machine_key = machine_key
        self._actor = Actor("node", str(signed_in.machine_id), channel.address)
        self._version = version  # what the machine has; 0: nothing
        self._cursor = version  # up to where the change log was looked through for it
        self._authorised: set[int] = set()
        self._tokens: dict[int, Issued] = {}
        self._auth_token: Issued | None = None
        self._fresh: set[int] = set()  # memberships whose token the machine does not have yet
        self._renew_at: dict[int, float] = {}
        self._auth_renew_at = 0.0

    async def start(self) -> None:
        authorised = self._authorised_now()
        await self._issue_tokens(authorised)
        authorised &= self._authorised_now()
        await self._send_auth_response()
        picture = self._hub.picture
        resumable = self._version > 0 and picture.since(self._version, self._networks()) is not None
        if not resumable or not authorised:
            self._version = 0
        else:
            self._authorised = set(authorised)
            self.dirty |= self._hub.presence_changed_since(self._version, self.node_ids.values())
        if authorised:
            await self._send_config(authorised, always=True)
        else:
            await self._send_not_authorised()

    async def sync(self) -> None:
        before = set(self._authorised)
        await self._renew_tokens()
        # From here until the message is built nothing waits, so it shows one state of the picture.
        authorised = self._authorised_now() & set(self._tokens)
        if authorised != before:
            await self._send_auth_response()
            authorised = self._authorised_now() & set(self._tokens)
        if authorised or before:
            await self._send_config(authorised)
        if before and not authorised:
            await self._send_not_authorised()

    def due_s(self) -> float:
        renewals = [*self._renew_at.values(), self._auth_renew_at] if self._authorised else []
        return max(0.1, min(renewals) - self._hub.store.clock.now()) if renewals else PING_S

    async def handle(self, frame: Frame) -> None:
        if frame.kind == FrameType.NODE_UPDATE:
            check_node_key_form(frame.unchecked().get("node_key"))
            await self._on_update(frame.message())
        elif frame.kind == FrameType.LATENCY_REPORT:
            self._on_latency(frame.message())
        else:
            raise unexpected(frame)

    # What goes out

    async def _send_auth_response(self) -> None:
        nodes = [self._hub.picture.nodes[node_id] for node_id in self.node_ids if node_id in self._hub.picture.nodes]
        authorised = any(node.authorized for node in nodes)
        names = self._hub.picture.networks
        await self.channel.send(
            FrameType.AUTH_RESPONSE,
            {
                "kind": "machine",
                "state": "authorised" if authorised else "pending",
                "nodes": [
                    {
                        "node_id": node.id,
                        "network_id": node.network_id,
                        "network": names[node.network_id].name,
                        "state": "authorised" if node.authorized else "pending",
                    }
                    for node in nodes
                    if node.network_id in names
                ],
                "auth_token": self._auth_token.token if self._auth_token and authorised else None,
                "auth_token_expires": self._auth_token.expires_at if self._auth_token and authorised else None,
                "heartbeat_s": HEARTBEAT_S,
            },
        )

    async def _send_not_authorised(self) -> None:
        await self.channel.send(
            FrameType.ERROR,
            {"code": NOT_AUTHORISED, "message": "waiting for an operator to authorise this node", "fatal": False},
        )

    async def _send_config(self, authorised: set[int], *, always: bool = False) -> None:
        picture = self._hub.picture
        rows = picture.since(self._cursor, self._networks()) if self._version else None
        head, dirty = picture.head, self.dirty
        self.dirty = set()
        if rows is None:
            kind, message = FrameType.CONFIG, self._whole(authorised)
            self._fresh.clear()
        else:
            kind, message = FrameType.CONFIG_UPDATE, self._delta(rows, authorised, dirty)
        self._cursor = head
        self._authorised = set(authorised)
        if kind is FrameType.CONFIG or message["changes"] or always:
            self._version = message["version"]
            await self.channel.send(kind, message)
        if not authorised:
            # Whatever comes next starts from nothing.
            self._version = 0

    def _whole(self, authorised: set[int]) -> dict[str, Any]:
        picture = self._hub.picture
        relays = (messages.relay_for_node(server) for server in picture.relays.values())
        return {
            "version": picture.head,
            "memberships": [self._membership(picture.nodes[node_id]) for node_id in sorted(authorised)],
            "relays": [relay for relay in relays if relay is not None],
            "settings": messages.node_settings(picture.settings),
        }

    def _membership(self, node: NodeView) -> dict[str, Any]:
        picture = self._hub.picture
        return messages.membership(
            node,
            picture.networks[node.network_id],
            self._tokens[node.id],
            [self._peer(node.id, other) for other in picture.nodes_in(node.network_id) if other.id != node.id],
            [messages.route(route) for route in picture.routes_in(node.network_id)],
        )

    def _peer(self, own_id: int, other: NodeView) -> dict[str, Any]:
        hub = self._hub
        return messages.peer(
            other, hub.is_online(other.id), hub.relays_of(other.id), hub.paths.choice(own_id, other.id)
        )

    def _delta(self, rows: list[ChangeRow], authorised: set[int], dirty: set[int]) -> dict[str, Any]:
        changes = self._common_changes(rows)
        whole: set[int] = set()
        for own_id, network_id in list(self.node_ids.items()):
            mine = [row for row in rows if row.network_id == network_id]
            about_me = [row for row in mine if row.entity == "node" and row.entity_id == own_id]
            if own_id not in authorised:
                if own_id in self._authorised:
                    reason = about_me[-1].reason if about_me else "revoked"
                    changes.append({"op": "membership_remove", "node_id": own_id, "reason": reason})
                if own_id not in self._hub.picture.nodes:
                    del self.node_ids[own_id]
                continue
            renewed = own_id not in self._authorised or any(row.reason != "node_key" for row in about_me)
            if renewed or any(row.entity == "network" for row in mine):
                node = self._hub.picture.nodes[own_id]
                changes.append({"op": "membership_set", "membership": self._membership(node)})
                whole.add(own_id)
            else:
                changes += self._network_changes(own_id, mine, {i for i in dirty if self._is_peer(i, network_id)})
        fresh, self._fresh = self._fresh, set()
        changes += [self._token_change(own_id) for own_id in sorted((fresh & authorised) - whole)]
        versioned = bool(rows) and bool(changes)
        return {
            "version": self._hub.picture.head if versioned else self._version,
            "base": self._version,
            "changes": changes,
        }

    def _is_peer(self, node_id: int, network_id: int) -> bool:
        node = self._hub.picture.nodes.get(node_id)
        return node is not None and node.network_id == network_id

    def _common_changes(self, rows: list[ChangeRow]) -> list[dict[str, Any]]:
        picture = self._hub.picture
        changes: list[dict[str, Any]] = []
        for relay_id in dict.fromkeys(row.entity_id for row in rows if row.entity == "relay"):
            server = picture.relays.get(relay_id)
            relay = messages.relay_for_node(server) if server else None
            if relay is not None:
                changes.append({"op": "relay_set", "relay": relay})
            else:
                changes.append({"op": "relay_remove", "relay_id": relay_id})
        if any(row.entity == "settings" for row in rows):
            changes.append({"op": "settings_set", "settings": messages.node_settings(picture.settings)})
        return changes

    def _network_changes(self, own_id: int, rows: list[ChangeRow], dirty: set[int]) -> list[dict[str, Any]]:
        picture = self._hub.picture
        changes: list[dict[str, Any]] = []
        peers = dict.fromkeys(row.entity_id for row in rows if row.entity == "node")
        for peer_id in [*peers, *(dirty - peers.keys())]:
            node = picture.nodes.get(peer_id)
            if peer_id == own_id:
                continue
            if node is not None and node.authorized:
                changes.append({"op": "peer_set", "node_id": own_id, "peer": self._peer(own_id, node)})
            else:
                changes.append({"op": "peer_remove", "node_id": own_id, "peer_id": peer_id})
        for route_id in dict.fromkeys(row.entity_id for row in rows if row.entity == "route"):
            if picture.has_route(route_id):
                route = messages.route(picture.routes[route_id])
                changes.append({"op": "route_set", "node_id": own_id, "route": route})
            else:
                changes.append({"op": "route_remove", "node_id": own_id, "route_id": route_id})
        return changes

    def _token_change(self, own_id: int) -> dict[str, Any]:
        token = self._tokens[own_id]
        return {
            "op": "token_set",
            "node_id": own_id,
            "relay_token": token.token,
            "relay_token_expires": token.expires_at,
        }

    # Tokens

    async def _renew_tokens(self, *, everything: bool = False) -> None:
        now = self._hub.store.clock.now()
        authorised = self._authorised_now()
        for node_id, token in list(self._tokens.items()):
            # A node may have been revoked and let in again between two looks: then its old token is void all the same.
            if node_id not in authorised or self._hub.picture.is_void(node_id, token):
                del self._tokens[node_id]
                self._auth_renew_at = 0.0
        due = {node_id for node_id in authorised if everything or now >= self._renew_at.get(node_id, 0)}
        due |= authorised - self._tokens.keys()
        auth_due = authorised and (everything or now >= self._auth_renew_at)
        if due or auth_due:
            await self._issue_tokens(due)
            if auth_due and self._authorised:
                await self._send_auth_response()

    async def _issue_tokens(self, node_ids: set[int]) -> None:
        hub = self._hub
        authorised = self._authorised_now()
        now = hub.store.clock.now()
        if not authorised:
            self._auth_token, self._auth_renew_at = None, 0.0
            return
        async with hub.store.write(self._actor) as uow:
            tokens = TokenService(uow)
            for node_id in node_ids & authorised:
                issued = await tokens.issue_relay(node_id=node_id, network_id=self.node_ids[node_id])
                self._tokens[node_id] = issued
                self._renew_at[node_id] = _renewal(now, issued.expires_at, RELAY_RENEW_S)
                self._fresh.add(node_id)
            if now >= self._auth_renew_at or self._auth_token is None:
                first = hub.picture.nodes[min(authorised)]
                self._auth_token = await RegistrationService(uow).issue_auth_token(first)
                self._auth_renew_at = _renewal(now, self._auth_token.expires_at, AUTH_RENEW_S)

    # What comes in

    async def _on_update(self, message: dict[str, Any]) -> None:
        claim = parse_node_key(message.get("node_key"), self._machine_key)
        routes = parse_routes(message.get("routes"))
        endpoints = parse_endpoints(message.get("endpoints"))
        if claim or routes is not None or endpoints is not None:
            try:
                async with self._hub.store.write(self._actor) as uow:
                    registration = RegistrationService(uow)
                    if claim:
                        await registration.rotate_node_key(self.machine_id, claim)
                    if routes is not None:
                        await registration.advertise(self.machine_id, routes)
                    if endpoints is not None:
                        await registration.set_endpoints(self.machine_id, endpoints)
            except Problem as problem:
                raise Refused(MALFORMED, problem.detail) from None
        if message.get("resync"):
            self._version = 0
            self.wake()
        if message.get("refresh_tokens"):
            self._renew_at.clear()
            self._auth_renew_at = 0.0
            self.wake()

    def _on_latency(self, message: dict[str, Any]) -> None:
        source = message["from"]
        if source.get("kind") != "node" or source.get("id") not in self.node_ids:
            raise Refused(MALFORMED, "from: not a node of this machine")
        self._hub.note_latency(parse_samples("node", int(source["id"]), message["samples"]))

    def _authorised_now(self) -> set[int]:
        nodes = self._hub.picture.nodes
        return {node_id for node_id in self.node_ids if node_id in nodes and nodes[node_id].authorized}

    def _networks(self) -> list[int | None]:
        return [None, *set(self.node_ids.values())]


def _renewal(now: float, expires: int, margin: float) -> float:
    return expires - min(margin, (expires - now) / 3)


def parse_node_key(value: Any, machine_key: bytes) -> NodeKeyClaim | None:
    """A node_key with a good signature, None when there is none. Raises `Refused` 1004, 1005."""
    if value is None:
        return None
    try:
        claim = NodeKeyClaim.parse(value)
    except BadKey as error:
        raise Refused(INVALID_KEY, f"node_key: {error}") from None
    if not verify_node_key(machine_key, claim):
        raise Refused(BAD_SIGNATURE, "node_key: the signature is not by this machine")
    return claim


def check_node_key_form(value: Any) -> None:
    """Raises `Refused` 1004 for a node_key whose parts are not keys."""
    if isinstance(value, dict):
        try:
            NodeKeyClaim.parse(value)
        except BadKey as error:
            raise Refused(INVALID_KEY, f"node_key: {error}") from None


def parse_machine_key(value: Any) -> bytes:
    try:
        return decode_key(value)
    except BadKey as error:
        raise Refused(INVALID_KEY, f"machine_key: {error}") from None


def parse_routes(value: Any) -> list[Advertised] | None:
    if value is None:
        return None
    return [Advertised(str(r["cidr"]), int(r.get("priority", 100)), int(r.get("weight", 100))) for r in value]


def parse_endpoints(value: Any) -> list[tuple[str, str]] | None:
    """(kind, address) pairs: what peers could not read would cost them their whole configuration."""
    if value is None:
        return None
    return [(str(entry["kind"])[:MAX_KIND], _socket_address(str(entry["address"]))) for entry in value]


def _socket_address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        raise ValueError(f"{text[:64]!r} is no address with a port")
    if host.startswith("[") and host.endswith("]"):
        return f"[{ipaddress.IPv6Address(host[1:-1])}]:{int(port)}"
    return f"{ipaddress.IPv4Address(host)}:{int(port)}"


def parse_samples(kind: str, own_id: int, samples: list[dict[str, Any]]) -> list[Sample]:
    """Measurements that make sense; others are left out."""
    if len(samples) > MAX_SAMPLES:
        raise Refused(MALFORMED, f"samples: at most {MAX_SAMPLES}")
    found = []
    for sample in samples:
        to, rtt = sample.get("to", {}), sample.get("rtt_ms")
        if to.get("kind") in ("node", "relay") and isinstance(rtt, int | float) and 0 <= rtt <= MAX_RTT_MS:
            found.append(Sample((kind, own_id), (str(to["kind"]), int(to["id"])), float(rtt)))
    return found
