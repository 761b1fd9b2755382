from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class SettingOut(BaseModel):
    """`source` is environment, file, database or default."""

    key: str
    value: Any
    source: str
    default: Any


class SettingsPatch(BaseModel):
    values: dict[str, Any]
