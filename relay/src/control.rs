//! The link to the controller, `/ws/server` (`docs/protocol.md` §5): carries control messages between it and the relay, and comes back when it breaks.
//!
//! What messages mean is the relay's business ([`RelayHandle::control`]); here are connection, frames, acknowledgements, liveness and backoff.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use meshdp::engine::relay::RelayHandle;
use meshdp::engine::tls::client_config;
use meshdp::proto::relay::hub::ControlError;
use meshdp::proto::wire::control::{ErrorMessage, parse};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use meshdp::proto::wire::reassembly::{Reassembler, write_control};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::config::ControllerSettings;

const PING_INTERVAL: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(45);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// `docs/protocol.md` §3.6.
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A link that lasted that long starts the backoff anew.
const STABLE: Duration = Duration::from_secs(60);

/// Runs until the link is lost after `leaving` has become true: who is about to stop does not come back.
pub(crate) async fn run(
    settings: ControllerSettings,
    relay: Arc<RelayHandle>,
    leaving: watch::Receiver<bool>,
) {
    let mut backoff = MIN_BACKOFF;
    while !*leaving.borrow() {
        let started = Instant::now();
        let outcome = link(&settings, &relay).await;
        if started.elapsed() > STABLE {
            backoff = MIN_BACKOFF;
        }
        let mut wait = backoff.mul_f64(random_share());
        backoff = (backoff * 2).min(MAX_BACKOFF);
        if outcome.as_ref().is_err_and(anyhow::Error::is::<Replaced>) {
            // Going back at once would take turns with the other for ever; it is there to take this one's place.
            wait = MAX_BACKOFF.mul_f64(0.5 + random_share() / 2.0);
        }
        if let Err(error) = outcome {
            tracing::warn!(
                error = format!("{error:#}"),
                retry_ms = wait.as_millis() as u64,
                "no link to the controller"
            );
        }
        tokio::time::sleep(wait).await;
    }
}

/// Another process has signed in as this relay.
#[derive(Debug, thiserror::Error)]
#[error("another process has registered with this relay's token: stop one of them")]
struct Replaced;

async fn link(settings: &ControllerSettings, relay: &Arc<RelayHandle>) -> anyhow::Result<()> {
    let url = &settings.url;
    let (outbound, host) = (settings.outbound.clone(), url.as_host());
    let (done, result) = oneshot::channel();
    // It looks up names and may have to wait for a proxy; who stops meanwhile does not wait for it.
    std::thread::Builder::new()
        .name("controller-dial".to_owned())
        .spawn(move || drop(done.send(outbound.connect(&[host], CONNECT_TIMEOUT))))?;
    let connected = result.await.context("connecting ended without a word")??;
    let stream: Box<dyn Stream> = if connected.bridged {
        Box::new(UnixStream::from_std(connected.socket.into())?)
    } else {
        let tcp = TcpStream::from_std(connected.socket.into())?;
        tcp.set_nodelay(true)?;
        Box::new(tcp)
    };
    let scheme = if url.tls { "wss" } else { "ws" };
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let target = format!("{scheme}://{host}:{}{}", url.port, url.path);
    if url.tls {
        let config = client_config(&settings.outbound.roots, settings.pin)?;
        let name = ServerName::try_from(url.host.clone()).context("controller.url")?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let tls =
            timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await.context("TLS handshake")??;
        upgrade(&target, tls, relay).await
    } else {
        upgrade(&target, stream, relay).await
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn upgrade<S>(target: &str, stream: S, relay: &Arc<RelayHandle>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = tokio_tungstenite::client_async(target, stream);
    let (socket, _) = timeout(CONNECT_TIMEOUT, handshake).await.context("WebSocket upgrade")??;
    tracing::info!("link to the controller is up");
    relay.controller_connected();
    let (sender, events) = mpsc::channel(16);
    let done = Arc::new(AtomicBool::new(false));
    let puller = tokio::task::spawn_blocking({
        let (relay, done) = (Arc::clone(relay), Arc::clone(&done));
        move || pull(&relay, &sender, &done)
    });
    let outcome = talk(socket, events, relay).await;
    done.store(true, Ordering::Relaxed);
    // What it pulled and nobody sent is told again by the next SERVER_REGISTER.
    let _ = puller.await;
    outcome
}

/// Blocks on the relay's events; a thread of its own for as long as the link lasts.
fn pull(relay: &RelayHandle, events: &mpsc::Sender<(FrameType, Vec<u8>)>, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) && !events.is_closed() {
        if let Some(event) = relay.next_event(Duration::from_millis(250))
            && events.blocking_send(event).is_err()
        {
            return;
        }
    }
}

async fn talk<S>(
    mut socket: WebSocketStream<S>,
    mut events: mpsc::Receiver<(FrameType, Vec<u8>)>,
    relay: &Arc<RelayHandle>,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut reassembler = Reassembler::default();
    let mut heard = Instant::now();
    let mut ticks = interval(PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut out = Vec::new();
        tokio::select! {
            message = socket.next() => {
                heard = Instant::now();
                match message.context("closed without a word")?? {
                    Message::Binary(bytes) => receive(&bytes, &mut reassembler, relay, &mut out)?,
                    Message::Close(Some(frame)) if frame.reason.starts_with("replaced") => bail!(Replaced),
                    Message::Close(frame) => {
                        bail!("closed by the controller{}", frame.map_or_else(String::new, |frame| format!(": {frame}")));
                    }
                    Message::Text(_) => bail!("the controller sent text, which is no EdgeLink message"),
                    _ => {}
                }
            }
            Some((kind, payload)) = events.recv() => write_control(kind, Flags::NONE, &payload, &mut out)?,
            _ = ticks.tick() => {
                if heard.elapsed() > SILENCE {
                    bail!("the controller has been silent for {} s", SILENCE.as_secs());
                }
                write_frame(FrameType::Ping, Flags::NONE, b"relay", &mut out)?;
            }
        }
        if !out.is_empty() {
            timeout(SILENCE, socket.send(Message::binary(out))).await.context("sending")??;
        }
    }
}

/// Takes one WebSocket message; answers go to `out`.
fn receive(
    bytes: &[u8],
    reassembler: &mut Reassembler,
    relay: &RelayHandle,
    out: &mut Vec<u8>,
) -> anyhow::Result<()> {
    for frame in Frames::new(bytes) {
        let Some(message) = reassembler.push(frame?)? else { continue };
        match message.kind {
            FrameType::Ping => write_frame(FrameType::Pong, Flags::NONE, &message.payload, out)?,
            FrameType::Error => {
                let error: ErrorMessage = parse(message.kind, &message.payload)?;
                tracing::error!(code = error.code.code(), message = error.message, "the controller refuses");
                if error.fatal {
                    bail!(
                        "{} (code {}); is controller.token the one of this relay?",
                        error.message,
                        error.code.code()
                    );
                }
            }
            _ => {}
        }
        match relay.control(message.kind, &message.payload) {
            Ok(()) => {}
            // The next SERVER_REGISTER asks for everything.
            Err(error @ ControlError::OutOfStep { .. }) => bail!(error),
            Err(error) => tracing::error!(%error, "a message of the controller was not applied"),
        }
        if let Some(ack) = reassembler.acknowledge(&message) {
            write_frame(FrameType::Ack, Flags::NONE, &ack, out)?;
        }
    }
    Ok(())
}

/// From 0 to 1: full jitter.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all relays come back at the same moment, which is no reason not to come back.
    let _ = meshdp::engine::random(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
