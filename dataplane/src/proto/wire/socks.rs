//! SOCKS5 at the client's end (RFC 1928), with user name and password (RFC 1929). Names are resolved by the proxy.
//!
//! ```text
//! 5 ‖ count ‖ methods (0 none, 2 password)                  ─▶ ◀─ 5 ‖ method
//! 1 ‖ length ‖ user ‖ length ‖ password                     ─▶ ◀─ 1 ‖ status (0: fine)           if method 2 was chosen
//! 5 ‖ 1 (connect) ‖ 0 ‖ kind ‖ address ‖ port (2)           ─▶ ◀─ 5 ‖ reply (0: fine) ‖ 0 ‖ kind ‖ address ‖ port (2)
//! kind: 1 IPv4 (4 B), 3 name (length ‖ name), 4 IPv6 (16 B)
//! ```
//!
//! The host never speaks first here (TLS), so bytes behind an answer are refused, as in [`super::connect`].

use std::fmt;
use std::net::IpAddr;

use zeroize::Zeroizing;

use crate::proto::dial::proxy::{Credentials, MAX_HOST};
use crate::proto::dial::tunnel::Progress;

const VERSION: u8 = 5;
/// Of RFC 1929's messages.
const LOGIN_VERSION: u8 = 1;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Why there is no way through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SocksError {
    /// It takes none of the methods, and no credentials were given.
    #[error("it wants a user name and a password: write them into its URL, socks5://USER:PASSWORD@HOST:PORT")]
    CredentialsWanted,
    /// It takes neither no login nor a password.
    #[error("it takes no user name and password, and wants a login that is not spoken here")]
    Method,
    /// RFC 1929 status.
    #[error(
        "it does not accept the user name and password in its URL: check them (special characters are written %XX)"
    )]
    CredentialsRefused,
    /// Reply 2.
    #[error("its rules do not allow this connection: ask who runs it to allow that host and port")]
    Forbidden,
    /// Replies 3, 4, 5 and 6.
    #[error("it cannot reach the host: {0}")]
    Unreachable(&'static str),
    /// Any other reply.
    #[error("it refuses: {0}")]
    Refused(&'static str),
    /// Not SOCKS5.
    #[error("it does not speak SOCKS5: check scheme and port of its URL")]
    Malformed,
    /// Bytes behind an answer.
    #[error("it sends data before anything was asked of the host behind it")]
    TooEarly,
    /// A host that cannot stand in a request.
    #[error("the host's name is empty or longer than 255 bytes")]
    Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Method,
    LoginStatus,
    Reply,
}

/// Waits for an answer.
pub struct Socks {
    expect: Expect,
    /// Of one answer: at most 4 + 1 + 255 + 2 bytes.
    received: Vec<u8>,
    login: Option<Zeroizing<Vec<u8>>>,
    request: Vec<u8>,
}

impl fmt::Debug for Socks {
    /// Without the login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socks").field("expect", &self.expect).finish_non_exhaustive()
    }
}

impl Socks {
    /// Asks for `host` (name or address, without brackets) at `port`; what to send first.
    ///
    /// # Errors
    /// [`SocksError::Target`].
    pub fn new(
        host: &str,
        port: u16,
        credentials: Option<&Credentials>,
    ) -> Result<(Self, Zeroizing<Vec<u8>>), SocksError> {
        let request = request(host, port)?;
        let login = credentials.map(login).transpose()?;
        let greeting = match login {
            Some(_) => vec![VERSION, 2, NO_LOGIN, LOGIN],
            None => vec![VERSION, 1, NO_LOGIN],
        };
        Ok((Self { expect: Expect::Method, received: Vec::new(), login, request }, greeting.into()))
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// See [`SocksError`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Progress, SocksError> {
        let mut bytes = bytes.iter();
        loop {
            if let Some(progress) = self.look()? {
                return if bytes.as_slice().is_empty() { Ok(progress) } else { Err(SocksError::TooEarly) };
            }
            let Some(byte) = bytes.next() else { return Ok(Progress::Send(Zeroizing::default())) };
            self.received.push(*byte);
        }
    }

    /// What the answer means, when it is whole.
    fn look(&mut self) -> Result<Option<Progress>, SocksError> {
        let progress = match (self.expect, self.received.as_slice()) {
            (_, [])
            | (Expect::Method | Expect::Reply, [VERSION])
            | (Expect::LoginStatus, [LOGIN_VERSION]) => return Ok(None),
            (Expect::Method, &[VERSION, method]) => self.handle_method(method)?,
            (Expect::LoginStatus, &[LOGIN_VERSION, 0]) => self.ask(),
            (Expect::LoginStatus, &[LOGIN_VERSION, _]) => return Err(SocksError::CredentialsRefused),
            // Some proxies end the message behind the reply when they refuse.
            (Expect::Reply, &[VERSION, reply, ..]) if reply != 0 => return Err(refusal(reply)),
            (Expect::Reply, &[VERSION, _, ref rest @ ..]) => match missing(rest)? {
                0 => Progress::Open,
                _ => return Ok(None),
            },
            _ => return Err(SocksError::Malformed),
        };
        self.received.clear();
        Ok(Some(progress))
    }

    fn handle_method(&mut self, method: u8) -> Result<Progress, SocksError> {
        match (method, self.login.take()) {
            (NO_LOGIN, _) => Ok(self.ask()),
            (LOGIN, Some(login)) => {
                self.expect = Expect::LoginStatus;
                Ok(Progress::Send(login))
            }
            (_, None) => Err(SocksError::CredentialsWanted),
            (_, Some(_)) => Err(SocksError::Method),
        }
    }

    fn ask(&mut self) -> Progress {
        self.expect = Expect::Reply;
        self.login = None;
        Progress::Send(std::mem::take(&mut self.request).into())
    }
}

/// How many bytes are certainly missing of RSV ‖ kind ‖ address ‖ port.
fn missing(rest: &[u8]) -> Result<usize, SocksError> {
    let whole = match *rest {
        [] | [_] | [_, NAME] => return Ok(1),
        [_, IPV4, ..] => 2 + 4 + 2,
        [_, IPV6, ..] => 2 + 16 + 2,
        [_, NAME, length, ..] => 2 + 1 + usize::from(length) + 2,
        _ => return Err(SocksError::Malformed),
    };
    Ok(whole.saturating_sub(rest.len()))
}

const fn refusal(reply: u8) -> SocksError {
    match reply {
        1 => SocksError::Refused("general failure"),
        2 => SocksError::Forbidden,
        3 => SocksError::Unreachable("no way to its network"),
        4 => SocksError::Unreachable("no answer, or no such name"),
        5 => SocksError::Unreachable("it refuses the connection: check the port and whether it runs"),
        6 => SocksError::Unreachable("the way is too long"),
        7 => SocksError::Refused("it allows no connections at all"),
        8 => SocksError::Refused("it does not take this kind of address"),
        _ => SocksError::Refused("for a reason of its own"),
    }
}

fn request(host: &str, port: u16) -> Result<Vec<u8>, SocksError> {
    let mut request = vec![VERSION, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            request.push(IPV4);
            request.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(IPV6);
            request.extend_from_slice(&address.octets());
        }
        Err(_) => {
            let length = u8::try_from(host.len()).ok().filter(|&length| length > 0);
            debug_assert!(MAX_HOST == usize::from(u8::MAX), "a name's length is one byte");
            request.extend_from_slice(&[NAME, length.ok_or(SocksError::Target)?]);
            request.extend_from_slice(host.as_bytes());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    Ok(request)
}

/// RFC 1929 §2.
fn login(credentials: &Credentials) -> Result<Zeroizing<Vec<u8>>, SocksError> {
    let (user, password) = (credentials.user.reveal(), credentials.password.reveal());
    let length = |text: &str| u8::try_from(text.len()).map_err(|_| SocksError::CredentialsRefused);
    let mut login = Zeroizing::new(Vec::with_capacity(3 + user.len() + password.len()));
    login.extend_from_slice(&[LOGIN_VERSION, length(user)?]);
    login.extend_from_slice(user.as_bytes());
    login.push(length(password)?);
    login.extend_from_slice(password.as_bytes());
    Ok(login)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn send(bytes: &[u8]) -> Progress {
        Progress::Send(bytes.to_vec().into())
    }

    fn jane() -> Credentials {
        Credentials { user: "jane".into(), password: "hush".into() }
    }

    #[test]
    fn connects_to_a_name_with_a_password() {
        let (mut socks, greeting) = Socks::new("relay.example", 443, Some(&jane())).unwrap();
        assert_eq!(greeting[..], [5, 2, 0, 2]);
        assert_eq!(socks.push(&[5]), Ok(send(&[])));
        assert_eq!(socks.push(&[2]), Ok(send(b"\x01\x04jane\x04hush")));
        assert_eq!(socks.push(&[1, 0]), Ok(send(b"\x05\x01\x00\x03\x0drelay.example\x01\xbb")));
        assert_eq!(socks.push(&[5, 0, 0, 1, 10, 0, 0]), Ok(send(&[])));
        assert_eq!(socks.push(&[1, 0x12, 0x34]), Ok(Progress::Open));
        let asked = Socks::new("a", 1, Some(&jane())).unwrap().0;
        assert_eq!(format!("{asked:?}"), "Socks { expect: Method, .. }");
    }

    #[test]
    fn addresses_go_as_addresses_and_every_kind_of_reply_is_read() {
        for (host, request, reply) in [
            ("192.0.2.1", vec![1, 192, 0, 2, 1], [&[5, 0, 0, 3, 3][..], b"abc", &[0, 1]].concat()),
            ("::1", [&[4][..], &[0; 15], &[1]].concat(), [&[5, 0, 0, 4][..], &[0; 18]].concat()),
        ] {
            let (mut socks, greeting) = Socks::new(host, 0x1234, None).unwrap();
            assert_eq!(greeting[..], [5, 1, 0]);
            assert_eq!(socks.push(&[5, 0]), Ok(send(&[&[5, 1, 0][..], &request, &[0x12, 0x34]].concat())));
            assert_eq!(socks.push(&reply), Ok(Progress::Open));
        }
    }

    #[test]
    fn says_what_to_do_about_a_refusal() {
        let with = |login: bool, answers: &[&[u8]]| {
            let credentials = jane();
            let (mut socks, _) = Socks::new("a.example", 443, Some(&credentials).filter(|_| login)).unwrap();
            answers.iter().find_map(|answer| socks.push(answer).err())
        };
        assert_eq!(with(false, &[&[5, 0xff]]), Some(SocksError::CredentialsWanted));
        assert_eq!(with(false, &[&[5, 2]]), Some(SocksError::CredentialsWanted));
        assert_eq!(with(true, &[&[5, 0xff]]), Some(SocksError::Method));
        assert_eq!(with(true, &[&[5, 2], &[1, 1]]), Some(SocksError::CredentialsRefused));
        assert_eq!(with(true, &[&[5, 0], &[5, 2]]), Some(SocksError::Forbidden));
        assert!(matches!(with(true, &[&[5, 0], &[5, 5, 0, 1]]), Some(SocksError::Unreachable(_))));
        assert_eq!(with(false, &[b"HTTP/1.1 400"]), Some(SocksError::Malformed));
        assert_eq!(with(false, &[&[5, 0], &[5, 0, 0, 9]]), Some(SocksError::Malformed));
        assert_eq!(with(false, &[&[5, 0, 5]]), Some(SocksError::TooEarly));
        let early = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x16];
        assert_eq!(with(false, &[&[5, 0], &early]), Some(SocksError::TooEarly));
        assert_eq!(Socks::new("", 1, None).unwrap_err(), SocksError::Target);
        assert_eq!(Socks::new(&"x".repeat(256), 1, None).unwrap_err(), SocksError::Target);
    }

    proptest! {
        #[test]
        fn any_answer_is_taken_or_refused_wherever_it_is_cut(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let ask = || {
                let (mut socks, _) = Socks::new("a.example", 443, None).unwrap();
                socks.push(&[5, 0]).unwrap();
                socks
            };
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (mut whole, mut cut) = (ask(), ask());
            let outcome = whole.push(&bytes);
            match cut.push(first) {
                Ok(Progress::Open) => prop_assert!(outcome == Ok(Progress::Open) || outcome == Err(SocksError::TooEarly)),
                Ok(_) => prop_assert_eq!(cut.push(second), outcome),
                Err(error) => prop_assert_eq!(outcome, Err(error)),
            }
            prop_assert!(whole.received.len() <= 2 + 2 + 1 + 255 + 2);
        }
    }
}
