//! WireGuard's configuration protocol, as far as two ends of a tunnel need it: text over a UNIX socket (wireguard.com/xplatform).

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use meshdp::proto::crypto::keys::NodeKey;

/// A daemon that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the daemon of an interface listens.
pub(super) fn socket_of(interface: &str) -> PathBuf {
    format!("/var/run/wireguard/{interface}.sock").into()
}

/// The peer of a tunnel.
pub(super) struct Peer {
    pub(super) public: [u8; 32],
    pub(super) endpoint: Option<SocketAddr>,
    /// In the tunnel.
    pub(super) address: Ipv4Addr,
}

/// The request that configures a daemon.
pub(super) fn request(key: &NodeKey, port: u16, peers: &[Peer]) -> String {
    let mut text = format!(
        "set=1\nprivate_key={}\nlisten_port={port}\nreplace_peers=true\n",
        hexadecimal(key.private())
    );
    for peer in peers {
        let _ = writeln!(text, "public_key={}", hexadecimal(&peer.public));
        if let Some(endpoint) = peer.endpoint {
            let _ = writeln!(text, "endpoint={endpoint}");
        }
        let _ = writeln!(text, "replace_allowed_ips=true\nallowed_ip={}/32", peer.address);
    }
    text.push('\n');
    text
}

/// Sends it; an error unless the daemon says that it went well.
pub(super) fn configure(socket: &Path, request: &str) -> anyhow::Result<()> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    let mut buffer = [0; 256];
    // Not all of them close the connection after an answer.
    while !answer.ends_with("\n\n") {
        let read = stream.read(&mut buffer).context("the daemon does not answer")?;
        if read == 0 {
            break;
        }
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    match answer.lines().find_map(|line| line.strip_prefix("errno=")) {
        Some("0") => Ok(()),
        Some(errno) => bail!("the daemon refuses its configuration: errno {errno}"),
        None => bail!("the daemon answers {answer:?}"),
    }
}

fn hexadecimal(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_request_has_keys_in_hexadecimal_and_ends_with_an_empty_line() {
        let key = NodeKey::from_private([7; 32]).expect("a key");
        let peers = [
            Peer {
                public: [0xab; 32],
                endpoint: Some(([192, 0, 2, 2], 51820).into()),
                address: Ipv4Addr::new(10, 99, 0, 2),
            },
            Peer { public: [1; 32], endpoint: None, address: Ipv4Addr::new(10, 99, 0, 3) },
        ];
        let text = request(&key, 51820, &peers);
        assert_eq!(
            text,
            format!(
                "set=1\nprivate_key={}\nlisten_port=51820\nreplace_peers=true\npublic_key={}\nendpoint=192.0.2.2:51820\n\
                 replace_allowed_ips=true\nallowed_ip=10.99.0.2/32\npublic_key={}\nreplace_allowed_ips=true\nallowed_ip=10.99.0.3/32\n\n",
                "07".repeat(32),
                "ab".repeat(32),
                "01".repeat(32)
            )
        );
    }

    #[test]
    fn what_the_daemon_refuses_is_an_error_with_its_number() {
        let path = std::env::temp_dir().join(format!("edgelink-bench-uapi-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let answers = ["errno=0\n\n", "errno=22\n\n", "what?\n\n"];
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut buffer = [0; 64];
                let _ = stream.read(&mut buffer).expect("a request");
                stream.write_all(answer.as_bytes()).expect("the client is there");
            }
        });
        assert!(configure(&path, "set=1\n\n").is_ok());
        assert!(configure(&path, "set=1\n\n").expect_err("22").to_string().contains("errno 22"));
        assert!(configure(&path, "set=1\n\n").expect_err("nonsense").to_string().contains("what?"));
        server.join().expect("it ends");
        std::fs::remove_file(path).expect("it was made");
    }
}
