//! What a relay tells about itself, and its Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use crate::proto::drop_reason::DropCounters;
use crate::proto::error::ErrorCode;
use crate::proto::id::{NetworkId, RelayId};
use crate::proto::relay::WorkerId;
use crate::proto::relay::delay::DelayHistogram;
use crate::proto::relay::worker::{ConnectionInfo, Counters, LinkInfo, Refusal};

/// One connection, for people.
#[derive(Clone, Debug)]
pub struct QueuedConnection {
    /// What it is.
    pub info: ConnectionInfo,
    /// The other end of its TCP connection, when that is a proxy.
    pub proxy: Option<IpAddr>,
    /// Bytes as they came from the network and went there, TLS and all.
    pub received: u64,
    /// See `received`.
    pub sent: u64,
    /// Bytes per second received since the last look at connections, or since it was accepted.
    pub receive_rate: f64,
    /// The same, sent.
    pub send_rate: f64,
    /// Bytes of data that wait for it.
    pub queued: usize,
    /// Frames dropped from its queue so far.
    pub dropped: u64,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerStats {
    /// Which.
    pub worker: WorkerId,
    /// `io_uring` or `epoll`
    pub driver: &'static str,
    /// Connections of all kinds.
    pub open: usize,
    /// Of these, not authenticated.
    pub unauthenticated: usize,
    /// Nodes in the directory.
    pub known_nodes: usize,
    /// Counts.
    pub counters: Counters,
    /// Drops by reason.
    pub drops: DropCounters,
    /// How long frames waited before they were handed to the system: one sample per connection at a time.
    pub delays: DelayHistogram,
    /// Connections whose receivers are behind.
    pub congested: usize,
    /// Memory that their queues take, in bytes.
    pub queue_memory: usize,
    /// Mesh links of this worker.
    pub links: Vec<LinkInfo>,
    /// Drops by the sender's network.
    pub network_drops: Vec<(NetworkId, DropCounters)>,
    /// When asked for.
    pub connections: Vec<QueuedConnection>,
}

/// The relay.
#[derive(Clone, Debug)]
pub struct RelayStats {
    /// Who it is; 0 while unknown.
    pub relay_id: RelayId,
    /// Whether it has said GOAWAY.
    pub draining: bool,
    /// Whether sign-ins can succeed.
    pub ready: bool,
    /// Whether the controller is away and tokens last longer.
    pub in_grace: bool,
    /// The configuration's version; 0 without one.
    pub config_version: u64,
    /// Nodes connected.
    pub connected_nodes: usize,
    /// Mesh links that are up, with their last round trip.
    pub links: Vec<(RelayId, Option<Duration>)>,
    /// STUN: answered, refused, dropped, limited.
    pub stun: Option<[u64; 4]>,
    /// By worker; one that did not answer in time is missing.
    pub workers: Vec<WorkerStats>,
}

impl RelayStats {
    /// In the Prometheus text format.
    pub fn to_prometheus(&self) -> String {
        let mut text = Text(String::new());
        text.gauge(
            "edgelink_relay_info",
            "Always 1; the labels say which relay and version this is.",
            [(format!("relay=\"{}\",version=\"{}\"", self.relay_id, env!("CARGO_PKG_VERSION")), 1.0)],
        );
        text.gauge(
            "edgelink_relay_draining",
            "Whether it has told nodes to move and is about to stop.",
            [("", f64::from(u8::from(self.draining)))],
        );
        text.gauge(
            "edgelink_relay_ready",
            "Whether sign-ins can succeed.",
            [("", f64::from(u8::from(self.ready)))],
        );
        text.gauge(
            "edgelink_relay_grace",
            "Whether the controller is away and tokens last longer.",
            [("", f64::from(u8::from(self.in_grace)))],
        );
        text.gauge(
            "edgelink_relay_config_version",
            "Version of the controller's configuration.",
            [("", self.config_version as f64)],
        );
        text.gauge("edgelink_relay_nodes", "Nodes connected.", [("", self.connected_nodes as f64)]);
        let links = self
            .links
            .iter()
            .map(|(id, rtt)| (format!("relay=\"{id}\""), rtt.map_or(f64::NAN, |rtt| rtt.as_secs_f64())));
        text.gauge("edgelink_relay_mesh_rtt_seconds", "Round trip of each mesh link that is up.", links);
        let by_worker = |value: fn(&WorkerStats) -> f64| {
            self.workers.iter().map(move |worker| {
                (format!("worker=\"{}\",driver=\"{}\"", worker.worker.0, worker.driver), value(worker))
            })
        };
        text.gauge("edgelink_relay_connections", "Connections of all kinds.", by_worker(|w| w.open as f64));
        text.gauge(
            "edgelink_relay_unauthenticated_connections",
            "Connections that have not signed in.",
            by_worker(|w| w.unauthenticated as f64),
        );
        text.gauge(
            "edgelink_relay_known_nodes",
            "Nodes in the directory.",
            by_worker(|w| w.known_nodes as f64),
        );
        text.gauge(
            "edgelink_relay_congested_connections",
            "Connections whose receivers are behind.",
            by_worker(|w| w.congested as f64),
        );
        text.gauge(
            "edgelink_relay_queue_memory_bytes",
            "Memory taken by what waits for them.",
            by_worker(|w| w.queue_memory as f64),
        );
        for (name, help, value) in COUNTERS {
            text.family(name, help, "counter", by_worker(*value));
        }
        let refusals = Refusal::ALL.iter().enumerate().map(|(place, refusal)| {
            let count = |worker: &WorkerStats| worker.counters.refusals.get(place).copied();
            let sum: u64 = self.workers.iter().filter_map(count).sum();
            (format!("reason=\"{}\"", refusal.label()), sum as f64)
        });
        let help = "Connections over a limit, by which one.";
        text.family("edgelink_relay_refusals_total", help, "counter", refusals);
        for (name, help, value) in LINK_COUNTERS {
            text.family(name, help, "counter", self.by_link(*value));
        }
        let mut delays = DelayHistogram::default();
        self.workers.iter().for_each(|worker| delays.merge(&worker.delays));
        text.histogram("edgelink_relay_queue_delay_seconds", "How long frames waited to be sent.", &delays);
        text.family("edgelink_relay_errors_total", "ERROR frames sent, by code.", "counter", self.by_code());
        let mut drops = DropCounters::default();
        let mut by_network: BTreeMap<NetworkId, DropCounters> = BTreeMap::new();
        for worker in &self.workers {
            drops.merge(&worker.drops);
            for (network, counters) in &worker.network_drops {
                by_network.entry(*network).or_default().merge(counters);
            }
        }
        let reasons = drops.iter().map(|(reason, n)| (format!("reason=\"{}\"", reason.label()), n as f64));
        text.family("edgelink_relay_drops_total", "Frames dropped, by reason.", "counter", reasons);
        let networks = by_network.iter().flat_map(|(network, counters)| {
            let nonzero = counters.iter().filter(|(_, n)| *n > 0);
            nonzero.map(move |(reason, n)| {
                (format!("network=\"{network}\",reason=\"{}\"", reason.label()), n as f64)
            })
        });
        text.family(
            "edgelink_relay_network_drops_total",
            "Frames dropped, by the sender's network.",
            "counter",
            networks,
        );
        if let Some([answered, refused, dropped, limited]) = self.stun {
            let outcomes =
                [("answered", answered), ("refused", refused), ("dropped", dropped), ("limited", limited)];
            let outcomes = outcomes.map(|(outcome, n)| (format!("outcome=\"{outcome}\""), n as f64));
            text.family("edgelink_stun_requests_total", "STUN datagrams, by outcome.", "counter", outcomes);
        }
        text.0
    }

    /// A link that was replaced may be on two workers for a moment.
    fn by_link(&self, value: fn(&LinkInfo) -> u64) -> impl Iterator<Item = (String, f64)> {
        let mut links: BTreeMap<RelayId, u64> = BTreeMap::new();
        for link in self.workers.iter().flat_map(|worker| &worker.links) {
            *links.entry(link.relay).or_default() += value(link);
        }
        links.into_iter().map(|(relay, n)| (format!("relay=\"{relay}\""), n as f64))
    }

    fn by_code(&self) -> impl Iterator<Item = (String, f64)> + '_ {
        ErrorCode::ALL.iter().enumerate().map(|(at, code)| {
            let sum: u64 = self.workers.iter().filter_map(|worker| worker.counters.errors.get(at)).sum();
            (format!("code=\"{}\"", code.code()), sum as f64)
        })
    }
}

type CounterFamily = (&'static str, &'static str, fn(&WorkerStats) -> f64);

const COUNTERS: &[CounterFamily] = &[
    ("edgelink_relay_frames_received_total", "Frames received to be forwarded.", |w| {
        w.counters.frames_in as f64
    }),
    ("edgelink_relay_bytes_received_total", "Their bytes.", |w| w.counters.bytes_in as f64),
    ("edgelink_relay_frames_forwarded_total", "Frames handed on.", |w| w.counters.frames_out as f64),
    ("edgelink_relay_bytes_forwarded_total", "Their bytes.", |w| w.counters.bytes_out as f64),
    ("edgelink_relay_mesh_frames_total", "Frames handed to mesh links.", |w| {
        w.counters.mesh_frames_out as f64
    }),
    ("edgelink_relay_sign_ins_total", "Sign-ins that succeeded.", |w| w.counters.sign_ins as f64),
    ("edgelink_relay_refused_connections_total", "Connections over a limit.", |w| w.counters.refused as f64),
    ("edgelink_relay_handshake_timeouts_total", "Connections cut because they did not sign in.", |w| {
        w.counters.handshake_timeouts as f64
    }),
];

type LinkFamily = (&'static str, &'static str, fn(&LinkInfo) -> u64);

const LINK_COUNTERS: &[LinkFamily] = &[
    ("edgelink_relay_mesh_link_frames_total", "Frames handed to each mesh link.", |link| link.frames),
    ("edgelink_relay_mesh_link_lost_total", "Of these, dropped from its queue.", |link| link.lost),
    (
        "edgelink_relay_mesh_link_spoofed_total",
        "Frames from it with a source that is not behind it.",
        |link| link.spoofed,
    ),
];

struct Text(String);

impl Text {
    fn gauge<L: AsRef<str>>(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (L, f64)>) {
        self.family(name, help, "gauge", values);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &DelayHistogram) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, count) in histogram.cumulative() {
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let (sum, count) = (histogram.sum().as_secs_f64(), histogram.count());
        let _ = writeln!(self.0, "{name}_sum {sum}\n{name}_count {count}");
    }

    fn family<L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let labels = labels.as_ref();
            let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
            let _ = writeln!(self.0, "{name}{open}{labels}{close} {value}");
        }
    }
}
