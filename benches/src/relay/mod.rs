//! `edgelink-bench relay`: what a relay costs, and what it does under stress, beside rivals in the same run.
//!
//! Every group of rows of [`row::GROUPS`] is measured in rounds; in each round all contenders take their turn, freshly started ([`contender`]) on
//! one core, while clients drive them from the other one. Reported is the median, with least and most. CPU time is what the kernel's scheduler
//! counted for the server's threads; on loopback that contains the receiving half of its clients' TCP.
//!
//! Scenarios: [`throughput`], [`delay`], [`overload`], [`memory`], [`session`], [`storm`]. Under them: [`setup`] makes pairs of [`client`]s, the
//! [`engine`] lets flows go between them; [`dialect`], [`receiver`] and [`websocket`] frame, [`transport`] speaks TLS. `report` and `plot` write.

mod client;
mod contender;
mod delay;
mod dialect;
mod engine;
mod hook;
mod memory;
mod overload;
mod receiver;
mod row;
mod session;
mod setup;
mod storm;
mod throughput;
mod transport;
mod websocket;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::machine::Machine;
use crate::process::{CLIENT_CORE, pin, raise_open_files};
use crate::report::{Measurement, Report, Row};
use crate::stats::Summary;
use crate::{FOLDER, plot, report};
use contender::{Contender, Setting};
use row::{Bench, GROUPS, Group, Sample};

/// Above this share of its core the load generator may be the limit.
const CLIENT_LIMIT_PERCENT: f64 = 90.0;
/// Below this the server had time to spare.
const SERVER_LIMIT_PERCENT: f64 = 90.0;
/// A server that fails is started again so often before its round counts as failed.
const ATTEMPTS: u32 = 2;
/// A contender that failed in so many rounds of a group is not tried again in it.
const MAX_FAILURES: usize = 2;
/// Bounds that keep a mistyped option from running for a day.
const MAX_ROUNDS: u32 = 100;
const MAX_SECONDS: f64 = 60.0;
/// Open files beside the connections.
const OTHER_FILES: u64 = 500;

/// How to measure.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Options {
    /// Rounds; each measures every contender once per row.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of what is measured each time, after a warm-up of up to 0.3 s.
    #[arg(long, default_value_t = 1.0)]
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
    /// The iroh-relay to measure; left out when it is not there.
    #[arg(long, value_name = "FILE", default_value_os_t = row::default_iroh())]
    iroh: PathBuf,
    /// A contender of your own: a TOML file that says how it is started and what it speaks (docs/benchmarks.md).
    #[arg(long, value_name = "FILE")]
    contender: Vec<PathBuf>,
    /// Frames of one pair that may be on their way, in place of each row's own.
    #[arg(long)]
    window: Option<u64>,
    /// Connections in the rows about many of them (fewer when the limit of open files says so).
    #[arg(long, default_value_t = 10_000)]
    many: u32,
    /// What goes to stdout; the files are written either way.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

/// Measures, prints, writes; an error when a row lacks ours, or everybody. Who else fails is left out of a row.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !(1..=MAX_ROUNDS).contains(&options.rounds) || !(0.1..=MAX_SECONDS).contains(&options.seconds) {
        bail!("1 to {MAX_ROUNDS} rounds of 0.1 to {MAX_SECONDS} seconds");
    }
    let wanted = |group: &&Group| group.rows.iter().any(|row| contains(row.what, options.rows.as_deref()));
    let groups: Vec<&Group> = GROUPS.iter().filter(wanted).collect();
    if groups.is_empty() {
        let rows: Vec<_> = GROUPS.iter().flat_map(|group| group.rows).map(|row| row.what).collect();
        bail!("no such row; rows:\n  {}", rows.join("\n  "));
    }
    let contenders = chosen(options)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        bail!("two cores are needed, one for the server and one for its clients; this machine has {cores}");
    }
    pin(CLIENT_CORE)?;
    let files = raise_open_files()?.saturating_sub(OTHER_FILES);
    let many = options.many.min(u32::try_from(files).unwrap_or(u32::MAX)).max(2);
    let folder = PathBuf::from(FOLDER);
    let setting = Setting::new(&folder.join("relay-files"))?;
    let bench = Bench::new(&setting, Duration::from_secs_f64(options.seconds), options.window, many)?;

    let begun = Instant::now();
    let mut failures = Vec::new();
    let mut rows = Vec::new();
    for group in groups {
        let contenders: Vec<_> = contenders.iter().filter(|contender| group.has(contender)).collect();
        if contenders.is_empty() {
            continue;
        }
        rows.extend(measure_group(&bench, options.rounds, group, &contenders, &mut failures));
    }
    eprintln!("measured in {:.0} s", begun.elapsed().as_secs_f64());
    let report = Report {
        title: "Relay: one core, loopback",
        busy: ["server", "clients"],
        machine: Machine::here(),
        rows,
    };

    fs::write(folder.join("relay.json"), report.to_json()).context("cannot write target/bench/relay.json")?;
    // What a frame costs, and how it behaves under stress: two pictures of one size.
    let cost = |row: &Row| matches!(row.unit, "ns" | "1/s");
    for (name, costs) in [("relay.svg", true), ("relay-stress.svg", false)] {
        let plot = plot::svg(&report, |row| cost(row) == costs);
        fs::write(folder.join(name), plot).with_context(|| format!("cannot write target/bench/{name}"))?;
    }
    match options.output {
        Output::Table => println!("{}", report::table(&report)),
        Output::Json => println!("{}", report.to_json()),
    }
    if !failures.is_empty() {
        eprintln!("left out where they failed:\n{}", failures.join("\n"));
    }
    let wanted = |row: &&Row| {
        let ours = contenders.iter().any(Contender::is_ours);
        row.measurements.is_empty() || (ours && !row.measurements.iter().any(|one| one.ours))
    };
    let missing: Vec<_> = report.rows.iter().filter(wanted).map(|row| row.what).collect();
    if missing.is_empty() { Ok(()) } else { bail!("not measured:\n  {}", missing.join("\n  ")) }
}

/// Those that the command line asks for.
fn chosen(options: &Options) -> anyhow::Result<Vec<Contender>> {
    let all = contender::all(options)?;
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

/// Rows of one group: in every round each contender in its turn.
fn measure_group(
    bench: &Bench,
    rounds: u32,
    group: &Group,
    contenders: &[&Contender],
    failures: &mut Vec<String>,
) -> Vec<Row> {
    // Per contender, per round, per row.
    let mut samples: Vec<Vec<Vec<Sample>>> = vec![Vec::new(); contenders.len()];
    let mut failed = vec![0; contenders.len()];
    for round in 1..=rounds.min(group.rounds_at_most) {
        for (index, contender) in contenders.iter().enumerate() {
            if failed[index] >= MAX_FAILURES {
                continue;
            }
            match measure_with_retry(bench, group, contender) {
                Ok(round_samples) => {
                    for (row, sample) in group.rows.iter().zip(&round_samples) {
                        eprintln!("{}, round {round}, {}: {}", row.what, contender.name, progress(sample));
                    }
                    samples[index].push(round_samples);
                }
                Err(error) => {
                    failed[index] += 1;
                    let what = group.rows[0].what;
                    let failure = format!("{what}, round {round}, {}: {error:#}", contender.name);
                    eprintln!("{failure}");
                    failures.push(failure);
                }
            }
        }
    }
    let row = |(index, spec): (usize, &row::RowSpec)| Row {
        what: spec.what,
        unit: spec.unit,
        better: spec.better,
        floor: spec.floor,
        measurements: contenders
            .iter()
            .zip(&samples)
            .filter_map(|(contender, rounds)| {
                let samples: Vec<_> = rounds.iter().filter_map(|rows| rows.get(index)).collect();
                summarise(contender, &samples)
            })
            .collect(),
    };
    group.rows.iter().enumerate().map(row).collect()
}

fn measure_with_retry(bench: &Bench, group: &Group, contender: &Contender) -> anyhow::Result<Vec<Sample>> {
    let mut result = group.measure(bench, contender);
    for _ in 1..ATTEMPTS {
        if let Err(error) = &result {
            eprintln!("{}, {}: once more after: {error:#}", group.rows[0].what, contender.name);
            result = group.measure(bench, contender);
        }
    }
    result
}

fn progress(sample: &Sample) -> String {
    let mut parts = vec![report::number(sample.value)];
    parts.extend(sample.server_percent.map(|percent| format!("server {percent:.0} %")));
    parts.extend(sample.client_percent.map(|percent| format!("clients {percent:.0} %")));
    if sample.lost > 0 {
        parts.push(format!("{} lost", sample.lost));
    }
    parts.extend(sample.note.clone());
    parts.join(", ")
}

fn summarise(contender: &Contender, samples: &[&Sample]) -> Option<Measurement> {
    let median = |of: &dyn Fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(|sample| of(sample)).collect();
        Summary::of(&values)
    };
    let server_percent = median(&|sample| sample.server_percent).map(|percent| percent.median);
    let client_percent = median(&|sample| sample.client_percent).map(|percent| percent.median);
    let lost: u64 = samples.iter().map(|sample| sample.lost).sum();
    let saturated = samples.iter().any(|sample| sample.saturated);
    let mut notes = Vec::new();
    if saturated && client_percent.is_some_and(|percent| percent > CLIENT_LIMIT_PERCENT) {
        notes.push("the clients may be the limit".to_owned());
    }
    if saturated && server_percent.is_some_and(|percent| percent < SERVER_LIMIT_PERCENT) {
        notes.push("the server was not busy".to_owned());
    }
    if lost > 0 {
        notes.push(format!("{lost} frames lost"));
    }
    // Of one round; all of them went to stderr.
    notes.extend(samples.last().and_then(|sample| sample.note.clone()));
    Some(Measurement {
        name: contender.name.clone(),
        ours: contender.is_ours(),
        value: median(&|sample| Some(sample.value))?,
        server_percent,
        client_percent,
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_when_its_figure_is_in_doubt() {
        let sample = Sample { saturated: true, ..Sample::of(5.0).shares(50.0, 95.0).lost(3) };
        let measurement = summarise(&contender::plain(), &[&sample, &sample]).expect("two rounds");
        assert_eq!(
            measurement.notes,
            ["the clients may be the limit", "the server was not busy", "6 frames lost"]
        );
        assert!((measurement.value.median - 5.0).abs() < 1e-6 && !measurement.ours);
        assert!(summarise(&contender::plain(), &[]).is_none());
    }
}
