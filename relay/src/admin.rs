//! Admin HTTP: metrics, health, and a look at connections. Asks for no password, so it listens on loopback unless told otherwise.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use meshdp::engine::relay::{RelayHandle, RelayStats};
use tokio::net::TcpListener;

use crate::process;

/// Listens; serving starts with [`run`].
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for admin HTTP: set admin.listen to a free address, or admin.enabled = false")
    })
}

/// Serves until the task is dropped.
pub(crate) async fn run(listener: TcpListener, relay: Arc<RelayHandle>) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/debug/connections", get(connections))
        .route("/debug/panic", post(panic))
        .with_state(relay);
    serve(listener, routes).await
}

async fn metrics(State(relay): State<Arc<RelayHandle>>) -> Response {
    let text = stats(relay, false).await.map(|stats| stats.to_prometheus() + &process::to_prometheus());
    match text {
        Some(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Ready is who could let a node in now.
async fn ready(State(relay): State<Arc<RelayHandle>>) -> (StatusCode, &'static str) {
    match stats(relay, false).await {
        Some(stats) if stats.ready => (StatusCode::OK, "ready\n"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "no token keys yet: waiting for the controller\n"),
    }
}

async fn connections(State(relay): State<Arc<RelayHandle>>) -> Response {
    let Some(stats) = stats(relay, true).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let list: Vec<serde_json::Value> = stats
        .workers
        .iter()
        .flat_map(|worker| worker.connections.iter().map(move |connection| (worker.worker.0, connection)))
        .map(|(worker, connection)| {
            let info = &connection.info;
            serde_json::json!({
                "worker": worker, "connection": info.conn.0, "kind": info.kind, "peer": info.peer, "proxy": connection.proxy,
                "nodes": info.nodes, "relay": info.relay, "age_s": info.age.as_secs(), "queued_bytes": connection.queued,
                "dropped": connection.dropped,
                "received_bytes": connection.received, "sent_bytes": connection.sent,
                "received_bytes_per_s": connection.receive_rate.round(), "sent_bytes_per_s": connection.send_rate.round(),
            })
        })
        .collect();
    Json(list).into_response()
}

/// For tests of what happens when a worker panics; not there unless the environment says so.
async fn panic(State(relay): State<Arc<RelayHandle>>) -> StatusCode {
    if std::env::var_os("EDGELINK_DEBUG_HOOKS").is_none() {
        return StatusCode::NOT_FOUND;
    }
    relay.__panic_worker();
    StatusCode::ACCEPTED
}

async fn stats(relay: Arc<RelayHandle>, connections: bool) -> Option<RelayStats> {
    let collect = move || if connections { relay.stats_with_connections() } else { relay.stats() };
    tokio::task::spawn_blocking(collect).await.ok()
}
