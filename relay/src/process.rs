//! What the kernel says of this process, as Prometheus metrics of the usual names. What cannot be read is left out.

use std::fmt::Write as _;
use std::fs;

use rustix::process::{Resource, getrlimit};

/// Text to append to the relay's own metrics.
pub(crate) fn to_prometheus() -> String {
    let mut text = String::new();
    let mut metric = |name: &str, help: &str, kind: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let seconds = |field: usize| number(&stat, field).map(|value| value / ticks);
    let cpu = seconds(USER_TIME).zip(seconds(SYSTEM_TIME)).map(|(user, system)| user + system);
    metric("process_cpu_seconds_total", "CPU time of all threads.", "counter", cpu);
    let boot = fs::read_to_string("/proc/stat").ok();
    let boot = boot.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("btime ")));
    let boot: Option<f64> = boot.and_then(|seconds| seconds.trim().parse().ok());
    let started = boot.zip(seconds(START_TIME)).map(|(boot, since)| boot + since);
    metric(
        "process_start_time_seconds",
        "When the process started, in seconds since 1970.",
        "gauge",
        started,
    );
    let memory = number(&stat, RESIDENT_PAGES).map(|pages| pages * rustix::param::page_size() as f64);
    metric("process_resident_memory_bytes", "Memory in use.", "gauge", memory);
    let open = fs::read_dir("/proc/self/fd").ok().map(|list| list.count() as f64);
    metric("process_open_fds", "Open descriptors: connections, and a few more.", "gauge", open);
    let most = getrlimit(Resource::Nofile).current.map(|most| most as f64);
    metric("process_max_fds", "How many there may be.", "gauge", most);
    text
}

/// Places in `/proc/self/stat` behind the name, proc_pid_stat(5) minus 3.
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;
const START_TIME: usize = 19;
const RESIDENT_PAGES: usize = 21;

/// The name is in parentheses and may hold anything.
fn number(stat: &str, field: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(field)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 5 0 123456 1000000 777 18446744073709551615";
        assert_eq!(number(stat, USER_TIME), Some(250.0));
        assert_eq!(number(stat, SYSTEM_TIME), Some(50.0));
        assert_eq!(number(stat, START_TIME), Some(123_456.0));
        assert_eq!(number(stat, RESIDENT_PAGES), Some(777.0));
        assert_eq!(number("", 0), None);
    }

    #[test]
    fn this_process_has_all_of_them() {
        let text = to_prometheus();
        for name in
            ["cpu_seconds_total", "start_time_seconds", "resident_memory_bytes", "open_fds", "max_fds"]
        {
            assert!(text.contains(&format!("\nprocess_{name} ")), "{text}");
        }
    }
}
