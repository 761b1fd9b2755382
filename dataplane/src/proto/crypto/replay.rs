//! The window of packet counters (`docs/protocol.md` §2.3): each counter passes once, and none that lies 2048 or more behind the highest.
//!
//! A ring of bits as in RFC 6479: going forward clears whole words, so that nothing is ever shifted. [`ReplayWindow::check`] is asked before a packet is
//! opened, [`ReplayWindow::accept`] told after its tag has been verified: a forged counter moves nothing.

use crate::proto::drop_reason::DropReason;

/// How far behind the highest counter a packet may be: 2048 counters with the highest one.
pub const WINDOW: u64 = 2048;
/// Bits in the ring: the next power of two, so that the word being filled is never one that is still asked.
const RING_BITS: u64 = WINDOW * 2;
const WORDS: usize = (RING_BITS / 64) as usize;

/// Which counters were seen.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the highest counter accepted.
    next: u64,
    ring: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, ring: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Whether a packet with this counter may be opened.
    ///
    /// # Errors
    /// [`DropReason::Replayed`] or [`DropReason::TooOld`].
    pub const fn check(&self, counter: u64) -> Result<(), DropReason> {
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > WINDOW {
            return Err(DropReason::TooOld);
        }
        let (word, bit) = place(counter);
        if self.ring[word] & bit == 0 { Ok(()) } else { Err(DropReason::Replayed) }
    }

    /// Marks a counter whose packet was authentic.
    ///
    /// # Errors
    /// As [`ReplayWindow::check`]: nothing changes then.
    pub fn accept(&mut self, counter: u64) -> Result<(), DropReason> {
        self.check(counter)?;
        if counter >= self.next {
            self.clear_up_to(counter);
            self.next = counter.saturating_add(1);
        }
        let (word, bit) = place(counter);
        self.ring[word] |= bit;
        Ok(())
    }

    /// One more than the highest counter accepted.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Clears the words that lie after the highest counter, up to the one of `counter`.
    fn clear_up_to(&mut self, counter: u64) {
        let first = self.next.div_ceil(64);
        let last = counter / 64;
        if last >= first.saturating_add(WORDS as u64) {
            self.ring = [0; WORDS];
            return;
        }
        for word in first..=last {
            self.ring[word as usize % WORDS] = 0;
        }
    }
}

const fn place(counter: u64) -> (usize, u64) {
    ((counter / 64) as usize % WORDS, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Remembers everything.
    #[derive(Default)]
    struct Model(BTreeSet<u64>);

    impl Model {
        fn accept(&mut self, counter: u64) -> Result<(), DropReason> {
            match self.0.last().copied() {
                Some(highest) if counter < highest && highest - counter >= WINDOW => Err(DropReason::TooOld),
                _ if self.0.insert(counter) => Ok(()),
                _ => Err(DropReason::Replayed),
            }
        }
    }

    #[test]
    fn the_window_is_exactly_2048_counters() {
        let mut window = ReplayWindow::default();
        window.accept(5000).unwrap();
        assert_eq!(window.check(5000), Err(DropReason::Replayed));
        assert_eq!(window.check(5000 - 2047), Ok(()));
        assert_eq!(window.check(5000 - 2048), Err(DropReason::TooOld));
    }

    #[test]
    fn the_last_counters_of_all_do_not_wrap() {
        let mut window = ReplayWindow::default();
        window.accept(u64::MAX - 1).unwrap();
        assert_eq!(window.accept(u64::MAX - 1), Err(DropReason::Replayed));
        assert_eq!(window.accept(0), Err(DropReason::TooOld));
    }

    proptest! {
        #[test]
        fn agrees_with_a_model_that_remembers_everything(
            steps in proptest::collection::vec(prop_oneof![
                8 => (-40i64..40).boxed(), 3 => (-2100i64..2100).boxed(), 1 => (-5000i64..9000).boxed()], 1..400)
        ) {
            let (mut window, mut model, mut at) = (ReplayWindow::default(), Model::default(), 3000u64);
            for step in steps {
                at = at.saturating_add_signed(step);
                prop_assert_eq!(window.accept(at), model.accept(at), "counter {}", at);
            }
        }
    }
}
