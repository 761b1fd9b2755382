//! What the Noise crate gets from us: X25519 by aws-lc-rs and randomness from the caller's generator. Its own hash and handshake cipher stay.

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::proto::crypto::keys::{NodeKey, diffie_hellman};
use crate::proto::crypto::random::ErasingRandom;

/// Resolves primitives for one handshake.
pub(super) struct Resolver {
    seed: Zeroizing<[u8; 32]>,
}

impl Resolver {
    /// The handshake's ephemeral key is drawn from a generator of its own, seeded from `random`.
    pub(super) fn new(random: &mut ErasingRandom) -> Self {
        Self { seed: random.draw() }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SeededRandom(ErasingRandom::new(*self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519::default())),
            DHChoice::Curve448 => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct SeededRandom(ErasingRandom);

impl Random for SeededRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        for chunk in dest.chunks_mut(32) {
            let drawn = self.0.draw();
            chunk.iter_mut().zip(drawn.iter()).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }
}

#[derive(Default, Zeroize, ZeroizeOnDrop)]
struct X25519 {
    private: [u8; 32],
    #[zeroize(skip)]
    public: [u8; 32],
}

impl X25519 {
    fn take(&mut self, private: [u8; 32]) -> Result<(), snow::Error> {
        let key = NodeKey::from_private(private).map_err(|_| snow::Error::Dh)?;
        self.private = *key.private();
        self.public = *key.public().as_bytes();
        Ok(())
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        // Only ever called with a NodeKey's private half, which was valid before; anything else leaves a key that agrees with nobody.
        if let Ok(private) = <[u8; 32]>::try_from(private) {
            let _ = self.take(private);
        }
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut private = [0; 32];
        rng.try_fill_bytes(&mut private)?;
        let taken = self.take(private);
        private.zeroize();
        taken
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public = public.first_chunk().ok_or(snow::Error::Dh)?;
        let mut shared = diffie_hellman(&self.private, public).map_err(|_| snow::Error::Dh)?;
        let out = out.get_mut(..32).ok_or(snow::Error::Dh)?;
        out.copy_from_slice(&shared);
        shared.zeroize();
        Ok(())
    }
}
