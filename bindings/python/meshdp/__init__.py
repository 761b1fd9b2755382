"""EdgeLink's dataplane for Python: frames, keys, tokens, and the relay to embed.

Everything is implemented once, in Rust; this package names it and gives it types. Numbers, layouts and rules are those of
docs/protocol.md.
"""

from enum import IntEnum

from meshdp._native import (
    PROTOCOL_VERSION,
    FrameDecoder,
    FrameError,
    InvalidKeyError,
    MachineKey,
    MeshError,
    MessageError,
    NodeKey,
    Relay,
    StunServer,
    TokenError,
    TokenSigner,
    TokenVerifier,
    __version__,
    best_paths,
    encode_control,
    encode_frame,
    key_id,
    sign_control,
    sign_node_key,
    validate_control,
    verify_control,
    verify_node_key,
    verify_signature,
)


class FrameType(IntEnum):
    """Frame types, docs/protocol.md section 1.1."""

    AUTH_REQUEST = 0x01
    AUTH_RESPONSE = 0x02
    CONFIG = 0x03
    CONFIG_UPDATE = 0x04
    ACK = 0x05
    AUTH_CHALLENGE = 0x06
    NODE_UPDATE = 0x07
    DATA = 0x10
    SESSION_INIT = 0x11
    SESSION_RESPONSE = 0x12
    VIA = 0x14
    PING = 0x20
    PONG = 0x21
    LATENCY_REPORT = 0x22
    GOAWAY = 0x23
    P2P_INIT = 0x30
    P2P_ENDPOINT = 0x31
    P2P_PING = 0x32
    P2P_PONG = 0x33
    P2P_KEEPALIVE = 0x34
    P2P_STATUS = 0x35
    SERVER_REGISTER = 0x40
    SERVER_NODE_LOC = 0x41
    SERVER_BLACKLIST = 0x42
    ERROR = 0xFF


__all__ = [
    "PROTOCOL_VERSION",
    "FrameDecoder",
    "FrameError",
    "FrameType",
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
    "key_id",
    "sign_control",
    "sign_node_key",
    "validate_control",
    "verify_control",
    "verify_node_key",
    "verify_signature",
]
