//! The link against a small controller on real sockets.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use meshdp::proto::crypto::keys::verify_control;
use meshdp::proto::error::ErrorCode;
use meshdp::proto::id::{NetworkId, NodeId};
use meshdp::proto::wire::control::node::{
    AuthChallenge, AuthState, Config, MachineAuth, MachineAuthorised, NodeState, NodeUpdate, Relay, Settings,
};
use meshdp::proto::wire::control::{self, AuthRequest, AuthResponse, Base64, ErrorMessage};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use meshdp::proto::wire::reassembly::{Message, Reassembler, write_control};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;

use super::link::{self, LinkEvent, LinkSettings, Request, SharedIdentity};
use super::sign_in::{Introduction, News};
use crate::keys::Keys;

/// One accepted connection of the in-test controller.
struct Peer {
    socket: WebSocketStream<TcpStream>,
    reassembler: Reassembler,
    ready: std::collections::VecDeque<Message>,
}

impl Peer {
    async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        Self { socket, reassembler: Reassembler::default(), ready: std::collections::VecDeque::new() }
    }

    async fn say<T: Serialize>(&mut self, kind: FrameType, flags: Flags, message: &T) {
        let mut bytes = Vec::new();
        write_control(kind, flags, &control::to_payload(message), &mut bytes).unwrap();
        self.socket.send(WsMessage::binary(bytes)).await.unwrap();
    }

    async fn hear(&mut self) -> Message {
        while self.ready.is_empty() {
            let WsMessage::Binary(bytes) = self.socket.next().await.unwrap().unwrap() else { continue };
            for frame in Frames::new(&bytes) {
                self.ready.extend(self.reassembler.push(frame.unwrap()).unwrap());
            }
        }
        self.ready.pop_front().unwrap()
    }

    async fn challenge(&mut self) -> MachineAuth {
        let nonce = Base64([5; 32]);
        self.say(FrameType::AuthChallenge, Flags::NONE, &AuthChallenge { nonce, server_time: 1_770_000_000 })
            .await;
        let message = self.hear().await;
        let AuthRequest::Machine(request) = control::parse(message.kind, &message.payload).unwrap() else {
            panic!()
        };
        assert_eq!(
            verify_control(&request.machine_key, &[5; 32], &request.controller, &request.signature),
            Ok(())
        );
        *request
    }

    async fn authorise(&mut self, state: AuthState) {
        let node =
            NodeState { node_id: NodeId(17), network_id: NetworkId(1), network: "default".to_owned(), state };
        let answer = MachineAuthorised {
            state,
            nodes: vec![node],
            auth_token: None,
            auth_token_expires: None,
            heartbeat_s: 1,
        };
        self.say(FrameType::AuthResponse, Flags::NONE, &AuthResponse::Machine(answer)).await;
    }
}

struct Link {
    requests: mpsc::Sender<Request>,
    events: mpsc::Receiver<LinkEvent>,
    identity: Rc<RefCell<SharedIdentity>>,
    _folder: tempfile::TempDir,
}

impl Link {
    fn start(listener: &TcpListener) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::create(&folder.path().join("keys.json"), 1_770_000_000, true).unwrap();
        let identity = Rc::new(RefCell::new(SharedIdentity { keys, config_version: 0 }));
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (requests, requests_in) = mpsc::channel(8);
        let (events_out, events) = mpsc::channel(8);
        let introduction = Introduction {
            controller: "127.0.0.1".to_owned(),
            hostname: "laptop".to_owned(),
            networks: Vec::new(),
            enrolment_key: None,
            routes: Vec::new(),
        };
        let settings = LinkSettings {
            url,
            tls: None,
            outbound: Arc::default(),
            introduction,
            identity: Rc::clone(&identity),
        };
        tokio::task::spawn_local(link::run(settings, requests_in, events_out));
        Self { requests, events, identity, _folder: folder }
    }

    async fn news(&mut self) -> News {
        loop {
            match self.events.recv().await.unwrap() {
                LinkEvent::News(News::ServerTime(_)) | LinkEvent::Connecting => {}
                LinkEvent::News(news) => return news,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Runs `test` on one thread, for ten seconds at most.
fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(10), test).await.expect("done within ten seconds");
    });
}

#[test]
fn signs_in_takes_a_fragmented_configuration_and_acknowledges_it() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut link = Link::start(&listener);
        let mut peer = Peer::accept(&listener).await;
        let request = peer.challenge().await;
        assert_eq!((request.hostname.as_str(), request.config_version), ("laptop", 0));
        peer.authorise(AuthState::Authorised).await;
        assert!(matches!(link.news().await, News::SignedIn(answer) if answer.nodes[0].node_id == NodeId(17)));

        // 200 kB that does not compress to one frame.
        let relays: Vec<_> = (1..2000u16)
            .map(|id| Relay {
                id: meshdp::proto::id::RelayId(id),
                name: format!("{:x}", u64::from(id).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
                region: format!("{:x}", u64::from(id).wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(17)),
                data_url: None,
                more_urls: Vec::new(),
                tls_pin: Some(format!(
                    "{:x}",
                    u128::from(id).wrapping_mul(0xDA94_2042_E4DD_58B5_9E37_79B9_7F4A_7C15)
                )),
                stun: None,
            })
            .collect();
        let config = Config { version: 3, memberships: Vec::new(), relays, settings: Settings::default() };
        peer.say(FrameType::Config, Flags::ACK_WANTED, &config).await;
        assert!(matches!(link.news().await, News::Config(read) if *read == config));
        let ack = loop {
            let message = peer.hear().await;
            if message.kind == FrameType::Ack {
                break message.payload;
            }
        };
        assert_eq!(ack, [FrameType::Config as u8, 0, 0, 0, 1]);
    });
}

#[test]
fn comes_back_after_a_cut_and_resumes_with_the_version_it_has() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut link = Link::start(&listener);
        for round in 0..3u64 {
            let mut peer = Peer::accept(&listener).await;
            assert_eq!(peer.challenge().await.config_version, round);
            peer.authorise(AuthState::Authorised).await;
            assert!(matches!(link.news().await, News::SignedIn(_)));
            link.identity.borrow_mut().config_version += 1;
            drop(peer);
            assert!(matches!(link.events.recv().await.unwrap(), LinkEvent::Lost { .. }));
        }
    });
}

#[test]
fn answers_pings_sends_its_own_and_passes_requests_on() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut link = Link::start(&listener);
        let mut peer = Peer::accept(&listener).await;
        peer.challenge().await;
        peer.authorise(AuthState::Pending).await;
        assert!(matches!(link.news().await, News::SignedIn(_)));
        assert!(matches!(link.news().await, News::Pending(nodes) if nodes[0].node_id == NodeId(17)));

        let mut ping = Vec::new();
        write_frame(FrameType::Ping, Flags::NONE, b"hello", &mut ping).unwrap();
        peer.socket.send(WsMessage::binary(ping)).await.unwrap();
        let update = NodeUpdate { resync: true, ..NodeUpdate::default() };
        link.requests.send(Request::Update(update.clone())).await.unwrap();

        let (mut pong, mut beat, mut asked) = (false, false, false);
        while !(pong && beat && asked) {
            let message = peer.hear().await;
            match message.kind {
                FrameType::Pong => pong = message.payload == b"hello",
                FrameType::Ping => beat = true,
                FrameType::NodeUpdate => {
                    asked = control::parse::<NodeUpdate>(message.kind, &message.payload).unwrap() == update;
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_refusal_arrives_as_advice_and_is_not_hammered() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut link = Link::start(&listener);
        let mut peer = Peer::accept(&listener).await;
        peer.challenge().await;
        peer.say(FrameType::Error, Flags::NONE, &ErrorMessage::new(ErrorCode::BadSignature)).await;
        let advice = loop {
            match link.events.recv().await.unwrap() {
                LinkEvent::Refused { advice } => break advice,
                LinkEvent::Connecting | LinkEvent::News(News::ServerTime(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(advice.contains("1005") && advice.contains("127.0.0.1"), "{advice}");
        let again = tokio::time::timeout(Duration::from_secs(1), listener.accept()).await;
        assert!(again.is_err(), "no second try within a second");
    });
}

#[test]
fn nonsense_from_the_controller_ends_the_connection_only() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut link = Link::start(&listener);
        for nonsense in
            [WsMessage::text("hello"), WsMessage::binary(vec![9, 9, 9]), WsMessage::binary(Vec::new())]
        {
            let mut peer = Peer::accept(&listener).await;
            peer.socket.send(nonsense).await.unwrap();
            loop {
                match link.events.recv().await.unwrap() {
                    LinkEvent::Lost { .. } => break,
                    LinkEvent::Connecting => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}
