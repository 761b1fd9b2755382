//! Getting out of the network that this machine is in: through whom, in which order (RFC 8305), and what to say to a proxy.
//!
//! [`proxy`] says whether a host is reached through a proxy and through which one, [`race`] when to try which address, [`tunnel`] is the talk with a proxy
//! up to the first byte that belongs to the host behind it. Sockets, names and clocks are the business of whoever asks (`engine::dial`).

pub mod proxy;
pub mod race;
pub mod tunnel;
