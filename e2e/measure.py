"""What a person would measure with ping, iperf3 and a packet capture, as numbers."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2e.netns import Host, Process

_LOSS = re.compile(r"(\d+) packets transmitted, (\d+) received")
_RTT = re.compile(r"rtt min/avg/max/mdev = [\d.]+/([\d.]+)/")
_ETH_P_ALL = 0x0003
_REPLY = re.compile(r"^\[(\d+\.\d+)\] .*icmp_seq=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Ping:
    """Loss in percent, mean round trip in milliseconds (None when nothing came back)."""

    loss_percent: float
    rtt_ms: float | None


def ping(host: Host, address: str, count: int = 20, interval: float = 0.02, size: int = 56, pattern: str = "") -> Ping:
    """`count` echo requests from `host`."""
    args = ["ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", "1", "-s", str(size)]
    if pattern:
        args += ["-p", pattern]
    done = subprocess.run(host.command(*args, address), check=False, capture_output=True, text=True)
    counts, rtt = _LOSS.search(done.stdout), _RTT.search(done.stdout)
    if counts is None:
        if "unreachable" in done.stderr or "No route to host" in done.stderr:  # nothing was even sent
            return Ping(100, None)
        msg = f"ping {address}: {done.stdout}{done.stderr}"
        raise RuntimeError(msg)
    sent, received = int(counts[1]), int(counts[2])
    return Ping(100 * (sent - received) / sent, float(rtt[1]) if rtt else None)


class PingStream:
    """A ping every 10 ms that goes on while something is killed; then says how long it heard nothing."""

    def __init__(self, host: Host, address: str, name: str, interval: float = 0.01) -> None:
        self.interval = interval
        self.process: Process = host.start(name, "ping", "-n", "-D", "-i", str(interval), "-W", "1", address)

    def replies(self) -> list[float]:
        """Times of arrival, unix seconds."""
        return [float(match[1]) for match in _REPLY.finditer(self.process.text())]

    def wait_for_replies(self, more: int, seconds: float = 20) -> bool:
        """Whether `more` further replies came in time."""
        have, end = len(self.replies()), time.monotonic() + seconds
        while time.monotonic() < end:
            if len(self.replies()) >= have + more:
                return True
            time.sleep(0.05)
        return False

    def longest_gap_ms(self, since: float = 0.0) -> float:
        """The longest silence between two replies, the interval itself taken off."""
        times = [t for t in self.replies() if t >= since - 1.0]
        gaps = [b - a for a, b in itertools.pairwise(times)]
        return max(0.0, max(gaps, default=float("inf")) - self.interval) * 1000

    def stop(self) -> None:
        """Ends the ping."""
        self.process.stop()


def iperf3(client: Host, server: Host, address: str, seconds: int = 3, *extra: str) -> float:
    """TCP goodput from client to server in Gbit/s."""
    serving = server.start(f"iperf3-server-{time.monotonic_ns()}", "iperf3", "-s", "-1", "-B", address)
    try:
        for attempt in range(20):
            time.sleep(0.1)
            done = subprocess.run(
                client.command("iperf3", "-J", "-c", address, "-t", str(seconds), *extra),
                check=False,
                capture_output=True,
                text=True,
                timeout=seconds + 30,
            )
            report = json.loads(done.stdout or "{}")
            if "error" not in report and "end" in report:
                return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9
            if "Connection refused" not in report.get("error", "") or attempt == 19:
                break
        msg = f"iperf3 to {address}: {report.get('error', done.stdout[-500:])}"
        raise RuntimeError(msg)
    finally:
        serving.kill()


class Capture:
    """Every byte that passes one interface of a host, as a packet socket shows it (packet(7)); at most 64 MiB are kept."""

    LIMIT_BYTES = 64 << 20

    def __init__(self, host: Host, interface: str = "eth0") -> None:
        self._seen = bytearray()
        self._stop = threading.Event()
        with host.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind((interface, 0))
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                packet = self._socket.recv(1 << 17)
                if len(self._seen) < self.LIMIT_BYTES:
                    self._seen += packet

    def stop(self) -> bytes:
        """All captured bytes."""
        time.sleep(0.2)
        self._stop.set()
        self._thread.join(5)
        self._socket.close()
        return bytes(self._seen)
