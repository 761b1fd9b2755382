//! Discovery against real answers of our STUN server, through NATs of one rule each.

use std::collections::BTreeMap;

use rand_core::SeedableRng;

use super::*;
use crate::proto::wire::stun::{self, Face, Faces};

const LOCAL: ([u8; 4], u16) = ([192, 168, 1, 2], 41_641);
const OUTER: [u8; 4] = [203, 0, 113, 9];
const LONE: ([u8; 4], u16) = ([198, 51, 100, 1], 3478);

/// A NAT: what the mapping depends on, what the filter lets in, how ports are chosen.
struct Nat {
    mapping: Mapping,
    filtering: Filtering,
    step: i32,
    next: i32,
    table: BTreeMap<(Option<IpAddr>, Option<u16>), SocketAddr>,
    sent: Vec<SocketAddr>,
}

impl Nat {
    fn new(mapping: Mapping, filtering: Filtering, step: i32) -> Self {
        Self { mapping, filtering, step, next: 50_000, table: BTreeMap::new(), sent: Vec::new() }
    }

    fn out(&mut self, to: SocketAddr) -> SocketAddr {
        self.sent.push(to);
        let key = match self.mapping {
            Mapping::Direct => return LOCAL.into(),
            Mapping::EndpointIndependent => (None, None),
            Mapping::AddressDependent => (Some(to.ip()), None),
            Mapping::AddressAndPortDependent => (Some(to.ip()), Some(to.port())),
        };
        let (next, step) = (&mut self.next, self.step);
        *self.table.entry(key).or_insert_with(|| {
            // 0: no order at all.
            *next = if step == 0 { (*next * 7919 + 12_345) % 60_000 + 2000 } else { *next + step };
            SocketAddr::from((OUTER, u16::try_from(*next).unwrap()))
        })
    }

    fn lets_in(&self, from: SocketAddr) -> bool {
        match self.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.sent.iter().any(|to| to.ip() == from.ip()),
            Filtering::AddressAndPortDependent => self.sent.contains(&from),
        }
    }
}

struct Lab {
    nat: Nat,
    faces: Faces,
    discovery: Discovery,
    rng: ChaCha20Rng,
    now: Instant,
    /// Share of datagrams lost: every so manieth.
    lose_every: usize,
    count: usize,
}

impl Lab {
    fn new(nat: Nat, servers: &[SocketAddr]) -> Self {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let local = vec![IpAddr::from(LOCAL.0)];
        let discovery = Discovery::new(servers, local, LOCAL.1, &mut rng, Instant::ZERO);
        Self { nat, faces: faces(), discovery, rng, now: Instant::ZERO, lose_every: usize::MAX, count: 0 }
    }

    fn lost(&mut self) -> bool {
        self.count += 1;
        self.count.is_multiple_of(self.lose_every)
    }

    /// Everything that happens in the next `secs` seconds, with 10 ms each way.
    fn run(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        loop {
            while let Some((to, request)) = self.discovery.poll_transmit() {
                let mapped = self.nat.out(to);
                if self.lost() {
                    continue;
                }
                let face = Face::ALL.into_iter().find(|face| self.faces.address(*face) == to);
                let mut answer = Vec::new();
                let at = face.map(|face| (&self.faces, face));
                let reply = stun::respond_at(&request, mapped, at, &mut answer);
                let from = reply.face.map_or(to, |face| self.faces.address(face));
                if !answer.is_empty() && self.nat.lets_in(from) && !self.lost() {
                    self.now += Duration::from_millis(20);
                    assert!(self.discovery.handle_datagram(from, &answer, &mut self.rng, self.now));
                    assert!(!self.discovery.handle_datagram(from, &answer, &mut self.rng, self.now), "once");
                }
            }
            match self.discovery.poll_timeout().filter(|at| *at <= end) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.discovery.handle_timeout(&mut self.rng, self.now);
                }
                None => break,
            }
        }
        self.now = self.now.max(end);
    }
}

fn faces() -> Faces {
    Faces::new([[192, 0, 2, 1].into(), [192, 0, 2, 2].into()], [3478, 3479]).unwrap()
}

fn servers() -> [SocketAddr; 2] {
    [SocketAddr::from(([192, 0, 2, 1], 3478)), SocketAddr::from(LONE)]
}

const MAPPINGS: [Mapping; 4] = [
    Mapping::Direct,
    Mapping::EndpointIndependent,
    Mapping::AddressDependent,
    Mapping::AddressAndPortDependent,
];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

#[test]
fn tells_every_mapping_filtering_and_step_apart() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for step in [1, -1, 2, 0] {
                let mut lab = Lab::new(Nat::new(mapping, filtering, step), &servers());
                lab.run(30);
                let found = lab.discovery.behaviour();
                assert_eq!((found.mapping, found.filtering), (Some(mapping), Some(filtering)), "step {step}");
                let ports = match (mapping, step) {
                    (Mapping::Direct, _) => Ports::Preserving,
                    (Mapping::EndpointIndependent, _) => Ports::Unknown,
                    (_, 0) => Ports::Random,
                    (_, step) => Ports::Counting(step as i16),
                };
                assert_eq!(found.ports, ports, "{mapping:?}");
                assert!(lab.discovery.is_idle());
            }
        }
    }
}

#[test]
fn one_server_with_two_addresses_is_enough_and_two_plain_ones_tell_the_mapping_alone() {
    let nat = Nat::new(Mapping::AddressDependent, Filtering::AddressDependent, 1);
    let mut lab = Lab::new(nat, &servers()[..1]);
    lab.run(30);
    assert_eq!(lab.discovery.behaviour().mapping, Some(Mapping::AddressDependent));
    assert_eq!(lab.discovery.behaviour().filtering, Some(Filtering::AddressDependent));
    let plain = [SocketAddr::from(LONE), SocketAddr::from(([198, 51, 100, 2], 3478))];
    let mut lab = Lab::new(Nat::new(Mapping::AddressAndPortDependent, FILTERINGS[2], 1), &plain);
    lab.run(30);
    assert_eq!(lab.discovery.behaviour().mapping, Some(Mapping::AddressAndPortDependent));
    assert_eq!(lab.discovery.behaviour().filtering, None);
}

#[test]
fn an_address_whose_answer_would_say_nothing_new_is_not_asked() {
    let nat = Nat::new(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, 1);
    let mut lab = Lab::new(nat, &servers()[..1]);
    lab.run(30);
    assert_eq!(lab.discovery.behaviour().mapping, Some(Mapping::EndpointIndependent));
    // What came from there to test the filter may have left a trace in the NAT, and would get another port.
    assert!(!lab.nat.sent.contains(&SocketAddr::from(([192, 0, 2, 2], 3479))));
}

#[test]
fn lost_datagrams_are_asked_again() {
    for lose_every in 3..9 {
        let nat = Nat::new(Mapping::EndpointIndependent, Filtering::EndpointIndependent, 1);
        let mut lab = Lab::new(nat, &servers());
        lab.lose_every = lose_every;
        lab.run(60);
        assert_eq!(lab.discovery.behaviour().mapping, Some(Mapping::EndpointIndependent));
        assert_eq!(lab.discovery.mapped(), Some(SocketAddr::from((OUTER, 50_001))));
    }
}

#[test]
fn a_forged_answer_moves_nothing() {
    let mut lab = Lab::new(Nat::new(MAPPINGS[1], FILTERINGS[2], 1), &servers());
    let (to, request) = lab.discovery.poll_transmit().unwrap();
    let forge = |request: &[u8]| {
        let mut answer = Vec::new();
        stun::respond(request, SocketAddr::from(([6, 6, 6, 6], 666)), &mut answer);
        answer
    };
    // The right transaction from elsewhere; from the right address with another transaction; altered on the way.
    let stranger = SocketAddr::from(([6, 6, 6, 6], 3478));
    assert!(!lab.discovery.handle_datagram(stranger, &forge(&request), &mut lab.rng, lab.now));
    let mut guessed = request.clone();
    guessed[8] ^= 1;
    let mut unsealed = Vec::new();
    stun::binding_request([1; 12], &mut unsealed);
    for other in [&guessed, &unsealed] {
        assert!(!lab.discovery.handle_datagram(to, &forge(other), &mut lab.rng, lab.now));
    }
    let mut altered = forge(&request);
    altered[27] ^= 1;
    assert!(!lab.discovery.handle_datagram(to, &altered, &mut lab.rng, lab.now), "the fingerprint is wrong");
    assert_eq!((lab.discovery.mapped(), lab.discovery.take_change()), (None, false));
    let mut nowhere = Vec::new();
    stun::respond(&request, SocketAddr::from(([0, 0, 0, 0], 5)), &mut nowhere);
    lab.discovery.handle_datagram(to, &nowhere, &mut lab.rng, lab.now);
    assert_eq!(lab.discovery.mapped(), None, "nobody is reached at 0.0.0.0");
}

#[test]
fn a_refresh_finds_the_newest_port_of_a_nat_that_counts() {
    let nat = Nat::new(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, 1);
    let mut lab = Lab::new(nat, &servers());
    lab.run(20);
    // Something else behind the NAT opens a few ports.
    lab.nat.next += 5;
    lab.discovery.take_change();
    lab.discovery.refresh(&mut lab.rng, lab.now);
    lab.run(5);
    assert!(lab.discovery.take_change());
    assert_eq!(lab.discovery.mapped().map(|mapped| i32::from(mapped.port())), Some(lab.nat.next));
}

#[test]
fn a_server_that_is_not_there_is_given_up_and_what_is_asked_stays_bounded() {
    let many: Vec<_> = (1..50).map(|n| SocketAddr::from(([198, 51, 100, n], 9))).collect();
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let mut discovery = Discovery::new(&many, Vec::new(), 1, &mut rng, Instant::ZERO);
    let mut sent = 0;
    while let Some(at) = discovery.poll_timeout().filter(|at| *at < Instant::ZERO + Duration::from_secs(60)) {
        discovery.handle_timeout(&mut rng, at);
        while discovery.poll_transmit().is_some() {
            sent += 1;
        }
    }
    assert_eq!((sent, discovery.is_idle()), (MAX_SERVERS * REQUESTS as usize, true));
}
