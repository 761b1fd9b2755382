//! `edgelink version`.

use serde::Serialize;

use super::print_json;
use crate::args::{Output, OutputArgs};

#[derive(Serialize)]
struct Build {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
    protocol: u8,
}

/// Runs the command.
pub(crate) fn run(args: &OutputArgs) -> anyhow::Result<()> {
    let version = Build {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        protocol: meshdp::proto::wire::frame::VERSION,
    };
    match args.output {
        Output::Json => print_json(&version),
        Output::Table => {
            println!(
                "edgelink {} ({} {}, protocol {})",
                version.version, version.os, version.arch, version.protocol
            );
            Ok(())
        }
    }
}
