//! WebSocket frames at either end. Input: role (1) ‖ limit (1) ‖ step (1) ‖ what arrives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshdp::proto::wire::websocket::{
    Item, MAX_CONTROL, MAX_HEADER, Opcode, Reader, Role, WebsocketError, header_len, mask, write_header,
};

/// What came out, owned.
#[derive(Debug, PartialEq)]
enum Owned {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

fuzz_target!(|input: &[u8]| {
    let [role, limit, step, bytes @ ..] = input else { return };
    let role = if role % 2 == 0 { Role::Server } else { Role::Client };
    let limit = usize::from(*limit) * 64;
    let (whole, result) = read(role, limit, bytes, bytes.len().max(1));
    let (cut, cut_result) = read(role, limit, bytes, usize::from(*step).max(1));
    assert_eq!(whole, cut, "where the stream is cut makes no difference");
    assert_eq!(result.is_err(), cut_result.is_err());
    write_again(role, &whole, limit);
});

fn read(role: Role, limit: usize, bytes: &[u8], step: usize) -> (Vec<Owned>, Result<(), WebsocketError>) {
    let mut reader = Reader::new(role, limit);
    let mut items = Vec::new();
    let mut bytes = bytes.to_vec();
    for part in bytes.chunks_mut(step) {
        let result = reader.receive(part, &mut |item| items.push(own(item)));
        assert!(
            reader.buffered() <= limit.max(MAX_CONTROL) + MAX_CONTROL + MAX_HEADER,
            "{}",
            reader.buffered()
        );
        if let Err(error) = result {
            let _ = error.close_code();
            return (items, Err(error));
        }
    }
    (items, Ok(()))
}

fn own(item: Item<'_>) -> Owned {
    match item {
        Item::Message(bytes) => Owned::Message(bytes.to_vec()),
        Item::Ping(bytes) => Owned::Ping(bytes.to_vec()),
        Item::Pong(bytes) => Owned::Pong(bytes.to_vec()),
        Item::Close(code, reason) => Owned::Close(code, reason.to_owned()),
    }
}

/// What was read can be written and is read the same.
fn write_again(role: Role, items: &[Owned], limit: usize) {
    let sender = if role == Role::Server { Role::Client } else { Role::Server };
    let key = (sender == Role::Client).then_some([0x12, 0x34, 0x56, 0x78]);
    let mut bytes = Vec::new();
    for item in items {
        let (opcode, payload) = match item {
            Owned::Message(payload) => (Opcode::Binary, payload.clone()),
            Owned::Ping(payload) => (Opcode::Ping, payload.clone()),
            Owned::Pong(payload) => (Opcode::Pong, payload.clone()),
            Owned::Close(None, _) => (Opcode::Close, Vec::new()),
            Owned::Close(Some(code), reason) => {
                (Opcode::Close, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
            }
        };
        let start = bytes.len();
        let header = header_len(payload.len(), sender);
        bytes.resize(start + header, 0);
        assert_eq!(write_header(opcode, payload.len(), key, &mut bytes[start..]), header);
        bytes.extend_from_slice(&payload);
        if let Some(key) = key {
            mask(&mut bytes[start + header..], key);
        }
    }
    let (again, result) = read(role, limit, &bytes, bytes.len().max(1));
    assert_eq!((again.as_slice(), result), (items, Ok(())));
}
