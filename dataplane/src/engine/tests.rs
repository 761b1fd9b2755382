//! What every driver must do, run on each of them over real sockets.

mod fairness;
mod tun_device;
mod udp;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use super::driver::{Driver, Event, SendBuffer, Token};
use super::epoll::Epoll;
use super::socket;
use super::uring::Uring;
use crate::packet::pool::Pool;
use crate::tun::{Tun, memory};
use fairness::{
    newcomers_are_read_last_and_a_few_at_a_time,
    streams_that_never_stop_get_equal_turns_and_a_quiet_one_is_heard,
};

/// Runs a test body on epoll and on io_uring; where the latter is forbidden that half is skipped with a line that says so.
macro_rules! on_each_driver {
    ($($(#[$attribute:meta])* $name:ident,)+) => {
        mod epoll {
            $($(#[$attribute])* #[test] fn $name() { super::$name(super::Epoll::open().unwrap()); })+
        }
        mod uring {
            $($(#[$attribute])* #[test] fn $name() {
                match super::Uring::open() {
                    Ok(driver) => super::$name(driver),
                    Err(error) => println!("skipped on io_uring: {error}"),
                }
            })+
        }
    };
}

on_each_driver! {
    echoes_many_connections_at_once,
    carries_a_large_transfer_through_a_slow_reader,
    a_paused_stream_fills_up_and_goes_on_when_resumed,
    a_closed_token_is_dead_whatever_was_under_way,
    a_send_in_flight_does_not_outlive_its_stream,
    a_second_send_ends_the_stream,
    shutdown_delivers_everything_before_the_end,
    connects_and_reports_refusal,
    a_waker_wakes_from_another_thread_and_many_calls_are_one_event,
    wait_keeps_its_time,
    datagrams_go_both_ways_with_their_addresses,
    packets_keep_their_order_and_boundaries,
    more_streams_than_receive_buffers_all_get_their_turn,
    leaves_no_descriptor_open,
    streams_that_never_stop_get_equal_turns_and_a_quiet_one_is_heard,
    newcomers_are_read_last_and_a_few_at_a_time,
}

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(20);

fn listener() -> (OwnedFd, SocketAddr) {
    let socket = socket::tcp_listener(LOCAL, false).unwrap();
    let address = socket::local_address(&socket).unwrap();
    (socket, address)
}

/// A stream of the driver's and its blocking other end.
fn pair<D: Driver>(driver: &mut D) -> (Token, TcpStream) {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (driver.stream(ours.into()).unwrap(), theirs)
}

fn filled(pool: &Pool, bytes: &[u8]) -> SendBuffer {
    let mut buffer = pool.take(bytes.len());
    assert!(buffer.append(bytes));
    buffer
}

/// Turns the driver until `done` says so.
fn turn<D: Driver>(driver: &mut D, mut done: impl FnMut(&mut D, Event) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        driver.wait(Some(Duration::from_millis(100))).unwrap();
        while let Some(event) = driver.next_event() {
            if done(driver, event) {
                return;
            }
        }
        assert!(Instant::now() < deadline, "nothing happens any more");
    }
}

/// What comes within a little time.
fn drain<D: Driver>(driver: &mut D) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..5 {
        driver.wait(Some(Duration::from_millis(20))).unwrap();
        events.extend(std::iter::from_fn(|| driver.next_event()));
    }
    events
}

/// Echoes until every connection that came has ended and `connections` have.
fn echo<D: Driver>(driver: &mut D, listener: OwnedFd, connections: usize) {
    let pool = Pool::new();
    driver.listen(listener).unwrap();
    let mut queues: BTreeMap<Token, Vec<u8>> = BTreeMap::new();
    let mut ended = 0;
    turn(driver, |driver, event| {
        let token = match event {
            Event::Accepted { socket, peer, .. } => {
                assert!(peer.ip().is_loopback());
                queues.insert(driver.stream(socket).unwrap(), Vec::new());
                return false;
            }
            Event::Received { token, buffer } => {
                queues.get_mut(&token).unwrap().extend_from_slice(driver.bytes(&buffer));
                driver.recycle(buffer);
                token
            }
            Event::Sent { token, buffer } => {
                assert!(buffer.is_empty());
                token
            }
            Event::Closed { token, error } => {
                assert!(error.is_none(), "{error:?}");
                assert!(queues.remove(&token).unwrap().is_empty());
                ended += 1;
                return ended == connections;
            }
            other => panic!("unexpected {other:?}"),
        };
        let queue = queues.get_mut(&token).unwrap();
        if driver.can_send(token) && !queue.is_empty() {
            driver.send(token, filled(&pool, queue));
            queue.clear();
        }
        false
    });
}

fn echoes_many_connections_at_once<D: Driver>(mut driver: D) {
    let (socket, address) = listener();
    let clients: Vec<_> = (0..24u8)
        .map(|number| {
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                for round in 0..20usize {
                    let out: Vec<u8> = (0..=round * 700).map(|i| (i as u8) ^ number).collect();
                    stream.write_all(&out).unwrap();
                    let mut back = vec![0; out.len()];
                    stream.read_exact(&mut back).unwrap();
                    assert_eq!(back, out);
                }
            })
        })
        .collect();
    echo(&mut driver, socket, clients.len());
    for client in clients {
        client.join().unwrap();
    }
}

fn carries_a_large_transfer_through_a_slow_reader<D: Driver>(mut driver: D) {
    const TOTAL: usize = 6 << 20;
    let pool = Pool::new();
    let (token, mut theirs) = pair(&mut driver);
    let byte = |i: usize| (i % 251) as u8;
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        let mut piece = vec![0; 100_000];
        while got.len() < TOTAL {
            let len = theirs.read(&mut piece).unwrap();
            assert_ne!(len, 0);
            got.extend_from_slice(&piece[..len]);
            thread::sleep(Duration::from_micros(500));
        }
        assert!(got.iter().enumerate().all(|(i, &b)| b == byte(i)));
    });
    // More than the socket's buffer in one go: partial sends must be completed.
    let whole: Vec<u8> = (0..TOTAL).map(byte).collect();
    let mut chunks = whole.chunks(3 << 20);
    driver.send(token, filled(&pool, chunks.next().unwrap()));
    turn(&mut driver, |driver, event| match (event, chunks.next()) {
        (Event::Sent { .. }, Some(chunk)) => {
            driver.send(token, filled(&pool, chunk));
            false
        }
        (Event::Sent { .. }, None) => true,
        (other, _) => panic!("unexpected {other:?}"),
    });
    reader.join().unwrap();
}

fn a_paused_stream_fills_up_and_goes_on_when_resumed<D: Driver>(mut driver: D) {
    let (token, theirs) = pair(&mut driver);
    driver.pause(token);
    drain(&mut driver);
    theirs.set_nonblocking(true).unwrap();
    let mut written = 0;
    let piece = [7; 16 << 10];
    // Until the buffers of both sockets are full, and for a moment more.
    for _ in 0..10 {
        while let Ok(len) = (&theirs).write(&piece) {
            written += len;
            assert!(written < 256 << 20, "back-pressure must reach the sender");
        }
        assert!(drain(&mut driver).is_empty(), "it is paused");
    }
    driver.resume(token);
    let mut read = 0;
    turn(&mut driver, |driver, event| {
        if let Event::Received { buffer, .. } = event {
            assert!(driver.bytes(&buffer).iter().all(|&byte| byte == 7));
            read += buffer.len();
            driver.recycle(buffer);
        }
        read == written
    });
    // And once more while nothing waits.
    driver.pause(token);
    driver.resume(token);
    (&theirs).write_all(b"x").unwrap();
    turn(&mut driver, |driver, event| match event {
        Event::Received { buffer, .. } => {
            driver.recycle(buffer);
            true
        }
        other => panic!("unexpected {other:?}"),
    });
}

fn a_closed_token_is_dead_whatever_was_under_way<D: Driver>(mut driver: D) {
    let pool = Pool::new();
    let mut stale = Vec::new();
    for round in 0..50 {
        let (token, mut theirs) = pair(&mut driver);
        theirs.write_all(b"hello").unwrap();
        if round % 3 != 0 {
            driver.send(token, filled(&pool, b"world"));
        }
        if round % 2 == 0 {
            driver.wait(Some(Duration::ZERO)).unwrap();
        }
        driver.close(token);
        stale.push(token);
    }
    let (fresh, mut theirs) = pair(&mut driver);
    for &token in &stale {
        assert!(!driver.can_send(token));
        driver.send(token, filled(&pool, b"lost"));
        driver.pause(token);
        driver.resume(token);
        driver.shutdown(token);
        driver.close(token);
    }
    assert!(drain(&mut driver).is_empty(), "dead tokens have no events");
    theirs.write_all(b"alive").unwrap();
    turn(&mut driver, |driver, event| match event {
        Event::Received { token, buffer } => {
            assert_eq!((token, &*driver.bytes(&buffer)), (fresh, &b"alive"[..]));
            driver.recycle(buffer);
            true
        }
        other => panic!("unexpected {other:?}"),
    });
}

/// Sends until the other end's refusal to read keeps a buffer in flight.
fn fill<D: Driver>(driver: &mut D, token: Token, pool: &Pool) {
    let mut stuck = 0;
    for _ in 0..10_000 {
        if driver.can_send(token) {
            driver.send(token, filled(pool, &vec![1; 60_000]));
            stuck = 0;
        }
        driver.wait(Some(Duration::from_millis(20))).unwrap();
        while driver.next_event().is_some() {}
        stuck += 1;
        if stuck == 4 {
            return;
        }
    }
    panic!("the stream takes everything");
}

fn a_send_in_flight_does_not_outlive_its_stream<D: Driver>(mut driver: D) {
    let pool = Pool::new();
    let (token, theirs) = pair(&mut driver);
    fill(&mut driver, token, &pool);
    assert_eq!(pool.idle().0, 0, "the driver has the buffer");
    driver.close(token);
    drain(&mut driver);
    assert_eq!(pool.idle().0, 1, "the buffer came back");
    drop(theirs);

    // And when the other end goes: Closed, no Sent.
    let (token, theirs) = pair(&mut driver);
    fill(&mut driver, token, &pool);
    drop(theirs);
    turn(&mut driver, |_, event| match event {
        Event::Closed { token: closed, .. } => closed == token,
        other => panic!("unexpected {other:?}"),
    });
    drain(&mut driver);
    assert_eq!(pool.idle().0, 1);
}

fn a_second_send_ends_the_stream<D: Driver>(mut driver: D) {
    let pool = Pool::new();
    let (token, _theirs) = pair(&mut driver);
    // The first fills the socket.
    driver.send(token, filled(&pool, &vec![0; 16 << 20]));
    assert!(!driver.can_send(token));
    driver.send(token, filled(&pool, b"too early"));
    turn(&mut driver, |_, event| match event {
        Event::Closed { error: Some(error), .. } => error.kind() == std::io::ErrorKind::InvalidInput,
        other => panic!("unexpected {other:?}"),
    });
}

fn shutdown_delivers_everything_before_the_end<D: Driver>(mut driver: D) {
    let pool = Pool::new();
    let (token, mut theirs) = pair(&mut driver);
    // Unread bytes at a close would reset the connection and lose what was sent.
    theirs.write_all(&[5; 1000]).unwrap();
    driver.send(token, filled(&pool, &vec![3; 1 << 20]));
    driver.shutdown(token);
    assert!(!driver.can_send(token));
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        got
    });
    turn(&mut driver, |driver, event| match event {
        Event::Received { buffer, .. } => {
            driver.recycle(buffer);
            false
        }
        Event::Closed { error, .. } => {
            assert!(error.is_none(), "{error:?}");
            true
        }
        _ => false,
    });
    assert_eq!(reader.join().unwrap(), vec![3; 1 << 20]);
}

fn connects_and_reports_refusal<D: Driver>(mut driver: D) {
    let pool = Pool::new();
    let listener = TcpListener::bind(LOCAL).unwrap();
    let address = listener.local_addr().unwrap();
    let token = driver.connect(address).unwrap();
    turn(&mut driver, |_, event| matches!(event, Event::Connected { token: t } if t == token));
    driver.send(token, filled(&pool, b"hi"));
    turn(&mut driver, |_, event| matches!(event, Event::Sent { .. }));
    let (mut theirs, _) = listener.accept().unwrap();
    let mut two = [0; 2];
    theirs.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"hi");
    drop((theirs, listener));
    turn(&mut driver, |_, event| matches!(event, Event::Closed { token: t, .. } if t == token));

    let token = driver.connect(address).unwrap();
    turn(&mut driver, |_, event| match event {
        Event::Closed { token: closed, error: Some(error) } => {
            assert_eq!((closed, error.kind()), (token, std::io::ErrorKind::ConnectionRefused));
            true
        }
        other => panic!("unexpected {other:?}"),
    });
}

fn a_waker_wakes_from_another_thread_and_many_calls_are_one_event<D: Driver>(mut driver: D) {
    let waker = driver.waker();
    for _ in 0..3 {
        let waker = waker.clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            (0..100).for_each(|_| waker.wake());
        });
        let event = loop {
            driver.wait(None).unwrap();
            if let Some(event) = driver.next_event() {
                break event;
            }
        };
        assert!(matches!(event, Event::Woken));
        thread.join().unwrap();
        // At most one more, for calls after the first was seen.
        assert!(drain(&mut driver).len() <= 1);
    }
    waker.wake();
    turn(&mut driver, |_, event| matches!(event, Event::Woken));
}

fn wait_keeps_its_time<D: Driver>(mut driver: D) {
    let (_token, _theirs) = pair(&mut driver);
    drain(&mut driver);
    let started = Instant::now();
    driver.wait(Some(Duration::from_millis(30))).unwrap();
    assert!(driver.next_event().is_none());
    assert!(started.elapsed() >= Duration::from_millis(29));
    let started = Instant::now();
    driver.wait(Some(Duration::ZERO)).unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
}

fn datagrams_go_both_ways_with_their_addresses<D: Driver>(mut driver: D) {
    for local in [LOCAL, "[::1]:0".parse().unwrap()] {
        let Ok(socket) = socket::udp_socket(local, false) else {
            println!("skipped for {local}: not an address here");
            continue;
        };
        let address = socket::local_address(&socket).unwrap();
        let token = driver.datagram(socket).unwrap();
        let client = UdpSocket::bind(local).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        for len in [0, 1, 1400] {
            let out = vec![len as u8; len];
            client.send_to(&out, address).unwrap();
            turn(&mut driver, |driver, event| match event {
                Event::Datagram { token: from_token, from, buffer } => {
                    assert_eq!((from_token, from), (token, client.local_addr().unwrap()));
                    let bytes = driver.bytes(&buffer).to_vec();
                    assert_eq!(bytes, out);
                    driver.recycle(buffer);
                    assert!(driver.send_to(token, from, &bytes).unwrap());
                    true
                }
                other => panic!("unexpected {other:?}"),
            });
            let mut back = [0; 2000];
            let (back_len, from) = client.recv_from(&mut back).unwrap();
            assert_eq!((&back[..back_len], from), (&out[..], address));
        }
        driver.close(token);
    }
}

fn packets_keep_their_order_and_boundaries<D: Driver>(mut driver: D) {
    let (ours, mut theirs) = memory::pair().unwrap();
    let token = driver.packets(ours.into(), 1500).unwrap();
    let packet = |number: usize| vec![number as u8; 20 + number % 1400];
    let (mut written, mut read) = (0, 0);
    while read < 3000 {
        while written < 3000 && theirs.write_batch(&[&packet(written)]).unwrap() == 1 {
            written += 1;
        }
        driver.wait(Some(Duration::from_millis(100))).unwrap();
        while let Some(event) = driver.next_event() {
            let Event::Packet { token: from, buffer } = event else { panic!("unexpected {event:?}") };
            assert_eq!((from, &*driver.bytes(&buffer)), (token, &packet(read)[..]));
            driver.recycle(buffer);
            read += 1;
        }
    }
    assert!(driver.write_packet(token, b"back").unwrap());
    let mut got = Vec::new();
    theirs.read_batch(9, &mut |packet| got.push(packet.to_vec())).unwrap();
    assert_eq!(got, [b"back"]);
    driver.close(token);
    assert!(!driver.write_packet(token, b"dead").unwrap());
}

fn more_streams_than_receive_buffers_all_get_their_turn<D: Driver>(mut driver: D) {
    let mut pairs: Vec<_> = (0..100).map(|_| pair(&mut driver)).collect();
    for (_, theirs) in &mut pairs {
        theirs.write_all(&[1; 3000]).unwrap();
    }
    let mut missing: BTreeMap<_, _> = pairs.iter().map(|(token, _)| (*token, 3000)).collect();
    let mut held = Vec::new();
    turn(&mut driver, |driver, event| {
        let Event::Received { token, buffer } = event else { panic!("unexpected {event:?}") };
        *missing.get_mut(&token).unwrap() -= buffer.len();
        missing.retain(|_, rest| *rest > 0);
        // Buffers come back late and several at once.
        held.push(buffer);
        if held.len() == 2 || missing.is_empty() {
            held.drain(..).for_each(|buffer| driver.recycle(buffer));
        }
        missing.is_empty()
    });
}

fn leaves_no_descriptor_open<D: Driver>(mut driver: D) {
    let pool = Pool::new();
    let (socket, address) = listener();
    driver.listen(socket).unwrap();
    let (token, mut theirs) = pair(&mut driver);
    driver.send(token, filled(&pool, &vec![0; 16 << 20]));
    let mut waiting = TcpStream::connect(address).unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    driver.wait(Some(Duration::from_millis(50))).unwrap();
    drop(driver);
    // Both see the end: nothing in the kernel holds the sockets.
    let mut rest = Vec::new();
    let _ = theirs.read_to_end(&mut rest);
    assert!(rest.len() < 16 << 20);
    assert!(matches!(waiting.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).is_err());
}
