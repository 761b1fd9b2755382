//! The formats on the wire, one file each: a checked view for reading, plain functions for writing.

pub mod connect;
pub mod control;
pub mod data;
pub mod forwarded;
pub mod frame;
pub mod handshake;
pub mod proxy;
pub mod reassembly;
pub mod socks;
pub mod stun;
pub mod upgrade;
pub mod websocket;
