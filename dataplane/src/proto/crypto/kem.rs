//! ML-KEM-768 (FIPS 203) by aws-lc-rs: the key that a node publishes beside its node_key, and what two encapsulations make of a handshake
//! (`docs/protocol.md` §2.1, §2.2).
//!
//! aws-lc-rs draws the randomness of [`KemKey::generate`] and [`encapsulate`] from the cipher library's own generator and has no way to pass it in;
//! all else here follows from its arguments. Who needs runs to repeat byte for byte gives the handshake encapsulations of its own
//! ([`Encapsulation`]).

use std::sync::Arc;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use zeroize::Zeroizing;

use super::keys::KeyError;
use crate::proto::wire::control::{KEM_PUBLIC_LEN, KemPublicKey};

/// Of an encapsulation.
pub const KEM_CIPHERTEXT_LEN: usize = 1088;
/// Of a private key in the form of FIPS 203, `dk_pke ‖ ek ‖ H(ek) ‖ z`: what the key file holds.
pub const KEM_PRIVATE_LEN: usize = 2400;
/// Where the public half stands in it.
const PUBLIC_AT: usize = 1152;
/// Salt of the key derivation.
const LABEL: &[u8] = b"edgelink-session-pq-v1";
const NAME: &str = "ML-KEM-768";

/// What both ends know after an encapsulation.
pub type KemSecret = Zeroizing<[u8; 32]>;

/// A ciphertext for a peer, and the secret that it carries. Without `Debug`: it has nothing to show.
pub struct Encapsulation {
    /// For the peer.
    pub ciphertext: Box<[u8; KEM_CIPHERTEXT_LEN]>,
    /// For both.
    pub secret: KemSecret,
}

/// A private key. Clones share it; the cipher library zeroes it when the last one goes.
#[derive(Clone)]
pub struct KemKey {
    key: Arc<DecapsulationKey>,
    public: Box<KemPublicKey>,
}

impl KemKey {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyError::Private`] when the cipher library has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let key = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| KeyError::Private(NAME))?;
        let public = key.encapsulation_key().and_then(|public| public.key_bytes());
        let public = public.map_err(|_| KeyError::Private(NAME))?;
        Ok(Self { key: Arc::new(key), public: boxed(public.as_ref()).ok_or(KeyError::Private(NAME))? })
    }

    /// From what [`KemKey::private`] gave. A damaged key is found here: what is encapsulated to its public half has to come out again.
    ///
    /// # Errors
    /// [`KeyError::Private`].
    pub fn from_private(private: &[u8]) -> Result<Self, KeyError> {
        let key = DecapsulationKey::new(&ML_KEM_768, private).map_err(|_| KeyError::Private(NAME))?;
        let public = private.get(PUBLIC_AT..PUBLIC_AT + KEM_PUBLIC_LEN).and_then(boxed);
        let key = Self { key: Arc::new(key), public: public.ok_or(KeyError::Private(NAME))? };
        let tried = encapsulate(&key.public)?;
        match key.decapsulate(&tried.ciphertext) {
            Ok(secret) if *secret == *tried.secret => Ok(key),
            _ => Err(KeyError::Private(NAME)),
        }
    }

    /// All [`KEM_PRIVATE_LEN`] bytes, for the key file only.
    ///
    /// # Errors
    /// [`KeyError::Private`] when the cipher library does not give them.
    pub fn private(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let bytes = self.key.key_bytes().map_err(|_| KeyError::Private(NAME))?;
        Ok(Zeroizing::new(bytes.as_ref().to_vec()))
    }

    /// The public half.
    pub const fn public(&self) -> &KemPublicKey {
        &self.public
    }

    /// The secret in a ciphertext. One that nobody made for this key gives a secret that nobody knows (FIPS 203 §6.3): the handshake fails later.
    ///
    /// # Errors
    /// [`KeyError::Private`] when the key is damaged.
    pub fn decapsulate(&self, ciphertext: &[u8; KEM_CIPHERTEXT_LEN]) -> Result<KemSecret, KeyError> {
        let secret = self.key.decapsulate(Ciphertext::from(ciphertext.as_slice()));
        secret.ok().and_then(|secret| secret_of(secret.as_ref())).ok_or(KeyError::Private(NAME))
    }
}

impl std::fmt::Debug for KemKey {
    /// Nothing of it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KemKey")
    }
}

/// Makes a secret for the owner of `public`.
///
/// # Errors
/// [`KeyError::Public`] for bytes that are no encapsulation key (FIPS 203 §7.2).
pub fn encapsulate(public: &KemPublicKey) -> Result<Encapsulation, KeyError> {
    let key = EncapsulationKey::new(&ML_KEM_768, public.as_bytes()).map_err(|_| KeyError::Public(NAME))?;
    let (ciphertext, secret) = key.encapsulate().map_err(|_| KeyError::Public(NAME))?;
    let ciphertext = ciphertext.as_ref().to_vec().into_boxed_slice().try_into().ok();
    let parts = ciphertext.zip(secret_of(secret.as_ref()));
    parts.map(|(ciphertext, secret)| Encapsulation { ciphertext, secret }).ok_or(KeyError::Public(NAME))
}

/// The psk of a handshake: of the secret for the responder and the one for the initiator, bound to both ciphertexts.
pub(crate) fn combine(
    to_responder: &KemSecret,
    to_initiator: &KemSecret,
    ciphertexts: [&[u8; KEM_CIPHERTEXT_LEN]; 2],
) -> KemSecret {
    let mut both = Zeroizing::new([0; 64]);
    both[..32].copy_from_slice(to_responder.as_slice());
    both[32..].copy_from_slice(to_initiator.as_slice());
    let info = ciphertexts.map(<[u8; KEM_CIPHERTEXT_LEN]>::as_slice);
    let mut psk = Zeroizing::new([0; 32]);
    let prk = Salt::new(HKDF_SHA256, LABEL).extract(both.as_slice());
    prk.expand(&info, PskLength)
        .and_then(|okm| okm.fill(psk.as_mut_slice()))
        .expect("HKDF-SHA256 gives 32 bytes of anything");
    psk
}

struct PskLength;

impl KeyType for PskLength {
    fn len(&self) -> usize {
        32
    }
}

fn boxed(bytes: &[u8]) -> Option<Box<KemPublicKey>> {
    <[u8; KEM_PUBLIC_LEN]>::try_from(bytes).ok().map(|bytes| Box::new(bytes.into()))
}

fn secret_of(bytes: &[u8]) -> Option<KemSecret> {
    let mut secret = Zeroizing::new([0; 32]);
    (bytes.len() == secret.len()).then(|| {
        secret.copy_from_slice(bytes);
        secret
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_know_the_secret_also_after_the_key_was_stored() {
        let key = KemKey::generate().unwrap();
        let stored = key.private().unwrap();
        assert_eq!(stored.len(), KEM_PRIVATE_LEN);
        let read = KemKey::from_private(&stored).unwrap();
        assert_eq!(read.public(), key.public());
        let made = encapsulate(key.public()).unwrap();
        assert_eq!(*read.decapsulate(&made.ciphertext).unwrap(), *made.secret);
        assert_ne!(*encapsulate(key.public()).unwrap().secret, *made.secret);
    }

    #[test]
    fn damaged_keys_and_what_is_no_key_are_refused() {
        let key = KemKey::generate().unwrap();
        let stored = key.private().unwrap();
        for at in [0, PUBLIC_AT, PUBLIC_AT + KEM_PUBLIC_LEN, 1151] {
            let mut damaged = stored.to_vec();
            damaged[at] ^= 1;
            assert_eq!(KemKey::from_private(&damaged).err(), Some(KeyError::Private(NAME)), "byte {at}");
        }
        assert!(KemKey::from_private(&stored[1..]).is_err());
        let above_the_modulus = KemPublicKey::from([0xff; KEM_PUBLIC_LEN]);
        assert_eq!(encapsulate(&above_the_modulus).err(), Some(KeyError::Public(NAME)));
    }

    #[test]
    fn an_altered_ciphertext_gives_another_secret_and_no_error() {
        let key = KemKey::generate().unwrap();
        let mut made = encapsulate(key.public()).unwrap();
        made.ciphertext[7] ^= 1;
        assert_ne!(*key.decapsulate(&made.ciphertext).unwrap(), *made.secret);
    }

    #[test]
    fn the_psk_depends_on_each_secret_and_each_ciphertext() {
        let (a, b) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
        let (c, d) = ([3; KEM_CIPHERTEXT_LEN], [4; KEM_CIPHERTEXT_LEN]);
        let psks = [
            combine(&a, &b, [&c, &d]),
            combine(&b, &a, [&c, &d]),
            combine(&a, &b, [&d, &c]),
            combine(&a, &a, [&c, &d]),
            combine(&a, &b, [&c, &c]),
        ];
        assert_eq!(combine(&a, &b, [&c, &d]), psks[0]);
        assert!(psks.iter().enumerate().all(|(n, psk)| psks[..n].iter().all(|other| other != psk)));
    }
}
