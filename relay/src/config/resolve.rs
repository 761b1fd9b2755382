//! From the file as it stands to settings that can be started with: checked, with defaults, and refused with what to do about it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use meshdp::engine::Prefer;
use meshdp::engine::dial::Outbound;
use meshdp::engine::relay::dial::WsUrl;
use meshdp::engine::relay::{Listener, RelayConfig};
use meshdp::engine::stun::{REQUESTS_PER_SECOND, SecondAddress, StunConfig};
use meshdp::engine::tls::{self, Roots, format_pin, parse_pin};
use meshdp::proto::dial::proxy::ProxyRules;
use meshdp::proto::id::RelayId;
use meshdp::proto::relay::Limits;
use meshdp::proto::relay::queue::QueuePolicy;
use meshdp::proto::relay::rate::Rate;
use meshdp::proto::token::TokenVerifier;
use meshdp::proto::wire::control::Secret;
use meshdp::proto::wire::control::server::{MeshPeer, TokenAlgorithm, TokenKey, TokenKeys};
use meshdp::proto::wire::forwarded::Trust;
use meshdp::proto::wire::stun::Faces;

use super::file::{
    Controller, File, Jwt, LimitsSection, Listen, ListenTable, Peer, RateSection, Relay, Stun,
};
use super::{ControllerSettings, Settings};
use crate::args::Args;

/// Where nodes connect when nothing is said: HTTPS, over IPv6 and IPv4.
const DEFAULT_LISTEN: &str = "[::]:443";
/// With `--dev`: a port that needs no permission, on this machine only.
const DEFAULT_DEV_LISTEN: &str = "127.0.0.1:8443";
const DEFAULT_STUN: &str = "[::]:3478";
const DEFAULT_ADMIN: &str = "127.0.0.1:9090";

/// Checks what the file says and fills in the rest.
pub(super) fn resolve(
    file: File,
    args: &Args,
    environment: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<Settings> {
    let mut notes = Vec::new();
    let state_dir = file.state_dir.clone().unwrap_or_else(default_state_dir);
    let mut relay = RelayConfig { state_dir: Some(state_dir.clone()), ..RelayConfig::default() };
    relay.take_over = args.take_over;
    let mut certificate = None;
    let enabled = file.relay.enabled.unwrap_or(true);
    let register = &mut relay.settings.register;
    register.capabilities.clear();
    if enabled {
        register.capabilities.push("relay".into());
        let trust = trust(&file.relay)?;
        let tables = listen_tables(&file.relay, if args.dev { DEFAULT_DEV_LISTEN } else { DEFAULT_LISTEN })?;
        let names = self_signed_names(&tables, file.relay.data_url.as_deref());
        let wanted = tables.iter().any(|(_, table)| table.tls != Some(false));
        let tls = match &file.relay.tls {
            Some(files) => {
                let (config, pin) = tls::server_config_with_pin(&files.cert, &files.key)?;
                certificate = Some(pin);
                Some(config)
            }
            None if args.dev && wanted => {
                let (config, pin) = tls::self_signed(&names, &state_dir)?;
                certificate = Some(pin);
                register.tls_pin = Some(format_pin(&pin));
                notes.push(format!(
                    "--dev: self-signed certificate in {}, for trying out only; clients trust it by tls_pin {}",
                    state_dir.display(),
                    format_pin(&pin)
                ));
                Some(config)
            }
            None => None,
        };
        for (address, table) in tables {
            relay.listeners.push(listener(address, &table, tls.as_ref(), &trust, &mut notes)?);
        }
        relay.trust = trust;
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
    register.token = file.controller.token.clone().unwrap_or_default().into();
    if file.stun.enabled.unwrap_or(true) {
        let listen = address("stun.listen", file.stun.listen.as_deref().unwrap_or(DEFAULT_STUN))?;
        register.capabilities.push("stun".into());
        register.stun = file.stun.external_ip.map(|ip| SocketAddr::new(ip, listen.port()));
        let second = second_address(&file.stun, listen)?;
        let requests_per_second = file.stun.requests_per_s.unwrap_or(REQUESTS_PER_SECOND);
        relay.stun = Some(StunConfig { second, requests_per_second, ..listen.into() });
    }
    if !enabled && relay.stun.is_none() {
        bail!("relay.enabled and stun.enabled are both false: nothing to do");
    }
    for peer in &file.mesh.peers {
        relay.settings.mesh_peers.push(mesh_peer(peer)?);
    }
    relay.mesh_roots = file.mesh.ca_file.clone().map_or(Roots::Native, Roots::File);
    let no_proxy = file.no_proxy.map(|list| list.join(","));
    let proxy = file.proxy.as_ref().map(Secret::reveal);
    relay.proxies = ProxyRules::from_settings(proxy, no_proxy.as_deref(), environment)?;
    if let Some(proxy) = &relay.proxies.proxy {
        notes.push(format!("controller and other relays are reached through the proxy {proxy}"));
    }
    let controller = controller(&file.controller, &relay.proxies)?;
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
        certificate,
        log_level: file.log.level.unwrap_or_else(|| "info".into()),
        log_format: file.log.format.unwrap_or_default(),
        drain,
        notes,
    })
}

/// The addresses to listen on, in either way of saying so.
fn listen_tables(section: &Relay, default: &str) -> anyhow::Result<Vec<(SocketAddr, ListenTable)>> {
    let (behind_proxy, proxy_protocol) =
        (section.behind_proxy.unwrap_or(false), section.proxy_protocol.unwrap_or(false));
    let one = |text: &str| -> anyhow::Result<_> {
        let table = ListenTable { address: text.to_owned(), tls: None, behind_proxy, proxy_protocol };
        Ok(vec![(address("relay.listen", text)?, table)])
    };
    match &section.listen {
        None => one(default),
        Some(Listen::One(text)) => one(text),
        Some(Listen::Many(tables)) if tables.is_empty() => bail!("relay.listen is an empty list"),
        Some(Listen::Many(_)) if behind_proxy || proxy_protocol => {
            bail!("relay.listen is a list: say behind_proxy and proxy_protocol in its tables")
        }
        Some(Listen::Many(tables)) => {
            let named = |table: &ListenTable| {
                address("relay.listen.address", &table.address).map(|address| (address, table.clone()))
            };
            tables.iter().map(named).collect()
        }
    }
}

fn listener(
    address: SocketAddr,
    table: &ListenTable,
    tls: Option<&Arc<rustls::ServerConfig>>,
    trust: &Trust,
    notes: &mut Vec<String>,
) -> anyhow::Result<Listener> {
    let &ListenTable { behind_proxy, proxy_protocol, .. } = table;
    let tls = tls.filter(|_| table.tls != Some(false)).cloned();
    if table.tls == Some(true) && tls.is_none() {
        bail!("relay.listen {address} says tls = true: set relay.tls.cert and relay.tls.key");
    }
    if tls.is_none() {
        if behind_proxy {
            notes.push(format!("{address} has no TLS: the proxy before it must have (relay.behind_proxy)"));
        } else if address.ip().is_loopback() {
            notes.push(format!("{address} has no TLS: reachable from this machine only"));
        } else {
            bail!(
                "relay.listen {address} is reachable from outside and has no certificate: set relay.tls.cert and relay.tls.key, set \
                 relay.behind_proxy = true when a proxy before it does TLS, or start with --dev for a self-signed one"
            );
        }
    }
    if proxy_protocol && trust.networks.is_empty() {
        bail!(
            "relay.listen {address} expects PROXY headers, and nobody may send them: set relay.trusted_proxies to the proxy's network, \
             like [\"127.0.0.0/8\"]"
        );
    }
    if behind_proxy && !proxy_protocol && (trust.networks.is_empty() || trust.header.is_none()) {
        notes.push(format!(
            "{address} is behind a proxy that says nothing about its clients: no limit per address holds there; set \
             relay.trusted_proxies and relay.client_address, or proxy_protocol = true"
        ));
    }
    Ok(Listener { address, tls, behind_proxy, proxy_protocol })
}

/// Who is believed about whom.
fn trust(section: &Relay) -> anyhow::Result<Trust> {
    let header =
        section.client_address.as_deref().map(str::parse).transpose().context("relay.client_address")?;
    let networks = section.trusted_proxies.clone();
    if header.is_some() && networks.is_empty() {
        bail!(
            "relay.client_address is set and nobody is believed: set relay.trusted_proxies to the proxies' networks"
        );
    }
    if let Some(all) = networks.iter().find(|network| network.prefix_len() == 0) {
        bail!("relay.trusted_proxies: {all} is everybody, so anybody could claim any address");
    }
    Ok(Trust { networks, header })
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
        (
            "max_connections_per_address",
            section.max_connections_per_address,
            &mut limits.max_connections_per_address,
            1,
        ),
        // One frame must fit.
        ("queue_bytes", section.queue_bytes, &mut queue.max_bytes, 128 << 10),
        ("queue_total_bytes", section.queue_total_bytes, &mut queue.max_total, 1 << 20),
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
    rates(section, limits)
}

fn rates(section: &LimitsSection, limits: &mut Limits) -> anyhow::Result<()> {
    let arrivals = &mut limits.arrivals;
    arrivals.per_s = section.connections_per_s_per_address.unwrap_or(arrivals.per_s);
    // A machine that was asleep comes back with all it has.
    arrivals.burst = section.connection_burst_per_address.unwrap_or(arrivals.per_s.saturating_mul(2).max(16));
    let rates = &mut limits.rates;
    for (given, to) in [
        (section.node_up, &mut rates.node_up),
        (section.node_down, &mut rates.node_down),
        (section.address_up, &mut rates.address_up),
        (section.address_down, &mut rates.address_down),
    ] {
        if let Some(RateSection { bytes_per_s, frames_per_s }) = given {
            *to = Rate { bytes_per_s, frames_per_s };
        }
    }
    if let Some(burst) = section.rate_burst_ms {
        if !(1..=60_000).contains(&burst) {
            bail!("limits.rate_burst_ms = {burst}: 1 to 60000");
        }
        rates.burst = Duration::from_millis(burst);
    }
    Ok(())
}

/// The second address of a STUN server, for RFC 5780.
fn second_address(section: &Stun, listen: SocketAddr) -> anyhow::Result<Option<SecondAddress>> {
    let Some(secondary) = section.secondary_ip else { return Ok(None) };
    let first = match (listen.ip().is_unspecified(), section.external_ip) {
        (false, _) => listen.ip(),
        (true, Some(external)) => external,
        (true, None) => bail!(
            "stun.secondary_ip needs a first address: set stun.external_ip, or stun.listen to an address of this machine"
        ),
    };
    let local = [first, section.secondary_listen.unwrap_or(secondary)];
    let public = [section.external_ip.unwrap_or(first), secondary];
    let port = match section.secondary_port {
        Some(port) => port,
        // As common servers do: 3479 beside 3478.
        None if listen.port() > 0 => {
            listen.port().checked_add(1).context("stun.listen: no port is left for stun.secondary_port")?
        }
        None => 0,
    };
    let ports = [listen.port(), port];
    if listen.port() != 0 {
        Faces::new(public, ports).context("stun.external_ip, stun.secondary_ip, stun.secondary_port")?;
    }
    Ok(Some(SecondAddress { local, public, port }))
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
    let keys = TokenKeys { algorithm, keys: vec![TokenKey { kid: String::new(), public: public.into() }] };
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
        mesh_token: peer.token.clone().map(Secret::from),
    })
}

fn controller(section: &Controller, proxies: &ProxyRules) -> anyhow::Result<Option<ControllerSettings>> {
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
    let outbound = Outbound { rules: proxies.clone(), roots, certificate: None };
    Ok(Some(ControllerSettings { url, outbound, pin }))
}

/// Names for a self-signed certificate: what nodes may dial.
fn self_signed_names(listen: &[(SocketAddr, ListenTable)], data_url: Option<&str>) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let addresses = listen.iter().map(|(address, _)| address.ip());
    names.extend(addresses.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
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
