"""The JSON objects of docs/protocol.md sections 3 and 5, built from the picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgelink_controller.latency.paths import Choice
from edgelink_controller.networks.service import NetworkView
from edgelink_controller.nodes.service import NodeView, PublishedKey
from edgelink_controller.routes.schemas import RouteOut
from edgelink_controller.servers.schemas import ServerOut
from edgelink_controller.tokens.service import Issued, RevocationView

_HOUR = 3600


def peer(node: NodeView, online: bool, relays: Iterable[int], choice: Choice) -> dict[str, Any]:
    best, second = choice
    return {
        "node_id": node.id,
        "name": node.name,
        "machine_key": node.machine_key,
        "node_key": node_key(node.node_key) if node.node_key else None,
        "addresses": [node.address4, node.address6],
        "online": online,
        "endpoints": [{"kind": kind, "address": address} for kind, address in node.endpoints],
        "relays": sorted(relays),
        "path": {"best": list(best) if best else None, "second": list(second) if second else None},
    }


def node_key(key: PublishedKey) -> dict[str, Any]:
    kem = {"kem": key.kem} if key.kem else {}
    return {"public": key.public, **kem, "created": key.created, "signature": key.signature}


def route(row: RouteOut) -> dict[str, Any]:
    return row.model_dump(include={"id", "node_id", "cidr", "priority", "weight", "enabled"})


def network(view: NetworkView) -> dict[str, Any]:
    return {"id": view.id, "name": view.name, "subnet4": str(view.subnet4), "subnet6": str(view.subnet6)}


def membership(
    node: NodeView,
    view: NetworkView,
    token: Issued,
    peers: list[dict[str, Any]],
    routes: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "node_id": node.id,
        "name": node.name,
        "network": network(view),
        "addresses": [
            f"{node.address4}/{view.subnet4.prefixlen}",
            f"{node.address6}/{view.subnet6.prefixlen}",
        ],
        "relay_token": token.token,
        "relay_token_expires": token.expires_at,
        "peers": peers,
        "routes": routes,
    }


def relay_for_node(server: ServerOut) -> dict[str, Any] | None:
    """None for a server that nodes cannot connect to (no address yet, or STUN only)."""
    if server.url is None or "relay" not in server.capabilities:
        return None
    return {
        "id": server.id,
        "name": server.name,
        "region": server.region,
        "data_url": server.url,
        "more_urls": server.more_urls,
        "tls_pin": server.tls_pin,
        "stun": server.stun,
    }


def relay_for_relay(server: ServerOut, token: Issued) -> dict[str, Any]:
    return {
        "id": server.id,
        "name": server.name,
        "mesh_url": server.mesh_url,
        "tls_pin": server.tls_pin,
        "mesh_token": token.token,
    }


def node_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "mtu": settings["mesh.mtu"],
        "node_key_rotate_s": int(settings["security.node_key_rotate_hours"] * _HOUR),
        "latency_report_s": settings["mesh.latency_report_seconds"],
        "keepalive_s": settings["mesh.keepalive_interval_seconds"],
    }


def relay_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "latency_report_s": settings["mesh.latency_report_seconds"],
        "token_grace_s": int(settings["tokens.grace_hours"] * _HOUR),
    }


def location(node: NodeView, relays: Iterable[int]) -> dict[str, Any]:
    return {"node_id": node.id, "network_id": node.network_id, "relays": sorted(relays)}


def revocations(items: Iterable[RevocationView]) -> dict[str, Any]:
    out: dict[str, list[dict[str, Any]]] = {"tokens": [], "nodes": [], "relays": []}
    for item in items:
        if item.kind == "token":
            out["tokens"].append({"jti": item.jti, "expires": item.expires_at})
        elif item.kind == "node":
            out["nodes"].append({"node_id": item.subject_id, "before": item.before})
        else:
            out["relays"].append({"relay_id": item.subject_id, "before": item.before})
    return out
