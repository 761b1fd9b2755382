//! The whole harness, short: it starts the plain forwarder, loads it, and reports.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// A folder of the test's own, since reports go to `target/bench` of the working directory.
fn run(name: &str, arguments: &[&str]) -> (PathBuf, Output) {
    let folder = std::env::temp_dir().join(format!("edgelink-bench-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder");
    let output = Command::new(env!("CARGO_BIN_EXE_edgelink-bench"))
        .arg("relay")
        .args(["--rounds", "1", "--seconds", "0.2"])
        .args(arguments)
        .current_dir(&folder)
        .output()
        .expect("it was built for this test");
    (folder, output)
}

fn two_cores() -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 2)
}

#[test]
fn every_rival_is_measured_and_no_frame_is_lost() {
    if !two_cores() {
        return;
    }
    let (folder, output) = run(
        "measured",
        &["--rows", "1 pair, batched", "--only", "plain,plain-packed,plain-coalescing", "--output", "json"],
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    let row = &report["rows"][0];
    assert_eq!(row["what"], "cpu ns per 1400 B frame, 1 pair, batched");
    for rival in ["plain", "plain, packed", "plain, coalescing"] {
        assert!(row["rivals"][rival].as_f64().is_some_and(|ns| ns > 100.0), "{rival}: {row:#}");
        let notes = row["notes"][rival].as_array().cloned().unwrap_or_default();
        assert!(!notes.iter().any(|note| note.as_str().is_some_and(|note| note.contains("lost"))), "{row:#}");
    }
    let written = fs::read_to_string(folder.join("target/bench/relay.json")).expect("the report");
    assert_eq!(serde_json::from_str::<Value>(&written).expect("JSON"), report);
    let plot = fs::read_to_string(folder.join("target/bench/relay.svg")).expect("the plot");
    assert!(plot.starts_with("<svg"));
    fs::remove_dir_all(folder).expect("it is ours");
}

#[test]
fn a_contender_that_cannot_start_fails_the_run_and_says_why() {
    if !two_cores() {
        return;
    }
    let (folder, output) = run(
        "missing",
        &["--rows", "1 pair, batched", "--only", "edgelink-epoll", "--relay", "no-such-relay"],
    );
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-relay is not there"));
    fs::remove_dir_all(folder).expect("it is ours");
}
