"""What the commands of `edgelink-controller` do. A module of its own, so that help and completion do not import it."""

from __future__ import annotations

import asyncio
import getpass
import ipaddress
import logging
import socket
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog
import typer

from edgelink_controller.config import Config, ConfigError, LoadedConfig, load, sample
from edgelink_controller.identity.service import IdentityService
from edgelink_controller.kit.errors import Problem
from edgelink_controller.kit.secrets import write_private
from edgelink_controller.kit.store import Actor
from edgelink_controller.places import default_state_dir, find_config
from edgelink_controller.runtime import open_store, prepare

DEV_LISTEN = "127.0.0.1:8443"


class Failed(Exception):
    """What a command says instead of a result."""


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line of `run` adds to the configuration."""

    dev: bool
    listen: str | None
    builtin_relay: bool
    builtin_stun: bool


def run(config: Path | None, state_dir: Path | None, flags: Flags) -> None:
    """Until a signal comes. Raises `Failed`."""
    import uvloop  # noqa: PLC0415 - the other commands do without

    try:
        loaded = load(config or find_config())
        _log_to_stderr(loaded.config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(loaded, state_dir or default_state_dir(), flags))
    except ConfigError as error:
        raise Failed(str(error)) from None


def init(config: Path | None, state_dir: Path | None) -> None:
    """Raises `Failed`."""
    folder = state_dir or default_state_dir()
    path = config or folder / "controller.toml"
    try:
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, sample(folder / "edgelink.db").encode())
            typer.echo(f"wrote {path}")
        asyncio.run(_init(load(path), folder))
    except (ConfigError, OSError) as error:
        raise Failed(str(error)) from None


def new_password(config: Path | None, state_dir: Path | None, account: str) -> str:
    """Raises `Failed`."""
    try:
        return asyncio.run(_new_password(load(config or find_config()), state_dir or default_state_dir(), account))
    except (ConfigError, Problem) as error:
        raise Failed(str(error)) from None


async def _new_password(loaded: LoadedConfig, state_dir: Path, account: str) -> str:
    store = open_store(loaded, state_dir, create_keys=False)
    try:
        await prepare(store)
        async with store.write(Actor("cli", getpass.getuser(), "local")) as uow:
            return await IdentityService(uow).reset_password(account)
    finally:
        await store.database.close()


async def _init(loaded: LoadedConfig, state_dir: Path) -> None:
    store = open_store(loaded, state_dir)
    try:
        first = await prepare(store)
    finally:
        await store.database.close()
    if first.password:
        _announce_password(first.password)
    else:
        typer.echo("the database exists already; its accounts are as they were")


async def _serve(loaded: LoadedConfig, state_dir: Path, flags: Flags) -> None:
    config = loaded.config
    store = open_store(loaded, state_dir)
    try:
        chosen = flags.listen or (
            DEV_LISTEN if flags.dev and loaded.source("listen.http") == "default" else config.listen.http
        )
        host, port = parse_listen(chosen)
        cert, key, pin = _certificate(config, state_dir, flags.dev, host)
        server_socket = _bind(host, port)
        # Now that nothing stands in the way: the web framework takes as long to import as everything else together.
        from edgelink_controller.app import create_app  # noqa: PLC0415
        from edgelink_controller.control.builtin import Builtin, Surroundings  # noqa: PLC0415
        from edgelink_controller.control.hub import Hub  # noqa: PLC0415
        from edgelink_controller.serving import make_server  # noqa: PLC0415

        first = await prepare(store)
        if first.password:
            _announce_password(first.password)
        hub = Hub(store)
        application = create_app(store, hub)
        server = make_server(application, cert, key)
        typer.echo(f"listening on {'https' if cert else 'http'}://{host}:{server_socket.getsockname()[1]}", err=True)
        around = Surroundings(host, flags.dev, cert, key, pin, flags.builtin_relay, flags.builtin_stun)
        builtin = Builtin(hub, state_dir, around)
        try:
            await builtin.start()
            for what, address in (("relay", builtin.relay_address), ("STUN server", builtin.stun_address)):
                if address:
                    typer.echo(f"built-in {what} on {address}", err=True)
            await server.serve(sockets=[server_socket])
        finally:
            await builtin.stop()
            server_socket.close()
    finally:
        await store.database.close()


def parse_listen(text: str) -> tuple[str, int]:
    """`address:port`, the address in brackets when it is IPv6. Raises `ConfigError`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"listen.http: expected address:port, got {text!r}")
    return host or "0.0.0.0", int(port)  # noqa: S104 - ":443" means everywhere


def _certificate(config: Config, state_dir: Path, dev: bool, host: str) -> tuple[str | None, str | None, str | None]:
    if dev:
        from edgelink_controller.kit.certificates import dev_certificate  # noqa: PLC0415

        made = dev_certificate(state_dir, [*config.names, host])
        typer.echo(f"development certificate {made.cert}\ncertificate pin {made.pin}", err=True)
        return str(made.cert), str(made.key), made.pin
    cert, key = config.tls.cert, config.tls.key
    if cert and key:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"tls: {cert} and {key} cannot be used: {error}") from None
        return str(cert), str(key), None
    if config.behind_proxy or _is_loopback(host):
        return None, None, None
    raise ConfigError(
        "no certificate: set tls.cert and tls.key, or behind_proxy = true when a proxy in front does TLS, "
        "or start with --dev for a self-signed one"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        # From here on clients wait in the backlog until the application is ready, instead of being refused.
        bound.listen(1024)
    except PermissionError:
        bound.close()
        raise ConfigError(
            f"port {port} needs privileges; choose one above 1023 with --listen, or grant CAP_NET_BIND_SERVICE"
        ) from None
    except OSError as error:
        bound.close()
        if error.errno == 98:
            raise ConfigError(
                f"port {port} on {host} is in use; see who has it with: ss -ltnp 'sport = :{port}', "
                "or choose another with --listen"
            ) from None
        raise ConfigError(f"{host}:{port} cannot be bound: {error.strerror}") from None
    bound.set_inheritable(False)
    return bound


def _announce_password(password: str) -> None:
    # On standard output and not in the log: it is shown once and kept nowhere.
    typer.echo(f"admin password (shown only now): {password}")
    sys.stdout.flush()


def _log_to_stderr(config: Config) -> None:
    level = getattr(logging, config.log.level.upper())
    logging.basicConfig(
        level=max(level, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
    renderer = structlog.processors.JSONRenderer() if config.log.format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
