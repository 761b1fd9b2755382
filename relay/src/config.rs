//! What an operator may say: a file (JSON or TOML), `EDGELINK_` variables over it, flags over both.
//!
//! [`File`] is the file as it stands, [`Settings`] what comes out: checked, with defaults, ready to start with. Secrets are never printed.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use meshdp::engine::Prefer;
use meshdp::engine::relay::RelayConfig;
use meshdp::engine::relay::dial::{WsUrl, format_pin, parse_pin};
use meshdp::engine::tls::{self, Roots};
use meshdp::proto::id::RelayId;
use meshdp::proto::relay::Limits;
use meshdp::proto::relay::queue::QueuePolicy;
use meshdp::proto::token::TokenVerifier;
use meshdp::proto::wire::control::server::{MeshPeer, TokenAlgorithm, TokenKey, TokenKeys};
use serde::Deserialize;

use crate::args::Args;

/// Where nodes connect when nothing is said: HTTPS, over IPv6 and IPv4.
const DEFAULT_LISTEN: &str = "[::]:443";
/// With `--dev`: a port that needs no permission, on this machine only.
const DEFAULT_DEV_LISTEN: &str = "127.0.0.1:8443";
const DEFAULT_STUN: &str = "[::]:3478";
const DEFAULT_ADMIN: &str = "127.0.0.1:9090";

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    controller: Controller,
    jwt: Jwt,
    relay: Relay,
    stun: Stun,
    mesh: Mesh,
    admin: Admin,
    limits: LimitsSection,
    log: Log,
    state_dir: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Controller {
    url: Option<String>,
    token: Option<String>,
    ca_file: Option<PathBuf>,
    tls_pin: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Jwt {
    algorithm: Option<TokenAlgorithm>,
    secret: Option<String>,
    public_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Relay {
    enabled: Option<bool>,
    id: Option<u16>,
    listen: Option<String>,
    ws_data: Option<String>,
    ws_mesh: Option<String>,
    tls: Option<TlsFiles>,
    data_url: Option<String>,
    mesh_url: Option<String>,
    workers: Option<usize>,
    behind_proxy: Option<bool>,
    driver: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stun {
    enabled: Option<bool>,
    listen: Option<String>,
    external_ip: Option<IpAddr>,
    /// Of the source's files; RFC 5780 will use it.
    secondary_ip: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Mesh {
    peers: Vec<Peer>,
    ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    id: u16,
    url: String,
    token: Option<String>,
    tls_pin: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Admin {
    enabled: Option<bool>,
    listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsSection {
    handshake_timeout_s: Option<f64>,
    max_connections: Option<usize>,
    max_unauthenticated: Option<usize>,
    max_unauthenticated_per_address: Option<usize>,
    max_memberships: Option<usize>,
    queue_bytes: Option<usize>,
    queue_age_ms: Option<u64>,
    drain_s: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Log {
    level: Option<String>,
    format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, an object per line.
    Json,
}

macro_rules! without_secrets {
    ($name:ident { $($shown:ident),* }) => {
        impl std::fmt::Debug for $name {
            /// Leaves secrets out.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    };
}
without_secrets!(Controller { url, ca_file, tls_pin });
without_secrets!(Jwt { algorithm });
without_secrets!(Peer { id, url, tls_pin });

/// The link to the controller.
#[derive(Clone)]
pub(crate) struct ControllerSettings {
    pub(crate) url: WsUrl,
    pub(crate) roots: Roots,
    pub(crate) pin: Option<tls::Pin>,
}

/// What to run with.
pub(crate) struct Settings {
    pub(crate) relay: RelayConfig,
    pub(crate) controller: Option<ControllerSettings>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
    pub(crate) drain: Duration,
    /// What an operator should know before the first connection, in order.
    pub(crate) notes: Vec<String>,
}

/// Reads file, environment and flags. `environment` looks a variable up.
pub(crate) fn load(args: &Args, environment: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Settings> {
    let mut file = match &args.config {
        Some(path) => meshdp::config::load::<File>(path)?,
        None => File::default(),
    };
    apply_environment(&mut file, environment)?;
    apply_flags(&mut file, args);
    resolve(file, args)
}

/// Every variable, and where it goes.
fn apply_environment(file: &mut File, environment: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<()> {
    fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<T>
    where
        T::Err: std::fmt::Display,
    {
        value.parse().map_err(|error| anyhow::anyhow!("{name}={value:?}: {error}"))
    }
    type Set = fn(&mut File, &str, String) -> anyhow::Result<()>;
    const VARIABLES: &[(&str, Set)] = &[
        ("EDGELINK_CONTROLLER_URL", |f, _, v| {
            f.controller.url = Some(v);
            Ok(())
        }),
        ("EDGELINK_CONTROLLER_TOKEN", |f, _, v| {
            f.controller.token = Some(v);
            Ok(())
        }),
        ("EDGELINK_CONTROLLER_CA_FILE", |f, _, v| {
            f.controller.ca_file = Some(v.into());
            Ok(())
        }),
        ("EDGELINK_CONTROLLER_TLS_PIN", |f, _, v| {
            f.controller.tls_pin = Some(v);
            Ok(())
        }),
        ("EDGELINK_JWT_ALGORITHM", |f, n, v| {
            let value = serde_json::Value::String(v);
            f.jwt.algorithm =
                Some(serde_json::from_value(value).with_context(|| format!("{n}: EdDSA, HS256 or RS256"))?);
            Ok(())
        }),
        ("EDGELINK_JWT_SECRET", |f, _, v| {
            f.jwt.secret = Some(v);
            Ok(())
        }),
        ("EDGELINK_JWT_PUBLIC_KEY", |f, _, v| {
            f.jwt.public_key = Some(v);
            Ok(())
        }),
        ("EDGELINK_RELAY_ENABLED", |f, n, v| {
            f.relay.enabled = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_RELAY_ID", |f, n, v| {
            f.relay.id = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_RELAY_LISTEN", |f, _, v| {
            f.relay.listen = Some(v);
            Ok(())
        }),
        ("EDGELINK_RELAY_DATA_URL", |f, _, v| {
            f.relay.data_url = Some(v);
            Ok(())
        }),
        ("EDGELINK_RELAY_MESH_URL", |f, _, v| {
            f.relay.mesh_url = Some(v);
            Ok(())
        }),
        ("EDGELINK_RELAY_WORKERS", |f, n, v| {
            f.relay.workers = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_RELAY_BEHIND_PROXY", |f, n, v| {
            f.relay.behind_proxy = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_STUN_ENABLED", |f, n, v| {
            f.stun.enabled = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_STUN_LISTEN", |f, _, v| {
            f.stun.listen = Some(v);
            Ok(())
        }),
        ("EDGELINK_STUN_EXTERNAL_IP", |f, n, v| {
            f.stun.external_ip = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_ADMIN_ENABLED", |f, n, v| {
            f.admin.enabled = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_ADMIN_LISTEN", |f, _, v| {
            f.admin.listen = Some(v);
            Ok(())
        }),
        ("EDGELINK_STATE_DIR", |f, _, v| {
            f.state_dir = Some(v.into());
            Ok(())
        }),
        ("EDGELINK_LOG_LEVEL", |f, _, v| {
            f.log.level = Some(v);
            Ok(())
        }),
        ("EDGELINK_DRIVER", |f, _, v| {
            f.relay.driver = Some(v);
            Ok(())
        }),
    ];
    for (name, set) in VARIABLES {
        if let Some(value) = environment(name) {
            set(file, name, value)?;
        }
    }
    Ok(())
}

fn apply_flags(file: &mut File, args: &Args) {
    fn over<T: Clone>(flag: Option<&T>, to: &mut Option<T>) {
        if let Some(value) = flag {
            *to = Some(value.clone());
        }
    }
    over(args.listen.as_ref(), &mut file.relay.listen);
    over(args.controller.as_ref(), &mut file.controller.url);
    over(args.token.as_ref(), &mut file.controller.token);
    over(args.admin.as_ref(), &mut file.admin.listen);
    over(args.state_dir.as_ref(), &mut file.state_dir);
    over(args.log_format.as_ref(), &mut file.log.format);
}

fn resolve(file: File, args: &Args) -> anyhow::Result<Settings> {
    let mut notes = Vec::new();
    let state_dir = file.state_dir.clone().unwrap_or_else(default_state_dir);
    let mut relay = RelayConfig { state_dir: Some(state_dir.clone()), ..RelayConfig::default() };
    let enabled = file.relay.enabled.unwrap_or(true);
    let register = &mut relay.settings.register;
    register.capabilities.clear();
    if enabled {
        register.capabilities.push("relay".into());
        let default = if args.dev { DEFAULT_DEV_LISTEN } else { DEFAULT_LISTEN };
        let listen = address("relay.listen", file.relay.listen.as_deref().unwrap_or(default))?;
        relay.listen = Some(listen);
        let behind_proxy = file.relay.behind_proxy.unwrap_or(false);
        let names = self_signed_names(listen, file.relay.data_url.as_deref());
        relay.tls = match &file.relay.tls {
            Some(files) => Some(tls::server_config(&files.cert, &files.key)?),
            None if args.dev => {
                let (config, pin) = tls::self_signed(&names, &state_dir)?;
                register.tls_pin = Some(format_pin(&pin));
                notes.push(format!(
                    "--dev: self-signed certificate in {}, for trying out only; clients trust it by tls_pin {}",
                    state_dir.display(),
                    format_pin(&pin)
                ));
                Some(config)
            }
            None if behind_proxy => {
                notes
                    .push(format!("{listen} has no TLS: the proxy before it must have (relay.behind_proxy)"));
                None
            }
            None if listen.ip().is_loopback() => {
                notes.push(format!("{listen} has no TLS: reachable from this machine only"));
                None
            }
            None => bail!(
                "relay.listen {listen} is reachable from outside and has no certificate: set relay.tls.cert and relay.tls.key, set \
                 relay.behind_proxy = true when a proxy before it does TLS, or start with --dev for a self-signed one"
            ),
        };
        if behind_proxy {
            // All connections come from the proxy's address.
            relay.limits.max_unauthenticated_per_address = usize::MAX;
        }
    }
    relay.data_path = path("relay.ws_data", file.relay.ws_data, "/ws/data")?;
    relay.mesh_path = path("relay.ws_mesh", file.relay.ws_mesh, "/ws/mesh")?;
    if relay.data_path == relay.mesh_path {
        bail!("relay.ws_data and relay.ws_mesh are the same path");
    }
    relay.workers = file.relay.workers.unwrap_or(0);
    let driver = file.relay.driver.as_deref().unwrap_or_default();
    relay.driver = driver.parse::<Prefer>().context("relay.driver")?;
    relay.settings.relay_id = RelayId(file.relay.id.unwrap_or(0));
    relay.settings.token_keys = token_keys(&file.jwt)?;
    let register = &mut relay.settings.register;
    for (key, url, to) in [
        ("relay.data_url", &file.relay.data_url, &mut register.data_url),
        ("relay.mesh_url", &file.relay.mesh_url, &mut register.mesh_url),
    ] {
        if let Some(url) = url {
            WsUrl::parse(url).with_context(|| format!("{key} = {url:?}"))?;
            *to = Some(url.clone());
        }
    }
    register.token = file.controller.token.clone().unwrap_or_default();
    if file.stun.enabled.unwrap_or(true) {
        let listen = address("stun.listen", file.stun.listen.as_deref().unwrap_or(DEFAULT_STUN))?;
        register.capabilities.push("stun".into());
        register.stun = file.stun.external_ip.map(|ip| SocketAddr::new(ip, listen.port()));
        relay.stun = Some(listen);
    }
    if file.stun.secondary_ip.is_some() {
        notes.push("stun.secondary_ip is not used yet (NAT behaviour discovery, RFC 5780)".into());
    }
    if !enabled && relay.stun.is_none() {
        bail!("relay.enabled and stun.enabled are both false: nothing to do");
    }
    for peer in &file.mesh.peers {
        relay.settings.mesh_peers.push(mesh_peer(peer)?);
    }
    relay.mesh_roots = file.mesh.ca_file.clone().map_or(Roots::Native, Roots::File);
    let controller = controller(&file.controller)?;
    relay.settings.has_controller = controller.is_some();
    if enabled && controller.is_none() && relay.settings.token_keys.is_none() {
        bail!(
            "no controller.url and no jwt.public_key (or jwt.secret): nobody could sign in; set one of them"
        );
    }
    if enabled && controller.is_none() && relay.settings.relay_id.0 == 0 {
        bail!("without controller.url this relay needs an id: set relay.id (1 to 65535)");
    }
    limits(&file.limits, &mut relay.limits, &mut relay.queue)?;
    let admin = match file.admin.enabled {
        Some(false) => None,
        _ => Some(address("admin.listen", file.admin.listen.as_deref().unwrap_or(DEFAULT_ADMIN))?),
    };
    if let Some(admin) = admin.filter(|admin| !admin.ip().is_loopback()) {
        notes.push(format!("admin.listen {admin} is reachable from outside and asks for no password"));
    }
    let drain = seconds("limits.drain_s", file.limits.drain_s, 5.0)?;
    Ok(Settings {
        relay,
        controller,
        admin,
        log_level: file.log.level.unwrap_or_else(|| "info".into()),
        log_format: file.log.format.unwrap_or_default(),
        drain,
        notes,
    })
}

fn limits(section: &LimitsSection, limits: &mut Limits, queue: &mut QueuePolicy) -> anyhow::Result<()> {
    let default = limits.handshake_timeout.as_secs_f64();
    limits.handshake_timeout = seconds("limits.handshake_timeout_s", section.handshake_timeout_s, default)?;
    for (key, value, to, least) in [
        ("max_connections", section.max_connections, &mut limits.max_connections, 1),
        ("max_unauthenticated", section.max_unauthenticated, &mut limits.max_unauthenticated, 1),
        (
            "max_unauthenticated_per_address",
            section.max_unauthenticated_per_address,
            &mut limits.max_unauthenticated_per_address,
            1,
        ),
        ("max_memberships", section.max_memberships, &mut limits.max_memberships, 1),
        // One frame must fit.
        ("queue_bytes", section.queue_bytes, &mut queue.max_bytes, 128 << 10),
    ] {
        if let Some(value) = value {
            if value < least {
                bail!("limits.{key} = {value}: at least {least}");
            }
            *to = value;
        }
    }
    if let Some(age) = section.queue_age_ms {
        queue.max_age = Duration::from_millis(age);
    }
    Ok(())
}

fn seconds(key: &str, value: Option<f64>, default: f64) -> anyhow::Result<Duration> {
    let value = value.unwrap_or(default);
    match Duration::try_from_secs_f64(value) {
        Ok(duration) if value > 0.0 && value <= 3600.0 => Ok(duration),
        _ => bail!("{key} = {value}: more than 0 and at most 3600 seconds"),
    }
}

fn address(key: &str, text: &str) -> anyhow::Result<SocketAddr> {
    text.parse()
        .with_context(|| format!("{key} = {text:?}: expected address and port, like 0.0.0.0:443 or [::]:443"))
}

fn path(key: &str, value: Option<String>, default: &str) -> anyhow::Result<String> {
    let path = value.unwrap_or_else(|| default.to_owned());
    if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || matches!(c, '?' | '#')) {
        bail!("{key} = {path:?}: expected a path like {default}");
    }
    Ok(path)
}

fn token_keys(jwt: &Jwt) -> anyhow::Result<Option<TokenKeys>> {
    let algorithm = jwt.algorithm.unwrap_or(match (&jwt.secret, &jwt.public_key) {
        // As in the source's files, where a secret alone means HS256.
        (Some(_), None) => TokenAlgorithm::HS256,
        _ => TokenAlgorithm::EdDSA,
    });
    let public = match (algorithm, &jwt.secret, &jwt.public_key) {
        (_, None, None) => return Ok(None),
        (TokenAlgorithm::HS256, Some(secret), _) => STANDARD.encode(secret),
        (TokenAlgorithm::HS256, None, _) => bail!("jwt.algorithm HS256 needs jwt.secret"),
        (_, _, Some(public)) => public.clone(),
        (_, Some(_), None) => bail!("jwt.algorithm {algorithm:?} needs jwt.public_key, not jwt.secret"),
    };
    // The key id of tokens does not matter when there is one key.
    let keys = TokenKeys { algorithm, keys: vec![TokenKey { kid: String::new(), public }] };
    TokenVerifier::new(&keys).context("jwt")?;
    Ok(Some(keys))
}

fn mesh_peer(peer: &Peer) -> anyhow::Result<MeshPeer> {
    if peer.id == 0 {
        bail!("mesh.peers: id 0 is not valid");
    }
    WsUrl::parse(&peer.url).with_context(|| format!("mesh.peers: {:?}", peer.url))?;
    if let Some(pin) = &peer.tls_pin {
        parse_pin(pin).context("mesh.peers")?;
    }
    Ok(MeshPeer {
        id: RelayId(peer.id),
        name: String::new(),
        mesh_url: Some(peer.url.clone()),
        tls_pin: peer.tls_pin.clone(),
        mesh_token: peer.token.clone(),
    })
}

fn controller(section: &Controller) -> anyhow::Result<Option<ControllerSettings>> {
    let Some(url) = &section.url else { return Ok(None) };
    let mut url = WsUrl::parse(url).with_context(|| format!("controller.url = {url:?}"))?;
    if url.path == "/" {
        url.path = "/ws/server".into();
    }
    if section.token.as_deref().unwrap_or_default().is_empty() {
        bail!(
            "controller.url is set but controller.token is not: get one with `edgelink-ctl server add`, then set it in the file, as \
             EDGELINK_CONTROLLER_TOKEN or with --token"
        );
    }
    let pin = section.tls_pin.as_deref().map(parse_pin).transpose().context("controller.tls_pin")?;
    let roots = section.ca_file.clone().map_or(Roots::Native, Roots::File);
    Ok(Some(ControllerSettings { url, roots, pin }))
}

/// Names for a self-signed certificate: what nodes may dial.
fn self_signed_names(listen: SocketAddr, data_url: Option<&str>) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    names.extend(data_url.and_then(|url| WsUrl::parse(url).ok()).map(|url| url.host));
    names.sort();
    names.dedup();
    names
}

fn default_state_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let home = || var("HOME").map(|home| home.join(".local/state"));
    if Path::new("/var/lib/edgelink-relay").is_dir() {
        return "/var/lib/edgelink-relay".into();
    }
    var("STATE_DIRECTORY")
        .or_else(|| var("XDG_STATE_HOME").or_else(home).map(|base| base.join("edgelink-relay")))
        .unwrap_or_else(|| "/var/lib/edgelink-relay".into())
}

#[cfg(test)]
mod tests;
