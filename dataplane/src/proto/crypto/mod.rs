//! Keys and ciphers of `docs/protocol.md` §2: identities here, the packet cipher and replay window beside.

pub mod keys;
