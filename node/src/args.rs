//! The command line, and the environment variables that stand for its flags.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::config::Secret;
use crate::config::file::{LogFormat, NameMode};

const ABOUT: &str = "Puts this machine on a private network: packets travel end-to-end encrypted, over HTTPS relays where nothing else passes.";

const FIRST_STEPS: &str = "\
First steps:
  edgelink up --controller wss://controller.example/ws/control    join and stay in the foreground (Ctrl-C leaves)
  edgelink status                                                 addresses, peers, relays
  edgelink ping server                                            is that peer there, over which path, how fast
  edgelink netcheck                                               what the network lets through, and what to expect of it
  edgelink down                                                   leave

`up` needs the right to make network interfaces: run it as root, or give the program that right once with
  sudo setcap cap_net_admin+ep $(command -v edgelink)

Every flag of `up` is also a key of the configuration file (/etc/edgelink/node.toml or node.json, then
~/.config/edgelink/) and an environment variable: flags win over variables, variables over the file.";

/// EdgeLink's node.
#[derive(Parser, Debug)]
#[command(name = "edgelink", version, about = ABOUT, after_help = FIRST_STEPS, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of them in the life of the program")]
pub(crate) enum Command {
    /// Join the network: make the interface, sign in at the controller, connect to the relays
    Up(Box<UpArgs>),
    /// Leave the network: stop the daemon, which takes the interface with it
    Down(ClientArgs),
    /// Show what the daemon knows: own addresses, controller, peers with path and round trip, relays
    Status(StatusArgs),
    /// Send end-to-end echoes to a peer through the encrypted session
    Ping(PingArgs),
    /// Look at what is between this machine and others: NAT, router, relays, and what will work with whom
    Netcheck(NetcheckArgs),
    /// Show the public halves of this machine's keys, or accept a peer's new one
    Keys(KeysArgs),
    /// Show the version and what it was built for
    Version(OutputArgs),
}

/// `up`
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// Stay in the foreground and log to the terminal (the default; for service managers)
    #[arg(long, conflicts_with = "detach")]
    pub(crate) foreground: bool,
    /// Go on in the background once the interface is up; the log goes to INTERFACE.log in the state directory
    #[arg(long)]
    pub(crate) detach: bool,
    /// Set by --detach for the process it starts
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) detached: bool,
    /// Where commands reach the daemon [default: /run/edgelink/INTERFACE.sock; with --state-dir or without root: in there]
    #[arg(long, env = "EDGELINK_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// The settings that flags and environment may override.
#[derive(Args, Debug, Default)]
pub(crate) struct Overrides {
    /// Configuration file, .toml or .json [default: /etc/edgelink/node.{toml,json}, then ~/.config/edgelink/]
    #[arg(long, env = "EDGELINK_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The controller, for example wss://controller.example/ws/control
    #[arg(long, env = "EDGELINK_CONTROLLER", value_name = "URL")]
    pub(crate) controller: Option<String>,
    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, env = "EDGELINK_CA_FILE", value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Trust the controller's certificate with this digest: sha256: and 64 hex digits
    #[arg(long, env = "EDGELINK_TLS_PIN", value_name = "PIN")]
    pub(crate) tls_pin: Option<String>,
    /// Reach controller and relays through this proxy: http://, https:// or socks5://, with USER:PASSWORD@ if it asks for that, or "none" [default: HTTPS_PROXY, else ALL_PROXY]. With a password prefer the variable or the file: other users can see flags
    #[arg(long, env = "EDGELINK_PROXY", value_name = "URL", hide_env_values = true)]
    pub(crate) proxy: Option<Secret>,
    /// Names, addresses and networks that need no proxy; may be given several times [default: NO_PROXY]
    #[arg(long = "no-proxy", env = "EDGELINK_NO_PROXY", value_name = "HOST", value_delimiter = ',')]
    pub(crate) no_proxy: Vec<String>,
    /// Shown to a controller or relay that asks for a client certificate: PEM, with its chain
    #[arg(long, env = "EDGELINK_CLIENT_CERT", value_name = "FILE")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The key of the client certificate: PEM
    #[arg(long, env = "EDGELINK_CLIENT_KEY", value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,
    /// What others call this machine [default: the system's host name]
    #[arg(long, env = "EDGELINK_HOSTNAME", value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// The secret keys; made at the first start [default: keys.json in the state directory]
    #[arg(long, env = "EDGELINK_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Keys and the last configuration [default: /var/lib/edgelink, or ~/.local/state/edgelink when not root]
    #[arg(long, env = "EDGELINK_STATE_DIR", value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,
    /// A network to join; may be given several times [default: the controller's default network]
    #[arg(long = "network", env = "EDGELINK_NETWORKS", value_name = "NAME", value_delimiter = ',')]
    pub(crate) networks: Vec<String>,
    /// Authorises this machine at once; from the operator. Prefer the variable: other users can see flags
    #[arg(long, env = "EDGELINK_ENROLMENT_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) enrolment_key: Option<String>,
    /// Name of the interface [default: edge0]
    #[arg(long, env = "EDGELINK_INTERFACE", value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Largest packet in bytes [default: what the operator set]
    #[arg(long, env = "EDGELINK_MTU", value_name = "BYTES")]
    pub(crate) mtu: Option<u16>,
    /// A subnet that others may reach through this machine; may be given several times
    #[arg(
        long = "advertise-route",
        env = "EDGELINK_ADVERTISE_ROUTES",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) advertise_routes: Vec<IpNet>,
    /// Whether to use the subnets that others advertise [default: true]
    #[arg(long, env = "EDGELINK_ACCEPT_ROUTES", value_name = "BOOL")]
    pub(crate) accept_routes: Option<bool>,
    /// Offer to let out all traffic of nodes that choose this machine as their exit; the operator has to enable it (edgelink-ctl route enable)
    #[arg(long, env = "EDGELINK_ADVERTISE_EXIT_NODE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) advertise_exit_node: Option<bool>,
    /// Forward packets between the mesh and the advertised subnets [default: true when there are any]
    #[arg(long, env = "EDGELINK_GATEWAY", value_name = "BOOL")]
    pub(crate) gateway: Option<bool>,
    /// Give forwarded packets this machine's address, so that hosts there need no route back [default: true]
    #[arg(long, env = "EDGELINK_SNAT", value_name = "BOOL")]
    pub(crate) snat: Option<bool>,
    /// The interface that the advertised subnets are behind [default: by the routes]
    #[arg(long, env = "EDGELINK_LAN_INTERFACE", value_name = "NAME")]
    pub(crate) lan_interface: Option<String>,
    /// A host in an advertised subnet that is asked whether it is there, by ping or at a TCP port: without it peers take other gateways; may be given several
    /// times
    #[arg(
        long = "lan-probe",
        env = "EDGELINK_LAN_PROBES",
        value_name = "ADDRESS[:PORT]",
        value_delimiter = ','
    )]
    pub(crate) lan_probes: Vec<String>,
    /// Send all traffic through this peer (its name, name.network, address or id), and none past it when it is not there
    #[arg(long, env = "EDGELINK_EXIT_NODE", value_name = "NODE")]
    pub(crate) exit_node: Option<String>,
    /// With an exit node: go on reaching the networks that this machine is on [default: false]
    #[arg(
        long,
        env = "EDGELINK_EXIT_NODE_ALLOW_LAN",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) exit_node_allow_lan: Option<bool>,
    /// With an exit node: a network that is reached past it; may be given several times
    #[arg(long, env = "EDGELINK_EXIT_NODE_OUTSIDE", value_name = "CIDR", value_delimiter = ',')]
    pub(crate) exit_node_outside: Vec<IpNet>,
    /// How nodes are found by name (NAME.NETWORK.edge.internal): off; serve: answer only; resolved: have systemd-resolved ask; resolv-conf: take the place of
    /// /etc/resolv.conf; auto: resolved where that runs, else serve [default: auto]
    #[arg(long, env = "EDGELINK_NAMES", value_name = "MODE")]
    pub(crate) names: Option<NameMode>,
    /// Whether sessions need a post-quantum secret; the same for all nodes of a network [default: true]
    #[arg(long, env = "EDGELINK_POST_QUANTUM", value_name = "BOOL")]
    pub(crate) post_quantum: Option<bool>,
    /// Whether to look for direct paths to peers (UDP) beside the relays [default: true]
    #[arg(long, env = "EDGELINK_P2P", value_name = "BOOL")]
    pub(crate) p2p: Option<bool>,
    /// UDP port for direct paths: open it in a firewall, and peers need no luck [default: any]
    #[arg(long, env = "EDGELINK_P2P_PORT", value_name = "PORT")]
    pub(crate) p2p_port: Option<u16>,
    /// Whether to ask the router by PCP, NAT-PMP or UPnP to let peers in [default: true]
    #[arg(long, env = "EDGELINK_P2P_PORT_MAPPING", value_name = "BOOL")]
    pub(crate) p2p_port_mapping: Option<bool>,
    /// Whether to look for peers on this machine's own networks by multicast [default: true]
    #[arg(long, env = "EDGELINK_P2P_LAN_DISCOVERY", value_name = "BOOL")]
    pub(crate) p2p_lan_discovery: Option<bool>,
    /// error, warn, info, debug, trace, or a filter such as info,edgelink::control=debug [default: info]
    #[arg(long, env = "EDGELINK_LOG", value_name = "LEVEL")]
    pub(crate) log: Option<String>,
    /// How a line of the log looks [default: text]
    #[arg(long, env = "EDGELINK_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// How to find the daemon.
#[derive(Args, Debug, Default)]
pub(crate) struct ClientArgs {
    /// The daemon's socket [default: found by the interface's name]
    #[arg(long, env = "EDGELINK_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Which daemon, when several run [default: edge0, or what the configuration file says]
    #[arg(long, env = "EDGELINK_INTERFACE", value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// The daemon's state directory, when its socket is there
    #[arg(long, env = "EDGELINK_STATE_DIR", value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The daemon's configuration file
    #[arg(long, env = "EDGELINK_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Shape of what is printed.
#[derive(Args, Debug, Default)]
pub(crate) struct OutputArgs {
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Shape of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned for people
    #[default]
    Table,
    /// One JSON document
    Json,
}

/// `status`
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Show it again every so many seconds, in place, until Ctrl-C [default: 2]
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    pub(crate) watch: Option<f64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `ping`
#[derive(Args, Debug)]
pub(crate) struct PingArgs {
    /// A peer: its name, its address in the network, or its node id
    #[arg(value_name = "NAME|ADDRESS|ID")]
    pub(crate) target: String,
    /// How many echoes
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,
    /// Seconds between two echoes
    #[arg(short, long, default_value_t = 1.0, value_name = "SECONDS")]
    pub(crate) interval: f64,
    /// Seconds to wait for an answer
    #[arg(short = 'W', long, default_value_t = 2.0, value_name = "SECONDS")]
    pub(crate) timeout: f64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `netcheck`
#[derive(Args, Debug)]
pub(crate) struct NetcheckArgs {
    /// Ask this STUN server instead of the daemon; may be given several times, and two servers tell more than one
    #[arg(long = "stun", value_name = "HOST:PORT")]
    pub(crate) stun: Vec<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `keys`
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct KeysArgs {
    #[command(subcommand)]
    pub(crate) command: Option<KeysCommand>,
    /// Make the keys when there are none yet (`up` does that too)
    #[arg(long)]
    pub(crate) new: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// The key file [default: that of the configuration]
    #[arg(long, env = "EDGELINK_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// The state directory
    #[arg(long, env = "EDGELINK_STATE_DIR", value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The configuration file
    #[arg(long, env = "EDGELINK_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `keys …`
#[derive(Subcommand, Debug)]
pub(crate) enum KeysCommand {
    /// Trust the machine key that the controller now names for a peer: after its owner has confirmed it, not before
    Accept(AcceptArgs),
}

/// `keys accept`
#[derive(Args, Debug)]
pub(crate) struct AcceptArgs {
    /// The peer: its name, its address in the network, or its node id
    #[arg(value_name = "NAME|ADDRESS|ID")]
    pub(crate) target: String,
    /// Only if it is this one: what `edgelink keys` shows on the peer
    #[arg(long, value_name = "KEY")]
    pub(crate) machine_key: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_the_first_steps() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("edgelink up --controller") && help.contains("setcap cap_net_admin"));
    }

    #[test]
    fn the_proxy_is_in_the_help_and_its_password_in_nothing_that_is_printed() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("up").unwrap().render_long_help().to_string();
        assert!(help.contains("--proxy <URL>") && help.contains("--no-proxy <HOST>"), "{help}");
        let args = ["edgelink", "up", "--proxy", "http://jane:hush@proxy.example:3128"];
        let cli = Cli::try_parse_from(args).unwrap();
        assert!(!format!("{cli:?}").contains("hush"));
    }
}
