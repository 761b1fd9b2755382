//! How long a session serves (`docs/protocol.md` §2.2, "Rekey").

use std::time::Duration;

use super::transport::Role;

/// After this the initiator makes a new session, if the old one is in use.
pub const REKEY_INITIATOR: Duration = Duration::from_mins(2);
/// After this the responder does: late enough that both rarely start at once.
pub const REKEY_RESPONDER: Duration = Duration::from_secs(130);
/// After so many packets either end makes a new session.
pub const REKEY_PACKETS: u64 = 1 << 28;
/// Nothing is sealed under a session that is older.
pub const SEAL_FOR: Duration = Duration::from_mins(5);
/// Nothing is sealed under a session after so many packets.
pub const SEAL_PACKETS: u64 = 1 << 32;
/// A session that was replaced opens packets for so long; then its keys are zeroed.
pub const OPEN_FOR: Duration = Duration::from_mins(5);
/// A node_key that was replaced is good for handshakes for so long.
pub const KEEP_NODE_KEY: Duration = Duration::from_mins(5);
/// Between attempts; jitter of up to [`RETRY_JITTER`] is added.
pub const RETRY: Duration = Duration::from_secs(1);
/// See [`RETRY`].
pub const RETRY_JITTER: Duration = Duration::from_millis(300);
/// Attempts are given up after this, until a packet asks for a session again.
pub const GIVE_UP: Duration = Duration::from_secs(30);

/// The age at which an end makes a new session.
pub const fn rekey_after(role: Role) -> Duration {
    match role {
        Role::Initiator => REKEY_INITIATOR,
        Role::Responder => REKEY_RESPONDER,
    }
}
