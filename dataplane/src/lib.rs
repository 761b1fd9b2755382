//! EdgeLink's dataplane.
//!
//! [`proto`] is the protocol as pure state machines: it opens no socket, reads no clock and asks for no randomness. Time, random bytes and
//! received bytes come in as arguments; what is to be done comes out as values. With the feature `io` (default) the crate also has the
//! shell that does the system calls: buffers ([`packet`]), TUN devices ([`tun`]) and the [`engine`] that drives relays and nodes on
//! io_uring or epoll.
//!
//! Imports point one way: `engine` → `tun` → `packet` → `proto`.

#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
#[forbid(unsafe_code)]
pub mod proto;

#[cfg(feature = "io")]
pub mod config;
#[cfg(feature = "io")]
#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the engine owns time, threads and sockets"
)]
pub mod engine;
#[cfg(feature = "io")]
pub mod packet;
#[cfg(feature = "io")]
#[allow(clippy::disallowed_types, reason = "a TUN device is a file")]
pub mod tun;
