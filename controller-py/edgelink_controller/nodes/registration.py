"""A machine signs in: it is known or becomes known, and gets a place in each network that it asks for.

Signatures have been checked before (control/). An address belongs to (machine_key, network) as long as the
membership exists, authorised or not.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgelink_controller.audit.service import AuditService
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.core import NodeKeyClaim, decode_key, encode_bytes
from edgelink_controller.kit.errors import Conflict, NotFound, Problem
from edgelink_controller.kit.store import Uow
from edgelink_controller.networks.service import NetworkService, NetworkView
from edgelink_controller.nodes.models import Machine, Node
from edgelink_controller.nodes.repository import NodeRepository
from edgelink_controller.nodes.service import NodeView, view
from edgelink_controller.routes.service import Advertised, RouteService
from edgelink_controller.settings.service import SettingService
from edgelink_controller.tokens.service import Issued, TokenService

MAX_ENDPOINTS = 32
MAX_NETWORKS = 64


@dataclass(frozen=True, slots=True)
class SignIn:
    """What a machine says of itself. `routes` None: it says nothing about routes."""

    machine_key: bytes
    node_key: NodeKeyClaim | None
    hostname: str
    os: str
    arch: str
    version: str
    networks: Sequence[str]
    enrolment_key: str | None
    routes: Sequence[Advertised] | None


@dataclass(frozen=True, slots=True)
class SignedIn:
    """`refused` has a line for each network that could not be joined."""

    machine_id: int
    nodes: list[NodeView]
    refused: list[str]


class RegistrationService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = NodeRepository(uow.session)
        self._networks = NetworkService(uow)
        self._routes = RouteService(uow)
        self._changes = ChangeService(uow)
        self._audit = AuditService(uow)

    async def sign_in(self, request: SignIn) -> SignedIn:
        """Register what is new and refresh what is known. Problems with one network leave the others alone."""
        machine = await self._machine(request)
        wanted, refused = await self._wanted(machine, request.networks)
        known = {node.network_id: node for node in await self._rows.of_machine(machine.id)}
        for network in wanted:
            if network.id not in known:
                try:
                    known[network.id] = await self._join(machine, network, list(known), request)
                except Problem as problem:
                    refused.append(problem.detail)
        if not known:
            # Nothing came of it: leave no machine without a membership behind.
            await self._rows.remove(machine)
        elif request.node_key is not None:
            await self.rotate_node_key(machine.id, request.node_key)
        if known and request.routes is not None:
            await self.advertise(machine.id, request.routes)
        return SignedIn(machine.id, [view(node, machine) for node in known.values()], refused)

    async def _machine(self, request: SignIn) -> Machine:
        key = encode_bytes(request.machine_key)
        machine = await self._rows.machine(key)
        if machine is None:
            machine = Machine(machine_key=key, hostname="", os="", arch="", version="", created_at=self._uow.now())
            await self._rows.add(machine)
        machine.hostname, machine.os = request.hostname[:255], request.os[:50]
        machine.arch, machine.version = request.arch[:50], request.version[:50]
        return machine

    async def _wanted(self, machine: Machine, names: Sequence[str]) -> tuple[list[NetworkView], list[str]]:
        if len(names) > MAX_NETWORKS:
            return [], [f"at most {MAX_NETWORKS} networks per machine"]
        if not names:
            if await self._rows.of_machine(machine.id):
                return [], []
            default = await self._networks.default()
            return ([default], []) if default else ([], ["there is no network yet"])
        found, refused = [], []
        for name in dict.fromkeys(names):
            network = await self._networks.find(name)
            if network is None:
                refused.append(f"no network {name}")
            else:
                found.append(network)
        return found, refused

    async def _join(self, machine: Machine, network: NetworkView, joined: list[int], request: SignIn) -> Node:
        for other_id in joined:
            other = await self._networks.view(other_id)
            if network.overlaps(other):
                raise Conflict(
                    f"network {network.name} ({network.subnet4}) overlaps network {other.name} ({other.subnet4}), "
                    "which this machine is in"
                )
        host = network.free_host(await self._rows.hosts(network.id))
        address4, address6 = network.addresses(host)
        now = self._uow.now()
        node = Node(
            machine_id=machine.id,
            network_id=network.id,
            name=await self._free_name(network.id, request.hostname),
            host=host,
            virtual_ip=address4,
            virtual_ip6=address6,
            authorized=await self._is_let_in(network, request.enrolment_key),
            online=False,
            created_at=now,
            updated_at=now,
        )
        await self._rows.add(node)
        await self._changes.record("node", node.id, network_id=network.id, machine_id=machine.id, reason="registered")
        await self._audit.record(
            "node.register",
            "node",
            node.id,
            name=node.name,
            network=network.name,
            address=address4,
            machine_key=machine.machine_key,
            authorized=node.authorized,
        )
        return node

    async def _is_let_in(self, network: NetworkView, enrolment_key: str | None) -> bool:
        settings = await SettingService(self._uow).effective()
        security = self._uow.config.security
        expected = security.enrolment_key
        with_key = expected is not None and hmac.compare_digest(expected.encode(), (enrolment_key or "").encode())
        return not settings["security.require_authorization"] or network.name in security.auto_authorize or with_key

    async def _free_name(self, network_id: int, hostname: str) -> str:
        base = re.sub(r"[^a-z0-9-]+", "-", hostname.lower().split(".")[0]).strip("-")[:56].strip("-") or "node"
        taken = set(await self._rows.names_from(network_id, base))
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name

    async def rotate_node_key(self, machine_id: int, claim: NodeKeyClaim) -> bool:
        """Take a node_key whose signature was checked; False when it is the present one.

        The newest word of the machine counts, whatever `created` says: its clock may have been set back.
        """
        machine = await self._rows.machine_by_id(machine_id)
        if machine is None:
            raise NotFound("the machine is not registered any more")
        public, signature = encode_bytes(claim.public), encode_bytes(claim.signature)
        if machine.node_key == public and machine.node_key_signature == signature:
            return False
        machine.node_key, machine.node_key_created, machine.node_key_signature = public, claim.created, signature
        machine.node_key_kem = encode_bytes(claim.kem) if claim.kem else None
        for node in await self._rows.of_machine(machine_id):
            # No machine_id: its own configuration is the same, only its peers' is not.
            await self._changes.record("node", node.id, network_id=node.network_id, reason="node_key")
            await self._audit.record("node.key", "node", node.id, created=claim.created)
        return True

    async def advertise(self, machine_id: int, routes: Sequence[Advertised]) -> None:
        """Routes hold for every network that the machine is in. Raises `Invalid`."""
        for node in await self._rows.of_machine(machine_id):
            await self._routes.advertise(node.id, node.network_id, routes)

    async def set_endpoints(self, machine_id: int, endpoints: Sequence[tuple[str, str]]) -> None:
        """Replace the (kind, address) list of a machine; its peers are told when it is another one."""
        wanted = list(dict.fromkeys(endpoints))[:MAX_ENDPOINTS]
        known = await self._rows.endpoints([machine_id])
        if known.get(machine_id, []) == wanted:
            return
        await self._rows.replace_endpoints(machine_id, wanted, self._uow.now())
        for node in await self._rows.of_machine(machine_id):
            await self._changes.record("node", node.id, network_id=node.network_id, reason="endpoints")

    async def issue_auth_token(self, node: NodeView) -> Issued:
        digest = hashlib.sha256(decode_key(node.machine_key)).hexdigest()
        return await TokenService(self._uow).issue_auth(
            node_id=node.id,
            network_id=node.network_id,
            virtual_ip=node.address4,
            machine_key_hash=f"sha256:{digest}",
        )
