//! Randomness for secrets, drawn from one seed and impossible to draw again.
//!
//! A plain generator whose state is read from memory gives away all that it ever put out, and with it every ephemeral key. This one replaces its
//! state by its own output at each draw (fast key erasure, Bernstein 2017): the past cannot be computed from the present.

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use zeroize::Zeroizing;

/// See the [module](self).
pub struct ErasingRandom {
    key: Zeroizing<[u8; 32]>,
}

impl ErasingRandom {
    /// From 32 random bytes.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: Zeroizing::new(seed) }
    }

    /// 32 bytes that nothing gives back once they are dropped.
    pub fn draw(&mut self) -> Zeroizing<[u8; 32]> {
        let mut generator = ChaCha20Rng::from_seed(*self.key);
        let mut drawn = Zeroizing::new([0; 32]);
        generator.fill_bytes(self.key.as_mut_slice());
        generator.fill_bytes(drawn.as_mut_slice());
        drawn
    }

    /// A generator for what is no secret: jitter, indices.
    pub fn generator(&mut self) -> ChaCha20Rng {
        ChaCha20Rng::from_seed(*self.draw())
    }
}

impl std::fmt::Debug for ErasingRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ErasingRandom")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_and_follow_from_the_seed_alone() {
        let draw = |seed: u8| {
            let mut random = ErasingRandom::new([seed; 32]);
            [(); 3].map(|()| *random.draw())
        };
        let [a, b, c] = draw(1);
        assert!(a != b && b != c && a != c);
        assert_eq!(draw(1), [a, b, c]);
        assert_ne!(draw(2), [a, b, c]);
    }

    #[test]
    fn the_state_after_a_draw_is_not_the_state_before() {
        let mut random = ErasingRandom::new([1; 32]);
        random.draw();
        assert_ne!(*random.key, [1; 32]);
    }
}
