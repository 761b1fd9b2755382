//! Configuration files of relay and node, and the addresses and pins in them and in the controller's messages. Input: which (1) ‖ text.
//!
//! The programs' own modules are compiled in here, since programs have no library. Files that a configuration names are not opened.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use meshdp::config::ConfigError;
use meshdp::engine::relay::dial::WsUrl;
use meshdp::engine::tls::{format_pin, parse_pin};

#[allow(dead_code, reason = "only the type of the command line is needed")]
#[path = "../../relay/src/args.rs"]
mod args;
#[allow(dead_code, reason = "only the file is read")]
#[path = "../../relay/src/config/file.rs"]
mod config;
#[allow(dead_code, reason = "only the file is read")]
#[path = "../../node/src/config/file.rs"]
mod node;

fuzz_target!(|input: &[u8]| {
    let [which, text @ ..] = input else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let path = Path::new(if which % 2 == 0 { "edgelink.toml" } else { "edgelink.json" });
    match which / 2 % 4 {
        0 => explained(
            path,
            text,
            meshdp::config::parse::<config::File>(path, text).map(|file| format!("{file:?}")),
        ),
        1 => explained(
            path,
            text,
            meshdp::config::parse::<node::ConfigFile>(path, text).map(|file| format!("{file:?}")),
        ),
        2 => drop(WsUrl::parse(text)),
        _ => {
            if let Ok(pin) = parse_pin(text) {
                assert!(parse_pin(&format_pin(&pin)).is_ok_and(|again| again == pin));
            }
        }
    }
});

/// A file that is refused is refused in one line: its name, line and column (both of the text), and words.
fn explained(path: &Path, text: &str, outcome: Result<String, ConfigError>) {
    let Err(error) = outcome else { return };
    let message = error.to_string();
    assert!(!message.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')), "{message:?}");
    let ConfigError::Invalid { path: named, line, column, what } = error else { panic!("{message}") };
    assert!(named == path && !what.is_empty(), "{message}");
    assert!((1..=text.split('\n').count() + 1).contains(&line), "{message}");
    assert!((1..=text.len() + 1).contains(&column), "{message}");
}
