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

use super::Options;
use super::dialect::{Dialect, Packing};
use super::hook::{Hook, Protocol};
use crate::process::{Server, free_port};

/// The network that all clients are in.
const NETWORK: NetworkId = NetworkId(1);
/// Of the relay that is measured.
const RELAY: u16 = 1;
/// Seed of the key that signs relay tokens; the relay is given the public half.
const SEED: [u8; 32] = [0x5e; 32];
/// No limit of ours is to be met.
const MANY: u32 = 1_000_000;
/// A token's life, seconds.
const TOKEN_LIFE: u64 = 3600;

/// Somebody to be measured.
#[derive(Clone, Debug)]
pub(super) struct Contender {
    /// In tables and in the report; `edgelink` is ours, all others are rivals.
    pub(super) name: String,
    /// How its clients pack frames; makes no difference to those that send frame by frame.
    pub(super) packing: Packing,
    /// Whether it is in rows that need more than forwarding: a second shape of the same server is not.
    pub(super) main: bool,
    kind: Kind,
}

/// How it is started.
#[derive(Clone, Debug)]
enum Kind {
    Edgelink { binary: PathBuf, driver: &'static str },
    Plain { flush_each: bool },
    Iroh { binary: PathBuf },
    Hook(Hook),
}

/// The name of ours.
pub(super) const OURS: &str = "edgelink";

/// Ours first.
pub(super) fn all(options: &Options) -> anyhow::Result<Vec<Contender>> {
    let binary = match &options.relay {
        Some(relay) => relay.clone(),
        None => std::env::current_exe()?.with_file_name("edgelink-relay"),
    };
    let contender =
        |name: &str, packing, main, kind| Contender { name: name.to_owned(), packing, main, kind };
    let edgelink = |name, binary: &Path, driver| {
        contender(name, Packing::Records, true, Kind::Edgelink { binary: binary.to_owned(), driver })
    };
    let mut all = vec![edgelink(OURS, &binary, "auto")];
    all.extend(options.relay_binary.as_deref().map(|other| edgelink("edgelink (other)", other, "auto")));
    all.extend([
        // Where io_uring is forbidden.
        edgelink("edgelink, epoll", &binary, "epoll"),
        // As most are written: each message is sent as it comes.
        contender("plain", Packing::MessageEach, true, Kind::Plain { flush_each: true }),
        // The best that such a forwarder can do: it flushes when nothing more waits.
        contender("plain, coalescing", Packing::MessageEach, false, Kind::Plain { flush_each: false }),
        // The same, fed by clients that pack frames as ours do, which is more than its users would.
        contender("plain, packed", Packing::Records, false, Kind::Plain { flush_each: false }),
    ]);
    if options.iroh.is_file() {
        let iroh =
            |name, packing, main| contender(name, packing, main, Kind::Iroh { binary: options.iroh.clone() });
        all.push(iroh("iroh-relay", Packing::MessageEach, true));
        // Its clients put up to ten datagrams of one size into one message when they have them at once.
        all.push(iroh("iroh-relay, packed", Packing::Records, false));
    } else {
        eprintln!(
            "{} is not there: iroh-relay is left out (make bench-relay builds it)",
            options.iroh.display()
        );
    }
    for file in &options.contender {
        let hook = Hook::read(file)?;
        let packing = if hook.packed { Packing::Records } else { Packing::MessageEach };
        all.push(contender(&hook.name.clone(), packing, true, Kind::Hook(hook)));
    }
    Ok(all)
}

impl Contender {
    /// Its name for the command line: `edgelink-epoll` for `edgelink, epoll`.
    pub(super) fn slug(&self) -> String {
        let words = self.name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }

    /// Whether that is us.
    pub(super) fn is_ours(&self) -> bool {
        self.name == OURS
    }

    /// Whether it is our relay, this build or another.
    pub(super) const fn is_edgelink(&self) -> bool {
        matches!(self.kind, Kind::Edgelink { .. })
    }

    /// Whether it can be had without TLS.
    pub(super) fn without_tls(&self) -> bool {
        match &self.kind {
            Kind::Edgelink { .. } | Kind::Plain { .. } | Kind::Iroh { .. } => true,
            Kind::Hook(hook) => hook.without_tls,
        }
    }

    /// Starts it. `workers` is for ours only; everybody else has one thread on one core anyway.
    pub(super) fn start(&self, setting: &Setting, tls: bool, workers: u32) -> anyhow::Result<Running> {
        match &self.kind {
            Kind::Edgelink { binary, driver } => start_edgelink(setting, tls, binary, driver, workers),
            Kind::Plain { flush_each } => start_plain(setting, tls, *flush_each),
            Kind::Iroh { binary } => start_iroh(setting, tls, binary),
            Kind::Hook(hook) => start_hook(setting, hook, tls),
        }
        .with_context(|| format!("cannot start {}", self.name))
    }
}

/// The plain forwarder as it is measured: what others call a full load is its peak.
pub(super) fn plain() -> Contender {
    Contender {
        name: "plain".to_owned(),
        packing: Packing::MessageEach,
        main: true,
        kind: Kind::Plain { flush_each: true },
    }
}

/// A contender that runs.
pub(super) struct Running {
    /// Ended when dropped.
    pub(super) process: Server,
    /// Where its WebSocket is.
    pub(super) address: SocketAddr,
    /// What it speaks.
    pub(super) dialect: Dialect,
    tokens: Tokens,
}

/// What a node signs in with.
#[derive(Clone, Copy, Debug)]
enum Tokens {
    /// A relay token, signed.
    Signed,
    /// Its id in decimal: the plain forwarder believes what a node says.
    Id,
}

impl Running {
    /// What `node` signs in with.
    pub(super) fn token(&self, node: NodeId) -> anyhow::Result<String> {
        match self.tokens {
            Tokens::Signed => relay_token(node),
            Tokens::Id => Ok(node.to_string()),
        }
    }

    /// Does `work` with it; when that fails, what the server said is part of the error.
    pub(super) fn saying<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        work().with_context(|| format!("it said: {}", self.process.output_tail().trim()))
    }
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

fn start_edgelink(
    setting: &Setting,
    tls: bool,
    binary: &Path,
    driver: &str,
    workers: u32,
) -> anyhow::Result<Running> {
    if !binary.is_file() {
        bail!("{} is not there: build it with the same profile", binary.display());
    }
    let address = free_port()?;
    let mut relay =
        serde_json::json!({ "id": RELAY, "listen": address, "workers": workers, "driver": driver });
    if tls {
        relay["tls"] = serde_json::json!({ "cert": setting.certificate, "key": setting.key });
    } else {
        relay["behind_proxy"] = true.into();
    }
    let config = serde_json::json!({
        "jwt": { "algorithm": "EdDSA", "public_key": signer()?.verification_key().public.reveal() },
        "relay": relay,
        "limits": { "max_connections": MANY, "max_unauthenticated": MANY, "max_unauthenticated_per_address": MANY },
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
    Ok(Running { process, address, dialect: Dialect::Edgelink, tokens: Tokens::Signed })
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
    Ok(Running { process, address, dialect: Dialect::Edgelink, tokens: Tokens::Id })
}

/// Its own binary as published, without limits. With TLS it opens a second port, for plain HTTP.
fn start_iroh(setting: &Setting, tls: bool, binary: &Path) -> anyhow::Result<Running> {
    let address = free_port()?;
    let mut config = toml::Table::new();
    config.insert("enable_quic_addr_discovery".to_owned(), false.into());
    config.insert("enable_metrics".to_owned(), false.into());
    let http = if tls { free_port()? } else { address };
    config.insert("http_bind_addr".to_owned(), http.to_string().into());
    if tls {
        let values = [
            ("cert_mode", "Manual".to_owned()),
            ("https_bind_addr", address.to_string()),
            ("manual_cert_path", setting.certificate.display().to_string()),
            ("manual_key_path", setting.key.display().to_string()),
        ];
        let values = values.map(|(name, value)| (name.to_owned(), value.into()));
        config.insert("tls".to_owned(), toml::Table::from_iter(values).into());
    }
    let file = setting.folder.join("iroh-relay.toml");
    fs::write(&file, config.to_string())?;
    let mut command = Command::new(binary);
    command.arg("--config-path").arg(&file).env("RUST_LOG", "error");
    let process = Server::start(command, setting.folder.join("iroh-relay.log"), address)?;
    Ok(Running { process, address, dialect: Dialect::Iroh, tokens: Tokens::Id })
}

fn start_hook(setting: &Setting, hook: &Hook, tls: bool) -> anyhow::Result<Running> {
    let address = match hook.port {
        Some(port) => SocketAddr::from(([127, 0, 0, 1], port)),
        None => free_port()?,
    };
    let key = signer()?.verification_key().public.reveal().to_owned();
    let values = [
        ("port", address.port().to_string()),
        ("address", address.to_string()),
        ("certificate", setting.certificate.display().to_string()),
        ("key", setting.key.display().to_string()),
        ("tls", tls.to_string()),
        ("token_key", key),
    ];
    let process = hook.start(&values, setting.folder.join(format!("{}.log", hook.file_name())), address)?;
    let (dialect, tokens) = match hook.protocol {
        Protocol::Ours => (Dialect::Edgelink, Tokens::Signed),
        Protocol::PlainWs => (Dialect::Edgelink, Tokens::Id),
        Protocol::Iroh => (Dialect::Iroh, Tokens::Id),
    };
    Ok(Running { process, address, dialect, tokens })
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
        let options =
            Options { relay_binary: Some("/elsewhere/edgelink-relay".into()), ..Options::default() };
        let all = all(&options).expect("this program has a path");
        assert!(all[0].is_ours());
        let mut slugs: Vec<_> = all.iter().map(Contender::slug).collect();
        assert!(
            slugs.contains(&"edgelink-other".to_owned()) && slugs.contains(&"plain-coalescing".to_owned())
        );
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), all.len());
    }
}
