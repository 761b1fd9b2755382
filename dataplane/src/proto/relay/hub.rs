//! What is true for the whole relay: its configuration, who is connected, the mesh, and what the controller is to hear.
//!
//! Inputs: control messages of the controller ([`Hub::handle_control`]), reports of workers ([`Hub::handle_worker`]), the time. Outputs:
//! [`Hub::poll_command`] (to workers, dials, state to keep), [`Hub::poll_control`] (to the controller, SERVER_REGISTER first after each
//! [`Hub::controller_connected`]), [`Hub::poll_timeout`]. Reports are put in order here: the last sign-in of a node that arrives is the
//! one that holds. What waits for the controller is coalesced, so it stays bounded while the controller is away.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

use super::calendar::Calendar;
use super::mesh::{Dial, LinkState, Mesh};
use super::{FromWorker, ToWorker, WorkerId};
use crate::proto::id::{NodeId, RelayId};
use crate::proto::time::{Instant, Now, UnixTime};
use crate::proto::token::revocation::RevocationList;
use crate::proto::token::{TokenKeyError, TokenVerifier};
use crate::proto::wire::control::node::{End, LatencyReport, LatencySample};
use crate::proto::wire::control::server::{
    MeshPeer, NodeLocation, NodeLocations, Revocations, ServerChange, ServerConfig, ServerConfigUpdate,
    ServerRegister, ServerSettings, TokenKeys,
};
use crate::proto::wire::control::{MessageError, Secret, parse, to_payload};
use crate::proto::wire::frame::FrameType;

/// Without a word from the controller for that long, grace begins (`docs/protocol.md` §6).
const CONTROLLER_SILENCE: Duration = Duration::from_secs(60);
/// Grace goes on for that long after the controller is back: nodes have to hear from it before they can show fresh tokens. What was revoked meanwhile the
/// relay knows at once.
const GRACE_TAIL: Duration = Duration::from_secs(120);
/// Changes of state are written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// What the operator's configuration says about this relay.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keys to start with, when there is no controller or it has not spoken yet.
    pub token_keys: Option<TokenKeys>,
    /// 0: the controller says.
    pub relay_id: RelayId,
    /// Mesh peers that the operator names.
    pub mesh_peers: Vec<MeshPeer>,
    /// There is a controller, whose silence begins grace.
    pub has_controller: bool,
    /// What to say in SERVER_REGISTER: token, capabilities, URLs, pin.
    pub register: ServerRegister,
}

/// What is kept on disk, to start from while the controller is away. A secret: mesh tokens, and with HS256 the key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedState {
    /// The last configuration, deltas applied.
    pub config: ServerConfig,
    /// The relay's own token, when the controller has renewed it.
    #[serde(default)]
    pub server_token: Option<Secret>,
}

/// What the shell is to do.
#[derive(Clone, Debug)]
pub enum HubCommand {
    /// Tell every worker.
    All(ToWorker),
    /// Tell one.
    One(WorkerId, ToWorker),
    /// Make a connection for a mesh link and give it to a worker.
    Dial(Dial),
    /// Keep this; replaces what was kept.
    Save(Box<SavedState>),
}

/// Why a control message was not applied.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlError {
    /// Not what its type promises.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Keys that cannot be used; the old ones stay.
    #[error("token keys: {0}")]
    Keys(#[from] TokenKeyError),
    /// An update that does not follow what is known: sign in again with version 0.
    #[error("configuration update from version {base}, have {have}")]
    OutOfStep {
        /// What it builds on.
        base: u64,
        /// What is here.
        have: u64,
    },
    /// Not a message that a controller sends to a relay.
    #[error("frame type {0:?} is not for relays")]
    Unexpected(FrameType),
    /// The controller says that this relay is another one.
    #[error("configuration without a relay id")]
    NoRelayId,
}

/// See the module's doc.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
    config: Option<ServerConfig>,
    nodes: BTreeMap<NodeId, NodeLocation>,
    revoked: RevocationList,
    server_token: Option<Secret>,
    owners: BTreeMap<NodeId, WorkerId>,
    mesh: Mesh,
    /// What workers know of [`Mesh::tokens`].
    mesh_tokens: Arc<BTreeMap<RelayId, Secret>>,
    calendar: Calendar,
    commands: VecDeque<HubCommand>,
    heard: Instant,
    in_grace: bool,
    /// The controller is back: grace ends then.
    grace_until: Option<Instant>,
    register_due: bool,
    registered: bool,
    pending: BTreeMap<NodeId, bool>,
    next_report: Instant,
    save_at: Option<Instant>,
    last_save: Option<Instant>,
}

impl Hub {
    /// Starts with what the operator configured, and with what was kept from the last run.
    ///
    /// # Errors
    /// Configured keys that cannot be used.
    pub fn new(
        settings: Settings,
        saved: Option<SavedState>,
        rng: ChaCha20Rng,
        now: Now,
    ) -> Result<Self, TokenKeyError> {
        let mesh = Mesh::new(settings.mesh_peers.clone(), rng);
        let mut hub = Self {
            config: None,
            nodes: BTreeMap::new(),
            revoked: RevocationList::default(),
            server_token: None,
            owners: BTreeMap::new(),
            mesh,
            mesh_tokens: Arc::default(),
            calendar: Calendar::default(),
            commands: VecDeque::new(),
            heard: now.instant,
            in_grace: false,
            grace_until: None,
            register_due: true,
            registered: false,
            pending: BTreeMap::new(),
            next_report: now.instant,
            save_at: None,
            last_save: None,
            settings,
        };
        if let Some(keys) = hub.settings.token_keys.clone() {
            hub.identify(hub.settings.relay_id, &keys)?;
        }
        if let Some(SavedState { config, server_token }) = saved {
            hub.server_token = server_token;
            // Kept keys were good once; if they are not now, the configured ones hold until the controller speaks.
            // Its date is that of the day when it was kept.
            let _ = hub.apply_config(ServerConfig { server_time: 0, ..config }, now);
            hub.save_at = None;
        }
        hub.share_mesh_tokens();
        hub.next_report = now.instant + hub.report_interval();
        Ok(hub)
    }

    /// Takes one whole control message. PING and PONG count as a sign of life.
    ///
    /// # Errors
    /// The message changes nothing then. On [`ControlError::OutOfStep`] the link should be made anew: the next SERVER_REGISTER asks for everything.
    pub fn handle_control(&mut self, kind: FrameType, payload: &[u8], now: Now) -> Result<(), ControlError> {
        self.controller_heard(now);
        match kind {
            FrameType::Config => self.apply_config(parse::<ServerConfig>(kind, payload)?, now),
            FrameType::ConfigUpdate => self.apply_update(parse::<ServerConfigUpdate>(kind, payload)?, now),
            FrameType::ServerNodeLoc => {
                let locations = parse::<NodeLocations>(kind, payload)?;
                for location in &locations.set {
                    self.nodes.insert(location.node_id, location.clone());
                }
                for node in &locations.remove {
                    self.nodes.remove(node);
                }
                self.locate(false, &locations.set, &locations.remove);
                self.save_later(now);
                Ok(())
            }
            FrameType::ServerBlacklist => {
                let revocations = parse::<Revocations>(kind, payload)?;
                self.revoke(revocations, now);
                Ok(())
            }
            FrameType::Ping | FrameType::Pong | FrameType::Ack | FrameType::Error => Ok(()),
            other => Err(ControlError::Unexpected(other)),
        }
    }

    /// The link to the controller is there (anew): SERVER_REGISTER comes first, and tells all that waited.
    pub fn controller_connected(&mut self) {
        self.register_due = true;
        self.registered = false;
        self.pending.clear();
    }

    /// Takes one report of a worker's.
    pub fn handle_worker(&mut self, worker: WorkerId, report: FromWorker, now: Now) {
        match report {
            FromWorker::NodeUp { node, network } => {
                self.owners.insert(node, worker);
                self.pending.insert(node, true);
                self.all(ToWorker::NodeAt { node, network, worker });
            }
            FromWorker::NodeDown { node } => {
                if self.owners.get(&node) == Some(&worker) {
                    self.owners.remove(&node);
                    self.pending.insert(node, false);
                    self.all(ToWorker::NodeGone { node });
                }
            }
            FromWorker::LinkUp { relay, serial } => {
                if let Some((old_worker, old)) = self.mesh.link_up(relay, worker, serial) {
                    let close = ToWorker::CloseLink { relay, serial: old, reason: "replaced" };
                    self.commands.push_back(HubCommand::One(old_worker, close));
                }
                self.all(ToWorker::LinkAt { relay, worker, serial });
            }
            FromWorker::LinkLeaving { relay, serial } => self.all(ToWorker::LinkLeaving { relay, serial }),
            FromWorker::LinkDown { relay, serial } => {
                self.mesh.link_down(relay, serial, now.instant);
                self.all(ToWorker::LinkGone { relay, serial });
            }
            FromWorker::LinkRtt { relay, rtt } => self.mesh.measured(relay, rtt),
            FromWorker::LinkLoss { relay, frames, lost } => self.mesh.carried(relay, frames, lost),
            FromWorker::DialFailed { relay } => self.mesh.dial_failed(relay, now.instant),
        }
    }

    /// A dial ended before there was a connection to give to a worker.
    pub fn dial_failed(&mut self, relay: RelayId, now: Instant) {
        self.mesh.dial_failed(relay, now);
    }

    /// Passes a message on to every worker (limits, drain).
    pub fn all(&mut self, message: ToWorker) {
        self.commands.push_back(HubCommand::All(message));
    }

    /// What the shell is to do; call until `None`.
    pub fn poll_command(&mut self, now: Now) -> Option<HubCommand> {
        self.check_silence(now.instant);
        if let Some(command) = self.commands.pop_front() {
            return Some(command);
        }
        if let Some(dial) = self.mesh.poll_dial(now.instant) {
            return Some(HubCommand::Dial(dial));
        }
        if self.save_at.is_some_and(|at| at <= now.instant) {
            self.save_at = None;
            self.last_save = Some(now.instant);
            return self.saved_state().map(|state| HubCommand::Save(Box::new(state)));
        }
        None
    }

    /// What the controller is to hear; call until `None`.
    pub fn poll_control(&mut self, now: Now) -> Option<(FrameType, Vec<u8>)> {
        if std::mem::take(&mut self.register_due) {
            self.registered = true;
            self.pending.clear();
            let mut register = self.settings.register.clone();
            if let Some(token) = &self.server_token {
                register.token.clone_from(token);
            }
            register.config_version = self.version();
            register.nodes = self.owners.keys().copied().collect();
            return Some((FrameType::ServerRegister, to_payload(&register)));
        }
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let of = |up: bool| pending.iter().filter(|(_, is)| **is == up).map(|(node, _)| *node).collect();
            let locations =
                NodeLocations { connected: of(true), disconnected: of(false), ..NodeLocations::default() };
            return Some((FrameType::ServerNodeLoc, to_payload(&locations)));
        }
        if self.next_report <= now.instant {
            self.next_report = now.instant + self.report_interval();
            let sample = |LinkState { relay, rtt, loss }| {
                Some(LatencySample { to: End::Relay(relay), rtt_ms: rtt?.as_secs_f64() * 1000.0, loss })
            };
            let samples: Vec<LatencySample> = self.mesh.report().into_iter().filter_map(sample).collect();
            let id = self.relay_id();
            if !samples.is_empty() && id.0 != 0 {
                let report = LatencyReport { from: End::Relay(id), samples };
                return Some((FrameType::LatencyReport, to_payload(&report)));
            }
        }
        None
    }

    /// When [`Self::poll_control`] has something by the passing of time alone; `None` before the first SERVER_REGISTER.
    pub fn poll_control_timeout(&self) -> Option<Instant> {
        self.registered.then_some(self.next_report)
    }

    /// When to poll commands again, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let away = self.in_grace && self.grace_until.is_none();
        let silence = (self.settings.has_controller && !away)
            .then(|| (self.heard + CONTROLLER_SILENCE, "controller silence"));
        let grace = self.grace_until.map(|at| (at, "end of grace"));
        let dial = self.mesh.poll_timeout().map(|at| (at, "mesh dial"));
        let save = self.save_at.map(|at| (at, "save state"));
        [silence, grace, dial, save].into_iter().flatten().min()
    }

    /// Who this relay is; 0 until it is known.
    pub fn relay_id(&self) -> RelayId {
        self.config.as_ref().map_or(self.settings.relay_id, |config| config.relay_id)
    }

    /// The configuration's version; 0 without one.
    pub fn version(&self) -> u64 {
        self.config.as_ref().map_or(0, |config| config.version)
    }

    /// Whether tokens can be checked: a sign-in may succeed.
    pub fn is_ready(&self) -> bool {
        self.relay_id().0 != 0 && (self.config.is_some() || self.settings.token_keys.is_some())
    }

    /// Whether the controller is away and grace holds.
    pub fn in_grace(&self) -> bool {
        self.in_grace
    }

    /// Nodes connected to this relay.
    pub fn connected_nodes(&self) -> usize {
        self.owners.len()
    }

    /// Mesh links that are up, with their last round trip.
    pub fn links(&self) -> impl Iterator<Item = (RelayId, Option<Duration>)> + '_ {
        self.mesh.links().map(|(id, _, _, rtt)| (id, rtt))
    }

    fn apply_config(&mut self, config: ServerConfig, now: Now) -> Result<(), ControlError> {
        if config.relay_id.0 == 0 {
            return Err(ControlError::NoRelayId);
        }
        self.identify(config.relay_id, &config.token_keys)?;
        let me = config.relay_id;
        let others: Vec<MeshPeer> = config.relays.iter().filter(|peer| peer.id != me).cloned().collect();
        for (relay, (worker, serial)) in self.mesh.set_all(&others, now.instant) {
            let close = ToWorker::CloseLink { relay, serial, reason: "removed" };
            self.commands.push_back(HubCommand::One(worker, close));
        }
        self.nodes = config.nodes.iter().map(|node| (node.node_id, node.clone())).collect();
        self.locate(true, &config.nodes, &[]);
        self.calendar = Calendar::told(UnixTime::from_secs(config.server_time), now.instant);
        self.all(ToWorker::Calendar(self.calendar));
        self.revoke(config.revocations.clone(), now);
        self.share_mesh_tokens();
        self.config = Some(config);
        self.next_report = self.next_report.min(now.instant + self.report_interval());
        self.save_later(now);
        Ok(())
    }

    fn apply_update(&mut self, update: ServerConfigUpdate, now: Now) -> Result<(), ControlError> {
        let have = self.version();
        if update.base != update.version && update.base != have {
            self.config = self.config.take().map(|config| ServerConfig { version: 0, ..config });
            return Err(ControlError::OutOfStep { base: update.base, have });
        }
        for change in update.changes {
            match change {
                ServerChange::RelaySet { relay } => {
                    if let Some(config) = &mut self.config {
                        config.relays.retain(|known| known.id != relay.id);
                        config.relays.push(relay.clone());
                    }
                    if relay.id != self.relay_id() {
                        self.mesh.set(relay, now.instant);
                    }
                }
                ServerChange::RelayRemove { relay_id } => {
                    if let Some(config) = &mut self.config {
                        config.relays.retain(|known| known.id != relay_id);
                    }
                    if let Some((worker, serial)) = self.mesh.remove(relay_id) {
                        let close = ToWorker::CloseLink { relay: relay_id, serial, reason: "removed" };
                        self.commands.push_back(HubCommand::One(worker, close));
                    }
                }
                ServerChange::KeysSet { token_keys } => {
                    self.identify(self.relay_id(), &token_keys)?;
                    if let Some(config) = &mut self.config {
                        config.token_keys = token_keys;
                    }
                }
                ServerChange::ServerToken { token } => self.server_token = Some(token),
                ServerChange::SettingsSet { settings } => {
                    if let Some(config) = &mut self.config {
                        config.settings = settings;
                    }
                    self.next_report = self.next_report.min(now.instant + self.report_interval());
                }
            }
        }
        if update.base != update.version
            && let Some(config) = &mut self.config
        {
            config.version = update.version;
        }
        self.share_mesh_tokens();
        self.save_later(now);
        Ok(())
    }

    fn identify(&mut self, relay_id: RelayId, keys: &TokenKeys) -> Result<(), TokenKeyError> {
        let verifier = Some(Arc::new(TokenVerifier::new(keys)?));
        self.mesh.set_me(relay_id);
        self.all(ToWorker::Identity { relay_id, verifier });
        Ok(())
    }

    fn share_mesh_tokens(&mut self) {
        let tokens = self.mesh.tokens();
        if tokens != *self.mesh_tokens {
            self.mesh_tokens = Arc::new(tokens);
            self.all(ToWorker::MeshTokens(Arc::clone(&self.mesh_tokens)));
        }
    }

    fn locate(&mut self, whole: bool, set: &[NodeLocation], remove: &[NodeId]) {
        if whole || !set.is_empty() || !remove.is_empty() {
            self.all(ToWorker::Locations { whole, set: set.into(), remove: remove.into() });
        }
    }

    fn revoke(&mut self, revocations: Revocations, now: Now) {
        self.revoked.prune(self.calendar.earliest(now), self.server_settings().token_grace_s);
        self.revoked.extend(&revocations);
        self.all(ToWorker::Revoke(Arc::new(revocations)));
        self.save_now(now);
    }

    fn controller_heard(&mut self, now: Now) {
        self.heard = now.instant;
        if self.in_grace {
            self.grace_until.get_or_insert(now.instant + GRACE_TAIL);
        }
    }

    fn check_silence(&mut self, now: Instant) {
        if self.settings.has_controller && now >= self.heard + CONTROLLER_SILENCE {
            self.grace_until = None;
            if !std::mem::replace(&mut self.in_grace, true) {
                let grace = Duration::from_secs(self.server_settings().token_grace_s);
                self.all(ToWorker::Grace(grace));
            }
        } else if self.grace_until.is_some_and(|at| at <= now) {
            (self.in_grace, self.grace_until) = (false, None);
            self.all(ToWorker::Grace(Duration::ZERO));
        }
    }

    fn server_settings(&self) -> ServerSettings {
        self.config.as_ref().map(|config| config.settings.clone()).unwrap_or_default()
    }

    fn report_interval(&self) -> Duration {
        Duration::from_secs(self.server_settings().latency_report_s.max(1))
    }

    fn save_later(&mut self, now: Now) {
        let at = self.last_save.map_or(now.instant, |last| (last + SAVE_INTERVAL).max(now.instant));
        self.save_at.get_or_insert(at);
    }

    /// Revocations survive a restart from the moment on that they are known.
    fn save_now(&mut self, now: Now) {
        self.save_at = Some(now.instant);
    }

    fn saved_state(&self) -> Option<SavedState> {
        let mut config = self.config.clone()?;
        config.nodes = self.nodes.values().cloned().collect();
        config.revocations = self.revoked.to_revocations();
        Some(SavedState { config, server_token: self.server_token.clone() })
    }
}
