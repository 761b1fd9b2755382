//! Gateway mode: the kernel forwards packets between the mesh and the LANs that this machine advertises, with this machine's address on them, and TCP through the
//! mesh learns how long its segments may be.
//!
//! Forwarding is switched on for the interfaces that are concerned, not for the whole machine; IPv6 knows only the whole machine
//! (RFC 4861 §6.2.1: a router), so there it is switched on only when an IPv6 subnet is advertised, and interfaces that live on router advertisements are told to
//! go on doing so. All of it is undone at the end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::journal::Journal;

const IPV4: &str = "/proc/sys/net/ipv4/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Switches forwarding on between `own` and `lans`.
pub(super) fn forward(
    journal: &mut Journal,
    own: &str,
    lans: &BTreeSet<String>,
    four: bool,
    six: bool,
) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    let mut set = |path: PathBuf, value: &str| {
        if let Err(error) = journal.set_sysctl(&path, value) {
            errors.push(error.context(format!("cannot set {} to {value}", path.display())));
        }
    };
    if four {
        for interface in lans.iter().map(String::as_str).chain([own]) {
            set(Path::new(IPV4).join(interface).join("forwarding"), "1");
        }
    }
    if six {
        for interface in router_advertised() {
            set(Path::new(IPV6).join(interface).join("accept_ra"), "2");
        }
        set(Path::new(IPV6).join("all/forwarding"), "1");
    }
    errors
}

/// Interfaces that take router advertisements, and would not as a router.
fn router_advertised() -> Vec<String> {
    let value = |name: &str, file: &str| {
        std::fs::read_to_string(Path::new(IPV6).join(name).join(file)).unwrap_or_default()
    };
    let Ok(entries) = std::fs::read_dir(IPV6) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name != "all" && name != "default" && name != "lo")
        .filter(|name| value(name, "accept_ra").trim() == "1" && value(name, "forwarding").trim() == "0")
        .collect()
}

/// Whether some interface drops packets whose answer it would not send back the same way (RFC 3704, strict).
pub(super) fn strict_reverse_path() -> bool {
    let Ok(entries) = std::fs::read_dir(IPV4) else { return false };
    entries.flatten().any(|entry| {
        std::fs::read_to_string(entry.path().join("rp_filter")).is_ok_and(|value| value.trim() == "1")
    })
}

/// Has reverse path filters look at marks.
pub(super) fn mind_marks(journal: &mut Journal) -> anyhow::Result<()> {
    journal.set_sysctl(&Path::new(IPV4).join("all/src_valid_mark"), "1")
}

/// Whether a value is one that [`forward`] sets, rather than [`mind_marks`].
pub(super) fn is_forwarding(path: &Path) -> bool {
    path.ends_with("forwarding") || path.ends_with("accept_ra")
}
