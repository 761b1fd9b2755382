"""`make demo`: a whole private network on this machine, measured.

A controller, two relays and three nodes, each in a network namespace of its own. Prints what a person would ask next: does it ping (IPv4 and IPv6),
how fast is it through a relay, how long is the silence when the relay in use is killed, does a capture at the relay show anything; all that
on a network that lets no UDP through. Then UDP is let through: how soon do two nodes find the direct path, how fast is that. The same goes to
target/demo.json. Takes about a minute, ends by itself and cleans up; the exit code tells whether all of it worked.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from e2e.measure import Capture, PingStream, iperf3, ping
from e2e.mesh import Mesh, Node, Relay
from e2e.netns import Host, lab, need_privilege, until

MARKER = b"EdgeLinkPlain!"


def build(mesh: Mesh, say: Any) -> None:  # noqa: ANN401 - a printing function
    """Bring up everything, step by step."""
    say("starting the controller")
    mesh.start_controller()
    say("starting two relays")
    for name in ("relay-1", "relay-2"):
        mesh.add_relay(name)
    say("starting three nodes")
    for name in ("node-a", "node-b", "node-c"):
        block_udp(mesh.add_node(name, p2p=True).host)
    say("authorising the nodes")
    mesh.authorise_all()
    say("waiting until every node is on every relay")
    mesh.wait_connected()


def block_udp(host: Host) -> None:
    """As in an office that lets HTTPS through and nothing else."""
    host.run("nft", "add", "table", "inet", "office")
    host.run("nft", "add", "chain", "inet", "office", "in", "{ type filter hook input priority 0; }")
    host.run("nft", "add", "rule", "inet", "office", "in", "iifname", "eth0", "meta", "l4proto", "udp", "drop")


def measure_direct(mesh: Mesh, say: Any) -> dict[str, Any]:  # noqa: ANN401
    """What changes when UDP passes."""
    a, b = mesh.nodes[0], mesh.nodes[1]
    say("letting UDP through")
    for node in mesh.nodes:
        node.kill()
        node.host.run("nft", "delete", "table", "inet", "office")
        node.start()
    mesh.wait_connected()
    began = time.monotonic()
    ping(a.host, b.v4, 1)
    for one, other in ((a, b), (b, a)):
        until(f"{one.name} sends to {other.name} directly", 20, lambda n=one, p=other: n.peer(p.name)["direct"], 0.01)
    upgrade_ms = (time.monotonic() - began) * 1000
    rtt_ms = ping(a.host, b.v4, 50).rtt_ms
    say(f"iperf3 {a.name} → {b.name} directly")
    return {
        "direct_after_ms": round(upgrade_ms),
        "direct_address": a.peer(b.name)["direct"],
        "direct_rtt_ms": rtt_ms,
        "direct_gbit_s": round(iperf3(a.host, b.host, b.v4, 4), 3),
    }


def relay_in_use(mesh: Mesh, node: Node, peer: Node) -> Relay:
    """The relay that `node` sends to `peer` by."""

    def find() -> Relay | None:
        for known in node.status()["peers"]:
            if known["name"] == peer.name and known["path"]:
                return next(r for r in mesh.relays if r.relay_id == known["path"][0])
        return None

    found = until(f"{node.name} has a path to {peer.name}", 20, find)
    assert isinstance(found, Relay)
    return found


def measure(mesh: Mesh, say: Any) -> dict[str, Any]:  # noqa: ANN401
    """Everything that goes into the table."""
    result: dict[str, Any] = {"pairs": []}
    for a, b in itertools.permutations(mesh.nodes, 2):
        for family, address in (("IPv4", b.v4), ("IPv6", b.v6)):
            say(f"ping {a.name} → {b.name} ({family})")
            ping(a.host, address, 3)  # the handshake is not what is measured
            seen = ping(a.host, address, 20)
            result["pairs"].append(
                {
                    "from": a.name,
                    "to": b.name,
                    "family": family,
                    "loss_percent": seen.loss_percent,
                    "rtt_ms": seen.rtt_ms,
                }
            )
    a, b = mesh.nodes[0], mesh.nodes[1]

    used = relay_in_use(mesh, a, b)
    say(f"capturing at {used.name} while {a.name} sends a known text")
    capture = Capture(used.host)
    ping(a.host, b.v4, 50, size=400, pattern=MARKER.hex())
    seen_bytes = capture.stop()
    result["captured_bytes"] = len(seen_bytes)
    result["plaintext_seen"] = MARKER in seen_bytes
    inside = Capture(b.host, "edge0")
    ping(a.host, b.v4, 5, size=400, pattern=MARKER.hex())
    result["control_capture_saw_it"] = MARKER in inside.stop()  # proves that the search finds the text where it is

    say(f"iperf3 {a.name} → {b.name} through {used.name}")
    result["relay_gbit_s"] = round(iperf3(a.host, b.host, b.v4, 4), 3)

    used = relay_in_use(mesh, a, b)
    say(f"kill -9 {used.name}, the relay in use, under a 10 ms ping")
    stream = PingStream(a.host, b.v4, "gap-ping")
    if not stream.wait_for_replies(100):
        msg = "the ping before the kill got no replies"
        raise RuntimeError(msg)
    killed_at = time.time()
    used.kill()
    recovered = stream.wait_for_replies(200, 30)
    result["relay_kill_gap_ms"] = round(stream.longest_gap_ms(killed_at), 1) if recovered else None
    stream.stop()
    used.start()
    return result | measure_direct(mesh, say)


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the tables."""
    table = Table(title="Every pair, both families, 20 pings each")
    for heading in ("from", "to", "family"):
        table.add_column(heading)
    table.add_column("loss %", justify="right")
    table.add_column("RTT ms", justify="right")
    for pair in result["pairs"]:
        rtt = "-" if pair["rtt_ms"] is None else f"{pair['rtt_ms']:.2f}"
        style = "" if pair["loss_percent"] == 0 else "bold red"
        table.add_row(pair["from"], pair["to"], pair["family"], f"{pair['loss_percent']:.0f}", rtt, style=style)
    console.print(table)
    other = Table(title="Through the relay", show_header=False)
    gap = result["relay_kill_gap_ms"]
    other.add_row("iperf3, one TCP stream", f"{result['relay_gbit_s']:.2f} Gbit/s")
    other.add_row("silence when the relay in use is killed", "never came back" if gap is None else f"{gap:.0f} ms")
    other.add_row(
        "capture at the relay",
        f"{result['captured_bytes']:,} bytes, plaintext {'SEEN' if result['plaintext_seen'] else 'not seen'}",
    )
    console.print(other)
    direct = Table(title="Directly, once UDP is let through", show_header=False)
    direct.add_row("from the first packet to the direct path, both ways", f"{result['direct_after_ms']} ms")
    direct.add_row("ping", f"{result['direct_rtt_ms']:.2f} ms")
    direct.add_row("iperf3, one TCP stream", f"{result['direct_gbit_s']:.2f} Gbit/s")
    console.print(direct)


def good(result: dict[str, Any]) -> bool:
    """Whether it all worked."""
    return (
        all(pair["loss_percent"] == 0 for pair in result["pairs"])
        and result["relay_gbit_s"] > 0
        and result["direct_gbit_s"] > 0
        and result["relay_kill_gap_ms"] is not None
        and not result["plaintext_seen"]
        and result["captured_bytes"] > 10_000
        and result["control_capture_saw_it"]
    )


def keep_running(console: Console, mesh: Mesh) -> None:
    """Leave it up and say what to try."""
    a, b = mesh.nodes[0], mesh.nodes[1]
    cli = f"{a.bin}/edgelink"
    enter = f"ip netns exec {a.host.netns}"
    console.print("\nIt is still running. In another terminal (as the same user), try:")
    for line in (
        f"{enter} {cli} status --socket {a.state}/edgelink.sock",
        f"{enter} {cli} ping {b.name} --socket {a.state}/edgelink.sock",
        f"{enter} ping {b.v6}",
        f"{mesh.scripts}/edgelink-ctl --db {mesh.state}/edgelink.db node list",
        f"less {mesh.lab.path}/relay-1.log",
    ):
        console.print(f"  {line}", soft_wrap=True, highlight=False)
    console.print("Enter (or Ctrl-C) ends it.")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        if sys.stdin.isatty():
            input()
        else:
            signal.pause()


def _interrupt(*_: object) -> None:
    """SIGTERM cleans up like Ctrl-C."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bin", type=Path, default=Path("target/fast"), help="where edgelink and edgelink-relay are")
    parser.add_argument("--json", type=Path, default=Path("target/demo.json"), help="where the figures go")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    args = parser.parse_args()
    need_privilege()
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    path = Path(tempfile.mkdtemp(prefix="edgelink-demo-"))
    ok = False
    try:
        with lab(path) as made:
            mesh = Mesh(made, args.bin)
            with Progress(
                SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=False
            ) as progress:
                task = progress.add_task("", total=None)

                def say(text: str) -> None:
                    progress.update(task, description=text)
                    if not console.is_terminal:
                        console.print(f"· {text}")

                build(mesh, say)
                result = measure(mesh, say)
                progress.update(task, description="done")
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result, indent=1) + "\n")
            show(console, result)
            ok = good(result)
            console.print(f"Figures: {args.json}")
            if not ok:
                console.print("[bold red]Something is not as it should be; see the tables above.")
            if args.keep:
                keep_running(console, mesh)
    except (TimeoutError, RuntimeError) as error:
        console.print(f"[bold red]{error}", markup=True, highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted; cleaning up")
    finally:
        if ok:
            shutil.rmtree(path, ignore_errors=True)
        else:
            console.print(f"Logs are in {path}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
