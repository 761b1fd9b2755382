//! Sessions between two nodes (`docs/protocol.md` §2.2, §2.3).
//!
//! ```text
//! handshake::initiate ──► ExpectResponse ──read──► Session
//! handshake::respond  ──────────────────────────► Session   (sends only after a packet came under it)
//! Session: seal / open in place                             transport.rs
//! SessionSet: which session seals, which still open         registry.rs
//! ```
//!
//! `noise` lends the Noise crate our X25519 and our randomness, [`rekey`] holds the limits. When to start a handshake, and on which path its
//! messages travel, is the node's business.

pub mod handshake;
mod noise;
pub mod registry;
pub mod rekey;
pub mod transport;
