//! Who is measured. A contender is a name and a way to start it; one more is one more line in [`all`].

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use meshdp::proto::id::{NetworkId, NodeId};
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{RelaySubject, Token};
use rustls::pki_types::CertificateDer;

use crate::process::{Server, free_port};

/// The network that all clients are in.
const NETWORK: NetworkId = NetworkId(1);
/// Of the relay that is measured.
const RELAY: u16 = 1;
/// Seed of the key that signs relay tokens; the relay is given the public half.
const SEED: [u8; 32] = [0x5e; 32];
/// A token's life, seconds.
const TOKEN_LIFE: u64 = 3600;

/// How a client puts several frames into one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Packing {
    /// One WebSocket message with all of them, as EdgeLink's nodes do.
    OneMessage,
    /// A message for each, as clients of other relays do.
    MessageEach,
}

/// Somebody to be measured.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    /// In tables and in the report; `edgelink` is ours, all others are rivals.
    pub(super) name: String,
    /// How its clients pack frames; makes no difference to those that send frame by frame.
    pub(super) packing: Packing,
    kind: Kind,
}

/// How it is started.
#[derive(Clone, Debug)]
enum Kind {
    Edgelink { binary: PathBuf, driver: &'static str },
    Plain { flush_each: bool },
}

/// The name of ours.
pub(super) const OURS: &str = "edgelink";

/// Ours first. `relay` is the relay to measure, `other` another build of it to stand beside.
pub(super) fn all(relay: Option<&Path>, other: Option<&Path>) -> anyhow::Result<Vec<Contender>> {
    let binary = match relay {
        Some(relay) => relay.to_owned(),
        None => std::env::current_exe()?.with_file_name("edgelink-relay"),
    };
    let contender = |name: &str, packing, kind| Contender { name: name.to_owned(), packing, kind };
    let edgelink = |name, binary: &Path, driver| {
        contender(name, Packing::OneMessage, Kind::Edgelink { binary: binary.to_owned(), driver })
    };
    let mut all = vec![edgelink(OURS, &binary, "auto")];
    all.extend(other.map(|other| edgelink("edgelink (other)", other, "auto")));
    all.extend([
        // Where io_uring is forbidden.
        edgelink("edgelink, epoll", &binary, "epoll"),
        // As most are written: each message is sent as it comes.
        contender("plain", Packing::MessageEach, Kind::Plain { flush_each: true }),
        // The best that such a forwarder can do: it flushes when nothing more waits.
        contender("plain, coalescing", Packing::MessageEach, Kind::Plain { flush_each: false }),
        // The same, fed by clients that pack frames as ours do, which is more than its users would.
        contender("plain, packed", Packing::OneMessage, Kind::Plain { flush_each: false }),
    ]);
    Ok(all)
}

impl Contender {
    /// Its name for the command line: `edgelink-epoll` for `edgelink, epoll`.
    pub(super) fn slug(&self) -> String {
        let words = self.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }

    /// Starts it, with TLS or without.
    pub(super) fn start(&self, setting: &Setting, tls: bool) -> anyhow::Result<Running> {
        match &self.kind {
            Kind::Edgelink { binary, driver } => start_edgelink(setting, tls, binary, driver),
            Kind::Plain { flush_each } => start_plain(setting, tls, *flush_each),
        }
        .with_context(|| format!("cannot start {}", self.name))
    }
}

/// A contender that runs.
pub(super) struct Running {
    /// Ended when dropped.
    pub(super) process: Server,
    /// Where its WebSocket is.
    pub(super) address: SocketAddr,
    /// What a node signs in with.
    pub(super) token: fn(NodeId) -> anyhow::Result<String>,
}

/// What all contenders share: the certificate, and a folder for their files.
pub(super) struct Setting {
    folder: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    /// The certificate, for clients to trust.
    pub(super) root: CertificateDer<'static>,
}

impl Setting {
    /// Makes a certificate for `localhost` and writes it into `folder`.
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        fs::write(&certificate, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        Ok(Self { folder, certificate, key, root: made.cert.der().clone() })
    }
}

fn start_edgelink(setting: &Setting, tls: bool, binary: &Path, driver: &str) -> anyhow::Result<Running> {
    if !binary.is_file() {
        bail!("{} is not there: build it with the same profile", binary.display());
    }
    let address = free_port()?;
    let mut relay = serde_json::json!({ "id": RELAY, "listen": address, "workers": 1, "driver": driver });
    if tls {
        relay["tls"] = serde_json::json!({ "cert": setting.certificate, "key": setting.key });
    } else {
        relay["behind_proxy"] = true.into();
    }
    let config = serde_json::json!({
        "jwt": { "algorithm": "EdDSA", "public_key": signer()?.verification_key().public.reveal() },
        "relay": relay,
        "stun": { "enabled": false },
        "admin": { "enabled": false },
        "log": { "level": "warn" },
        "state_dir": setting.folder.join("relay-state"),
    });
    let file = setting.folder.join("relay.json");
    fs::write(&file, config.to_string())?;
    let mut command = Command::new(binary);
    command.arg("--config").arg(&file);
    let process = Server::start(command, setting.folder.join("edgelink-relay.log"), address)?;
    Ok(Running { process, address, token: relay_token })
}

fn start_plain(setting: &Setting, tls: bool, flush_each: bool) -> anyhow::Result<Running> {
    let address = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("plain").arg("--listen").arg(address.to_string());
    if flush_each {
        command.arg("--flush-each");
    }
    if tls {
        command.arg("--certificate").arg(&setting.certificate).arg("--key").arg(&setting.key);
    }
    let process = Server::start(command, setting.folder.join("plain.log"), address)?;
    Ok(Running { process, address, token: |node| Ok(node.to_string()) })
}

fn signer() -> anyhow::Result<TokenSigner> {
    Ok(TokenSigner::eddsa("bench", &SEED)?)
}

fn relay_token(node: NodeId) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let subject = RelaySubject { node_id: node, network_id: NETWORK, ..RelaySubject::default() };
    let token =
        Token { subject, jti: format!("bench-{node}"), iat: now, exp: now + TOKEN_LIFE, not_after: None };
    Ok(signer()?.sign(&token)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_can_be_told_apart_on_the_command_line() {
        let all = all(None, Some(Path::new("/elsewhere/edgelink-relay"))).expect("this program has a path");
        assert_eq!(all[0].name, OURS);
        let mut slugs: Vec<_> = all.iter().map(Contender::slug).collect();
        assert!(
            slugs.contains(&"edgelink-other".to_owned()) && slugs.contains(&"plain-coalescing".to_owned())
        );
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), all.len());
    }
}
