//! What the figures were measured on.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Goes at the head of every report.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Processor and number of cores.
    pub(crate) processor: String,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Of the source, with `-dirty` when files differ from it.
    pub(crate) commit: String,
    /// UTC, RFC 3339.
    pub(crate) date: String,
}

impl Machine {
    /// Looks.
    pub(crate) fn here() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown processor", |(_, name)| name.trim());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            processor: format!("{model}, {cores} cores"),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            date: rfc3339(now),
        }
    }
}

fn commit() -> Option<String> {
    let output =
        Command::new("git").args(["describe", "--always", "--dirty", "--exclude=*"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// Unix seconds as a date; the calendar of Howard Hinnant's `civil_from_days`.
fn rfc3339(unix: u64) -> String {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_hold_over_leap_days_and_years() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_709_164_800), "2024-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(1_770_000_000), "2026-02-02T02:40:00Z");
    }

    #[test]
    fn a_machine_has_a_kernel_and_cores() {
        let machine = Machine::here();
        assert!(!machine.kernel.is_empty());
        assert!(!machine.processor.ends_with(" 0 cores"), "{}", machine.processor);
    }
}
