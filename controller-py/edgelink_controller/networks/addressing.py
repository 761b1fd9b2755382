"""Addresses as arithmetic: a node has a host number, and both of its addresses follow from that.

The IPv4 address is the subnet's base plus the host number, the IPv6 address the /64 plus the same number; so the two
are recognisable as a pair and one unique column keeps both unique.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable

from edgelink_controller.kit.errors import Invalid

MIN_PREFIX, MAX_PREFIX = 8, 30


def parse_subnet4(text: str) -> ipaddress.IPv4Network:
    """A private-use or shared IPv4 subnet of /8 to /30. Raises `Invalid`."""
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise Invalid(f"subnet {text}: {error}", key="subnet") from None
    if not MIN_PREFIX <= subnet.prefixlen <= MAX_PREFIX:
        raise Invalid(f"subnet {text}: the prefix length must be {MIN_PREFIX} to {MAX_PREFIX}", key="subnet")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_unspecified:
        raise Invalid(f"subnet {text}: nodes cannot have such addresses", key="subnet")
    return subnet


def parse_subnet6(text: str) -> ipaddress.IPv6Network:
    """A /64 of the unique local range. Raises `Invalid`."""
    try:
        subnet = ipaddress.IPv6Network(text)
    except ValueError as error:
        raise Invalid(f"subnet6 {text}: {error}", key="subnet6") from None
    if subnet.prefixlen != 64 or not subnet.subnet_of(ipaddress.IPv6Network("fd00::/8")):
        raise Invalid(f"subnet6 {text}: expected a /64 within fd00::/8", key="subnet6")
    return subnet


def random_subnet6() -> ipaddress.IPv6Network:
    """RFC 4193: 40 random bits of global id; 16 more for the subnet, so that networks do not share a /48."""
    prefix = (0xFD << 56) | secrets.randbits(56)
    return ipaddress.IPv6Network((prefix << 64, 64))


def host_range(subnet: ipaddress.IPv4Network) -> range:
    """Host numbers that nodes may have: without the network's own and the broadcast address."""
    return range(1, subnet.num_addresses - 1)


def reserved_hosts(subnet: ipaddress.IPv4Network, reserved: Iterable[str]) -> list[range]:
    """The host numbers that an operator keeps back. Raises `Invalid` for what is not inside the subnet."""
    ranges = []
    for text in reserved:
        try:
            part = ipaddress.IPv4Network(text, strict=False)
        except ValueError as error:
            raise Invalid(f"reserved {text}: {error}", key="reserved") from None
        if not part.subnet_of(subnet):
            raise Invalid(f"reserved {text}: not within {subnet}", key="reserved")
        first = int(part.network_address) - int(subnet.network_address)
        ranges.append(range(first, first + part.num_addresses))
    return ranges


def first_free(hosts: range, used: Iterable[int], reserved: Iterable[range] = ()) -> int | None:
    """The lowest host number that is neither used nor reserved; None when the subnet is full."""
    taken = set(used)
    kept = sorted(reserved, key=lambda r: r.start)
    candidate = hosts.start
    while candidate < hosts.stop:
        inside = next((r for r in kept if candidate in r), None)
        if inside is not None:
            candidate = inside.stop
        elif candidate in taken:
            candidate += 1
        else:
            return candidate
    return None


def address4(subnet: ipaddress.IPv4Network, host: int) -> str:
    return str(subnet.network_address + host)


def address6(subnet: ipaddress.IPv6Network, host: int) -> str:
    return str(subnet.network_address + host)
