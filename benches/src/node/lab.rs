//! The network: two namespaces with a wire between them, and a third one for controller and relay.
//!
//! `a` and `b` are joined by one veth pair, the wire; both reach `hub` by a veth of their own. `hub` forwards nothing, so that what `a` and `b` say to each
//! other takes the wire, or a program in `hub` that passes it on.
//!
//! All addresses are for documentation (RFC 5737). The caller runs in namespaces of processes, mounts and networks of its own ([`super::inside`]):
//! what is made here ends with it.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

/// The wire's name at both ends.
const WIRE: &str = "wire";
/// The usual MTU of a wire.
pub(super) const ETHERNET: u16 = 1500;
/// Where the controller and the relay are.
pub(super) const CONTROLLER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(super) const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// A namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    A,
    B,
    Hub,
}

impl Place {
    /// Its name, short enough for an interface.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Hub => "hub",
        }
    }

    /// Where its daemon runs; the hub's have no core of their own.
    pub(super) const fn core(self) -> Option<usize> {
        match self {
            Self::A => Some(0),
            Self::B => Some(1),
            Self::Hub => None,
        }
    }

    /// On the wire.
    pub(super) const fn address(self) -> Ipv4Addr {
        match self {
            Self::A => Ipv4Addr::new(192, 0, 2, 1),
            Self::B | Self::Hub => Ipv4Addr::new(192, 0, 2, 2),
        }
    }

    /// `program`, to be run here; its process is the program itself.
    pub(super) fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name()]).arg(program.as_ref()).stdin(Stdio::null());
        command
    }

    /// Moves the calling thread here, for the sockets that it opens from now on.
    pub(super) fn enter(self) -> anyhow::Result<()> {
        let path = format!("/run/netns/{}", self.name());
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))
    }
}

/// How the wire is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wire {
    pub(super) mtu: u16,
    /// Whether it takes packets that are still to be segmented, as most network cards do.
    pub(super) transmit_offload: bool,
}

/// The network.
pub(super) struct Lab {
    /// For logs.
    pub(super) folder: PathBuf,
}

impl Lab {
    /// Makes it. `folder` is for logs.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for place in [Place::A, Place::B, Place::Hub] {
            ip(&["netns", "add", place.name()])?;
            ip(&["-n", place.name(), "link", "set", "lo", "up"])?;
            let off = "echo 0 > /proc/sys/net/ipv4/ip_forward";
            run(place.command("sh").args(["-c", off])).context("cannot switch forwarding off")?;
        }
        ip(&["-n", "a", "link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", "b"])?;
        for place in [Place::A, Place::B] {
            up(place, WIRE, &format!("{}/24", place.address()))?;
        }
        for address in [CONTROLLER, RELAY] {
            ip(&["-n", "hub", "address", "add", &format!("{address}/32"), "dev", "lo"])?;
        }
        for (place, here, there) in
            [(Place::A, "198.51.100.1", "198.51.100.0"), (Place::B, "198.51.100.3", "198.51.100.2")]
        {
            let name = format!("to-{}", place.name());
            ip(&[
                "-n",
                "hub",
                "link",
                "add",
                &name,
                "type",
                "veth",
                "peer",
                "name",
                "to-hub",
                "netns",
                place.name(),
            ])?;
            up(Place::Hub, &name, &format!("{there}/31"))?;
            up(place, "to-hub", &format!("{here}/31"))?;
            ip(&["-n", place.name(), "route", "add", "203.0.113.0/24", "via", there])?;
        }
        Ok(Self { folder: folder.canonicalize()? })
    }
}

/// Makes the wire so.
pub(super) fn set_wire(wire: Wire) -> anyhow::Result<()> {
    let state = if wire.transmit_offload { "on" } else { "off" };
    for place in [Place::A, Place::B] {
        ip(&["-n", place.name(), "link", "set", WIRE, "mtu", &wire.mtu.to_string()])?;
        let features = ["-K", WIRE, "tso", state, "gso", state, "tx-udp-segmentation", state];
        run(place.command("ethtool").args(features))?;
    }
    Ok(())
}

/// Makes an interface ready. No IPv6 but the tunnel's: it would be another path.
fn up(place: Place, interface: &str, address: &str) -> anyhow::Result<()> {
    let off = format!("echo 1 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6 2>/dev/null || true");
    run(place.command("sh").args(["-c", &off]))?;
    ip(&["-n", place.name(), "address", "add", address, "dev", interface])?;
    ip(&["-n", place.name(), "link", "set", interface, "up"])?;
    Ok(())
}

/// `ip` with these arguments.
pub(super) fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    run(Command::new("ip").args(arguments))
}

/// What a command printed; when it fails, what it complained about is in the error.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let shown = || {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        format!("{} {}", command.get_program().display(), words.join(" "))
    };
    let what = shown();
    let output = command.output().with_context(|| format!("cannot run {what}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = if output.stderr.is_empty() { said(&output.stdout) } else { said(&output.stderr) };
    bail!("{what}: {}: {complaint}", output.status)
}
