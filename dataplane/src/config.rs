//! Configuration files, JSON or TOML: read strictly, with errors that say in one line where something is wrong and what was expected there.
//!
//! Types say what a file may hold (serde, `deny_unknown_fields`); this module turns a parser's complaint into a [`ConfigError`]: file, line,
//! column, the path of the key (`relay.listen`), what was found and what may stand there. What overrides a file (environment, flags) and what its
//! values mean is the program's business.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::{self, DeserializeOwned, Unexpected};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;

/// No configuration is longer than this.
pub const MAX_BYTES: u64 = 1 << 20;
/// No key is longer than this: what is, is cut in messages and has no nearest one.
const MAX_KEY: usize = 64;
/// A message ends here: it may hold the value that was found.
const MAX_MESSAGE: usize = 1000;

/// Why a configuration file is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not there, or not readable.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too long to be meant.
    #[error("{path} is longer than {MAX_BYTES} bytes: no configuration is")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Neither `.json` nor `.toml`.
    #[error("{path}: the name of a configuration file ends in .toml or .json")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// Syntax, a value of the wrong kind, a key that is missing or means nothing.
    #[error("{path}:{line}:{column}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// Which key, what is wrong with it, what was expected: one line.
        what: String,
    },
}

/// Reads a file as `T`, by its ending.
///
/// # Errors
/// See [`ConfigError`].
#[allow(clippy::disallowed_types, reason = "this module is not of the core")]
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let mut bytes = Vec::new();
    // Not by its length: a pipe or a device has none.
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(path, text),
        Err(error) => {
            let before = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default());
            Err(Complaint::at(&before, "this byte is not UTF-8".to_owned()).within(path))
        }
    }
}

/// The same for text that was read from `path`.
///
/// # Errors
/// See [`ConfigError`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => parse_json(text).map_err(|complaint| complaint.within(path)),
        Some("toml") => parse_toml(text).map_err(|complaint| complaint.within(path)),
        _ => Err(ConfigError::Format { path: path.to_owned() }),
    }
}

/// For `#[serde(deserialize_with)]`: an address, refused with what was found (its own error says only that it is none).
///
/// # Errors
/// Those of `D`.
pub fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| from_text(&text, "an address such as 192.0.2.1 or 2001:db8::1")).transpose()
}

/// The same for a network.
///
/// # Errors
/// Those of `D`.
pub fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    from_text(&String::deserialize(deserializer)?, "a network such as 192.168.1.0/24 or fd00:1::/64")
}

/// The same for a list of networks.
///
/// # Errors
/// Those of `D`.
pub fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    #[derive(Deserialize)]
    struct Network(#[serde(deserialize_with = "network")] IpNet);
    Ok(Vec::<Network>::deserialize(deserializer)?.into_iter().map(|Network(network)| network).collect())
}

fn from_text<T: FromStr, E: de::Error>(text: &str, expected: &str) -> Result<T, E> {
    text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &expected))
}

fn parse_toml<T: DeserializeOwned>(text: &str) -> Result<T, Complaint> {
    let before = |error: &toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        text.get(..start).unwrap_or(text)
    };
    let document = toml::Deserializer::parse(text)
        .map_err(|error| Complaint::at(before(&error), error.message().to_owned()))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let key = key_path(error.path());
        Complaint::at(before(error.inner()), explain(&key, error.inner().message()))
    })
}

fn parse_json<T: DeserializeOwned>(text: &str) -> Result<T, Complaint> {
    let mut document = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut document).map_err(|error| {
        let key = key_path(error.path());
        complain_json(text, &key, error.inner())
    })?;
    document.end().map_err(|error| complain_json(text, "", &error))?;
    Ok(value)
}

fn complain_json(text: &str, key: &str, error: &serde_json::Error) -> Complaint {
    let (line, column) = (error.line(), error.column());
    let what = error.to_string();
    // It says the place both in numbers and at the end of the text.
    let what = what.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&what);
    if error.classify() != Category::Data {
        // Where the syntax breaks, the key that was last seen is often not the one to blame.
        return Complaint { line: line.max(1), column: column.max(1), what: what.to_owned() };
    }
    let what_and_key = explain(key, what);
    // It points at the end of an unknown key, people look for the beginning.
    let column = unknown_field(what)
        .and_then(|(name, _)| {
            let before = text.lines().nth(line.checked_sub(1)?)?.get(..column)?;
            let start = before.rfind(&serde_json::to_string(name).ok()?)?;
            Some(before.get(..start)?.chars().count() + 1)
        })
        .unwrap_or(column);
    Complaint { line: line.max(1), column: column.max(1), what: what_and_key }
}

/// What a parser has to say, and about which place.
struct Complaint {
    line: usize,
    column: usize,
    what: String,
}

impl Complaint {
    /// About what comes after `before`.
    fn at(before: &str, what: String) -> Self {
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |tail| tail.chars().count()) + 1;
        Self { line, column, what }
    }

    fn within(self, path: &Path) -> ConfigError {
        let Self { line, column, what } = self;
        ConfigError::Invalid { path: path.to_owned(), line, column, what: one_line(&what) }
    }
}

/// Line breaks, and what else would move a terminal's cursor, as spaces: a message may hold a value of the file.
fn one_line(what: &str) -> String {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let what = what.trim().replace('\n', "; ");
    let mut line: String = what.chars().take(MAX_MESSAGE).map(|c| if breaks(c) { ' ' } else { c }).collect();
    if line.len() < what.len() && what.chars().nth(MAX_MESSAGE).is_some() {
        line.push('…');
    }
    line
}

/// `relay.listen`; empty: the file as a whole.
fn key_path(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    if path == "." { String::new() } else { path }
}

/// Says which key `message` is about. The words are serde's ("unknown field `x`, expected one of `a`, `b`", "missing field `x`"); tests below hold
/// it to them.
fn explain(key: &str, message: &str) -> String {
    if let Some((name, known)) = unknown_field(message) {
        let section = key.strip_suffix(name).unwrap_or_default();
        let shown: String = name.chars().take(MAX_KEY).collect();
        let hint = match nearest(name, &known) {
            Some(near) => format!("did you mean \"{section}{near}\"?"),
            None if known.is_empty() => "there are no keys here".to_owned(),
            None => format!("known here: {}", known.join(", ")),
        };
        return format!("unknown key \"{section}{shown}\", {hint}");
    }
    let section = if key.is_empty() { String::new() } else { format!("{key}.") };
    for (words, ours) in [("missing field `", "missing key"), ("duplicate field `", "duplicate key")] {
        if let Some(name) = message.strip_prefix(words).and_then(|rest| rest.strip_suffix('`')) {
            return format!("{ours} \"{section}{name}\"");
        }
    }
    if key.is_empty() { message.to_owned() } else { format!("{key}: {message}") }
}

/// The key, and those that are known in its place.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    // From the right: the key is the file's, and may hold anything.
    let (name, known) = rest.rsplit_once("`, expected ").or_else(|| rest.rsplit_once("`, there are"))?;
    Some((name, known.split('`').skip(1).step_by(2).collect()))
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    if name.len() > MAX_KEY {
        return None;
    }
    let distances = known.iter().map(|&candidate| (strsim::damerau_levenshtein(name, candidate), candidate));
    let (distance, candidate) = distances.min()?;
    (distance <= 1 + candidate.len() / 3).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsed")]
    struct Outer {
        listen: String,
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default)]
        peers: Vec<Inner>,
        #[serde(default)]
        kind: Option<Kind>,
    }

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsed")]
    struct Inner {
        workers: u32,
    }

    #[derive(serde::Deserialize, Debug)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Fast,
        Slow,
    }

    fn error(name: &str, text: &str) -> String {
        parse::<Outer>(Path::new(name), text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_place_key_and_what_was_expected() {
        let cases = [
            (
                "r.toml",
                "listen = \"a\"\n[inner]\nworkrs = 1\n",
                "r.toml:3:1: unknown key \"inner.workrs\", did you mean \"inner.workers\"?",
            ),
            (
                "r.json",
                "{\"listen\": \"a\",\n \"listn\": 1}",
                "r.json:2:2: unknown key \"listn\", did you mean \"listen\"?",
            ),
            (
                "r.json",
                "{\"peers\": [{\"workers\": 1},\n  {\"é\": 1, \"colour\": 2}]}",
                "r.json:2:4: unknown key \"peers[1].é\", known here: workers",
            ),
            (
                "r.toml",
                "zzzzzz = 1\nlisten = \"a\"",
                "r.toml:1:1: unknown key \"zzzzzz\", known here: listen, inner, peers, kind",
            ),
            (
                "r.toml",
                "\"a`, expected one of `b\" = 1",
                "r.toml:1:1: unknown key \"a`, expected one of `b\", known here: listen, inner, peers, kind",
            ),
            (
                "r.toml",
                "\nlisten = 443",
                "r.toml:2:10: listen: invalid type: integer `443`, expected a string",
            ),
            (
                "r.toml",
                "listen = \"a\"\n[inner]\nworkers = \"x\"",
                "r.toml:3:11: inner.workers: invalid type: string \"x\", expected u32",
            ),
            (
                "r.json",
                "{\"listen\": \"a\", \"peers\": [{\"workers\": -1}]}",
                "r.json:1:40: peers[0].workers: invalid value: integer `-1`, expected u32",
            ),
            (
                "r.toml",
                "listen = \"a\"\nkind = \"fa\\nst\"",
                "r.toml:2:8: kind: unknown variant `fa; st`, expected `fast` or `slow`",
            ),
            ("r.json", "{\"listen\": \"a\",\n\"inner\": {}}", "r.json:2:11: missing key \"inner.workers\""),
            ("r.toml", "", "r.toml:1:1: missing key \"listen\""),
            (
                "r.json",
                "{\"listen\": \"a\", \"inner\": {\"workers\": 1, \"workers\": 2}}",
                "r.json:1:49: duplicate key \"inner.workers\"",
            ),
            ("r.json", "{\"inner\": ", "r.json:1:10: EOF while parsing a value"),
            ("r.json", "", "r.json:1:1: EOF while parsing a value"),
            ("r.json", "{\n  \"listen\": ,\n}", "r.json:2:13: expected value"),
            ("r.json", "{\"listen\": \"a\"}\nx", "r.json:2:1: trailing characters"),
            ("r.yaml", "a: 1", "r.yaml: the name of a configuration file ends in .toml or .json"),
        ];
        let wrong: Vec<_> = cases
            .into_iter()
            .map(|(name, text, words)| (error(name, text), words))
            .filter(|(a, b)| a != b)
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(error("r.toml", "listen = ").starts_with("r.toml:1:"));
    }

    #[test]
    fn messages_are_one_line_however_long_what_they_show() {
        let long =
            error("r.toml", &format!("listen = \"a\"\nkind = \"{}\"", "x\\r\\n\\u2028".repeat(10_000)));
        assert!(!long.contains(['\n', '\r', '\u{2028}']) && long.chars().count() < 1100, "{long}");
        let key = error("r.json", &format!("{{\"{}\": 1}}", "listen".repeat(100_000)));
        assert!(key.starts_with("r.json:1:2: unknown key \"listenlisten") && key.len() < 1100, "{key}");
    }

    #[test]
    fn files_that_are_endless_missing_or_not_text_are_refused() {
        assert!(matches!(load::<Outer>(Path::new("/dev/zero")), Err(ConfigError::TooLong { .. })));
        assert!(matches!(load::<Outer>(Path::new("/nowhere/r.toml")), Err(ConfigError::Io { .. })));
        let file = std::env::temp_dir().join(format!("meshdp-config-{}.toml", std::process::id()));
        std::fs::write(&file, b"listen = \"a\"\n# \xff").unwrap();
        let message = load::<Outer>(&file).unwrap_err().to_string();
        std::fs::remove_file(&file).unwrap();
        assert!(message.ends_with(".toml:2:3: this byte is not UTF-8"), "{message}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in "[{}\\[\\]\":,=a-e\\pC\\PC]{0,100}") {
            for name in ["n.toml", "n.json"] {
                if let Err(error) = parse::<Outer>(Path::new(name), &text) {
                    let error = error.to_string();
                    proptest::prop_assert!(error.starts_with(name) && error.lines().count() == 1, "{error}");
                }
            }
        }
    }
}
