"""Networks and their address space. Whose host number is whose is kept by the nodes package."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass

from edgelink_controller.audit.service import AuditService
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.kit.errors import Conflict, NoFreeAddress, NotFound
from edgelink_controller.kit.paging import Page, Paging
from edgelink_controller.kit.store import Uow
from edgelink_controller.networks import addressing
from edgelink_controller.networks.models import Network
from edgelink_controller.networks.repository import NetworkRepository
from edgelink_controller.networks.schemas import NetworkCreate, NetworkOut, NetworkUpdate

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class NetworkView:
    """A network as other domains see it."""

    id: int
    name: str
    subnet4: ipaddress.IPv4Network
    subnet6: ipaddress.IPv6Network
    reserved: tuple[str, ...]

    def overlaps(self, other: NetworkView) -> bool:
        return self.subnet4.overlaps(other.subnet4) or self.subnet6.overlaps(other.subnet6)

    def free_host(self, used: Iterable[int]) -> int:
        """The host number for a new node. Raises `NoFreeAddress`."""
        reserved = addressing.reserved_hosts(self.subnet4, self.reserved)
        host = addressing.first_free(addressing.host_range(self.subnet4), used, reserved)
        if host is None:
            raise NoFreeAddress(f"no free address in network {self.name} ({self.subnet4})")
        return host

    def addresses(self, host: int) -> tuple[str, str]:
        """The IPv4 and the IPv6 address of a host number."""
        return addressing.address4(self.subnet4, host), addressing.address6(self.subnet6, host)


class NetworkService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = NetworkRepository(uow.session)
        self._audit = AuditService(uow)
        self._changes = ChangeService(uow)

    async def ensure_configured(self) -> None:
        """Create the networks of the configuration that do not exist; those that do are left as they are."""
        for wanted in self._uow.config.networks:
            if await self._rows.by_name(wanted.name) is None:
                await self.create(NetworkCreate(name=wanted.name, subnet=wanted.subnet, subnet6=wanted.subnet6))

    async def create(self, wanted: NetworkCreate) -> NetworkOut:
        """Raises `Conflict` for a name that is taken, `Invalid` for subnets that nodes cannot have."""
        subnet4 = addressing.parse_subnet4(wanted.subnet)
        subnet6 = addressing.parse_subnet6(wanted.subnet6) if wanted.subnet6 else addressing.random_subnet6()
        addressing.reserved_hosts(subnet4, wanted.reserved)
        await self._refuse_taken(wanted.name)
        if any(row.subnet6 == str(subnet6) for row in await self._rows.all()):
            raise Conflict(f"another network has {subnet6}")
        now = self._uow.now()
        row = Network(
            name=wanted.name,
            subnet4=str(subnet4),
            subnet6=str(subnet6),
            reserved=json.dumps(wanted.reserved),
            description=wanted.description,
            created_at=now,
            updated_at=now,
        )
        await self._rows.add(row)
        await self._changes.record("network", row.id, network_id=row.id)
        await self._audit.record("network.create", "network", row.id, name=row.name, subnet=row.subnet4)
        return await self._shown(row)

    async def update(self, network_id: int, wanted: NetworkUpdate) -> NetworkOut:
        row = await self._get(network_id)
        if wanted.name is not None and wanted.name != row.name:
            await self._refuse_taken(wanted.name)
            row.name = wanted.name
        if wanted.reserved is not None:
            addressing.reserved_hosts(ipaddress.IPv4Network(row.subnet4), wanted.reserved)
            row.reserved = json.dumps(wanted.reserved)
        if wanted.description is not None:
            row.description = wanted.description
        row.updated_at = self._uow.now()
        await self._changes.record("network", row.id, network_id=row.id)
        await self._audit.record("network.update", "network", row.id, **wanted.model_dump(exclude_none=True))
        return await self._shown(row)

    async def remove(self, network_id: int) -> None:
        """Take away an empty network; the nodes package empties it first."""
        row = await self._get(network_id)
        await self._rows.remove(row)
        await self._changes.record("network", network_id, network_id=network_id, reason="deleted")
        await self._audit.record("network.delete", "network", network_id, name=row.name)

    async def show(self, network_id: int) -> NetworkOut:
        return await self._shown(await self._get(network_id))

    async def page(self, paging: Paging, name: str | None = None) -> Page[NetworkOut]:
        rows, total = await self._rows.page(paging, name)
        return Page.of([await self._shown(row) for row in rows], total, paging)

    async def view(self, network_id: int) -> NetworkView:
        return _view(await self._get(network_id))

    async def views(self) -> list[NetworkView]:
        return [_view(row) for row in await self._rows.all()]

    async def find(self, name: str) -> NetworkView | None:
        """By name, or None."""
        row = await self._rows.by_name(name)
        return _view(row) if row else None

    async def default(self) -> NetworkView | None:
        """The network for machines that ask for none: `default`, else the oldest."""
        row = await self._rows.by_name(DEFAULT) or await self._rows.first()
        return _view(row) if row else None

    async def _get(self, network_id: int) -> Network:
        row = await self._rows.get(network_id)
        if row is None:
            raise NotFound(f"no network {network_id}")
        return row

    async def _refuse_taken(self, name: str) -> None:
        if await self._rows.by_name(name) is not None:
            raise Conflict(f"there is a network {name} already")

    async def _shown(self, row: Network) -> NetworkOut:
        return NetworkOut(
            id=row.id,
            name=row.name,
            subnet=row.subnet4,
            subnet6=row.subnet6,
            reserved=json.loads(row.reserved),
            description=row.description,
            revision=await self._changes.network_revision(row.id),
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


def _view(row: Network) -> NetworkView:
    return NetworkView(
        row.id,
        row.name,
        ipaddress.IPv4Network(row.subnet4),
        ipaddress.IPv6Network(row.subnet6),
        tuple(json.loads(row.reserved)),
    )
