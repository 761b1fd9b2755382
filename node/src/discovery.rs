//! LAN discovery: carries announcements (`docs/protocol.md` §8.7) between the data thread and the networks that this machine is on.
//!
//! Each interface has a socket per family of its own, bound to it: what comes in has crossed that link and no router, and a flood on one is cut off there. What an
//! announcement means is for [`meshdp::proto::path::beacon`] and the data thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::num::NonZeroU32;

use meshdp::engine::socket::keep_outside;
use meshdp::proto::path::beacon::{Budget, GROUP4, GROUP6, MAX_LEN, PORT};
use meshdp::proto::time::Instant as Moment;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::network::Address;

/// Interfaces listened on; a machine with more is no laptop.
const MAX_LINKS: usize = 32;
/// Announcements of one interface, at once and each second, that are passed on.
const PASSED_ON: Budget = Budget::new(32, 16);
/// That wait for the daemon.
const WAITING: usize = 64;

/// One interface and family.
type Place = (u32, bool);

/// Listens on all interfaces of this machine.
#[derive(Debug)]
pub(crate) struct Lan {
    links: BTreeMap<Place, Link>,
    addresses: BTreeMap<IpAddr, Place>,
    out: mpsc::Sender<Vec<u8>>,
    heard: mpsc::Receiver<Vec<u8>>,
}

#[derive(Debug)]
struct Link {
    sender: StdSocket,
    listener: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Lan {
    /// Listens nowhere yet. In a tokio runtime with a local set.
    pub(crate) fn new() -> Self {
        let (out, heard) = mpsc::channel(WAITING);
        Self { links: BTreeMap::new(), addresses: BTreeMap::new(), out, heard }
    }

    /// This machine's addresses as they are now.
    pub(crate) fn listen_on(&mut self, addresses: &BTreeSet<Address>) {
        let of = |address: &Address| (address.net.addr(), (address.link, address.net.addr().is_ipv4()));
        self.addresses = addresses.iter().map(of).collect();
        let wanted: BTreeSet<Place> = self.addresses.values().copied().take(MAX_LINKS).collect();
        self.links.retain(|place, _| wanted.contains(place));
        for place in wanted {
            if self.links.contains_key(&place) {
                continue;
            }
            match Link::open(place, self.out.clone()) {
                Ok(link) => {
                    self.links.insert(place, link);
                }
                Err(error) => tracing::debug!(link = place.0, %error, "no LAN discovery on an interface"),
            }
        }
    }

    /// The next announcement.
    pub(crate) async fn heard(&mut self) -> Vec<u8> {
        match self.heard.recv().await {
            Some(datagram) => datagram,
            None => std::future::pending().await,
        }
    }

    /// Announces the own address `from` on its network.
    pub(crate) fn announce(&self, from: IpAddr, datagram: &[u8]) {
        let Some(place) = self.addresses.get(&from) else { return };
        let Some(link) = self.links.get(place) else { return };
        // One that does not go out is made up for by the next.
        if let Err(error) = link.sender.send_to(datagram, group(*place)) {
            tracing::debug!(%from, %error, "could not announce");
        }
    }
}

impl Link {
    fn open(place: Place, out: mpsc::Sender<Vec<u8>>) -> io::Result<Self> {
        let socket = open(place)?;
        let sender = socket.try_clone()?;
        let socket = UdpSocket::from_std(socket)?;
        let listener = tokio::task::spawn_local(listen(socket, out));
        Ok(Self { sender, listener })
    }
}

/// Passes on what comes, as long as it is not too much.
async fn listen(socket: UdpSocket, out: mpsc::Sender<Vec<u8>>) {
    let begun = Instant::now();
    let mut budget = PASSED_ON;
    // One byte more than any announcement has, so that a longer one is seen to be longer.
    let mut buffer = [0; MAX_LEN + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => {
                let now = Moment::ZERO + begun.elapsed();
                if budget.take(1, now) {
                    // A daemon that does not keep up hears the next.
                    let _ = out.try_send(buffer[..length].to_vec());
                }
            }
            // An ICMP error of an announcement; anything else comes again at once, and must not spin.
            Err(error) => {
                tracing::debug!(%error, "LAN discovery");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

/// A socket on one interface, in the group, whose packets no router passes on.
fn open((link, v4): Place) -> io::Result<StdSocket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    keep_outside(&socket);
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    let index = NonZeroU32::new(link);
    if v4 {
        socket.bind_device_by_index_v4(index)?;
        socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT))))?;
        socket.join_multicast_v4_n(&GROUP4, &InterfaceIndexOrAddress::Index(link))?;
        socket.set_multicast_all_v4(false)?;
        socket.set_multicast_ttl_v4(1)?;
    } else {
        socket.set_only_v6(true)?;
        socket.bind_device_by_index_v6(index)?;
        socket.bind(&SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT))))?;
        socket.join_multicast_v6(&GROUP6, link)?;
        socket.set_multicast_all_v6(false)?;
        socket.set_multicast_if_v6(link)?;
        socket.set_multicast_hops_v6(1)?;
    }
    Ok(socket.into())
}

const fn group((_, v4): Place) -> SocketAddr {
    let ip = if v4 { IpAddr::V4(GROUP4) } else { IpAddr::V6(GROUP6) };
    SocketAddr::new(ip, PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_come_and_go_are_followed_and_bad_ones_are_passed_over() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut lan = Lan::new();
            let address = |ip: &str, link| Address { net: ip.parse().unwrap(), link };
            let nowhere = address("192.0.2.7/24", 0x7fff_0000);
            lan.listen_on(&[nowhere].into());
            assert!(lan.links.is_empty(), "there is no such interface");
            lan.announce(nowhere.net.addr(), &[1]);
            lan.listen_on(&BTreeSet::new());
            assert!(lan.addresses.is_empty());
        });
    }
}
