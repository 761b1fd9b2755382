//! The command line's end of the socket: finds the daemon, asks, reads answers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::RUN_DIR;
use super::line::{Lines, MAX_ANSWER, to_line};
use super::message::{Answer, Request};
use crate::args::ClientArgs;
use crate::config;

/// A daemon that says nothing for this long hangs; longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    stream: UnixStream,
    lines: Lines,
    path: PathBuf,
}

impl Daemon {
    /// Connects to the daemon that `args` mean.
    pub(crate) fn find(args: &ClientArgs) -> anyhow::Result<Self> {
        let candidates = candidates(args)?;
        let mut refused = None;
        for path in &candidates {
            match Self::at(path) {
                Ok(daemon) => return Ok(daemon),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
                Err(error) => refused = Some((path, error)),
            }
        }
        if let Some((path, error)) = refused {
            let hint = if error.kind() == ErrorKind::PermissionDenied {
                ". Run this as the user that runs the daemon, or with sudo"
            } else {
                ""
            };
            bail!("cannot talk to the daemon at {}: {error}{hint}", path.display());
        }
        let looked =
            candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n  ");
        let others = running();
        let hint = if others.is_empty() {
            "Is edgelink up? Start it with: edgelink up".to_owned()
        } else {
            format!("Others run here: choose with --interface {}", others.join(" or --interface "))
        };
        bail!("no daemon answers. {hint}\nLooked at:\n  {looked}")
    }

    /// Connects to the daemon at `path`.
    pub(crate) fn at(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, lines: Lines::new(MAX_ANSWER), path: path.to_path_buf() })
    }

    /// Lets answers take longer.
    pub(crate) fn be_patient(&self, extra: Duration) -> anyhow::Result<()> {
        Ok(self.stream.set_read_timeout(Some(PATIENCE + extra))?)
    }

    /// Asks.
    pub(crate) fn ask(&mut self, request: &Request) -> anyhow::Result<()> {
        self.stream.write_all(&to_line(request)).context("the daemon does not read")
    }

    /// The next answer; `None`: the daemon has closed the connection.
    pub(crate) fn answer(&mut self) -> anyhow::Result<Option<Answer>> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(answer) = self.lines.next()? {
                return match answer {
                    Answer::Error { message } => bail!(message),
                    answer => Ok(Some(answer)),
                };
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => self.lines.push(&buffer[..n])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!(
                        "the daemon at {} does not answer: is it stopped or overloaded?",
                        self.path.display()
                    )
                }
                Err(error) => return Err(error).context("the connection to the daemon broke"),
            }
        }
    }
}

/// Where the daemon may be, the likeliest first.
fn candidates(args: &ClientArgs) -> anyhow::Result<Vec<PathBuf>> {
    if let Some(path) = &args.socket {
        return Ok(vec![path.clone()]);
    }
    // The file is a hint here: one that cannot be read (root's) or is broken does not keep the daemon from being found.
    let file = match config::load(args.config.as_deref()) {
        Ok(file) => file,
        Err(error) if args.config.is_some() => return Err(error),
        Err(_) => config::file::ConfigFile::default(),
    };
    let interface =
        args.interface.clone().or(file.tun.name).unwrap_or_else(|| config::DEFAULT_INTERFACE.to_owned());
    let state_dir = args.state_dir.clone().or(file.state_dir).unwrap_or_else(config::default_state_dir);
    let name = format!("{interface}.sock");
    Ok(vec![state_dir.join(&name), Path::new(RUN_DIR).join(&name)])
}

/// Interfaces of daemons in the usual place.
fn running() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(RUN_DIR) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| UnixStream::connect(entry.path()).is_ok())
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_owned()))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_daemon_is_an_error_that_says_how_to_start_one() {
        let folder = tempfile::tempdir().unwrap();
        let args = ClientArgs { socket: Some(folder.path().join("none.sock")), ..ClientArgs::default() };
        let error = Daemon::find(&args).unwrap_err().to_string();
        assert!(error.contains("edgelink up") || error.contains("--interface"), "{error}");
        assert!(error.contains("none.sock"), "{error}");
    }
}
