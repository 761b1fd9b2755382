//! Between the command line and the daemon: a Unix socket with JSON lines, one request per connection and one or more answers.
//!
//! The socket is `/run/edgelink/INTERFACE.sock` for root with the default state directory, else `INTERFACE.sock` in the state directory; mode 0600, and both ends' user ids are
//! compared besides. [`mod@line`] is the framing, bounded on both sides; [`message`] the contents; [`server`] and [`client`] the ends.

pub(crate) mod client;
pub(crate) mod line;
pub(crate) mod message;
pub(crate) mod server;

use std::path::{Path, PathBuf};

/// Where daemons of root have their sockets.
pub(crate) const RUN_DIR: &str = "/run/edgelink";

/// Where the daemon of `interface` listens, unless it is told otherwise. A state directory of its own brings the socket along, so that several daemons
/// (in several network namespaces, say) may use the same interface name.
pub(crate) fn default_socket(interface: &str, state_dir: &Path) -> PathBuf {
    let name = format!("{interface}.sock");
    let system = rustix::process::geteuid().is_root() && state_dir == crate::config::default_state_dir();
    if system && run_dir_is_ours() { Path::new(RUN_DIR).join(name) } else { state_dir.join(name) }
}

/// In a user namespace uid 0 is not the root that owns `/run`.
fn run_dir_is_ours() -> bool {
    crate::keys::create_private_dir(Path::new(RUN_DIR)).is_ok()
        && rustix::fs::access(RUN_DIR, rustix::fs::Access::WRITE_OK).is_ok()
}
