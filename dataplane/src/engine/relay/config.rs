//! What a relay is started with.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::StateError;
use crate::engine::Prefer;
use crate::engine::socket::{SocketError, local_address, tcp_listener};
use crate::engine::stun::{StunConfig, StunStartError};
use crate::engine::tls::Roots;
use crate::proto::dial::proxy::ProxyRules;
use crate::proto::id::RelayId;
use crate::proto::relay::hub::Settings;
use crate::proto::relay::queue::QueuePolicy;
use crate::proto::relay::{Arrivals, Limits};
use crate::proto::token::TokenKeyError;
use crate::proto::wire::control::Secret;
use crate::proto::wire::control::server::ServerRegister;
use crate::proto::wire::forwarded::Trust;

/// A process that was killed is gone before its io_uring has let go of its sockets (10 ms with 300 connections, 70 on a busy machine): whoever starts it
/// again at once waits that long at most.
const PORT_LINGERS: Duration = Duration::from_secs(2);
/// More threads than that gain nothing: each pair has a lane.
const MAX_WORKERS: usize = 64;

/// One address where nodes and relays connect.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Address and port.
    pub address: SocketAddr,
    /// `None`: plain, for loopback or behind a proxy.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// All connections come through proxies: the peer's address is never a client's, and no limit per address looks at it.
    pub behind_proxy: bool,
    /// Connections begin with a PROXY header, before TLS. Only addresses of [`RelayConfig::trust`] may connect then.
    pub proxy_protocol: bool,
}

impl Listener {
    /// For clients that come by themselves.
    pub const fn new(address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self { address, tls, behind_proxy: false, proxy_protocol: false }
    }
}

/// See the fields; [`RelayConfig::default`] listens nowhere.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Where nodes and relays connect; none: no relay (STUN only).
    pub listeners: Vec<Listener>,
    /// Which proxies are believed about whom they pass on.
    pub trust: Trust,
    /// Share ports with a relay that runs already, so that it can be stopped without a gap.
    pub take_over: bool,
    /// Where nodes ask for their upgrade.
    pub data_path: String,
    /// Where relays do.
    pub mesh_path: String,
    /// Threads; 0: one per core.
    pub workers: usize,
    /// Limits of the whole relay.
    pub limits: Limits,
    /// What waits for slow receivers.
    pub queue: QueuePolicy,
    /// What the operator says about keys, mesh and registration.
    pub settings: Settings,
    /// Where state is kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// What certificates of other relays are checked with.
    pub mesh_roots: Roots,
    /// Which proxy leads to other relays.
    pub proxies: ProxyRules,
    /// Where STUN is answered.
    pub stun: Option<StunConfig>,
    /// io_uring or epoll.
    pub driver: Prefer,
}

impl Default for RelayConfig {
    fn default() -> Self {
        let register = ServerRegister {
            token: Secret::default(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: vec!["relay".into()],
            data_url: None,
            mesh_url: None,
            stun: None,
            tls_pin: None,
            config_version: 0,
            nodes: Vec::new(),
        };
        Self {
            listeners: Vec::new(),
            trust: Trust::default(),
            take_over: false,
            data_path: "/ws/data".into(),
            mesh_path: "/ws/mesh".into(),
            workers: 0,
            limits: Limits::default(),
            queue: QueuePolicy::default(),
            settings: Settings {
                token_keys: None,
                relay_id: RelayId(0),
                mesh_peers: Vec::new(),
                has_controller: true,
                register,
            },
            state_dir: None,
            mesh_roots: Roots::default(),
            proxies: ProxyRules::default(),
            stun: None,
            driver: Prefer::Auto,
        }
    }
}

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A port cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No STUN server.
    #[error(transparent)]
    Stun(#[from] StunStartError),
    /// Neither io_uring nor epoll.
    #[error("cannot open io_uring or epoll: {0}")]
    Driver(io::Error),
    /// No thread.
    #[error("cannot start a thread: {0} (see `ulimit -u`)")]
    Thread(io::Error),
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// Configured keys.
    #[error("token keys: {0}")]
    TokenKeys(TokenKeyError),
    /// Kept state.
    #[error(transparent)]
    State(#[from] StateError),
}

impl RelayConfig {
    pub(super) fn worker_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let wanted = if self.workers == 0 { cores() } else { self.workers };
        wanted.clamp(1, MAX_WORKERS)
    }

    /// Data path, mesh path. Connections keep them for good; a relay is started once or twice in a process.
    pub(super) fn leak_paths(&self) -> &'static [&'static str] {
        if self.data_path == "/ws/data" && self.mesh_path == "/ws/mesh" {
            return &["/ws/data", "/ws/mesh"];
        }
        let leak = |path: &str| -> &'static str { Box::leak(path.to_owned().into_boxed_str()) };
        Box::leak(Box::new([leak(&self.data_path), leak(&self.mesh_path)]))
    }
}

/// One socket per worker, on one address; the system chooses a port for all when 0 is asked for.
pub(super) fn listeners(
    listen: SocketAddr,
    count: usize,
    take_over: bool,
) -> Result<Vec<OwnedFd>, SocketError> {
    let address = free_address(listen, take_over, tcp_listener)?;
    (0..count).map(|_| tcp_listener(address, true)).collect()
}

/// Makes sure that nobody else listens there: with SO_REUSEPORT, which lets workers share a port (and a relay take one over), the system would let
/// two programs share it by mistake.
pub(crate) fn free_address(
    address: SocketAddr,
    take_over: bool,
    open: fn(SocketAddr, bool) -> Result<OwnedFd, SocketError>,
) -> Result<SocketAddr, SocketError> {
    let until = Instant::now() + PORT_LINGERS;
    let mut probe = open(address, false);
    while matches!(probe, Err(SocketError::InUse { .. })) && !take_over && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
        probe = open(address, false);
    }
    match probe {
        Ok(probe) => local_address(&probe).map_err(|source| SocketError::Io { address, source }),
        Err(SocketError::InUse { .. }) if take_over => {
            tracing::info!(%address, "sharing the port with the relay that has it, until that one stops");
            Ok(address)
        }
        Err(error) => Err(error),
    }
}

/// The share of one worker. The kernel spreads connections by hash, not evenly: half as many again.
pub(super) fn per_worker(limits: &Limits, workers: usize) -> Limits {
    let share = |all: usize| if workers <= 1 { all } else { (all / workers).saturating_mul(3) / 2 + 1 };
    Limits {
        max_connections: share(limits.max_connections),
        max_unauthenticated: share(limits.max_unauthenticated),
        max_unauthenticated_per_address: share(limits.max_unauthenticated_per_address),
        max_connections_per_address: share(limits.max_connections_per_address),
        arrivals: Arrivals {
            per_s: share(limits.arrivals.per_s as usize) as u32 * u32::from(limits.arrivals.per_s > 0),
            burst: share(limits.arrivals.burst as usize) as u32,
        },
        ..limits.clone()
    }
}
