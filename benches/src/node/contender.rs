//! Who is measured: our node, and user-space implementations of WireGuard as rivals.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use meshdp::proto::crypto::keys::NodeKey;

use super::daemon::{Daemon, Pair, program};
use super::lab::{Lab, Place, ip};
use super::mesh::Mesh;
use super::uapi::{self, Peer};

/// The name of ours in tables.
pub(super) const OURS: &str = "edgelink";
/// Another shape of a rival: what is cheaper for some rows is not for others.
pub(super) const ONE_THREAD: &str = "boringtun-1-thread";
/// From start until a daemon takes its configuration, and until a ping comes back.
const PATIENCE: Duration = Duration::from_secs(10);
/// A mistake of this program's.
const NO_MESH: &str = "there is no controller";
/// WireGuard's usual port.
const PORT: u16 = 51820;

/// How daemons are to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Setting {
    /// Of the tunnel.
    pub(super) mtu: u16,
    pub(super) cipher: Cipher,
    pub(super) way: Way,
}

/// What packets are sealed with. WireGuard has ChaCha20-Poly1305 only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cipher {
    Aes,
    ChaCha,
}

/// How packets get to the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// By the wire.
    Direct,
    /// By the relay.
    Relay,
}

/// Somebody to be measured.
pub(super) struct Contender {
    /// In tables, and in the goals.
    pub(super) name: &'static str,
    kind: Kind,
}

enum Kind {
    Edgelink { binary: PathBuf },
    WireGuard { binary: PathBuf, arguments: &'static [&'static str] },
}

/// Ours first, from the folder `binaries`, then perhaps another build of it. Rivals that were not built are left out, and said so.
pub(super) fn all(binaries: &Path, other: Option<&Path>, rivals: &Path) -> anyhow::Result<Vec<Contender>> {
    let edgelink =
        |name, folder: &Path| Contender { name, kind: Kind::Edgelink { binary: folder.join("edgelink") } };
    let mut all = vec![edgelink(OURS, binaries)];
    all.extend(other.map(|folder| edgelink("edgelink-other", folder)));
    let known: [(_, _, &[_]); 5] = [
        ("wireguard-go-tailscale", "wireguard-go-tailscale/bin/wireguard-go", &["--foreground"]),
        ("wireguard-go", "wireguard-go/bin/wireguard-go", &["--foreground"]),
        (
            "boringtun",
            "boringtun/bin/boringtun-cli",
            &["--foreground", "--disable-drop-privileges", "--verbosity", "error"],
        ),
        // By default it has four threads, which take turns on the one core.
        (
            ONE_THREAD,
            "boringtun/bin/boringtun-cli",
            &["--foreground", "--disable-drop-privileges", "--verbosity", "error", "--threads", "1"],
        ),
        (
            "gotatun",
            "gotatun/bin/gotatun",
            &["--foreground", "--disable-drop-privileges", "--verbosity", "error"],
        ),
    ];
    for (name, file, arguments) in known {
        let path = rivals.join(file);
        if path.is_file() {
            all.push(Contender { name, kind: Kind::WireGuard { binary: program(&path)?, arguments } });
        } else {
            eprintln!("{} is not there: {name} is left out (make bench-node builds it)", path.display());
        }
    }
    Ok(all)
}

impl Contender {
    /// Whether that is us.
    pub(super) fn is_ours(&self) -> bool {
        self.name == OURS
    }

    /// Whether it is our node, this build or another.
    pub(super) const fn is_edgelink(&self) -> bool {
        matches!(self.kind, Kind::Edgelink { .. })
    }

    /// Starts both ends, each on its core, and waits until packets go through.
    pub(super) fn start(&self, lab: &Lab, mesh: Option<&Mesh>, setting: Setting) -> anyhow::Result<Pair> {
        let mut pair = match &self.kind {
            Kind::Edgelink { binary } => mesh.context(NO_MESH)?.pair(lab, binary, setting)?,
            Kind::WireGuard { binary, arguments } => self.tunnel(lab, binary, arguments, setting.mtu)?,
        };
        pair.wait_until_it_pings(PATIENCE)?;
        if let (true, Some(mesh)) = (self.is_edgelink(), mesh) {
            mesh.wait_for_path(&mut pair, setting)?;
        }
        Ok(pair)
    }

    fn tunnel(&self, lab: &Lab, binary: &Path, arguments: &[&str], mtu: u16) -> anyhow::Result<Pair> {
        let [key_a, key_b] = [key(1)?, key(2)?];
        let address = |number| Ipv4Addr::new(10, 99, 0, number);
        let end = |place: Place, key: &NodeKey, own, other: &NodeKey, peer: (Place, Ipv4Addr)| {
            let mut daemon = self.daemon(lab, place, binary, arguments)?;
            let endpoint = SocketAddr::from((peer.0.address(), PORT));
            let peer = Peer { public: *other.public().as_bytes(), endpoint: Some(endpoint), address: peer.1 };
            configure(&mut daemon, place, key, &[peer])?;
            interface(place, mtu, own)?;
            anyhow::Ok(daemon)
        };
        let a = end(Place::A, &key_a, address(1), &key_b, (Place::B, address(2)))?;
        let b = end(Place::B, &key_b, address(2), &key_a, (Place::A, address(1)))?;
        Ok(Pair { a, b, address: address(2) })
    }

    fn daemon(&self, lab: &Lab, place: Place, binary: &Path, arguments: &[&str]) -> anyhow::Result<Daemon> {
        let name = interface_of(place);
        // Left behind by one that was killed.
        let _ = std::fs::remove_file(uapi::socket_of(&name));
        let mut command = place.command(binary);
        command.args(arguments).arg(&name).env("LOG_LEVEL", "error");
        Daemon::start(command, place.core(), lab.folder.join(format!("{}-{}.log", self.name, place.name())))
    }

    /// One end in `a`, idle, with so many peers that never say anything.
    pub(super) fn idle(&self, lab: &Lab, mesh: Option<&Mesh>, peers: u32) -> anyhow::Result<Daemon> {
        let (binary, arguments) = match &self.kind {
            Kind::Edgelink { binary } => return mesh.context(NO_MESH)?.idle(lab, binary, peers),
            Kind::WireGuard { binary, arguments } => (binary, arguments),
        };
        let mut daemon = self.daemon(lab, Place::A, binary, arguments)?;
        let peer = |number: u32| {
            let [_, _, high, low] = number.to_be_bytes();
            anyhow::Ok(Peer {
                public: *key(number + 3)?.public().as_bytes(),
                endpoint: Some(SocketAddr::from(([192, 0, 2, 2], PORT))),
                address: Ipv4Addr::new(10, 100, high, low),
            })
        };
        let peers = (0..peers).map(peer).collect::<Result<Vec<_>, _>>()?;
        configure(&mut daemon, Place::A, &key(1)?, &peers)?;
        interface(Place::A, 1420, Ipv4Addr::new(10, 99, 0, 1))?;
        Ok(daemon)
    }
}

fn configure(daemon: &mut Daemon, place: Place, key: &NodeKey, peers: &[Peer]) -> anyhow::Result<()> {
    let socket = uapi::socket_of(&interface_of(place));
    let request = uapi::request(key, PORT, peers);
    daemon.wait_for("it is configured", PATIENCE, || uapi::configure(&socket, &request).map(Some))
}

fn interface(place: Place, mtu: u16, address: Ipv4Addr) -> anyhow::Result<()> {
    let name = interface_of(place);
    ip(&["-n", place.name(), "address", "add", &format!("{address}/24"), "dev", &name])?;
    ip(&["-n", place.name(), "link", "set", &name, "mtu", &mtu.to_string(), "up"])?;
    Ok(())
}

/// Sockets of both ends share a folder.
fn interface_of(place: Place) -> String {
    format!("rival-{}", place.name())
}

/// One of many keys; nobody has to keep them secret.
fn key(number: u32) -> anyhow::Result<NodeKey> {
    let mut private = [0x42; 32];
    private[..4].copy_from_slice(&number.to_be_bytes());
    Ok(NodeKey::from_private(private)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_rivals_there_is_ours() {
        let all = all(Path::new("/somewhere"), None, Path::new("/nowhere")).expect("nothing to find");
        assert!(all.len() == 1 && all[0].is_ours() && all[0].is_edgelink());
    }

    #[test]
    fn another_build_is_not_ours_but_has_all_that_our_node_has() {
        let all =
            all(Path::new("/a"), Some(Path::new("/b")), Path::new("/nowhere")).expect("nothing to find");
        assert!(all.len() == 2 && !all[1].is_ours() && all[1].is_edgelink());
    }

    #[test]
    fn keys_differ() {
        let publics: std::collections::BTreeSet<_> =
            (0..100).map(|number| *key(number).expect("a key").public().as_bytes()).collect();
        assert_eq!(publics.len(), 100);
    }
}
