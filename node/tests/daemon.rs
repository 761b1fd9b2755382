//! The program itself, in a network namespace of its own: a small controller and a small relay on loopback, two daemons, and the commands that people type.
//!
//! Skipped, with a line that says so, where user namespaces or TUN devices are not permitted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use meshdp::proto::error::ErrorCode;
use meshdp::proto::id::RouteId;
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::wire::control::node::{
    AuthChallenge, AuthState, Config, MachineAuth, MachineAuthorised, Membership, Network, NodeState, Paths,
    Peer, Relay, Route, Settings,
};
use meshdp::proto::wire::control::{self, AuthRequest, AuthResponse, Base64, ErrorMessage};
use meshdp::proto::wire::frame::{Flags, FrameType, Frames};
use meshdp::proto::wire::reassembly::{Reassembler, write_control};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message as WsMessage;

use support::TestRelay;

const LIMIT: Duration = Duration::from_secs(20);

/// Runs the ignored test `name` alone in namespaces of its own.
fn in_namespace(name: &str) {
    let me = std::env::current_exe().unwrap();
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    let run = Command::new("unshare")
        .args(["-Urn", "--", "sh", "-c", script])
        .arg(me)
        .args([name, "--exact", "--ignored", "--nocapture"])
        .output();
    let output = match run {
        Ok(output) => output,
        Err(error) => return println!("SKIPPED {name}: cannot run unshare: {error}"),
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if stderr.starts_with("unshare:") {
        return println!("SKIPPED {name}: no user namespaces here: {}", stderr.trim());
    }
    if let Some(line) = stdout.lines().find(|line| line.contains("SKIPPED")) {
        return println!("{line}");
    }
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}\n{stderr}");
}

/// A controller that authorises whoever asks, in the order of asking, unless it is told to let them wait.
#[derive(Clone, Default)]
struct TestController(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    machines: Vec<MachineAuth>,
    relays: Vec<Relay>,
    hold: bool,
    /// Takes a machine of a known name for the one it knew: a controller that was set up anew, or that lies.
    by_name: bool,
    /// Bumped to make every connection send its configuration again.
    generation: u64,
}

impl TestController {
    fn start(&self) -> String {
        let (out, address) = std::sync::mpsc::channel();
        let controller = self.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                out.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(controller.clone().serve(stream));
                }
            });
        });
        format!("ws://{}", address.recv().unwrap())
    }

    async fn serve(self, stream: TcpStream) {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let frames = |kind: FrameType, payload: Vec<u8>| {
            let mut bytes = Vec::new();
            write_control(kind, Flags::NONE, &payload, &mut bytes).unwrap();
            WsMessage::binary(bytes)
        };
        let challenge = AuthChallenge { nonce: Base64([3; 32]), server_time: 1_770_000_000 };
        socket.send(frames(FrameType::AuthChallenge, control::to_payload(&challenge))).await.unwrap();
        let mut reassembler = Reassembler::default();
        let mut own = None;
        let mut told = (AuthState::Pending, 0);
        loop {
            if let Some(index) = own {
                let (now, generation) = self.state();
                if told != (now, generation) {
                    told = (now, generation);
                    socket.send(frames(FrameType::AuthResponse, self.response(index))).await.unwrap();
                    let (kind, payload) = match now {
                        AuthState::Authorised => {
                            (FrameType::Config, control::to_payload(&self.config(index)))
                        }
                        AuthState::Pending => (
                            FrameType::Error,
                            control::to_payload(&ErrorMessage {
                                fatal: false,
                                ..ErrorMessage::new(ErrorCode::NotAuthorised)
                            }),
                        ),
                    };
                    socket.send(frames(kind, payload)).await.unwrap();
                }
            }
            let Ok(message) = tokio::time::timeout(Duration::from_millis(50), socket.next()).await else {
                continue;
            };
            let Some(Ok(WsMessage::Binary(bytes))) = message else { return };
            for frame in Frames::new(&bytes) {
                let Some(message) = reassembler.push(frame.unwrap()).unwrap() else { continue };
                if message.kind == FrameType::AuthRequest {
                    let AuthRequest::Machine(request) =
                        control::parse(message.kind, &message.payload).unwrap()
                    else {
                        panic!()
                    };
                    own = Some(self.register(*request));
                    told.1 = u64::MAX;
                }
            }
        }
    }

    fn register(&self, request: MachineAuth) -> usize {
        let mut known = self.0.lock().unwrap();
        known.generation += 1;
        if let Some(index) =
            known.machines.iter().position(|machine| machine.machine_key == request.machine_key).or_else(
                || {
                    let same = |machine: &MachineAuth| machine.hostname == request.hostname;
                    known.machines.iter().position(same).filter(|_| known.by_name)
                },
            )
        {
            known.machines[index] = request;
            return index;
        }
        known.machines.push(request);
        known.machines.len() - 1
    }

    fn state(&self) -> (AuthState, u64) {
        let known = self.0.lock().unwrap();
        (if known.hold { AuthState::Pending } else { AuthState::Authorised }, known.generation)
    }

    fn release(&self) {
        self.0.lock().unwrap().hold = false;
    }

    fn response(&self, index: usize) -> Vec<u8> {
        let (state, _) = self.state();
        let node = NodeState {
            node_id: node_id(index),
            network_id: NetworkId(1),
            network: "default".to_owned(),
            state,
        };
        control::to_payload(&AuthResponse::Machine(MachineAuthorised {
            state,
            nodes: vec![node],
            auth_token: None,
            auth_token_expires: None,
            heartbeat_s: 15,
        }))
    }

    fn config(&self, index: usize) -> Config {
        let known = self.0.lock().unwrap();
        let others = known.machines.iter().enumerate().filter(|&(other, _)| other != index);
        let peers = others.clone().map(|(other, machine)| Peer {
            node_id: node_id(other),
            name: machine.hostname.clone(),
            machine_key: machine.machine_key,
            node_key: Some(machine.node_key.clone()),
            addresses: vec![format!("10.77.1.{}", other + 1).parse().unwrap()],
            online: true,
            relays: vec![RelayId(1)],
            path: Paths { best: Some(vec![RelayId(1)]), second: None },
            endpoints: Vec::new(),
        });
        let routes = others.clone().flat_map(|(other, machine)| {
            machine.routes.iter().map(move |route| Route {
                id: RouteId(other as u32 + 1),
                node_id: node_id(other),
                cidr: route.cidr,
                priority: 100,
                weight: 100,
                enabled: true,
            })
        });
        Config {
            version: known.generation,
            memberships: vec![Membership {
                node_id: node_id(index),
                name: known.machines[index].hostname.clone(),
                network: Network {
                    id: NetworkId(1),
                    name: "default".to_owned(),
                    subnet4: Some("10.77.1.0/24".parse().unwrap()),
                    subnet6: Some("fd77:1::/64".parse().unwrap()),
                },
                addresses: vec![
                    format!("10.77.1.{}/24", index + 1).parse().unwrap(),
                    format!("fd77:1::{}/64", index + 1).parse().unwrap(),
                ],
                relay_token: node_id(index).to_string().into(),
                relay_token_expires: 4_000_000_000,
                peers: peers.collect(),
                routes: routes.collect(),
            }],
            relays: known.relays.clone(),
            settings: Settings::default(),
        }
    }
}

fn node_id(index: usize) -> NodeId {
    NodeId(index as u32 + 17)
}

/// A daemon; killed when the test ends.
struct Daemon {
    interface: &'static str,
    folder: PathBuf,
    child: Child,
}

impl Daemon {
    fn up(controller: &str, interface: &'static str, folder: &Path, extra: &[&str]) -> Self {
        let folder = folder.join(interface);
        let log = std::fs::File::create(folder.with_extension("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_edgelink"))
            .args([
                "up",
                "--controller",
                controller,
                "--interface",
                interface,
                "--hostname",
                interface,
                // Both are on one machine, where they would find each other at once: this is about the relay.
                "--p2p",
                "false",
                "--state-dir",
            ])
            .arg(&folder)
            .args(extra)
            // Not by the resolver of the machine that the tests run on.
            .env("EDGELINK_NAMES", "serve")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { interface, folder, child }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgelink"));
        command.args(args).args(["--interface", self.interface, "--state-dir"]).arg(&self.folder);
        command.output().unwrap()
    }

    fn status(&self) -> Option<Value> {
        let output = self.run(&["status", "--output", "json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    fn wait(&self, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        let mut last = None;
        while Instant::now() < end {
            last = self.status();
            if let Some(status) = last.take_if(|status| enough(status)) {
                return status;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{}: {what} did not come: {last:#?}\n{}", self.interface, self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ready(status: &Value) -> bool {
    status["controller"]["state"] == "connected"
        && status["relays"][0]["state"] == "ready"
        && status["peers"][0]["online"] == true
}

#[test]
fn two_daemons_join_ping_each_other_and_leave_nothing_behind() {
    in_namespace("inside_two_daemons");
}

#[test]
#[ignore = "run by two_daemons_join_ping_each_other_and_leave_nothing_behind in a namespace"]
fn inside_two_daemons() {
    if let Err(error) = meshdp::tun::linux::Device::open("edgeprobe") {
        return println!("SKIPPED inside_two_daemons: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let relay = TestRelay::start(1);
    let controller = TestController::default();
    controller.0.lock().unwrap().relays = vec![relay.entry()];
    controller.0.lock().unwrap().hold = true;
    let url = controller.start();

    let mut one = Daemon::up(&url, "edge0", folder.path(), &[]);
    let waiting = one.wait("a pending state", |status| status["controller"]["state"] == "pending");
    let advice = waiting["controller"]["message"].as_str().unwrap();
    assert!(advice.contains("edgelink-ctl node authorize 17"), "{advice}");
    assert_eq!(
        (&waiting["pending"][0]["node_id"], &waiting["memberships"][0]),
        (&Value::from(17), &Value::Null)
    );
    controller.release();

    let two = Daemon::up(&url, "edge1", folder.path(), &["--advertise-route", "192.168.50.0/24"]);
    one.wait("everything", ready);
    two.wait("everything", ready);

    let shown = ip("addr show dev edge0");
    assert!(
        shown.contains("10.77.1.1/24") && shown.contains("fd77:1::1/64") && shown.contains("mtu 1400"),
        "{shown}"
    );
    let routes = || ip("route show table all");
    assert!(routes().contains("192.168.50.0/24 dev edge0"), "{}", routes());

    let ping = one.run(&["ping", "edge1", "--count", "3", "--interval", "0.05", "--output", "json"]);
    assert!(ping.status.success(), "{}\n{}", String::from_utf8_lossy(&ping.stderr), one.log());
    let ping: Value = serde_json::from_slice(&ping.stdout).unwrap();
    assert_eq!(ping["summary"]["received"], 3);
    assert_eq!(ping["probes"][0]["path"][0], "relay-1");
    let by_address = two.run(&["ping", "10.77.1.1", "-c", "1"]);
    assert!(String::from_utf8_lossy(&by_address.stdout).contains("via relay-1"), "{by_address:?}");
    let wrong = one.run(&["ping", "egde1"]);
    assert!(
        !wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("did you mean \"edge1\"")
    );
    let table = String::from_utf8(one.run(&["status"]).stdout).unwrap();
    assert!(table.contains("PEER") && table.contains("edge1") && table.contains("relay-1"), "{table}");

    // kill -9, and a start that recovers: same node, from the configuration on disk, before the controller is asked.
    one.wait("a kept configuration", |_| folder.path().join("edge0/last-config.json").exists());
    one.child.kill().unwrap();
    one.child.wait().unwrap();
    assert!(one.folder.join("edge0.sock").exists());
    let away = Daemon::up("ws://127.0.0.1:1", "edge0", folder.path(), &[]);
    away.wait("an answer", |status| status["controller"]["state"] != "connected");
    assert_eq!(
        away.status().unwrap()["memberships"][0]["node_id"],
        Value::Null,
        "another controller's configuration is not used"
    );
    drop(away);
    let mut one = Daemon::up(&url, "edge0", folder.path(), &[]);
    let status = one.wait("everything again", ready);
    assert_eq!(status["memberships"][0]["node_id"], 17);

    let down = one.run(&["down"]);
    assert!(down.status.success() && !ip("link").contains("edge0"), "{down:?}");
    assert!(one.child.wait().unwrap().success());
    assert!(!one.folder.join("edge0.sock").exists());
    let nobody = one.run(&["status"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("edgelink up"), "{nobody:?}");

    // SIGTERM is as good as `down`.
    let mut two = two;
    let killed = Command::new("kill").args(["-TERM", &two.child.id().to_string()]).status().unwrap();
    assert!(killed.success() && two.child.wait().unwrap().success());
    assert!(!ip("link").contains("edge1"));
}

#[test]
fn a_peer_whose_machine_key_has_changed_is_refused_until_somebody_accepts_it() {
    in_namespace("inside_a_changed_machine_key");
}

#[test]
#[ignore = "run by a_peer_whose_machine_key_has_changed_is_refused_until_somebody_accepts_it in a namespace"]
fn inside_a_changed_machine_key() {
    if let Err(error) = meshdp::tun::linux::Device::open("edgeprobe") {
        return println!("SKIPPED inside_a_changed_machine_key: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let relay = TestRelay::start(1);
    let controller = TestController::default();
    controller.0.lock().unwrap().relays = vec![relay.entry()];
    controller.0.lock().unwrap().by_name = true;
    let url = controller.start();
    let one = Daemon::up(&url, "edge0", folder.path(), &[]);
    one.wait("the first", |status| status["controller"]["state"] == "connected");
    let two = Daemon::up(&url, "edge1", folder.path(), &[]);
    one.wait("everything", ready);
    let ping = |from: &Daemon| from.run(&["ping", "10.77.1.2", "-c", "1", "-W", "5"]).status.success();
    assert!(ping(&one), "{}", one.log());
    let peer = |daemon: &Daemon| daemon.status().unwrap()["peers"][0].clone();
    assert_eq!(peer(&one)["post_quantum"], true, "on by default");
    let nothing = one.run(&["keys", "accept", "edge1"]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing to accept"), "{nothing:?}");

    // Another machine under the same node id.
    let before = two.status().unwrap()["machine_key"].clone();
    drop(two);
    std::fs::remove_dir_all(folder.path().join("edge1")).unwrap();
    let two = Daemon::up(&url, "edge1", folder.path(), &[]);
    let after =
        two.wait("its own status", |status| status["controller"]["state"] == "connected")["machine_key"]
            .clone();
    assert_ne!(before, after);
    one.wait("distrust", |status| status["peers"][0]["session"] == "untrusted");
    let distrust = &peer(&one)["untrusted"];
    assert_eq!(
        (&distrust["reason"], &distrust["machine_key"], &distrust["pinned_machine_key"]),
        (&Value::from("machine_key_changed"), &after, &before)
    );
    assert!(!ping(&one), "nothing passes");
    assert!(one.log().contains("MachineKeyChanged"), "{}", one.log());

    // What is shown can be typed as it stands, and accepts that key and no other.
    let table = String::from_utf8(one.run(&["status"]).stdout).unwrap();
    let command = format!("edgelink keys accept 18 --machine-key {}", after.as_str().unwrap());
    assert!(table.contains("edge1 is not trusted") && table.contains(&command), "{table}");
    let wrong = one.run(&["keys", "accept", "edge1", "--machine-key", before.as_str().unwrap()]);
    assert!(
        !wrong.status.success()
            && String::from_utf8_lossy(&wrong.stderr).contains("not the one that was given")
    );
    assert!(!ping(&one));
    let typed: Vec<&str> = command.split(' ').skip(1).collect();
    let accepted = one.run(&typed);
    assert!(accepted.status.success(), "{accepted:?}");
    assert!(ping(&one), "{}", one.log());
    assert_eq!(peer(&one)["untrusted"], Value::Null);

    // For good.
    let kept = || std::fs::read_to_string(folder.path().join("edge0/pins.json")).unwrap_or_default();
    one.wait("the new pin on disk", |_| kept().contains(after.as_str().unwrap()));
    drop(one);
    let one = Daemon::up(&url, "edge0", folder.path(), &[]);
    one.wait("everything again", ready);
    assert!(ping(&one), "{}", one.log());
}

#[test]
fn mistakes_end_with_advice() {
    let run = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgelink"));
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("node.toml");
        std::fs::write(&config, "hostnam = \"x\"\n").unwrap();
        let clean: BTreeMap<_, _> =
            std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("EDGELINK")).collect();
        command.env_clear().envs(clean).envs(env.iter().copied()).env("HOME", folder.path());
        let args = args.iter().map(|arg| arg.replace("CONFIG", config.to_str().unwrap()));
        let output = command.args(args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(
        run(&["up", "--config", "CONFIG"], &[])
            .contains("node.toml:1:1: unknown key \"hostnam\", did you mean \"hostname\"?")
    );
    assert!(run(&["up", "--controller", "ws://elsewhere.example"], &[]).contains("write wss://"));
    assert!(run(&["up"], &[("EDGELINK_CONTROLLER", "nonsense")]).contains("scheme is missing"));
    assert!(
        run(&["up", "--interface", "much-too-long-a-name", "--controller", "wss://c.example"], &[])
            .contains("edge0")
    );
    assert!(run(&["ping", "x", "--interval", "0"], &[]).contains("between 0.01 and 60"));
}
