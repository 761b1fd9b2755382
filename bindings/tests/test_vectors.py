"""Holds the wheel against docs/vectors, which an implementation that shares no code with it wrote."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

import meshdp

VECTORS = Path(__file__).parents[2] / "docs" / "vectors"


def vectors(name: str) -> Any:
    """One file of vectors."""
    return json.loads((VECTORS / f"{name}.json").read_text())


@pytest.mark.parametrize("case", vectors("frames")["valid"], ids=lambda case: case["what"])
def test_valid_messages_decode(case: dict[str, Any]) -> None:
    """What the codec hands out is what the vectors list."""
    got = meshdp.FrameDecoder().feed(bytes.fromhex(case["message"]))
    assert got == [(f["type"], f["flags"], bytes.fromhex(f["payload"])) for f in case["frames"]]


@pytest.mark.parametrize("case", vectors("frames")["invalid"], ids=lambda case: case["what"])
def test_invalid_messages_are_refused_with_their_code(case: dict[str, Any]) -> None:
    """Each kind of damage has its number."""
    with pytest.raises(meshdp.FrameError) as caught:
        meshdp.FrameDecoder().feed(bytes.fromhex(case["message"]))
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", vectors("keys")["identities"])
def test_keys_and_signatures(case: dict[str, Any]) -> None:
    """Keys, ids and signatures agree with the independent implementation."""
    raw = {
        name: base64.b64decode(value) for name, value in case.items() if isinstance(value, str) and name != "controller"
    }
    machine = meshdp.MachineKey.from_seed(raw["machine_seed"])
    node = meshdp.NodeKey.from_private(raw["node_private"])
    assert machine.public == raw["machine_key"]
    assert node.public == raw["node_key"]
    assert meshdp.key_id(node.public) == case["key_id"]
    assert meshdp.sign_node_key(machine, node.public, case["created"]) == raw["node_key_signature"]
    assert meshdp.sign_control(machine, raw["nonce"], case["controller"]) == raw["control_signature"]
    assert meshdp.verify_node_key(machine.public, node.public, case["created"], raw["node_key_signature"])
    assert not meshdp.verify_node_key(machine.public, node.public, case["created"] + 1, raw["node_key_signature"])
    assert meshdp.verify_control(machine.public, raw["nonce"], case["controller"], raw["control_signature"])
    assert not meshdp.verify_control(machine.public, raw["nonce"], "elsewhere.example", raw["control_signature"])
