//! The controller's address as people write it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use tokio_tungstenite::tungstenite::http::Uri;

/// The path where controllers listen for nodes (`docs/protocol.md` §3).
const CONTROL_PATH: &str = "/ws/control";

/// `wss://host[:port][/path]`, or `ws://` to this same machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControllerUrl {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl ControllerUrl {
    /// Whether to speak TLS.
    pub(crate) const fn tls(&self) -> bool {
        self.tls
    }

    /// Name or address, without brackets, in lower case: what the sign-in signature binds.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Where to connect.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// With query, if any.
    #[cfg_attr(not(test), allow(dead_code, reason = "the whole URL goes into the request"))]
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for ControllerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}", self.host)?;
        if self.port != if self.tls { 443 } else { 80 } {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)
    }
}

impl FromStr for ControllerUrl {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let uri: Uri =
            text.trim().parse().context("expected something like wss://controller.example/ws/control")?;
        let tls = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            Some(other) => bail!("the scheme {other:?} is not spoken here: expected wss://"),
            None => bail!("the scheme is missing: write wss://{}", text.trim()),
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            bail!("user names and passwords have no place in it");
        }
        let host = uri.host().unwrap_or_default();
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
            .to_ascii_lowercase();
        if host.is_empty() {
            bail!("the host is missing");
        }
        let loopback =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !tls && !loopback {
            bail!("ws:// is not encrypted and allowed to this machine only: write wss://");
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            tls,
            host,
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: if path == "/" { CONTROL_PATH } else { path }.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<ControllerUrl> {
        text.parse()
    }

    #[test]
    fn fills_in_what_people_leave_out() {
        let url = read("https://Controller.Example").unwrap();
        assert_eq!(url.to_string(), "wss://controller.example/ws/control");
        assert_eq!((url.host(), url.port(), url.tls()), ("controller.example", 443, true));
        let url = read("wss://[fd00::1]:8443/behind/proxy").unwrap();
        assert_eq!((url.host(), url.port(), url.path()), ("fd00::1", 8443, "/behind/proxy"));
        assert_eq!(url.to_string(), "wss://[fd00::1]:8443/behind/proxy");
    }

    #[test]
    fn clear_text_goes_to_this_machine_only() {
        assert!(
            read("ws://127.0.0.1:8080").is_ok()
                && read("ws://localhost").is_ok()
                && read("ws://[::1]:1/x").is_ok()
        );
        assert!(read("ws://controller.example").unwrap_err().to_string().contains("wss://"));
    }

    #[test]
    fn says_what_is_wrong_with_the_rest() {
        assert!(read("controller.example").unwrap_err().to_string().contains("wss://controller.example"));
        assert!(read("ftp://x").unwrap_err().to_string().contains("ftp"));
        assert!(read("wss://me:secret@x").is_err());
        assert!(read("wss://").is_err());
        assert!(read("wss:// spaces").is_err());
    }
}
