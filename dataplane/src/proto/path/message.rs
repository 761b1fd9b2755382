//! What nodes say to each other about paths: inner messages of DATA, sealed like packets (`docs/protocol.md` §2.3, §8.3).
//!
//! ```text
//! PROBE      0x03 ‖ flags (1) ‖ id (8) ‖ padding
//! PROBE_ACK  0x04 ‖ flags (1) ‖ id (8) ‖ size (2) ‖ the address that the probe came from: family (1) ‖ port (2) ‖ ip (4 or 16)
//! CALL       0x05 ‖ flags (1) ‖ round (4) ‖ NAT (3) ‖ count (1) ‖ count × ( kind (1) ‖ family (1) ‖ port (2) ‖ ip (4 or 16) )
//! ```
//!
//! The first nibble of every type is 0: no IP packet begins so. Unknown flags and trailing bytes are ignored, so that a newer peer may say more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::candidate::{Candidate, Kind, MAX_CANDIDATES};
use super::nat::NatBehaviour;

/// Does this way work?
pub const PROBE: u8 = 0x03;
/// It does.
pub const PROBE_ACK: u8 = 0x04;
/// Call me, maybe.
pub const CALL: u8 = 0x05;

/// Bytes of a PROBE without padding.
pub const PROBE_LEN: usize = 10;
/// Of a PROBE: the sender has moved; what it used before is gone.
const MOVED: u8 = 1;
/// Of a CALL: it answers one.
const REPLY: u8 = 1;
const FAMILY_4: u8 = 4;
const FAMILY_6: u8 = 6;

/// A question on one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Random: what an answer is recognised by.
    pub id: u64,
    /// The sender has moved: it is no longer reached as before.
    pub moved: bool,
}

/// The answer to a [`Probe`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeAck {
    /// The probe's.
    pub id: u64,
    /// Bytes of the datagram that the probe came in.
    pub size: u16,
    /// Where it came from.
    pub observed: SocketAddr,
}

/// "These are my addresses; ask them now, I am asking yours."
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Counts the sender's attempts; an answer carries the number of what it answers.
    pub round: u32,
    /// It answers one.
    pub reply: bool,
    /// Of the sender.
    pub nat: NatBehaviour,
    /// The sender's addresses.
    pub candidates: Vec<Candidate>,
}

/// Any of those that this module knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inner {
    /// A question.
    Probe(Probe),
    /// An answer.
    ProbeAck(ProbeAck),
    /// Addresses.
    Call(Call),
}

impl Inner {
    /// Whether a plaintext is one of these.
    pub fn is_about_paths(text: &[u8]) -> bool {
        matches!(text.first(), Some(&(PROBE | PROBE_ACK | CALL)))
    }

    /// Reads one. `None`: unknown, or malformed.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (&[kind, flags], rest) = text.split_first_chunk::<2>()?;
        match kind {
            PROBE => {
                let id = u64::from_be_bytes(*rest.first_chunk()?);
                Some(Self::Probe(Probe { id, moved: flags & MOVED != 0 }))
            }
            PROBE_ACK => {
                let (id, rest) = rest.split_first_chunk::<8>()?;
                let (size, rest) = rest.split_first_chunk::<2>()?;
                let (observed, _) = read_address(rest)?;
                let (id, size) = (u64::from_be_bytes(*id), u16::from_be_bytes(*size));
                Some(Self::ProbeAck(ProbeAck { id, size, observed }))
            }
            CALL => Call::parse(flags, rest).map(Self::Call),
            _ => None,
        }
    }

    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Probe(probe) => {
                out.extend_from_slice(&[PROBE, if probe.moved { MOVED } else { 0 }]);
                out.extend_from_slice(&probe.id.to_be_bytes());
            }
            Self::ProbeAck(ack) => {
                out.extend_from_slice(&[PROBE_ACK, 0]);
                out.extend_from_slice(&ack.id.to_be_bytes());
                out.extend_from_slice(&ack.size.to_be_bytes());
                write_address(ack.observed, out);
            }
            Self::Call(call) => call.write(out),
        }
    }
}

impl Call {
    fn parse(flags: u8, rest: &[u8]) -> Option<Self> {
        let (round, rest) = rest.split_first_chunk::<4>()?;
        let (nat, rest) = rest.split_first_chunk::<{ NatBehaviour::LEN }>()?;
        let (&count, mut rest) = rest.split_first()?;
        if usize::from(count) > MAX_CANDIDATES {
            return None;
        }
        let mut candidates = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (&kind, tail) = rest.split_first()?;
            let (address, tail) = read_address(tail)?;
            rest = tail;
            // A kind from the future is an address like any other.
            candidates.push(Candidate::new(Kind::from_number(kind).unwrap_or(Kind::Relay), address));
        }
        Some(Self {
            round: u32::from_be_bytes(*round),
            reply: flags & REPLY != 0,
            nat: NatBehaviour::from_bytes(*nat),
            candidates,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let candidates = self.candidates.get(..MAX_CANDIDATES).unwrap_or(&self.candidates);
        out.extend_from_slice(&[CALL, if self.reply { REPLY } else { 0 }]);
        out.extend_from_slice(&self.round.to_be_bytes());
        out.extend_from_slice(&self.nat.to_bytes());
        out.push(candidates.len() as u8);
        for candidate in candidates {
            out.push(candidate.kind as u8);
            write_address(candidate.address, out);
        }
    }
}

/// family (1) ‖ port (2) ‖ ip (4 or 16); what follows comes back.
pub(super) fn read_address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (&[family, high, low], rest) = bytes.split_first_chunk::<3>()?;
    let (ip, rest) = match family {
        FAMILY_4 => {
            rest.split_first_chunk::<4>().map(|(ip, rest)| (IpAddr::V4(Ipv4Addr::from(*ip)), rest))?
        }
        FAMILY_6 => {
            rest.split_first_chunk::<16>().map(|(ip, rest)| (IpAddr::V6(Ipv6Addr::from(*ip)), rest))?
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, u16::from_be_bytes([high, low])), rest))
}

/// As [`read_address`] reads it.
pub(super) fn write_address(address: SocketAddr, out: &mut Vec<u8>) {
    let [high, low] = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => {
            out.extend_from_slice(&[FAMILY_4, high, low]);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.extend_from_slice(&[FAMILY_6, high, low]);
            out.extend_from_slice(&ip.octets());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::path::nat::{Filtering, Mapping, Ports};

    fn written(message: &Inner) -> Vec<u8> {
        let mut out = Vec::new();
        message.write(&mut out);
        out
    }

    #[test]
    fn layouts_are_those_of_the_protocol() {
        let probe = Inner::Probe(Probe { id: 0x0102_0304_0506_0708, moved: true });
        assert_eq!(written(&probe), [3, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        let observed = "203.0.113.7:513".parse().unwrap();
        let ack = Inner::ProbeAck(ProbeAck { id: 9, size: 0x0480, observed });
        assert_eq!(written(&ack), [4, 0, 0, 0, 0, 0, 0, 0, 0, 9, 4, 0x80, 4, 2, 1, 203, 0, 113, 7]);
        let nat = NatBehaviour {
            mapping: Some(Mapping::AddressAndPortDependent),
            filtering: Some(Filtering::AddressAndPortDependent),
            ports: Ports::Counting(-1),
        };
        let candidates = vec![Candidate::new(Kind::Stun, "[2001:db8::1]:256".parse().unwrap())];
        let call = Inner::Call(Call { round: 2, reply: true, nat, candidates });
        let head = [5, 1, 0, 0, 0, 2, 4 | 3 << 3 | 2 << 5, 0xFF, 0xFF, 1, 3, 6, 1, 0, 0x20, 1, 0x0D, 0xB8];
        assert_eq!(written(&call)[..18], head);
        for message in [probe, ack, call] {
            let bytes = written(&message);
            assert_eq!(Inner::parse(&bytes), Some(message.clone()));
            assert_eq!(Inner::parse(&[bytes.as_slice(), &[0; 7]].concat()), Some(message), "padding");
            assert!((0..bytes.len()).all(|end| Inner::parse(&bytes[..end]).is_none()), "cut short");
        }
    }

    #[test]
    fn more_candidates_than_are_kept_are_refused() {
        let mut bytes = vec![CALL, 0, 0, 0, 0, 1, 0, 0, 0, MAX_CANDIDATES as u8 + 1];
        for port in 0..=MAX_CANDIDATES as u8 {
            bytes.extend_from_slice(&[0, 4, 1, port, 10, 0, 0, 1]);
        }
        assert_eq!(Inner::parse(&bytes), None);
        bytes[9] -= 1;
        assert!(Inner::parse(&bytes).is_some());
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..80), kind in 3u8..6) {
            let bytes = [&[kind], bytes.as_slice()].concat();
            if let Some(message) = Inner::parse(&bytes) {
                prop_assert_eq!(Inner::parse(&written(&message)), Some(message));
            }
        }
    }
}
