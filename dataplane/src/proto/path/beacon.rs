//! LAN discovery: a node tells its network where it is, in a way that only its peers understand (`docs/protocol.md` §8.7).
//!
//! ```text
//! version (1) = 1 ‖ nonce (8) ‖ tag (8) ‖ time (8) ‖ address: family (1) ‖ port (2) ‖ ip (4 or 16) ‖ signature (64)
//! tag       = first 8 bytes of SHA-256("edgelink-lan-v1" ‖ machine_key ‖ nonce)
//! signature = Ed25519 by machine_key over "edgelink-lan-v1" ‖ everything before it
//! ```
//!
//! Who is in a network with the sender knows its machine_key from the controller, and finds it by trying the tag: one block of SHA-256 for each peer. To
//! anyone else an announcement is random bytes and an address that the sender shows with every packet anyway: no name, no id, nothing that
//! stays the same. Nobody else can make one, and a copy says nothing that was not true when it was signed. What is learned is one more address to
//! probe, under the session's keys.
//!
//! [`Announcement`] is the format, [`Schedule`] says when to announce, [`Budget`] how much of what comes is looked at. The shell sends and receives.

use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use super::message::{read_address, write_address};
use crate::proto::crypto::keys::{MachineKey, verify};
use crate::proto::time::{Instant, UnixTime};
use crate::proto::wire::control::{PublicKey, Signature};

/// UDP port of announcements: 0x454C, "EL".
pub const PORT: u16 = 17_740;
/// IPv4 group, of the administratively scoped block (RFC 2365).
pub const GROUP4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(239, 255, 69, 76);
/// IPv6 group: link-local, and not assigned for good (RFC 4291 §2.7, flag T).
pub const GROUP6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0, 0x454c);
/// No announcement is longer.
pub const MAX_LEN: usize = 1 + NONCE_LEN + TAG_LEN + 8 + 19 + SIGNATURE_LEN;

const VERSION: u8 = 1;
const NONCE_LEN: usize = 8;
const TAG_LEN: usize = 8;
const SIGNATURE_LEN: usize = 64;
const LABEL: &[u8] = b"edgelink-lan-v1";

/// After a start or a change of the network, announcements follow each other at these distances: single ones get lost.
const FIRST: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];
/// From then on.
const EVERY: Duration = Duration::from_mins(1);
/// Who hears a newcomer answers within this, by chance, so that not all speak at once.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// However many newcomers there are, between two announcements.
const LEAST: Duration = Duration::from_secs(1);

/// One announcement, as it came in.
#[derive(Clone, Copy, Debug)]
pub struct Announcement<'a> {
    /// Makes the tag another one each time.
    nonce: &'a [u8; NONCE_LEN],
    tag: &'a [u8; TAG_LEN],
    /// The sender's clock; only the order of one sender's announcements counts.
    pub time: UnixTime,
    /// Where the sender may be reached by UDP.
    pub address: SocketAddr,
    signed: &'a [u8],
    signature: &'a [u8; SIGNATURE_LEN],
}

impl<'a> Announcement<'a> {
    /// Reads one. `None`: not of this version, or malformed.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (signed, signature) = datagram.split_last_chunk::<SIGNATURE_LEN>()?;
        let (&version, rest) = signed.split_first()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let (address, rest) = read_address(rest)?;
        let time = UnixTime::from_micros(u64::from_be_bytes(*time));
        (version == VERSION && rest.is_empty()).then_some(Self {
            nonce,
            tag,
            time,
            address,
            signed,
            signature,
        })
    }

    /// Whether its tag was made with `machine_key`. Cheap; whoever knows the key can make one.
    pub fn names(&self, machine_key: &PublicKey) -> bool {
        tag_of(machine_key, *self.nonce) == *self.tag
    }

    /// Whether the owner of `machine_key` has signed it.
    pub fn is_signed_by(&self, machine_key: &PublicKey) -> bool {
        let message = [LABEL, self.signed].concat();
        verify(machine_key, &message, &Signature::from(*self.signature)).is_ok()
    }
}

/// An announcement of `address`. `nonce` is random.
pub fn announce(
    machine: &MachineKey,
    nonce: [u8; NONCE_LEN],
    time: UnixTime,
    address: SocketAddr,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(LABEL.len() + MAX_LEN);
    out.extend_from_slice(LABEL);
    out.push(VERSION);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&tag_of(&machine.public(), nonce));
    out.extend_from_slice(&time.as_micros().to_be_bytes());
    write_address(address, &mut out);
    let signature = machine.sign(&out);
    out.extend_from_slice(signature.as_bytes());
    out.split_off(LABEL.len())
}

/// Label, key and nonce are 55 bytes: with its padding one block.
fn tag_of(machine_key: &PublicKey, nonce: [u8; NONCE_LEN]) -> [u8; TAG_LEN] {
    let mut input = [0; LABEL.len() + 32 + NONCE_LEN];
    input[..LABEL.len()].copy_from_slice(LABEL);
    input[LABEL.len()..LABEL.len() + 32].copy_from_slice(machine_key.as_bytes());
    input[LABEL.len() + 32..].copy_from_slice(&nonce);
    let hash = digest(&SHA256, &input);
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(&hash.as_ref()[..TAG_LEN]);
    tag
}

/// When to announce.
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedule {
    /// How many of the first ones are out; `None`: announcing is off.
    first: Option<usize>,
    next: Instant,
    last: Option<Instant>,
}

impl Schedule {
    /// Begins, or begins anew: this node is on another network.
    pub const fn start(&mut self, now: Instant) {
        self.first = Some(0);
        self.next = now;
    }

    /// No more.
    pub const fn stop(&mut self) {
        self.first = None;
    }

    /// Whether announcing is on.
    pub const fn is_on(&self) -> bool {
        self.first.is_some()
    }

    /// A peer is there that was not: it wants to know of this node. `chance` is random.
    pub fn answer(&mut self, chance: u32, now: Instant) {
        let wait = ANSWER_WITHIN.mul_f64(f64::from(chance) / f64::from(u32::MAX));
        let earliest = self.last.map_or(now, |last| last + LEAST);
        self.next = self.next.min((now + wait).max(earliest));
    }

    /// Whether it is time; the next one is scheduled then.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let Some(first) = self.first.filter(|_| self.next <= now) else { return false };
        let pause = match (FIRST.get(first), FIRST.get(first + 1)) {
            (Some(this), Some(following)) => following.saturating_sub(*this),
            _ => EVERY,
        };
        self.first = Some(first.saturating_add(1));
        self.last = Some(now);
        self.next = now + pause;
        true
    }

    /// When [`Schedule::take_due`] is true next.
    pub fn next(&self) -> Option<Instant> {
        self.first.map(|_| self.next)
    }
}

/// How much is done for strangers: units that come back with time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    burst: u32,
    per_second: u32,
    left: u32,
    since: Option<Instant>,
}

impl Budget {
    /// So many at once, and so many more each second.
    pub const fn new(burst: u32, per_second: u32) -> Self {
        Self { burst, per_second, left: burst, since: None }
    }

    /// Takes `units`, if there are that many.
    pub fn take(&mut self, units: u32, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let nanos = now.saturating_since(since).as_nanos();
        let earned = nanos.saturating_mul(u128::from(self.per_second)) / 1_000_000_000;
        if earned > 0 {
            self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(self.burst);
            self.since = Some(now);
        }
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(seed: u8) -> MachineKey {
        MachineKey::from_seed(&[seed; 32]).unwrap()
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn peers_recognise_an_announcement_and_nobody_else_does() {
        let (sender, stranger) = (machine(1), machine(2));
        for address in ["192.168.1.7:41641", "[2001:db8::7]:41641"] {
            let address: SocketAddr = address.parse().unwrap();
            let datagram = announce(&sender, [9; 8], UnixTime::from_secs(7), address);
            assert!(datagram.len() <= MAX_LEN);
            let read = Announcement::parse(&datagram).unwrap();
            assert_eq!((read.address, read.time), (address, UnixTime::from_secs(7)));
            assert!(read.names(&sender.public()) && read.is_signed_by(&sender.public()));
            assert!(!read.names(&stranger.public()) && !read.is_signed_by(&stranger.public()));
        }
    }

    #[test]
    fn nothing_in_two_announcements_is_the_same_but_the_address_and_the_version() {
        let address: SocketAddr = "192.168.1.7:41641".parse().unwrap();
        let one = announce(&machine(1), [1; 8], UnixTime::from_secs(7), address);
        let other = announce(&machine(1), [2; 8], UnixTime::from_secs(7), address);
        assert_ne!(one[9..17], other[9..17], "the tag");
        assert_ne!(one[one.len() - 64..], other[other.len() - 64..], "the signature");
    }

    #[test]
    fn a_changed_byte_or_length_is_noticed() {
        let sender = machine(1);
        let datagram =
            announce(&sender, [9; 8], UnixTime::from_secs(7), "192.168.1.7:41641".parse().unwrap());
        for at in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[at] ^= 0x40;
            let believed = Announcement::parse(&changed)
                .is_some_and(|read| read.names(&sender.public()) && read.is_signed_by(&sender.public()));
            assert!(!believed, "byte {at}");
        }
        for length in 0..datagram.len() {
            assert!(Announcement::parse(&datagram[..length]).is_none(), "{length} bytes");
        }
        assert!(Announcement::parse(&[datagram.as_slice(), &[0]].concat()).is_none());
    }

    #[test]
    fn announcements_are_frequent_at_first_and_answers_come_soon_but_never_often() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(), None);
        schedule.start(at(0));
        let mut sent = Vec::new();
        while let Some(next) = schedule.next().filter(|next| *next < at(130_000)) {
            assert!(schedule.take_due(next));
            sent.push(next.as_nanos() / 1_000_000);
        }
        assert_eq!(sent, [0, 1000, 3000, 63_000, 123_000]);
        schedule.answer(u32::MAX / 2, at(150_000));
        assert!(!schedule.take_due(at(150_100)));
        assert!(schedule.take_due(at(150_500)));
        schedule.answer(0, at(150_600));
        assert!(!schedule.take_due(at(151_400)), "a second lies between two");
        assert!(schedule.take_due(at(151_500)));
        schedule.stop();
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn a_budget_runs_out_and_comes_back() {
        let mut budget = Budget::new(10, 2);
        assert!(budget.take(10, at(0)) && !budget.take(1, at(0)));
        assert!(!budget.take(1, at(499)) && budget.take(1, at(500)));
        assert!(!budget.take(11, at(1_000_000)), "never more than the burst");
        assert!(budget.take(10, at(1_000_000)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(0u8.., 0..200)) {
            if let Some(read) = Announcement::parse(&bytes) {
                proptest::prop_assert!(!read.is_signed_by(&machine(1).public()));
            }
        }
    }
}
