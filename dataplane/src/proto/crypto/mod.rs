//! Keys and ciphers of `docs/protocol.md` §2: identities in [`keys`], the post-quantum key in [`kem`], the packet cipher in [`aead`] and how both ends agree on it in [`suite`], the
//! window that refuses packets seen before in [`replay`], the seeds of ephemeral keys in [`random`].

pub mod aead;
pub mod kem;
pub mod keys;
pub mod random;
pub mod replay;
pub mod suite;
