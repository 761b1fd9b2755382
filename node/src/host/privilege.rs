//! Lets programs that the daemon starts (nft, resolvectl) have its CAP_NET_ADMIN, where the daemon is not root but was given that one right.

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_ambient_set, configure_capability_in_ambient_set,
    set_capabilities,
};

/// For this thread and what it starts from now on. Without the right to pass on, or without the need to, nothing happens.
pub(crate) fn keep_for_children() {
    let right = CapabilitySet::NET_ADMIN;
    if rustix::process::geteuid().is_root() || capability_is_in_ambient_set(right).unwrap_or(true) {
        return;
    }
    let passed = capabilities(None).and_then(|mut sets| {
        sets.inheritable |= sets.permitted & right;
        set_capabilities(None, sets)?;
        configure_capability_in_ambient_set(right, true)
    });
    if let Err(error) = passed {
        tracing::debug!(%error, "programs that this one starts will not have CAP_NET_ADMIN");
    }
}
