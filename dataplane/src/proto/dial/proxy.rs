//! Which proxy leads to a host: the URL of a proxy, the list of hosts that need none, and the rule that joins them.
//!
//! A URL is `http://`, `https://` (TLS to the proxy itself), `socks5://` or `socks5h://` (the same here: the proxy resolves names), with
//! `user:password@` before the host, where characters beyond letters and digits may be written `%XX`. The list is as in `NO_PROXY`: names (with all names
//! below them), addresses, networks, each with `:port` if it is meant for that one only, and `*` for everything. This machine itself is never
//! reached through a proxy.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::proto::wire::control::Secret;

/// User name and password, each: what SOCKS5 has room for (RFC 1929).
pub const MAX_CREDENTIAL: usize = 255;
/// The longest host name, here and in SOCKS5.
pub const MAX_HOST: usize = 255;
/// Entries of a [`NoProxy`]; what is beyond is left out.
const MAX_EXCEPTIONS: usize = 256;

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP CONNECT in clear text: user name and password can be read on the way to the proxy.
    Http,
    /// HTTP CONNECT within TLS.
    Https,
    /// SOCKS5 in clear text.
    Socks5,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Socks5 => 1080,
        }
    }
}

/// User name and password for a proxy. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// At most [`MAX_CREDENTIAL`] bytes, no control characters.
    pub user: Secret,
    /// Likewise; may be empty.
    pub password: Secret,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// A proxy. `Display` is its URL without user name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Name or address, without brackets.
    pub host: String,
    /// Given, or 80, 443 and 1080.
    pub port: u16,
    /// What it may ask for.
    pub credentials: Option<Credentials>,
}

/// Not the URL of a proxy. Never says what stood in it: there may be a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyUrlError {
    /// `ftp://` or the like.
    #[error("the scheme is not spoken here: expected http://, https://, socks5:// or socks5h://")]
    Scheme,
    /// Nothing, or characters that hosts do not have.
    #[error("the host is missing or no host name: expected something like http://proxy.example:3128")]
    Host,
    /// Not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// Something behind the port.
    #[error("something follows the port: expected something like http://proxy.example:3128")]
    Path,
    /// Too long, or with characters that cannot be sent.
    #[error(
        "user name or password cannot be used: each at most 255 bytes, special characters written %XX, no colon in the user name"
    )]
    Credentials,
}

impl FromStr for Proxy {
    type Err = ProxyUrlError;

    /// Reads `[scheme://][user[:password]@]host[:port][/]`; `http://` when there is no scheme.
    fn from_str(text: &str) -> Result<Self, ProxyUrlError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "socks5" | "socks5h" => Scheme::Socks5,
            _ => return Err(ProxyUrlError::Scheme),
        };
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((userinfo, rest)) => (Some(credentials(userinfo)?), rest),
            None => (None, rest),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(ProxyUrlError::Path);
        }
        let (host, port) = split_port(authority).ok_or(ProxyUrlError::Host)?;
        let port = match port {
            Some(port) => port.parse().ok().filter(|&port| port != 0).ok_or(ProxyUrlError::Port)?,
            None => scheme.port(),
        };
        if !is_host(host) {
            return Err(ProxyUrlError::Host);
        }
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port, credentials })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), authority(&self.host, self.port))
    }
}

/// `host:port`, with brackets where they belong.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Hosts that are reached without a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    All,
    Network(IpNet),
    /// In lower case, without leading dot: the name and all below it.
    Domain(String),
}

impl NoProxy {
    /// Reads entries separated by commas or blanks. What is no address is taken for a name, so nothing is refused.
    pub fn parse(list: &str) -> Self {
        let entries = list.split([',', ' ', '\t', '\n']).filter(|entry| !entry.is_empty());
        Self(entries.take(MAX_EXCEPTIONS).map(Exception::parse).collect())
    }

    /// Whether `host` (name or address, without brackets) at `port` is on the list.
    pub fn contains(&self, host: &str, port: u16) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        self.0.iter().any(|exception| {
            exception.port.is_none_or(|only| only == port)
                && match (&exception.hosts, address) {
                    (Hosts::All, _) => true,
                    (Hosts::Network(network), Some(address)) => network.contains(&address),
                    (Hosts::Domain(domain), None) => host
                        .strip_suffix(domain.as_str())
                        .is_some_and(|before| before.is_empty() || before.ends_with('.')),
                    _ => false,
                }
        })
    }
}

impl Exception {
    fn parse(entry: &str) -> Self {
        if let Some(network) = network(entry) {
            return Self { hosts: Hosts::Network(network), port: None };
        }
        let (host, port) = match split_port(entry) {
            Some((host, Some(port))) => match port.parse() {
                Ok(port) => (host, Some(port)),
                Err(_) => (entry, None),
            },
            Some((host, None)) => (host, None),
            None => (entry, None),
        };
        let hosts = match (host, network(host)) {
            ("*", _) => Hosts::All,
            (_, Some(network)) => Hosts::Network(network),
            _ => {
                let domain = host.trim_start_matches('*').trim_start_matches('.').trim_end_matches('.');
                Hosts::Domain(domain.to_ascii_lowercase())
            }
        };
        // "." or "*." would otherwise mean every name.
        match hosts {
            Hosts::Domain(domain) if domain.is_empty() => {
                Self { hosts: Hosts::Domain(entry.to_owned()), port }
            }
            hosts => Self { hosts, port },
        }
    }
}

/// Whom to go through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyRules {
    /// The proxy; `None`: everything is reached directly.
    pub proxy: Option<Proxy>,
    /// What is reached directly all the same.
    pub no_proxy: NoProxy,
}

/// A setting or variable that should be the URL of a proxy. Does not say what stood in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{whence} is no proxy: {what} (to go without one, set proxy to \"none\")")]
pub struct ProxySettingError {
    /// `proxy`, or the variable's name.
    pub whence: &'static str,
    /// What is wrong.
    pub what: ProxyUrlError,
}

impl ProxyRules {
    /// From the settings `proxy` (a URL or `none`) and `no_proxy`; where they are not made, from the variables that other programs read, too: `HTTPS_PROXY`, else
    /// `ALL_PROXY`, and `NO_PROXY`. As with curl their names in lower case come first. `variable` looks one up.
    ///
    /// # Errors
    /// [`ProxySettingError`].
    pub fn from_settings(
        proxy: Option<&str>,
        no_proxy: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ProxySettingError> {
        let set = |name: &'static str| {
            let value = variable(name).map(Zeroizing::new);
            value.filter(|value| !value.trim().is_empty()).map(|value| (name, value))
        };
        let own = proxy.map(|proxy| ("proxy", Zeroizing::new(proxy.to_owned())));
        let variables = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
        let proxy = match own.or_else(|| variables.into_iter().find_map(set)) {
            Some((_, proxy)) if matches!(proxy.trim(), "" | "none" | "direct") => None,
            Some((whence, proxy)) => Some(proxy.parse().map_err(|what| ProxySettingError { whence, what })?),
            None => None,
        };
        let no_proxy = match no_proxy {
            Some(list) => NoProxy::parse(list),
            None => ["no_proxy", "NO_PROXY"]
                .into_iter()
                .find_map(set)
                .map_or_else(NoProxy::default, |(_, list)| NoProxy::parse(&list)),
        };
        Ok(Self { proxy, no_proxy })
    }

    /// The proxy for `host` (name or address, without brackets) at `port`.
    pub fn proxy_for(&self, host: &str, port: u16) -> Option<&Proxy> {
        let here = host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        self.proxy.as_ref().filter(|_| !here && !self.no_proxy.contains(host, port))
    }
}

fn network(text: &str) -> Option<IpNet> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse()
        .ok()
        .or_else(|| bare.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical())))
}

/// Host without brackets, and what stands behind its colon; `None`: no end of brackets.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    let Some(rest) = authority.strip_prefix('[') else {
        return Some(match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        });
    };
    match rest.split_once(']')? {
        (host, "") => Some((host, None)),
        (host, port) => Some((host, Some(port.strip_prefix(':')?))),
    }
}

fn is_host(host: &str) -> bool {
    (1..=MAX_HOST).contains(&host.len())
        && host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@[]\\%<>\"".contains(&byte))
        && (!host.contains(':') || host.parse::<IpAddr>().is_ok())
}

fn credentials(userinfo: &str) -> Result<Credentials, ProxyUrlError> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let read = |text: &str| {
        let plain = percent_decoded(text)?;
        let sendable = plain.reveal().len() <= MAX_CREDENTIAL && !plain.reveal().contains(char::is_control);
        sendable.then_some(plain)
    };
    let both = read(user).zip(read(password));
    let (user, password) = both.ok_or(ProxyUrlError::Credentials)?;
    // HTTP's Basic has no way to say it (RFC 7617 §2).
    if user.is_empty() || user.reveal().contains(':') {
        return Err(ProxyUrlError::Credentials);
    }
    Ok(Credentials { user, password })
}

/// UTF-8 text from `%XX`.
fn percent_decoded(text: &str) -> Option<Secret> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    // As long as it can get: a buffer that grows would leave copies of a password behind.
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        match *rest {
            [] => break,
            [b'%', high, low, ref after @ ..] => {
                bytes.push(digit(high)? << 4 | digit(low)?);
                rest = after;
            }
            [b'%', ..] => return None,
            [byte, ref after @ ..] => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok().map(Secret::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxy(text: &str) -> Proxy {
        text.parse().unwrap()
    }

    #[test]
    fn reads_urls_with_their_defaults() {
        for (text, shown) in [
            ("http://proxy.example", "http://proxy.example:80"),
            ("https://Proxy.Example/", "https://proxy.example:443"),
            ("socks5h://10.0.0.1", "socks5://10.0.0.1:1080"),
            ("socks5://[fd00::1]:9050", "socks5://[fd00::1]:9050"),
            (" proxy.example:3128 ", "http://proxy.example:3128"),
        ] {
            assert_eq!(proxy(text).to_string(), shown);
        }
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let proxy = proxy("http://jane%40corp:h%3ash%C3%BC@proxy.example:3128");
        let credentials = proxy.credentials.clone().unwrap();
        assert_eq!((credentials.user.reveal(), credentials.password.reveal()), ("jane@corp", "h:shü"));
        for shown in [format!("{proxy}"), format!("{proxy:?}"), format!("{proxy:#?}")] {
            assert!(!shown.contains("jane") && !shown.contains("h:sh"), "{shown}");
        }
    }

    #[test]
    fn says_what_is_wrong_without_repeating_it() {
        for (text, error) in [
            ("socks4://a", ProxyUrlError::Scheme),
            ("http://", ProxyUrlError::Host),
            ("http://a b", ProxyUrlError::Host),
            ("http://[::1", ProxyUrlError::Host),
            ("http://1::2::3", ProxyUrlError::Host),
            ("http://a:0", ProxyUrlError::Port),
            ("http://a:99999", ProxyUrlError::Port),
            ("http://a:1/x", ProxyUrlError::Path),
            ("http://u:%zz@a", ProxyUrlError::Credentials),
            ("http://u:%0d%0a@a", ProxyUrlError::Credentials),
            ("http://a%3ab:c@h", ProxyUrlError::Credentials),
            ("http://:secret@h", ProxyUrlError::Credentials),
        ] {
            assert_eq!(text.parse::<Proxy>(), Err(error), "{text}");
        }
        let long = format!("http://u:{}@h", "x".repeat(256));
        assert_eq!(long.parse::<Proxy>(), Err(ProxyUrlError::Credentials));
    }

    #[test]
    fn exceptions_are_names_with_what_is_below_them_addresses_and_networks() {
        let list = NoProxy::parse(
            "example.com, .corp.local,10.0.0.0/8,192.0.2.7 [2001:db8::]/32,*.lan,relay.example:8443,fd00::/8,.",
        );
        for (host, port) in [
            ("example.com", 443),
            ("a.b.EXAMPLE.com", 443),
            ("x.corp.local.", 1),
            ("corp.local", 1),
            ("10.255.0.1", 443),
            ("::ffff:10.0.0.1", 443),
            ("192.0.2.7", 80),
            ("box.lan", 80),
            ("relay.example", 8443),
            ("fd12::1", 443),
        ] {
            assert!(list.contains(host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("notexample.com", 443),
            ("relay.example", 443),
            ("11.0.0.1", 443),
            ("192.0.2.8", 80),
            ("com", 443),
        ] {
            assert!(!list.contains(host, port), "{host}:{port}");
        }
        assert!(NoProxy::parse("*").contains("anything.example", 1));
        assert!(!NoProxy::default().contains("example.com", 443));
    }

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        let rules = ProxyRules { proxy: Some(proxy("http://p")), no_proxy: NoProxy::parse("b.example") };
        for host in ["localhost", "127.0.0.1", "127.8.8.8", "::1", "b.example"] {
            assert_eq!(rules.proxy_for(host, 443), None, "{host}");
        }
        assert!(rules.proxy_for("a.example", 443).is_some());
        assert_eq!(ProxyRules::default().proxy_for("a.example", 443), None);
    }

    /// What `proxy` and `no_proxy` make of these variables: the proxy, and whether it leads to a.example and b.example.
    fn settings(
        proxy: Option<&str>,
        no_proxy: Option<&str>,
        variables: &[(&str, &str)],
    ) -> (Option<String>, bool, bool) {
        let look_up = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let rules = ProxyRules::from_settings(proxy, no_proxy, &look_up).unwrap();
        let proxied = |host| rules.proxy_for(host, 443).is_some();
        (rules.proxy.as_ref().map(ToString::to_string), proxied("a.example"), proxied("b.example"))
    }

    #[test]
    fn settings_win_over_variables_and_lower_case_over_upper() {
        let variables = [("HTTPS_PROXY", "http://env:1"), ("ALL_PROXY", "x"), ("NO_PROXY", "a.example")];
        let shown = |text: &str| Some(text.to_owned());
        assert_eq!(settings(None, None, &variables), (shown("http://env:1"), false, true));
        let own = settings(Some("socks5://own:2"), Some("b.example"), &variables);
        assert_eq!(own, (shown("socks5://own:2"), true, false));
        for none in ["none", "direct", " "] {
            assert_eq!(settings(Some(none), None, &variables), (None, false, false));
        }
        let lower = [("https_proxy", " "), ("all_proxy", "c"), ("ALL_PROXY", "d"), ("no_proxy", "*")];
        assert_eq!(settings(None, None, &lower), (shown("http://c:80"), false, false));
        assert_eq!(settings(None, None, &[]), (None, false, false));
    }

    #[test]
    fn a_setting_that_is_no_proxy_is_refused_by_name_and_not_shown() {
        let variable = |name: &str| (name == "ALL_PROXY").then(|| "socks4://jane:hush@p".to_owned());
        let error = ProxyRules::from_settings(None, None, &variable).unwrap_err().to_string();
        assert!(error.starts_with("ALL_PROXY is no proxy: ") && error.contains("socks5://"), "{error}");
        let error = ProxyRules::from_settings(Some("http://jane:hush@"), None, &variable).unwrap_err();
        assert!(error.whence == "proxy" && !format!("{error} {error:?}").contains("hush"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_reads_back(text in "(http|socks5)://[!-~]{0,40}") {
            if let Ok(proxy) = text.parse::<Proxy>() {
                let again: Proxy = proxy.to_string().parse().unwrap();
                prop_assert_eq!(again, Proxy { credentials: None, ..proxy });
            }
        }

        #[test]
        fn any_list_is_read(text in ".{0,80}", host in "[ -~]{0,20}") {
            let _ = NoProxy::parse(&text).contains(&host, 443);
        }
    }
}
