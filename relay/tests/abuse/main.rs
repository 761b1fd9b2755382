//! The relay under abuse: each test misbehaves in one way against a real process, while two well-behaved clients exchange frames all the while.
//!
//! [`siege::Siege`] is the frame of every test: it starts relay and bystanders, and at the end wants every frame of theirs delivered exactly
//! once and the relay's memory, descriptors and connections back where they were. [`raw::Raw`] is a client that sends exactly the bytes it is
//! told. docs/security.md says what is defended, and names these tests.
//!
//! What takes long is `#[ignore]`d and run by `make soak`.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/mod.rs"]
mod support;

mod raw;
mod siege;

mod http;
mod identity;
mod resources;
mod silence;
mod soak;
mod tls;
mod websocket;
