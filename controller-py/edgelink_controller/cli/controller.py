"""`edgelink-controller`: run the controller, or write a configuration to start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from edgelink_controller import __version__

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Configuration file, JSON or TOML.")]
StateOption = Annotated[Path | None, typer.Option("--state-dir", help="Where database, keys and certificates are.")]


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", help="Say the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    config: ConfigOption = None,
    state_dir: StateOption = None,
    dev: Annotated[bool, typer.Option("--dev", help="Use a self-signed certificate and listen on loopback.")] = False,
    listen: Annotated[str | None, typer.Option("--listen", help="address:port, instead of listen.http.")] = None,
    no_builtin_relay: Annotated[
        bool, typer.Option("--no-builtin-relay", help="No relay in this process, whatever is configured.")
    ] = False,
    no_builtin_stun: Annotated[
        bool, typer.Option("--no-builtin-stun", help="No STUN server in this process, whatever is configured.")
    ] = False,
) -> None:
    """Run the controller until it is told to stop."""
    with _work() as serve:
        serve.run(config, state_dir, serve.Flags(dev, listen, not no_builtin_relay, not no_builtin_stun))


@app.command()
def init(config: ConfigOption = None, state_dir: StateOption = None) -> None:
    """Write a configuration file, create the database and print the admin password."""
    with _work() as serve:
        serve.init(config, state_dir)


@app.command()
def password(
    config: ConfigOption = None,
    state_dir: StateOption = None,
    account: Annotated[str, typer.Option("--account", help="Whose password.")] = "admin",
) -> None:
    """Give an account a new random password; its sessions end."""
    with _work() as serve:
        typer.echo(f"password of {account} (shown only now): {serve.new_password(config, state_dir, account)}")


@contextmanager
def _work() -> Iterator[ModuleType]:
    """The module behind the commands, imported when one runs; its failures are one line and exit code 2."""
    from edgelink_controller.cli import serve  # noqa: PLC0415

    try:
        yield serve
    except serve.Failed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    app()
