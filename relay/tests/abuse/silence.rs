//! Those who say nothing, little, or do not listen.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshdp::proto::wire::frame::{Flags, FrameType, write_frame};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::raw::*;
use crate::siege::*;
use crate::support::*;

/// A client that sends a byte now and then.
struct Dribbler {
    stream: TcpStream,
    bytes: VecDeque<u8>,
    ended: Option<Duration>,
}

impl Dribbler {
    fn new(stream: TcpStream, bytes: Vec<u8>) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream, bytes: bytes.into(), ended: None }
    }

    fn go_on(&mut self, elapsed: Duration) {
        if self.ended.is_some() {
            return;
        }
        if let Some(byte) = self.bytes.pop_front() {
            let _ = (&self.stream).write(&[byte]);
        }
        let mut buffer = [0; 4096];
        loop {
            match (&self.stream).read(&mut buffer) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => break self.ended = Some(elapsed),
            }
        }
    }
}

#[test]
fn dribblers_at_the_tcp_tls_http_and_websocket_stage_are_cut_at_the_handshake_time() {
    const HANDSHAKE: Duration = Duration::from_millis(1500);
    const EACH: usize = 30;
    let siege = Siege::tls("[limits]\nhandshake_timeout_s = 1.5\n");
    let config = Arc::new(siege.client_tls());
    let started = Instant::now();
    let mut dribblers = Vec::new();
    for number in 0..EACH {
        let connect = || connect_from(address(number), siege.relay.data).unwrap();
        let client = || {
            let name = ServerName::try_from("localhost").unwrap();
            ClientConnection::new(Arc::clone(&config), name).unwrap()
        };
        let sealed = |client: &mut ClientConnection| {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            bytes
        };
        dribblers.push(Dribbler::new(connect(), Vec::new()));
        dribblers.push(Dribbler::new(connect(), sealed(&mut client())));
        for upgraded in [false, true] {
            let mut raw = Raw::over(rustls::StreamOwned::new(client(), connect()));
            let rest = if upgraded {
                raw.upgrade("/ws/data");
                // Pings keep no unauthenticated connection alive.
                let ping = frame(FrameType::Ping, b"");
                (0..200).flat_map(|_| message(&ping)).collect()
            } else {
                raw.send(&request("/ws/data")[..1]);
                request("/ws/data")[1..].repeat(3)
            };
            let rustls::StreamOwned { mut conn, sock } = raw.stream;
            // One record per byte or two: each of them complete, and none of use.
            let mut records = Vec::new();
            for part in rest.chunks(2) {
                conn.writer().write_all(part).unwrap();
                records.extend(sealed(&mut conn));
            }
            dribblers.push(Dribbler::new(sock, records));
        }
    }
    let accepted = started.elapsed();
    siege.holds();
    while dribblers.iter().any(|dribbler| dribbler.ended.is_none()) {
        assert!(started.elapsed() < PATIENCE, "some are never cut");
        for dribbler in &mut dribblers {
            dribbler.go_on(started.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for dribbler in &dribblers {
        let ended = dribbler.ended.unwrap();
        assert!(ended + Duration::from_millis(10) >= HANDSHAKE, "cut after {ended:?} already");
        assert!(ended < accepted + HANDSHAKE + Duration::from_secs(4), "cut after {ended:?} only");
    }
    let timeouts = siege.counter("edgelink_relay_handshake_timeouts_total");
    assert_eq!(timeouts, 4 * EACH as u64);
    drop(dribblers);
    siege.lift();
}

#[test]
fn ten_thousand_silent_connections_cost_little_and_end() {
    crowds(2, 16 << 20);
}

#[test]
#[ignore = "takes long: make soak"]
fn ten_thousand_silent_connections_again_and_again_cost_no_more_than_the_first() {
    crowds(12, 8 << 20);
}

/// Crowds of 10,000; the last leaves at most `slack` more memory behind than those of the first half.
fn crowds(count: usize, slack: u64) {
    // This process has no descriptors for two at once.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let descriptors = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: descriptors.maximum, ..descriptors }).unwrap();
    let siege = Siege::tls("[limits]\nmax_unauthenticated = 20000\nhandshake_timeout_s = 3\n");
    // Tables and the allocator keep room for the next crowd.
    let mut warm = Vitals { rss: siege.before.rss + (40 << 20), ..siege.before };
    for crowd in 0..count {
        let silent: Vec<_> = (0..10_000)
            .map(|number| {
                let stream = connect_from(address(number), siege.relay.data);
                stream.expect("10,000 connections need `ulimit -Hn` of 12,000")
            })
            .collect();
        siege.holds();
        let peak = siege.vitals();
        let each = peak.rss.saturating_sub(siege.before.rss) / 10_000;
        assert!(each < 8 << 10, "{each} bytes for each silent connection");
        for mut stream in silent {
            // An orderly end or a reset.
            let _ = stream.read(&mut [0; 64]);
        }
        warm.wait_for(&siege.relay, slack);
        if crowd < count / 2 {
            warm.rss = siege.vitals().rss;
        }
    }
    let cut = siege.counter("edgelink_relay_handshake_timeouts_total");
    assert_eq!(cut, 10_000 * count as u64);
    siege.lift_with(80 << 20);
}

#[test]
fn a_crowd_over_the_limit_locks_out_neither_those_inside_nor_newcomers() {
    let siege = Siege::plain("[limits]\nmax_unauthenticated = 400\nhandshake_timeout_s = 20\n");
    let crowd: Vec<_> =
        (0..1500).filter_map(|number| connect_from(address(number), siege.relay.data).ok()).collect();
    siege.holds();
    let inside = siege.vitals().unauthenticated;
    // Workers have a share each, with room for an uneven spread.
    assert!((200..=602).contains(&inside), "{inside} of {} are inside", crowd.len());
    for newcomer in 0..20 {
        let mut node = Raw::node(siege.relay.data, 50 + newcomer, 1);
        node.send(&message(&data(50 + newcomer, 50 + newcomer, b"in")));
        assert_eq!(node.next_frame().unwrap().0, FrameType::Data);
    }
    siege.holds();
    drop(crowd);
    siege.lift();
}

#[test]
fn one_address_gets_no_more_than_its_share_of_unauthenticated_connections() {
    let siege = Siege::plain("[limits]\nmax_unauthenticated_per_address = 40\nhandshake_timeout_s = 20\n");
    let source = Ipv4Addr::new(127, 9, 9, 9);
    let crowd: Vec<_> = (0..500).map(|_| connect_from(source, siege.relay.data).unwrap()).collect();
    siege.holds();
    let inside = siege.vitals().unauthenticated;
    assert!((20..=62).contains(&inside), "{inside} are inside");
    Raw::node(siege.relay.data, 50, 1);
    drop(crowd);
    siege.lift();
}

#[test]
fn receivers_that_never_read_lose_their_own_frames_only_and_memory_stays_bounded() {
    const DEAF: u32 = 8;
    const QUEUE: u64 = 256 << 10;
    let siege = Siege::plain("[limits]\nqueue_bytes = 262144\nqueue_age_ms = 60000\n");
    let deaf: Vec<_> = (0..DEAF)
        .map(|number| {
            let mut raw = Raw::over(connect(Ipv4Addr::LOCALHOST, siege.relay.data, Some(8 << 10)).unwrap());
            raw.upgrade("/ws/data");
            raw.sign_in(100 + number, 1);
            raw
        })
        .collect();
    let mut sender = Raw::node(siege.relay.data, 50, 1);
    let body = vec![7; 60_000];
    // More than the sockets' buffers take, however large the kernel makes them.
    for round in 0.. {
        for number in 0..DEAF {
            sender.send(&message(&data(50, 100 + number, &body)));
        }
        if round % 10 == 9 {
            siege.holds();
            if siege.relay.metric("edgelink_relay_drops_total{reason=\"queue_full\"}") > u64::from(DEAF) * 10
            {
                break;
            }
            assert!(round < 300, "no queue is ever full");
        }
    }
    // It was never held up, and hears itself at once; a receiver that is deaf for long is given up.
    sender.send(&message(&data(50, 50, b"on")));
    while sender.next_frame().unwrap().0 != FrameType::Data {}
    let peak = siege.vitals();
    // What waits, what is in flight, and what the other worker has not taken yet.
    let bound = u64::from(DEAF) * (QUEUE + (512 << 10)) + (16 << 20) + SLACK;
    assert!(peak.rss < siege.before.rss + bound, "{} MiB", (peak.rss - siege.before.rss) >> 20);
    drop((deaf, sender));
    siege.lift();
}

#[test]
fn those_who_ask_without_end_and_never_read_the_answers_cost_nothing() {
    let siege = Siege::plain("");
    let ping = frame(FrameType::Ping, &[1; 64]);
    let pings = message(&ping.repeat(200)).repeat(20);
    let websocket_pings = Ws::new(PING).bytes(&[2; 125]).repeat(4000);
    let unknown = message(&data(50, 77, b"").repeat(400)).repeat(10);
    let mut deaf: Vec<_> = (0..8).map(|number| Raw::node(siege.relay.data, 50 + number, 1)).collect();
    for raw in &mut deaf {
        raw.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    }
    for _ in 0..6 {
        for raw in &mut deaf {
            raw.send(&pings);
            raw.send(&websocket_pings);
            raw.send(&unknown);
        }
        siege.holds();
    }
    let peak = siege.vitals();
    assert!(peak.rss < siege.before.rss + SLACK, "{} MiB", (peak.rss - siege.before.rss) >> 20);
    drop(deaf);
    siege.lift();
}

#[test]
fn what_is_never_finished_is_bounded() {
    const STRANGERS: usize = 200;
    let siege = Siege::plain("[limits]\nhandshake_timeout_s = 3\n");
    let mut unfinished = Vec::new();
    for number in 0..STRANGERS {
        let mut raw = Raw::over(connect_from(address(number), siege.relay.data).unwrap());
        raw.upgrade("/ws/data");
        // Who has not signed in has nothing long to say, in one piece or in several.
        let refused = match number % 5 {
            // A control message in fragments, of which the last never comes.
            0 => {
                for _ in 0..4 {
                    let mut part = Vec::new();
                    write_frame(FrameType::AuthRequest, Flags::MORE, &[b' '; 4000], &mut part).unwrap();
                    raw.send(&message(&part));
                }
                false
            }
            // A WebSocket message of 32 KiB less a byte.
            1 => {
                let whole = message(&vec![0; 32 << 10]);
                raw.send(&whole[..whole.len() - 1]);
                false
            }
            2 => {
                raw.send(&Ws { fin: false, ..Ws::new(BINARY) }.bytes(&vec![0; 20 << 10]));
                raw.send(&Ws { fin: false, ..Ws::new(0) }.bytes(&vec![0; 12 << 10]));
                false
            }
            3 => {
                raw.send(&Ws { fin: false, ..Ws::new(BINARY) }.bytes(&vec![0; 20 << 10]));
                raw.send(&Ws { fin: false, ..Ws::new(0) }.bytes(&vec![0; (12 << 10) + 1]));
                true
            }
            // A header that promises more.
            _ => {
                raw.send(&Ws { length: Some(Length::Eight(256 << 10)), ..Ws::new(BINARY) }.bytes(b""));
                true
            }
        };
        unfinished.push((raw, refused));
    }
    let mut nodes: Vec<_> = (100..120).map(|node| Raw::node(siege.relay.data, node, 1)).collect();
    for node in &mut nodes {
        let whole = message(&vec![0; 256 << 10]);
        node.send(&whole[..whole.len() - 1]);
    }
    siege.holds();
    let peak = siege.vitals();
    let bound = STRANGERS as u64 * (64 << 10) + 20 * (512 << 10) + SLACK;
    assert!(peak.rss < siege.before.rss + bound, "{} MiB", (peak.rss - siege.before.rss) >> 20);
    for (raw, refused) in &mut unfinished {
        let ending = raw.ending();
        let code = if *refused { 2003 } else { 1001 };
        assert_eq!(ending.errors, [code], "{ending:?}");
    }
    drop((unfinished, nodes));
    siege.lift();
}
