//! Newtypes for the numbers that must not be swapped for one another. Zero is never a valid node, relay or network id on the wire.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id_type!(/// A membership of one machine in one network.
    NodeId(u32));
id_type!(/// A relay (and STUN) server.
    RelayId(u16));
id_type!(/// A private network.
    NetworkId(u32));
id_type!(/// The receiver's name for one of its sessions: the first 4 bytes of a DATA frame's nonce.
    SessionIndex(u32));
id_type!(/// A subnet route.
    RouteId(u32));

/// A hash map for look-ups by small integer ids that is **never iterated** where order could be seen.
///
/// Ids are handed out by the controller, so a keyed hash buys nothing; a multiplicative one costs a cycle. Keys that an outsider
/// can choose freely do not belong in here.
#[allow(clippy::disallowed_types, reason = "this alias is the sanctioned use")]
pub type IdMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// Multiplicative (Fibonacci) hashing of integer ids, see [`IdMap`].
#[derive(Default, Clone, Copy)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_u64(&mut self, n: u64) {
        // 2^64 / golden ratio; the rotation brings the well-mixed high bits to where hashbrown looks.
        self.0 = (self.0 ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
}
