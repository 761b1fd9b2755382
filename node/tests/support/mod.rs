//! A small relay on tokio and tungstenite: another implementation than the one under test. It forwards by the first eight bytes of a payload and, like every
//! relay, cannot read what it forwards. A relay token is the node's id in decimal.

#![allow(dead_code, reason = "not every test looks at everything")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::wire::control::node::Relay;
use meshdp::proto::wire::control::server::NodeAuthorised;
use meshdp::proto::wire::control::{self, AuthRequest, AuthResponse};
use meshdp::proto::wire::data::route;
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as WsMessage;

type Inboxes = Arc<Mutex<BTreeMap<u32, mpsc::Sender<Vec<u8>>>>>;

/// A relay on a thread of its own; dropping it cuts all connections and closes the port.
pub(crate) struct TestRelay {
    /// Its number.
    pub(crate) id: u16,
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl TestRelay {
    /// On a free port.
    pub(crate) fn start(id: u16) -> Self {
        let (address_out, address) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seen_in = Arc::clone(&seen);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                address_out.send(listener.local_addr().unwrap()).unwrap();
                let inboxes = Inboxes::default();
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        tokio::spawn(serve(id, stream, Arc::clone(&inboxes), Arc::clone(&seen_in)));
                    }
                };
                tokio::select! { () = accept => {} _ = stopped => {} }
            });
        });
        Self { id, address: address.recv().unwrap(), seen, _stop: stop }
    }

    /// As in a configuration.
    pub(crate) fn entry(&self) -> Relay {
        Relay {
            id: RelayId(self.id),
            name: format!("relay-{}", self.id),
            region: String::new(),
            data_url: Some(format!("ws://{}/ws/data", self.address)),
            more_urls: Vec::new(),
            tls_pin: None,
            stun: None,
        }
    }

    /// Whether these bytes came by in one piece.
    pub(crate) fn has_seen(&self, needle: &[u8]) -> bool {
        self.seen.lock().unwrap().windows(needle.len()).any(|window| window == needle)
    }
}

async fn serve(relay: u16, stream: tokio::net::TcpStream, inboxes: Inboxes, seen: Arc<Mutex<Vec<u8>>>) {
    stream.set_nodelay(true).unwrap();
    let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let (mut out, mut input) = socket.split();
    let (to_me, mut for_me) = mpsc::channel::<Vec<u8>>(1024);
    tokio::spawn(async move {
        while let Some(frame) = for_me.recv().await {
            if out.send(WsMessage::binary(frame)).await.is_err() {
                return;
            }
        }
    });
    while let Some(Ok(message)) = input.next().await {
        let WsMessage::Binary(bytes) = message else { continue };
        seen.lock().unwrap().extend_from_slice(&bytes);
        for frame in Frames::new(&bytes) {
            let frame = frame.unwrap();
            let mut answer = Vec::new();
            match frame.header.kind {
                FrameType::Ping => {
                    write_frame(FrameType::Pong, Flags::NONE, frame.payload(), &mut answer).unwrap();
                }
                FrameType::AuthRequest => {
                    let AuthRequest::Relay(auth) =
                        control::parse(FrameType::AuthRequest, frame.payload()).unwrap()
                    else {
                        panic!()
                    };
                    let id: u32 = auth.token.reveal().parse().unwrap();
                    inboxes.lock().unwrap().insert(id, to_me.clone());
                    let authorised = NodeAuthorised {
                        node_id: NodeId(id),
                        relay_id: RelayId(relay),
                        expires: 4_000_000_000,
                    };
                    let payload = control::to_payload(&AuthResponse::Relay(authorised));
                    write_frame(FrameType::AuthResponse, Flags::NONE, &payload, &mut answer).unwrap();
                }
                kind if kind.is_routed() => {
                    let to = route(frame.bytes).unwrap().destination.0;
                    let inbox = inboxes.lock().unwrap().get(&to).cloned();
                    if let Some(inbox) = inbox {
                        let _ = inbox.send(frame.bytes.to_vec()).await;
                    }
                }
                _ => {}
            }
            if !answer.is_empty() {
                to_me.send(answer).await.unwrap();
            }
        }
    }
}
