"""The commands of `edgelink-ctl` over a `Backend`. Things are named by id or by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from edgelink_controller.cli.backend import Backend, CommandError, Target, connect
from edgelink_controller.cli.output import Output
from edgelink_controller.places import default_state_dir

network = typer.Typer(no_args_is_help=True, help="Networks.")
node = typer.Typer(no_args_is_help=True, help="Nodes: machines in networks.")
server = typer.Typer(no_args_is_help=True, help="Relays and STUN servers.")
route = typer.Typer(no_args_is_help=True, help="Routes that nodes offer.")
token = typer.Typer(no_args_is_help=True, help="Tokens.")
config = typer.Typer(no_args_is_help=True, help="Settings.")

Ref = Annotated[str, typer.Argument(help="Id or name.")]
RouteId = Annotated[int, typer.Argument(help="Route id.")]
Hours = Annotated[float | None, typer.Option("--hours", help="Life of the token instead of the configured one.")]

NETWORK_COLUMNS = ("id", "name", "subnet", "subnet6", "revision", "description")
NODE_COLUMNS = ("id", "name", "network", "addresses", "authorized", "online", "relays", "version", "last_seen")
SERVER_COLUMNS = ("id", "name", "type", "region", "url", "stun", "enabled", "online", "last_heartbeat")
ROUTE_COLUMNS = ("id", "cidr", "node_id", "network_id", "priority", "weight", "enabled", "origin")
TOKEN_COLUMNS = ("jti", "kind", "subject", "issued_at", "expires_at", "revoked_at", "reason")
AUDIT_COLUMNS = ("id", "created_at", "actor_type", "actor_id", "action", "target_type", "target_id", "details")

Work = Callable[[Backend, Output], Awaitable[None]]


def carry_out(context: typer.Context, work: Work) -> None:
    """Connect to where the global options say and do it; failures are one line and exit code 1."""
    chosen: tuple[Target, Output] = context.obj
    target, output = chosen

    async def run() -> None:
        async with connect(target) as backend:
            await work(backend, output)

    try:
        asyncio.run(run())
    except CommandError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


# Networks


@network.command("list")
def network_list(context: typer.Context) -> None:
    async def work(backend: Backend, output: Output) -> None:
        output.rows(await backend.all("/networks"), NETWORK_COLUMNS)

    carry_out(context, work)


@network.command("create")
def network_create(
    context: typer.Context,
    name: Annotated[str, typer.Option("--name")],
    subnet: Annotated[str, typer.Option("--subnet", help="For example 10.100.0.0/16.")],
    subnet6: Annotated[
        str | None, typer.Option("--subnet6", help="A /64 within fd00::/8; random when left out.")
    ] = None,
    reserve: Annotated[list[str] | None, typer.Option("--reserve", help="Addresses never given to nodes.")] = None,
    description: Annotated[str, typer.Option("--description")] = "",
) -> None:
    async def work(backend: Backend, output: Output) -> None:
        body = {
            "name": name,
            "subnet": subnet,
            "subnet6": subnet6,
            "reserved": reserve or [],
            "description": description,
        }
        made = await backend.call("POST", "/networks", body=body)
        output.made(made, f"network {made['name']} is {made['id']}: {made['subnet']}, {made['subnet6']}")

    carry_out(context, work)


@network.command("show")
def network_show(context: typer.Context, ref: Ref) -> None:
    async def work(backend: Backend, output: Output) -> None:
        output.one(await backend.get(f"/networks/{await backend.find('/networks', 'network', ref)}"))

    carry_out(context, work)


@network.command("delete")
def network_delete(context: typer.Context, ref: Ref) -> None:
    """Delete a network with all of its nodes."""

    async def work(backend: Backend, output: Output) -> None:
        await backend.call("DELETE", f"/networks/{await backend.find('/networks', 'network', ref)}")
        output.done(f"network {ref} is deleted")

    carry_out(context, work)


# Nodes


@node.command("list")
def node_list(
    context: typer.Context,
    network_ref: Annotated[str | None, typer.Option("--network", help="Id or name.")] = None,
    online: Annotated[bool | None, typer.Option("--online/--offline")] = None,
    pending: Annotated[bool, typer.Option("--pending", help="Only those that wait for authorisation.")] = False,
) -> None:
    async def work(backend: Backend, output: Output) -> None:
        network_id = await backend.find("/networks", "network", network_ref) if network_ref else None
        authorized = False if pending else None
        items = await backend.all("/nodes", network_id=network_id, online=online, authorized=authorized)
        output.rows(items, NODE_COLUMNS)

    carry_out(context, work)


@node.command("show")
def node_show(context: typer.Context, ref: Ref) -> None:
    async def work(backend: Backend, output: Output) -> None:
        output.one(await backend.get(f"/nodes/{await backend.find('/nodes', 'node', ref)}"))

    carry_out(context, work)


def _node_action(context: typer.Context, ref: str, action: str, remark: str) -> None:
    async def work(backend: Backend, output: Output) -> None:
        node_id = await backend.find("/nodes", "node", ref)
        output.done(f"node {ref} {remark}", await backend.call("POST", f"/nodes/{node_id}/{action}"))

    carry_out(context, work)


@node.command("authorize")
def node_authorize(context: typer.Context, ref: Ref) -> None:
    _node_action(context, ref, "authorize", "is authorised")


@node.command("deauthorize")
def node_deauthorize(context: typer.Context, ref: Ref) -> None:
    """Take a node out of its network at once; it keeps its address."""
    _node_action(context, ref, "deauthorize", "is not authorised any more")


@node.command("rename")
def node_rename(context: typer.Context, ref: Ref, name: Annotated[str, typer.Argument(help="New name.")]) -> None:
    async def work(backend: Backend, output: Output) -> None:
        node_id = await backend.find("/nodes", "node", ref)
        output.done(f"node {ref} is now {name}", await backend.call("PUT", f"/nodes/{node_id}", body={"name": name}))

    carry_out(context, work)


@node.command("delete")
def node_delete(context: typer.Context, ref: Ref) -> None:
    async def work(backend: Backend, output: Output) -> None:
        await backend.call("DELETE", f"/nodes/{await backend.find('/nodes', 'node', ref)}")
        output.done(f"node {ref} is deleted")

    carry_out(context, work)


# Servers


@server.command("list")
def server_list(context: typer.Context) -> None:
    async def work(backend: Backend, output: Output) -> None:
        output.rows(await backend.all("/servers"), SERVER_COLUMNS)

    carry_out(context, work)


@server.command("add")
def server_add(
    context: typer.Context,
    name: Annotated[str, typer.Option("--name")],
    url: Annotated[str | None, typer.Option("--url", help="Where nodes connect: wss://…/ws/data.")] = None,
    more_url: Annotated[
        list[str] | None, typer.Option("--more-url", help="Another address of the same; may be repeated.")
    ] = None,
    mesh_url: Annotated[
        str | None, typer.Option("--mesh-url", help="Where relays connect; /ws/mesh beside it.")
    ] = None,
    region: Annotated[str, typer.Option("--region")] = "",
    capability: Annotated[list[str] | None, typer.Option("--capability", help="relay, stun; may be repeated.")] = None,
    stun: Annotated[str | None, typer.Option("--stun", help="address:port of its STUN service.")] = None,
    tls_pin: Annotated[str | None, typer.Option("--tls-pin", help="sha256:… of its certificate.")] = None,
) -> None:
    """Add a relay or STUN server. Its token is shown once."""

    async def work(backend: Backend, output: Output) -> None:
        body = {
            "name": name,
            "url": url,
            "more_urls": more_url or [],
            "mesh_url": mesh_url,
            "region": region,
            "capabilities": capability or (["relay", "stun"] if stun else ["relay"]),
            "stun": stun,
            "tls_pin": tls_pin,
        }
        made = await backend.call("POST", "/servers", body=body)
        flat = {**made["server"], "token": made["token"]["token"], "token_expires_at": made["token"]["expires_at"]}
        remark = f"server {name} is {flat['id']}\nserver token (shown only now): {flat['token']}"
        output.made(flat, remark, short=("id", "token"))

    carry_out(context, work)


@server.command("show")
def server_show(context: typer.Context, ref: Ref) -> None:
    async def work(backend: Backend, output: Output) -> None:
        output.one(await backend.get(f"/servers/{await backend.find('/servers', 'server', ref)}"))

    carry_out(context, work)


def _server_action(context: typer.Context, ref: str, action: str, remark: str) -> None:
    async def work(backend: Backend, output: Output) -> None:
        server_id = await backend.find("/servers", "server", ref)
        output.done(f"server {ref} is {remark}", await backend.call("POST", f"/servers/{server_id}/{action}"))

    carry_out(context, work)


@server.command("enable")
def server_enable(context: typer.Context, ref: Ref) -> None:
    _server_action(context, ref, "enable", "enabled")


@server.command("disable")
def server_disable(context: typer.Context, ref: Ref) -> None:
    _server_action(context, ref, "disable", "disabled")


@server.command("token")
def server_token(context: typer.Context, ref: Ref, hours: Hours = None) -> None:
    """Void a server's tokens and make a new one, shown once."""

    async def work(backend: Backend, output: Output) -> None:
        server_id = await backend.find("/servers", "server", ref)
        made = await backend.call("POST", f"/servers/{server_id}/token", body={"hours": hours})
        output.made(made, f"server token (shown only now): {made['token']}", short=("token",))

    carry_out(context, work)


@server.command("delete")
def server_delete(context: typer.Context, ref: Ref) -> None:
    async def work(backend: Backend, output: Output) -> None:
        await backend.call("DELETE", f"/servers/{await backend.find('/servers', 'server', ref)}")
        output.done(f"server {ref} is deleted")

    carry_out(context, work)


# Routes


@route.command("list")
def route_list(
    context: typer.Context,
    network_ref: Annotated[str | None, typer.Option("--network", help="Id or name.")] = None,
    node_ref: Annotated[str | None, typer.Option("--node", help="Id or name.")] = None,
) -> None:
    async def work(backend: Backend, output: Output) -> None:
        network_id = await backend.find("/networks", "network", network_ref) if network_ref else None
        node_id = await backend.find("/nodes", "node", node_ref) if node_ref else None
        output.rows(await backend.all("/routes/all", network_id=network_id, node_id=node_id), ROUTE_COLUMNS)

    carry_out(context, work)


@route.command("add")
def route_add(
    context: typer.Context,
    cidr: Annotated[str, typer.Option("--cidr", help="For example 192.168.1.0/24.")],
    node_ref: Annotated[str, typer.Option("--node", help="Id or name.")],
    priority: Annotated[int, typer.Option("--priority", help="Lower goes first.")] = 100,
    weight: Annotated[int, typer.Option("--weight")] = 100,
) -> None:
    async def work(backend: Backend, output: Output) -> None:
        node_id = await backend.find("/nodes", "node", node_ref)
        body = {"cidr": cidr, "priority": priority, "weight": weight}
        made = await backend.call("POST", f"/nodes/{node_id}/routes", body=body)
        output.made(made, f"route {made['cidr']} over node {node_ref} is {made['id']}")

    carry_out(context, work)


def _route_update(context: typer.Context, route_id: int, enabled: bool) -> None:
    async def work(backend: Backend, output: Output) -> None:
        row = await backend.call("PUT", f"/routes/{route_id}", body={"enabled": enabled})
        output.done(f"route {route_id} ({row['cidr']}) is {'enabled' if enabled else 'disabled'}", row)

    carry_out(context, work)


@route.command("enable")
def route_enable(context: typer.Context, route_id: RouteId) -> None:
    _route_update(context, route_id, True)


@route.command("disable")
def route_disable(context: typer.Context, route_id: RouteId) -> None:
    _route_update(context, route_id, False)


@route.command("delete")
def route_delete(context: typer.Context, route_id: RouteId) -> None:
    async def work(backend: Backend, output: Output) -> None:
        await backend.call("DELETE", f"/routes/{route_id}")
        output.done(f"route {route_id} is deleted")

    carry_out(context, work)


# Tokens


@token.command("generate")
def token_generate(
    context: typer.Context,
    node_ref: Annotated[str | None, typer.Option("--node", help="A relay token for this node.")] = None,
    server_ref: Annotated[str | None, typer.Option("--server", help="A new server token; the old one is void.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="An admin token for scripts.")] = False,
    hours: Hours = None,
) -> None:
    """Make a token of one kind and show it once."""
    if [node_ref is not None, server_ref is not None, admin].count(True) != 1:
        raise typer.BadParameter("give one of --node, --server, --admin")

    async def work(backend: Backend, output: Output) -> None:
        if node_ref is not None:
            path = f"/nodes/{await backend.find('/nodes', 'node', node_ref)}/token"
        elif server_ref is not None:
            path = f"/servers/{await backend.find('/servers', 'server', server_ref)}/token"
        else:
            path = "/auth/tokens"
        made = await backend.call("POST", path, body={"hours": hours})
        output.made(made, f"{made['kind']} token {made['jti']} (shown only now):\n{made['token']}", short=("token",))

    carry_out(context, work)


@token.command("list")
def token_list(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option("--kind", help="auth, relay, mesh, server or admin.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="Node id, server id or account.")] = None,
    revoked: Annotated[bool | None, typer.Option("--revoked/--valid")] = None,
) -> None:
    async def work(backend: Backend, output: Output) -> None:
        output.rows(await backend.all("/tokens", kind=kind, subject=subject, revoked=revoked), TOKEN_COLUMNS)

    carry_out(context, work)


@token.command("revoke", hidden=True)
@token.command("blacklist")
def token_blacklist(
    context: typer.Context,
    jti: Annotated[str, typer.Argument(help="Id of the token.")],
    reason: Annotated[str, typer.Option("--reason")] = "revoked by an operator",
) -> None:
    """Void a token at once, here and at every relay."""

    async def work(backend: Backend, output: Output) -> None:
        row = await backend.call("POST", f"/tokens/{jti}/revoke", body={"reason": reason})
        output.done(f"{row['kind']} token {jti} is void", row)

    carry_out(context, work)


# Settings


@config.command("show")
def config_show(context: typer.Context) -> None:
    """Every setting in force, and where it comes from."""

    async def work(backend: Backend, output: Output) -> None:
        output.rows(await backend.get("/settings"), ("key", "value", "source", "default"))

    carry_out(context, work)


@config.command("set")
def config_set(context: typer.Context, key: str, value: str) -> None:
    """Store a setting in the database, such as mesh.mtu 1380."""
    try:
        parsed: Any = json.loads(value)
    except ValueError:
        parsed = value

    async def work(backend: Backend, output: Output) -> None:
        (row,) = await backend.call("PUT", "/settings", body={"values": {key: parsed}})
        output.done(f"{row['key']} is {row['value']}", row)

    carry_out(context, work)


@config.command("init")
def config_init(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="Where to write it; controller.toml in the state directory.")
    ] = None,
) -> None:
    """Write a configuration file to start from."""
    # Only this command needs them, and they take longer than the rest of the module.
    from edgelink_controller.config import sample  # noqa: PLC0415
    from edgelink_controller.kit.secrets import write_private  # noqa: PLC0415

    target, output = context.obj
    folder = target.state_dir or default_state_dir()
    file = path or folder / "controller.toml"
    if file.exists():
        typer.echo(f"error: {file} exists; it is left as it is", err=True)
        raise typer.Exit(1)
    try:
        write_private(file, sample(target.db or folder / "edgelink.db").encode())
    except OSError as error:
        typer.echo(f"error: {file}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    output.done(f"wrote {file}", {"path": str(file)})


# Views


def status(context: typer.Context) -> None:
    """The controller in figures."""

    async def work(backend: Backend, output: Output) -> None:
        output.one(await backend.get("/stats/overview"))

    carry_out(context, work)


def latency(context: typer.Context) -> None:
    """Round trip times that nodes and relays measured last."""

    async def work(backend: Backend, output: Output) -> None:
        items = [
            {
                "from": f"{item['src_type']} {item['src_id']}",
                "to": f"{item['dst_type']} {item['dst_id']}",
                "rtt_ms": round(item["rtt_ms"], 2),
                "recorded_at": item["recorded_at"],
            }
            for item in await backend.all("/latency/matrix")
        ]
        output.rows(items, ("from", "to", "rtt_ms", "recorded_at"))

    carry_out(context, work)


def audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 50,
    action: Annotated[str | None, typer.Option("--action", help="Beginning of the action, such as node.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain of hashes instead.")] = False,
) -> None:
    """Who changed what, newest first."""

    async def work(backend: Backend, output: Output) -> None:
        if verify:
            check = await backend.get("/audit/verify")
            output.one(check)
            if not check["intact"]:
                raise CommandError(f"the chain is broken at row {check['broken_at']}")
        else:
            output.rows((await backend.get("/audit", per_page=limit, action=action))["items"], AUDIT_COLUMNS)

    carry_out(context, work)
