//! Datagrams that are built one by one and sent together.
//!
//! Each is written in place behind the last one for its destination (reserve, seal there, commit). What lies together is what one send takes:
//! one length, the last may be shorter ([`Batch`]). A datagram that fits no more begins a bundle of its own, so that each destination's go out in
//! the order they came. Nothing stays longer than until [`Bundles::flush`], which belongs after each super-packet and at the end of every
//! round: the bytes are still in the cache then. Memory is kept, and the first bundle is used first.

use std::net::{IpAddr, SocketAddr};

use super::{Batch, MAX_PAYLOAD};

/// The most datagrams in one: what Linux takes apart before 6.9 (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 64;
/// Bundles that may wait, 4 MiB; one more where a datagram turned out to be longer than those before it.
const MAX_BUNDLES: usize = 64;

/// See the module's doc.
#[derive(Debug, Default)]
pub struct Bundles {
    /// The first `used` wait, in the order they were begun.
    kept: Vec<Bundle>,
    used: usize,
    /// Where the last reservation is.
    open: Option<usize>,
}

/// There is no room before [`Bundles::flush`], or the datagram is longer than UDP carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too much waits to be sent, or the datagram is too long")]
pub struct BundlesFull;

#[derive(Debug)]
struct Bundle {
    to: SocketAddr,
    from: Option<IpAddr>,
    /// Length of the first datagram; zero while there is none.
    segment: usize,
    count: usize,
    /// Bytes that count; behind them is room.
    len: usize,
    /// A shorter one was the last.
    ended: bool,
    bytes: Vec<u8>,
}

impl Bundles {
    /// Room for a datagram of at most `len` bytes, to be written in place; [`Bundles::commit`] makes it count. What is not committed was never there.
    ///
    /// # Errors
    /// See [`BundlesFull`].
    pub fn reserve(
        &mut self,
        to: SocketAddr,
        from: Option<IpAddr>,
        len: usize,
    ) -> Result<&mut [u8], BundlesFull> {
        if len > MAX_PAYLOAD || self.used > MAX_BUNDLES {
            return Err(BundlesFull);
        }
        let waiting = &self.kept[..self.used];
        let last = waiting.iter().rposition(|bundle| bundle.to == to && bundle.from == from);
        let place = match last.filter(|&n| waiting[n].takes(len)) {
            Some(place) => place,
            None if self.used == MAX_BUNDLES => return Err(BundlesFull),
            None => self.begin(to, from),
        };
        self.open = Some(place);
        Ok(self.kept[place].room(len))
    }

    /// Counts the first `len` bytes of the last [`Bundles::reserve`] as a datagram; none of nothing.
    pub fn commit(&mut self, len: usize) {
        let Some(place) = self.open.take() else { return };
        let bundle = &mut self.kept[place];
        let len = len.min(bundle.bytes.len() - bundle.len);
        if bundle.count > 0 && len > bundle.segment {
            self.move_out(place, len);
        } else if len > 0 {
            bundle.add(len);
        }
    }

    /// Hands out everything that waits, in order.
    pub fn flush(&mut self, mut send: impl FnMut(Batch<'_>)) {
        for bundle in self.kept.iter_mut().take(self.used) {
            let Bundle { to, from, segment, len, .. } = *bundle;
            if len > 0 {
                send(Batch { to, from, segment, bytes: &bundle.bytes[..len] });
            }
        }
        (self.used, self.open) = (0, None);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.kept[..self.used].iter().all(|bundle| bundle.len == 0)
    }

    /// A new bundle behind all others.
    fn begin(&mut self, to: SocketAddr, from: Option<IpAddr>) -> usize {
        let place = self.used;
        if place == self.kept.len() {
            let bytes = Vec::with_capacity(MAX_PAYLOAD);
            self.kept.push(Bundle { to, from, segment: 0, count: 0, len: 0, ended: false, bytes });
        }
        let bundle = &mut self.kept[place];
        (bundle.to, bundle.from, bundle.segment, bundle.count) = (to, from, 0, 0);
        (bundle.len, bundle.ended) = (0, false);
        self.used += 1;
        place
    }

    /// The datagram behind the end of bundle `place` is longer than those in it: it begins another one, for which
    /// there always is room.
    fn move_out(&mut self, place: usize, len: usize) {
        let Bundle { to, from, .. } = self.kept[place];
        let next = self.begin(to, from);
        let (before, behind) = self.kept.split_at_mut(next);
        let start = before[place].len;
        behind[0].room(len).copy_from_slice(&before[place].bytes[start..start + len]);
        behind[0].add(len);
    }
}

impl Bundle {
    /// Whether a datagram of up to `len` bytes may follow here. One that turns out to be longer than the others moves.
    fn takes(&self, len: usize) -> bool {
        !self.ended && self.count < MAX_SEGMENTS && self.len + len <= MAX_PAYLOAD
    }

    fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.len + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.len..end]
    }

    fn add(&mut self, len: usize) {
        if self.count == 0 {
            self.segment = len;
        }
        self.ended = len < self.segment;
        self.count += 1;
        self.len += len;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> SocketAddr {
        SocketAddr::new([192, 0, 2, n].into(), 4000)
    }

    fn push(bundles: &mut Bundles, to: u8, datagram: &[u8]) -> Result<(), BundlesFull> {
        bundles.reserve(peer(to), None, datagram.len() + 50)?[..datagram.len()].copy_from_slice(datagram);
        bundles.commit(datagram.len());
        Ok(())
    }

    fn sent(bundles: &mut Bundles) -> Vec<(SocketAddr, usize, Vec<u8>)> {
        let mut sent = Vec::new();
        bundles.flush(|batch| sent.push((batch.to, batch.segment, batch.bytes.to_vec())));
        assert!(bundles.is_empty());
        sent
    }

    #[test]
    fn datagrams_of_one_length_go_together_and_a_shorter_one_ends_it() {
        let mut bundles = Bundles::default();
        for datagram in [&b"aaaa"[..], b"bbbb", b"cc", b"dddd", b"eeeee"] {
            push(&mut bundles, 1, datagram).unwrap();
        }
        push(&mut bundles, 2, b"other").unwrap();
        let expected = [
            (peer(1), 4, b"aaaabbbbcc".to_vec()),
            (peer(1), 4, b"dddd".to_vec()),
            (peer(1), 5, b"eeeee".to_vec()),
            (peer(2), 5, b"other".to_vec()),
        ];
        assert_eq!(sent(&mut bundles), expected);
        assert!(sent(&mut bundles).is_empty());
    }

    #[test]
    fn another_address_of_ours_is_another_batch() {
        let mut bundles = Bundles::default();
        for from in [None, Some([10, 0, 0, 1].into()), None] {
            bundles.reserve(peer(1), from, 3).unwrap().copy_from_slice(b"abc");
            bundles.commit(3);
        }
        let mut froms = Vec::new();
        bundles.flush(|batch| froms.push((batch.from, batch.bytes.len())));
        assert_eq!(froms, [(None, 6), (Some([10, 0, 0, 1].into()), 3)]);
    }

    #[test]
    fn a_reservation_that_is_not_committed_was_never_there() {
        let mut bundles = Bundles::default();
        bundles.reserve(peer(1), None, 1500).unwrap().fill(9);
        assert!(bundles.is_empty() && sent(&mut bundles).is_empty());
        bundles.reserve(peer(1), None, 1500).unwrap().fill(9);
        push(&mut bundles, 1, b"abc").unwrap();
        bundles.commit(100);
        assert_eq!(sent(&mut bundles), [(peer(1), 3, b"abc".to_vec())]);
    }

    #[test]
    fn what_waits_is_bounded_and_its_memory_is_kept() {
        let mut bundles = Bundles::default();
        for _ in 0..3 {
            let taken = (0..10_000).take_while(|_| push(&mut bundles, 1, &[1; 1400]).is_ok()).count();
            assert_eq!(taken, 64 * 46, "46 of 1400 bytes, and 50 that were reserved, in each");
            assert_eq!(sent(&mut bundles).len(), 64);
            assert!(bundles.kept.iter().all(|bundle| bundle.bytes.capacity() == MAX_PAYLOAD));
        }
        assert_eq!(bundles.reserve(peer(1), None, MAX_PAYLOAD + 1), Err(BundlesFull));
        assert!(bundles.reserve(peer(1), None, MAX_PAYLOAD).is_ok());
    }

    proptest! {
        #[test]
        fn every_datagram_goes_out_once_and_in_order(
            datagrams in proptest::collection::vec((0u8..4, prop_oneof![4 => Just(1400usize), 1 => 1usize..3000, 1 => Just(10usize)]), 0..300),
        ) {
            let mut bundles = Bundles::default();
            let (mut expected, mut got) = (BTreeMap::new(), BTreeMap::new());
            let mut collect = |batch: Batch<'_>| {
                let datagrams: Vec<Vec<u8>> = batch.bytes.chunks(batch.segment).map(<[u8]>::to_vec).collect();
                assert!(datagrams.len() <= MAX_SEGMENTS && batch.bytes.len() <= MAX_PAYLOAD);
                got.entry(batch.to).or_insert_with(Vec::new).extend(datagrams);
            };
            for (n, &(to, len)) in datagrams.iter().enumerate() {
                let datagram = vec![n as u8; len];
                if push(&mut bundles, to, &datagram).is_err() {
                    bundles.flush(&mut collect);
                    push(&mut bundles, to, &datagram).unwrap();
                }
                expected.entry(peer(to)).or_insert_with(Vec::new).push(datagram);
            }
            bundles.flush(&mut collect);
            prop_assert!(got == expected);
        }
    }
}
