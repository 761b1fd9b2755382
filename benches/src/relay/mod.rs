//! `edgelink-bench relay`: what a relay costs per forwarded frame, beside rivals in the same run.
//!
//! Every row of [`ROWS`] is measured in rounds; in each round all contenders take their turn, freshly started ([`contender`]) on one core, while
//! [`load`] drives them from the other one. Reported is the median, with least and most. CPU time is what the kernel's scheduler counted for the
//! server's threads; on loopback that contains the receiving half of its clients' TCP. What is left to others: [`stream`] frames,
//! [`transport`] speaks TLS, `report` and `plot` write.

mod contender;
mod load;
mod stream;
mod transport;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::machine::Machine;
use crate::process::{CLIENT_CORE, pin};
use crate::report::{Better, Measurement, Report, Row};
use crate::{plot, report};
use contender::{Contender, OURS, Setting};
use load::{Load, Outcome};

/// Where figures go.
const FOLDER: &str = "target/bench";
/// Above this share of its core the load generator may be the limit.
const CLIENT_LIMIT_PERCENT: f64 = 90.0;
/// Below this the server had time to spare.
const SERVER_LIMIT_PERCENT: f64 = 90.0;
/// A server that fails is started again so often before its round counts as failed.
const ATTEMPTS: u32 = 2;
/// Bounds that keep a mistyped option from running for a day.
const MAX_ROUNDS: u32 = 100;
const MAX_SECONDS: f64 = 60.0;

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds; each measures every contender once per row.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of what is measured, after a warm-up of half a second.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only rows whose name contains this.
    #[arg(long, value_name = "SUBSTRING")]
    rows: Option<String>,
    /// Only these contenders, such as edgelink,edgelink-epoll,plain-coalescing.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// The relay to measure; by default `edgelink-relay` beside this program.
    #[arg(long, value_name = "FILE")]
    relay: Option<PathBuf>,
    /// Another build of the relay, measured beside the first as `edgelink (other)`.
    #[arg(long, value_name = "FILE")]
    relay_binary: Option<PathBuf>,
    /// Frames of one pair that may be on their way, in place of each row's own.
    #[arg(long)]
    window: Option<u32>,
    /// What goes to stdout; the files are written either way.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What a row says about a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Figure {
    CpuPerFrame,
    FramesPerSecond,
}

impl Figure {
    fn of(self, outcome: &Outcome) -> f64 {
        match self {
            Self::CpuPerFrame => outcome.cpu_ns_per_frame(),
            Self::FramesPerSecond => outcome.frames_per_second(),
        }
    }

    const fn better(self) -> Better {
        match self {
            Self::CpuPerFrame => Better::Lower,
            Self::FramesPerSecond => Better::Higher,
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::CpuPerFrame => "ns",
            Self::FramesPerSecond => "1/s",
        }
    }
}

struct RowSpec {
    what: &'static str,
    figure: Figure,
    pairs: u32,
    payload: u16,
    batch: u32,
    window: u32,
    tls: bool,
}

/// Windows keep every server busy and its queues short: 8 batches for one pair, 2 to 4 where there are many.
const ROWS: &[RowSpec] = &[
    row("cpu ns per 1400 B frame, 1 pair, batched", 1, 256),
    row("cpu ns per 1400 B frame, 16 pairs, batched", 16, 128),
    row("cpu ns per 1400 B frame, 64 pairs, batched", 64, 64),
    RowSpec { batch: 1, ..row("cpu ns per 1400 B frame, 16 pairs, each flushed", 16, 64) },
    RowSpec { tls: false, ..row("cpu ns per 1400 B frame, 16 pairs, batched, without TLS", 16, 128) },
    RowSpec {
        figure: Figure::FramesPerSecond,
        payload: 128,
        ..row("frames per second of 128 B, batched", 16, 512)
    },
];

const fn row(what: &'static str, pairs: u32, window: u32) -> RowSpec {
    RowSpec { what, figure: Figure::CpuPerFrame, pairs, payload: 1400, batch: 32, window, tls: true }
}

/// Measures, prints, writes; an error when a row could not be measured.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !(1..=MAX_ROUNDS).contains(&options.rounds) || !(0.1..=MAX_SECONDS).contains(&options.seconds) {
        bail!("1 to {MAX_ROUNDS} rounds of 0.1 to {MAX_SECONDS} seconds");
    }
    let rows: Vec<&RowSpec> = ROWS.iter().filter(|row| contains(row.what, options.rows.as_deref())).collect();
    if rows.is_empty() {
        bail!("no such row; rows:\n  {}", ROWS.iter().map(|row| row.what).collect::<Vec<_>>().join("\n  "));
    }
    let contenders = chosen(options)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        bail!("two cores are needed, one for the server and one for its clients; this machine has {cores}");
    }
    pin(CLIENT_CORE)?;
    let folder = PathBuf::from(FOLDER);
    let setting = Setting::new(&folder.join("relay-files"))?;

    let mut bench = Bench { options, setting: &setting, failures: Vec::new() };
    let rows = rows.into_iter().map(|row| bench.measure_row(row, &contenders)).collect();
    let failures = bench.failures;
    let report = Report { title: "Relay: one core, loopback", machine: Machine::here(), rows };

    fs::write(folder.join("relay.json"), report.to_json()).context("cannot write target/bench/relay.json")?;
    fs::write(folder.join("relay.svg"), plot::svg(&report)).context("cannot write target/bench/relay.svg")?;
    match options.output {
        Output::Table => println!("{}", report::table(&report)),
        Output::Json => println!("{}", report.to_json()),
    }
    if failures.is_empty() { Ok(()) } else { bail!("not all was measured:\n{}", failures.join("\n")) }
}

/// Those that the command line asks for.
fn chosen(options: &Options) -> anyhow::Result<Vec<Contender>> {
    let all = contender::all(options.relay.as_deref(), options.relay_binary.as_deref())?;
    let is_called = |one: &Contender, name: &str| one.slug() == name.trim() || one.name == name.trim();
    if let Some(name) = options.only.iter().find(|name| !all.iter().any(|one| is_called(one, name))) {
        let slugs: Vec<_> = all.iter().map(Contender::slug).collect();
        bail!("no contender is called {name}; there are {}", slugs.join(", "));
    }
    let wanted =
        |one: &Contender| options.only.is_empty() || options.only.iter().any(|name| is_called(one, name));
    Ok(all.into_iter().filter(wanted).collect())
}

fn contains(name: &str, pattern: Option<&str>) -> bool {
    pattern.is_none_or(|pattern| name.contains(pattern))
}

struct Bench<'a> {
    options: &'a Options,
    setting: &'a Setting,
    failures: Vec<String>,
}

impl Bench<'_> {
    fn measure_row(&mut self, spec: &RowSpec, contenders: &[Contender]) -> Row {
        let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); contenders.len()];
        for round in 1..=self.options.rounds {
            for (contender, outcomes) in contenders.iter().zip(&mut outcomes) {
                match self.measure_with_retry(spec, contender) {
                    Ok(outcome) => {
                        eprintln!(
                            "{}, round {round}, {}: {:.0} {} (server {:.0} %, clients {:.0} %{})",
                            spec.what,
                            contender.name,
                            spec.figure.of(&outcome),
                            spec.figure.unit(),
                            outcome.server_percent(),
                            outcome.client_percent(),
                            if outcome.lost > 0 { format!(", {} lost", outcome.lost) } else { String::new() },
                        );
                        outcomes.push(outcome);
                    }
                    Err(error) => {
                        let failure = format!("{}, round {round}, {}: {error:#}", spec.what, contender.name);
                        eprintln!("{failure}");
                        self.failures.push(failure);
                    }
                }
            }
        }
        let measured = contenders.iter().zip(&outcomes);
        Row {
            what: spec.what,
            unit: spec.figure.unit(),
            better: spec.figure.better(),
            measurements: measured.filter_map(|(contender, all)| summarise(spec, contender, all)).collect(),
        }
    }

    fn measure_with_retry(&self, spec: &RowSpec, contender: &Contender) -> anyhow::Result<Outcome> {
        let mut result = self.measure(spec, contender);
        for _ in 1..ATTEMPTS {
            if result.is_ok() {
                break;
            }
            result = self.measure(spec, contender);
        }
        result
    }

    fn measure(&self, spec: &RowSpec, contender: &Contender) -> anyhow::Result<Outcome> {
        let load = Load {
            pairs: spec.pairs,
            payload: spec.payload,
            batch: spec.batch,
            packing: contender.packing,
            window: self.options.window.unwrap_or(spec.window).max(spec.batch),
            warm_up: Duration::from_millis(500),
            measured: Duration::from_secs_f64(self.options.seconds),
        };
        let server = contender.start(self.setting, spec.tls)?;
        let tls = spec.tls.then(|| transport::client_config(self.setting.root.clone())).transpose()?;
        load::run(&load, &server, tls.as_ref())
            .with_context(|| format!("it said: {}", server.process.output_tail().trim()))
    }
}

fn summarise(spec: &RowSpec, contender: &Contender, outcomes: &[Outcome]) -> Option<Measurement> {
    let median = |of: &dyn Fn(&Outcome) -> f64| {
        crate::stats::Summary::of(&outcomes.iter().map(of).collect::<Vec<_>>())
    };
    let server_percent = median(&Outcome::server_percent)?.median;
    let client_percent = median(&Outcome::client_percent)?.median;
    let lost: u64 = outcomes.iter().map(|outcome| outcome.lost).sum();
    let mut notes = Vec::new();
    if client_percent > CLIENT_LIMIT_PERCENT {
        notes.push("the clients may be the limit".to_owned());
    }
    if server_percent < SERVER_LIMIT_PERCENT {
        notes.push("the server was not busy".to_owned());
    }
    if lost > 0 {
        notes.push(format!("{lost} frames lost"));
    }
    Some(Measurement {
        name: contender.name.clone(),
        ours: contender.name == OURS,
        value: median(&|outcome| spec.figure.of(outcome))?,
        server_percent,
        client_percent,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_at_least_a_batch_and_the_rows_differ() {
        assert!(ROWS.iter().all(|row| row.window >= 2 * row.batch));
        let mut names: Vec<_> = ROWS.iter().map(|row| row.what).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }

    #[test]
    fn a_row_says_when_its_figure_is_in_doubt() {
        let outcome = Outcome {
            frames: 10,
            wall: Duration::from_secs(1),
            server_cpu: 500_000_000,
            client_cpu: 950_000_000,
            lost: 3,
        };
        let ours = contender::all(None, None).expect("this program has a path").remove(0);
        let measurement = summarise(&ROWS[0], &ours, &[outcome, outcome]).expect("two rounds");
        assert_eq!(
            measurement.notes,
            ["the clients may be the limit", "the server was not busy", "6 frames lost"]
        );
        assert!((measurement.value.median - 50_000_000.0).abs() < 1e-6);
        assert!(summarise(&ROWS[0], &ours, &[]).is_none());
    }
}
