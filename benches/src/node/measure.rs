//! What is measured of a tunnel, or of the bare wire: TCP streams, small packets, round trips, and what the daemons' CPUs did meanwhile.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::daemon::Pair;
use super::lab::{Lab, Place};
use super::packets::{Pace, count};
use super::row::Figure;
use super::{iperf, ping};

/// Packets a second where they are paced.
const PACE: u32 = 20_000;
/// Below this share of what was sent, a figure for each packet that arrived is in doubt.
const ENOUGH: f64 = 0.98;
/// GB.
const GIGA: f64 = 1e9;

/// One figure of one contender in one round.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) value: f64,
    /// Shares of all cores' time, percent: the daemons', and everybody else's.
    pub(super) daemons: Option<f64>,
    pub(super) others: Option<f64>,
    /// Share that the machine under this one kept for itself, percent.
    pub(super) stolen: f64,
    /// In words, for progress.
    pub(super) note: Option<String>,
}

impl Sample {
    pub(super) fn of(value: f64) -> Self {
        Self { value, ..Self::default() }
    }
}

/// Samples by figure.
pub(super) type Samples = BTreeMap<Figure, Sample>;

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) seconds: u32,
    /// Whether what loads the tunnel stays on the core of its end.
    pub(super) pinned: bool,
}

/// Measures the figures that are wanted, of a tunnel, or of the wire when there is none.
pub(super) fn measure(
    lab: &Lab,
    pair: Option<&Pair>,
    wanted: &BTreeSet<Figure>,
    manner: Manner,
) -> anyhow::Result<Samples> {
    let address = pair.map_or(Place::B.address(), |pair| pair.address);
    let mut samples = Samples::new();
    let is_wanted = |figure| wanted.contains(&figure);
    // Before anything else: neither end is hot or has queues to empty.
    if let (Some(_), true) = (pair, is_wanted(Figure::RoundTrip)) {
        samples.insert(Figure::RoundTrip, added_round_trip(address)?);
    }
    if is_wanted(Figure::OneStream) || is_wanted(Figure::CpuPerGb) {
        let (speed, cpu) = streams(lab, pair, address, 1, manner)?;
        samples.insert(Figure::OneStream, speed);
        samples.extend(cpu.map(|cpu| (Figure::CpuPerGb, cpu)));
    }
    if is_wanted(Figure::FourStreams) {
        let (speed, _) = streams(lab, pair, address, 4, manner)?;
        samples.insert(Figure::FourStreams, speed);
    }
    if let (Some(_), true) = (pair, is_wanted(Figure::Paced)) {
        samples.insert(Figure::Paced, packets(address, pair, Pace::PerSecond(PACE), manner)?);
    }
    if is_wanted(Figure::Flood) {
        samples.insert(Figure::Flood, packets(address, pair, Pace::Flood, manner)?);
    }
    samples.retain(|figure, _| wanted.contains(figure));
    Ok(samples)
}

/// So many TCP streams there, then back: the mean of both, Gbit/s; and the daemons' CPU seconds for each GB that arrived.
fn streams(
    lab: &Lab,
    pair: Option<&Pair>,
    address: Ipv4Addr,
    streams: u32,
    manner: Manner,
) -> anyhow::Result<(Sample, Option<Sample>)> {
    let server = iperf::server(lab, manner.pinned)?;
    let watch = Watch::start(pair)?;
    let mut directions = Vec::new();
    for back in [false, true] {
        let transfer = iperf::transfer(address, streams, back, manner);
        let said = || {
            format!(
                "{streams} streams{}; the server said: {}",
                if back { ", back" } else { "" },
                server.said()
            )
        };
        directions.push(transfer.with_context(said)?);
    }
    let (sample, cpu) = watch.stop()?;
    let speeds: Vec<_> = directions.iter().map(|one| one.bits_per_second / GIGA).collect();
    let bytes: f64 = directions.iter().map(|one| one.bytes).sum();
    ensure!(bytes > 0.0, "nothing arrived");
    let retransmits: u64 = directions.iter().map(|one| one.retransmits).sum();
    let note = format!("{:.2} / {:.2} there / back, {retransmits} retransmits", speeds[0], speeds[1]);
    let per_gb = cpu as f64 / bytes;
    let cpu = pair.map(|_| Sample { value: per_gb, ..sample.clone() });
    Ok((Sample { value: f64::midpoint(speeds[0], speeds[1]), note: Some(note), ..sample }, cpu))
}

/// Those of a flood that arrive in a second, or what each of those that are paced costs.
fn packets(address: Ipv4Addr, pair: Option<&Pair>, pace: Pace, manner: Manner) -> anyhow::Result<Sample> {
    let watch = Watch::start(pair)?;
    let time = Duration::from_secs(manner.seconds.into());
    let counted = count(address, pair, pace, time, manner.pinned)?;
    let (sample, _) = watch.stop()?;
    ensure!(counted.received > 0, "no packet arrived");
    let (sent, received) = (counted.sent as f64, counted.received as f64);
    let per_second = |packets: f64| packets / counted.time.as_secs_f64();
    let mut note = format!("{:.0} a second sent, {:.0} received", per_second(sent), per_second(received));
    let value = match pace {
        Pace::Flood => per_second(received),
        Pace::PerSecond(rate) => {
            if received < sent * ENOUGH || per_second(sent) < f64::from(rate) * ENOUGH {
                note.push_str(", which is not the pace");
            }
            counted.cpu as f64 / received
        }
    };
    Ok(Sample { value, note: Some(note), ..sample })
}

/// Median round trip through the tunnel less that over the wire, microseconds.
fn added_round_trip(address: Ipv4Addr) -> anyhow::Result<Sample> {
    let bare = ping::round_trip(Place::B.address())?;
    let tunnel = ping::round_trip(address)?;
    let note = format!("{tunnel:.0} through the tunnel, {bare:.0} over the wire");
    Ok(Sample { value: tunnel - bare, note: Some(note), ..Sample::default() })
}

/// What the CPUs do for a while.
struct Watch<'a> {
    pair: Option<&'a Pair>,
    cpu: u64,
    times: Times,
}

impl<'a> Watch<'a> {
    fn start(pair: Option<&'a Pair>) -> anyhow::Result<Self> {
        Ok(Self { pair, cpu: pair.map_or(Ok(0), Pair::cpu)?, times: Times::now()? })
    }

    /// A sample without a value, and the daemons' CPU time in nanoseconds.
    fn stop(self) -> anyhow::Result<(Sample, u64)> {
        let cpu = self.pair.map_or(Ok(0), Pair::cpu)? - self.cpu;
        let now = Times::now()?;
        let percent =
            |share: u64| 100.0 * share as f64 / now.total.saturating_sub(self.times.total).max(1) as f64;
        let busy = percent(now.busy.saturating_sub(self.times.busy));
        let stolen = percent(now.stolen.saturating_sub(self.times.stolen));
        let daemons = percent(cpu / NANOSECONDS_PER_TICK);
        let sample = Sample {
            daemons: self.pair.map(|_| daemons),
            others: Some((busy - daemons).max(0.0)),
            stolen,
            ..Sample::default()
        };
        Ok((sample, cpu))
    }
}

/// A tick of `/proc/stat`: user space has always seen a hundred of them in a second on Linux.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// Time of all cores since the start, ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    busy: u64,
    stolen: u64,
    total: u64,
}

impl Times {
    fn now() -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Self::parse(&text).context("/proc/stat is not what it was")
    }

    /// The line `cpu`: user, nice, system, idle, iowait, irq, softirq, steal; what guests used is in the first two already.
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields = line.split_ascii_whitespace().take(8).map(|field| field.parse().ok());
        let fields: Vec<u64> = fields.collect::<Option<_>>()?;
        let &[user, nice, system, idle, iowait, irq, softirq, stolen] = fields.as_slice() else {
            return None;
        };
        let busy = user + nice + system + irq + softirq;
        Some(Self { busy, stolen, total: busy + idle + iowait + stolen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        let text = "cpu  10 20 30 400 50 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 99\n";
        assert_eq!(Times::parse(text), Some(Times { busy: 73, stolen: 8, total: 531 }));
        assert_eq!(Times::parse("cpu0 1 2 3 4 5 6 7 8\n"), None);
        assert_eq!(Times::parse("cpu  1 2 3\n"), None);
        assert_eq!(Times::parse("cpu  1 2 3 4 5 6 7 x\n"), None);
    }

    #[test]
    fn this_machine_has_been_busy() {
        let times = Times::now().expect("Linux");
        assert!(times.busy > 0 && times.total > times.busy);
    }
}
