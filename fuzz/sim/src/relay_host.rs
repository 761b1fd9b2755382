//! A relay: its hub, one worker, and the little that a shell does for them.

use std::collections::BTreeMap;

use meshdp::proto::id::RelayId;
use meshdp::proto::relay::hub::{Hub, HubCommand, Settings};
use meshdp::proto::relay::mesh::Dial;
use meshdp::proto::relay::worker::{Command, Worker};
use meshdp::proto::relay::{ConnId, Limits, WorkerId};
use meshdp::proto::time::{Instant, Now, UnixTime};
use meshdp::proto::wire::control::Secret;
use meshdp::proto::wire::control::server::ServerRegister;
use meshdp::proto::wire::frame::FrameType;
use rand_chacha::ChaCha20Rng;

/// What the world is to do for a relay.
#[derive(Debug)]
pub enum Task {
    /// Send a frame on a connection.
    Send(ConnId, Vec<u8>),
    /// End a connection.
    Close(ConnId),
    /// Dial another relay.
    Dial(Dial),
    /// Tell the controller.
    Control(FrameType, Vec<u8>),
}

/// See the [module](self).
pub struct RelayHost {
    /// True while it runs.
    pub up: bool,
    /// The relay's whole.
    pub hub: Hub,
    /// Its one worker.
    pub worker: Worker,
    /// Seconds by which its calendar is ahead of everyone else's.
    pub clock_error: i64,
    /// Connection numbers, by what the worker calls them.
    pub connections: BTreeMap<ConnId, u64>,
    next: u32,
}

impl RelayHost {
    /// Just started.
    ///
    /// # Panics
    /// Never: no keys are configured that could be bad.
    pub fn new(rng: ChaCha20Rng, now: Now) -> Self {
        let settings = Settings {
            token_keys: None,
            relay_id: RelayId(0),
            mesh_peers: Vec::new(),
            has_controller: true,
            register: ServerRegister {
                token: Secret::default(),
                version: "sim".into(),
                capabilities: vec!["relay".into()],
                data_url: None,
                mesh_url: None,
                stun: None,
                tls_pin: None,
                config_version: 0,
                nodes: Vec::new(),
            },
        };
        Self {
            up: true,
            clock_error: 0,
            hub: Hub::new(settings, None, rng, now).expect("no keys are configured"),
            worker: Worker::new(WorkerId(0), Limits::default()),
            connections: BTreeMap::new(),
            next: 0,
        }
    }

    /// What its clocks show.
    pub fn clocks(&self, now: Now) -> Now {
        let unix = now.unix.as_secs().saturating_add_signed(self.clock_error);
        Now { unix: UnixTime::from_secs(unix), ..now }
    }

    /// A name for a connection that comes.
    pub fn new_conn(&mut self) -> ConnId {
        self.next += 1;
        ConnId(self.next)
    }

    /// What is to be done, until nothing is.
    pub fn tasks(&mut self, now: Now) -> Vec<Task> {
        let now = self.clocks(now);
        let mut tasks = Vec::new();
        loop {
            let before = tasks.len();
            let mut moved = false;
            while let Some(command) = self.worker.poll_command() {
                match command {
                    Command::Send { conn, frame } => tasks.push(Task::Send(conn, frame)),
                    Command::Close { conn, .. } | Command::Cut { conn } => tasks.push(Task::Close(conn)),
                    // Links of the simulation hold nothing back.
                    Command::Discard { .. } | Command::Welcome { .. } => {}
                    Command::Report(report) => {
                        self.hub.handle_worker(WorkerId(0), report, now);
                        moved = true;
                    }
                }
            }
            while let Some(command) = self.hub.poll_command(now) {
                moved = true;
                match command {
                    HubCommand::All(message) | HubCommand::One(_, message) => {
                        self.worker.handle_hub(&message, now);
                    }
                    HubCommand::Dial(dial) => tasks.push(Task::Dial(dial)),
                    HubCommand::Save(_) => {}
                }
            }
            while let Some((kind, payload)) = self.hub.poll_control(now) {
                tasks.push(Task::Control(kind, payload));
            }
            if !moved && tasks.len() == before {
                return tasks;
            }
        }
    }

    /// When something is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let worker = self.worker.poll_timeout().map(|(at, _)| at);
        let hub = self.hub.poll_timeout().map(|(at, _)| at);
        [worker, hub].into_iter().flatten().min()
    }
}
