//! The packet cipher: ChaCha20-Poly1305 or AES-256-GCM by aws-lc-rs, in place, one call per packet (`docs/protocol.md` §2.3).
//!
//! A key is set up once per session and direction. It does not count: nonces are the record layer's business (`session::transport`).

use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use zeroize::Zeroizing;

use super::suite::Cipher;
use crate::proto::wire::data::{NONCE_LEN, TAG_LEN};

/// Sealing or opening failed: a wrong tag, or more bytes than the cipher can take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the packet is not authentic")]
pub struct NotAuthentic;

/// A key for one direction, set up. It lives on the cipher library's heap, which zeroes what it frees: moving this leaves no copy behind.
pub struct AeadKey {
    key: LessSafeKey,
    cipher: Cipher,
}

impl AeadKey {
    /// Sets `key` up for `cipher`.
    pub fn new(cipher: Cipher, key: &Zeroizing<[u8; 32]>) -> Self {
        let algorithm = match cipher {
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            Cipher::Aes256Gcm => &aead::AES_256_GCM,
        };
        let unbound = UnboundKey::new(algorithm, key.as_slice()).expect("both ciphers take 32-byte keys");
        Self { key: LessSafeKey::new(unbound), cipher }
    }

    /// Which cipher.
    pub const fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Seals `text` in place; the tag comes back. A nonce must never come twice.
    ///
    /// # Errors
    /// [`NotAuthentic`] when the text is longer than the cipher can take.
    pub fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_LEN], NotAuthentic> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag =
            self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).map_err(|_| NotAuthentic)?;
        tag.as_ref().try_into().map_err(|_| NotAuthentic)
    }

    /// Opens `sealed` (ciphertext ‖ tag) in place; the plaintext comes back. After an error `sealed` holds nothing of use.
    ///
    /// # Errors
    /// [`NotAuthentic`].
    pub fn open<'a>(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], NotAuthentic> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        self.key.open_in_place(nonce, Aad::from(aad), sealed).map_err(|_| NotAuthentic)
    }
}

impl std::fmt::Debug for AeadKey {
    /// The cipher only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AeadKey({})", self.cipher.name())
    }
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::{AeadInPlace, KeyInit};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chacha_agrees_with_an_independent_implementation(
            key: [u8; 32], nonce: [u8; 12], aad in proptest::collection::vec(any::<u8>(), 0..40),
            text in proptest::collection::vec(any::<u8>(), 0..1500),
        ) {
            let ours = AeadKey::new(Cipher::ChaCha20Poly1305, &Zeroizing::new(key));
            let mut sealed = text.clone();
            let tag = ours.seal(nonce, &aad, &mut sealed).unwrap();

            let oracle = chacha20poly1305::ChaCha20Poly1305::new(&key.into());
            let mut expected = text.clone();
            let expected_tag = oracle.encrypt_in_place_detached(&nonce.into(), &aad, &mut expected).unwrap();
            prop_assert_eq!(&sealed, &expected);
            prop_assert_eq!(tag.as_slice(), expected_tag.as_slice());

            sealed.extend_from_slice(&tag);
            prop_assert_eq!(ours.open(nonce, &aad, &mut sealed).unwrap(), text.as_slice());
        }

        #[test]
        fn one_flipped_bit_anywhere_is_noticed(aes: bool, key: [u8; 32], length in 0usize..100, at in 0usize..1000) {
            let cipher = if aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
            let key = AeadKey::new(cipher, &Zeroizing::new(key));
            let (mut aad, mut text) = ([9u8; 13], vec![7u8; length]);
            let tag = key.seal([1; 12], &aad, &mut text).unwrap();
            text.extend_from_slice(&tag);
            let at = at % ((aad.len() + text.len()) * 8);
            match at / 8 {
                byte if byte < aad.len() => aad[byte] ^= 1 << (at % 8),
                byte => text[byte - aad.len()] ^= 1 << (at % 8),
            }
            prop_assert_eq!(key.open([1; 12], &aad, &mut text), Err(NotAuthentic));
        }
    }

    /// Test case 16 of the GCM specification (McGrew, Viega).
    #[test]
    fn aes_gives_the_published_vector() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
        };
        let key: [u8; 32] =
            hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308").try_into().unwrap();
        let mut text = hex(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        );
        let aad = hex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888").try_into().unwrap();
        let tag = AeadKey::new(Cipher::Aes256Gcm, &Zeroizing::new(key)).seal(nonce, &aad, &mut text).unwrap();
        assert_eq!(tag.as_slice(), hex("76fc6ece0f4e1768cddf8853bb2d551b"));
        assert_eq!(&text[..8], hex("522dc1f099567d07"));
    }
}
