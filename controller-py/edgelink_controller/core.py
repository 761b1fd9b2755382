"""The one door to the `meshdp` wheel: frames, keys, signatures, tokens, paths, the built-in relay.

Nothing else imports `meshdp`, so the wheel's surface that Python depends on can be read here. What the protocol
means is in docs/protocol.md; this module adds the text form of keys and typed results.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import meshdp
from meshdp import FrameDecoder, FrameError, FrameType, MeshError, MessageError, Relay, StunServer, TokenError

__all__ = [
    "FLAG_ACK_WANTED",
    "MAX_MESSAGE_BYTES",
    "BadKey",
    "FrameDecoder",
    "FrameError",
    "FrameType",
    "Keyring",
    "MeshError",
    "MessageError",
    "NodeKeyClaim",
    "Relay",
    "StunServer",
    "TokenError",
    "best_paths",
    "decode_control",
    "decode_json",
    "decode_key",
    "encode_bytes",
    "encode_control",
    "encode_frame",
    "verify_control",
    "verify_node_key",
]

FLAG_ACK_WANTED = 0x01
# One whole control message to the controller is at most 4 MiB (docs/protocol.md 1.3); the rest is room for the headers of its fragments.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024 + 64 * 1024
KEY_BYTES = 32
KEM_KEY_BYTES = 1184
SIGNATURE_BYTES = 64


class BadKey(ValueError):
    """Text that is not standard base64 of the expected number of bytes."""


@dataclass(frozen=True, slots=True)
class NodeKeyClaim:
    """A node_key as its machine signed it. `kem` is its ML-KEM-768 key, `created` in unix seconds."""

    public: bytes
    kem: bytes | None
    created: int
    signature: bytes

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> NodeKeyClaim:
        """Read the JSON form of docs/protocol.md 3.1. Raises `BadKey`."""
        kem = value.get("kem")
        return cls(
            public=decode_key(value.get("public"), KEY_BYTES),
            kem=None if kem is None else decode_key(kem, KEM_KEY_BYTES),
            created=int(value.get("created", 0)),
            signature=decode_key(value.get("signature"), SIGNATURE_BYTES),
        )


def decode_key(text: object, length: int = KEY_BYTES) -> bytes:
    """Bytes of a key, nonce or signature in standard base64. Raises `BadKey`."""
    if not isinstance(text, str):
        raise BadKey("expected base64 text")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadKey("not standard base64") from error
    if len(raw) != length:
        raise BadKey(f"expected {length} bytes, got {len(raw)}")
    return raw


def encode_bytes(raw: bytes) -> str:
    """Standard base64 with padding, the text form of every binary value on the wire."""
    return base64.b64encode(raw).decode("ascii")


def encode_frame(kind: int, payload: bytes) -> bytes:
    """One plain frame; for PING, PONG and ACK."""
    return bytes(meshdp.encode_frame(int(kind), payload))


def encode_control(kind: int, message: Mapping[str, Any], *, ack_wanted: bool = False) -> bytes:
    """The bytes of one WebSocket message that carries `message`, compressed and cut as needed."""
    payload = json.dumps(message, separators=(",", ":")).encode()
    return bytes(meshdp.encode_control(int(kind), payload, ack_wanted=ack_wanted))


def decode_control(kind: int, payload: bytes) -> dict[str, Any]:
    """Check a control payload against its type and give it as a dict. Raises `MessageError` (2002)."""
    meshdp.validate_control(int(kind), payload)
    return decode_json(payload)


def decode_json(payload: bytes) -> dict[str, Any]:
    """A payload as it is, before its form is checked; empty when it is no JSON object at all."""
    try:
        message = json.loads(payload)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def verify_control(machine_key: bytes, nonce: bytes, controller: str, signature: bytes) -> bool:
    """Whether a machine signed this challenge for this controller name (docs/protocol.md 3.1)."""
    return bool(meshdp.verify_control(machine_key, nonce, controller, signature))


def verify_node_key(machine_key: bytes, claim: NodeKeyClaim) -> bool:
    """Whether the machine signed this node_key, with its post-quantum key or the lack of one (docs/protocol.md 2.1)."""
    return bool(meshdp.verify_node_key(machine_key, claim.public, claim.created, claim.signature, claim.kem))


Path = tuple[int, ...]


def best_paths(
    node_relay_ms: dict[int, dict[int, float]],
    relay_relay_ms: dict[tuple[int, int], float],
    pairs: Iterable[tuple[int, int]],
    current: Mapping[tuple[int, int], Path] | None = None,
) -> dict[tuple[int, int], tuple[Path | None, Path | None]]:
    """Best and second-best relay path for each (sender, receiver); `None` where nothing is known yet.

    `current` is what each pair uses now: it stays unless another way is clearly better (10 % and 5 ms).
    """
    used = {pair: list(path) for pair, path in (current or {}).items()}
    found = meshdp.best_paths(node_relay_ms, relay_relay_ms, list(pairs), used)
    return {
        pair: (tuple(best) if best else None, tuple(second) if second else None)
        for pair, (best, second) in found.items()
    }


class Keyring:
    """Signs the tokens of docs/protocol.md section 6 and checks those that come back."""

    def __init__(self, signer: meshdp.TokenSigner) -> None:
        self._signer = signer
        self._verifier = meshdp.TokenVerifier(signer.algorithm, [signer.verification_key()])

    @classmethod
    def eddsa(cls, seed: bytes, kid: str) -> Keyring:
        return cls(meshdp.TokenSigner.eddsa(seed, kid))

    @classmethod
    def hs256(cls, secret: bytes, kid: str) -> Keyring:
        return cls(meshdp.TokenSigner.hs256(secret, kid))

    @classmethod
    def rs256(cls, pem: str, kid: str) -> Keyring:
        return cls(meshdp.TokenSigner.rs256(pem, kid))

    @property
    def algorithm(self) -> str:
        return str(self._signer.algorithm)

    def public_keys(self) -> dict[str, Any]:
        """What a relay needs to check tokens: `token_keys` of docs/protocol.md 5.1."""
        return {"algorithm": self.algorithm, "keys": [self._signer.verification_key()]}

    def sign(self, claims: Mapping[str, Any]) -> str:
        return str(self._signer.sign(dict(claims)))

    def verify(self, token: str, *, audience: str, typ: str, now: float) -> dict[str, Any]:
        """The claims of a good token. Raises `TokenError` with `.code` 1001 or 1002."""
        return dict(self._verifier.verify(token, audience=audience, typ=typ, now=now))
