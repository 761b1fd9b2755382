//! A node's data thread: one driver, one [`crate::proto::node::Node`], the TUN queue and a connection to every relay.
//!
//! ```text
//! TUN packet ─▶ room in the outbox of the relay that the last packet took ─▶ Node seals it there ─▶ that relay (or, copied, the one it chose)
//! relay bytes ─▶ Connection opens TLS and WebSocket in place ─▶ Node opens the frame in place ─▶ TUN write
//! ```
//!
//! [`spawn`] starts it; commands go in through a bounded queue and a waker, reports come out through a callback. Everything slow is elsewhere: the
//! control channel and the system's addresses and routes are the control side's, and resolving and connecting happen on helper
//! threads, since name resolution blocks. Timers, sessions and path choice are the machine's (`docs/protocol.md` §2, §4).

mod api;
mod datagram;
mod dial;
mod flow;
mod helper;
mod relay;
mod thread;

pub use api::{Command, CommandError, Endpoints, Handle, Options, PacketPort, Report, spawn};
