//! Batches of datagrams over real sockets: on each driver, with and without an other end that can do the same.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket as Plain};

use super::super::driver::{Driver, Event, Token};
use super::super::epoll::Epoll;
use super::super::udp::{Batch, UdpSocket};
use super::super::uring::Uring;
use super::{LOCAL, PATIENCE, drain, turn};
use crate::tun::linux::{Device, TunError};
use crate::tun::tests::{in_namespace, ip};

macro_rules! on_each_driver {
    ($($name:ident,)+) => {
        mod epoll {
            $(#[test] fn $name() { super::$name(super::Epoll::open().unwrap()); })+
        }
        mod uring {
            $(#[test] fn $name() {
                match super::Uring::open() {
                    Ok(driver) => super::$name(driver),
                    Err(error) => println!("skipped on io_uring: {error}"),
                }
            })+
        }
    };
}

on_each_driver! {
    batches_arrive_in_order_with_their_addresses,
    an_end_without_offloads_sends_and_gets_single_datagrams,
    answers_go_out_from_the_address_that_was_asked,
    one_socket_takes_both_families,
    more_batches_than_receive_buffers_are_all_taken,
    a_dead_token_sends_and_receives_nothing,
}

fn socket<D: Driver>(driver: &mut D, address: &str) -> (Token, SocketAddr) {
    let socket = UdpSocket::bind(address.parse().unwrap(), false).unwrap();
    socket.set_buffers(1 << 20);
    let address = socket.local_address().unwrap();
    (driver.udp(socket).unwrap(), address)
}

/// Datagrams that say their number, the last one short.
fn numbered(count: usize, segment: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..count).flat_map(|n| vec![n as u8; segment]).collect();
    bytes.truncate(count * segment - segment / 3);
    bytes
}

fn batch(to: SocketAddr, segment: usize, bytes: &[u8]) -> Batch<'_> {
    Batch { to, from: None, segment, bytes }
}

fn batches_arrive_in_order_with_their_addresses<D: Driver>(mut driver: D) {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let (sender, from_address) = socket(&mut driver, local);
        let (receiver, to) = socket(&mut driver, local);
        for (count, segment) in [(1, 900), (2, 1), (40, 1441), (150, 1200), (3, 20_000), (200, 33)] {
            let bytes = numbered(count, segment);
            assert_eq!(driver.send_batch(sender, &batch(to, segment, &bytes)).unwrap(), count);
            let (mut got, mut events) = (Vec::new(), 0);
            turn(&mut driver, |driver, event| {
                let Event::Datagrams { token, from, local, segment: size, buffer } = event else {
                    panic!("unexpected {event:?}")
                };
                assert_eq!((token, from, local), (receiver, from_address, Some(to.ip())));
                assert!(size == segment || buffer.len() == size, "{size} in {}", buffer.len());
                got.extend(driver.bytes(&buffer).chunks(size).map(<[u8]>::to_vec));
                driver.recycle(buffer);
                events += 1;
                got.len() == count
            });
            let expected: Vec<Vec<u8>> = bytes.chunks(segment).map(<[u8]>::to_vec).collect();
            assert!(got == expected, "{count} of {segment}");
            assert!(
                events <= 2 + bytes.len().div_ceil(32_000) + count / 32,
                "{events} events for {count} of {segment}"
            );
        }
        driver.close(sender);
        driver.close(receiver);
    }
}

fn an_end_without_offloads_sends_and_gets_single_datagrams<D: Driver>(mut driver: D) {
    let (token, address) = socket(&mut driver, "127.0.0.1:0");
    let plain = Plain::bind(LOCAL).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes = numbered(60, 1000);
    let to = plain.local_addr().unwrap();
    assert_eq!(driver.send_batch(token, &batch(to, 1000, &bytes)).unwrap(), 60);
    for expected in bytes.chunks(1000) {
        let mut got = [0; 2000];
        let (length, from) = plain.recv_from(&mut got).unwrap();
        assert_eq!((&got[..length], from), (expected, address));
    }
    for length in [0, 1, 1400, 65_507] {
        plain.send_to(&vec![7; length], address).unwrap();
        turn(&mut driver, |driver, event| match event {
            Event::Datagrams { from, segment, buffer, .. } => {
                assert_eq!((from, segment, buffer.len()), (to, length, length));
                assert!(driver.bytes(&buffer).iter().all(|&byte| byte == 7));
                driver.recycle(buffer);
                true
            }
            other => panic!("unexpected {other:?}"),
        });
    }
}

fn answers_go_out_from_the_address_that_was_asked<D: Driver>(mut driver: D) {
    let (token, address) = socket(&mut driver, "0.0.0.0:0");
    let plain = Plain::bind(LOCAL).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    for host in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 3, 2, 1)] {
        let asked = SocketAddr::new(host.into(), address.port());
        plain.send_to(b"?", asked).unwrap();
        turn(&mut driver, |driver, event| match event {
            Event::Datagrams { from, local, buffer, .. } => {
                assert_eq!(local, Some(IpAddr::V4(host)));
                driver.recycle(buffer);
                let answer = Batch { to: from, from: local, segment: 1, bytes: b"!!" };
                assert_eq!(driver.send_batch(token, &answer).unwrap(), 2);
                true
            }
            other => panic!("unexpected {other:?}"),
        });
        for _ in 0..2 {
            assert_eq!(plain.recv_from(&mut [0; 9]).unwrap(), (1, asked));
        }
    }
}

fn one_socket_takes_both_families<D: Driver>(mut driver: D) {
    let (token, address) = socket(&mut driver, "[::]:0");
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let plain = Plain::bind(local).unwrap();
        plain.set_read_timeout(Some(PATIENCE)).unwrap();
        let us = SocketAddr::new(plain.local_addr().unwrap().ip(), address.port());
        plain.send_to(b"?", us).unwrap();
        turn(&mut driver, |driver, event| match event {
            Event::Datagrams { from, local, buffer, .. } => {
                assert_eq!((from, local), (plain.local_addr().unwrap(), Some(us.ip())), "no mapped address");
                driver.recycle(buffer);
                let answer = Batch { to: from, from: local, segment: 5, bytes: b"yes" };
                assert_eq!(driver.send_batch(token, &answer).unwrap(), 1);
                true
            }
            other => panic!("unexpected {other:?}"),
        });
        assert_eq!(plain.recv_from(&mut [0; 9]).unwrap(), (3, us));
    }
}

fn more_batches_than_receive_buffers_are_all_taken<D: Driver>(mut driver: D) {
    let (token, address) = socket(&mut driver, "127.0.0.1:0");
    let plain = Plain::bind(LOCAL).unwrap();
    for n in 0..100u8 {
        plain.send_to(&[n; 50], address).unwrap();
    }
    let (mut next, mut held) = (0, Vec::new());
    turn(&mut driver, |driver, event| {
        let Event::Datagrams { buffer, segment: 50, .. } = event else { panic!("unexpected {event:?}") };
        for datagram in driver.bytes(&buffer).chunks(50) {
            assert_eq!(datagram, [next; 50], "in order");
            next += 1;
        }
        held.push(buffer);
        if held.len() == 5 {
            held.drain(..).for_each(|buffer| driver.recycle(buffer));
        }
        next == 100
    });
    held.drain(..).for_each(|buffer| driver.recycle(buffer));
    driver.pause(token);
    drain(&mut driver);
    plain.send_to(b"waits", address).unwrap();
    assert!(drain(&mut driver).is_empty(), "it is paused");
    driver.resume(token);
    turn(&mut driver, |driver, event| match event {
        Event::Datagrams { buffer, .. } => {
            assert_eq!(&*driver.bytes(&buffer), b"waits");
            driver.recycle(buffer);
            true
        }
        other => panic!("unexpected {other:?}"),
    });
}

fn a_dead_token_sends_and_receives_nothing<D: Driver>(mut driver: D) {
    let (token, address) = socket(&mut driver, "127.0.0.1:0");
    let plain = Plain::bind(LOCAL).unwrap();
    plain.send_to(b"lost", address).unwrap();
    driver.close(token);
    assert_eq!(driver.send_batch(token, &batch(plain.local_addr().unwrap(), 3, b"abc")).unwrap(), 0);
    assert!(drain(&mut driver).is_empty());
    // A socket of the other kind is no batch socket.
    let (listener, _) = super::listener();
    let token = driver.listen(listener).unwrap();
    assert_eq!(driver.send_batch(token, &batch(address, 3, b"abc")).unwrap(), 0);
}

#[test]
fn what_is_longer_than_the_way_out_takes_is_refused() {
    for driver in ["epoll", "uring"] {
        in_namespace(&format!("engine::tests::udp::{driver}_on_a_way_of_1400_bytes"));
    }
}

#[test]
#[ignore = "run by what_is_longer_than_the_way_out_takes_is_refused in a namespace"]
fn epoll_on_a_way_of_1400_bytes() {
    on_a_way_of_1400_bytes(Epoll::open().unwrap());
}

#[test]
#[ignore = "run by what_is_longer_than_the_way_out_takes_is_refused in a namespace"]
fn uring_on_a_way_of_1400_bytes() {
    match Uring::open() {
        Ok(driver) => on_a_way_of_1400_bytes(driver),
        Err(error) => println!("skipped on io_uring: {error}"),
    }
}

fn on_a_way_of_1400_bytes<D: Driver>(mut driver: D) {
    let device = match Device::open("way") {
        Ok(device) => device,
        Err(error @ TunError::NoDevice) => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    ip("address add 10.9.9.1/24 dev way");
    ip("link set way mtu 1400 up");
    let (token, _) = socket(&mut driver, "10.9.9.1:0");
    let device = driver.packets(device.into(), 1500).unwrap();
    let to = "10.9.9.2:4000".parse().unwrap();
    for count in [1, 5] {
        let long = vec![0; count * 1373];
        let refused = driver.send_batch(token, &batch(to, 1373, &long));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE), "{count}");
        let bytes: Vec<u8> = (0..count).flat_map(|n| vec![n as u8; 1372]).collect();
        assert_eq!(driver.send_batch(token, &batch(to, 1372, &bytes)).unwrap(), count);
        let mut expected = bytes.chunks(1372);
        turn(&mut driver, |driver, event| {
            let Event::Packet { token: from, buffer } = event else { panic!("unexpected {event:?}") };
            assert_eq!(from, device);
            let packet = driver.bytes(&buffer).to_vec();
            driver.recycle(buffer);
            if packet[0] >> 4 == 4 && packet[9] == 17 {
                assert_eq!(packet[6] & 0x60, 0x40, "never in fragments");
                assert_eq!(packet[28..], *expected.next().unwrap());
            }
            expected.len() == 0
        });
    }
}
