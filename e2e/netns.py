"""Network namespaces joined by a bridge, as a small internet of 192.0.2.0/24 and 2001:db8::/64 (documentation addresses).

A `Lab` owns what it makes and takes it away again: namespaces carry its name, processes are ended by pid. Nothing outside the
namespaces is touched and no packet leaves them.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000
_LABS = itertools.count(1)


def need_privilege() -> None:
    """Goes on as root; anybody else is run again inside a user namespace where he is root."""
    if os.geteuid() == 0:
        return
    if os.environ.get("EDGELINK_USERNS"):
        msg = "no user namespace to be had here; run this as root (sudo)"
        raise SystemExit(msg)
    os.environ["EDGELINK_USERNS"] = "1"
    inner = 'mount -t tmpfs tmpfs /run && exec "$@"'
    args = ["unshare", "-Urnm", "--map-root-user", "bash", "-c", inner, "bash", sys.executable, *sys.orig_argv[1:]]
    os.execvp("unshare", args)  # noqa: S606 - replaces this process


def run(*args: str, check: bool = True) -> str:
    """A command's standard output; its standard error is in the exception when it fails."""
    done = subprocess.run(args, check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        msg = f"{' '.join(args)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
        raise RuntimeError(msg)
    return done.stdout


def _die_with_parent() -> None:
    """In the child: SIGKILL when the harness goes, whatever way it goes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _set_netns(file: IO[bytes]) -> None:
    """Move the calling thread to another network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


class Process:
    """A started program with its log file."""

    def __init__(self, name: str, args: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self._file: IO[bytes] = log.open("ab")
        self.popen = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            preexec_fn=_die_with_parent,
        )

    @property
    def pid(self) -> int:
        """Of the program itself: `ip netns exec` replaces itself by it."""
        return self.popen.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self.popen.poll() is None

    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, needle: str, seconds: float = 20) -> str:
        """The first line of the log with `needle` in it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.text().splitlines():
                if needle in line:
                    return line
            if not self.alive():
                break
            time.sleep(0.05)
        msg = f"{self.name}: no {needle!r} in its log{'' if self.alive() else ' (it ended)'}:\n{self.text()[-3000:]}"
        raise TimeoutError(msg)

    def kill(self) -> None:
        """Kill -9."""
        if self.alive():
            self.popen.send_signal(signal.SIGKILL)
            self.popen.wait(10)
        self._file.close()

    def stop(self, seconds: float = 8) -> int:
        """SIGTERM, then SIGKILL; the exit code."""
        if self.alive():
            self.popen.terminate()
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(10)
        self._file.close()
        return self.popen.returncode


class Host:
    """One namespace with one address of each family on the shared wire."""

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.lab = lab
        self.name = name
        self.netns = f"{lab.prefix}-{name}"
        self.address = f"192.0.2.{number}"
        self.address6 = f"2001:db8::{number:x}"

    def command(self, *args: str) -> list[str]:
        """`args` as they have to be run to run here."""
        return ["ip", "netns", "exec", self.netns, *args]

    def run(self, *args: str, check: bool = True) -> str:
        """Runs to the end, here."""
        return run(*self.command(*args), check=check)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The sockets that this thread opens within belong to this host."""
        with Path("/proc/thread-self/ns/net").open("rb") as home, Path(f"/run/netns/{self.netns}").open("rb") as there:
            _set_netns(there)
            try:
                yield
            finally:
                _set_netns(home)

    def start(self, name: str, *args: str, env: dict[str, str] | None = None) -> Process:
        """Starts a program here; ended with the lab at the latest."""
        process = Process(name, self.command(*args), self.lab.path / f"{name}.log", env)
        self.lab.processes.append(process)
        return process


class Wire:
    """Another wire than the internet: a LAN, with a switch of its own."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.netns = lab.namespace(name)
        self._ports: dict[str, str] = {}
        run("ip", "-n", self.netns, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.netns, "link", "set", "br0", "up")

    def join(self, host: Host, *addresses: str, interface: str = "eth1") -> None:
        """Connects a host, with these addresses on its end."""
        port = f"p{len(self._ports)}"
        self._ports[host.name] = port
        peer = ["peer", "name", interface, "netns", host.netns]
        run("ip", "-n", self.netns, "link", "add", port, "type", "veth", *peer)
        run("ip", "-n", self.netns, "link", "set", port, "master", "br0", "up")
        host.run("ip", "link", "set", interface, "up")
        for address in addresses:
            host.run("ip", "address", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))

    def cut(self, host: Host) -> None:
        """A broken switch: the host's interface has a carrier, and nobody is there."""
        run("ip", "-n", self.netns, "link", "set", self._ports[host.name], "nomaster")

    def mend(self, host: Host) -> None:
        """As before."""
        run("ip", "-n", self.netns, "link", "set", self._ports[host.name], "master", "br0")


class Lab:
    """Hosts on one wire. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix = f"el{os.getpid() % 100000}-{next(_LABS)}"
        self.hosts: list[Host] = []
        self.processes: list[Process] = []
        self._switch = f"{self.prefix}-sw"
        self._made: list[str] = []

    def __enter__(self) -> Lab:
        self._netns(self._switch)
        run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _netns(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._made.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", check=False)

    def namespace(self, name: str) -> str:
        """A namespace for whatever a test needs beside hosts; its name."""
        self._netns(f"{self.prefix}-{name}")
        return f"{self.prefix}-{name}"

    def host(self, name: str, *, internet: bool = True) -> Host:
        """A new host on the wire, or on none yet."""
        number = 10 + len(self.hosts)
        host = Host(self, name, number)
        self._netns(host.netns)
        if not internet:
            return host
        port = f"p{number}"
        run("ip", "-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.netns)
        run("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", host.netns, "link", "set", "eth0", "up")
        run("ip", "-n", host.netns, "address", "add", f"{host.address}/24", "dev", "eth0")
        run("ip", "-n", host.netns, "address", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
        self.hosts.append(host)
        return host

    def behind(self, name: str, router: Host, net: int = 1) -> Host:
        """A new host in 10.7.`net`.0/24 that has no way out but over `router`, which forwards its packets as they are."""
        number = 10 + len(self.hosts)
        host = Host(self, name, number)
        host.address, host.address6 = f"10.7.{net}.{number}", ""
        self._netns(host.netns)
        port = f"lan{net}"
        if not router.run("ip", "link", "show", port, check=False):
            router.run("ip", "link", "add", port, "type", "bridge")
            router.run("ip", "address", "add", f"10.7.{net}.1/24", "dev", port)
            router.run("ip", "link", "set", port, "up")
            router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        run(
            *("ip", "-n", router.netns, "link", "add", f"p{number}", "type", "veth"),
            *("peer", "name", "eth0", "netns", host.netns),
        )
        router.run("ip", "link", "set", f"p{number}", "master", port, "up")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "route", "add", "default", "via", f"10.7.{net}.1")
        self.hosts.append(host)
        return host

    def close(self) -> None:
        """Ends every process and takes every namespace away."""
        for process in reversed(self.processes):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.kill()
        self.processes.clear()
        for name in reversed(self._made):
            run("ip", "netns", "delete", name, check=False)
        self._made.clear()


@contextlib.contextmanager
def lab(path: Path) -> Iterator[Lab]:
    """A lab whose logs lie in `path`."""
    path.mkdir(parents=True, exist_ok=True)
    with Lab(path) as made:
        yield made


def until(what: str, seconds: float, check: object, every: float = 0.1) -> object:
    """Waits for `check()` to be truthy and returns what it gave; a TimeoutError says what did not come true."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            last = check()  # type: ignore[operator]
            if last:
                return last
        except (RuntimeError, OSError, ValueError, KeyError, IndexError) as error:
            last = error
        time.sleep(every)
    msg = f"{what}: not within {seconds} s (last: {last!r})"
    raise TimeoutError(msg)
