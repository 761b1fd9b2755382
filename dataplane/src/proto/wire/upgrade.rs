//! The HTTP/1.1 upgrade that a WebSocket begins with (RFC 6455 §4), for either end.
//!
//! [`ServerUpgrade`] takes bytes until the request is whole and says what to answer; [`ClientUpgrade`] writes the request and checks the
//! answer. `httparse` reads the HTTP. What follows the header is left to [`super::websocket`]. Nothing longer than [`MAX_HEAD`] is read.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The longest request or response head: a CDN's forwarded headers and a cookie fit, 8 KiB is also the limit of common servers.
pub const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// An accepted request: what the server may want to know of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The path, without the query.
    pub path: String,
    /// Everything that came, names in lower case, values that are not UTF-8 left out.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}
