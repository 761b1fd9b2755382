//! The protocol core: `docs/protocol.md` as pure state machines and codecs.
//!
//! No I/O, no clock, no global randomness, no unsafe code: `clippy.toml` lists what must not be reached for, and
//! `cargo check -p meshdp --no-default-features` builds this alone.

pub mod crypto;
pub mod dial;
pub mod drop_reason;
pub mod error;
pub mod id;
pub mod latency;
pub mod node;
pub mod path;
pub mod relay;
pub mod routing;
pub mod session;
pub mod time;
pub mod token;
pub mod wire;
