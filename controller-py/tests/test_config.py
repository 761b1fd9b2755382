from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from edgelink_controller.cli.serve import parse_listen
from edgelink_controller.config import ConfigError, known_keys, load, sample
from edgelink_controller.kit.certificates import dev_certificate
from edgelink_controller.kit.secrets import load_or_create, open_keyring, write_private


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_syntax_errors_name_line_and_column(tmp_path: Path) -> None:
    assert "c.json:2:10:" in refused(tmp_path / "c.json", '{"listen":\n {"http" 1}}')
    assert "c.toml:1:7:" in refused(tmp_path / "c.toml", "[list en]\n")
    assert "c.toml:2:10:" in refused(tmp_path / "c.toml", "[listen]\nhttp = 'x\n")


def test_unknown_keys_name_what_was_meant(tmp_path: Path) -> None:
    message = refused(tmp_path / "c.toml", "[security]\nrequire_authorisation = true\n")
    assert "unknown key security.require_authorisation" in message
    assert "did you mean security.require_authorization?" in message
    assert "networks[0].sub" in refused(tmp_path / "c.json", '{"networks": [{"name": "a", "sub": "10.0.0.0/8"}]}')
    assert "known here: " in refused(tmp_path / "c.json", '{"zzzz": 1}')


def test_values_of_the_wrong_type_name_the_key(tmp_path: Path) -> None:
    assert "mesh.mtu" in refused(tmp_path / "c.json", '{"mesh": {"mtu": "big"}}')
    assert "listen" in refused(tmp_path / "c.json", '{"listen": 5}')
    with pytest.raises(ConfigError, match=r"EDGELINK_MESH_MTU: mesh\.mtu"):
        load(None, {"EDGELINK_MESH_MTU": "9"})


@pytest.mark.parametrize(
    "secret", ["CHANGE_ME_TO_RANDOM_SECRET_0123456789", "your-secret-key-change-me-0123456789", "short", "a" * 40]
)
def test_placeholders_and_short_secrets_are_refused_and_not_shown(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(f'{{"jwt": {{"secret": "{secret}"}}}}')
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    assert "jwt.secret" in str(raised.value)
    assert secret not in str(raised.value)


def test_environment_goes_before_file_before_default(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"mesh": {"mtu": 1300, "keepalive_interval_seconds": 20}}')
    loaded = load(path, {"EDGELINK_MESH_MTU": "1350", "EDGELINK_SOMETHING_ELSE": "x"})
    mesh = loaded.config.mesh
    assert (mesh.mtu, mesh.keepalive_interval_seconds, mesh.latency_report_seconds) == (1350, 20, 30)
    sources = [loaded.source(f"mesh.{key}") for key in ("mtu", "keepalive_interval_seconds", "latency_report_seconds")]
    assert sources == ["environment", "file", "default"]


def test_the_sample_is_a_good_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(sample(tmp_path / "edgelink.db"))
    loaded = load(path, {})
    assert loaded.config.database.path == tmp_path / "edgelink.db"
    assert "jwt.secret" in known_keys()


def test_secrets_survive_and_stay_private(tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "k")
    assert load_or_create(tmp_path / "k") == first
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="--state-dir"):
        load_or_create(tmp_path / "other", create=False)


def test_every_algorithm_signs_what_it_accepts(tmp_path: Path) -> None:
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(tmp_path / "rsa.pem", pem)
    claims: dict[str, Any] = {"typ": "relay", "aud": "relay", "iss": "edgelink", "iat": 100, "exp": 200, "jti": "x"}
    claims |= {"node_id": 1, "network_id": 1, "allowed_relays": []}
    for algorithm, file in (("EdDSA", None), ("HS256", None), ("RS256", tmp_path / "rsa.pem")):
        keyring = open_keyring(tmp_path, algorithm, None, file)
        assert keyring.algorithm == keyring.public_keys()["algorithm"] == algorithm
        verified = keyring.verify(keyring.sign(claims), audience="relay", typ="relay", now=150)
        assert verified["jti"] == "x"
    with pytest.raises(ConfigError, match=r"jwt\.key_file"):
        open_keyring(tmp_path, "RS256", None, None)


def test_the_development_certificate_keeps_its_pin(tmp_path: Path) -> None:
    first = dev_certificate(tmp_path, ["ctl.test"])
    assert dev_certificate(tmp_path, []).pin == first.pin
    assert first.key.stat().st_mode & 0o777 == 0o600


def test_listen_addresses() -> None:
    assert parse_listen("[::1]:443") == ("::1", 443)
    assert parse_listen(":8443")[1] == 8443
    for text in ("localhost", "1.2.3.4:x", "1.2.3.4:70000"):
        with pytest.raises(ConfigError, match="address:port"):
            parse_listen(text)
