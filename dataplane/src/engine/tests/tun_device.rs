//! Each driver on a device of the kernel's, in a network namespace of its own.

use std::net::UdpSocket;

use super::super::driver::{Driver, Event};
use super::super::epoll::Epoll;
use super::super::uring::Uring;
use super::{PATIENCE, turn};
use crate::tun::linux::{Device, TunError};
use crate::tun::tests::{in_namespace, ip};

#[test]
fn a_tun_device_carries_packets_both_ways() {
    for driver in ["epoll", "uring"] {
        in_namespace(&format!("engine::tests::tun_device::{driver}_on_a_tun_device_in_this_namespace"));
    }
}

#[test]
#[ignore = "run by a_tun_device_carries_packets_both_ways"]
fn epoll_on_a_tun_device_in_this_namespace() {
    on_a_tun_device(Epoll::open().unwrap());
}

#[test]
#[ignore = "run by a_tun_device_carries_packets_both_ways"]
fn uring_on_a_tun_device_in_this_namespace() {
    match Uring::open() {
        Ok(driver) => on_a_tun_device(driver),
        Err(error) => println!("skipped on io_uring: {error}"),
    }
}

fn on_a_tun_device<D: Driver>(mut driver: D) {
    let device = match Device::open("edge%d") {
        Ok(device) => device,
        Err(error @ TunError::NoDevice) => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(device.name(), "edge0");
    assert!(matches!(Device::open("edge0"), Err(TunError::Busy { .. })));
    ip("address add 10.9.9.1/24 dev edge0");
    let token = driver.packets(device.into(), 1500).unwrap();
    assert!(!driver.write_packet(token, &[0x45; 20]).unwrap(), "not while the device is down");
    ip("link set edge0 up");
    let socket = UdpSocket::bind("10.9.9.1:4000").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for number in 0..300u16 {
        socket.send_to(&number.to_be_bytes(), "10.9.9.2:4000").unwrap();
    }
    let mut expected = 0u16;
    turn(&mut driver, |driver, event| {
        let Event::Packet { buffer, .. } = event else { panic!("unexpected {event:?}") };
        let packet = driver.bytes(&buffer).to_vec();
        driver.recycle(buffer);
        if packet[0] >> 4 == 4 && packet[9] == 17 {
            assert_eq!(packet[28..], expected.to_be_bytes(), "in order");
            expected += 1;
            // Source and destination change places: the checksums stay right.
            let mut back = packet.clone();
            back[12..16].copy_from_slice(&packet[16..20]);
            back[16..20].copy_from_slice(&packet[12..16]);
            assert!(driver.write_packet(token, &back).unwrap());
            let mut echoed = [0; 16];
            assert_eq!(socket.recv(&mut echoed).unwrap(), 2);
            assert_eq!(echoed[..2], packet[28..]);
        }
        expected == 300
    });
    println!("300 packets each way on {}", driver.name());
}
