//! TCP streams by iperf3.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::daemon::Daemon;
use super::lab::{Lab, Place, run};
use super::measure::Manner;

/// iperf3's port, in hexadecimal as `/proc/net/tcp` has it: 5201.
const PORT: &str = ":1451";
/// The state LISTEN in that file.
const LISTEN: &str = "0A";
/// Until the server listens.
const PATIENCE: Duration = Duration::from_secs(5);

/// Seconds that a client may take beside those it sends for.
const GRACE: u32 = 10;

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Transfer {
    pub(super) bits_per_second: f64,
    pub(super) bytes: f64,
    pub(super) retransmits: u64,
}

#[derive(Deserialize)]
struct Output {
    error: Option<String>,
    #[serde(default)]
    end: End,
}

#[derive(Deserialize, Default)]
struct End {
    sum_sent: Option<Sum>,
    sum_received: Option<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    bytes: f64,
    bits_per_second: f64,
    #[serde(default)]
    retransmits: u64,
}

/// Starts the server in `b`, for all addresses; on the core of that end if it is to be.
pub(super) fn server(lab: &Lab, pinned: bool) -> anyhow::Result<Daemon> {
    let mut command = Place::B.command("iperf3");
    command.args(["--server", "--forceflush"]);
    let mut server =
        Daemon::start(command, Place::B.core().filter(|_| pinned), lab.folder.join("iperf3-server.log"))?;
    server.wait_for("iperf3's server listens", PATIENCE, || {
        let tables = [4, 6].map(|version| format!("/proc/net/tcp{}", if version == 4 { "" } else { "6" }));
        let listed = run(Place::B.command("cat").args(tables))?;
        Ok(is_listening(&listed).then_some(()))
    })?;
    Ok(server)
}

/// Sends from `a` to `b` for so many seconds, or back.
pub(super) fn transfer(
    address: Ipv4Addr,
    streams: u32,
    back: bool,
    manner: Manner,
) -> anyhow::Result<Transfer> {
    let seconds = manner.seconds;
    // A stream that comes to a halt would keep it waiting for ever.
    let mut command = Place::A.command("timeout");
    command.args([&(seconds + GRACE).to_string(), "iperf3", "--json", "--connect-timeout", "3000"]);
    command.args(["--client", &address.to_string(), "--time", &seconds.to_string()]);
    command.args(["--parallel", &streams.to_string()]);
    if back {
        command.arg("--reverse");
    }
    if let Some(core) = Place::A.core().filter(|_| manner.pinned) {
        command.args(["--affinity", &core.to_string()]);
    }
    let output = command.output().context("cannot run iperf3")?;
    parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("iperf3 ({})", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Whether `/proc/net/tcp` has a socket that waits for clients at [`PORT`], and not one of an earlier connection.
fn is_listening(table: &str) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(PORT)) && fields.nth(1) == Some(LISTEN)
    })
}

fn parse(text: &str) -> anyhow::Result<Transfer> {
    let output: Output = serde_json::from_str(text).context("its output is not what it was")?;
    if let Some(error) = output.error {
        anyhow::bail!("{error}");
    }
    let received = output.end.sum_received.context("it says nothing of what was received")?;
    Ok(Transfer {
        bits_per_second: received.bits_per_second,
        bytes: received.bytes,
        retransmits: output.end.sum_sent.map_or(0, |sent| sent.retransmits),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_received_counts_not_what_was_sent() {
        let text = r#"{"start": {"version": "iperf 3.12"}, "intervals": [], "end": {
            "streams": [{"sender": {"bytes": 9}}],
            "sum_sent": {"start": 0, "seconds": 1.0001, "bytes": 800000000, "bits_per_second": 6400000000.5, "retransmits": 7, "sender": true},
            "sum_received": {"start": 0, "seconds": 1.0002, "bytes": 790000000, "bits_per_second": 6300000000.25, "sender": true},
            "cpu_utilization_percent": {"host_total": 50.1}}}"#;
        let transfer = parse(text).expect("iperf3's");
        assert_eq!(
            transfer,
            Transfer { bits_per_second: 6_300_000_000.25, bytes: 790_000_000.0, retransmits: 7 }
        );
    }

    #[test]
    fn a_connection_that_is_over_does_not_listen() {
        let over = "  sl  local_address rem_address   st tx_queue rx_queue\n   0: 020200C0:1451 010200C0:9A3E 06 00000000:00000000\n";
        assert!(!is_listening(over));
        let listens = "   1: 00000000000000000000000000000000:1451 00000000000000000000000000000000:0000 0A 00000000:00000000\n";
        assert!(is_listening(&format!("{over}{listens}")));
        assert!(!is_listening(""));
    }

    #[test]
    fn its_errors_are_errors() {
        let text = r#"{"start": {}, "intervals": [], "end": {}, "error": "error - unable to connect to server: Connection refused"}"#;
        assert!(parse(text).expect_err("an error").to_string().contains("Connection refused"));
        assert!(parse(r#"{"end": {"sum_sent": {"bytes": 1, "bits_per_second": 1}}}"#).is_err());
        for nonsense in ["", "{", "[]", r#"{"end": {"sum_received": {"bytes": "many"}}}"#] {
            assert!(parse(nonsense).is_err(), "{nonsense}");
        }
    }
}
