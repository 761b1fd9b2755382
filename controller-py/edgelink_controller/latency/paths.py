"""The paths that nodes are told, kept steady: a new best path must be clearly better than the one in use.

Only pairs of a node whose measurements moved are computed again. The search itself is the wheel's.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TypeVar

from edgelink_controller.core import Path, best_paths
from edgelink_controller.latency.service import Sample

# A path replaces another only when it is better by both.
HYSTERESIS_RATIO = 0.10
HYSTERESIS_MS = 5.0
K = TypeVar("K")
Pair = tuple[int, int]
Choice = tuple[Path | None, Path | None]
NOTHING: Choice = (None, None)


class PathBook:
    """Round trip times of one controller's relays and nodes, and the choice for each (sender, receiver)."""

    def __init__(self) -> None:
        self._node_relay: dict[int, dict[int, float]] = {}
        self._relay_relay: dict[Pair, float] = {}
        self._choices: dict[Pair, Choice] = {}

    def choice(self, sender: int, receiver: int) -> Choice:
        return self._choices.get((sender, receiver), NOTHING)

    def note(self, sample: Sample) -> bool:
        """Take a measurement; True when it moved enough that paths may change."""
        if sample.src[0] == "node" and sample.dst[0] == "relay":
            row = self._node_relay.setdefault(sample.src[1], {})
            return _put(row, sample.dst[1], sample.rtt_ms)
        if sample.src[0] == sample.dst[0] == "relay":
            return _put(self._relay_relay, (sample.src[1], sample.dst[1]), sample.rtt_ms)
        return False

    def forget(self, node_id: int, relay_id: int | None = None) -> bool:
        """Drop what a node measured towards a relay it is not on any more, or everything of the node."""
        if relay_id is None:
            self._choices = {pair: choice for pair, choice in self._choices.items() if node_id not in pair}
            return self._node_relay.pop(node_id, None) is not None
        return self._node_relay.get(node_id, {}).pop(relay_id, None) is not None

    def recompute(self, nodes: Iterable[int], peers: Iterable[int]) -> set[Pair]:
        """Choose again for every pair of `nodes` with `peers`, both ways; gives the pairs whose choice changed."""
        others = list(peers)
        pairs = {pair for a in nodes for b in others if a != b for pair in ((a, b), (b, a))}
        changed = set()
        for pair, (best, second) in best_paths(self._node_relay, self._relay_relay, sorted(pairs)).items():
            new = self._settle(pair, best, second)
            if new != self._choices.get(pair, NOTHING):
                changed.add(pair)
                self._choices[pair] = new
        return changed

    def _settle(self, pair: Pair, best: Path | None, second: Path | None) -> Choice:
        current = self._choices.get(pair, NOTHING)[0]
        if best is None or current is None or best == current:
            return best, second
        old, new = self.cost(pair, current), self.cost(pair, best)
        if old is None or new is None:
            return best, second
        if old - new > HYSTERESIS_MS and old - new > old * HYSTERESIS_RATIO:
            return best, second
        return current, best

    def cost(self, pair: Pair, path: Path) -> float | None:
        """Milliseconds of a path by what is known now; None when a part of it is not."""
        total = 0.0
        legs = [
            self._node_relay.get(pair[0], {}).get(path[0]),
            self._node_relay.get(pair[1], {}).get(path[-1]),
            *(self._between(a, b) for a, b in pairwise(path)),
        ]
        for leg in legs:
            if leg is None:
                return None
            total += leg
        return total

    def _between(self, a: int, b: int) -> float | None:
        known = self._relay_relay.get((a, b))
        return self._relay_relay.get((b, a)) if known is None else known


def _put(row: dict[K, float], key: K, value: float) -> bool:
    before = row.get(key)
    row[key] = value
    return before is None or abs(value - before) > max(HYSTERESIS_MS, before * HYSTERESIS_RATIO) / 2
