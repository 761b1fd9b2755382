//! Nodes that come, talk, and go in all the ways there are.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use meshdp::proto::wire::control::{ErrorMessage, parse};
use meshdp::proto::wire::frame::{FrameType, Frames};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::Shared;
use super::ledger::network;
use crate::raw::address;
use crate::support::*;

type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Until told to stop. Node `n` is at home at relay `n % 3`, every fourth at the next one, too.
pub fn run_all(shared: &Arc<Shared>, relays: &[SocketAddr], tls: &[ClientConfig], nodes: u32, seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for node in 1..=nodes {
            for home in homes(node, relays.len()) {
                let (relay, tls) = (relays[home], Arc::new(tls[home].clone()));
                let rng = ChaCha8Rng::seed_from_u64(seed ^ u64::from(node) << 8 ^ home as u64);
                let node = Node { shared: Arc::clone(shared), id: node, nodes, relay, tls };
                tasks.push(tokio::spawn(node.lives(rng)));
            }
        }
        for task in tasks {
            task.await.expect("a node");
        }
    });
}

/// The places of the relays that a node is at.
pub fn homes(node: u32, relays: usize) -> Vec<usize> {
    let home = node as usize % relays;
    if node.is_multiple_of(4) && relays > 1 { vec![home, (home + 1) % relays] } else { vec![home] }
}

struct Node {
    shared: Arc<Shared>,
    id: u32,
    nodes: u32,
    relay: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Node {
    async fn lives(self, mut rng: ChaCha8Rng) {
        while !self.stopped() {
            if let Ok(socket) = self.connect(&mut rng).await {
                self.shared.lives.fetch_add(1, Ordering::Relaxed);
                let life = Duration::from_millis(u64::from(100 + rng.next_u32() % 6000));
                // That it ends early is part of it: relays are killed, and some lives end by what they say.
                let _ = self.live(socket, Instant::now() + life, &mut rng).await;
            }
            sleep(Duration::from_millis(u64::from(rng.next_u32() % 500))).await;
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    async fn connect(&self, rng: &mut ChaCha8Rng) -> io::Result<Socket> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((address(rng.next_u32() as usize % 50_000), 0).into())?;
        let patience = Duration::from_secs(5);
        let tcp = timeout(patience, socket.connect(self.relay)).await??;
        tcp.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let name = ServerName::try_from("localhost").unwrap();
        let tls = timeout(patience, connector.connect(name, tcp)).await??;
        let upgrade = tokio_tungstenite::client_async("wss://localhost/ws/data", tls);
        let (mut socket, _) = timeout(patience, upgrade).await?.map_err(io::Error::other)?;
        let token = signer().sign(&relay_token(self.id, network(self.id))).unwrap();
        let request = serde_json::json!({"kind": "relay", "token": token}).to_string();
        let request = frame(FrameType::AuthRequest, request.as_bytes());
        socket.send(Message::binary(request)).await.map_err(io::Error::other)?;
        Ok(socket)
    }

    async fn live(&self, mut socket: Socket, until: Instant, rng: &mut ChaCha8Rng) -> io::Result<()> {
        let mut signed_in = false;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => self.receive(&bytes, &mut signed_in),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                    Some(Ok(_)) => {}
                },
                () = tokio::time::sleep_until(next) => {
                    if Instant::now() >= until || self.stopped() {
                        return self.leave(socket, rng).await;
                    }
                    if signed_in {
                        let message = self.message(rng);
                        timeout(Duration::from_secs(5), socket.send(Message::binary(message))).await?.map_err(io::Error::other)?;
                    }
                    next = Instant::now() + Duration::from_millis(u64::from(10 + rng.next_u32() % 60));
                }
            }
        }
    }

    fn receive(&self, bytes: &[u8], signed_in: &mut bool) {
        for frame in Frames::new(bytes) {
            let Ok(frame) = frame else {
                return self.shared.ledger.complain(format!("{}: a malformed frame from a relay", self.id));
            };
            match frame.header.kind {
                FrameType::AuthResponse => *signed_in = true,
                FrameType::GoAway | FrameType::Pong => {}
                FrameType::Error => match parse::<ErrorMessage>(FrameType::Error, frame.payload()) {
                    // Nobody there, no such node, the mesh is down; a relay that has just started has no keys yet.
                    Ok(error) if matches!(error.code.code(), 3001..=3003 | 4002) => {}
                    other => self.shared.ledger.complain(format!("{}: {other:?}", self.id)),
                },
                kind => self.shared.ledger.arrived(self.id, kind, frame.payload()),
            }
        }
    }

    /// Some frames to somebody, once in a while under another's name, to another network, or the long way round.
    fn message(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        let mut message = Vec::new();
        for _ in 0..=rng.next_u32() % 3 {
            let anybody = 1 + rng.next_u32() % self.nodes;
            let (source, destination) = match rng.next_u32() % 20 {
                0 => (anybody, self.id),
                1 => (self.id, anybody),
                2 => (self.id, 10_000),
                _ => (self.id, 1 + (anybody - 1) / 2 * 2 + (self.id - 1) % 2),
            };
            let source = if source == self.id || rng.next_u32().is_multiple_of(2) { source } else { 20_000 };
            let size = match rng.next_u32() % 12 {
                0 => rng.next_u32() as usize % 40_000,
                1..4 => 1300,
                _ => rng.next_u32() as usize % 200,
            };
            let whole = self.shared.ledger.frame(self.id, source, destination, size);
            match rng.next_u32() % 10 {
                0 => {
                    let via = (1 + rng.next_u32() % 4) as u16;
                    message.extend(frame(FrameType::Via, &[&via.to_be_bytes()[..], &whole].concat()));
                }
                1 => message.extend([frame(FrameType::Ping, b"12345678"), whole].concat()),
                _ => message.extend(whole),
            }
        }
        message
    }

    /// Orderly, without a word, in the middle of a frame, or with a reset.
    async fn leave(&self, mut socket: Socket, rng: &mut ChaCha8Rng) -> io::Result<()> {
        match rng.next_u32() % 5 {
            0 => drop(timeout(Duration::from_secs(1), socket.close(None)).await),
            1 => {
                socket.get_mut().write_all(&[0x82, 0xfe, 0xff, 0xff, 1, 2, 3, 4, 5]).await?;
                socket.get_mut().flush().await?;
            }
            2 => {
                socket2::SockRef::from(socket.get_ref().get_ref().0).set_linger(Some(Duration::ZERO))?;
            }
            // It comes back before this connection has gone.
            3 => {
                let mut again = self.connect(rng).await?;
                let _ = timeout(Duration::from_millis(200), async {
                    let mut signed_in = false;
                    loop {
                        tokio::select! {
                            Some(Ok(Message::Binary(bytes))) = socket.next() => self.receive(&bytes, &mut signed_in),
                            Some(Ok(Message::Binary(bytes))) = again.next() => self.receive(&bytes, &mut signed_in),
                            else => return,
                        }
                    }
                })
                .await;
            }
            _ => {}
        }
        Ok(())
    }
}
