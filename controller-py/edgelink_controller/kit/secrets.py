"""Files in the state directory that only their owner may read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from edgelink_controller.config import ConfigError, check_secret
from edgelink_controller.core import Keyring

SIGNING_KEY_FILE = "token-signing.key"
HS256_FILE = "token-secret.key"


def write_private(path: Path, content: bytes) -> None:
    """Create `path` with mode 0600 and `content`, whole or not at all. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_private(path: Path) -> bytes:
    """Read a secret; one that others can read is refused. Raises `ConfigError`, `OSError`."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read this secret (mode {mode:04o}); run: chmod 600 {path}")
    return path.read_bytes()


def load_or_create(path: Path, octets: int = 32, *, create: bool = True) -> bytes:
    """A random secret that survives restarts; kept as hexadecimal text. Raises `ConfigError`."""
    if not path.exists():
        if not create:
            raise ConfigError(f"no token key at {path}; name the controller's state directory with --state-dir")
        write_private(path, secrets.token_bytes(octets).hex().encode() + b"\n")
    text = read_private(path).decode("ascii", "replace").strip()
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(f"{path}: expected {octets} bytes in hexadecimal") from error
    if len(raw) != octets:
        raise ConfigError(f"{path}: expected {octets} bytes in hexadecimal, found {len(raw)}")
    return raw


def open_keyring(
    state_dir: Path, algorithm: str, secret: str | None, key_file: Path | None, *, create: bool = True
) -> Keyring:
    """The token keys of the configured algorithm; made on first use except RS256. Raises `ConfigError`."""
    if algorithm == "RS256":
        if key_file is None:
            raise ConfigError("jwt.algorithm RS256 needs jwt.key_file, a PEM file with an RSA private key")
        return Keyring.rs256(read_private(key_file).decode(), "k1")
    if algorithm == "HS256":
        if secret is not None:
            check_secret("jwt.secret", secret)
            return Keyring.hs256(secret.encode(), "k1")
        return Keyring.hs256(load_or_create(state_dir / HS256_FILE, create=create), "k1")
    return Keyring.eddsa(load_or_create(key_file or state_dir / SIGNING_KEY_FILE, create=create), "k1")
