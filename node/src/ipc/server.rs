//! The daemon's end of the socket.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::line::{Lines, MAX_REQUEST, to_line};
use super::message::{Answer, Request};
use crate::keys::create_private_dir;

/// Commands served at once; more wait in the kernel.
pub(crate) const MAX_CLIENTS: usize = 32;
/// A client that asks nothing, or does not read its answer, is let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A file left behind by a daemon that was killed is replaced.
    pub(crate) fn bind(path: &Path) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            create_private_dir(folder)?;
        }
        if path.as_os_str().len() > 107 {
            bail!(
                "the socket's path is too long for the system (107 bytes at most): {}. Choose another with --socket",
                path.display()
            );
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => bail!(
                "edgelink is already up: a daemon answers at {}. `edgelink down` stops it; for a second one choose another --interface, \
                 --state-dir and --socket",
                path.display()
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
                    .with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot use the socket {}", path.display()));
            }
        }
        let socket = UnixListener::bind(path).with_context(|| {
            format!("cannot listen at {}. Choose another place with --socket", path.display())
        })?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { socket, path: path.to_path_buf() })
    }

    /// The next client that is the daemon's own user, or root.
    pub(crate) async fn accept(&self) -> Client {
        loop {
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    let ours = rustix::process::geteuid().as_raw();
                    match stream.peer_cred() {
                        Ok(peer) if peer.uid() == ours || peer.uid() == 0 => {
                            return Client { stream, lines: Lines::new(MAX_REQUEST) };
                        }
                        peer => tracing::warn!(?peer, "refused a command of another user"),
                    }
                }
                // Out of descriptors, or the client is gone again: neither is worth an end.
                Err(error) => {
                    tracing::debug!(%error, "accepting a command failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A command line that is connected.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    lines: Lines,
}

impl Client {
    /// Its request.
    pub(crate) async fn request(&mut self) -> anyhow::Result<Request> {
        let read = async {
            let mut buffer = [0; 4096];
            loop {
                if let Some(request) = self.lines.next()? {
                    return Ok(request);
                }
                let n = self.stream.read(&mut buffer).await?;
                if n == 0 {
                    bail!("the client left without asking");
                }
                self.lines.push(&buffer[..n])?;
            }
        };
        timeout(PATIENCE, read).await.context("the client asked nothing")?
    }

    /// Answers it.
    pub(crate) async fn answer(&mut self, answer: &Answer) -> anyhow::Result<()> {
        timeout(PATIENCE, self.stream.write_all(&to_line(answer)))
            .await
            .context("the client does not read")??;
        Ok(())
    }

    /// Returns when the client has left.
    pub(crate) async fn gone(&mut self) {
        let mut buffer = [0; 64];
        while !matches!(self.stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    #[test]
    fn the_socket_is_private_and_goes_with_the_daemon() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("deep/edge0.sock");
            let listener = Listener::bind(&path).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            let second = Listener::bind(&path).unwrap_err().to_string();
            assert!(second.contains("already up") && second.contains("edgelink down"), "{second}");
            drop(listener);
            assert!(!path.exists());
        });
    }

    #[test]
    fn a_socket_left_behind_by_a_killed_daemon_is_replaced() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("edge0.sock");
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(path.exists());
            Listener::bind(&path).unwrap();
        });
    }

    #[test]
    fn requests_are_answered_and_nonsense_is_not() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let listener = Listener::bind(&folder.path().join("edge0.sock")).unwrap();
            let mut stream = StdStream::connect(listener.path()).unwrap();
            stream.write_all(b"{\"command\":\"status\"}\n").unwrap();
            let mut client = listener.accept().await;
            assert_eq!(client.request().await.unwrap(), Request::Status);
            client.answer(&Answer::Stopping).await.unwrap();
            drop(client);
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "{\"answer\":\"stopping\"}\n");

            for nonsense in
                [&b"\n"[..], b"{\"command\":\"fly\"}\n", b"\xff\xfe\n", &vec![b'x'; 3 * MAX_REQUEST]]
            {
                let mut stream = StdStream::connect(listener.path()).unwrap();
                stream.set_nonblocking(true).unwrap();
                let _ = stream.write(nonsense).unwrap();
                assert!(listener.accept().await.request().await.is_err());
            }
        });
    }
}
