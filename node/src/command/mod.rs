//! One file per command of `edgelink`. Each prints its result to stdout and returns an error that says what to do next.

pub(crate) mod down;
pub(crate) mod keys;
pub(crate) mod netcheck;
pub(crate) mod ping;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod version;

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde::Serialize;

/// Prints one JSON document.
fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out).context("cannot print")
}

/// A table without frames, for people and for `awk`.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.to_vec());
    table
}

/// The lines of a table without the blanks that pad them.
pub(crate) fn lines(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.to_string().lines().flat_map(|line| [line.trim_end(), "\n"]).collect()
}

/// `-` for what is not known.
pub(crate) fn milliseconds(rtt_ms: Option<f64>) -> String {
    rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms"))
}

/// `1.5 GiB`
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `2h05m`
fn duration(seconds: f64) -> String {
    let total = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds:02}s"),
        (0, ..) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([0, 1023, 1024, 1_610_612_736].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]);
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!([0.4, 61.0, 7500.0, 200_000.0].map(duration), ["0s", "1m01s", "2h05m", "2d07h"]);
        assert_eq!(milliseconds(None), "-");
    }
}
