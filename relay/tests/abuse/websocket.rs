//! WebSocket frames that are broken, cut, scattered or mixed up.

use std::time::Duration;

use meshdp::proto::wire::frame::FrameType;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::raw::*;
use crate::siege::*;
use crate::support::*;

const MALFORMED: (u16, u16) = (2002, 1002);
const TOO_LARGE: (u16, u16) = (2003, 1009);

#[test]
fn broken_frames_end_their_own_connection_with_the_code_they_deserve() {
    let siege = Siege::plain("");
    let own = data(50, 50, b"before");
    let plain = Ws::new(BINARY);
    let mut cases: Vec<(&str, Vec<u8>, (u16, u16))> = vec![
        ("unmasked", Ws { key: None, ..plain }.bytes(&own), MALFORMED),
        ("masked with another key than it says", wrongly_masked(&own), (2001, 1002)),
        ("text", Ws::new(TEXT).bytes(b"hello"), MALFORMED),
        ("a continuation of nothing", Ws::new(0).bytes(&own), MALFORMED),
        (
            "a message inside a message",
            [Ws { fin: false, ..plain }.bytes(&own), plain.bytes(&own)].concat(),
            MALFORMED,
        ),
        ("a ping in fragments", Ws { fin: false, ..Ws::new(PING) }.bytes(b""), MALFORMED),
        ("a ping of 126 bytes", Ws::new(PING).bytes(&[0; 126]), MALFORMED),
        ("a pong of 70,000 bytes", Ws::new(PONG).bytes(&vec![0; 70_000]), MALFORMED),
        ("a close of one byte", Ws::new(CLOSE).bytes(&[3]), MALFORMED),
        ("a close with a code nobody may send", Ws::new(CLOSE).bytes(&[3, 0xed]), MALFORMED),
        ("a close whose reason is not text", Ws::new(CLOSE).bytes(&[3, 0xe8, 0xff, 0xfe]), MALFORMED),
        ("a length in more bytes than it needs", length(Length::Two(5), b"12345"), MALFORMED),
        ("a length in far more bytes", length(Length::Eight(300), &[0; 300]), MALFORMED),
        ("a length beyond all bounds", length(Length::Eight(u64::MAX), b""), MALFORMED),
        ("a length that wraps with its header", length(Length::Eight(u64::MAX >> 1), b""), TOO_LARGE),
        ("a byte more than allowed", length(Length::Eight((256 << 10) + 1), b""), TOO_LARGE),
        (
            "more than allowed in fragments",
            [
                Ws { fin: false, ..plain }.bytes(&vec![0; 200 << 10]),
                Ws { fin: false, ..Ws::new(0) }.bytes(&vec![0; 50 << 10]),
                Ws::new(0).bytes(&vec![0; 7 << 10]),
            ]
            .concat(),
            TOO_LARGE,
        ),
        ("an empty message", plain.bytes(b""), MALFORMED),
        ("a message that ends inside a frame", plain.bytes(&own[..own.len() - 1]), MALFORMED),
        ("half a frame header", plain.bytes(&own[..3]), MALFORMED),
    ];
    for reserved in 1..8 {
        cases.push(("reserved bits", Ws { reserved, ..plain }.bytes(&own), MALFORMED));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        cases.push(("an unknown opcode", Ws::new(opcode).bytes(&own), MALFORMED));
    }
    for (what, bytes, (error, close)) in cases {
        let mut raw = Raw::node(siege.relay.data, 50, 1);
        // In one write: what came before counts, what comes after does not.
        raw.send(&[message(&own), bytes, message(&own)].concat());
        let ending = raw.ending();
        assert_eq!(ending.frames, std::slice::from_ref(&own), "{what}: {ending:?}");
        assert_eq!((ending.errors, ending.close), (vec![error], Some(close)), "{what}");
    }
    siege.lift();
}

fn length(length: Length, payload: &[u8]) -> Vec<u8> {
    Ws { length: Some(length), ..Ws::new(BINARY) }.bytes(payload)
}

fn wrongly_masked(payload: &[u8]) -> Vec<u8> {
    let mut bytes = message(payload);
    bytes[2..6].copy_from_slice(&[1, 2, 3, 4]);
    bytes
}

#[test]
fn fragments_with_pings_between_them_make_the_messages_they_were() {
    let siege = Siege::plain("");
    let mut raw = Raw::node(siege.relay.data, 50, 1);
    let frames: Vec<_> = (0..3u8).map(|part| data(50, 50, &[part; 100])).collect();
    let whole = frames.concat();
    for size in [1, 2, 7, 100, 113, 1000] {
        let mut bytes = Vec::new();
        for (number, part) in whole.chunks(size).enumerate() {
            let opcode = if number == 0 { BINARY } else { 0 };
            let key = Some([number as u8, 0xff, size as u8, 0]);
            bytes.extend(Ws { fin: false, key, ..Ws::new(opcode) }.bytes(part));
            if number % 5 == 0 {
                bytes.extend(Ws::new(PING).bytes(&[number as u8; 3]));
                bytes.extend(Ws { fin: false, ..Ws::new(0) }.bytes(b""));
            }
        }
        bytes.extend(Ws::new(0).bytes(b""));
        raw.send(&bytes);
        let mut got = Vec::new();
        while got.len() < whole.len() {
            match raw.next_ws().expect("the connection goes on") {
                (BINARY, payload) => got.extend(payload),
                (PONG, _) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, whole);
    }
    drop(raw);
    siege.lift();
}

#[test]
fn what_follows_a_close_frame_is_not_acted_upon() {
    let siege = Siege::plain("");
    let mut sink = Raw::node(siege.relay.data, 60, 1);
    let mut raw = Raw::node(siege.relay.data, 50, 1);
    let before = message(&data(50, 60, b"before"));
    let after = message(&data(50, 60, b"after"));
    raw.send(&[before, Ws::new(CLOSE).bytes(&[3, 0xe8]), after.clone()].concat());
    raw.send(&after);
    assert_eq!(raw.ending().close, Some(1000));
    sink.send(&message(&data(60, 60, b"last")));
    assert!(sink.next_frame().unwrap().1.ends_with(b"before"));
    assert!(sink.next_frame().unwrap().1.ends_with(b"last"));
    drop(sink);
    siege.lift();
}

#[test]
fn a_stream_split_at_every_byte_means_what_it_meant_whole() {
    let siege = Siege::plain("");
    let mut raw = Raw::connect(siege.relay.data);
    // Byte by byte, upgrade and sign-in too.
    for byte in request("/ws/data") {
        raw.send(&[byte]);
    }
    assert!(raw.head().unwrap().starts_with("HTTP/1.1 101 "));
    for byte in sign_in(50, 1) {
        raw.send(&[byte]);
    }
    assert_eq!(raw.next_frame().unwrap().0, FrameType::AuthResponse);
    let frames = [data(50, 50, b"one"), data(50, 50, &[2; 200]), data(50, 50, b"")];
    let bytes = [message(&frames[..2].concat()), Ws::new(PING).bytes(b"?"), message(&frames[2])].concat();
    for at in 0..=bytes.len() {
        raw.send(&bytes[..at]);
        std::thread::sleep(Duration::from_micros(300));
        raw.send(&bytes[at..]);
        let mut got = Vec::new();
        while got.len() < frames.concat().len() {
            match raw.next_ws().unwrap() {
                (BINARY, payload) => got.extend(payload),
                (opcode, _) => assert_eq!(opcode, PONG),
            }
        }
        assert_eq!(got, frames.concat(), "split at {at}");
    }
    drop(raw);
    siege.lift();
}

#[test]
fn a_stream_cut_at_every_byte_delivers_whole_messages_only() {
    let siege = Siege::plain("");
    let mut sink = Raw::node(siege.relay.data, 60, 1);
    let frames = |cut: u32| {
        let tag = cut.to_be_bytes();
        [data(50, 60, &[&[0], &tag[..]].concat()), data(50, 60, &[&[1], &tag[..], &[0; 40]].concat())]
    };
    let stream = |cut: u32| {
        let [first, second] = frames(cut);
        [message(&first), message(&second)]
    };
    let total: usize = stream(0).iter().map(Vec::len).sum();
    for cut in 0..=total {
        let messages = stream(cut as u32);
        let mut raw = Raw::node(siege.relay.data, 50, 1);
        raw.send(&messages.concat()[..cut]);
        // An orderly end for one, a reset for the next: then what was sent may be lost, but nothing else may come.
        let reset = cut % 2 == 1;
        if reset {
            socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap();
        } else {
            raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
            raw.ending();
        }
        drop(raw);
        sink.send(&message(&data(60, 60, &cut.to_be_bytes())));
        let mut got = Vec::new();
        loop {
            let (_, payload) = sink.next_frame().unwrap();
            if payload.ends_with(&cut.to_be_bytes()) && payload[..4] == 60u32.to_be_bytes() {
                break;
            }
            got.push(frame(FrameType::Data, &payload));
        }
        let whole = usize::from(cut >= messages[0].len()) + usize::from(cut == total);
        // After a reset they may come as late as now.
        got.retain(|frame| cut % 2 == 1 || cut == 0 || !frames(cut as u32 - 1).contains(frame));
        if reset {
            assert!(frames(cut as u32)[..whole].starts_with(&got), "cut at {cut}");
        } else {
            assert_eq!(got, frames(cut as u32)[..whole], "cut at {cut}");
        }
    }
    drop(sink);
    siege.lift();
}

#[test]
fn a_thousand_garbled_sessions_harm_nobody() {
    let seed = std::env::var("SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let siege = Siege::plain("");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sink = Raw::node(siege.relay.data, 60, 1);
    for session in 0..1000u32 {
        let mut raw = Raw::connect(siege.relay.data);
        let mut bytes = [
            request("/ws/data"),
            sign_in(50, 1),
            message(&data(50, 50, &[session as u8; 60]).repeat(2)),
            Ws::new(PING).bytes(b"ping"),
            message(&frame(FrameType::Ping, b"12345678")),
        ]
        .concat();
        for _ in 0..=rng.next_u32() % 3 {
            garble(&mut bytes, &mut rng);
        }
        for part in bytes.chunks(1 + rng.next_u32() as usize % 700) {
            raw.send(part);
        }
        if session % 2 == 0 {
            let _ = raw.stream.shutdown(std::net::Shutdown::Write);
            raw.ending();
        }
        if session % 250 == 0 {
            siege.holds();
        }
    }
    sink.send(&message(&data(60, 60, b"last")));
    assert!(sink.next_frame().unwrap().1.ends_with(b"last"), "nobody has sent anything to 60");
    drop(sink);
    siege.lift();
}

/// Flips, cuts, doubles or inserts something somewhere.
pub fn garble(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let mut below = |limit: usize| rng.next_u32() as usize % limit.max(1);
    let at = below(bytes.len());
    match below(5) {
        0 => bytes[at] ^= 1 << below(8),
        1 => bytes.truncate(at),
        2 => bytes.extend_from_within(at..),
        3 => drop(bytes.drain(at..(at + 1 + below(20)).min(bytes.len()))),
        _ => {
            drop(bytes.splice(at..at, (0..=below(20)).map(|number| (number * 37) as u8).collect::<Vec<_>>()));
        }
    }
    if bytes.is_empty() {
        bytes.push(0);
    }
}
