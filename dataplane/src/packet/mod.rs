//! Buffers that packets live in.
//!
//! [`pool`] keeps the output buffers of one worker: last in, first out, and held by a connection only while it has something to send.
//! Receive buffers belong to the driver ([`crate::engine::driver`]). [`offload`] takes super-packets apart and puts them together.

pub mod offload;
pub mod pool;

pub use pool::{Buffer, Pool};
