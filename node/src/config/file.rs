//! The configuration file: JSON or TOML, by its extension, with the keys of one structure.
//!
//! A key that is not there is refused: a misspelt `accept_route` that silently does nothing costs an evening. Errors name file, line and column,
//! and the nearest key that exists.

use std::fmt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use meshdp::proto::wire::control::node::AdvertisedRoute;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

/// No configuration is longer than this.
const MAX_BYTES: u64 = 1 << 20;

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
    pub(crate) tun: Tun,
    pub(crate) advertise_routes: Vec<RouteEntry>,
    pub(crate) accept_routes: Option<bool>,
    pub(crate) gateway_mode: GatewayMode,
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
#[allow(
    dead_code,
    reason = "keys of the format that a later gateway mode reads; known so that they are not refused"
)]
pub(crate) struct GatewayMode {
    pub(crate) enabled: Option<bool>,
    pub(crate) snat: Option<bool>,
    pub(crate) lan_interface: Option<String>,
}

/// `p2p`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    dead_code,
    reason = "keys of the format that direct paths will read; known so that they are not refused"
)]
pub(crate) struct P2p {
    pub(crate) enabled: Option<bool>,
    pub(crate) keepalive_interval_seconds: Option<u64>,
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

/// Why a file is not a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is longer than {MAX_BYTES} bytes: no configuration is", path.display())]
    TooLong { path: PathBuf },
    #[error("{}: the name of a configuration file ends in .toml or .json", path.display())]
    Extension { path: PathBuf },
    #[error("{at}: unknown key \"{key}\"; {hint}")]
    UnknownKey { at: Position, key: String, hint: String },
    #[error("{at}: {what}")]
    Invalid { at: Position, what: String },
}

/// Where in which file, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) path: PathBuf,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

/// Reads the file at `path`.
pub(crate) fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
    let wrap = |source| ConfigError::Read { path: path.to_path_buf(), source };
    if std::fs::metadata(path).map_err(wrap)?.len() > MAX_BYTES {
        return Err(ConfigError::TooLong { path: path.to_path_buf() });
    }
    parse(path, &std::fs::read_to_string(path).map_err(wrap)?)
}

/// Reads `text` in the format that the extension of `path` says.
pub(crate) fn parse(path: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start).min(text.len());
            explain(position(path, text, offset), error.message())
        }),
        Some("json") => serde_json::from_str(text).map_err(|error| {
            let at = Position { path: path.to_path_buf(), line: error.line(), column: error.column() };
            let text = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            explain(at, text.strip_suffix(place.as_str()).unwrap_or(&text))
        }),
        _ => Err(ConfigError::Extension { path: path.to_path_buf() }),
    }
}

fn position(path: &Path, text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    Position {
        path: path.to_path_buf(),
        line: before.matches('\n').count() + 1,
        column: before.chars().rev().take_while(|&c| c != '\n').count() + 1,
    }
}

/// Both parsers word an unknown key as serde does: "unknown field `x`, expected one of `a`, `b`" (a test holds them to it).
fn explain(at: Position, message: &str) -> ConfigError {
    let Some(rest) = message.strip_prefix("unknown field ") else {
        return ConfigError::Invalid { at, what: message.trim_end().replace('\n', "; ") };
    };
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let key = quoted.next().unwrap_or_default().to_owned();
    let known: Vec<&str> = quoted.collect();
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&key, candidate), candidate))
        .min()
        .filter(|&(distance, candidate)| distance <= 1 + candidate.len() / 3);
    let hint = match nearest {
        Some((_, candidate)) => format!("did you mean \"{candidate}\"?"),
        None => format!("known here: {}", known.join(", ")),
    };
    ConfigError::UnknownKey { at, key, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, text: &str) -> String {
        parse(Path::new(name), text).unwrap_err().to_string()
    }

    #[test]
    fn both_formats_say_the_same() {
        let toml = "controller = \"wss://c.example\"\nnetworks = [\"a\"]\nlog = \"debug\"\n[relay]\nconnect_all = true\n\
                    [[advertise_routes]]\ncidr = \"192.168.1.7/24\"\nweight = 50\n";
        let json = r#"{"controller": {"url": "wss://c.example"}, "networks": ["a"], "log": {"level": "debug"},
                       "relay": {"connect_all": true}, "advertise_routes": [{"cidr": "192.168.1.7/24", "weight": 50}]}"#;
        for (name, text) in [("n.toml", toml), ("n.json", json)] {
            let file = parse(Path::new(name), text).unwrap();
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
            "/etc/n.toml:2:1: unknown key \"accept_route\"; did you mean \"accept_routes\"?"
        );
        assert_eq!(
            refusal("n.toml", "[tun]\nmtu = 1400\nnmae = \"edge1\"\n"),
            "n.toml:3:1: unknown key \"nmae\"; did you mean \"name\"?"
        );
        let json = refusal("n.json", "{\n  \"controller\": {\n    \"uri\": \"wss://x\"\n  }\n}");
        assert!(
            json.starts_with("n.json:3:") && json.ends_with("unknown key \"uri\"; did you mean \"url\"?"),
            "{json}"
        );
        let far = refusal("n.json", "{\"tun\": {\"colour\": 1}}");
        assert!(far.ends_with("unknown key \"colour\"; known here: name, mtu"), "{far}");
    }

    #[test]
    fn mistakes_of_syntax_and_type_have_line_and_column() {
        assert!(refusal("n.toml", "hostname = \"x\"\nmtu = = 3\n").starts_with("n.toml:2:7: "));
        assert!(refusal("n.json", "{\n  \"hostname\": }").starts_with("n.json:2:15: "));
        let kind = refusal("n.toml", "[tun]\nmtu = \"big\"\n");
        assert!(kind.starts_with("n.toml:2:7: ") && kind.contains("u16"), "{kind}");
        let cidr = refusal("n.json", "{\"advertise_routes\": [{\"cidr\": \"192.168.1.0\"}]}");
        assert!(cidr.starts_with("n.json:1:"), "{cidr}");
    }

    #[test]
    fn other_extensions_and_endless_files_are_refused() {
        assert!(refusal("node.yaml", "a: 1").contains(".toml or .json"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.toml");
        std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
        assert!(matches!(read(&path), Err(ConfigError::TooLong { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in ".{0,200}") {
            for name in ["n.toml", "n.json"] {
                if let Err(error) = parse(Path::new(name), &text) {
                    proptest::prop_assert!(error.to_string().starts_with(name));
                }
            }
        }
    }
}
