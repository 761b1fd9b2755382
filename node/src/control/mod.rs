//! The control link: `/ws/control` from the node's end (`docs/protocol.md` §3).
//!
//! [`sign_in`] is the conversation as a pure state machine: whole messages in, messages and news out. [`link`] gives it a socket: dials, speaks TLS and
//! WebSocket, keeps the heartbeat, and dials again after [`backoff`]. Configurations go on to the data thread's `Node`, which alone applies them.

pub(crate) mod backoff;
pub(crate) mod link;
pub(crate) mod sign_in;
pub(crate) mod url;

#[cfg(test)]
mod tests;
