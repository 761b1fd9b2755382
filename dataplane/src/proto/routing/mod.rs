//! Which peer an inner packet goes to, and whether one that came may have come from there (`docs/protocol.md` §2.3, §3.2).
//!
//! [`packet`] reads IP headers, [`table`] is the longest-prefix table with its gateways, [`flow`] the choice among equal ones, [`source`] the check of
//! what comes in, [`exit`] which routes only the chosen exit may have, [`health`] what gateways say of their subnets. All are plain tables: they know peers by a number that the node gives them.

pub mod exit;
pub mod flow;
pub mod health;
pub mod packet;
pub mod source;
pub mod table;
