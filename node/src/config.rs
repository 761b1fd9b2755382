//! Settings: file, environment and flags, in rising order of authority.
//!
//! [`mod@file`] is the file (JSON or TOML) as it stands. Environment variables
//! (`EDGELINK_…`) are flags by another spelling, so clap reads both ([`crate::args`]). [`resolve`] puts them together with the defaults into a
//! [`Settings`] whose fields are valid by type; nothing after it has to check again.

pub(crate) mod file;

pub(crate) use file::NameMode;

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use meshdp::engine::tls::{self, Pin};
use meshdp::proto::dial::proxy::ProxyRules;
use meshdp::proto::routing::exit::is_wide;
use meshdp::proto::wire::control::node::AdvertisedRoute;
use serde::Deserialize;

use crate::args::Overrides;
use crate::control::url::ControllerUrl;
use crate::host::probe::Probe;
use file::{Cipher, ConfigFile, LogFormat};

/// The interface unless one is named.
pub(crate) const DEFAULT_INTERFACE: &str = "edge0";

/// RFC 9476 and ICANN have set `internal` aside for this.
const SUFFIX: &str = "edge.internal";

/// Everything the daemon needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where the controller is, and how to know it.
    pub(crate) controller: Controller,
    /// What people call this machine.
    pub(crate) hostname: String,
    /// The secret keys.
    pub(crate) key_file: PathBuf,
    /// The last configuration, and the socket when not root.
    pub(crate) state_dir: PathBuf,
    /// Networks to join; empty: the default one.
    pub(crate) networks: Vec<String>,
    /// Which hosts are behind a proxy.
    pub(crate) proxies: ProxyRules,
    /// Shown to who asks for one: certificate chain and key.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    /// Authorises at once where the operator made such a key.
    pub(crate) enrolment_key: Option<Secret>,
    /// The interface.
    pub(crate) interface: String,
    /// Overrides the operator's MTU.
    pub(crate) mtu: Option<u16>,
    /// Subnets this machine is a gateway to.
    pub(crate) advertise_routes: Vec<AdvertisedRoute>,
    /// How packets get from the mesh to those.
    pub(crate) gateway: Gateway,
    /// Through whom all traffic goes.
    pub(crate) exit: Exit,
    /// How nodes are found by name.
    pub(crate) names: NameSettings,
    /// Whether the system's routing table gets the subnets of others.
    pub(crate) accept_routes: bool,
    /// Whether sessions need a post-quantum secret.
    pub(crate) post_quantum: bool,
    /// Which ciphers sessions may use.
    pub(crate) cipher: Cipher,
    /// Direct paths.
    pub(crate) p2p: P2p,
    /// Overrides the operator's interval between LATENCY_REPORTs.
    pub(crate) latency_report: Option<Duration>,
    /// Filter of the log, in `tracing` syntax.
    pub(crate) log_level: String,
    /// One line of text or JSON per event.
    pub(crate) log_format: LogFormat,
}

/// Direct paths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct P2p {
    /// Without, everything goes by relays.
    pub(crate) enabled: bool,
    /// Of the UDP sockets; 0: any.
    pub(crate) port: u16,
    /// Whether the router is asked to let peers in.
    pub(crate) port_mapping: bool,
    /// Whether peers on this network are looked for.
    pub(crate) lan_discovery: bool,
    /// Overrides the operator's.
    pub(crate) keepalive: Option<Duration>,
}

/// Where the controller is, and how to know it.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    /// `wss://host[:port]/ws/control`
    pub(crate) url: ControllerUrl,
    /// Roots to trust instead of the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// SHA-256 of the certificate to trust beside the roots.
    pub(crate) tls_pin: Option<Pin>,
}

/// How packets get from the mesh to advertised subnets.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    /// Whether the daemon sets up forwarding.
    pub(crate) enabled: bool,
    /// Whether they leave with this machine's address.
    pub(crate) snat: bool,
    /// The only interface that counts.
    pub(crate) lan_interface: Option<String>,
    /// Hosts that are asked whether they are there.
    pub(crate) probes: Vec<Probe>,
}

/// Through whom all traffic goes.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    /// The peer; `None`: every packet takes its usual way.
    pub(crate) node: Option<String>,
    /// Whether networks that this machine is on stay reachable.
    pub(crate) allow_lan: bool,
    /// Destinations that are reached past it.
    pub(crate) outside: Vec<IpNet>,
}

/// How nodes are found by name.
#[derive(Clone, Debug)]
pub(crate) struct NameSettings {
    pub(crate) mode: NameMode,
    /// What all names end with.
    pub(crate) suffix: String,
    /// Asked about other names; empty: those that the system had.
    pub(crate) upstream: Vec<IpAddr>,
    /// The system's own file.
    pub(crate) resolv_conf: PathBuf,
}

/// A string that stays out of logs.
#[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(crate) String);

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// The settings of `overrides` over those of the file it names (or of the first default file that exists).
pub(crate) fn resolve(overrides: &Overrides) -> anyhow::Result<Settings> {
    let file = load(overrides.config.as_deref())?;
    merge(overrides, file, &|name| std::env::var(name).ok())
}

/// The file at `explicit`, else the first default one, else nothing.
pub(crate) fn load(explicit: Option<&Path>) -> anyhow::Result<ConfigFile> {
    if let Some(path) = explicit {
        return Ok(meshdp::config::load(path)?);
    }
    for path in default_files() {
        if path.exists() {
            return Ok(meshdp::config::load(&path)?);
        }
    }
    Ok(ConfigFile::default())
}

/// Where a configuration is looked for.
pub(crate) fn default_files() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/etc/edgelink")];
    folders.extend(config_home().map(|home| home.join("edgelink")));
    folders.into_iter().flat_map(|folder| [folder.join("node.toml"), folder.join("node.json")]).collect()
}

fn config_home() -> Option<PathBuf> {
    env_dir("XDG_CONFIG_HOME").or_else(|| env_dir("HOME").map(|home| home.join(".config")))
}

/// Where state lives by default: `/var/lib/edgelink` for root, else in the user's home.
pub(crate) fn default_state_dir() -> PathBuf {
    let home = || env_dir("XDG_STATE_HOME").or_else(|| env_dir("HOME").map(|home| home.join(".local/state")));
    let system = || PathBuf::from("/var/lib");
    if rustix::process::geteuid().is_root() { system() } else { home().unwrap_or_else(system) }
        .join("edgelink")
}

/// Which daemon a command means.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) interface: String,
    pub(crate) state_dir: PathBuf,
}

impl Place {
    /// By flags, then the file. The file is a hint: one that cannot be read, or is broken, is as good as none.
    pub(crate) fn of(args: &crate::args::ClientArgs) -> Self {
        let file = load(args.config.as_deref()).unwrap_or_default();
        let state_dir = args.state_dir.clone().or(file.state_dir);
        Self {
            interface: args
                .interface
                .clone()
                .or(file.tun.name)
                .unwrap_or_else(|| DEFAULT_INTERFACE.to_owned()),
            state_dir: state_dir.map_or_else(default_state_dir, |path| expand(&path)),
        }
    }
}

/// Where the keys are, for a command that needs nothing else of the settings.
pub(crate) fn key_file(args: &crate::args::KeysArgs) -> anyhow::Result<PathBuf> {
    let file = load(args.config.as_deref())?;
    Ok(args.key_file.clone().or(file.key_file).map_or_else(
        || {
            let state_dir = args.state_dir.clone().or(file.state_dir);
            state_dir.map_or_else(default_state_dir, |path| expand(&path)).join("keys.json")
        },
        |path| expand(&path),
    ))
}

fn env_dir(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// `~/…` in the user's home.
fn expand(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), env_dir("HOME")) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_path_buf(),
    }
}

fn merge(
    overrides: &Overrides,
    file: ConfigFile,
    variable: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<Settings> {
    let proxy = overrides.proxy.as_ref().or(file.proxy.as_ref()).map(|proxy| proxy.0.as_str());
    let no_proxy = match overrides.no_proxy.as_slice() {
        [] => file.no_proxy.map(|list| list.join(",")),
        list => Some(list.join(",")),
    };
    let proxies = ProxyRules::from_settings(proxy, no_proxy.as_deref(), variable)?;
    let client_cert = overrides.client_cert.clone().or(file.client_cert);
    let client_certificate = match (client_cert, overrides.client_key.clone().or(file.client_key)) {
        (Some(certificate), Some(key)) => Some((expand(&certificate), expand(&key))),
        (None, None) => None,
        (Some(_), None) => bail!("client_cert is given without client_key: name the file of its key, too"),
        (None, Some(_)) => {
            bail!("client_key is given without client_cert: name the file of the certificate, too")
        }
    };
    let controller = merge_controller(overrides, file.controller)?;
    let state_dir =
        overrides.state_dir.clone().or(file.state_dir).map_or_else(default_state_dir, |p| expand(&p));
    let key_file = overrides
        .key_file
        .clone()
        .or(file.key_file)
        .map_or_else(|| state_dir.join("keys.json"), |path| expand(&path));
    let interface =
        overrides.interface.clone().or(file.tun.name).unwrap_or_else(|| DEFAULT_INTERFACE.to_owned());
    check_interface(&interface)?;
    let mtu = overrides.mtu.or(file.tun.mtu);
    if let Some(mtu) = mtu.filter(|mtu| !(1280..=9000).contains(mtu)) {
        bail!("tun.mtu is {mtu}, expected 1280 (IPv6 needs that much) to 9000");
    }
    let mut advertise_routes: Vec<AdvertisedRoute> = if overrides.advertise_routes.is_empty() {
        file.advertise_routes.into_iter().map(AdvertisedRoute::from).collect()
    } else {
        overrides.advertise_routes.iter().map(|&cidr| advertised(cidr)).collect()
    };
    if overrides.advertise_exit_node.or(file.advertise_exit_node) == Some(true) {
        let all = [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())];
        advertise_routes.extend(all.map(advertised));
    }
    let gateway = merge_gateway(overrides, file.gateway_mode, !advertise_routes.is_empty())?;
    let exit = merge_exit(overrides, file.exit_node, &advertise_routes)?;
    if let Some(keepalive) = file.p2p.keepalive_interval_seconds.filter(|s| !(5..=55).contains(s)) {
        bail!(
            "p2p.keepalive_interval_seconds is {keepalive}, expected 5 to 55 (most NATs forget after 60 to 120)"
        );
    }
    if file.relay.connect_all == Some(false) {
        bail!(
            "relay.connect_all is false, but a node of this version always connects to every relay: remove the key"
        );
    }
    Ok(Settings {
        controller,
        hostname: overrides.hostname.clone().or(file.hostname).unwrap_or_else(system_hostname),
        key_file,
        state_dir,
        networks: if overrides.networks.is_empty() { file.networks } else { overrides.networks.clone() },
        proxies,
        client_certificate,
        enrolment_key: overrides.enrolment_key.clone().or(file.enrolment_key).map(Secret),
        interface,
        mtu,
        advertise_routes,
        gateway,
        exit,
        names: NameSettings {
            mode: overrides.names.or(file.names.mode).unwrap_or_default(),
            suffix: file.names.suffix.unwrap_or_else(|| SUFFIX.to_owned()),
            upstream: file.names.upstream,
            resolv_conf: file.names.resolv_conf.unwrap_or_else(|| PathBuf::from("/etc/resolv.conf")),
        },
        accept_routes: overrides.accept_routes.or(file.accept_routes).unwrap_or(true),
        post_quantum: overrides.post_quantum.or(file.post_quantum).unwrap_or(true),
        cipher: file.cipher.unwrap_or_default(),
        p2p: P2p {
            enabled: overrides.p2p.or(file.p2p.enabled).unwrap_or(true),
            port: overrides.p2p_port.or(file.p2p.port).unwrap_or(0),
            port_mapping: overrides.p2p_port_mapping.or(file.p2p.port_mapping).unwrap_or(true),
            lan_discovery: overrides.p2p_lan_discovery.or(file.p2p.lan_discovery).unwrap_or(true),
            keepalive: file.p2p.keepalive_interval_seconds.map(Duration::from_secs),
        },
        latency_report: file.relay.latency_report_interval_seconds.map(Duration::from_secs),
        log_level: overrides.log.clone().or(file.log.level).unwrap_or_else(|| "info".to_owned()),
        log_format: overrides.log_format.or(file.log.format).unwrap_or_default(),
    })
}

fn merge_gateway(overrides: &Overrides, file: file::GatewayMode, offers: bool) -> anyhow::Result<Gateway> {
    let lan_interface = overrides.lan_interface.clone().or(file.lan_interface);
    if let Some(name) = &lan_interface {
        check_interface(name)?;
    }
    let probes = if overrides.lan_probes.is_empty() { &file.probes } else { &overrides.lan_probes };
    Ok(Gateway {
        enabled: overrides.gateway.or(file.enabled).unwrap_or(offers),
        snat: overrides.snat.or(file.snat).unwrap_or(true),
        lan_interface,
        probes: probes.iter().map(|probe| probe.parse()).collect::<Result<_, _>>().context("LAN probe")?,
    })
}

fn merge_exit(
    overrides: &Overrides,
    file: file::ExitNode,
    offers: &[AdvertisedRoute],
) -> anyhow::Result<Exit> {
    let outside = file.outside.into_iter().map(|network| network.0);
    // `--exit-node ""` takes back what the file says.
    let node = overrides.exit_node.clone().or(file.node).filter(|node| !node.is_empty());
    if node.is_some() && offers.iter().any(|route| is_wide(route.cidr)) {
        bail!(
            "this machine cannot be an exit for others and have one itself: drop one of advertise_exit_node and exit_node"
        );
    }
    let outside = if overrides.exit_node_outside.is_empty() {
        outside.collect()
    } else {
        overrides.exit_node_outside.clone()
    };
    Ok(Exit { node, allow_lan: overrides.exit_node_allow_lan.or(file.allow_lan).unwrap_or(false), outside })
}

fn merge_controller(overrides: &Overrides, file: file::ControllerEntry) -> anyhow::Result<Controller> {
    let url = overrides.controller.clone().or(file.url).with_context(|| {
        let files: Vec<String> = default_files().iter().map(|path| path.display().to_string()).collect();
        let files = files.join("\n  ");
        format!(
            "no controller given. Say where it is with --controller wss://controller.example/ws/control, with EDGELINK_CONTROLLER, or with \
             the key \"controller\" in one of:\n  {files}"
        )
    })?;
    let tls_pin = overrides.tls_pin.clone().or(file.tls_pin);
    Ok(Controller {
        url: url.parse().with_context(|| format!("controller url {url:?}"))?,
        ca_file: overrides.ca_file.clone().or(file.ca_file).map(|path| expand(&path)),
        tls_pin: tls_pin
            .map(|pin| parse_pin(&pin).with_context(|| format!("tls_pin {pin:?}")))
            .transpose()?,
    })
}

/// A pin, also with colons between its bytes as openssl writes it.
fn parse_pin(text: &str) -> anyhow::Result<Pin> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).replace(':', "");
    tls::parse_pin(&digits).ok().context(
        "expected \"sha256:\" and 64 hex digits, the SHA-256 of the certificate's DER. \
         openssl x509 -in cert.pem -outform der | sha256sum shows it",
    )
}

/// What the kernel takes as a name.
fn check_interface(name: &str) -> anyhow::Result<()> {
    let fine = (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':' && byte != b'%')
        && name != "."
        && name != "..";
    if fine {
        Ok(())
    } else {
        bail!(
            "{name:?} is no interface name: expected 1 to 15 letters, digits, '-', '_' or '.', for example edge0"
        )
    }
}

fn advertised(cidr: IpNet) -> AdvertisedRoute {
    AdvertisedRoute { cidr: cidr.trunc(), priority: 100, weight: 100 }
}

fn system_hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() || name == "(none)" { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(overrides: &Overrides, file: ConfigFile) -> anyhow::Result<Settings> {
        super::merge(overrides, file, &|_| None)
    }

    fn overrides() -> Overrides {
        Overrides { controller: Some("wss://controller.example".to_owned()), ..Overrides::default() }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = meshdp::config::parse(
            Path::new("node.toml"),
            "hostname = \"from-file\"\naccept_routes = false\n[tun]\nname = \"mesh1\"\nmtu = 1380\n",
        )
        .unwrap();
        let flags = Overrides { hostname: Some("from-flag".to_owned()), ..overrides() };
        let settings = merge(&flags, file).unwrap();
        assert_eq!(settings.hostname, "from-flag");
        assert_eq!(settings.interface, "mesh1");
        assert_eq!(settings.mtu, Some(1380));
        assert!(!settings.accept_routes);
        assert!(settings.post_quantum);
        assert_eq!(settings.log_level, "info");
        assert_eq!(settings.controller.url.path(), "/ws/control");
    }

    #[test]
    fn gateway_mode_follows_what_is_advertised_unless_it_is_said() {
        let settings = |text: &str| {
            let file = meshdp::config::parse(Path::new("node.toml"), text).unwrap();
            merge(&overrides(), file)
        };
        let lan = "[[advertise_routes]]\ncidr = \"192.168.1.0/24\"\n";
        assert!(!settings("").unwrap().gateway.enabled);
        assert!(settings(lan).unwrap().gateway.enabled && settings(lan).unwrap().gateway.snat);
        let off = settings(&format!(
            "{lan}[gateway_mode]\nenabled = false\nsnat = false\nprobes = [\"192.168.1.1\"]\n"
        ))
        .unwrap();
        assert!(!off.gateway.enabled && !off.gateway.snat);
        assert_eq!(off.gateway.probes, ["192.168.1.1".parse().unwrap()]);
        assert!(settings("[gateway_mode]\nprobes = [\"router\"]\n").is_err());
    }

    #[test]
    fn an_exit_is_a_name_or_a_table_and_not_an_exit_itself() {
        let settings = |text: &str| {
            let file = meshdp::config::parse(Path::new("node.toml"), text).unwrap();
            merge(&overrides(), file)
        };
        assert_eq!(settings("exit_node = \"server\"\n").unwrap().exit.node.as_deref(), Some("server"));
        let table = "[exit_node]\nnode = \"server\"\nallow_lan = true\noutside = [\"203.0.113.0/24\"]\n";
        let exit = settings(table).unwrap().exit;
        assert!(exit.allow_lan && exit.outside == ["203.0.113.0/24".parse().unwrap()]);
        let both = settings("exit_node = \"server\"\nadvertise_exit_node = true\n").unwrap_err().to_string();
        assert!(both.contains("advertise_exit_node"), "{both}");
        let offers = settings("advertise_exit_node = true\n").unwrap().advertise_routes;
        assert_eq!(
            offers.iter().map(|route| route.cidr.to_string()).collect::<Vec<_>>(),
            ["0.0.0.0/0", "::/0"]
        );
    }

    #[test]
    fn ciphers_are_left_to_the_machine_unless_the_file_names_one() {
        let cipher = |text: &str| {
            let file = meshdp::config::parse(Path::new("node.toml"), text)?;
            anyhow::Ok(merge(&overrides(), file)?.cipher)
        };
        assert_eq!(cipher("").unwrap(), Cipher::Auto);
        assert_eq!(cipher("cipher = \"chacha20-poly1305\"\n").unwrap(), Cipher::ChaCha20Poly1305);
        assert!(cipher("cipher = \"none\"\n").unwrap_err().to_string().contains("cipher"));
    }

    #[test]
    fn a_missing_controller_says_where_to_put_it() {
        let error = merge(&Overrides::default(), ConfigFile::default()).unwrap_err().to_string();
        assert!(error.contains("--controller") && error.contains("/etc/edgelink/node.toml"), "{error}");
    }

    #[test]
    fn pins_are_read_with_and_without_colons_and_refused_otherwise() {
        let hex = "ab".repeat(32);
        assert_eq!(parse_pin(&format!("sha256:{hex}")).unwrap(), [0xab; 32]);
        assert_eq!(parse_pin(&["ab"; 32].join(":")).unwrap(), [0xab; 32]);
        assert!(parse_pin("sha256:abcd").unwrap_err().to_string().contains("64 hex digits"));
        assert!(parse_pin(&"+f".repeat(32)).is_err());
    }

    #[test]
    fn the_proxy_comes_from_flag_file_or_variable() {
        let text = "proxy = \"http://jane:hush@file:1\"\nno_proxy = [\"a.example\", \"10.0.0.0/8\"]\n";
        let file = || meshdp::config::parse::<ConfigFile>(Path::new("node.toml"), text).unwrap();
        assert!(!format!("{:?}", file()).contains("hush"));
        let settings = merge(&overrides(), file()).unwrap();
        assert_eq!(settings.proxies.proxy.as_ref().unwrap().to_string(), "http://file:1");
        assert!(settings.proxies.proxy_for("10.1.1.1", 443).is_none());
        let flags = Overrides { proxy: Some(Secret("none".to_owned())), ..overrides() };
        assert_eq!(merge(&flags, file()).unwrap().proxies.proxy, None);
        let variable = |name: &str| (name == "HTTPS_PROXY").then(|| "socks5://env".to_owned());
        let settings = super::merge(&overrides(), ConfigFile::default(), &variable).unwrap();
        assert_eq!(settings.proxies.proxy.unwrap().to_string(), "socks5://env:1080");
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let one = |client_cert, client_key| Overrides { client_cert, client_key, ..overrides() };
        let path = |name: &str| Some(PathBuf::from(name));
        let settings = merge(&one(path("/c"), path("/k")), ConfigFile::default()).unwrap();
        assert_eq!(settings.client_certificate, Some(("/c".into(), "/k".into())));
        for alone in [one(path("/c"), None), one(None, path("/k"))] {
            assert!(merge(&alone, ConfigFile::default()).unwrap_err().to_string().contains("too"));
        }
    }

    #[test]
    fn names_that_the_kernel_refuses_are_refused_here() {
        for name in ["", "a-name-of-sixteen", "a/b", "..", "a b", "é"] {
            assert!(check_interface(name).is_err(), "{name:?}");
        }
        assert!(check_interface("edge0.1_x-y").is_ok());
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let flags = Overrides { enrolment_key: Some("hush".to_owned()), ..overrides() };
        let settings = merge(&flags, ConfigFile::default()).unwrap();
        assert!(!format!("{settings:?}").contains("hush"));
    }
}
