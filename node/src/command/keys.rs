//! `edgelink keys`: the public halves of this machine's keys; `edgelink keys accept`: a peer's new machine_key in place of the one that was pinned.

use anyhow::bail;
use meshdp::proto::id::NodeId;
use meshdp::proto::wire::control::PublicKey;
use serde::Serialize;

use super::print_json;
use crate::args::{AcceptArgs, KeysArgs, KeysCommand, Output};
use crate::config;
use crate::daemon::unix_now;
use crate::ipc::client::Daemon;
use crate::ipc::message::{Answer, Request};
use crate::keys::Keys;

#[derive(Serialize)]
struct PublicKeys {
    key_file: std::path::PathBuf,
    machine_key: PublicKey,
    node_key: PublicKey,
    /// Whether sessions of this machine need a post-quantum secret.
    post_quantum: bool,
    /// Unix seconds.
    node_key_created: u64,
}

/// What `accept --output json` prints.
#[derive(Serialize)]
struct Accepted {
    node_id: NodeId,
    name: String,
    network: String,
    machine_key: PublicKey,
    before: PublicKey,
}

/// Runs the command.
pub(crate) fn run(args: &KeysArgs) -> anyhow::Result<()> {
    if let Some(KeysCommand::Accept(args)) = &args.command {
        return accept(args);
    }
    let path = config::key_file(args)?;
    let keys = if args.new { Keys::create(&path, unix_now(), true)? } else { Keys::load(&path)? };
    let public = PublicKeys {
        key_file: path,
        machine_key: keys.machine().public(),
        node_key: keys.node().public(),
        post_quantum: keys.node().kem().is_some(),
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

fn accept(args: &AcceptArgs) -> anyhow::Result<()> {
    let machine_key = args.machine_key.as_deref().map(parse_key).transpose()?;
    let mut daemon = Daemon::find(&args.client)?;
    daemon.ask(&Request::AcceptKey { target: args.target.clone(), machine_key })?;
    let Some(Answer::KeyAccepted { node_id, name, network, machine_key, before }) = daemon.answer()? else {
        bail!("the daemon gave no answer: are this program and the daemon of the same version?");
    };
    match args.output.output {
        Output::Json => print_json(&Accepted { node_id, name, network, machine_key, before }),
        Output::Table => {
            println!("{name} (node {node_id} in {network}) is trusted with its new machine key");
            println!("now     {machine_key}");
            println!("before  {before}");
            Ok(())
        }
    }
}

fn parse_key(text: &str) -> anyhow::Result<PublicKey> {
    PublicKey::from_text(text.trim()).map_err(|error| {
        anyhow::anyhow!("--machine-key is no machine key ({error}): `edgelink keys` on the peer shows it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_machine_key_is_refused_with_where_to_find_it() {
        let key = PublicKey::from([7; 32]);
        assert_eq!(parse_key(&format!(" {key}\n")).unwrap(), key);
        for text in ["", "17", "not a key", &key.to_string()[1..]] {
            assert!(parse_key(text).unwrap_err().to_string().contains("edgelink keys"), "{text}");
        }
    }
}
