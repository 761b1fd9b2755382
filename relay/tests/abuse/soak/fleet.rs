//! Three relays with a mesh between them, a controller for each, and what happens to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use meshdp::proto::wire::frame::{Flags, FrameType};
use meshdp::proto::wire::reassembly::write_control;
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use rustls::ClientConfig;
use tokio_tungstenite::tungstenite::Message;

use super::Shared;
use super::ledger::network;
use super::node::homes;
use crate::siege::*;
use crate::support::*;

const RELAYS: usize = 3;

pub struct Fleet {
    pub relays: Vec<Relay>,
    pub disturbances: BTreeMap<&'static str, u64>,
    configs: Vec<String>,
    controllers: Vec<Controls>,
    directories: Vec<tempfile::TempDir>,
}

/// A controller as the test holds it.
struct Controls {
    /// What it tells its relay; none before all relays listen.
    config: Arc<Mutex<Option<Vec<u8>>>>,
    /// It hangs up and is away until then.
    away_until: Arc<Mutex<Option<Instant>>>,
}

impl Fleet {
    pub fn start(shared: &Arc<Shared>, nodes: u32) -> Self {
        let mut fleet = Self {
            relays: Vec::new(),
            disturbances: BTreeMap::new(),
            configs: Vec::new(),
            controllers: Vec::new(),
            directories: Vec::new(),
        };
        for id in 1..=RELAYS {
            let directory = tempfile::tempdir().unwrap();
            let (controls, config) = control(Arc::clone(shared));
            let config = format!("{config}[limits]\nhandshake_timeout_s = 3\ndrain_s = 1\n");
            let listening = |at: String| {
                config.replace("[relay]\nlisten = \"127.0.0.1:0\"", &format!("[relay]\nlisten = \"{at}\""))
            };
            // An address that no client has: a port that was given back is still free when the relay starts again.
            let first = listening(format!("127.200.0.{id}:0"));
            let relay = Relay::start(directory.path(), &first, &["--dev"]);
            let config = listening(relay.data.to_string());
            fleet.relays.push(relay);
            fleet.configs.push(config);
            fleet.controllers.push(controls);
            fleet.directories.push(directory);
        }
        for (place, controls) in fleet.controllers.iter().enumerate() {
            let config = fleet.controller_config(place, nodes);
            *controls.config.lock().unwrap() = Some(config);
        }
        let until = Instant::now() + PATIENCE;
        for relay in &fleet.relays {
            while relay.admin("/metrics").1.matches("edgelink_relay_mesh_rtt_seconds{").count() < RELAYS - 1 {
                assert!(Instant::now() < until, "no mesh");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        fleet
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.relays.iter().map(|relay| relay.data).collect()
    }

    pub fn client_tls(&self) -> Vec<ClientConfig> {
        self.relays.iter().map(|relay| client_tls(&relay.directory)).collect()
    }

    fn controller_config(&self, place: usize, nodes: u32) -> Vec<u8> {
        let me = place as u16 + 1;
        let others: Vec<_> = (0..RELAYS).filter(|other| *other != place).collect();
        let relays: Vec<_> =
            others.iter().map(|&other| (other as u16 + 1, self.relays[other].data)).collect();
        let homes: Vec<_> = (1..=nodes)
            .map(|node| (node, homes(node, RELAYS).iter().map(|home| *home as u16 + 1).collect::<Vec<_>>()))
            .collect();
        let nodes: Vec<_> = homes.iter().map(|(node, relays)| (*node, network(*node), &relays[..])).collect();
        let mut config = config(me, &relays, &nodes);
        for (entry, other) in config["relays"].as_array_mut().unwrap().iter_mut().zip(others) {
            entry["mesh_url"] = format!("wss://{}/ws/mesh", self.relays[other].data).into();
            entry["tls_pin"] = pin(&self.relays[other]).into();
        }
        let mut frames = Vec::new();
        write_control(FrameType::Config, Flags::NONE, config.to_string().as_bytes(), &mut frames).unwrap();
        frames
    }

    /// Does something to some relay; the first is never killed.
    pub fn disturb(&mut self, rng: &mut ChaCha8Rng) {
        let place = rng.next_u32() as usize % RELAYS;
        let any = &self.relays[place];
        let what = match rng.next_u32() % 6 {
            0 if place > 0 => {
                self.relays[place].kill();
                self.restart(place);
                "killed and started again"
            }
            1 if place > 0 => {
                any.signal("TERM");
                assert!(self.relays[place].wait().success());
                self.restart(place);
                "drained and started again"
            }
            2 => {
                any.signal("STOP");
                std::thread::sleep(Duration::from_millis(u64::from(rng.next_u32() % 800)));
                any.signal("CONT");
                "stopped for a moment"
            }
            3 => {
                let away = Duration::from_millis(u64::from(rng.next_u32() % 3000));
                *self.controllers[place].away_until.lock().unwrap() = Some(Instant::now() + away);
                "its controller went away"
            }
            4 => {
                let mut link = Vec::new();
                for from in 1..=RELAYS as u16 {
                    if usize::from(from) != place + 1 {
                        link.push(self.usurp(place, from));
                    }
                }
                drop(link);
                "a second relay with its neighbour's token"
            }
            _ => {
                any.signal("HUP");
                "told to read its configuration again"
            }
        };
        *self.disturbances.entry(what).or_default() += 1;
    }

    fn restart(&mut self, place: usize) {
        let directory = self.relays[place].directory.clone();
        self.relays[place] = Relay::start(&directory, &self.configs[place], &["--dev"]);
    }

    /// Takes the place of a mesh link, and leaves it.
    fn usurp(&self, place: usize, from: u16) -> Option<()> {
        use crate::raw::*;
        let relay = &self.relays[place];
        let tcp = connect_from(std::net::Ipv4Addr::LOCALHOST, relay.data).ok()?;
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let session = rustls::ClientConnection::new(Arc::new(client_tls(&relay.directory)), name).unwrap();
        let mut raw = Raw::over(rustls::StreamOwned::new(session, tcp));
        raw.upgrade("/ws/mesh");
        let json =
            serde_json::json!({"kind": "mesh", "token": mesh_token(from, place as u16 + 1)}).to_string();
        raw.send(&message(&frame(FrameType::AuthRequest, json.as_bytes())));
        raw.next_frame()?;
        Some(())
    }

    /// Waits until only mesh links are left.
    pub fn wait_until_empty(&self) {
        let until = Instant::now() + PATIENCE * 2;
        for (relay, id) in self.relays.iter().zip(1..) {
            loop {
                let vitals = Vitals::of(relay);
                if (vitals.connections, vitals.nodes) == (RELAYS as u64 - 1, 0) {
                    break;
                }
                assert!(Instant::now() < until, "relay {id} still has {vitals:?}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn pin(relay: &Relay) -> String {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let certificate = CertificateDer::from_pem_file(relay.directory.join("state/self-signed.crt")).unwrap();
    meshdp::engine::tls::format_pin(&meshdp::engine::tls::pin_of(&certificate))
}

/// A controller on a thread of its own, until told to stop; with the configuration of a relay that looks for it.
fn control(shared: Arc<Shared>) -> (Controls, String) {
    let controls = Controls { config: Arc::default(), away_until: Arc::default() };
    let (config, away_until) = (Arc::clone(&controls.config), Arc::clone(&controls.away_until));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let controller = Controller::start().await;
            sender.send(controller.config()).unwrap();
            while !shared.stop.load(Ordering::Relaxed) {
                let _ = serve(&controller, &config, &away_until, &shared).await;
            }
        });
    });
    (controls, receiver.recv().unwrap())
}

/// One connection: configuration, then silence until it goes away.
async fn serve(
    controller: &Controller,
    config: &Mutex<Option<Vec<u8>>>,
    away_until: &Mutex<Option<Instant>>,
    shared: &Shared,
) -> Option<()> {
    let tick = Duration::from_millis(100);
    let tcp = tokio::time::timeout(tick, controller.accept_tcp()).await.ok()?;
    let away = *away_until.lock().unwrap();
    if away.is_some_and(|until| Instant::now() < until) {
        return None;
    }
    *away_until.lock().unwrap() = None;
    let mut socket = tokio_tungstenite::accept_async(tcp).await.ok()?;
    let mut told = false;
    while !shared.stop.load(Ordering::Relaxed) && away_until.lock().unwrap().is_none() {
        let ready = config.lock().unwrap().clone().filter(|_| !told);
        if let Some(config) = ready {
            socket.send(Message::binary(config)).await.ok()?;
            told = true;
        }
        if let Ok(message) = tokio::time::timeout(tick, socket.next()).await {
            message?.ok()?;
        }
    }
    Some(())
}
