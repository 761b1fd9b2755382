//! The HTTP/1.1 upgrade that a WebSocket begins with (RFC 6455 §4), for either end.
//!
//! [`Head`] collects bytes until the request's or response's head is whole, never more than [`MAX_HEAD`]. [`answer`] is the server's part: it takes
//! a head and gives the request and what to send. [`Client`] writes the request and checks the answer. `httparse` reads the HTTP; what
//! follows the head is left to [`super::websocket`]. Extensions and subprotocols are not agreed to.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The longest request or response head: a CDN's forwarded headers and a cookie fit; 8 KiB is also the limit of common servers.
pub const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why there is no upgrade.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// Not HTTP, or not as it must be.
    #[error("malformed HTTP: {0}")]
    Malformed(&'static str),
    /// Over [`MAX_HEAD`], or too many headers.
    #[error("HTTP head exceeds {MAX_HEAD} bytes or {MAX_HEADERS} headers")]
    TooLarge,
    /// No such path.
    #[error("no WebSocket at {0:?}")]
    Path(String),
    /// A plain request, or another WebSocket version than 13.
    #[error("not a WebSocket upgrade: {0}")]
    NoUpgrade(&'static str),
    /// The server answered with another status than 101.
    #[error("server answered with HTTP status {0} instead of 101")]
    Status(u16),
    /// The server's answer is not one to our request.
    #[error("server's upgrade is wrong: {0}")]
    Answer(&'static str),
    /// A host or path that cannot stand in a request.
    #[error("host or path has characters that HTTP does not allow")]
    Target,
}

impl UpgradeError {
    /// The whole response that a server refuses with.
    pub fn response(&self) -> Vec<u8> {
        let (status, extra) = match self {
            Self::Path(_) => ("404 Not Found", ""),
            Self::TooLarge => ("431 Request Header Fields Too Large", ""),
            Self::NoUpgrade(_) => {
                ("426 Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")
            }
            _ => ("400 Bad Request", ""),
        };
        format!("HTTP/1.1 {status}\r\n{extra}Connection: close\r\nContent-Length: 0\r\n\r\n").into_bytes()
    }
}

/// What [`Head::push`] has collected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WholeHead {
    /// Up to and with the empty line.
    pub head: Vec<u8>,
    /// What came with it of the bytes behind: WebSocket frames already.
    pub after: Vec<u8>,
}

/// Collects a head.
#[derive(Debug, Default)]
pub struct Head(Vec<u8>);

impl Head {
    /// Takes received bytes. `Some` when the head is whole.
    ///
    /// # Errors
    /// [`UpgradeError::TooLarge`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<WholeHead>, UpgradeError> {
        // Look again only where an end can be new, so that a client who sends byte by byte costs no more than others.
        let mut from = self.0.len().saturating_sub(3);
        let room = MAX_HEAD.saturating_sub(self.0.len());
        let (taken, rest) = bytes.split_at(room.min(bytes.len()));
        self.0.extend_from_slice(taken);
        while let Some(offset) = self.0.get(from..).and_then(|tail| tail.iter().position(|&b| b == b'\n')) {
            let line_end = from + offset + 1;
            let tail = self.0.get(line_end..).unwrap_or_default();
            let end = match tail {
                [b'\n', ..] => Some(line_end + 1),
                [b'\r', b'\n', ..] => Some(line_end + 2),
                _ => None,
            };
            if let Some(end) = end {
                let mut head = std::mem::take(&mut self.0);
                let mut after = head.split_off(end);
                after.extend_from_slice(rest);
                return Ok(Some(WholeHead { head, after }));
            }
            from = line_end;
        }
        if self.0.len() >= MAX_HEAD { Err(UpgradeError::TooLarge) } else { Ok(None) }
    }
}

/// An accepted request: what the server may want to know of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The path, without the query.
    pub path: String,
    /// Everything that came, in order; names in lower case, values that are not UTF-8 left out.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The server's part: checks a whole request head and gives the request with the response that accepts it.
///
/// # Errors
/// Send [`UpgradeError::response`], then close.
pub fn answer(head: &[u8], paths: &[&str]) -> Result<(Request, Vec<u8>), UpgradeError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    parse_status(parsed.parse(head))?;
    let target = parsed.path.unwrap_or_default();
    let path = target.split(['?', '#']).next().unwrap_or_default();
    if !paths.contains(&path) {
        return Err(UpgradeError::Path(path.chars().take(100).collect()));
    }
    if parsed.method != Some("GET") || parsed.version != Some(1) {
        return Err(UpgradeError::NoUpgrade("not a GET of HTTP/1.1"));
    }
    // As they came: a value that is not text still means something to the next reader.
    let named = |name: &'static str| {
        parsed.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name))
    };
    if named("host").count() != 1 {
        return Err(UpgradeError::Malformed("not one Host"));
    }
    // A proxy would see a body where WebSocket frames begin here (RFC 9112 §11.2).
    if named("transfer-encoding").next().is_some()
        || named("content-length").any(|header| header.value != b"0")
    {
        return Err(UpgradeError::Malformed("a request with a body"));
    }
    let request = Request { path: path.to_owned(), headers: lower_case(parsed.headers) };
    if !has_token(&request.headers, "upgrade", "websocket")
        || !has_token(&request.headers, "connection", "upgrade")
    {
        return Err(UpgradeError::NoUpgrade("no Upgrade: websocket"));
    }
    if request.header("sec-websocket-version") != Some("13") {
        return Err(UpgradeError::NoUpgrade("not version 13"));
    }
    let mut keys = request.headers.iter().filter(|(name, _)| name == "sec-websocket-key");
    let (Some((_, key)), None) = (keys.next(), keys.next()) else {
        return Err(UpgradeError::Malformed("not one Sec-WebSocket-Key"));
    };
    if STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(UpgradeError::Malformed("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    let accept = accept(key);
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Ok((request, response.into_bytes()))
}

/// The client's part.
#[derive(Debug)]
pub struct Client {
    accept: String,
}

impl Client {
    /// Writes the request; `nonce` is fresh randomness. `host` is what the Host header says: name, and port when it is not the scheme's.
    ///
    /// # Errors
    /// [`UpgradeError::Target`].
    pub fn new(host: &str, path: &str, nonce: [u8; 16]) -> Result<(Self, Vec<u8>), UpgradeError> {
        let printable = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable(host) || !printable(path) || !path.starts_with('/') {
            return Err(UpgradeError::Target);
        }
        let key = STANDARD.encode(nonce);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nUser-Agent: edgelink/{}\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        );
        Ok((Self { accept: accept(&key) }, request.into_bytes()))
    }

    /// Checks a whole response head.
    ///
    /// # Errors
    /// Another status than 101, or an answer to something else.
    pub fn check(&self, head: &[u8]) -> Result<(), UpgradeError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        parse_status(parsed.parse(head))?;
        let status = parsed.code.unwrap_or_default();
        if status != 101 {
            return Err(UpgradeError::Status(status));
        }
        let headers = lower_case(parsed.headers);
        if !has_token(&headers, "upgrade", "websocket") || !has_token(&headers, "connection", "upgrade") {
            return Err(UpgradeError::Answer("it upgrades to something else"));
        }
        let accept = headers.iter().find(|(name, _)| name == "sec-websocket-accept");
        if accept.is_none_or(|(_, value)| *value != self.accept) {
            return Err(UpgradeError::Answer("Sec-WebSocket-Accept does not match"));
        }
        let unasked = ["sec-websocket-extensions", "sec-websocket-protocol"];
        if headers.iter().any(|(name, _)| unasked.contains(&name.as_str())) {
            return Err(UpgradeError::Answer("it agrees to what was not asked for"));
        }
        Ok(())
    }
}

fn parse_status(outcome: httparse::Result<usize>) -> Result<(), UpgradeError> {
    match outcome {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(UpgradeError::Malformed("incomplete head")),
        Err(httparse::Error::TooManyHeaders) => Err(UpgradeError::TooLarge),
        Err(_) => Err(UpgradeError::Malformed("not an HTTP head")),
    }
}

fn lower_case(headers: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    headers
        .iter()
        .filter_map(|header| {
            let value = std::str::from_utf8(header.value).ok()?;
            Some((header.name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect()
}

/// Whether a comma-separated header has `token`, in any case.
fn has_token(headers: &[(String, String)], name: &str, token: &str) -> bool {
    headers
        .iter()
        .filter(|(n, _)| n == name)
        .flat_map(|(_, value)| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

fn accept(key: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(GUID);
    STANDARD.encode(context.finish())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATHS: &[&str] = &["/ws/data"];

    fn request(target: &str, headers: &str) -> Vec<u8> {
        format!("GET {target} HTTP/1.1\r\n{headers}\r\n").into_bytes()
    }

    const GOOD: &str = "Host: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-Forwarded-For: 1.2.3.4\r\nSec-WebSocket-Protocol: chat\r\n";

    #[test]
    fn answers_the_example_of_the_rfc() {
        let (request, response) = answer(&request("/ws/data?x=1", GOOD), PATHS).unwrap();
        assert_eq!(request.path, "/ws/data");
        assert_eq!(request.header("x-forwarded-for"), Some("1.2.3.4"));
        let response = String::from_utf8(response).unwrap();
        assert!(response.starts_with("HTTP/1.1 101 "));
        assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(!response.contains("Protocol:"));
    }

    #[test]
    fn refuses_with_the_status_that_fits() {
        let refusal = |head: &[u8]| {
            let response = answer(head, PATHS).unwrap_err().response();
            String::from_utf8(response).unwrap()[9..12].to_owned()
        };
        assert_eq!(refusal(&request("/", GOOD)), "404");
        assert_eq!(refusal(&request("/ws/data", "Host: a\r\n")), "426");
        assert_eq!(refusal(&request("/ws/data", &GOOD.replace("n: 13", "n: 8"))), "426");
        assert_eq!(refusal(&request("/ws/data", &GOOD.replace("Host", "Hose"))), "400");
        assert_eq!(refusal(&request("/ws/data", &GOOD.replace("dGhl", "")),), "400");
        for ambiguous in ["Host: b", "Content-Length: 5", "content-length: +0", "Transfer-Encoding: chunked"]
        {
            assert_eq!(refusal(&request("/ws/data", &format!("{GOOD}{ambiguous}\r\n"))), "400");
        }
        let mut hidden = request("/ws/data", GOOD);
        hidden.truncate(hidden.len() - 2);
        hidden.extend_from_slice(b"Transfer-Encoding: chunked\xff\r\n\r\n");
        assert_eq!(refusal(&hidden), "400");
        assert_eq!(refusal(b"\x16\x03\x01 TLS\r\n\r\n"), "400");
        assert_eq!(refusal(&request("/ws/data", &"A: b\r\n".repeat(65))), "431");
    }

    #[test]
    fn both_ends_agree() {
        let (client, head) = Client::new("relay.example:8443", "/ws/data", [7; 16]).unwrap();
        let (request, response) = answer(&head, PATHS).unwrap();
        assert_eq!(request.header("host"), Some("relay.example:8443"));
        assert_eq!(client.check(&response), Ok(()));
        let (other, _) = Client::new("relay.example", "/ws/data", [8; 16]).unwrap();
        assert!(matches!(other.check(&response), Err(UpgradeError::Answer(_))));
        assert_eq!(client.check(&UpgradeError::TooLarge.response()), Err(UpgradeError::Status(431)));
        assert_eq!(Client::new("a\r\nX: y", "/", [0; 16]).unwrap_err(), UpgradeError::Target);
    }

    #[test]
    fn a_head_that_never_ends_is_cut() {
        let mut head = Head::default();
        for _ in 0..MAX_HEAD / 8 - 1 {
            assert_eq!(head.push(b"A: 4567\n"), Ok(None));
        }
        assert_eq!(head.push(b"A: 4567\n"), Err(UpgradeError::TooLarge));
    }

    proptest! {
        #[test]
        fn a_head_is_found_however_it_is_cut(cuts in proptest::collection::vec(1usize..40, 0..40), after in proptest::collection::vec(any::<u8>(), 0..50)) {
            let head = request("/ws/data", GOOD);
            let mut all = head.clone();
            all.extend_from_slice(&after);
            let mut rest = &all[..];
            let mut collector = Head::default();
            let mut found = None;
            for cut in cuts.into_iter().chain(std::iter::once(usize::MAX)) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                if let Some(mut whole) = collector.push(now).unwrap() {
                    whole.after.extend_from_slice(rest);
                    found = Some(whole);
                    break;
                }
            }
            prop_assert_eq!(found, Some(WholeHead { head, after }));
        }

        #[test]
        fn any_head_is_answered_or_refused(head in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Err(error) = answer(&head, PATHS) {
                prop_assert!(error.response().starts_with(b"HTTP/1.1 4"));
            }
        }
    }
}
