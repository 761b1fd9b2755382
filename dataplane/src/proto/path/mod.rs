//! Over which relays to send (`docs/protocol.md` §3.2 `path`, §4.3).
//!
//! [`rtt`] smooths measured round trips, [`liveness`] decides when a silent relay is dead, [`backoff`] when to dial again, [`choice`] picks the path
//! for one peer from what is known. None of them knows connections or peers; the node does.

pub mod backoff;
pub mod choice;
pub mod liveness;
pub mod rtt;
