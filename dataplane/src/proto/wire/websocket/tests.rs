//! WebSocket frames and masks, held against tungstenite.

use std::io::{self, Cursor};

use proptest::prelude::*;
use tokio_tungstenite::tungstenite::error::{Error as OracleError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::Role as OracleRole;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::WebsocketError as E;
use super::*;

/// A frame as RFC 6455 §5.2 draws it, byte by byte.
fn frame(fin: bool, opcode: u8, key: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let mask = if key.is_some() { 0x80 } else { 0 };
    let mut out = vec![u8::from(fin) << 7 | opcode];
    match payload.len() {
        short @ 0..=125 => out.push(mask | short as u8),
        medium @ 126..=65535 => {
            out.push(mask | LENGTH_16);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(mask | LENGTH_64);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    let key_bytes = key.unwrap_or_default();
    out.extend_from_slice(if key.is_some() { &key_bytes } else { &[] });
    out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ key_bytes[i % 4]));
    out
}

#[derive(PartialEq, Eq, Debug, Clone)]
enum Owned {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

/// What the reader hands out of `bytes` that come in pieces.
fn read(role: Role, bytes: &[u8], cuts: &[usize], limit: usize) -> (Vec<Owned>, Result<(), WebsocketError>) {
    let mut reader = Reader::new(role, limit);
    let mut items = Vec::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().copied().unwrap_or(usize::MAX).clamp(1, rest.len());
        let (now, later) = rest.split_at(cut);
        rest = later;
        let outcome = reader.receive(&mut now.to_vec(), &mut |item| {
            items.push(match item {
                Item::Message(payload) => Owned::Message(payload.to_vec()),
                Item::Ping(payload) => Owned::Ping(payload.to_vec()),
                Item::Pong(payload) => Owned::Pong(payload.to_vec()),
                Item::Close(code, reason) => Owned::Close(code, reason.to_owned()),
            });
        });
        assert!(reader.buffered() <= limit + MAX_HEADER);
        if let Err(error) = outcome {
            return (items, Err(error));
        }
    }
    (items, Ok(()))
}

fn error_of(role: Role, bytes: &[u8]) -> WebsocketError {
    read(role, bytes, &[], 1000).1.unwrap_err()
}

#[test]
fn refuses_what_the_rfc_forbids_as_soon_as_it_shows() {
    let key = [0x80, 0, 0, 0, 0];
    let client = |first: u8| [&[first][..], &key].concat();
    assert_eq!(error_of(Role::Server, &client(0xC2)), E::ReservedBits);
    assert_eq!(error_of(Role::Server, &client(0x83)), E::Opcode(3));
    assert_eq!(error_of(Role::Server, &[0x82, 0x00]), E::Masking { masked: false });
    assert_eq!(error_of(Role::Client, &[0x82, 0x80]), E::Masking { masked: true });
    assert_eq!(error_of(Role::Client, &[0x82, 126, 0, 125]), E::Length);
    assert_eq!(error_of(Role::Client, &[0x82, 127, 0, 0, 0, 0, 0, 0, 255, 255]), E::Length);
    assert_eq!(error_of(Role::Client, &[0x82, 127, 128, 0, 0, 0, 0, 1, 0, 0]), E::Length);
    assert_eq!(error_of(Role::Client, &[0x09, 0]), E::Control);
    assert_eq!(error_of(Role::Client, &[0x89, 126]), E::Control);
    assert_eq!(error_of(Role::Client, &[0x80, 0]), E::Fragmentation);
    assert_eq!(error_of(Role::Client, &[0x02, 0, 0x82, 0]), E::Fragmentation);
    assert_eq!(error_of(Role::Client, &[0x81, 0]), E::Text);
    assert_eq!(error_of(Role::Client, &[0x88, 1, 3]), E::CloseFrame);
    assert_eq!(error_of(Role::Client, &[0x88, 2, 3, 0xED]), E::CloseFrame);
    assert_eq!(error_of(Role::Client, &[0x88, 3, 3, 0xE8, 0xFF]), E::CloseFrame);
}

#[test]
fn the_limit_holds_for_wholes_and_sums_before_anything_is_buffered() {
    let too_large = WebsocketError::TooLarge { limit: 1000 };
    assert_eq!(error_of(Role::Client, &[0x82, 126, 0x03, 0xE9]), too_large);
    let mut fragments = frame(false, 2, None, &[0; 600]);
    fragments.extend(frame(true, 0, None, &[0; 401])[..4].iter());
    assert_eq!(error_of(Role::Client, &fragments), too_large);
    assert_eq!(too_large.close_code(), 1009);
    let whole = frame(true, 2, None, &[1; 1000]);
    assert_eq!(read(Role::Client, &whole, &[], 1000), (vec![Owned::Message(vec![1; 1000])], Ok(())));
}

#[test]
fn nothing_is_read_after_a_close_frame() {
    let bytes = [frame(true, 8, None, &close_payload(1001, "bye")), frame(true, 2, None, b"late")].concat();
    for cuts in [&[][..], &[1]] {
        let want = vec![Owned::Close(Some(1001), "bye".into())];
        assert_eq!(read(Role::Client, &bytes, cuts, 1000), (want, Ok(())));
    }
    assert_eq!(read(Role::Client, &[0x88, 0], &[], 9).0, [Owned::Close(None, String::new())]);
    assert_eq!(close_payload(1000, &"ä".repeat(100)).len(), 2 + 122);
}

/// A stream for the oracle: reads what it is given, keeps what it writes.
struct Pipe(Cursor<Vec<u8>>, Vec<u8>);

impl io::Read for Pipe {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite makes of the bytes; `Err` when it finds fault with them.
fn oracle(role: Role, bytes: &[u8]) -> (Vec<Vec<u8>>, Result<(), OracleError>) {
    let role = if role == Role::Server { OracleRole::Server } else { OracleRole::Client };
    let mut socket = WebSocket::from_raw_socket(Pipe(Cursor::new(bytes.to_vec()), Vec::new()), role, None);
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Binary(payload)) => messages.push(payload.to_vec()),
            Ok(_) => {}
            Err(
                OracleError::ConnectionClosed
                | OracleError::Protocol(ProtocolError::ResetWithoutClosingHandshake),
            ) => return (messages, Ok(())),
            Err(error) => return (messages, Err(error)),
        }
    }
}

fn messages(items: &[Owned]) -> Vec<Vec<u8>> {
    let message = |item: &Owned| if let Owned::Message(m) = item { Some(m.clone()) } else { None };
    items.iter().filter_map(message).collect()
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Client), Just(Role::Server)]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![4 => 0usize..300, 1 => 60_000usize..70_000];
    (length, any::<u8>())
        .prop_map(|(length, seed)| (0..length).map(|i| (i as u8).wrapping_mul(seed)).collect())
}

/// A message in fragments, with pings between, as `role` receives it.
fn script() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<usize>, [u8; 4])>> {
    let fragments = proptest::collection::vec(0usize..200, 0..4);
    proptest::collection::vec((payload(), fragments, any::<[u8; 4]>()), 0..6)
}

fn write_script(role: Role, script: &[(Vec<u8>, Vec<usize>, [u8; 4])]) -> (Vec<u8>, Vec<Owned>) {
    let (mut bytes, mut items) = (Vec::new(), Vec::new());
    for (payload, fragments, key) in script {
        let key = (role == Role::Server).then_some(*key);
        let mut rest = &payload[..];
        let mut opcode = 2;
        for &length in fragments {
            let (now, later) = rest.split_at(length.min(rest.len()));
            rest = later;
            bytes.extend(frame(false, opcode, key, now));
            opcode = 0;
            bytes.extend(frame(true, 9, key, &now[..now.len().min(125)]));
            items.push(Owned::Ping(now[..now.len().min(125)].to_vec()));
        }
        bytes.extend(frame(true, opcode, key, rest));
        items.push(Owned::Message(payload.clone()));
    }
    (bytes, items)
}

proptest! {
    #[test]
    fn reads_what_the_model_writes_however_it_is_cut(role in any_role(), script in script(), cuts in proptest::collection::vec(1usize..5000, 0..5)) {
        let (bytes, items) = write_script(role, &script);
        let (got, outcome) = read(role, &bytes, &cuts, DEFAULT_MAX_MESSAGE);
        prop_assert_eq!(outcome, Ok(()));
        prop_assert!(got == items);
        let (theirs, outcome) = oracle(role, &bytes);
        prop_assert!(outcome.is_ok());
        prop_assert!(theirs == messages(&items));
    }

    #[test]
    fn the_oracle_reads_what_is_written_here(payloads in proptest::collection::vec(payload(), 0..4), key in proptest::option::of(any::<[u8; 4]>())) {
        let mut bytes = Vec::new();
        for payload in &payloads {
            let mut room = [0xEE; MAX_HEADER];
            let len = write_header(Opcode::Binary, payload.len(), key, &mut room);
            bytes.extend_from_slice(&room[MAX_HEADER - len..]);
            let mut masked = payload.clone();
            if let Some(key) = key {
                mask(&mut masked, key);
            }
            bytes.extend(masked);
        }
        let role = if key.is_some() { Role::Server } else { Role::Client };
        let (theirs, outcome) = oracle(role, &bytes);
        prop_assert!(outcome.is_ok());
        prop_assert!(theirs == payloads);
        let first = payloads.first().map_or(0, |payload| {
            payload.len() + header_len(payload.len(), if key.is_some() { Role::Client } else { Role::Server })
        });
        prop_assert_eq!(first_frame_len(&bytes), first);
    }

    #[test]
    fn accepts_nothing_that_the_oracle_refuses(role in any_role(), script in script(), at in any::<prop::sample::Index>(), with in any::<u8>(), cuts in proptest::collection::vec(1usize..300, 0..3)) {
        let (mut bytes, _) = write_script(role, &script);
        if !bytes.is_empty() {
            let at = at.index(bytes.len().min(40));
            bytes[at] = with;
        }
        let (got, outcome) = read(role, &bytes, &cuts, DEFAULT_MAX_MESSAGE);
        let (theirs, verdict) = oracle(role, &bytes);
        let got = messages(&got);
        if verdict.is_err() {
            prop_assert!(outcome.is_err() || got.len() <= theirs.len());
        }
        // What both hand out is the same, as far as the stricter one goes.
        prop_assert!(theirs.starts_with(&got));
    }

    #[test]
    fn any_bytes_are_read_without_panic(role in any_role(), bytes in proptest::collection::vec(any::<u8>(), 0..400), cuts in proptest::collection::vec(1usize..50, 0..5)) {
        let whole = read(role, &bytes, &[], 1000);
        prop_assert_eq!(read(role, &bytes, &cuts, 1000), whole);
    }

    #[test]
    fn masking_twice_is_nothing_and_agrees_with_the_rfc(payload in proptest::collection::vec(any::<u8>(), 0..300), key in any::<[u8; 4]>()) {
        let mut masked = payload.clone();
        mask(&mut masked, key);
        let simple: Vec<u8> = payload.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]).collect();
        prop_assert_eq!(&masked, &simple);
        mask(&mut masked, key);
        prop_assert_eq!(masked, payload);
    }
}
