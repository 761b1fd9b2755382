"""Measured round trip times, last value per direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgelink_controller.core import best_paths
from edgelink_controller.kit.paging import Page, Paging
from edgelink_controller.kit.store import Uow
from edgelink_controller.latency.models import LatencyRecord
from edgelink_controller.latency.repository import LatencyRepository
from edgelink_controller.latency.schemas import LatencyOut, PathOut

# A value that nobody has renewed for this long says nothing any more.
STALE_S = 300
FORGET_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Sample:
    """Round trip from one end to another, each a kind (node, relay) and an id."""

    src: tuple[str, int]
    dst: tuple[str, int]
    rtt_ms: float


class LatencyService:
    def __init__(self, uow: Uow) -> None:
        self._uow = uow
        self._rows = LatencyRepository(uow.session)

    async def store(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            await self._rows.put(
                LatencyRecord(
                    src_type=sample.src[0],
                    src_id=sample.src[1],
                    dst_type=sample.dst[0],
                    dst_id=sample.dst[1],
                    rtt_ms=sample.rtt_ms,
                    recorded_at=self._uow.now(),
                )
            )

    async def fresh(self) -> list[Sample]:
        """What was measured within the last minutes."""
        rows = await self._rows.all(self._uow.now() - STALE_S)
        return [Sample((row.src_type, row.src_id), (row.dst_type, row.dst_id), row.rtt_ms) for row in rows]

    async def matrix(self, paging: Paging, src_type: str | None = None, src_id: int | None = None) -> Page[LatencyOut]:
        rows, total = await self._rows.page(paging, src_type, src_id)
        return Page.of([_shown(row) for row in rows], total, paging)

    async def paths(self, src: int, destinations: list[int]) -> list[PathOut]:
        """Best and second path from one node to others, by what was measured last."""
        node_relay: dict[int, dict[int, float]] = {}
        relay_relay: dict[tuple[int, int], float] = {}
        for sample in await self.fresh():
            if sample.src[0] == "node" and sample.dst[0] == "relay":
                node_relay.setdefault(sample.src[1], {})[sample.dst[1]] = sample.rtt_ms
            elif sample.src[0] == sample.dst[0] == "relay":
                relay_relay[sample.src[1], sample.dst[1]] = sample.rtt_ms
        found = best_paths(node_relay, relay_relay, [(src, dst) for dst in destinations])
        return [
            PathOut(src=a, dst=b, best=list(best) if best else None, second=list(second) if second else None)
            for (a, b), (best, second) in found.items()
        ]

    async def prune(self) -> None:
        await self._rows.prune(self._uow.now() - FORGET_S)


def _shown(row: LatencyRecord) -> LatencyOut:
    return LatencyOut(
        src_type=row.src_type,
        src_id=row.src_id,
        dst_type=row.dst_type,
        dst_id=row.dst_id,
        rtt_ms=row.rtt_ms,
        recorded_at=row.recorded_at,
    )
