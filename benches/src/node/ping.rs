//! Round trips by ping.

use std::net::Ipv4Addr;

use anyhow::Context;

use super::lab::{Place, run};
use crate::stats::Summary;

/// Seconds between two echoes: one on its way at a time, each after a short rest.
const INTERVAL: &str = "0.005";
/// Echoes.
const COUNT: u32 = 400;
/// The first ones pay for caches that are cold.
const COLD: usize = 20;

/// Median round trip from `a`, microseconds.
pub(super) fn round_trip(address: Ipv4Addr) -> anyhow::Result<f64> {
    let count = COUNT.to_string();
    let mut command = Place::A.command("ping");
    command.args(["-n", "-i", INTERVAL, "-c", &count, "-W", "1", &address.to_string()]).env("LC_ALL", "C");
    let times = parse(&run(&mut command)?);
    let warm = times.get(COLD..).unwrap_or_default();
    Ok(Summary::of(warm).context("ping says no times")?.median)
}

/// Microseconds of each echo.
fn parse(text: &str) -> Vec<f64> {
    let times = text.lines().filter_map(|line| line.split_once("time=")?.1.split_once(' '));
    times
        .filter(|(_, unit)| unit.trim() == "ms")
        .filter_map(|(time, _)| Some(time.parse::<f64>().ok()? * 1000.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_echo_has_its_time_in_microseconds() {
        let text = "PING 192.0.2.2 (192.0.2.2) 56(84) bytes of data.\n64 bytes from 192.0.2.2: icmp_seq=1 ttl=64 time=0.125 ms\n\
                    64 bytes from 192.0.2.2: icmp_seq=2 ttl=64 time=1.50 ms\nno answer yet for icmp_seq=3\n\
                    \n--- 192.0.2.2 ping statistics ---\n3 packets transmitted, 2 received, 33% packet loss, time 5ms\n\
                    rtt min/avg/max/mdev = 0.125/0.8/1.5/0.1 ms\n";
        assert_eq!(parse(text), [125.0, 1500.0]);
        assert!(parse("").is_empty());
    }
}
