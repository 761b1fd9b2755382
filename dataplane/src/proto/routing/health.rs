//! What a gateway says about the subnets behind it: an inner message of DATA, sealed like packets (`docs/protocol.md` §2.3, §2.5).
//!
//! ```text
//! ROUTES_DOWN   0x06 ‖ flags (1) ‖ time (8, unix microseconds) ‖ count (1) ‖ count × ( family (1: 4 or 6) ‖ prefix length (1) ‖ IP (4 or 16) )
//! ```
//!
//! It names all that cannot be reached at the moment; none: everything can. Flag bit 0 ALL: nothing can, and the list is of no interest. Unknown flags and
//! trailing bytes are ignored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Its type.
pub const ROUTES_DOWN: u8 = 0x06;
/// More than these are said by ALL: the longest message fits the smallest path.
pub const MAX_DOWN: usize = 64;
const ALL: u8 = 1;
const FAMILY_4: u8 = 4;
const FAMILY_6: u8 = 6;

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoutesDown {
    /// Of the sender; grows from message to message.
    pub time: u64,
    /// What cannot be reached.
    pub down: Down,
}

/// What cannot be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Down {
    /// Nothing can.
    All,
    /// These cannot.
    Some(Vec<IpNet>),
}

impl Down {
    /// Of these subnets.
    pub fn of(nets: &[IpNet]) -> Self {
        if nets.len() > MAX_DOWN { Self::All } else { Self::Some(nets.to_vec()) }
    }

    /// Whether `net`, one of the gateway's routes, is among them.
    pub fn contains(&self, net: IpNet) -> bool {
        match self {
            Self::All => true,
            Self::Some(nets) => nets.contains(&net),
        }
    }

    /// Whether everything can be reached.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(nets) if nets.is_empty())
    }
}

impl RoutesDown {
    /// Reads one. `None`: another type, or malformed.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (&[ROUTES_DOWN, flags], rest) = text.split_first_chunk::<2>()? else { return None };
        let (time, rest) = rest.split_first_chunk::<8>()?;
        let (&count, mut rest) = rest.split_first()?;
        let time = u64::from_be_bytes(*time);
        if flags & ALL != 0 {
            return Some(Self { time, down: Down::All });
        }
        if usize::from(count) > MAX_DOWN {
            return None;
        }
        let mut nets = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (&[family, length], tail) = rest.split_first_chunk::<2>()?;
            let (address, tail): (IpAddr, _) = match family {
                FAMILY_4 => tail.split_first_chunk::<4>().map(|(ip, t)| (Ipv4Addr::from(*ip).into(), t))?,
                FAMILY_6 => tail.split_first_chunk::<16>().map(|(ip, t)| (Ipv6Addr::from(*ip).into(), t))?,
                _ => return None,
            };
            nets.push(IpNet::new(address, length).ok()?.trunc());
            rest = tail;
        }
        Some(Self { time, down: Down::Some(nets) })
    }

    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (flags, nets): (u8, &[IpNet]) = match &self.down {
            Down::Some(nets) if nets.len() <= MAX_DOWN => (0, nets),
            _ => (ALL, &[]),
        };
        out.extend_from_slice(&[ROUTES_DOWN, flags]);
        out.extend_from_slice(&self.time.to_be_bytes());
        out.push(nets.len() as u8);
        for net in nets {
            match net {
                IpNet::V4(net) => {
                    out.extend_from_slice(&[FAMILY_4, net.prefix_len()]);
                    out.extend_from_slice(&net.addr().octets());
                }
                IpNet::V6(net) => {
                    out.extend_from_slice(&[FAMILY_6, net.prefix_len()]);
                    out.extend_from_slice(&net.addr().octets());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(message: &RoutesDown) -> Vec<u8> {
        let mut out = Vec::new();
        message.write(&mut out);
        out
    }

    #[test]
    fn what_is_written_is_read_again_and_more_than_fits_becomes_all() {
        let some = ["192.168.1.0/24", "fd00:7::/64", "0.0.0.0/0"].map(|net| net.parse().unwrap());
        let message = RoutesDown { time: 7, down: Down::of(&some) };
        let mut bytes = written(&message);
        bytes.extend_from_slice(b"from the future");
        assert_eq!(RoutesDown::parse(&bytes), Some(message.clone()));
        assert!(message.down.contains(some[1]) && !message.down.contains("10.0.0.0/8".parse().unwrap()));
        let many: Vec<IpNet> =
            (0..=MAX_DOWN as u8).map(|n| IpNet::new([10, n, 0, 0].into(), 16).unwrap()).collect();
        let all = RoutesDown { time: 8, down: Down::of(&many) };
        assert_eq!(RoutesDown::parse(&written(&all)), Some(RoutesDown { time: 8, down: Down::All }));
        let longest = RoutesDown { time: 9, down: Down::Some(vec!["fd00::/64".parse().unwrap(); MAX_DOWN]) };
        assert!(written(&longest).len() <= 1232 - 41);
    }

    #[test]
    fn what_is_cut_short_or_contradicts_itself_is_refused() {
        let bytes = written(&RoutesDown { time: 1, down: Down::of(&["10.0.0.0/8".parse().unwrap()]) });
        for length in 0..bytes.len() {
            assert_eq!(RoutesDown::parse(&bytes[..length]), None, "{length} bytes");
        }
        for (at, value) in [(0, 0x05), (10, 65), (11, 5), (12, 33)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert_eq!(RoutesDown::parse(&wrong), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(first) = bytes.first_mut() {
                *first = ROUTES_DOWN;
            }
            if let Some(message) = RoutesDown::parse(&bytes) {
                prop_assert_eq!(RoutesDown::parse(&written(&message)), Some(message));
            }
        }
    }
}
