"""`edgelink-ctl`: administer a controller, over REST or on its database file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelink_controller import __version__
from edgelink_controller.cli import commands
from edgelink_controller.cli.backend import Target
from edgelink_controller.cli.output import Format, Output

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(commands.network, name="network")
app.add_typer(commands.node, name="node")
app.add_typer(commands.server, name="server")
app.add_typer(commands.route, name="route")
app.add_typer(commands.token, name="token")
app.add_typer(commands.config, name="config")
app.command("status")(commands.status)
app.command("latency")(commands.latency)
app.command("audit")(commands.audit)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    db: Annotated[Path | None, typer.Option("--db", help="Database file; edgelink.db in the state directory.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", envvar="EDGELINK_STATE_DIR", help="Where the token keys are.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The controller's configuration file.")] = None,
    url: Annotated[
        str | None, typer.Option("--url", envvar="EDGELINK_URL", help="A running controller, instead of a file.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", envvar="EDGELINK_TOKEN", show_envvar=True, help="An admin token.")
    ] = None,
    username: Annotated[str, typer.Option("--username", envvar="EDGELINK_USERNAME")] = "admin",
    password: Annotated[
        str | None, typer.Option("--password", envvar="EDGELINK_PASSWORD", help="Better by the environment.")
    ] = None,
    tls_pin: Annotated[
        str | None, typer.Option("--tls-pin", envvar="EDGELINK_TLS_PIN", help="sha256:… of its certificate.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No remarks; ids only of what is new.")] = False,
    output: Annotated[Format, typer.Option("-o", "--output", help="How results are shown.")] = Format.table,
    _version_wanted: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    target = Target(
        url=None if db else url,
        token=token,
        username=username,
        password=password,
        tls_pin=tls_pin,
        db=db,
        state_dir=state_dir,
        config=config,
    )
    context.obj = (target, Output(output, quiet))


def main() -> None:
    app()
