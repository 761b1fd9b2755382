//! Where connections come from, and what one address may have: places, new connections a second, bytes and frames.
//!
//! An address is an IPv4 address or an IPv6 /64, which is what one subscriber has. It is remembered while it has connections, and afterwards until its
//! buckets are full again: whoever hangs up and comes back finds them as they were.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::Limits;
use super::rate::{Meter, TokenBucket};
use super::worker::Refusal;
use crate::proto::time::Instant;

/// Addresses without connections are looked through when there are that many of them and as many as there were after the last look.
const MIN_SWEEP: usize = 1024;

/// One address, for as long as one of its connections is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AddressId(u32);

/// What is known of one address.
#[derive(Debug)]
pub(super) struct Address {
    key: IpAddr,
    connections: usize,
    unauthenticated: usize,
    arrivals: TokenBucket,
    /// What its nodes send.
    pub(super) up: Meter,
    /// What they are sent.
    pub(super) down: Meter,
    /// When it was last told that it exceeds a limit.
    pub(super) told: Option<Instant>,
}

/// All addresses of one worker.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    places: Vec<Option<Address>>,
    free: Vec<u32>,
    by_key: BTreeMap<IpAddr, u32>,
    sweep_at: usize,
}

impl Addresses {
    /// A connection from `address`, not authenticated.
    ///
    /// # Errors
    /// Which of its limits is reached.
    pub(super) fn arrive(
        &mut self,
        address: IpAddr,
        limits: &Limits,
        now: Instant,
    ) -> Result<AddressId, Refusal> {
        self.sweep(now);
        let key = subscriber(address);
        let index = match self.by_key.get(&key) {
            Some(&index) => index,
            None => self.insert(key, limits),
        };
        let Some(place) = self.places.get_mut(index as usize).and_then(Option::as_mut) else {
            return Err(Refusal::Address);
        };
        let refusal = if place.unauthenticated >= limits.max_unauthenticated_per_address {
            Some(Refusal::Address)
        } else if place.connections >= limits.max_connections_per_address {
            Some(Refusal::AddressConnections)
        } else if !limits.arrivals.allow(&mut place.arrivals, now) {
            Some(Refusal::AddressRate)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.forget_if_idle(index);
            return Err(refusal);
        }
        place.connections += 1;
        place.unauthenticated += 1;
        Ok(AddressId(index))
    }

    /// One of its connections has authenticated itself (or is no longer).
    pub(super) fn authenticated(&mut self, id: AddressId, is: bool) {
        if let Some(place) = self.find(id) {
            let count = &mut place.unauthenticated;
            *count = if is { count.saturating_sub(1) } else { *count + 1 };
        }
    }

    /// One of its connections has ended.
    pub(super) fn leave(&mut self, id: AddressId, was_authenticated: bool) {
        if !was_authenticated {
            self.authenticated(id, true);
        }
        if let Some(place) = self.find(id) {
            place.connections = place.connections.saturating_sub(1);
            self.forget_if_idle(id.0);
        }
    }

    pub(super) fn find(&mut self, id: AddressId) -> Option<&mut Address> {
        self.places.get_mut(id.0 as usize)?.as_mut()
    }

    /// New limits, from now on.
    pub(super) fn set_limits(&mut self, limits: &Limits) {
        for place in self.places.iter_mut().flatten() {
            place.up.set(limits.rates.address_up);
            place.down.set(limits.rates.address_down);
        }
    }

    fn insert(&mut self, key: IpAddr, limits: &Limits) -> u32 {
        let mut place = Address {
            key,
            connections: 0,
            unauthenticated: 0,
            arrivals: TokenBucket::default(),
            up: Meter::default(),
            down: Meter::default(),
            told: None,
        };
        place.up.set(limits.rates.address_up);
        place.down.set(limits.rates.address_down);
        let index = if let Some(index) = self.free.pop() {
            self.places[index as usize] = Some(place);
            index
        } else {
            self.places.push(Some(place));
            self.places.len() as u32 - 1
        };
        self.by_key.insert(key, index);
        index
    }

    /// When there was never a limit, there is nothing to remember.
    fn forget_if_idle(&mut self, index: u32) {
        let idle = |place: &Address| place.connections == 0 && place.is_full(Instant::ZERO);
        if self.places.get(index as usize).and_then(Option::as_ref).is_some_and(idle) {
            self.forget(index);
        }
    }

    fn forget(&mut self, index: u32) {
        if let Some(place) = self.places.get_mut(index as usize).and_then(Option::take) {
            self.by_key.remove(&place.key);
            self.free.push(index);
        }
    }

    fn sweep(&mut self, now: Instant) {
        if self.by_key.len() < self.sweep_at.max(MIN_SWEEP) {
            return;
        }
        let idle = |place: &Address| place.connections == 0 && place.is_full(now);
        for index in 0..self.places.len() {
            if self.places[index].as_ref().is_some_and(idle) {
                self.forget(index as u32);
            }
        }
        self.sweep_at = 2 * self.by_key.len();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

impl Address {
    fn is_full(&self, now: Instant) -> bool {
        self.arrivals.is_full(now) && self.up.is_full(now) && self.down.is_full(now)
    }
}

/// How many connections an address may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// A second; 0: any number.
    pub per_s: u32,
    /// At once, when there were none before.
    pub burst: u32,
}

impl Arrivals {
    fn allow(self, bucket: &mut TokenBucket, now: Instant) -> bool {
        let burst = Duration::from_secs(self.burst.into()) / self.per_s.max(1);
        self.per_s == 0 || bucket.take(1, self.per_s.into(), burst, now)
    }
}

/// An IPv4 address, or the /64 of an IPv6 one.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos((1000 + ms) * 1_000_000)
    }

    fn v4(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn places_are_counted_by_subscriber_and_given_back() {
        let limits = Limits { max_connections_per_address: 2, ..Limits::default() };
        let mut addresses = Addresses::default();
        let [one, same, other] =
            ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"].map(|a| a.parse().unwrap());
        let first = addresses.arrive(one, &limits, at(0)).unwrap();
        let second = addresses.arrive(same, &limits, at(0)).unwrap();
        assert_eq!(addresses.arrive(one, &limits, at(0)), Err(Refusal::AddressConnections));
        assert!(addresses.arrive(other, &limits, at(0)).is_ok());
        addresses.authenticated(first, true);
        addresses.leave(first, true);
        assert!(addresses.arrive(same, &limits, at(0)).is_ok());
        addresses.leave(second, false);
        addresses.leave(second, false);
        assert_eq!(addresses.len(), 1, "who has nothing open is forgotten");
    }

    #[test]
    fn hanging_up_does_not_refill_the_bucket_and_memory_stays_bounded() {
        let limits = Limits { arrivals: Arrivals { per_s: 10, burst: 5 }, ..Limits::default() };
        let mut addresses = Addresses::default();
        let mut come_and_go = |address, ms| {
            let id = addresses.arrive(address, &limits, at(ms))?;
            addresses.leave(id, false);
            Ok(addresses.len())
        };
        assert_eq!((0..20).filter(|_| come_and_go(v4(1), 0).is_ok()).count(), 5);
        assert_eq!(come_and_go(v4(1), 99), Err(Refusal::AddressRate));
        assert!(come_and_go(v4(1), 100).is_ok());
        let most = (0..100_000).map(|n| come_and_go(v4(n), u64::from(n)).unwrap_or(0)).max();
        assert!(most.unwrap() < 4 * MIN_SWEEP, "{most:?}");
    }
}
