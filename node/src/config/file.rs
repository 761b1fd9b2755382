//! The configuration file: JSON or TOML, by its extension, with the keys of one structure.
//!
//! [`meshdp::config`] reads it. A key that is not there is refused: a misspelt `accept_route` that silently does nothing costs an evening.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use meshdp::proto::wire::control::node::AdvertisedRoute;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

use super::Secret;

/// What a file may say; `None`: nothing was said.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConfigFile {
    /// A URL, or a table with `url`, `ca_file` and `tls_pin`.
    #[serde(deserialize_with = "url_or_table")]
    pub(crate) controller: ControllerEntry,
    pub(crate) hostname: Option<String>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) networks: Vec<String>,
    pub(crate) enrolment_key: Option<String>,
    /// A URL, or `none`.
    pub(crate) proxy: Option<Secret>,
    pub(crate) no_proxy: Option<Vec<String>>,
    pub(crate) client_cert: Option<PathBuf>,
    pub(crate) client_key: Option<PathBuf>,
    pub(crate) tun: Tun,
    pub(crate) advertise_routes: Vec<RouteEntry>,
    pub(crate) accept_routes: Option<bool>,
    pub(crate) advertise_exit_node: Option<bool>,
    pub(crate) post_quantum: Option<bool>,
    pub(crate) cipher: Option<Cipher>,
    pub(crate) gateway_mode: GatewayMode,
    #[serde(deserialize_with = "mode_or_table")]
    pub(crate) names: Names,
    #[serde(deserialize_with = "node_or_table")]
    pub(crate) exit_node: ExitNode,
    pub(crate) p2p: P2p,
    pub(crate) relay: Relay,
    #[serde(deserialize_with = "level_or_table")]
    pub(crate) log: Log,
}

/// `controller`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ControllerEntry {
    pub(crate) url: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) tls_pin: Option<String>,
}

/// `tun`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tun {
    pub(crate) name: Option<String>,
    pub(crate) mtu: Option<u16>,
}

/// An entry of `advertise_routes`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteEntry {
    #[serde(deserialize_with = "meshdp::config::network")]
    pub(crate) cidr: IpNet,
    #[serde(default = "hundred")]
    pub(crate) priority: u16,
    #[serde(default = "hundred")]
    pub(crate) weight: u16,
}

const fn hundred() -> u16 {
    100
}

impl From<RouteEntry> for AdvertisedRoute {
    fn from(entry: RouteEntry) -> Self {
        Self { cidr: entry.cidr.trunc(), priority: entry.priority, weight: entry.weight }
    }
}

/// `gateway_mode`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct GatewayMode {
    pub(crate) enabled: Option<bool>,
    pub(crate) snat: Option<bool>,
    pub(crate) lan_interface: Option<String>,
    pub(crate) probes: Vec<String>,
}

/// `exit_node`: a peer, or a table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ExitNode {
    pub(crate) node: Option<String>,
    pub(crate) allow_lan: Option<bool>,
    pub(crate) outside: Vec<Network>,
}

/// `names`: a mode, or a table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Names {
    pub(crate) mode: Option<NameMode>,
    pub(crate) suffix: Option<String>,
    pub(crate) upstream: Vec<IpAddr>,
    pub(crate) resolv_conf: Option<PathBuf>,
}

/// How nodes are found by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NameMode {
    /// Not at all.
    Off,
    /// By whoever asks the node's resolver.
    Serve,
    /// systemd-resolved asks it.
    Resolved,
    /// It takes the place of the system's resolv.conf.
    ResolvConf,
    /// `Resolved` where that runs, else `Serve`.
    #[default]
    Auto,
}

/// A network in a list.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Network(#[serde(deserialize_with = "meshdp::config::network")] pub(crate) IpNet);

/// `p2p`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct P2p {
    pub(crate) enabled: Option<bool>,
    pub(crate) port: Option<u16>,
    pub(crate) port_mapping: Option<bool>,
    pub(crate) lan_discovery: Option<bool>,
    pub(crate) keepalive_interval_seconds: Option<u64>,
}

/// `cipher`: which ones sessions may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum Cipher {
    /// AES-256-GCM where both ends have the instructions, otherwise ChaCha20-Poly1305.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Never AES-256-GCM, with any peer.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

/// `relay`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Relay {
    pub(crate) connect_all: Option<bool>,
    pub(crate) latency_report_interval_seconds: Option<u64>,
}

/// `log`: a level, or a table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    pub(crate) level: Option<String>,
    pub(crate) format: Option<LogFormat>,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

fn url_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ControllerEntry, D::Error> {
    text_or_table(deserializer, "a URL, or a table with the key \"url\"", |url| ControllerEntry {
        url: Some(url),
        ..ControllerEntry::default()
    })
}

fn mode_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Names, D::Error> {
    struct Either;
    impl<'de> de::Visitor<'de> for Either {
        type Value = Names;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("off, serve, resolved, resolv-conf or auto, or a table with the key \"mode\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Names, E> {
            let mode = NameMode::deserialize(de::value::StrDeserializer::<E>::new(text))?;
            Ok(Names { mode: Some(mode), ..Names::default() })
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Names, A::Error> {
            Names::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(Either)
}

fn node_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ExitNode, D::Error> {
    text_or_table(deserializer, "the name of a peer, or a table with the key \"node\"", |node| ExitNode {
        node: Some(node),
        ..ExitNode::default()
    })
}

fn level_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Log, D::Error> {
    text_or_table(
        deserializer,
        "a level such as \"info\", or a table with the keys \"level\" and \"format\"",
        |level| Log { level: Some(level), format: None },
    )
}

/// Reads `T` from a table, or from the one string that stands for it. (An untagged enum would lose the line of an error inside.)
fn text_or_table<'de, D, T>(
    deserializer: D,
    expecting: &'static str,
    from_text: fn(String) -> T,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Either<T> {
        expecting: &'static str,
        from_text: fn(String) -> T,
    }
    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Either<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expecting)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            Ok((self.from_text)(text.to_owned()))
        }

        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(Either { expecting, from_text })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use meshdp::config::parse;

    use super::*;

    fn refusal(name: &str, text: &str) -> String {
        parse::<ConfigFile>(Path::new(name), text).unwrap_err().to_string()
    }

    #[test]
    fn both_formats_say_the_same() {
        let toml = "controller = \"wss://c.example\"\nnetworks = [\"a\"]\nlog = \"debug\"\n[relay]\nconnect_all = true\n\
                    [[advertise_routes]]\ncidr = \"192.168.1.7/24\"\nweight = 50\n";
        let json = r#"{"controller": {"url": "wss://c.example"}, "networks": ["a"], "log": {"level": "debug"},
                       "relay": {"connect_all": true}, "advertise_routes": [{"cidr": "192.168.1.7/24", "weight": 50}]}"#;
        for (name, text) in [("n.toml", toml), ("n.json", json)] {
            let file = parse::<ConfigFile>(Path::new(name), text).unwrap();
            assert_eq!(file.controller.url.as_deref(), Some("wss://c.example"), "{name}");
            assert_eq!(file.log.level.as_deref(), Some("debug"), "{name}");
            assert_eq!(file.relay.connect_all, Some(true), "{name}");
            let route = AdvertisedRoute::from(file.advertise_routes.into_iter().next().unwrap());
            assert_eq!(
                (route.cidr.to_string().as_str(), route.priority, route.weight),
                ("192.168.1.0/24", 100, 50)
            );
        }
    }

    #[test]
    fn unknown_keys_are_refused_by_name_with_line_and_nearest_key() {
        assert_eq!(
            refusal("/etc/n.toml", "hostname = \"x\"\naccept_route = true\n"),
            "/etc/n.toml:2:1: unknown key \"accept_route\", did you mean \"accept_routes\"?"
        );
        assert_eq!(
            refusal("n.toml", "[tun]\nmtu = 1400\nnmae = \"edge1\"\n"),
            "n.toml:3:1: unknown key \"tun.nmae\", did you mean \"tun.name\"?"
        );
        assert_eq!(
            refusal("n.json", "{\n  \"controler\": {}\n}"),
            "n.json:2:3: unknown key \"controler\", did you mean \"controller\"?"
        );
        assert_eq!(
            refusal("n.json", "{\n  \"controller\": {\n    \"uri\": \"wss://x\"\n  }\n}"),
            "n.json:3:5: unknown key \"controller.uri\", did you mean \"controller.url\"?"
        );
        assert_eq!(
            refusal("n.json", "{\"tun\": {\"colour\": 1}}"),
            "n.json:1:10: unknown key \"tun.colour\", known here: name, mtu"
        );
    }

    #[test]
    fn mistakes_of_syntax_and_type_have_line_column_and_key() {
        assert!(refusal("n.toml", "hostname = \"x\"\nmtu = = 3\n").starts_with("n.toml:2:7: "));
        assert!(refusal("n.json", "{\n  \"hostname\": }").starts_with("n.json:2:15: "));
        for (name, text, words) in [
            (
                "n.toml",
                "[tun]\nmtu = \"big\"\n",
                "n.toml:2:7: tun.mtu: invalid type: string \"big\", expected u16",
            ),
            (
                "n.json",
                "{\"advertise_routes\": [{\"cidr\": \"192.168.1.0\"}]}",
                "n.json:1:45: advertise_routes[0].cidr: invalid value: string \"192.168.1.0\", expected a network such as 192.168.1.0/24 or fd00:1::/64",
            ),
            (
                "n.toml",
                "log = 3\n",
                "n.toml:1:7: log: invalid type: integer `3`, expected a level such as \"info\", or a table with the keys \"level\" and \"format\"",
            ),
        ] {
            assert_eq!(refusal(name, text), words);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in ".{0,200}") {
            for name in ["n.toml", "n.json"] {
                if let Err(error) = parse::<ConfigFile>(Path::new(name), &text) {
                    proptest::prop_assert!(error.to_string().starts_with(name));
                }
            }
        }
    }
}
