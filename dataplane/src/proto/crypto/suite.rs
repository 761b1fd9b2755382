//! Which cipher a session uses: an offer in message 1 of the handshake, a choice in message 2 (`docs/protocol.md` §2.2).

use serde::Serialize;

/// A cipher for packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize)]
#[repr(u8)]
pub enum Cipher {
    /// RFC 8439. Every node can.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305 = 1,
    /// NIST SP 800-38D: a quarter of the cost where the CPU has the instructions.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm = 1 << 1,
}

impl Cipher {
    /// For people and status output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }
}

/// The ciphers that the initiator can do: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CipherOffer(u8);

/// Why a choice or an offer is not acceptable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cipher byte {0:#04x} is not acceptable")]
pub struct BadCipherByte(pub u8);

impl CipherOffer {
    /// What this machine can do; `aes`: its CPU has AES instructions.
    pub const fn new(aes: bool) -> Self {
        Self(Cipher::ChaCha20Poly1305 as u8 | if aes { Cipher::Aes256Gcm as u8 } else { 0 })
    }

    /// As it came: bits that a newer peer may have added are kept, and never chosen.
    ///
    /// # Errors
    /// An offer without ChaCha20-Poly1305, which every node must offer.
    pub const fn from_byte(byte: u8) -> Result<Self, BadCipherByte> {
        if byte & Cipher::ChaCha20Poly1305 as u8 == 0 { Err(BadCipherByte(byte)) } else { Ok(Self(byte)) }
    }

    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        self.0
    }

    /// The responder's choice: AES-256-GCM when both ends have the instructions.
    pub const fn choose(self, own: Self) -> Cipher {
        if self.0 & own.0 & Cipher::Aes256Gcm as u8 == 0 {
            Cipher::ChaCha20Poly1305
        } else {
            Cipher::Aes256Gcm
        }
    }

    /// Reads the responder's choice from this offer.
    ///
    /// # Errors
    /// Not exactly one cipher, or one that was not offered.
    pub const fn accept(self, choice: u8) -> Result<Cipher, BadCipherByte> {
        if choice & self.0 != choice {
            return Err(BadCipherByte(choice));
        }
        match choice {
            1 => Ok(Cipher::ChaCha20Poly1305),
            2 => Ok(Cipher::Aes256Gcm),
            _ => Err(BadCipherByte(choice)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_is_chosen_only_when_both_ends_have_it() {
        for (theirs, ours) in [(false, false), (false, true), (true, false), (true, true)] {
            let offer = CipherOffer::new(theirs);
            let choice = offer.choose(CipherOffer::new(ours));
            assert_eq!(choice == Cipher::Aes256Gcm, theirs && ours);
            assert_eq!(offer.accept(choice as u8), Ok(choice));
        }
    }

    #[test]
    fn a_choice_must_be_one_offered_cipher_and_every_offer_has_chacha() {
        let offer = CipherOffer::new(false);
        for choice in [0, 2, 3, 4, 255] {
            assert_eq!(offer.accept(choice), Err(BadCipherByte(choice)));
        }
        assert_eq!(CipherOffer::from_byte(2), Err(BadCipherByte(2)));
        let newer = CipherOffer::from_byte(0b1000_0001).unwrap();
        assert_eq!(newer.choose(CipherOffer::new(true)), Cipher::ChaCha20Poly1305);
    }
}
