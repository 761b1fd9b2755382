//! Configuration files, JSON or TOML: read strictly, with errors that name file, line and the key that was probably meant.
//!
//! Types say what a file may hold (serde, `deny_unknown_fields`); this module turns a parser's complaint into a [`ConfigError`]. What
//! overrides a file (environment, flags) is the program's business.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

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
    /// Neither `.json` nor `.toml`.
    #[error("{path}: a configuration file ends in .json or .toml")]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// Syntax, a value of the wrong kind, a key that is missing.
    #[error("{path}:{line}:{column}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// A key that means nothing.
    #[error("{path}:{line}:{column}: unknown key `{key}`{}", nearest.as_ref().map_or_else(String::new, |near| format!("; did you mean `{near}`?")))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// As it stands there.
        key: String,
        /// The most similar of those that are known in that place.
        nearest: Option<String>,
    },
}

/// Reads a file as `T`, by its ending.
///
/// # Errors
/// See [`ConfigError`].
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// The same for text that was read from `path`.
///
/// # Errors
/// See [`ConfigError`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => serde_json::from_str(text).map_err(|error| {
            let what = error.to_string();
            // serde_json says the place both in numbers and at the end of the text.
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
            explain(path, error.line(), error.column(), what)
        }),
        Some("toml") => toml::from_str(text).map_err(|error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            let before = text.get(..offset).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().map_or(0, |tail| tail.chars().count()) + 1;
            explain(path, line, column, error.message())
        }),
        _ => Err(ConfigError::Format { path: path.to_owned() }),
    }
}

/// serde's words for an unknown key are "unknown field `x`, expected one of `a`, `b`"; a test below holds them to that.
fn explain(path: &Path, line: usize, column: usize, what: &str) -> ConfigError {
    let path = path.to_owned();
    let mut quoted = what.split('`').skip(1).step_by(2);
    match quoted.next() {
        Some(key) if what.starts_with("unknown field") => {
            let nearest = quoted
                .map(|known| (distance(key, known), known))
                .filter(|(distance, known)| *distance <= known.len().max(key.len()) / 2)
                .min();
            let nearest = nearest.map(|(_, known)| known.to_owned());
            ConfigError::UnknownKey { path, line, column, key: key.to_owned(), nearest }
        }
        _ => ConfigError::Invalid { path, line, column, what: what.to_owned() },
    }
}

/// Levenshtein: insertions, deletions and replacements from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != *y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or_default()
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
    }

    #[derive(serde::Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsed")]
    struct Inner {
        workers: u32,
    }

    fn error(name: &str, text: &str) -> String {
        parse::<Outer>(Path::new(name), text).unwrap_err().to_string()
    }

    #[test]
    fn unknown_keys_are_named_with_their_place_and_the_nearest_known_one() {
        assert_eq!(
            error("r.toml", "listen = \"a\"\n[inner]\nworkrs = 1\n"),
            "r.toml:3:1: unknown key `workrs`; did you mean `workers`?"
        );
        let json = error("r.json", "{\"listen\": \"a\",\n \"listn\": 1}");
        assert!(
            json.starts_with("r.json:2:") && json.ends_with("unknown key `listn`; did you mean `listen`?"),
            "{json}"
        );
        assert!(error("r.toml", "zzzzzz = 1\nlisten = \"a\"").ends_with("unknown key `zzzzzz`"));
    }

    #[test]
    fn syntax_and_types_are_shown_where_they_are() {
        assert!(error("r.json", "{\n  \"listen\": ,\n}").starts_with("r.json:2:"));
        assert!(
            error("r.toml", "listen = \"a\"\n[inner]\nworkers = \"x\"")
                .starts_with("r.toml:3:11: invalid type")
        );
        assert!(error("r.toml", "listen = ").starts_with("r.toml:1:"));
        assert!(error("r.toml", "").contains("missing field `listen`"));
        assert!(error("r.yaml", "").contains(".json or .toml"));
    }

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "abd", 1), ("abc", "xabc", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
