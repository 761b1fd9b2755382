//! A client that sends exactly the bytes it is told, blocking, and says what came back until the end.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use meshdp::proto::wire::control::{ErrorMessage, parse};
use meshdp::proto::wire::frame::{FrameType, Frames};
use socket2::{Domain, Socket, Type};

use crate::support::*;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// One WebSocket frame, right or wrong.
#[derive(Clone, Copy)]
pub struct Ws {
    pub fin: bool,
    pub reserved: u8,
    pub opcode: u8,
    pub key: Option<[u8; 4]>,
    /// What the header says; `None`: the truth in the shortest form.
    pub length: Option<Length>,
}

/// How a length is written.
#[derive(Clone, Copy)]
pub enum Length {
    Short(u8),
    Two(u16),
    Eight(u64),
}

impl Ws {
    pub const fn new(opcode: u8) -> Self {
        Self { fin: true, reserved: 0, opcode, key: Some([0x5a, 0x17, 0xc3, 0x88]), length: None }
    }

    pub fn bytes(self, payload: &[u8]) -> Vec<u8> {
        let length = self.length.unwrap_or(match payload.len() {
            short @ 0..126 => Length::Short(short as u8),
            two @ 126..0x1_0000 => Length::Two(two as u16),
            eight => Length::Eight(eight as u64),
        });
        let masked = if self.key.is_some() { 0x80 } else { 0 };
        let mut out = vec![(u8::from(self.fin) << 7) | (self.reserved << 4) | self.opcode];
        match length {
            Length::Short(length) => out.push(masked | length),
            Length::Two(length) => {
                out.push(masked | 0x7e);
                out.extend_from_slice(&length.to_be_bytes());
            }
            Length::Eight(length) => {
                out.push(masked | 0x7f);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        let key = self.key.unwrap_or_default();
        out.extend_from_slice(&key[..if self.key.is_some() { 4 } else { 0 }]);
        out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }
}

/// A whole masked binary message.
pub fn message(payload: &[u8]) -> Vec<u8> {
    Ws::new(BINARY).bytes(payload)
}

/// A correct upgrade request.
pub fn request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n"
    )
    .into_bytes()
}

/// The message that signs a node in.
pub fn sign_in(node: u32, network: u32) -> Vec<u8> {
    let token = signer().sign(&relay_token(node, network)).unwrap();
    sign_in_with(&token)
}

pub fn sign_in_with(token: &str) -> Vec<u8> {
    let json = serde_json::json!({"kind": "relay", "token": token, "version": "test"}).to_string();
    message(&frame(FrameType::AuthRequest, json.as_bytes()))
}

/// A TCP connection from an address of this machine's.
pub fn connect_from(source: Ipv4Addr, relay: SocketAddr) -> io::Result<TcpStream> {
    connect(source, relay, None)
}

/// The same with a receive buffer of about so many bytes.
pub fn connect(source: Ipv4Addr, relay: SocketAddr, window: Option<usize>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(window) = window {
        socket.set_recv_buffer_size(window)?;
    }
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&relay.into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// A source address that no other connection shares with `number` modulo 60,000.
pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1 + (number / 62_500) as u8, (number / 250 % 250) as u8, 1 + (number % 250) as u8)
}

/// See the module's doc.
pub struct Raw<S = TcpStream> {
    pub stream: S,
    received: Vec<u8>,
    frames: VecDeque<(FrameType, Vec<u8>)>,
    /// Silence counts as the end.
    pub impatient: bool,
}

/// How it ended.
#[derive(Debug, Default)]
pub struct Ending {
    pub errors: Vec<u16>,
    /// Frames that were no ERROR.
    pub frames: Vec<Vec<u8>>,
    pub close: Option<u16>,
    /// The status line, when there was no upgrade.
    pub http: Option<String>,
}

impl Raw {
    pub fn connect(relay: SocketAddr) -> Self {
        Self::over(connect_from(Ipv4Addr::LOCALHOST, relay).unwrap())
    }

    pub fn upgraded(relay: SocketAddr, path: &str) -> Self {
        let mut raw = Self::connect(relay);
        raw.upgrade(path);
        raw
    }

    /// Signed in.
    pub fn node(relay: SocketAddr, node: u32, network: u32) -> Self {
        let mut raw = Self::upgraded(relay, "/ws/data");
        raw.sign_in(node, network);
        raw
    }
}

impl<S: Read + Write> Raw<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, received: Vec::new(), frames: VecDeque::new(), impatient: false }
    }

    /// Sends; that the relay has closed is for whoever reads next to find.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    pub fn upgrade(&mut self, path: &str) {
        self.send(&request(path));
        let head = self.head().expect("closed during the upgrade");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    pub fn sign_in(&mut self, node: u32, network: u32) {
        self.send(&sign_in(node, network));
        let (kind, payload) = self.next_frame().expect("closed during sign-in");
        assert_eq!(kind, FrameType::AuthResponse, "{}", String::from_utf8_lossy(&payload));
    }

    /// The response's head; `None` when the connection ends before it is whole.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = self.received.split_off(end + 4);
                let head = std::mem::replace(&mut self.received, rest);
                return Some(String::from_utf8(head).unwrap());
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    /// The next WebSocket frame: opcode and payload.
    pub fn next_ws(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((opcode, payload, used)) = parse_server_frame(&self.received) {
                self.received.drain(..used);
                return Some((opcode, payload));
            }
            if !self.read_more() {
                return None;
            }
        }
    }

    /// The next EdgeLink frame: type and payload. `None` when the connection ends first.
    pub fn next_frame(&mut self) -> Option<(FrameType, Vec<u8>)> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            match self.next_ws()? {
                (BINARY, payload) => {
                    let frames = Frames::new(&payload).map(Result::unwrap);
                    self.frames.extend(frames.map(|frame| (frame.header.kind, frame.payload().to_vec())));
                }
                (CLOSE, _) => return None,
                _ => {}
            }
        }
    }

    /// Everything until the end, which must come.
    pub fn ending(&mut self) -> Ending {
        let mut ending = Ending::default();
        if self.received.is_empty() && !self.read_more() {
            return ending;
        }
        if self.received.starts_with(b"HTTP") {
            let Some(head) = self.head() else { return ending };
            if !head.starts_with("HTTP/1.1 101 ") {
                ending.http = Some(head.lines().next().unwrap().to_owned());
                while self.read_more() {}
                assert!(self.received.is_empty(), "a refusal has no body");
                return ending;
            }
        }
        while let Some((opcode, payload)) = self.next_ws() {
            match opcode {
                CLOSE => {
                    ending.close = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    while self.read_more() {}
                    return ending;
                }
                BINARY => {
                    for frame in Frames::new(&payload).map(Result::unwrap) {
                        match parse::<ErrorMessage>(frame.header.kind, frame.payload()) {
                            Ok(error) if frame.header.kind == FrameType::Error => {
                                ending.errors.push(error.code.code());
                            }
                            _ => ending.frames.push(frame.bytes.to_vec()),
                        }
                    }
                }
                _ => {}
            }
        }
        ending
    }

    /// False at the end, orderly or not. Panics when there is none.
    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.received.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if self.impatient {
                    return false;
                }
                panic!("the relay neither answers nor closes; it has said {:?}", self.received)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(_) => false,
        }
    }
}

/// Opcode, payload and length of the first whole frame. A relay's frames are whole messages without a mask.
fn parse_server_frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    assert_eq!(first & 0xf0, 0x80, "a relay does not fragment");
    assert_eq!(second & 0x80, 0, "a relay does not mask");
    let (length, rest) = match second {
        126 => {
            rest.split_first_chunk().map(|(length, rest)| (u64::from(u16::from_be_bytes(*length)), rest))?
        }
        127 => rest.split_first_chunk().map(|(length, rest)| (u64::from_be_bytes(*length), rest))?,
        short => (u64::from(short), rest),
    };
    let payload = rest.get(..length as usize)?;
    Some((first & 0x0f, payload.to_vec(), bytes.len() - rest.len() + payload.len()))
}
