//! `edgelink keys`: the public halves of this machine's keys.

use meshdp::proto::wire::control::PublicKey;
use serde::Serialize;

use super::print_json;
use crate::args::{KeysArgs, Output};
use crate::config;
use crate::daemon::unix_now;
use crate::keys::Keys;

#[derive(Serialize)]
struct PublicKeys {
    key_file: std::path::PathBuf,
    machine_key: PublicKey,
    node_key: PublicKey,
    /// Unix seconds.
    node_key_created: u64,
}

/// Runs the command.
pub(crate) fn run(args: &KeysArgs) -> anyhow::Result<()> {
    let path = config::key_file(args)?;
    let keys = if args.new { Keys::create(&path, unix_now(), true)? } else { Keys::load(&path)? };
    let public = PublicKeys {
        key_file: path,
        machine_key: keys.machine().public(),
        node_key: keys.node().public(),
        node_key_created: keys.created(),
    };
    match args.output.output {
        Output::Json => print_json(&public),
        Output::Table => {
            println!("machine_key  {}", public.machine_key);
            println!("node_key     {}", public.node_key);
            println!("key file     {}", public.key_file.display());
            Ok(())
        }
    }
}
