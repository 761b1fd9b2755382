//! The rows of the table, word for word as the goals have them, and which scenario fills each.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::ClientConfig;

use super::contender::{Contender, Setting};
use super::delay::FullLoad;
use super::setup::Span;
use super::throughput::{Figure, Load};
use super::{delay, memory, overload, session, storm, throughput, transport};
use crate::report::Better;

/// Before anything is measured: windows open, buffers grow.
const WARM_UP: Duration = Duration::from_millis(300);

/// One figure of one contender in one round.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) value: f64,
    /// Shares of their cores that server and clients used, percent.
    pub(super) server_percent: Option<f64>,
    pub(super) client_percent: Option<f64>,
    /// The server should have had no time to spare.
    pub(super) saturated: bool,
    /// Frames.
    pub(super) lost: u64,
    pub(super) note: Option<String>,
}

impl Sample {
    pub(super) fn of(value: f64) -> Self {
        Self { value, ..Self::default() }
    }

    /// Measured during `span`, in which the server should have been busy.
    pub(super) fn busy(self, span: &Span) -> Self {
        Self { saturated: true, ..self.used(span) }
    }

    /// Measured during `span`.
    pub(super) fn used(self, span: &Span) -> Self {
        self.shares(span.server_percent(), span.client_percent())
    }

    /// The same, when the clients whose share is known are not all.
    pub(super) fn used_by_server(self, span: &Span) -> Self {
        Self { server_percent: Some(span.server_percent()), ..self }
    }

    pub(super) fn shares(self, server: f64, client: f64) -> Self {
        Self { server_percent: Some(server), client_percent: Some(client), ..self }
    }

    pub(super) fn lost(self, lost: u64) -> Self {
        Self { lost, ..self }
    }

    pub(super) fn note(self, note: &str) -> Self {
        let note = self.note.map_or_else(|| note.to_owned(), |before| format!("{before}; {note}"));
        Self { note: Some(note), ..self }
    }
}

/// What scenarios need.
pub(super) struct Bench<'a> {
    pub(super) setting: &'a Setting,
    /// How long is measured, and what goes before.
    pub(super) time: Duration,
    pub(super) warm_up: Duration,
    /// In place of each row's own.
    pub(super) window: Option<u64>,
    /// Connections where there are many.
    pub(super) many: u32,
    tls: Arc<ClientConfig>,
    plain_peak: OnceLock<f64>,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        setting: &'a Setting,
        time: Duration,
        window: Option<u64>,
        many: u32,
    ) -> anyhow::Result<Self> {
        let tls = Arc::new(transport::client_config(setting.root.clone())?);
        let warm_up = WARM_UP.min(time);
        Ok(Self { setting, time, warm_up, window, many, tls, plain_peak: OnceLock::new() })
    }

    /// How clients speak TLS.
    pub(super) fn tls(&self, wanted: bool) -> Option<&Arc<ClientConfig>> {
        wanted.then_some(&self.tls)
    }

    /// The same, to be changed.
    pub(super) fn client_config(&self) -> anyhow::Result<ClientConfig> {
        transport::client_config(self.setting.root.clone())
    }

    /// Frames a second that the plain forwarder carries at most, measured once.
    pub(super) fn plain_peak(&self) -> anyhow::Result<f64> {
        if let Some(peak) = self.plain_peak.get() {
            return Ok(*peak);
        }
        let peak = delay::plain_peak(self)?;
        Ok(*self.plain_peak.get_or_init(|| peak))
    }
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowSpec {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    /// What a prototype on a machine of this kind needed: nobody should expect less.
    pub(super) floor: Option<f64>,
}

/// Who takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    /// Everybody, in all shapes.
    All,
    /// Everybody that can do without TLS.
    WithoutTls,
    /// One shape of everybody.
    Main,
    /// Our relay only, whatever build and driver.
    Edgelink,
}

/// Rows that one scenario fills together.
pub(super) struct Group {
    pub(super) rows: &'static [RowSpec],
    pub(super) who: Who,
    /// More rounds would tell no more.
    pub(super) rounds_at_most: u32,
    scenario: Scenario,
}

#[derive(Clone, Copy)]
enum Scenario {
    Throughput(Load),
    Goodput,
    DelayAlone,
    DelayUnderLoad(FullLoad),
    ManyPeers,
    IdleMemory,
    Baseline,
    Sessions { resumed: bool },
    Storm,
    Greedy,
    Evenness,
}

impl Group {
    /// Whether `contender` takes part.
    pub(super) fn has(&self, contender: &Contender) -> bool {
        match self.who {
            Who::All => true,
            Who::WithoutTls => contender.without_tls(),
            Who::Main => contender.main,
            Who::Edgelink => contender.is_edgelink(),
        }
    }

    /// A sample for each row.
    pub(super) fn measure(&self, bench: &Bench, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
        match &self.scenario {
            Scenario::Throughput(load) => throughput::measure(bench, contender, load),
            Scenario::Goodput => overload::goodput(bench, contender),
            Scenario::DelayAlone => delay::alone(bench, contender),
            Scenario::DelayUnderLoad(full) => delay::under_load(bench, contender, *full),
            Scenario::ManyPeers => throughput::many_peers(bench, contender, 20, 1000),
            Scenario::IdleMemory => memory::idle(bench, contender),
            Scenario::Baseline => memory::baseline(bench, contender),
            Scenario::Sessions { resumed } => session::measure(bench, contender, *resumed),
            Scenario::Storm => storm::measure(bench, contender),
            Scenario::Greedy => overload::greedy(bench, contender),
            Scenario::Evenness => overload::evenness(bench, contender),
        }
    }
}

const fn lower(what: &'static str, unit: &'static str) -> RowSpec {
    RowSpec { what, unit, better: Better::Lower, floor: None }
}

const fn higher(what: &'static str, unit: &'static str) -> RowSpec {
    RowSpec { what, unit, better: Better::Higher, floor: None }
}

const fn floor(row: RowSpec, floor: f64) -> RowSpec {
    RowSpec { floor: Some(floor), ..row }
}

const fn group(scenario: Scenario, who: Who, rows: &'static [RowSpec]) -> Group {
    Group { rows, who, rounds_at_most: u32::MAX, scenario }
}

const fn load(pairs: u32, window: u64) -> Load {
    Load { pairs, payload: 1400, batch: 32, window, tls: true, figure: Figure::CpuPerFrame }
}

/// In the order of the goals. Windows keep every server busy and its queues short: 8 batches for one pair, 2 to 4 where there are many.
pub(super) const GROUPS: &[Group] = &[
    group(
        Scenario::Throughput(load(1, 256)),
        Who::All,
        &[floor(lower("cpu ns per 1400 B frame, 1 pair, batched", "ns"), 680.0)],
    ),
    group(
        Scenario::Throughput(load(16, 128)),
        Who::All,
        &[lower("cpu ns per 1400 B frame, 16 pairs, batched", "ns")],
    ),
    group(
        Scenario::Throughput(load(64, 64)),
        Who::All,
        &[floor(lower("cpu ns per 1400 B frame, 64 pairs, batched", "ns"), 850.0)],
    ),
    group(
        Scenario::Throughput(Load { batch: 1, ..load(16, 64) }),
        Who::All,
        &[lower("cpu ns per 1400 B frame, 16 pairs, each flushed", "ns")],
    ),
    group(
        Scenario::Throughput(Load { tls: false, ..load(16, 128) }),
        Who::WithoutTls,
        &[lower("cpu ns per 1400 B frame, 16 pairs, batched, without TLS", "ns")],
    ),
    group(
        Scenario::Throughput(Load { payload: 128, figure: Figure::FramesPerSecond, ..load(16, 512) }),
        Who::All,
        &[higher("frames per second of 128 B, batched", "1/s")],
    ),
    group(Scenario::Goodput, Who::Main, &[higher("goodput at 3x offered load, percent of peak", "%")]),
    group(
        Scenario::DelayAlone,
        Who::Main,
        &[
            lower("forwarding delay p50 us, 16 x 500 packets/s", "us"),
            lower("forwarding delay p99 us, 16 x 500 packets/s", "us"),
        ],
    ),
    group(
        Scenario::DelayUnderLoad(FullLoad::Plain),
        Who::Main,
        &[lower("p99 delay at 150 percent load over p99 at 50 percent", "x")],
    ),
    Group {
        rounds_at_most: 3,
        ..group(
            Scenario::DelayUnderLoad(FullLoad::Own),
            Who::Main,
            &[lower("the same, of its own peak: more than it can carry", "x")],
        )
    },
    group(
        Scenario::ManyPeers,
        Who::Main,
        &[higher("throughput with 1,000 active peers, percent of 20", "%")],
    ),
    Group {
        rounds_at_most: 1,
        ..group(
            Scenario::IdleMemory,
            Who::Main,
            &[
                lower("idle connection, bytes of RSS", "B"),
                lower("idle connection after 240 KB, bytes of RSS", "B"),
            ],
        )
    },
    Group {
        rounds_at_most: 3,
        ..group(Scenario::Baseline, Who::Edgelink, &[lower("baseline RSS MiB, 8 workers", "MiB")])
    },
    group(Scenario::Sessions { resumed: false }, Who::Main, &[lower("new session, server CPU us", "us")]),
    group(Scenario::Sessions { resumed: true }, Who::Main, &[lower("resumed session, server CPU us", "us")]),
    Group {
        rounds_at_most: 3,
        ..group(Scenario::Storm, Who::Main, &[lower("p99 delay rise while 10,000 reconnect, percent", "%")])
    },
    group(Scenario::Greedy, Who::Main, &[lower("others' loss while one sends 100x its share, percent", "%")]),
    group(Scenario::Evenness, Who::Main, &[higher("Jain index over 100 flows", "")]),
];

/// Where the iroh-relay that the Makefile builds is.
pub(super) fn default_iroh() -> PathBuf {
    "target/rivals/iroh-relay/bin/iroh-relay".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_there_once_and_windows_hold_two_batches() {
        let mut names: Vec<_> = GROUPS.iter().flat_map(|group| group.rows).map(|row| row.what).collect();
        assert_eq!(names.len(), 20);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 20);
        for group in GROUPS {
            if let Scenario::Throughput(load) = group.scenario {
                assert!(load.window >= 2 * u64::from(load.batch));
            }
        }
    }
}
