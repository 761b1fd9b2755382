//! A relay as a process, stock WebSocket clients, and a controller of a few lines.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it, as a module")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{MeshSubject, RelaySubject, Token};
use meshdp::proto::wire::control::{ErrorMessage, parse};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use meshdp::proto::wire::reassembly::{Reassembler, write_control};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Nothing here takes that long on a machine that does nothing else; on a busy one it may.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn signer() -> TokenSigner {
    TokenSigner::eddsa("k1", &[7; 32]).unwrap()
}

pub fn relay_token(node: u32, network: u32) -> Token<RelaySubject> {
    Token {
        subject: RelaySubject {
            node_id: NodeId(node),
            network_id: NetworkId(network),
            ..RelaySubject::default()
        },
        jti: format!("t{node}"),
        iat: now(),
        exp: now() + 5400,
        not_after: None,
    }
}

pub fn mesh_token(from: u16, to: u16) -> String {
    let subject = MeshSubject { server_id: RelayId(from), peer_id: RelayId(to) };
    signer()
        .sign(&Token {
            subject,
            jti: format!("m{from}-{to}"),
            iat: now(),
            exp: now() + 3600,
            not_after: None,
        })
        .unwrap()
}

/// A configuration that stands alone: one key, plain on loopback, ports by the system, two workers.
pub fn standalone(id: u16, more: &str) -> String {
    let public = signer().verification_key().public.reveal().to_owned();
    format!(
        "[jwt]\npublic_key = \"{public}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[stun]\nlisten = \"127.0.0.1:0\"\n\
         [relay]\nid = {id}\nlisten = \"127.0.0.1:0\"\nworkers = 2\n{more}"
    )
}

/// A running `edgelink-relay`; killed when dropped.
pub struct Relay {
    child: Child,
    pub data: SocketAddr,
    /// All of them, `data` first.
    pub addresses: Vec<SocketAddr>,
    pub admin: SocketAddr,
    pub stun: Option<SocketAddr>,
    pub directory: PathBuf,
    log: mpsc::Receiver<String>,
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgelink-relay"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EDGELINK_")) {
        if name != "EDGELINK_DRIVER" {
            command.env_remove(name);
        }
    }
    command
}

impl Relay {
    /// Starts with `config` (TOML) and keeps state in `directory`.
    pub fn start(directory: &Path, config: &str, flags: &[&str]) -> Self {
        Self::start_with(directory, config, flags, &[])
    }

    /// The same, with more in its environment.
    pub fn start_with(directory: &Path, config: &str, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut relay = Self::spawn_with(directory, config, flags, environment);
        // In this order.
        loop {
            let (message, address) = relay.listens();
            match message.as_str() {
                "relay listens" => relay.addresses.push(address),
                "STUN listens" => relay.stun = Some(address),
                _ => {
                    relay.admin = address;
                    relay.data = relay.addresses.first().copied().unwrap_or(relay.data);
                    return relay;
                }
            }
        }
    }

    /// Starts it and waits for nothing: the addresses are not known.
    pub fn spawn(directory: &Path, config: &str, flags: &[&str]) -> Self {
        Self::spawn_with(directory, config, flags, &[])
    }

    fn spawn_with(directory: &Path, config: &str, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let file = directory.join("relay.toml");
        std::fs::write(&file, config).unwrap();
        let mut child = command()
            .args(["--log-format", "json", "--config"])
            .arg(&file)
            .arg("--state-dir")
            .arg(directory.join("state"))
            .args(flags)
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if std::env::var_os("SHOW_LOG").is_some() {
                    eprintln!("{line}");
                }
                let _ = sender.send(line);
            }
        });
        let unset = "0.0.0.0:0".parse().unwrap();
        Self {
            child,
            data: unset,
            addresses: vec![],
            admin: unset,
            stun: None,
            directory: directory.to_owned(),
            log,
        }
    }

    /// Starts with its log going elsewhere: `config` says where it listens, and is told here again.
    pub fn start_logging_to(
        directory: &Path,
        config: &str,
        log: Stdio,
        data: SocketAddr,
        admin: SocketAddr,
    ) -> Self {
        let file = directory.join("relay.toml");
        std::fs::write(&file, config).unwrap();
        let child = command()
            .arg("--config")
            .arg(&file)
            .arg("--state-dir")
            .arg(directory.join("state"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + PATIENCE;
        while [admin, data].iter().any(|address| std::net::TcpStream::connect(address).is_err()) {
            assert!(Instant::now() < until, "the relay does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (addresses, log) = (vec![data], mpsc::channel().1);
        Self { child, addresses, data, admin, stun: None, directory: directory.to_owned(), log }
    }

    /// Waits for a log line with this message; the line.
    pub fn logged(&self, message: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
            if line.contains(message) {
                return line;
            }
            seen.push(line);
        }
        panic!("no log line with {message:?}; there were: {seen:#?}");
    }

    /// The next that says so: its message and address.
    fn listens(&self) -> (String, SocketAddr) {
        let line: serde_json::Value = serde_json::from_str(&self.logged(" listens\"")).unwrap();
        let field = |name: &str| line["fields"][name].as_str().unwrap().to_owned();
        (field("message"), field("address").parse().unwrap())
    }

    /// A GET of the admin HTTP: status line and body.
    pub fn admin(&self, path: &str) -> (String, String) {
        self.ask("GET", path)
    }

    /// A POST; the status line.
    pub fn post(&self, path: &str) -> String {
        self.ask("POST", path).0
    }

    fn ask(&self, method: &str, path: &str) -> (String, String) {
        let mut stream = std::net::TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// The value of a metric with exactly these labels (`name{labels}`).
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.admin("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
    }

    /// The sum of a metric over all its labels.
    pub fn metric_sum(&self, name: &str) -> u64 {
        let (_, text) = self.admin("/metrics");
        let values =
            text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the relay does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn frame(kind: FrameType, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(kind, Flags::NONE, payload, &mut out).unwrap();
    out
}

/// A DATA frame that carries `body`.
pub fn data(source: u32, destination: u32, body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend_from_slice(&source.to_be_bytes());
    payload.extend_from_slice(&destination.to_be_bytes());
    payload.extend_from_slice(&[0; 12]);
    payload.extend_from_slice(body);
    frame(FrameType::Data, &payload)
}

/// A stock WebSocket client that speaks frames.
pub struct Client<S = TcpStream> {
    pub socket: WebSocketStream<S>,
    received: VecDeque<Vec<u8>>,
}

impl Client {
    pub async fn connect(relay: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(relay).await.unwrap();
        Self::over(stream, path).await
    }

    /// Connected and signed in at `/ws/data`.
    pub async fn node(relay: SocketAddr, node: u32, network: u32) -> Self {
        let mut client = Self::connect(relay, "/ws/data").await;
        let token = signer().sign(&relay_token(node, network)).unwrap();
        client.sign_in(&token).await;
        let (kind, payload) = client.next().await;
        assert_eq!(kind, FrameType::AuthResponse, "{}", String::from_utf8_lossy(&payload));
        client
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn over(stream: S, path: &str) -> Self {
        Self::with_headers(stream, path, &[]).await
    }

    /// With more in the request's head, as a proxy would write it.
    pub async fn with_headers(stream: S, path: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut request = format!("ws://localhost{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let handshake = tokio_tungstenite::client_async(request, stream);
        let (socket, _) = timeout(PATIENCE, handshake).await.unwrap().unwrap();
        Self { socket, received: VecDeque::new() }
    }

    pub async fn sign_in(&mut self, token: &str) {
        let request = serde_json::json!({"kind": "relay", "token": token, "version": "test"}).to_string();
        self.send(frame(FrameType::AuthRequest, request.as_bytes())).await;
    }

    pub async fn send(&mut self, message: Vec<u8>) {
        self.socket.send(Message::binary(message)).await.unwrap();
    }

    /// The next frame, as it came.
    pub async fn next_frame(&mut self) -> Vec<u8> {
        loop {
            if let Some(frame) = self.received.pop_front() {
                return frame;
            }
            match timeout(PATIENCE, self.socket.next()).await.expect("nothing came").expect("closed").unwrap()
            {
                Message::Binary(bytes) => {
                    self.received.extend(Frames::new(&bytes).map(|frame| frame.unwrap().bytes.to_vec()));
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("expected frames, got {other:?}"),
            }
        }
    }

    pub async fn next(&mut self) -> (FrameType, Vec<u8>) {
        let frame = self.next_frame().await;
        (FrameType::from_byte(frame[1]).unwrap(), frame[5..].to_vec())
    }

    pub async fn expect_error(&mut self) -> ErrorMessage {
        let (kind, payload) = self.next().await;
        assert_eq!(kind, FrameType::Error, "{}", String::from_utf8_lossy(&payload));
        parse(kind, &payload).unwrap()
    }

    /// The close code that ends it.
    pub async fn expect_close(&mut self) -> u16 {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("not closed") {
                Some(Ok(Message::Close(Some(close)))) => return close.code.into(),
                Some(Ok(Message::Close(None))) => return 1005,
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return 1006,
            }
        }
    }

    /// Nothing comes for a while.
    pub async fn expect_silence(&mut self) {
        assert!(self.received.is_empty());
        let came = timeout(Duration::from_millis(300), self.socket.next()).await;
        assert!(came.is_err(), "{came:?}");
    }
}

/// A controller's end of `/ws/server`.
pub struct Controller {
    listener: TcpListener,
}

/// One relay's link to it.
pub struct ServerLink {
    socket: WebSocketStream<TcpStream>,
    reassembler: Reassembler,
    waiting: VecDeque<(FrameType, serde_json::Value)>,
}

impl Controller {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        Self { listener: TcpListener::bind(address).await.unwrap() }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// The next connection.
    pub async fn accept_tcp(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// A configuration for a relay that gets its orders here.
    pub fn config(&self) -> String {
        format!(
            "[controller]\nurl = \"ws://{}/ws/server\"\ntoken = \"server-token\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [stun]\nlisten = \"127.0.0.1:0\"\n[relay]\nlisten = \"127.0.0.1:0\"\nworkers = 2\n",
            self.listener.local_addr().unwrap()
        )
    }

    /// The next relay that comes, with its SERVER_REGISTER.
    pub async fn accept(&self) -> (ServerLink, serde_json::Value) {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("no relay came").unwrap();
        let socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let mut link = ServerLink { socket, reassembler: Reassembler::default(), waiting: VecDeque::new() };
        let (kind, register) = link.next().await;
        assert_eq!(kind, FrameType::ServerRegister);
        (link, register)
    }
}

impl ServerLink {
    pub async fn send(&mut self, kind: FrameType, message: &serde_json::Value) {
        let mut out = Vec::new();
        write_control(kind, Flags::ACK_WANTED, message.to_string().as_bytes(), &mut out).unwrap();
        self.socket.send(Message::binary(out)).await.unwrap();
        assert_eq!(self.next_of(FrameType::Ack).await, serde_json::Value::Null);
    }

    pub async fn send_raw(&mut self, message: Vec<u8>) {
        self.socket.send(Message::binary(message)).await.unwrap();
    }

    pub async fn next(&mut self) -> (FrameType, serde_json::Value) {
        if let Some(waiting) = self.waiting.pop_front() {
            return waiting;
        }
        loop {
            let message =
                timeout(PATIENCE, self.socket.next()).await.expect("nothing came").unwrap().unwrap();
            let Message::Binary(bytes) = message else { continue };
            for frame in Frames::new(&bytes) {
                let Some(message) = self.reassembler.push(frame.unwrap()).unwrap() else { continue };
                if message.kind != FrameType::Ping {
                    let value = serde_json::from_slice(&message.payload).unwrap_or_default();
                    self.waiting.push_back((message.kind, value));
                }
            }
            if let Some(first) = self.waiting.pop_front() {
                return first;
            }
        }
    }

    /// The next of that type; others are kept.
    pub async fn next_of(&mut self, wanted: FrameType) -> serde_json::Value {
        let mut others = Vec::new();
        loop {
            let (kind, value) = self.next().await;
            if kind == wanted {
                for other in others.into_iter().rev() {
                    self.waiting.push_front(other);
                }
                return value;
            }
            others.push((kind, value));
        }
    }
}

/// CONFIG for a relay: `relays` are `(id, mesh address)`, `nodes` are `(node, network, relays)`.
pub fn config(me: u16, relays: &[(u16, SocketAddr)], nodes: &[(u32, u32, &[u16])]) -> serde_json::Value {
    let relays: Vec<_> = relays
        .iter()
        .map(|(id, address)| {
            serde_json::json!({"id": id, "mesh_url": format!("ws://{address}/ws/mesh"), "mesh_token": mesh_token(me, *id)})
        })
        .collect();
    let key = signer().verification_key();
    serde_json::json!({
        "version": 5, "relay_id": me, "server_time": now(),
        "token_keys": {"algorithm": "EdDSA", "keys": [key]},
        "relays": relays, "nodes": locations(nodes), "revocations": {},
        "settings": {"latency_report_s": 1, "token_grace_s": 86400},
    })
}

pub fn locations(nodes: &[(u32, u32, &[u16])]) -> Vec<serde_json::Value> {
    nodes
        .iter()
        .map(|(node, network, relays)| serde_json::json!({"node_id": node, "network_id": network, "relays": relays}))
        .collect()
}
