//! A STUN client for one UDP socket: its address as others see it, and what the NAT in between does.
//!
//! ```text
//! 1  Binding to up to three servers at once        → the mapped address; two that differ: the mapping depends on the destination
//! 2  one of them does RFC 5780: answer from its other address and port, and from its other port alone (both at once)
//!                                                  → filtering (§4.4), before anything was sent to those other addresses
//! 3  if the mapping depends, or is not known: Binding to its other address, then to that one's other port
//!                                                  → mapping (§4.3), and by how much ports go up
//! ```
//!
//! An answer counts when it comes from where it was asked for and carries the 96 random bits of a request that waits: whoever is not on
//! the way cannot make one. Who is can at worst have peers send a few probes to a wrong address; nothing moves without an authenticated answer.
//!
//! [`Discovery::refresh`] renews the mapped address. Where every destination has a port of its own, the newest port is what foretells the next,
//! so it asks at an address that was not asked lately. From RFC 5780 §4 and RFC 8489 §6.2.1; see `docs/protocol.md` §8.2.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::RngCore;

use super::behaviour::{Filtering, Mapping, NatBehaviour, Ports};
use super::predict::step_of;
use super::transaction::{Due, Transaction};
use crate::proto::time::Instant;
use crate::proto::wire::stun::{BindingAnswer, BindingRequest};

/// Servers asked.
const MAX_SERVERS: usize = 3;
/// Requests of a transaction, RFC 8489 §6.2.1.
const REQUESTS: u32 = 7;
/// Requests where silence is an answer too.
const TEST_REQUESTS: u32 = 3;
/// Addresses at which the newest port is looked for, in one refresh.
const MAX_SAMPLES: usize = 4;
/// The mapped address is looked at this often without being asked for.
const REFRESH: Duration = Duration::from_mins(5);

/// See the [module](self).
#[derive(Debug)]
pub struct Discovery {
    local: Vec<IpAddr>,
    port: u16,
    places: Vec<Place>,
    tests: Vec<(Test, Transaction)>,
    /// A server's own address, and the one with all changed.
    faces: Option<(SocketAddr, SocketAddr)>,
    filtering: [Option<bool>; 2],
    /// Outer ports in the order in which the NAT gave them; `None`: not known when.
    ports: Vec<Option<u16>>,
    behaviour: NatBehaviour,
    mapped: Option<SocketAddr>,
    samples_left: usize,
    /// The samples are also to show by how much ports go up.
    looks_for_step: bool,
    next_refresh: Instant,
    outbox: VecDeque<(SocketAddr, Vec<u8>)>,
    changed: bool,
}

/// An address that answers Binding requests.
#[derive(Debug)]
struct Place {
    address: SocketAddr,
    asked: Option<Instant>,
    mapped: Option<SocketAddr>,
}

/// What a transaction is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Test {
    /// The address that the server sees; the place in `ports`.
    Basic(usize),
    /// Does an answer from elsewhere come in? From another address and port, or another port.
    Filter { address: bool },
    /// The address that the other address sees.
    OtherAddress(usize),
    /// The same at its other port.
    OtherPort(usize),
    /// The newest port.
    Sample,
}

impl Discovery {
    /// Begins, for the socket with `port` of a machine with the addresses `local`. `servers` are of that socket's family.
    pub fn new(
        servers: &[SocketAddr],
        local: Vec<IpAddr>,
        port: u16,
        rng: &mut ChaCha20Rng,
        now: Instant,
    ) -> Self {
        let mut discovery = Self {
            local,
            port,
            places: Vec::new(),
            tests: Vec::new(),
            faces: None,
            filtering: [None; 2],
            ports: Vec::new(),
            behaviour: NatBehaviour::default(),
            mapped: None,
            samples_left: 0,
            looks_for_step: false,
            next_refresh: now + REFRESH,
            outbox: VecDeque::new(),
            changed: false,
        };
        for &server in servers.iter().take(MAX_SERVERS) {
            discovery.add_place(server);
            let slot = discovery.new_slot();
            discovery.ask(Test::Basic(slot), server, REQUESTS, rng, now);
        }
        discovery.send_due(now);
        discovery
    }

    /// The newest address as a server saw it.
    pub const fn mapped(&self) -> Option<SocketAddr> {
        self.mapped
    }

    /// The newest address as one server saw it.
    pub fn seen_by(&self, server: SocketAddr) -> Option<SocketAddr> {
        self.places.iter().find(|place| place.address == server)?.mapped
    }

    /// What is known so far.
    pub const fn behaviour(&self) -> NatBehaviour {
        self.behaviour
    }

    /// Whether nothing is being asked.
    pub const fn is_idle(&self) -> bool {
        self.tests.is_empty()
    }

    /// Whether something has become known since the last call.
    pub const fn take_change(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    /// The mapped address is wanted as it is now.
    pub fn refresh(&mut self, rng: &mut ChaCha20Rng, now: Instant) {
        self.next_refresh = now + REFRESH;
        let sampling = self.tests.iter().any(|(test, _)| matches!(test, Test::Sample));
        if !sampling {
            self.samples_left = if self.behaviour.is_symmetric() { MAX_SAMPLES } else { 1 };
            self.looks_for_step = self.behaviour.is_symmetric() && self.behaviour.step().is_none();
            if self.looks_for_step {
                // Too much else was going on when the ports were compared, perhaps.
                self.ports.clear();
            }
            self.sample(rng, now);
            self.send_due(now);
        }
    }

    /// A datagram of the socket. False: it is not for us.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        rng: &mut ChaCha20Rng,
        now: Instant,
    ) -> bool {
        let answer =
            self.tests.iter().enumerate().find_map(|(at, (_, transaction))| {
                transaction.read(from, datagram).map(|answer| (at, answer))
            });
        let Some((at, answer)) = answer else { return false };
        let (test, transaction) = self.tests.swap_remove(at);
        match answer {
            Ok(answer) if is_plausible(answer.mapped) => self.answered(test, &transaction, answer, now),
            // As good as silence.
            _ => self.unanswered(test),
        }
        self.go_on(rng, now);
        true
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, rng: &mut ChaCha20Rng, now: Instant) {
        if self.next_refresh <= now {
            self.refresh(rng, now);
        }
        self.send_due(now);
        self.go_on(rng, now);
    }

    /// When [`Discovery::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let tests = self.tests.iter().map(|(_, transaction)| transaction.next()).min();
        let refresh = (!self.places.is_empty()).then_some(self.next_refresh);
        [tests, refresh].into_iter().flatten().min()
    }

    /// A datagram to send from the socket.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outbox.pop_front()
    }

    fn answered(&mut self, test: Test, transaction: &Transaction, answer: BindingAnswer, now: Instant) {
        match test {
            Test::Filter { address } => {
                self.filtering[usize::from(address)] = Some(true);
                return;
            }
            Test::Basic(slot) | Test::OtherAddress(slot) | Test::OtherPort(slot) => {
                if let Some(port) = self.ports.get_mut(slot).filter(|_| transaction.is_first()) {
                    *port = Some(answer.mapped.port());
                }
            }
            Test::Sample => {}
        }
        let to = transaction.to();
        let place = self.places.iter_mut().find(|place| place.address == to);
        let before = place.and_then(|place| place.mapped.replace(answer.mapped));
        if matches!(test, Test::Basic(_)) && self.faces.is_none() {
            self.faces = answer.other.filter(|other| self.can_test_with(to, *other)).map(|other| (to, other));
        }
        if test == Test::Sample {
            // A mapping that was there before says nothing about the next one.
            let stale = self.behaviour.is_symmetric() && before == Some(answer.mapped);
            let more = stale || (self.looks_for_step && self.ports.is_empty());
            self.samples_left = if more { self.samples_left.saturating_sub(1) } else { 0 };
            self.changed |= self.samples_left == 0;
            if stale {
                return;
            }
            if self.looks_for_step && transaction.is_first() {
                self.ports.push(Some(answer.mapped.port()));
            }
        }
        self.mapped = Some(answer.mapped);
        self.changed = true;
        self.next_refresh = now + REFRESH;
    }

    fn unanswered(&mut self, test: Test) {
        match test {
            Test::Filter { address } => self.filtering[usize::from(address)] = Some(false),
            Test::Sample => {
                self.samples_left = self.samples_left.saturating_sub(1);
                self.changed |= self.samples_left == 0;
            }
            Test::Basic(_) | Test::OtherAddress(_) | Test::OtherPort(_) => {}
        }
    }

    /// A server's other addresses are of use when they are others, and nothing was sent there that would open a filter.
    fn can_test_with(&self, server: SocketAddr, other: SocketAddr) -> bool {
        other.is_ipv4() == server.is_ipv4()
            && other.ip() != server.ip()
            && other.port() != server.port()
            && self.places.iter().all(|place| place.address.ip() != other.ip())
    }

    /// Begins the tests that have become possible, and concludes from those that are over.
    fn go_on(&mut self, rng: &mut ChaCha20Rng, now: Instant) {
        let before = self.behaviour;
        self.conclude();
        let basics_left = self.tests.iter().any(|(test, _)| matches!(test, Test::Basic(_)));
        if let Some((server, other)) = self.faces {
            let under_way = |wanted: fn(&Test) -> bool| self.tests.iter().any(|(test, _)| wanted(test));
            let filters = under_way(|test| matches!(test, Test::Filter { .. }));
            let asked = |address: SocketAddr| self.places.iter().any(|place| place.address == address);
            let [first, second] =
                [SocketAddr::new(other.ip(), server.port()), SocketAddr::new(other.ip(), other.port())];
            if self.filtering == [None; 2] && !filters {
                for address in [true, false] {
                    let from = SocketAddr::new(if address { other.ip() } else { server.ip() }, other.port());
                    self.ask_from(Test::Filter { address }, server, from, TEST_REQUESTS, rng, now);
                }
            } else if !filters && self.needs_mapping_tests() && !asked(first) && !basics_left {
                self.add_place(first);
                let slot = self.new_slot();
                self.ask(Test::OtherAddress(slot), first, TEST_REQUESTS, rng, now);
            } else if asked(first)
                && !asked(second)
                && !under_way(|t| matches!(t, Test::OtherAddress(_)))
                && self.needs_mapping_tests()
            {
                self.add_place(second);
                let slot = self.new_slot();
                self.ask(Test::OtherPort(slot), second, TEST_REQUESTS, rng, now);
            }
        }
        if self.samples_left > 0 && !self.tests.iter().any(|(test, _)| matches!(test, Test::Sample)) {
            self.sample(rng, now);
        }
        self.send_due(now);
        self.changed |= self.behaviour != before;
    }

    /// Whether it takes more than the first answers to know the mapping.
    fn needs_mapping_tests(&self) -> bool {
        !matches!(self.behaviour.mapping, Some(Mapping::Direct | Mapping::EndpointIndependent))
    }

    fn conclude(&mut self) {
        let seen: Vec<(SocketAddr, SocketAddr)> =
            self.places.iter().filter_map(|place| Some((place.address, place.mapped?))).collect();
        let Some(&(_, first)) = seen.first() else { return };
        let same = seen.iter().all(|(_, mapped)| *mapped == first);
        self.behaviour.mapping = if same && first.port() == self.port && self.local.contains(&first.ip()) {
            Some(Mapping::Direct)
        } else if same {
            // One answer proves nothing.
            (seen.len() > 1).then_some(Mapping::EndpointIndependent)
        } else {
            // Two ports of one address that saw the same: only the address counts.
            let by_address = seen.iter().enumerate().any(|(at, (address, mapped))| {
                seen.iter().skip(at + 1).any(|(other, same)| other.ip() == address.ip() && same == mapped)
            });
            Some(if by_address { Mapping::AddressDependent } else { Mapping::AddressAndPortDependent })
        };
        self.behaviour.filtering = match self.filtering {
            [_, Some(true)] => Some(Filtering::EndpointIndependent),
            [Some(true), Some(false)] => Some(Filtering::AddressDependent),
            [Some(false), Some(false)] => Some(Filtering::AddressAndPortDependent),
            _ => None,
        };
        let mut ports: Vec<u16> = self.ports.iter().copied().flatten().collect();
        ports.dedup();
        self.behaviour.ports = if seen.iter().all(|(_, mapped)| mapped.port() == self.port) {
            Ports::Preserving
        } else if let Some(step) = step_of(&ports).filter(|_| !same) {
            Ports::Counting(step)
        } else if !same && ports.len() > 1 {
            Ports::Random
        } else {
            Ports::Unknown
        };
    }

    /// Asks at the address that was not asked for the longest time.
    fn sample(&mut self, rng: &mut ChaCha20Rng, now: Instant) {
        if self.behaviour.is_symmetric()
            && let Some((server, other)) = self.faces
        {
            let ips = [server.ip(), other.ip()];
            for port in [server.port(), other.port()] {
                for ip in ips {
                    self.add_place(SocketAddr::new(ip, port));
                }
            }
        }
        // One that answered before, unless the newest port is looked for; else whichever.
        let fresh = self.behaviour.is_symmetric();
        let place = self.places.iter().min_by_key(|place| (!fresh && place.mapped.is_none(), place.asked));
        let Some(address) = place.map(|place| place.address) else {
            self.samples_left = 0;
            return;
        };
        self.ask(Test::Sample, address, TEST_REQUESTS, rng, now);
    }

    fn add_place(&mut self, address: SocketAddr) {
        if self.places.iter().all(|place| place.address != address) {
            self.places.push(Place { address, asked: None, mapped: None });
        }
    }

    fn new_slot(&mut self) -> usize {
        self.ports.push(None);
        self.ports.len() - 1
    }

    fn ask(&mut self, test: Test, to: SocketAddr, requests: u32, rng: &mut ChaCha20Rng, now: Instant) {
        self.ask_from(test, to, to, requests, rng, now);
    }

    fn ask_from(
        &mut self,
        test: Test,
        to: SocketAddr,
        answers_from: SocketAddr,
        requests: u32,
        rng: &mut ChaCha20Rng,
        now: Instant,
    ) {
        let mut transaction = [0; 12];
        rng.fill_bytes(&mut transaction);
        let request = BindingRequest {
            transaction,
            change_ip: answers_from.ip() != to.ip(),
            change_port: answers_from.port() != to.port(),
        };
        if let Some(place) = self.places.iter_mut().find(|place| place.address == to) {
            place.asked = Some(now);
        }
        self.tests.push((test, Transaction::new(request, to, answers_from, requests, now)));
    }

    fn send_due(&mut self, now: Instant) {
        let mut at = 0;
        while let Some((test, transaction)) = self.tests.get_mut(at) {
            match transaction.poll(now) {
                Some(Due::Send) => {
                    let mut datagram = Vec::new();
                    transaction.request().write(&mut datagram);
                    self.outbox.push_back((transaction.to(), datagram));
                }
                Some(Due::GivenUp) => {
                    let test = *test;
                    self.tests.remove(at);
                    self.unanswered(test);
                }
                None => at += 1,
            }
        }
    }
}

/// Whether an address can be one that this node is reached at.
fn is_plausible(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

#[cfg(test)]
mod tests;
