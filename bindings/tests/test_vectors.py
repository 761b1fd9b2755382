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
    both = meshdp.NodeKey.from_private(raw["node_private"], raw["kem_private"])
    assert (both.kem_public, both.kem_private) == (raw["kem"], raw["kem_private"])
    with_kem = raw["node_key_signature_with_kem"]
    assert meshdp.sign_node_key(machine, node.public, case["created"], both.kem_public) == with_kem
    assert meshdp.verify_node_key(machine.public, node.public, case["created"], with_kem, raw["kem"])
    assert not meshdp.verify_node_key(machine.public, node.public, case["created"], with_kem)
    assert not meshdp.verify_node_key(machine.public, node.public, case["created"], with_kem, raw["kem"][1:])
    assert meshdp.verify_control(machine.public, raw["nonce"], case["controller"], raw["control_signature"])
    assert not meshdp.verify_control(machine.public, raw["nonce"], "elsewhere.example", raw["control_signature"])


@pytest.mark.parametrize("case", vectors("tokens")["cases"], ids=lambda case: case["what"])
def test_tokens(case: dict[str, Any]) -> None:
    """Signature, algorithm, type, audience, issuer and dates; which relay is the relay's business."""
    file = vectors("tokens")
    verifier = meshdp.TokenVerifier(file["algorithm"], file["keys"])
    if case["code"] is None or case["what"] == "of another relay":
        claims = verifier.verify(case["token"], audience="relay", typ="relay", now=file["now"])
        assert claims["node_id"] == 17
        return
    with pytest.raises(meshdp.TokenError) as caught:
        verifier.verify(case["token"], audience="relay", typ="relay", now=file["now"])
    assert caught.value.code == case["code"]


def test_what_we_sign_we_accept() -> None:
    """All algorithms but RSA, whose keys take long to make."""
    claims = {"typ": "server", "jti": "x", "iat": 1000, "exp": 2000, "server_id": 3, "server_name": "r"}
    claims |= {"capabilities": ["relay"], "region": ""}
    for signer in (meshdp.TokenSigner.eddsa(bytes(32), "a"), meshdp.TokenSigner.hs256(bytes(range(32)), "a")):
        token = signer.sign(claims)
        verifier = meshdp.TokenVerifier(signer.algorithm, [signer.verification_key()])
        seen = verifier.verify(token, audience="controller", typ="server", now=1500)
        assert seen["server_id"] == 3
        with pytest.raises(meshdp.TokenError, match="expired"):
            verifier.verify(token, audience="controller", typ="server", now=2006)
