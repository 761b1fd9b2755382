//! The link itself: dials the controller, keeps one [`Conversation`] going, and dials again when it ends.
//!
//! [`run`] is one task of the control thread. News goes out and requests come in over bounded channels; when the rest of the node is slow, the link reads
//! no further and TCP holds the controller back. Everything that waits has a limit: dialling and signing in [`SIGN_IN`], silence [`SILENCE`].

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::{SinkExt as _, StreamExt as _};
use meshdp::engine::dial::{Host, Outbound};
use meshdp::engine::tls::ClientTls;
use meshdp::proto::wire::control;
use meshdp::proto::wire::control::node::{LatencyReport, NodeUpdate};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use meshdp::proto::wire::reassembly::{MAX_MESSAGE, Reassembler, write_control};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::backoff::Backoff;
use super::sign_in::{Conversation, Ended, Identity, Introduction, News, Output};
use super::url::ControllerUrl;
use crate::keys::{Keys, random_secret};

/// From the first SYN to AUTH_RESPONSE.
const SIGN_IN: Duration = Duration::from_secs(15);
/// From looking up the name to a TCP connection, with the time that proxies take.
const CONNECT: Duration = Duration::from_secs(10);
/// After this long without a byte the channel is dead (`docs/protocol.md` §3.6).
const SILENCE: Duration = Duration::from_secs(45);
/// Between two PINGs, unless AUTH_RESPONSE says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// After a refusal: an operator may have mended it.
const REFUSED: Duration = Duration::from_mins(1);

/// What the link is made from.
pub(crate) struct LinkSettings {
    pub(crate) url: ControllerUrl,
    /// For `wss://`.
    pub(crate) tls: Option<ClientTls>,
    /// Directly, or by which proxy.
    pub(crate) outbound: Arc<Outbound>,
    pub(crate) introduction: Introduction,
    /// Shared with the daemon, which rotates the node_key and knows the configuration.
    pub(crate) identity: Rc<RefCell<SharedIdentity>>,
}

/// What the next sign-in says; one thread only.
#[derive(Debug)]
pub(crate) struct SharedIdentity {
    pub(crate) keys: Keys,
    /// What the node has; 0: nothing.
    pub(crate) config_version: u64,
}

/// What the rest of the node asks of the link.
#[derive(Debug)]
pub(crate) enum Request {
    Update(NodeUpdate),
    Report(LatencyReport),
}

/// What the link tells the rest of the node.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// Dialling, for the first time or again.
    Connecting,
    News(News),
    /// The connection is gone; the link dials again after this long.
    Lost {
        reason: String,
        retry_in: Duration,
    },
    /// Trying again changes nothing until somebody acts; the link looks again now and then.
    Refused {
        advice: String,
    },
}

/// Runs until the daemon drops its ends of the channels.
pub(crate) async fn run(
    settings: LinkSettings,
    mut requests: mpsc::Receiver<Request>,
    events: mpsc::Sender<LinkEvent>,
) {
    let mut backoff = Backoff::default();
    let mut random = ChaCha20Rng::from_seed(*random_secret());
    loop {
        if events.send(LinkEvent::Connecting).await.is_err() {
            return;
        }
        let mut connection =
            Connection { settings: &settings, requests: &mut requests, events: &events, signed_in: false };
        let end = connection.run().await;
        if connection.signed_in {
            backoff.reset();
        }
        let (event, pause) = match end {
            End::Stopped => return,
            End::Ended(Ended::Refused(advice)) => (LinkEvent::Refused { advice }, REFUSED),
            End::Ended(Ended::Lost(reason)) => {
                let retry_in = backoff.next(&mut random);
                (LinkEvent::Lost { reason, retry_in }, retry_in)
            }
        };
        if events.send(event).await.is_err() || !pause_answering(pause, &mut requests).await {
            return;
        }
    }
}

/// Waits; what is asked meanwhile is void, since the next sign-in says it all. `false`: the daemon is gone.
async fn pause_answering(pause: Duration, requests: &mut mpsc::Receiver<Request>) -> bool {
    let end = Instant::now() + pause;
    loop {
        match timeout_at(end, requests.recv()).await {
            Err(_) => return true,
            Ok(None) => return false,
            Ok(Some(_)) => {}
        }
    }
}

enum End {
    Ended(Ended),
    /// Nobody listens any more.
    Stopped,
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> Self {
        Self::Ended(Ended::Lost(format!("{error:#}")))
    }
}

struct Connection<'a> {
    settings: &'a LinkSettings,
    requests: &'a mut mpsc::Receiver<Request>,
    events: &'a mpsc::Sender<LinkEvent>,
    signed_in: bool,
}

impl Connection<'_> {
    async fn run(&mut self) -> End {
        let deadline = Instant::now() + SIGN_IN;
        let socket = match timeout_at(deadline, dial(self.settings)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return error.into(),
            Err(_) => return anyhow!("no connection within {} s", SIGN_IN.as_secs()).into(),
        };
        self.converse(socket, deadline).await
    }

    async fn converse(&mut self, mut socket: Socket, deadline: Instant) -> End {
        let mut conversation = Conversation::new(self.settings.introduction.clone());
        let mut reassembler = Reassembler::default();
        let mut heartbeat = HEARTBEAT;
        let mut last_heard = Instant::now();
        let mut next_ping = Instant::now() + heartbeat;
        loop {
            let limit = if conversation.is_signed_in() {
                last_heard + SILENCE
            } else {
                deadline.min(last_heard + SILENCE)
            };
            let received = tokio::select! {
                message = timeout_at(limit, socket.next()) => match message {
                    Ok(message) => message,
                    Err(_) if conversation.is_signed_in() => return anyhow!("nothing heard for {} s", SILENCE.as_secs()).into(),
                    Err(_) => return anyhow!("no answer to signing in within {} s", SIGN_IN.as_secs()).into(),
                },
                request = self.requests.recv(), if conversation.is_signed_in() => {
                    let Some(request) = request else {
                        let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
                        return End::Stopped;
                    };
                    let (kind, payload) = match &request {
                        Request::Update(update) => (FrameType::NodeUpdate, control::to_payload(update)),
                        Request::Report(report) => (FrameType::LatencyReport, control::to_payload(report)),
                    };
                    if let Err(error) = send(&mut socket, kind, &payload).await {
                        return error.into();
                    }
                    continue;
                }
                () = tokio::time::sleep_until(next_ping) => {
                    next_ping = Instant::now() + heartbeat;
                    if let Err(error) = send(&mut socket, FrameType::Ping, &[]).await {
                        return error.into();
                    }
                    continue;
                }
                () = self.events.closed() => return End::Stopped,
            };
            last_heard = Instant::now();
            let bytes = match received {
                Some(Ok(WsMessage::Binary(bytes))) => bytes,
                Some(Ok(WsMessage::Ping(_) | WsMessage::Pong(_) | WsMessage::Frame(_))) => continue,
                Some(Ok(WsMessage::Text(_))) => return anyhow!("the controller sent a text message").into(),
                Some(Ok(WsMessage::Close(frame))) => {
                    let reason = frame.map_or_else(String::new, |frame| {
                        format!(": {} {}", u16::from(frame.code), frame.reason)
                    });
                    return anyhow!("the controller closed the connection{reason}").into();
                }
                Some(Err(error)) => return anyhow::Error::new(error).context("the connection broke").into(),
                None => return anyhow!("the controller closed the connection").into(),
            };
            match self.handle_bytes(&bytes, &mut conversation, &mut reassembler, &mut socket).await {
                Ok(Some(seconds)) => {
                    self.signed_in = true;
                    // A controller cannot make us silent for longer than it takes us for dead, nor noisy.
                    heartbeat = Duration::from_secs(u64::from(seconds.clamp(1, 30)));
                    next_ping = next_ping.min(Instant::now() + heartbeat);
                }
                Ok(None) => {}
                Err(end) => {
                    let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
                    return end;
                }
            }
        }
    }

    /// One WebSocket message. `Some`: an AUTH_RESPONSE was in it, with these seconds between PINGs.
    async fn handle_bytes(
        &mut self,
        bytes: &[u8],
        conversation: &mut Conversation,
        reassembler: &mut Reassembler,
        socket: &mut Socket,
    ) -> Result<Option<u32>, End> {
        let mut heartbeat = None;
        for frame in Frames::new(bytes) {
            let message = frame
                .and_then(|frame| reassembler.push(frame))
                .context("the controller sent a malformed frame")?;
            let Some(message) = message else { continue };
            let outputs = {
                let shared = self.settings.identity.borrow();
                let identity = Identity {
                    machine: shared.keys.machine(),
                    node_key: shared.keys.signed_node_key(),
                    config_version: shared.config_version,
                };
                conversation.handle(&message, &identity)?
            };
            for output in outputs {
                match output {
                    Output::Send(kind, payload) => send(socket, kind, &payload).await?,
                    Output::News(news) => {
                        if let News::SignedIn(answer) = &news {
                            heartbeat = Some(answer.heartbeat_s);
                        }
                        self.events.send(LinkEvent::News(news)).await.map_err(|_| End::Stopped)?;
                    }
                }
            }
            if let Some(ack) = reassembler.acknowledge(&message) {
                send(socket, FrameType::Ack, &ack).await?;
            }
        }
        Ok(heartbeat)
    }
}

async fn send(socket: &mut Socket, kind: FrameType, payload: &[u8]) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    if kind.is_control() {
        write_control(kind, Flags::NONE, payload, &mut bytes)?;
    } else {
        write_frame(kind, Flags::NONE, payload, &mut bytes)?;
    }
    // A controller that does not read for this long is as good as gone.
    timeout(SILENCE, socket.send(WsMessage::binary(bytes)))
        .await
        .context("the controller does not read")?
        .context("the connection broke")
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

type Socket = WebSocketStream<Box<dyn Stream>>;

async fn dial(settings: &LinkSettings) -> anyhow::Result<Socket> {
    let url = &settings.url;
    let tcp = connect(Arc::clone(&settings.outbound), url).await?;
    let stream: Box<dyn Stream> = if url.tls() {
        let tls = settings.tls.as_ref().context("no TLS configuration for wss://")?;
        let name = rustls::pki_types::ServerName::try_from(url.host().to_owned())
            .with_context(|| format!("{:?} is no host name", url.host()))?;
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        let stream = connector.connect(name, tcp).await.with_context(|| {
            format!(
                "TLS with {}:{} failed. For a certificate of your own: --ca-file, or --tls-pin with its digest",
                url.host(),
                url.port()
            )
        })?;
        Box::new(stream)
    } else {
        tcp
    };
    // A whole message may be MAX_MESSAGE in many frames; WebSocket messages beyond that serve nobody.
    let limits = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .max_message_size(Some(2 * MAX_MESSAGE))
        .max_frame_size(Some(2 * MAX_MESSAGE));
    let (socket, _) = tokio_tungstenite::client_async_with_config(url.to_string(), stream, Some(limits))
        .await
        .with_context(|| {
            if settings.tls.as_ref().is_some_and(ClientTls::lacks_certificate) {
                format!("{url} asks for a client certificate: name one with --client-cert and --client-key")
            } else {
                format!("{url} is no controller's WebSocket")
            }
        })?;
    Ok(socket)
}

/// On a thread of its own: it looks up names and may have to wait for a proxy. When the link gives up before, its socket is closed unseen.
async fn connect(outbound: Arc<Outbound>, url: &ControllerUrl) -> anyhow::Result<Box<dyn Stream>> {
    let host = Host { name: url.host().to_owned(), port: url.port() };
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("edgelink-dial".to_owned())
        .spawn(move || drop(done.send(outbound.connect(&[host], CONNECT))))
        .context("no thread to connect with")?;
    let connected = result.await.context("connecting ended without a word")??;
    if connected.bridged {
        return Ok(Box::new(UnixStream::from_std(connected.socket.into())?));
    }
    let stream = TcpStream::from_std(connected.socket.into())?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}
