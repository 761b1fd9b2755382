"""The paths that nodes are told. The search is the wheel's, which keeps a path in use until another is clearly better.

Only pairs of a node whose measurements moved are computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from edgelink_controller.core import Path, best_paths
from edgelink_controller.latency.service import Sample

# Smaller moves of a measurement cannot make another path better by the wheel's 10 % and 5 ms.
MOVED_RATIO = 0.05
MOVED_MS = 2.5
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
        in_use = {pair: best for pair in pairs if (best := self.choice(*pair)[0]) is not None}
        changed = set()
        found = best_paths(self._node_relay, self._relay_relay, sorted(pairs), in_use)
        for pair, choice in found.items():
            if choice != self._choices.get(pair, NOTHING):
                changed.add(pair)
                self._choices[pair] = choice
        return changed


def _put(row: dict[K, float], key: K, value: float) -> bool:
    before = row.get(key)
    row[key] = value
    return before is None or abs(value - before) > max(MOVED_MS, before * MOVED_RATIO)
