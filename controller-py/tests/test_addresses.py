from __future__ import annotations

import ipaddress
from pathlib import Path

import meshdp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshdp import FrameType

from edgelink_controller.config import load
from edgelink_controller.kit.errors import Conflict, Invalid
from edgelink_controller.kit.store import Store
from edgelink_controller.networks import addressing
from edgelink_controller.networks.schemas import NetworkCreate
from edgelink_controller.networks.service import NetworkService
from edgelink_controller.nodes.registration import RegistrationService, SignedIn, SignIn
from edgelink_controller.nodes.service import NodeService
from edgelink_controller.runtime import open_store, prepare
from tests.conftest import Running


@given(
    prefix=st.integers(24, 30),
    used=st.sets(st.integers(0, 255)),
    reserved=st.lists(st.tuples(st.integers(0, 250), st.integers(1, 20)), max_size=4),
)
def test_first_free_is_the_lowest_that_nobody_has(prefix: int, used: set[int], reserved: list[tuple[int, int]]) -> None:
    subnet = ipaddress.IPv4Network((0x0A000100, prefix))
    hosts = addressing.host_range(subnet)
    ranges = [range(start, start + length) for start, length in reserved]
    free = [h for h in hosts if h not in used and not any(h in r for r in ranges)]
    assert addressing.first_free(hosts, used, ranges) == (free[0] if free else None)


@given(st.integers(8, 30))
def test_network_and_broadcast_are_never_given_away(prefix: int) -> None:
    subnet = ipaddress.IPv4Network((0x0A000000, prefix), strict=False)
    hosts = addressing.host_range(subnet)
    assert addressing.address4(subnet, hosts[0]) == str(subnet.network_address + 1)
    assert addressing.address4(subnet, hosts[-1]) == str(subnet.broadcast_address - 1)


def test_random_subnets_are_unique_local() -> None:
    made = {addressing.random_subnet6() for _ in range(50)}
    assert len(made) == 50
    assert all(addressing.parse_subnet6(str(subnet)) == subnet for subnet in made)


@pytest.mark.parametrize("text", ["10.0.1.1/24", "10.0.0.0/31", "127.0.0.0/8", "224.0.0.0/8", "fd00::/64", "rubbish"])
def test_subnets_that_nodes_cannot_have(text: str) -> None:
    with pytest.raises(Invalid):
        addressing.parse_subnet4(text)


@pytest.fixture
async def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = open_store(load(None, {}), tmp_path)
    await prepare(made)
    yield made
    await made.database.close()


async def sign_in(store: Store, key: bytes, networks: tuple[str, ...] = ()) -> SignedIn:
    request = SignIn(key, None, "host", "linux", "x86_64", "0.1.0", networks, None, None)
    async with store.write() as uow:
        return await RegistrationService(uow).sign_in(request)


async def test_three_hundred_machines_in_a_slash_24(store: Store) -> None:
    addresses, refused = set(), []
    for number in range(300):
        signed_in = await sign_in(store, number.to_bytes(32, "big"))
        addresses |= {(node.address4, node.address6) for node in signed_in.nodes}
        refused += signed_in.refused
    assert len(addresses) == 254
    assert len({v4 for v4, _ in addresses}) == len({v6 for _, v6 in addresses}) == 254
    assert set(refused) == {"no free address in network default (10.0.1.0/24)"}
    assert len(refused) == 46

    async with store.write() as uow:
        known = await NodeService(uow).views()
        victim = next(node for node in known if node.address4 == "10.0.1.77")
        await NodeService(uow).delete(victim.id)
    (again,) = (await sign_in(store, b"n" * 32)).nodes
    assert (again.address4, again.address6) == (victim.address4, victim.address6)
    assert again.id != victim.id


async def test_a_machine_keeps_its_address(store: Store) -> None:
    first = (await sign_in(store, b"a" * 32)).nodes
    await sign_in(store, b"b" * 32)
    async with store.write() as uow:
        await NodeService(uow).authorize(first[0].id)
    async with store.write() as uow:
        await NodeService(uow).deauthorize(first[0].id)
    assert [node.address4 for node in (await sign_in(store, b"a" * 32)).nodes] == [first[0].address4]


async def test_reserved_addresses_stay_free(store: Store) -> None:
    async with store.write() as uow:
        wanted = NetworkCreate(name="kept", subnet="10.9.0.0/24", reserved=["10.9.0.0/30", "10.9.0.5"])
        await NetworkService(uow).create(wanted)
    given = [(await sign_in(store, bytes([n]) * 32, ("kept",))).nodes[0].address4 for n in range(3)]
    assert given == ["10.9.0.4", "10.9.0.6", "10.9.0.7"]


async def test_overlapping_networks_cannot_meet_on_one_machine(store: Store) -> None:
    async with store.write() as uow:
        await NetworkService(uow).create(NetworkCreate(name="big", subnet="10.0.0.0/16"))
        with pytest.raises(Conflict):
            await NetworkService(uow).create(NetworkCreate(name="big", subnet="10.5.0.0/16"))
    signed_in = await sign_in(store, b"a" * 32, ("default", "big"))
    assert [node.address4 for node in signed_in.nodes] == ["10.0.1.1"]
    assert "big (10.0.0.0/16) overlaps network default (10.0.1.0/24)" in signed_in.refused[0]


async def test_a_full_network_answers_4002_and_the_channel_says_which(open_running: Running) -> None:
    async with open_running.store.write() as uow:
        await NetworkService(uow).create(NetworkCreate(name="tiny", subnet="10.8.0.0/30"))
    nodes = [await open_running.node(networks=["tiny"]) for _ in range(3)]
    answers = [await node.next() for node in nodes]
    assert [kind for kind, _ in answers] == [FrameType.CONFIG, FrameType.CONFIG, FrameType.ERROR]
    assert answers[2][1]["code"] == 4002
    assert answers[2][1]["message"] == "no free address in network tiny (10.8.0.0/30)"
    for node in nodes:
        await node.close()


async def test_one_machine_in_two_networks(open_running: Running) -> None:
    async with open_running.store.write() as uow:
        await NetworkService(uow).create(NetworkCreate(name="second", subnet="10.7.0.0/24"))
    node = await open_running.node(machine=meshdp.MachineKey.generate(), networks=["default", "second"])
    config = await node.expect(FrameType.CONFIG)
    assert [m["network"]["name"] for m in config["memberships"]] == ["default", "second"]
    alone = await open_running.node(networks=["second"])
    membership = (await alone.expect(FrameType.CONFIG))["memberships"][0]
    assert [peer["node_id"] for peer in membership["peers"]] == [config["memberships"][1]["node_id"]]
    await node.close()
    await alone.close()
