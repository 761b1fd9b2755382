//! Whom a relay behind proxies talks to: the headers in which they say so, and when those are believed.
//!
//! A header is worth what the one who sent it is worth. [`Trust`] knows the networks of the proxies; the chain that a header tells is read from the
//! right, where the nearest proxy wrote, and only as long as the speaker is one of them. What a client put in front is never reached:
//!
//! ```text
//! X-Forwarded-For: 198.51.100.9, 203.0.113.7, 10.0.0.2          from 10.0.0.1; trusted: 10.0.0.0/8
//!                  └ forged       └ the client  └ a proxy, seen by 10.0.0.1
//! ```
//!
//! Forms: `X-Forwarded-For` (addresses, perhaps with ports), `Forwarded` (RFC 7239, its `for`), or another header that holds one address (such as
//! `CF-Connecting-IP`).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::upgrade::Request;

/// A chain is followed that far: no request passes more proxies.
const MAX_HOPS: usize = 32;

/// The header in which trusted proxies say who the client is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientHeader {
    /// RFC 7239.
    Forwarded,
    /// A list of addresses, or one; the name in lower case.
    Addresses(String),
}

/// Not a header's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no header name such as X-Forwarded-For, Forwarded or CF-Connecting-IP")]
pub struct HeaderNameError(String);

impl std::str::FromStr for ClientHeader {
    type Err = HeaderNameError;

    fn from_str(name: &str) -> Result<Self, HeaderNameError> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(token) {
            return Err(HeaderNameError(name.chars().take(64).collect()));
        }
        let name = name.to_ascii_lowercase();
        Ok(if name == "forwarded" { Self::Forwarded } else { Self::Addresses(name) })
    }
}

/// Which proxies are believed, and what.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Trust {
    /// Their networks.
    pub networks: Vec<IpNet>,
    /// What they write; `None`: no header is looked at.
    pub header: Option<ClientHeader>,
}

impl Trust {
    /// Whether `address` is one of the proxies.
    pub fn covers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Who sent `request`, which came from `peer`: the right-most address of the chain that is no trusted proxy's. `None` when there is nothing to
    /// learn: the peer is not trusted, or no header is configured.
    pub fn client_address(&self, peer: IpAddr, request: &Request) -> Option<IpAddr> {
        let header = self.header.as_ref().filter(|_| self.covers(peer))?;
        let name = match header {
            ClientHeader::Forwarded => "forwarded",
            ClientHeader::Addresses(name) => name,
        };
        let lines = request.headers.iter().rev().filter(|(known, _)| known == name);
        let elements = lines.flat_map(|(_, line)| rsplit(line, b','));
        let mut nearest = peer.to_canonical();
        for element in elements.take(MAX_HOPS) {
            let told = match header {
                ClientHeader::Forwarded => forwarded_for(element),
                ClientHeader::Addresses(_) => address(element.trim()),
            };
            // `unknown`, an obfuscated name, or nonsense: the chain ends with who said so.
            let Some(told) = told else { return Some(nearest) };
            nearest = told.to_canonical();
            if !self.covers(nearest) {
                break;
            }
        }
        Some(nearest)
    }
}

/// The parts between separators that stand outside of quoted strings, the last one first. From the right, because only the right is known to be a
/// proxy's: a quotation mark that a client left open must not swallow it.
fn rsplit(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let bytes = text.as_bytes();
        let mut quoted = false;
        for (at, byte) in bytes.iter().enumerate().rev() {
            let escaped = || bytes.iter().take(at).rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
            if *byte == b'"' && !escaped() {
                quoted = !quoted;
            } else if *byte == separator && !quoted {
                rest = text.get(..at);
                return text.get(at + 1..);
            }
        }
        rest.take()
    })
}

/// `for` of one element of `Forwarded`: `for="[2001:db8::7]:4711";proto=https`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut told = rsplit(element, b';').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    match (told.next(), told.next()) {
        (Some(value), None) => address(&unquoted(value)?),
        _ => None,
    }
}

/// A token as it is; a quoted string without quotes and escapes.
fn unquoted(value: &str) -> Option<Cow<'_, str>> {
    let Some(inner) = value.strip_prefix('"') else { return Some(Cow::Borrowed(value)) };
    let inner = inner.strip_suffix('"')?;
    let mut plain = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            plain.push(c);
        }
    }
    Some(Cow::Owned(plain))
}

/// An address: `192.0.2.7`, `192.0.2.7:4711`, `2001:db8::7`, `[2001:db8::7]`, `[2001:db8::7]:4711`.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok();
    text.parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| bracketed().map(IpAddr::V6))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn trust(header: &str) -> Trust {
        let networks = ["10.0.0.0/8", "2001:db8:1::/48"].map(|network| network.parse().unwrap()).into();
        Trust { networks, header: Some(header.parse().unwrap()) }
    }

    fn request(headers: &[(&str, &str)]) -> Request {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Request { path: "/ws/data".into(), headers }
    }

    fn learned(header: &str, peer: &str, headers: &[(&str, &str)]) -> Option<String> {
        let address = trust(header).client_address(peer.parse().unwrap(), &request(headers));
        address.map(|address| address.to_string())
    }

    #[test]
    fn the_right_most_address_that_is_no_proxy_is_the_clients() {
        for (lines, client) in [
            (vec!["203.0.113.7"], "203.0.113.7"),
            (vec!["198.51.100.9, 203.0.113.7,10.0.0.2"], "203.0.113.7"),
            (vec!["198.51.100.9", "203.0.113.7", "10.0.0.2, 10.0.0.3"], "203.0.113.7"),
            (vec!["203.0.113.7:4711, [2001:db8:1::1]:80"], "203.0.113.7"),
            (vec!["[2001:db8:2::1]"], "2001:db8:2::1"),
            (vec!["::ffff:203.0.113.7, ::ffff:10.1.1.1"], "203.0.113.7"),
            // Only proxies: the outermost.
            (vec!["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // Nothing, or nothing of use: who brought it.
            (vec![], PROXY),
            (vec!["203.0.113.7, unknown"], PROXY),
            (vec!["203.0.113.7, , 10.0.0.2"], "10.0.0.2"),
            (vec!["999.1.1.1"], PROXY),
        ] {
            let headers: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(learned("X-Forwarded-For", PROXY, &headers).unwrap(), client, "{lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        for (line, client) in [
            ("for=203.0.113.7", "203.0.113.7"),
            ("For=\"203.0.113.7:4711\";proto=https;by=10.0.0.1", "203.0.113.7"),
            ("for=198.51.100.9, proto=https ; for=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("for=203.0.113.7;host=\"a,b;c\", for=10.0.0.2", "203.0.113.7"),
            ("for=\"203.0\\.113.7\"", "203.0.113.7"),
            // A quotation mark that the client left open swallows nothing.
            ("for=\"198.51.100.9, for=203.0.113.7", "203.0.113.7"),
            ("for=198.51.100.9;host=\"\\\", for=203.0.113.7", "203.0.113.7"),
            ("for=203.0.113.7, for=_hidden", PROXY),
            ("for=203.0.113.7, for=unknown", PROXY),
            ("for=203.0.113.7, proto=https", PROXY),
            ("for=203.0.113.7;for=203.0.113.8", PROXY),
        ] {
            assert_eq!(learned("Forwarded", PROXY, &[("forwarded", line)]).unwrap(), client, "{line}");
        }
    }

    #[test]
    fn a_header_of_somebody_who_is_not_trusted_is_nothing() {
        let forged = [("x-forwarded-for", "198.51.100.9"), ("cf-connecting-ip", "198.51.100.8")];
        assert_eq!(learned("X-Forwarded-For", "203.0.113.7", &forged), None);
        assert_eq!(learned("CF-Connecting-IP", PROXY, &forged).unwrap(), "198.51.100.8");
        assert_eq!(learned("CF-Connecting-IP", "::ffff:10.0.0.1", &forged).unwrap(), "198.51.100.8");
        let silent = Trust { header: None, ..trust("Forwarded") };
        assert_eq!(silent.client_address(PROXY.parse().unwrap(), &request(&forged)), None);
        for bad in ["", "X Forwarded", "a:b", "x\n"] {
            assert!(bad.parse::<ClientHeader>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_puts_in_front_changes_nothing(forged in "[ -~]{0,80}", forwarded in any::<bool>(), hop in any::<bool>()) {
            let (name, told) = if forwarded { ("forwarded", "for=203.0.113.7") } else { ("x-forwarded-for", "203.0.113.7") };
            let behind = match (hop, forwarded) {
                (false, _) => "",
                (true, false) => ", 10.9.9.9",
                (true, true) => ", for=10.9.9.9",
            };
            let line = format!("{forged}, {told}{behind}");
            prop_assert_eq!(learned(name, PROXY, &[(name, &line)]).unwrap(), "203.0.113.7");
        }

        #[test]
        fn any_header_gives_an_address_of_the_chain_or_the_peers(line in "[ -~]{0,120}", forwarded in any::<bool>()) {
            let name = if forwarded { "forwarded" } else { "x-forwarded-for" };
            prop_assert!(learned(name, PROXY, &[(name, &line)]).is_some());
            prop_assert_eq!(learned(name, "203.0.113.7", &[(name, &line)]), None);
        }
    }
}
