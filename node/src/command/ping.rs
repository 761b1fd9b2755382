//! `edgelink ping`: echoes inside the encrypted session, so what answers is the peer itself and nothing on the way.

use std::time::Duration;

use anyhow::{Context as _, bail};
use meshdp::proto::id::NodeId;
use serde::Serialize;

use super::print_json;
use crate::args::{Output, PingArgs};
use crate::ipc::client::Daemon;
use crate::ipc::message::{Answer, Probe, Request};

/// What `--output json` prints.
#[derive(Serialize)]
struct Report {
    node_id: NodeId,
    name: String,
    network: String,
    probes: Vec<Probe>,
    summary: Summary,
}

#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    sent: usize,
    received: usize,
    loss_percent: f64,
    min_ms: Option<f64>,
    avg_ms: Option<f64>,
    max_ms: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &PingArgs) -> anyhow::Result<()> {
    let interval = seconds(args.interval, "--interval")?;
    let timeout = seconds(args.timeout, "--timeout")?;
    let mut daemon = Daemon::find(&args.client)?;
    daemon.be_patient(interval + timeout)?;
    daemon.ask(&Request::Ping {
        target: args.target.clone(),
        count: args.count,
        interval_ms: interval.as_millis() as u64,
        timeout_ms: timeout.as_millis() as u64,
    })?;
    let Some(Answer::PingTarget { node_id, name, network, addresses }) = daemon.answer()? else {
        bail!("the daemon gave no answer: are this program and the daemon of the same version?");
    };
    let people = args.output.output == Output::Table;
    if people {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        println!("PING {name} (node {node_id} in {network}, {})", addresses.join(", "));
    }
    let mut probes = Vec::new();
    while let Some(answer) = daemon.answer()? {
        let Answer::Probe(probe) = answer else {
            bail!("the daemon gave an answer that does not belong here")
        };
        if people {
            println!("{}", describe(&probe));
        }
        probes.push(probe);
    }
    let summary = summarise(&probes);
    let lost = summary.received == 0;
    if people {
        print(&name, &summary);
    } else {
        print_json(&Report { node_id, name: name.clone(), network, probes, summary })?;
    }
    if lost {
        bail!(
            "{name} did not answer. `edgelink status` shows whether it is online and which relays are ready"
        );
    }
    Ok(())
}

fn seconds(value: f64, flag: &str) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|duration| (Duration::from_millis(10)..=Duration::from_mins(1)).contains(duration))
        .with_context(|| format!("{flag} is {value}, expected seconds between 0.01 and 60"))
}

fn describe(probe: &Probe) -> String {
    match (&probe.error, probe.rtt_ms) {
        (Some(error), _) => format!("seq={} not sent: {error}", probe.sequence),
        (None, Some(rtt)) => {
            let way = probe.direct.map_or_else(
                || format!("via {}", probe.path.join(" > ")),
                |address| format!("direct, {address}"),
            );
            format!("seq={} time={rtt:.2} ms {way}", probe.sequence)
        }
        (None, None) => format!("seq={} no answer", probe.sequence),
    }
}

fn summarise(probes: &[Probe]) -> Summary {
    let times: Vec<f64> = probes.iter().filter_map(|probe| probe.rtt_ms).collect();
    let received = times.len();
    Summary {
        sent: probes.len(),
        received,
        loss_percent: if probes.is_empty() {
            0.0
        } else {
            100.0 * (probes.len() - received) as f64 / probes.len() as f64
        },
        min_ms: times.iter().copied().reduce(f64::min),
        avg_ms: (received > 0).then(|| times.iter().sum::<f64>() / received as f64),
        max_ms: times.iter().copied().reduce(f64::max),
    }
}

fn print(name: &str, summary: &Summary) {
    println!(
        "--- {name}: {} sent, {} answered, {:.1} % lost",
        summary.sent, summary.received, summary.loss_percent
    );
    if let (Some(min), Some(avg), Some(max)) = (summary.min_ms, summary.avg_ms, summary.max_ms) {
        println!("rtt min/avg/max = {min:.2}/{avg:.2}/{max:.2} ms");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(rtt_ms: Option<f64>) -> Probe {
        Probe {
            sequence: 1,
            rtt_ms,
            path: vec!["relay-2".to_owned(), "relay-1".to_owned()],
            direct: None,
            error: None,
        }
    }

    #[test]
    fn the_summary_counts_what_came_back() {
        let summary = summarise(&[probe(Some(1.0)), probe(None), probe(Some(3.0)), probe(None)]);
        assert_eq!(
            summary,
            Summary {
                sent: 4,
                received: 2,
                loss_percent: 50.0,
                min_ms: Some(1.0),
                avg_ms: Some(2.0),
                max_ms: Some(3.0)
            }
        );
        assert!(summarise(&[]).min_ms.is_none());
        assert_eq!(describe(&probe(Some(1.234))), "seq=1 time=1.23 ms via relay-2 > relay-1");
    }

    #[test]
    fn times_that_make_no_sense_are_refused() {
        for value in [-1.0, 0.0, f64::NAN, f64::INFINITY, 61.0] {
            assert!(seconds(value, "--interval").is_err(), "{value}");
        }
    }
}
