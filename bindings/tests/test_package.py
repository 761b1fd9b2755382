"""The package as a whole: its names, its stubs, its errors."""

import subprocess
import sys

import pytest

import meshdp
from meshdp import _native


def test_frame_types_are_those_of_the_core() -> None:
    """The enum is written out for type checkers; the core has the last word."""
    ours = {kind.name.replace("_", "").lower(): int(kind) for kind in meshdp.FrameType}
    assert ours == {name.lower(): number for name, number in _native.frame_types()}


def test_stubs_match_the_built_module() -> None:
    """mypy's stubtest compares _native.pyi with what the module really has."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "meshdp", "--ignore-disjoint-bases"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_large_control_message_is_compressed_cut_and_put_together() -> None:
    """64 KiB frames carry megabytes."""
    payload = bytes(range(256)) * 4096 + b"".join(i.to_bytes(4, "big") for i in range(100_000))
    message = meshdp.encode_control(meshdp.FrameType.CONFIG, payload, ack_wanted=True)
    assert len(message) < len(payload)
    assert meshdp.FrameDecoder().feed(message) == [(meshdp.FrameType.CONFIG, 1, payload)]


def test_messages_are_checked_with_the_place_of_the_fault() -> None:
    """A controller can say what a node got wrong."""
    meshdp.validate_control(meshdp.FrameType.AUTH_CHALLENGE, b'{"nonce": "' + b"A" * 43 + b'=", "server_time": 1}')
    with pytest.raises(meshdp.MessageError, match="server_time") as caught:
        meshdp.validate_control(meshdp.FrameType.AUTH_CHALLENGE, b'{"nonce": "' + b"A" * 43 + b'="}')
    assert caught.value.code == 2002
    with pytest.raises(meshdp.MeshError, match="unknown channel"):
        meshdp.validate_control(meshdp.FrameType.CONFIG, b"{}", "nonsense")


def test_keys_of_the_wrong_size_say_so() -> None:
    """No guessing with keys."""
    with pytest.raises(meshdp.InvalidKeyError, match="seed has 3 bytes, expected 32") as caught:
        meshdp.MachineKey.from_seed(b"abc")
    assert caught.value.code == 1004
    assert not meshdp.verify_signature(b"short", b"", b"short")


def test_best_paths_keeps_what_is_in_use_until_something_is_clearly_better() -> None:
    """Hysteresis of 10 % and 5 ms."""
    near = {1: {1: 50.0, 2: 46.0}, 2: {1: 50.0, 2: 50.0}}
    assert meshdp.best_paths(near, {}, [(1, 2)]) == {(1, 2): ([2], [1])}
    assert meshdp.best_paths(near, {}, [(1, 2)], {(1, 2): [1]}) == {(1, 2): ([1], [2])}
    assert meshdp.best_paths(near, {}, [(1, 3)]) == {(1, 3): (None, None)}
