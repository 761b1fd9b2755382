"""Figures for Prometheus, read from the hub when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgelink_controller.control.hub import Hub


class HubMetrics(Collector):
    """A registry of its own for each application, so that several can live in one process."""

    def __init__(self, hub: Hub) -> None:
        self.registry = CollectorRegistry()
        self._hub = hub
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        counts = self._hub.counts
        yield GaugeMetricFamily("edgelink_machines_connected", "Machines on /ws/control", counts["machines"])
        yield GaugeMetricFamily("edgelink_relays_connected", "Relays on /ws/server", counts["relays"])
        yield GaugeMetricFamily("edgelink_nodes", "Nodes known", len(self._hub.picture.nodes))
        yield GaugeMetricFamily("edgelink_networks", "Networks", len(self._hub.picture.networks))
        yield GaugeMetricFamily("edgelink_revision", "Newest change seen", self._hub.picture.head)
