//! HTTP CONNECT at the client's end (RFC 9110 §9.3.6), with Basic authentication (RFC 7617).
//!
//! ```text
//! CONNECT host:port HTTP/1.1 ‖ Host ‖ Proxy-Authorization: Basic base64(user:password)
//!                            ◀─ HTTP/1.1 200, whatever headers, empty line; then the connection is the host's
//! ```
//!
//! Credentials go with the first request: asking first and answering the 407 costs a round trip and, with many proxies, the connection. A body that a 2xx announces
//! does not exist (§9.3.6). The host never speaks first here (TLS), so bytes behind the answer are somebody's attempt to speak in its name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::upgrade::{Head, MAX_HEAD};
use crate::proto::dial::proxy::{Credentials, MAX_HOST, authority};

const MAX_HEADERS: usize = 64;
/// Answers with a status below 200 that are let pass before the one that counts.
const MAX_INTERIM: usize = 4;

/// Why there is no way through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// 407 (or 401), and no credentials were given.
    #[error("it wants a user name and a password: write them into its URL, http://USER:PASSWORD@HOST:PORT")]
    CredentialsWanted,
    /// 407 (or 401) to our credentials.
    #[error(
        "it does not accept the user name and password in its URL: check them (special characters are written %XX)"
    )]
    CredentialsRefused,
    /// 407 without Basic.
    #[error(
        "it does not take Basic authentication, only {0}, which is not spoken here: let a local proxy that speaks it (cntlm, px) stand in between"
    )]
    Authentication(String),
    /// 403 and its like.
    #[error(
        "it does not allow connections to {to} (HTTP status {status}): ask who runs it to allow CONNECT there"
    )]
    Forbidden {
        /// The host and port asked for.
        to: String,
        /// 403, 405 or 451.
        status: u16,
    },
    /// 502, 503, 504: the proxy is there, but nothing behind it.
    #[error("it cannot reach {to} (HTTP status {status}): check the name and whether that host runs")]
    Unreachable {
        /// The host and port asked for.
        to: String,
        /// 500, 502, 503 or 504.
        status: u16,
    },
    /// Anything else.
    #[error("it answered with HTTP status {0} instead of 200: is it a proxy that allows CONNECT?")]
    Status(u16),
    /// Not HTTP.
    #[error("it does not speak HTTP: check scheme and port of its URL")]
    Malformed,
    /// More than any proxy says.
    #[error("its answer exceeds {MAX_HEAD} bytes")]
    TooLarge,
    /// Bytes behind the answer.
    #[error("it sends data before anything was asked of the host behind it")]
    TooEarly,
    /// A host that cannot stand in a request.
    #[error("the host's name has characters that HTTP does not allow")]
    Target,
}

/// Waits for the answer.
#[derive(Debug)]
pub struct Connect {
    head: Head,
    to: String,
    with_credentials: bool,
    interim: usize,
}

impl Connect {
    /// Asks for `host` (name or address, without brackets) at `port`; the request.
    ///
    /// # Errors
    /// [`ConnectError::Target`].
    pub fn new(
        host: &str,
        port: u16,
        credentials: Option<&Credentials>,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), ConnectError> {
        let fine = (1..=MAX_HOST).contains(&host.len())
            && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@[]\\".contains(&byte));
        if !fine {
            return Err(ConnectError::Target);
        }
        let to = authority(host, port);
        let start = format!(
            "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: edgelink/{}\r\n",
            env!("CARGO_PKG_VERSION")
        );
        let login = credentials.map(|credentials| {
            let (user, password) = (credentials.user.reveal(), credentials.password.reveal());
            let mut plain = Zeroizing::new(Vec::with_capacity(user.len() + 1 + password.len()));
            plain.extend_from_slice(user.as_bytes());
            plain.push(b':');
            plain.extend_from_slice(password.as_bytes());
            Zeroizing::new(STANDARD.encode(&*plain))
        });
        let length = start.len() + 64 + login.as_ref().map_or(0, |login| login.len());
        let mut request = Zeroizing::new(Vec::with_capacity(length));
        request.extend_from_slice(start.as_bytes());
        if let Some(login) = &login {
            request.extend_from_slice(b"Proxy-Authorization: Basic ");
            request.extend_from_slice(login.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        Ok((Self { head: Head::default(), to, with_credentials: login.is_some(), interim: 0 }, request))
    }

    /// Takes received bytes; true when the way is open.
    ///
    /// # Errors
    /// Anything but a 2xx with nothing behind it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool, ConnectError> {
        let mut rest = bytes.to_vec();
        loop {
            let whole = self.head.push(&rest).map_err(|_| ConnectError::TooLarge)?;
            let Some(whole) = whole else { return Ok(false) };
            match self.check(&whole.head)? {
                true if whole.after.is_empty() => return Ok(true),
                true => return Err(ConnectError::TooEarly),
                false => {
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Err(ConnectError::Malformed);
                    }
                    rest = whole.after;
                }
            }
        }
    }

    /// Whether it is the answer that counts.
    fn check(&self, head: &[u8]) -> Result<bool, ConnectError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::TooManyHeaders) => return Err(ConnectError::TooLarge),
            _ => return Err(ConnectError::Malformed),
        }
        let to = || self.to.clone();
        match parsed.code.unwrap_or_default() {
            // A switch of protocols was not asked for.
            101 => Err(ConnectError::Status(101)),
            100..200 => Ok(false),
            200..300 => Ok(true),
            // Some (tinyproxy) say 401 to a wrong password.
            401 | 407 => Err(self.login_refused(parsed.headers)),
            status @ (403 | 405 | 451) => Err(ConnectError::Forbidden { to: to(), status }),
            status @ (500 | 502..=504) => Err(ConnectError::Unreachable { to: to(), status }),
            status => Err(ConnectError::Status(status)),
        }
    }

    fn login_refused(&self, headers: &[httparse::Header<'_>]) -> ConnectError {
        let asks = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("proxy-authenticate"));
        // Only known names are repeated: what a stranger sends does not belong into a log.
        let known = ["Basic", "Digest", "NTLM", "Negotiate", "Bearer"];
        let wants = |scheme: &str| {
            asks.clone().any(|header| {
                let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
                value.split([',', ' ']).any(|word| word == scheme.to_ascii_lowercase())
            })
        };
        let offered: Vec<&str> = known.into_iter().filter(|scheme| wants(scheme)).collect();
        match self.with_credentials {
            _ if !offered.is_empty() && !offered.contains(&"Basic") => {
                ConnectError::Authentication(offered.join(", "))
            }
            true => ConnectError::CredentialsRefused,
            false => ConnectError::CredentialsWanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of RFC 7617 §2.
    fn aladdin() -> Credentials {
        Credentials { user: "Aladdin".into(), password: "open sesame".into() }
    }

    fn ask(credentials: Option<&Credentials>) -> Connect {
        Connect::new("relay.example", 443, credentials).unwrap().0
    }

    #[test]
    fn asks_with_credentials_at_once() {
        let (_, request) = Connect::new("relay.example", 443, Some(&aladdin())).unwrap();
        let request = String::from_utf8(request.to_vec()).unwrap();
        assert!(request.starts_with("CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n"));
        assert!(request.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"));
        assert!(request.ends_with("\r\n\r\n"));
        let (_, request) = Connect::new("fd00::1", 8443, None).unwrap();
        let request = String::from_utf8(request.to_vec()).unwrap();
        assert!(request.starts_with("CONNECT [fd00::1]:8443 ") && !request.contains("Authorization"));
        for host in ["", "a b", "a\r\nX: y", "a/b", "ü"] {
            assert_eq!(Connect::new(host, 1, None).unwrap_err(), ConnectError::Target);
        }
    }

    #[test]
    fn a_2xx_opens_whatever_body_it_announces() {
        assert_eq!(ask(None).push(b"HTTP/1.0 200 Connection established\r\n\r\n"), Ok(true));
        let mut connect = ask(None);
        assert_eq!(connect.push(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 2"), Ok(false));
        assert_eq!(connect.push(b"00 OK\r\nContent-Length: 5\r\n\r\n"), Ok(true));
    }

    #[test]
    fn says_what_to_do_about_a_refusal() {
        let answer = |with: bool, answer: &str| {
            let answer = format!("HTTP/1.1 {answer}\r\n\r\n<html>why</html>");
            ask(Some(&aladdin()).filter(|_| with)).push(answer.as_bytes()).unwrap_err()
        };
        let to = || "relay.example:443".to_owned();
        assert_eq!(
            answer(false, "407 No\r\nProxy-Authenticate: Basic realm=\"x\""),
            ConnectError::CredentialsWanted
        );
        assert_eq!(answer(true, "407 No\r\nProxy-Authenticate: Basic"), ConnectError::CredentialsRefused);
        assert_eq!(answer(true, "407 No"), ConnectError::CredentialsRefused);
        assert_eq!(answer(true, "401 Unauthorized"), ConnectError::CredentialsRefused);
        assert_eq!(
            answer(true, "407 No\r\nproxy-authenticate: NTLM\r\nProxy-Authenticate: Negotiate"),
            ConnectError::Authentication("NTLM, Negotiate".to_owned())
        );
        assert_eq!(answer(true, "403 Filtered"), ConnectError::Forbidden { to: to(), status: 403 });
        assert_eq!(answer(true, "503 Down"), ConnectError::Unreachable { to: to(), status: 503 });
        assert_eq!(answer(true, "301 Moved"), ConnectError::Status(301));
        assert_eq!(ask(None).push(b"SSH-2.0-x\r\n\r\n"), Err(ConnectError::Malformed));
    }

    #[test]
    fn an_answer_with_something_behind_it_is_not_believed() {
        assert_eq!(ask(None).push(b"HTTP/1.1 200 OK\r\n\r\n\x16"), Err(ConnectError::TooEarly));
    }

    #[test]
    fn answers_are_bounded() {
        let mut connect = ask(None);
        let outcome = (0..2 * MAX_HEAD / 8).find_map(|_| connect.push(b"A: 4567\n").err());
        assert_eq!(outcome, Some(ConnectError::TooLarge));
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_INTERIM + 1);
        assert_eq!(ask(None).push(&interim), Err(ConnectError::Malformed));
    }

    proptest! {
        #[test]
        fn any_answer_is_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut connect = ask(None);
            if let Ok(false) = connect.push(first) {
                let _ = connect.push(second);
            }
        }
    }
}
