"""Settings that the database may hold. What a file or the environment sets wins and is read-only here."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgelink_controller.audit.service import AuditService
from edgelink_controller.changes.service import ChangeService
from edgelink_controller.config import Config, known_keys
from edgelink_controller.kit.errors import Invalid, NotFound, ReadOnlySetting
from edgelink_controller.kit.store import Uow
from edgelink_controller.settings.repository import SettingRepository
from edgelink_controller.settings.schemas import SettingOut

# Only what can change while the controller runs, and no secret.
EDITABLE = (
    "mesh.mtu",
    "mesh.keepalive_interval_seconds",
    "mesh.latency_report_seconds",
    "security.node_key_rotate_hours",
    "security.require_authorization",
    "security.auto_enable_routes",
    "tokens.grace_hours",
)
_SECRET = ("jwt.secret", "security.enrolment_key")


class SettingService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = SettingRepository(uow.session)

    async def effective(self) -> dict[str, Any]:
        """The values in force of everything in `EDITABLE`."""
        stored = await self._stored()
        return {key: self._value(key, stored)[0] for key in EDITABLE}

    async def _stored(self) -> dict[str, Any]:
        return {row.key: json.loads(row.value) for row in await self._rows.all()}

    def _value(self, key: str, stored: dict[str, Any]) -> tuple[Any, str]:
        source = self._uow.sources.get(key, "default")
        if source == "default" and key in EDITABLE and key in stored:
            return stored[key], "database"
        return _look_up(self._uow.config, key), source

    async def all(self) -> list[SettingOut]:
        """Every key of the configuration with its value in force and where that comes from; secrets masked."""
        stored = await self._stored()
        shown = []
        default = Config()
        for key in known_keys():
            value, source = self._value(key, stored)
            if key in _SECRET and value is not None:
                value = "********"
            shown.append(
                SettingOut(key=key, value=_plain(value), source=source, default=_plain(_look_up(default, key)))
            )
        return shown

    async def put(self, values: dict[str, Any]) -> list[SettingOut]:
        """Store values. Raises `NotFound`, `ReadOnlySetting`, `Invalid`; then nothing is stored."""
        for key, value in values.items():
            if key not in known_keys():
                raise NotFound(f"no setting {key}")
            source = self._uow.sources.get(key)
            if source is not None:
                raise ReadOnlySetting(f"{key} is set by the {source}; change it there")
            if key not in EDITABLE:
                raise ReadOnlySetting(f"{key} can only be set in the configuration file or the environment")
            checked = _check(key, value)
            await self._rows.put(key, json.dumps(checked), self._uow.now())
            await AuditService(self._uow).record("setting.set", "setting", key, value=checked)
        if values:
            await ChangeService(self._uow).record("settings", 0)
        return [item for item in await self.all() if item.key in values]


def _look_up(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def _plain(value: Any) -> Any:
    return _ANY.dump_python(value, mode="json")


def _check(key: str, value: Any) -> Any:
    section, leaf = key.split(".")
    model = type(getattr(Config(), section))
    try:
        return getattr(model.model_validate({leaf: value}), leaf)
    except ValidationError as error:
        raise Invalid(f"{key}: {error.errors()[0]['msg'].lower()}", key=key) from None
