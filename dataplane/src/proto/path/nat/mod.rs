//! What the NAT in front of this node does, and what that means for a path to another node.
//!
//! ```text
//! STUN servers ─► discovery ─► behaviour (mapping, filtering, ports) ─► matrix: what can be expected of a pair
//!                     │                       └─► predict: which ports a NAT that counts takes next
//!                     └─► the mapped address, a candidate       birthday: a bounded search where ports are drawn at random
//! ```
//!
//! Nothing in here sends data or knows peers: [`super::direct`] does. From RFC 4787 §4 and §5, RFC 5780, RFC 8489 §6.2.1 and
//! `docs/protocol.md` §8.2.

pub mod behaviour;
pub mod birthday;
pub mod discovery;
pub mod matrix;
pub mod predict;
mod transaction;

pub use behaviour::{Filtering, Mapping, NatBehaviour, NatClass, Ports};
pub use discovery::Discovery;
