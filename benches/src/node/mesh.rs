//! Our side: a controller and a relay in the hub, and the nodes at the ends of the wire, all of them the real programs.
//!
//! A node keeps its keys and its place in the network from one start to the next, as an installed one does; what differs between measurements is its
//! configuration file.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::IpNet;
use meshdp::proto::crypto::kem::KemKey;
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::id::NodeId;
use meshdp::proto::wire::control::node::{Config, Endpoint, Peer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::contender::{Cipher, Setting, Way};
use super::daemon::{Daemon, Pair, program};
use super::lab::{CONTROLLER, Lab, Place, RELAY, ip, run};

const CONTROLLER_PORT: u16 = 8443;
const RELAY_PORT: u16 = 443;
/// Python takes its time to start.
const CONTROLLER_PATIENCE: Duration = Duration::from_secs(60);
/// From start until a node is in the network.
const SIGN_IN: Duration = Duration::from_secs(30);
/// From then until its packets take the path that is to be measured.
const PATH: Duration = Duration::from_secs(20);

/// Where the programs are.
pub(super) struct Programs {
    /// `edgelink` and `edgelink-relay`.
    pub(super) binaries: PathBuf,
    /// `edgelink-controller` and `edgelink-ctl`.
    pub(super) scripts: PathBuf,
}

/// Controller, relay, and what nodes have to know of them.
pub(super) struct Mesh {
    node: PathBuf,
    ctl: PathBuf,
    state: PathBuf,
    pin: String,
    _relay: Daemon,
    _controller: Daemon,
}

/// What is read of `edgelink status`.
#[derive(Deserialize)]
struct Status {
    memberships: Vec<Membership>,
    peers: Vec<PeerStatus>,
}

#[derive(Deserialize)]
struct Membership {
    addresses: Vec<IpNet>,
}

#[derive(Deserialize)]
struct PeerStatus {
    session: String,
    cipher: Option<String>,
    /// Missing in versions without direct paths.
    #[serde(default)]
    direct: Option<SocketAddr>,
    path: Vec<Value>,
}

impl Mesh {
    /// Starts controller and relay. `state` is for what all of them keep.
    pub(super) fn start(lab: &Lab, programs: &Programs, state: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(state)?;
        let script = |name| program(&programs.scripts.join(name));
        let node = program(&programs.binaries.join("edgelink"))?;
        let relay = program(&programs.binaries.join("edgelink-relay"))?;
        let mut command = Place::Hub.command(script("edgelink-controller")?);
        command.args(["run", "--dev", "--no-builtin-relay", "--no-builtin-stun"]);
        command.args(["--listen", &format!("{CONTROLLER}:{CONTROLLER_PORT}"), "--state-dir"]);
        command.arg(state.join("controller")).env("PYTHONUNBUFFERED", "1");
        let mut controller = Daemon::start(command, None, lab.folder.join("controller.log"))?;
        let line = controller.wait_to_say("sha256:", CONTROLLER_PATIENCE).context("edgelink-controller")?;
        let pin: String = line
            .split_once("sha256:")
            .map_or("", |(_, rest)| rest)
            .chars()
            .take_while(char::is_ascii_hexdigit)
            .collect();
        let pin = format!("sha256:{pin}");

        let ctl = script("edgelink-ctl")?;
        let ask = |words: &[&str]| ctl_answer(&ctl, state, words);
        controller.wait_for("the controller answers", CONTROLLER_PATIENCE, || ask(&["status"]).map(Some))?;
        let public = format!("wss://{RELAY}:{RELAY_PORT}");
        let (data, mesh) = (format!("{public}/ws/data"), format!("{public}/ws/mesh"));
        let added = ask(&["server", "add", "--name", "relay", "--url", &data, "--mesh-url", &mesh])?;
        let config = json!({
            "controller": {
                "url": format!("wss://{CONTROLLER}:{CONTROLLER_PORT}/ws/server"),
                "token": added["token"],
                "tls_pin": pin,
            },
            "relay": { "listen": format!("{RELAY}:{RELAY_PORT}"), "data_url": data, "mesh_url": mesh },
            "stun": { "listen": format!("{RELAY}:3478"), "external_ip": RELAY },
            "state_dir": state.join("relay"),
        });
        let file = state.join("relay.json");
        fs::write(&file, config.to_string())?;
        let mut command = Place::Hub.command(relay);
        command.arg("--config").arg(&file).arg("--dev");
        let relay = Daemon::start(command, None, lab.folder.join("relay.log"))?;
        Ok(Self { node, ctl, state: state.to_owned(), pin, _relay: relay, _controller: controller })
    }

    /// Starts both nodes and waits until they are in the network.
    pub(super) fn pair(&self, lab: &Lab, binary: &Path, setting: Setting) -> anyhow::Result<Pair> {
        let [mut a, mut b] =
            [self.node(lab, Place::A, binary, setting)?, self.node(lab, Place::B, binary, setting)?];
        let joined = |place: Place| {
            let status = self.status(place)?;
            let mut addresses = status.memberships.iter().flat_map(|one| &one.addresses);
            let found = addresses.find_map(|net| match net.addr() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            });
            if found.is_none() {
                self.authorise()?;
            }
            anyhow::Ok(found)
        };
        a.wait_for("node a is in the network", SIGN_IN, || joined(Place::A))?;
        let address: Ipv4Addr = b.wait_for("node b is in the network", SIGN_IN, || joined(Place::B))?;
        let known = || Ok(self.status(Place::A)?.peers.iter().any(|_| true).then_some(()));
        a.wait_for("node a knows node b", SIGN_IN, known)?;
        Ok(Pair { a, b, address })
    }

    /// Waits until packets take the path that `setting` names, with its cipher.
    pub(super) fn wait_for_path(&self, pair: &mut Pair, setting: Setting) -> anyhow::Result<()> {
        let Pair { a, b, .. } = pair;
        for (daemon, place) in [(a, Place::A), (b, Place::B)] {
            let mut seen = String::new();
            let wanted = || {
                let status = self.status(place)?;
                let peer = status.peers.first().context("it knows no peer")?;
                let direct = peer.direct.is_some();
                let path = peer.direct.map_or_else(|| format!("relays {:?}", peer.path), |to| to.to_string());
                seen = format!("session {}, path {path}", peer.session);
                let there = peer.session == "established" && direct == (setting.way == Way::Direct);
                Ok(there.then(|| peer.cipher.clone().unwrap_or_default()))
            };
            let what = match setting.way {
                Way::Direct => "packets take the direct path",
                Way::Relay => "packets take the relay, and nothing else",
            };
            let cipher = daemon
                .wait_for(what, PATH, wanted)
                .with_context(|| format!("node {} has {seen}", place.name()))?;
            if cipher.contains("aes") != (setting.cipher == Cipher::Aes) {
                bail!("node {} seals with {cipher}: has this processor no AES instructions?", place.name());
            }
        }
        Ok(())
    }

    fn node(&self, lab: &Lab, place: Place, binary: &Path, setting: Setting) -> anyhow::Result<Daemon> {
        let name = place.name();
        let cipher = match setting.cipher {
            Cipher::Aes => "auto",
            Cipher::ChaCha => "chacha20-poly1305",
        };
        let config = json!({
            "controller": { "url": url(), "tls_pin": self.pin },
            "hostname": name,
            "state_dir": self.state.join(name),
            "cipher": cipher,
            "tun": { "mtu": setting.mtu },
            "p2p": { "enabled": setting.way == Way::Direct },
        });
        let file = self.state.join(format!("{name}.json"));
        fs::write(&file, config.to_string())?;
        let mut command = place.command(program(binary)?);
        command.arg("up").arg("--config").arg(&file).arg("--socket").arg(self.socket(place));
        Daemon::start(command, place.core(), lab.folder.join(format!("edgelink-{name}.log")))
    }

    /// A node in `a` that knows so many peers, none of which ever says anything, started from its last configuration: the controller is out of reach, the
    /// relay is not. What a peer is in it is what the controller tells of one that has signed in, with its keys and two endpoints.
    pub(super) fn idle(&self, lab: &Lab, binary: &Path, peers: u32) -> anyhow::Result<Daemon> {
        let file = self.state.join("a").join("last-config.json");
        let read = || anyhow::Ok(serde_json::from_slice(&fs::read(&file)?)?);
        let mut kept: Value = read().context("node a has kept no configuration")?;
        let mut config = Config::deserialize(&kept["kept"]).context("last-config.json")?;
        let membership = config.memberships.first_mut().context("node a is in no network")?;
        let first = membership.peers.first().context("node a has no peer")?.clone();
        membership.peers = (0..peers).map(|number| peer(number, &first)).collect::<Result<_, _>>()?;
        kept["kept"] = serde_json::to_value(&config)?;
        fs::write(&file, kept.to_string())?;

        let unreachable = format!("{CONTROLLER}/32");
        ip(&["-n", "a", "route", "replace", "unreachable", &unreachable])?;
        let setting = Setting { mtu: 1420, cipher: Cipher::Aes, way: Way::Direct };
        let mut node = self.node(lab, Place::A, binary, setting)?;
        let knows = || Ok((self.status(Place::A)?.peers.len() == peers as usize).then_some(()));
        node.wait_for("the node knows all peers", SIGN_IN, knows)?;
        Ok(node)
    }

    /// Short, as paths of sockets have to be.
    fn socket(&self, place: Place) -> PathBuf {
        self.state.join(format!("{}.sock", place.name()))
    }

    fn status(&self, place: Place) -> anyhow::Result<Status> {
        let mut command = Command::new(&self.node);
        command.args(["status", "--output", "json", "--socket"]).arg(self.socket(place));
        serde_json::from_str(&run(&mut command)?).context("edgelink status is not what it was")
    }

    /// Lets everybody in who asked.
    fn authorise(&self) -> anyhow::Result<()> {
        let listed = ctl_answer(&self.ctl, &self.state, &["node", "list"])?;
        let nodes = listed.get("items").unwrap_or(&listed).as_array().cloned().unwrap_or_default();
        for node in nodes.iter().filter(|node| node["authorized"] == false) {
            ctl_answer(&self.ctl, &self.state, &["node", "authorize", &node["id"].to_string()])?;
        }
        Ok(())
    }
}

/// What nodes dial.
fn url() -> String {
    format!("wss://{CONTROLLER}:{CONTROLLER_PORT}/ws/control")
}

/// `edgelink-ctl` on the controller's database.
fn ctl_answer(ctl: &Path, state: &Path, words: &[&str]) -> anyhow::Result<Value> {
    let mut command = Command::new(ctl);
    command
        .arg("--db")
        .arg(state.join("controller").join("edgelink.db"))
        .args(["--output", "json"])
        .args(words);
    let answer = run(&mut command)?;
    if answer.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&answer).context("edgelink-ctl's answer is not what it was")
}

/// Peer `number`, with keys of its own, in the shape of one that exists.
fn peer(number: u32, like: &Peer) -> anyhow::Result<Peer> {
    let seed = |salt: u8| {
        let mut seed = [salt; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        seed
    };
    let machine = MachineKey::from_seed(&seed(1))?;
    let key = NodeKey::from_private(seed(2))?;
    let post_quantum = like.node_key.as_ref().is_some_and(|key| key.kem.is_some());
    let key = if post_quantum { key.with_kem(KemKey::generate()?) } else { key };
    let created = like.node_key.as_ref().map_or(0, |key| key.created);
    let [_, _, high, low] = number.to_be_bytes();
    let addresses = like.addresses.iter().map(|address| match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            // Its own is among the first of the subnet.
            Ipv4Addr::new(first, second, high.wrapping_add(1), low).into()
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[10..14].copy_from_slice(&number.wrapping_add(0x0100_0000).to_be_bytes());
            octets.into()
        }
    });
    let endpoint = |kind: &str, first: u8| Endpoint {
        kind: kind.to_owned(),
        address: ([first, 51, high, low], 40_000).into(),
    };
    Ok(Peer {
        // Not the one whose machine key this node has pinned.
        node_id: NodeId(like.node_id.0 + 1000 + number),
        name: format!("peer-{number:04}"),
        machine_key: machine.public(),
        node_key: Some(machine.sign_node_key(&key, created)),
        addresses: addresses.collect(),
        endpoints: vec![endpoint("lan", 192), endpoint("stun", 198)],
        ..like.clone()
    })
}

#[cfg(test)]
mod tests {
    use meshdp::proto::crypto::keys::verify_node_key;

    use super::*;

    fn like() -> Peer {
        let text = json!({
            "node_id": 17, "name": "b", "machine_key": MachineKey::from_seed(&[9; 32]).expect("a key").public(),
            "node_key": null, "addresses": ["10.66.0.3", "fd00:1::3"],
        });
        serde_json::from_value(text).expect("a peer")
    }

    #[test]
    fn peers_that_were_made_up_differ_and_their_keys_verify() {
        let peers: Vec<_> = (0..600).map(|number| peer(number, &like()).expect("keys")).collect();
        let addresses: std::collections::BTreeSet<_> =
            peers.iter().flat_map(|peer| &peer.addresses).collect();
        assert_eq!(addresses.len(), 1200);
        assert_eq!((peers[0].node_id, peers[599].node_id), (NodeId(1017), NodeId(1616)));
        for peer in [&peers[0], &peers[599]] {
            let key = peer.node_key.as_ref().expect("it has one");
            assert_eq!(verify_node_key(&peer.machine_key, key), Ok(()));
            assert_eq!(peer.endpoints.len(), 2);
        }
    }

    #[test]
    fn a_status_of_a_version_without_direct_paths_is_understood() {
        let text = r#"{"version": "0.1.0", "memberships": [{"node_id": 1, "addresses": ["10.0.0.1/16"]}],
            "peers": [{"node_id": 2, "session": "established", "cipher": "aes-256-gcm", "path": [1], "rtt_ms": 0.2}]}"#;
        let status: Status = serde_json::from_str(text).expect("a status");
        assert!(status.peers[0].direct.is_none() && status.memberships[0].addresses.len() == 1);
    }
}
