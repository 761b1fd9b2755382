"""Pages of a list: `{items, total, page, per_page}`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

MAX_PER_PAGE = 500


@dataclass(frozen=True, slots=True)
class Paging:
    """`page` counts from 1."""

    page: int = 1
    per_page: int = 50

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.per_page


class Page(BaseModel, Generic[M]):
    items: list[M]
    total: int
    page: int
    per_page: int

    @classmethod
    def of(cls, items: Sequence[M], total: int, paging: Paging) -> Page[M]:
        return cls(items=list(items), total=total, page=paging.page, per_page=paging.per_page)
