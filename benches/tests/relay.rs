//! The whole harness, short: it starts the plain forwarder, loads it in every way there is, and reports. No figure is judged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// A folder of the test's own, since reports go to `target/bench` of the working directory.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("edgelink-bench-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

/// One after the other: all want the same two cores.
static CORES: Mutex<()> = Mutex::new(());

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let _alone = CORES.lock().unwrap_or_else(PoisonError::into_inner);
    Command::new(env!("CARGO_BIN_EXE_edgelink-bench"))
        .arg("relay")
        .args(["--rounds", "1", "--seconds", "0.1", "--many", "60", "--output", "json"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("it was built for this test")
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else")
}

fn two_cores() -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 2)
}

#[test]
fn every_row_is_measured_and_a_window_loses_no_frame() {
    if !two_cores() {
        return;
    }
    let folder = folder("rows");
    let report = report(&run(&folder, &["--only", "plain"]));
    let rows = report["rows"].as_array().expect("rows");
    assert!(rows.len() >= 19, "{report:#}");
    for row in rows {
        let what = row["what"].as_str().expect("a name");
        // About our relay's own.
        if what.contains("8 workers") {
            continue;
        }
        assert!(row["rivals"]["plain"].is_number(), "{row:#}");
        if what.starts_with("cpu ns") {
            assert!(row["rivals"]["plain"].as_f64() > Some(100.0), "{row:#}");
            assert!(!row["notes"].to_string().contains("lost"), "{row:#}");
        }
    }
    let written = fs::read_to_string(folder.join("target/bench/relay.json")).expect("the report");
    assert_eq!(serde_json::from_str::<Value>(&written).expect("JSON"), report);
    let plot = fs::read_to_string(folder.join("target/bench/relay.svg")).expect("the plot");
    assert!(plot.starts_with("<svg"));
    fs::remove_dir_all(folder).expect("it is ours");
}

#[test]
fn a_contender_joins_by_a_file() {
    if !two_cores() {
        return;
    }
    let folder = folder("hook");
    let program = env!("CARGO_BIN_EXE_edgelink-bench");
    let hook = format!(
        "name = \"mine\"\nprotocol = \"plain-ws\"\n\
         command = [{program:?}, \"plain\", \"--listen\", \"{{address}}\", \"--certificate\", \"{{certificate}}\", \"--key\", \"{{key}}\"]\n"
    );
    fs::write(folder.join("mine.toml"), hook).expect("a file");
    let report = report(&run(
        &folder,
        &["--rows", "1 pair, batched", "--contender", "mine.toml", "--only", "mine,plain-packed"],
    ));
    let rivals = &report["rows"][0]["rivals"];
    assert!(rivals["mine"].is_number() && rivals["plain, packed"].is_number(), "{report:#}");
    fs::remove_dir_all(folder).expect("it is ours");
}

#[test]
fn a_contender_that_cannot_start_is_left_out_and_named() {
    if !two_cores() {
        return;
    }
    let folder = folder("missing");
    let arguments =
        ["--rows", "1 pair, batched", "--only", "edgelink-epoll,plain", "--relay", "no-such-relay"];
    let output = run(&folder, &arguments);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-relay is not there"));
    let report: Value = serde_json::from_slice(&output.stdout).expect("the rest is there");
    assert!(report["rows"][0]["rivals"]["plain"].is_number());
    fs::remove_dir_all(folder).expect("it is ours");
}
