//! Which way packets take to a peer: directly, or over which relays (`docs/protocol.md` §3.2 `path`, §4.3, §8).
//!
//! Relays: [`liveness`] decides when a silent one is dead, [`backoff`] when to dial again, [`choice`] picks the path for one peer from what is
//! known. Directly: [`nat`] finds out what is between this node and the others, [`candidate`] lists where a node may be reached, [`beacon`] tells the own network, [`message`] is what
//! peers say about it, [`direct`] makes and keeps the paths to one peer. [`rtt`] smooths round trips for both. None of them knows
//! connections or sessions; the node does.

pub mod backoff;
pub mod beacon;
pub mod candidate;
pub mod choice;
pub mod direct;
pub mod liveness;
pub mod message;
pub mod nat;
pub mod rtt;
