//! A contender that somebody has at hand: a file says how it is started and what it speaks (docs/benchmarks.md has an example).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::process::{Ready, Server};

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hook {
    /// In tables.
    pub(super) name: String,
    /// Program and arguments; `{port}`, `{address}`, `{certificate}`, `{key}`, `{tls}` and `{token_key}` are filled in. Without it, it runs already.
    #[serde(default)]
    command: Vec<String>,
    /// What it speaks.
    pub(super) protocol: Protocol,
    /// Where it listens; without it, on a free port that it is told.
    pub(super) port: Option<u16>,
    /// It is ready when it has written this; without it, when it accepts connections.
    ready_output: Option<String>,
    /// The process whose CPU time and memory count, when it is not the one that was started.
    pid: Option<i32>,
    /// The same, from a file that it writes.
    pid_file: Option<PathBuf>,
    /// Its clients put many frames into one message.
    #[serde(default)]
    pub(super) packed: bool,
    /// It can be started without TLS (`{tls}` is then `false`).
    #[serde(default)]
    pub(super) without_tls: bool,
}

/// What a contender speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Protocol {
    /// EdgeLink's frames, signed in with tokens that `{token_key}` verifies (relay 1).
    Ours,
    /// EdgeLink's frames, signed in with the node's id in decimal.
    PlainWs,
    /// iroh-relay's.
    Iroh,
}

impl Hook {
    /// Reads the file.
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let hook: Self = toml::from_str(text)?;
        if hook.command.is_empty() && (hook.port.is_none() || (hook.pid.is_none() && hook.pid_file.is_none()))
        {
            bail!("either a command, or a port and a pid or pid_file of what runs already");
        }
        Ok(hook)
    }

    /// Its name, fit for a file's.
    pub(super) fn file_name(&self) -> String {
        self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }

    /// Starts it, or looks for what runs.
    pub(super) fn start(
        &self,
        values: &[(&str, String)],
        output: PathBuf,
        address: SocketAddr,
    ) -> anyhow::Result<Server> {
        let mut words = self.command.iter().map(|word| fill_in(word, values));
        let mut server = match words.next() {
            None => Server::attach(self.pid()?.context("no pid")?, address)?,
            Some(program) => {
                let mut command = Command::new(program);
                command.args(words);
                let ready = self.ready_output.clone().map_or(Ready::Accepts, Ready::Says);
                Server::start_when(command, output, address, &ready)?
            }
        };
        if let Some(pid) = self.pid()? {
            server.count(pid)?;
        }
        Ok(server)
    }

    fn pid(&self) -> anyhow::Result<Option<i32>> {
        let Some(file) = &self.pid_file else { return Ok(self.pid) };
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Some(text.trim().parse().with_context(|| format!("no pid in {}", file.display()))?))
    }
}

fn fill_in(word: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(word.to_owned(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_filled_in() {
        let hook = Hook::parse(
            "name = \"mine\"\ncommand = [\"relay\", \"--listen=127.0.0.1:{port}\"]\nprotocol = \"plain-ws\"",
        )
        .expect("complete");
        assert_eq!(hook.protocol, Protocol::PlainWs);
        assert_eq!(fill_in(&hook.command[1], &[("port", "7".to_owned())]), "--listen=127.0.0.1:7");
    }

    #[test]
    fn a_hook_without_anything_to_measure_is_refused() {
        assert!(Hook::parse("name = \"mine\"\nprotocol = \"iroh\"").is_err());
        assert!(Hook::parse("name = \"mine\"\nprotocol = \"ours\"\nport = 443\npid = 1").is_ok());
        assert!(Hook::parse("name = \"mine\"\nprotocol = \"morse\"\ncommand = [\"x\"]").is_err());
        assert!(Hook::parse("name = \"mine\"\nprotocol = \"ours\"\ncomand = [\"x\"]").is_err());
    }
}
