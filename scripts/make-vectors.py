#!/usr/bin/env python3
"""Writes docs/vectors/*.json from an implementation of its own: `cryptography`, zlib, a hundred lines of Noise and ml_kem.py.

The Rust and the Python tests read the files. None of our code is used here on purpose: two implementations that agree are worth more than one
that agrees with itself. Run it after a change of docs/protocol.md; `--check` only compares.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import pathlib
import sys
import zlib

import ml_kem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "vectors"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def raw_public(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


# --- frames (docs/protocol.md section 1)


def frame(kind: int, payload: bytes, flags: int = 0, version: int = 1) -> bytes:
    return bytes([version, kind, flags]) + len(payload).to_bytes(2, "big") + payload


def deflate(data: bytes) -> bytes:
    c = zlib.compressobj(6, zlib.DEFLATED, -15)
    return c.compress(data) + c.flush()


def frames() -> dict:
    config = json.dumps({"version": 1, "memberships": [], "relays": []}).encode()
    data = (17).to_bytes(4, "big") + (18).to_bytes(4, "big") + bytes(12) + b"ciphertext" + bytes(16)
    two = frame(0x20, b"t") + frame(0x10, data)
    valid = [
        ("ping with a byte", frame(0x20, b"t"), [(0x20, 0, b"t")]),
        ("empty pong", frame(0x21, b""), [(0x21, 0, b"")]),
        ("data with a partial checksum", frame(0x10, data, 8), [(0x10, 8, data)]),
        ("two frames in one message", two, [(0x20, 0, b"t"), (0x10, 0, data)]),
        ("a control frame that wants an ACK", frame(0x03, config, 1), [(0x03, 1, config)]),
        ("a compressed control frame", frame(0x03, deflate(config), 2), [(0x03, 0, config)]),
        (
            "fragments with a ping between",
            frame(0x03, config[:9], 4) + frame(0x20, b"") + frame(0x03, config[9:]),
            [(0x20, 0, b""), (0x03, 0, config)],
        ),
        (
            "fragments of a compressed frame",
            frame(0x03, deflate(config)[:9], 6) + frame(0x03, deflate(config)[9:], 2),
            [(0x03, 0, config)],
        ),
        ("an ACK", frame(0x05, b"\x03\x00\x00\x00\x01"), [(0x05, 0, b"\x03\x00\x00\x00\x01")]),
    ]
    bomb = deflate(bytes((16 << 20) + 1))
    invalid = [
        ("version 2", frame(0x20, b"", version=2), 2001),
        ("version 0", frame(0x20, b"", version=0), 2001),
        ("unknown type", frame(0x7F, b""), 2002),
        ("reserved flag", frame(0x20, b"", 0x10), 2002),
        ("compressed data", frame(0x10, data, 2), 2002),
        ("partial checksum on a ping", frame(0x20, b"", 8), 2002),
        ("nothing", b"", 2002),
        ("half a header", b"\x01\x20\x00", 2002),
        ("half a payload", frame(0x20, b"1234")[:-1], 2002),
        ("a frame and a half", frame(0x20, b"") + frame(0x20, b"1234")[:-1], 2002),
        ("fragments that mix", frame(0x03, b"{", 4) + frame(0x04, b"}"), 2002),
        ("not DEFLATE", frame(0x03, b"\xff\xff\xff", 2), 2002),
        ("a bomb", frame(0x03, bomb, 2), 2003),
    ]
    return {
        "valid": [
            {"what": w, "message": m.hex(), "frames": [{"type": t, "flags": f, "payload": p.hex()} for t, f, p in fs]}
            for w, m, fs in valid
        ],
        "invalid": [{"what": w, "message": m.hex(), "code": c} for w, m, c in invalid],
    }


# --- keys (section 2.1, 3.1)


def kem_key(what: str) -> tuple[bytes, bytes]:
    d, z, m = (hashlib.sha256(f"{part} of {what}".encode()).digest() for part in "dzm")
    ml_kem.check(d, z, m)
    return ml_kem.generate(d, z)


def keys() -> dict:
    out = []
    for n in range(3):
        seed = hashlib.sha256(b"machine %d" % n).digest()
        private = hashlib.sha256(b"node %d" % n).digest()
        nonce = hashlib.sha256(b"nonce %d" % n).digest()
        created = 1_770_000_000 + n
        machine = Ed25519PrivateKey.from_private_bytes(seed)
        public = raw_public(X25519PrivateKey.from_private_bytes(private))
        kem, kem_private = kem_key(f"node {n}")
        signed = b"edgelink-node-key-v1" + public + created.to_bytes(8, "big")
        host = f"controller-{n}.example"
        out.append(
            {
                "machine_seed": b64(seed),
                "machine_key": b64(raw_public(machine)),
                "node_private": b64(private),
                "node_key": b64(public),
                "key_id": int.from_bytes(hashlib.sha256(public).digest()[:4], "big"),
                "created": created,
                "node_key_signature": b64(machine.sign(signed)),
                "kem_private": b64(kem_private),
                "kem": b64(kem),
                "node_key_signature_with_kem": b64(machine.sign(signed + kem)),
                "nonce": b64(nonce),
                "controller": host,
                "control_signature": b64(
                    machine.sign(b"edgelink-control-v1" + nonce + hashlib.sha256(host.encode()).digest())
                ),
            }
        )
    return {"identities": out}


# --- sessions (section 2.2, 2.3): Noise KK, after the Noise specification revision 34


class Noise:
    """The symmetric state of Noise_KK_25519_ChaChaPoly_SHA256, and of KKpsk2."""

    def __init__(self, psk: bool, prologue: bytes, initiator_static: bytes, responder_static: bytes) -> None:
        name = b"Noise_KKpsk2_25519_ChaChaPoly_SHA256" if psk else b"Noise_KK_25519_ChaChaPoly_SHA256"
        self.psk = psk
        self.h = name if len(name) == 32 else name.ljust(32, b"\0") if len(name) < 32 else hashlib.sha256(name).digest()
        self.ck, self.k, self.n = self.h, None, 0
        for part in (prologue, initiator_static, responder_static):
            self.mix_hash(part)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.sha256(self.h + data).digest()

    @staticmethod
    def hkdf(ck: bytes, ikm: bytes) -> tuple[bytes, bytes]:
        temp = hmac.digest(ck, ikm, "sha256")
        one = hmac.digest(temp, b"\x01", "sha256")
        return one, hmac.digest(temp, one + b"\x02", "sha256")

    def ephemeral(self, public: bytes) -> None:
        self.mix_hash(public)
        if self.psk:
            self.mix_key(public)

    def mix_psk(self, psk: bytes) -> None:
        temp = hmac.digest(self.ck, psk, "sha256")
        self.ck = hmac.digest(temp, b"\x01", "sha256")
        mixed = hmac.digest(temp, self.ck + b"\x02", "sha256")
        self.mix_hash(mixed)
        self.k, self.n = hmac.digest(temp, mixed + b"\x03", "sha256"), 0

    def mix_key(self, ikm: bytes) -> None:
        self.ck, self.k = self.hkdf(self.ck, ikm)
        self.n = 0

    def encrypt(self, plain: bytes) -> bytes:
        sealed = ChaCha20Poly1305(self.k).encrypt(bytes(4) + self.n.to_bytes(8, "little"), plain, self.h)
        self.n += 1
        self.mix_hash(sealed)
        return sealed


def dh(private: X25519PrivateKey, public: bytes) -> bytes:
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def drawn(seed: bytes) -> bytes:
    """What the core's randomness draws first: of the ChaCha20 keystream under `seed`, the 32 bytes after the 32 that become its next key."""
    return Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(64))[32:]


def sessions() -> dict:
    out = []
    for n, (mode, offer, choice) in enumerate([(0, 1, 1), (0, 3, 2), (1, 1, 1), (1, 3, 2)]):

        def key(what: str, n: int = n) -> X25519PrivateKey:
            return X25519PrivateKey.from_private_bytes(hashlib.sha256(f"{what} {n}".encode()).digest())

        i_static, r_static = key("i static"), key("r static")
        i_seed, r_seed = (hashlib.sha256(f"{side} randomness {n}".encode()).digest() for side in "ir")
        # A handshake draws a seed for itself, and its ephemeral key from that.
        i_eph, r_eph = (X25519PrivateKey.from_private_bytes(drawn(drawn(seed))) for seed in (i_seed, r_seed))
        i_id, r_id, i_index, r_index = 17, 18, 0x11223344, 0x55667788
        stamp = 1_770_000_000_123_456
        prologue = b"wss-mesh-session" + bytes([mode]) + i_id.to_bytes(4, "big") + r_id.to_bytes(4, "big")
        key_id = lambda k: hashlib.sha256(raw_public(k)).digest()[:4]  # noqa: E731
        i_kem, r_kem = kem_key(f"i kem {n}"), kem_key(f"r kem {n}")
        there, back = (
            ml_kem.encapsulate(kem[0], hashlib.sha256(f"{way} {n}".encode()).digest())
            for kem, way in [(r_kem, "there"), (i_kem, "back")]
        )
        noise = Noise(mode == 1, prologue, raw_public(i_static), raw_public(r_static))
        # -> e, es, ss
        noise.ephemeral(raw_public(i_eph))
        noise.mix_key(dh(i_eph, raw_public(r_static)))
        noise.mix_key(dh(i_static, raw_public(r_static)))
        payload = stamp.to_bytes(8, "big") + bytes([offer]) + (there[1] if mode else b"")
        message1 = raw_public(i_eph) + noise.encrypt(payload)
        init = frame(
            0x11,
            i_id.to_bytes(4, "big")
            + r_id.to_bytes(4, "big")
            + bytes([mode])
            + i_index.to_bytes(4, "big")
            + key_id(i_static)
            + key_id(r_static)
            + message1,
        )
        # <- e, ee, se, and psk
        noise.ephemeral(raw_public(r_eph))
        noise.mix_key(dh(r_eph, raw_public(i_eph)))
        noise.mix_key(dh(r_eph, raw_public(i_static)))
        if mode:
            prk = hmac.digest(b"edgelink-session-pq-v1", there[0] + back[0], "sha256")
            noise.mix_psk(hmac.digest(prk, there[1] + back[1] + b"\x01", "sha256"))
        message2 = raw_public(r_eph) + noise.encrypt(bytes([choice]))
        response = frame(
            0x12,
            r_id.to_bytes(4, "big")
            + i_id.to_bytes(4, "big")
            + bytes([mode])
            + r_index.to_bytes(4, "big")
            + i_index.to_bytes(4, "big")
            + (back[1] if mode else b"")
            + message2,
        )
        to_responder, to_initiator = Noise.hkdf(noise.ck, b"")
        cipher = ChaCha20Poly1305 if choice == 1 else AESGCM
        packets = []
        for counter, (k, src, dst, index, plain, flags) in enumerate(
            [
                (to_responder, i_id, r_id, r_index, b"", 0),
                (to_responder, i_id, r_id, r_index, b"\x45" + bytes(19), 0),
                (to_initiator, r_id, i_id, i_index, b"\x60" + bytes(range(1, 60)), 8),
            ]
        ):
            header = bytes([1, 0x10, flags]) + (8 + 12 + len(plain) + 16).to_bytes(2, "big")
            route = src.to_bytes(4, "big") + dst.to_bytes(4, "big")
            count = counter if k is to_responder else 0
            nonce = index.to_bytes(4, "big") + count.to_bytes(8, "big")
            sealed = cipher(k).encrypt(nonce, plain, header + route)
            packets.append(
                {
                    "from_initiator": k is to_responder,
                    "counter": count,
                    "flags": flags,
                    "plaintext": plain.hex(),
                    "frame": (header + route + nonce + sealed).hex(),
                }
            )
        private = lambda k: b64(k.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))  # noqa: E731
        out.append(
            {
                "initiator": i_id,
                "responder": r_id,
                "initiator_index": i_index,
                "responder_index": r_index,
                "initiator_static": private(i_static),
                "responder_static": private(r_static),
                "initiator_seed": b64(i_seed),
                "responder_seed": b64(r_seed),
                "initiator_ephemeral": private(i_eph),
                "responder_ephemeral": private(r_eph),
                "kem": {
                    "initiator_private": b64(i_kem[1]),
                    "responder_private": b64(r_kem[1]),
                    "to_responder": {"secret": b64(there[0]), "ciphertext": b64(there[1])},
                    "to_initiator": {"secret": b64(back[0]), "ciphertext": b64(back[1])},
                }
                if mode
                else None,
                "timestamp_us": stamp,
                "offer": offer,
                "choice": choice,
                "session_init": init.hex(),
                "session_response": response.hex(),
                "key_to_responder": b64(to_responder),
                "key_to_initiator": b64(to_initiator),
                "packets": packets,
            }
        )
    return {"sessions": out}


# --- tokens (section 6)


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def tokens() -> dict:
    seed = hashlib.sha256(b"token key").digest()
    signer = Ed25519PrivateKey.from_private_bytes(seed)
    secret = hashlib.sha256(b"token secret").digest()
    now = 1_770_000_000
    good = {
        "typ": "relay",
        "iss": "edgelink",
        "aud": "relay",
        "iat": now - 10,
        "exp": now + 5400,
        "jti": "t-1",
        "node_id": 17,
        "network_id": 1,
        "allowed_relays": [1, 2],
    }

    def make(claims: dict, alg: str = "EdDSA", key: object = signer, kid: str = "k1", typ: str = "JWT") -> str:
        header = {"alg": alg, "typ": typ, "kid": kid}
        body = url64(json.dumps(header).encode()) + "." + url64(json.dumps(claims).encode())
        if alg == "EdDSA":
            return body + "." + url64(key.sign(body.encode()))
        if alg == "HS256":
            return body + "." + url64(hmac.digest(key, body.encode(), "sha256"))
        return body + "."

    other = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"another").digest())
    valid = make(good)
    head, body, _ = valid.split(".")
    cases = [
        ("valid for relay 1", valid, 1, None),
        ("valid for every relay", make({**good, "allowed_relays": []}), 9, None),
        ("in the leeway", make({**good, "exp": now - 3}), 1, None),
        ("of another relay", valid, 3, 1001),
        ("expired", make({**good, "exp": now - 6}), 1, 1002),
        ("issued in the future", make({**good, "iat": now + 60}), 1, 1001),
        ("signed by another key", make(good, key=other), 1, 1001),
        (
            "the claims changed",
            head + "." + url64(json.dumps({**good, "node_id": 18}).encode()) + "." + valid.split(".")[2],
            1,
            1001,
        ),
        ("alg none", make(good, alg="none"), 1, 1001),
        ("HS256 with the public key as secret", make(good, alg="HS256", key=raw_public(signer)), 1, 1001),
        ("of another type", make({**good, "typ": "server"}), 1, 1001),
        ("for another audience", make({**good, "aud": "controller"}), 1, 1001),
        ("from another issuer", make({**good, "iss": "someone"}), 1, 1001),
        ("without an expiry", make({k: v for k, v in good.items() if k != "exp"}), 1, 1001),
        ("without a node", make({k: v for k, v in good.items() if k != "node_id"}), 1, 1001),
        ("unknown kid", make(good, kid="k9"), 1, 1001),
        ("no token", "", 1, 1001),
        ("two parts", head + "." + body, 1, 1001),
        ("garbage", "a.b.c", 1, 1001),
    ]
    return {
        "now": now,
        "algorithm": "EdDSA",
        "seed": b64(seed),
        "keys": [{"kid": "k1", "public": b64(raw_public(signer))}],
        "cases": [{"what": w, "token": t, "relay_id": r, "code": c} for w, t, r, c in cases],
        "hs256": {"secret": b64(secret), "token": make(good, alg="HS256", key=secret)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    VECTORS.mkdir(parents=True, exist_ok=True)
    bad = 0
    for make in (frames, keys, sessions, tokens):
        path, text = VECTORS / f"{make.__name__}.json", json.dumps(make(), indent=1) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or json.loads(path.read_text()) != json.loads(text):
            print(f"{path} is not what this script makes", file=sys.stderr)
            bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
