//! Binary values inside JSON: standard base64 with padding.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Exactly `N` bytes as base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Base64<const N: usize>(pub [u8; N]);

/// An Ed25519 or X25519 public key.
pub type PublicKey = Base64<32>;
/// Of an ML-KEM-768 encapsulation key.
pub const KEM_PUBLIC_LEN: usize = 1184;
/// An ML-KEM-768 encapsulation key.
pub type KemPublicKey = Base64<KEM_PUBLIC_LEN>;
/// An Ed25519 signature.
pub type Signature = Base64<64>;

impl<const N: usize> Base64<N> {
    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// What is wrong: not base64, or not `N` bytes.
    pub fn from_text(text: &str) -> Result<Self, String> {
        // Checked before decoding: no allocation proportional to nonsense.
        if text.len() != N.div_ceil(3) * 4 {
            return Err(format!("expected base64 of {N} bytes, found {} characters", text.len()));
        }
        let bytes = STANDARD.decode(text).map_err(|error| format!("invalid base64: {error}"))?;
        <[u8; N]>::try_from(bytes)
            .map(Self)
            .map_err(|bytes| format!("expected {N} bytes, found {}", bytes.len()))
    }
}

impl<const N: usize> From<[u8; N]> for Base64<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> fmt::Display for Base64<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Base64<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Base64<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Base64<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_text(&text).map_err(de::Error::custom)
    }
}
