"""The configuration: environment > file > default, unknown keys refused by name.

A file is JSON or TOML with the keys below. Every leaf can also come from the environment: `database.url` is
`EDGELINK_DATABASE_URL`, lists and objects are written as JSON. What the database may override is in `settings`.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

ENV_PREFIX = "EDGELINK_"
MIN_SECRET_LENGTH = 32
_PLACEHOLDER = re.compile(r"change.?me|your.?secret|same.?secret|placeholder|example|^(.)\1*$", re.IGNORECASE)


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file and the key."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(_Section):
    http: str = "0.0.0.0:443"
    ws_control: str = "/ws/control"
    ws_server: str = "/ws/server"


class Tls(_Section):
    cert: Path | None = None
    key: Path | None = None


class DatabaseConfig(_Section):
    type: Literal["sqlite"] = "sqlite"
    path: Path | None = None
    url: str | None = None


class Jwt(_Section):
    algorithm: Literal["EdDSA", "HS256", "RS256"] = "EdDSA"
    secret: str | None = Field(default=None, repr=False)
    key_file: Path | None = None


class Tokens(_Section):
    auth_expire_hours: float = Field(24, gt=0)
    relay_expire_hours: float = Field(1.5, gt=0)
    mesh_expire_hours: float = Field(24, gt=0)
    admin_expire_hours: float = Field(8, gt=0)
    server_expire_days: float = Field(365, gt=0)
    grace_hours: float = Field(24, ge=0)


class Security(_Section):
    require_authorization: bool = True
    auto_authorize: list[str] = []
    enrolment_key: str | None = Field(default=None, repr=False)
    node_key_rotate_hours: float = Field(24, gt=0)
    auto_enable_routes: bool = True


class Mesh(_Section):
    mtu: int = Field(1400, ge=1280, le=9000)
    keepalive_interval_seconds: int = Field(25, ge=1, le=3600)
    latency_report_seconds: int = Field(30, ge=1, le=3600)


class BuiltinRelay(_Section):
    # enabled: None leaves it to control/builtin.py; so does listen, beside the controller.
    enabled: bool | None = None
    listen: str | None = None
    ws_data: str = "/ws/data"
    ws_mesh: str = "/ws/mesh"
    data_url: str | None = None
    mesh_url: str | None = None


class BuiltinStun(_Section):
    enabled: bool | None = None
    listen: str | None = None
    external_ip: str | None = None
    secondary_ip: str | None = None


class NetworkConfig(_Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    subnet: str = "10.0.1.0/24"
    subnet6: str | None = None


class Log(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section):
    names: list[str] = []
    listen: Listen = Listen()
    tls: Tls = Tls()
    behind_proxy: bool = False
    trusted_proxies: list[str] = []
    database: DatabaseConfig = DatabaseConfig()
    jwt: Jwt = Jwt()
    tokens: Tokens = Tokens()
    security: Security = Security()
    mesh: Mesh = Mesh()
    builtin_relay: BuiltinRelay = BuiltinRelay()
    builtin_stun: BuiltinStun = BuiltinStun()
    networks: list[NetworkConfig] = [NetworkConfig(name="default")]
    log: Log = Log()

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            ipaddress.ip_network(network, strict=False)
        return value


class LoadedConfig:
    """A configuration and, for each dotted key, where its value came from: `environment`, `file` or `default`."""

    def __init__(self, config: Config, sources: dict[str, str], file: Path | None) -> None:
        self.config = config
        self.sources = sources
        self.file = file

    def source(self, key: str) -> str:
        return self.sources.get(key, "default")


def check_secret(key: str, value: str) -> None:
    """Refuse secrets that are short or that somebody forgot to replace. Raises `ConfigError`."""
    if _PLACEHOLDER.search(value):
        raise ConfigError(f"{key}: this is a placeholder; leave it out to have a random one made")
    if len(value) < MIN_SECRET_LENGTH:
        raise ConfigError(f"{key}: {len(value)} characters are too few, at least {MIN_SECRET_LENGTH} are needed")


def load(path: Path | None = None, environment: Mapping[str, str] | None = None) -> LoadedConfig:
    """Read `path` (or nothing), lay the environment over it and check everything. Raises `ConfigError`."""
    environment = os.environ if environment is None else environment
    raw: dict[str, Any] = _read(path) if path else {}
    _refuse_unknown(raw, Config, "", path)
    sources = dict.fromkeys(_leaves(raw), "file")
    for key in known_keys():
        name = ENV_PREFIX + key.upper().replace(".", "_")
        if name in environment:
            _put(raw, key, _from_environment(environment[name]))
            sources[key] = "environment"
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            lines.append(f"{_origin(key, sources, path)}: {key}: {item['msg'].lower()} (got {_shown(key, item)})")
        raise ConfigError("\n".join(lines)) from None
    if config.jwt.secret is not None:
        check_secret("jwt.secret", config.jwt.secret)
    return LoadedConfig(config, sources, path)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key that a file may set."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        keys += known_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return keys


def sample(database_path: Path) -> str:
    """A TOML file to start from, for `edgelink-controller init`."""
    return f"""\
# EdgeLink controller. Every key can also come from the environment, for example EDGELINK_LISTEN_HTTP.
names = []                         # host names by which nodes reach this controller; empty: any

[listen]
http = "0.0.0.0:443"

[tls]                              # or leave out and set behind_proxy = true, or start with --dev
# cert = "/etc/edgelink/cert.pem"
# key = "/etc/edgelink/key.pem"

# [builtin_relay]                  # on by itself with names and tls, on port 8444 beside this controller
# enabled = false
# [builtin_stun]                   # on by itself with an external_ip, on UDP port 3478
# external_ip = "203.0.113.7"

[database]
path = "{database_path}"

[security]
require_authorization = true       # false: every machine that registers is let in
node_key_rotate_hours = 24

[[networks]]                       # created at the first start
name = "default"
subnet = "10.0.1.0/24"
"""


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: {error.msg.lower()}") from error
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        lines = text.splitlines() or [""]
        # Without a place the parser ran into the end of the document.
        where = f":{place[1]}:{place[2]}" if place else f":{len(lines)}:{len(lines[-1]) + 1}"
        what = re.sub(r"\s*\(at .*\)$", "", str(error)).lower()
        raise ConfigError(f"{path}{where}: {what}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object at the top")
    return value


def _refuse_unknown(raw: Mapping[str, Any], model: type[BaseModel], prefix: str, path: Path | None) -> None:
    for name, value in raw.items():
        if name not in model.model_fields:
            expected = list(model.model_fields)
            near = difflib.get_close_matches(name, expected, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(sorted(expected))}"
            raise ConfigError(f"{path}: unknown key {prefix}{name}; {hint}")
        section = _section(model.model_fields[name].annotation)
        if section and isinstance(value, Mapping):
            _refuse_unknown(value, section, f"{prefix}{name}.", path)
        element = _section(next(iter(get_args(model.model_fields[name].annotation)), None))
        if element and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    _refuse_unknown(item, element, f"{prefix}{name}[{index}].", path)


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in raw.items():
        keys += _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return keys


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
    raw[leaf] = value


def _from_environment(text: str) -> Any:
    if text[:1] in "[{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _origin(key: str, sources: Mapping[str, str], path: Path | None) -> str:
    if sources.get(key) == "environment":
        return ENV_PREFIX + key.upper().replace(".", "_")
    return str(path) if path else "configuration"


def _shown(key: str, item: Any) -> str:
    return "a secret" if re.search(r"secret|enrolment|password", key) else repr(item.get("input"))
