"""Typed surface of the native module; compared with the built one by tests/test_stubs.py."""

from typing import Any, Final, final

__all__ = [
    "PROTOCOL_VERSION",
    "FrameDecoder",
    "FrameError",
    "InvalidKeyError",
    "MachineKey",
    "MeshError",
    "MessageError",
    "NodeKey",
    "Relay",
    "StunServer",
    "TokenError",
    "TokenSigner",
    "TokenVerifier",
    "__version__",
    "best_paths",
    "encode_control",
    "encode_frame",
    "frame_types",
    "key_id",
    "sign_control",
    "sign_node_key",
    "validate_control",
    "verify_control",
    "verify_node_key",
    "verify_signature",
]

__version__: Final[str]
PROTOCOL_VERSION: Final[int]

class MeshError(Exception):
    """Root of everything that meshdp raises; `code` is the protocol's number, or 0."""

    code: int

class FrameError(MeshError):
    """Bytes that are not frames: 2001, 2002 or 2003."""

class MessageError(MeshError):
    """JSON that is not the message it should be: 2002."""

class InvalidKeyError(MeshError):
    """Bytes that are not a key: 1004."""

class TokenError(MeshError):
    """A token that is not accepted: 1001, 1002 or 1003."""

@final
class FrameDecoder:
    """Reads the WebSocket messages of one connection: whole control messages out, reassembled and inflated."""

    def __new__(cls) -> FrameDecoder: ...
    def feed(self, message: bytes) -> list[tuple[int, int, bytes]]:
        """One WebSocket message in; `(type, flags, payload)` of every whole message out."""

@final
class MachineKey:
    """A machine's Ed25519 identity."""

    @staticmethod
    def generate() -> MachineKey: ...
    @staticmethod
    def from_seed(seed: bytes) -> MachineKey: ...
    @property
    def seed(self) -> bytes: ...
    @property
    def public(self) -> bytes: ...
    def sign(self, message: bytes) -> bytes: ...

@final
class NodeKey:
    """The keys for sessions: X25519 and, against quantum computers, ML-KEM-768."""

    @staticmethod
    def generate() -> NodeKey: ...
    @staticmethod
    def from_private(private: bytes, kem_private: bytes | None = None) -> NodeKey: ...
    @property
    def private(self) -> bytes: ...
    @property
    def public(self) -> bytes: ...
    @property
    def kem_private(self) -> bytes | None: ...
    @property
    def kem_public(self) -> bytes | None: ...

@final
class Relay:
    """A relay with its worker threads."""

    def __new__(cls, config: dict[str, Any]) -> Relay: ...
    def start(self) -> None: ...
    def stop(self, grace_ms: int = 0) -> None: ...
    def control(self, kind: int, payload: bytes) -> None: ...
    def controller_connected(self) -> None: ...
    def next_event(self, timeout: float) -> tuple[int, bytes] | None: ...
    def stats(self) -> dict[str, Any]: ...
    @property
    def data_addr(self) -> str | None: ...

@final
class StunServer:
    """Answers STUN binding requests on one UDP address."""

    def __new__(cls, listen: str, external_ip: str | None = None) -> StunServer: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    @property
    def address(self) -> str | None: ...

@final
class TokenSigner:
    """Signs tokens with one key."""

    @staticmethod
    def eddsa(seed: bytes, kid: str) -> TokenSigner: ...
    @staticmethod
    def hs256(secret: bytes, kid: str) -> TokenSigner: ...
    @staticmethod
    def rs256(pem: str, kid: str) -> TokenSigner: ...
    @property
    def algorithm(self) -> str: ...
    def verification_key(self) -> dict[str, str]: ...
    def sign(self, claims: dict[str, Any]) -> str: ...

@final
class TokenVerifier:
    """Checks tokens against the keys of one algorithm."""

    def __new__(cls, algorithm: str, keys: list[dict[str, str]]) -> TokenVerifier: ...
    def verify(self, token: str, *, audience: str, typ: str, now: float) -> dict[str, Any]: ...

def frame_types() -> list[tuple[str, int]]: ...
def encode_frame(kind: int, payload: bytes, flags: int = 0) -> bytes: ...
def encode_control(kind: int, payload: bytes, *, ack_wanted: bool = False) -> bytes: ...
def validate_control(kind: int, payload: bytes, channel: str | None = None) -> None: ...
def key_id(public: bytes) -> int: ...
def verify_signature(machine_public: bytes, message: bytes, signature: bytes) -> bool: ...
def sign_node_key(machine: MachineKey, node_public: bytes, created: int, kem_public: bytes | None = None) -> bytes: ...
def verify_node_key(
    machine_public: bytes, node_public: bytes, created: int, signature: bytes, kem_public: bytes | None = None
) -> bool: ...
def sign_control(machine: MachineKey, nonce: bytes, controller: str) -> bytes: ...
def verify_control(machine_public: bytes, nonce: bytes, controller: str, signature: bytes) -> bool: ...
def best_paths(
    node_relay_ms: dict[int, dict[int, float]],
    relay_relay_ms: dict[tuple[int, int], float],
    pairs: list[tuple[int, int]],
    current: dict[tuple[int, int], list[int]] | None = None,
) -> dict[tuple[int, int], tuple[list[int] | None, list[int] | None]]:
    """Best and second-best relays of each pair."""
