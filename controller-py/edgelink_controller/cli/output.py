"""Tables for people, JSON for programs, tab-separated lines for pipes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table


class Format(StrEnum):
    table = "table"
    json = "json"
    plain = "plain"


Columns = Sequence[str]
_TIMES = ("_at", "_seen", "_heartbeat")


class Output:
    """`quiet`: no remarks, and of something new only its id."""

    def __init__(self, format_: Format, quiet: bool) -> None:
        self.format = format_
        self.quiet = quiet
        self._console = Console(highlight=False)

    def rows(self, items: Sequence[dict[str, Any]], columns: Columns) -> None:
        if self.format is Format.json:
            _json(items)
        elif self.format is Format.plain or self.quiet:
            for item in items:
                _line("\t".join(_text(name, item.get(name)) for name in columns))
        else:
            table = Table(*(name.replace("_", " ") for name in columns), box=None, header_style="bold", pad_edge=False)
            for item in items:
                table.add_row(*(_text(name, item.get(name)) for name in columns))
            self._console.print(table)
            if not items:
                self._console.print("(none)", style="dim")

    def one(self, item: dict[str, Any]) -> None:
        """Everything about one thing."""
        if self.format is Format.json:
            _json(item)
        elif self.format is Format.plain or self.quiet:
            for name, value in item.items():
                _line(f"{name}\t{_text(name, value)}")
        else:
            table = Table(show_header=False, box=None, pad_edge=False)
            table.add_column(style="bold")
            table.add_column(overflow="fold")
            for name, value in item.items():
                table.add_row(name.replace("_", " "), _text(name, value))
            self._console.print(table)

    def made(self, item: dict[str, Any], remark: str, *, short: Sequence[str] = ("id",)) -> None:
        """Something new: all of it as JSON, its `short` fields when quiet, a remark otherwise."""
        if self.format is Format.json:
            _json(item)
        elif self.quiet or self.format is Format.plain:
            _line("\t".join(_text(name, item.get(name)) for name in short))
        else:
            self._console.print(remark, soft_wrap=True, markup=False)

    def done(self, remark: str, item: dict[str, Any] | None = None) -> None:
        """A change that has nothing to show."""
        if self.format is Format.json:
            _json(item if item is not None else {"ok": True})
        elif not self.quiet:
            self._console.print(remark, soft_wrap=True, markup=False)


def _text(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(part) for part in value) or "-"
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, int) and name.endswith(_TIMES):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return str(value)


def _json(value: Any) -> None:
    _line(json.dumps(value, indent=2, ensure_ascii=False))


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
