//! The proxy on the way out: from the settings, else from the variables that other programs read, too.
//!
//! `proxy` may be a URL or `none`. Without it `HTTPS_PROXY` counts, then `ALL_PROXY`; without `no_proxy`, `NO_PROXY`. As with curl the names in lower case come first.

use anyhow::Context as _;
use meshdp::proto::dial::proxy::{NoProxy, Proxy, ProxyRules};

use super::Secret;
use crate::args::Overrides;

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct SystemProxy {
    /// The variable's name, and what it says.
    proxy: Option<(&'static str, Secret)>,
    no_proxy: Option<String>,
}

impl SystemProxy {
    pub(super) fn from_env() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    fn from(variable: impl Fn(&'static str) -> Option<String>) -> Self {
        let set = |name| variable(name).filter(|value| !value.trim().is_empty()).map(|value| (name, value));
        let proxy = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"].into_iter().find_map(set);
        let no_proxy = ["no_proxy", "NO_PROXY"].into_iter().find_map(set);
        Self {
            proxy: proxy.map(|(name, value)| (name, Secret(value))),
            no_proxy: no_proxy.map(|(_, value)| value),
        }
    }
}

/// The settings over what the environment says.
pub(super) fn merge(
    overrides: &Overrides,
    file: Option<&Secret>,
    file_exceptions: Option<Vec<String>>,
    system: &SystemProxy,
) -> anyhow::Result<ProxyRules> {
    let own = overrides.proxy.as_ref().or(file).map(|proxy| ("proxy", proxy));
    let proxy = match own.or(system.proxy.as_ref().map(|(name, proxy)| (*name, proxy))) {
        Some((_, proxy)) if matches!(proxy.0.trim(), "" | "none" | "direct") => None,
        // The text itself is not repeated: there may be a password.
        Some((whence, proxy)) => Some(proxy.0.parse::<Proxy>().with_context(|| {
            format!("{whence}: not the URL of a proxy (to go without one: --proxy none, or proxy = \"none\")")
        })?),
        None => None,
    };
    let exceptions = match (overrides.no_proxy.as_slice(), file_exceptions, &system.no_proxy) {
        ([], None, Some(list)) => list.clone(),
        ([], None, None) => String::new(),
        ([], Some(list), _) => list.join(","),
        (list, ..) => list.join(","),
    };
    Ok(ProxyRules { proxy, no_proxy: NoProxy::parse(&exceptions) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(variables: &'static [(&str, &str)]) -> SystemProxy {
        SystemProxy::from(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn flag(proxy: &str) -> Overrides {
        Overrides { proxy: Some(Secret(proxy.to_owned())), ..Overrides::default() }
    }

    fn shown(rules: &ProxyRules) -> Option<String> {
        rules.proxy.as_ref().map(ToString::to_string)
    }

    #[test]
    fn settings_win_over_the_environment() {
        let system = system(&[
            ("HTTPS_PROXY", "http://env:1"),
            ("NO_PROXY", "a.example"),
            ("ALL_PROXY", "socks5://x"),
        ]);
        let none = Overrides::default();
        let rules = merge(&none, None, None, &system).unwrap();
        assert_eq!(shown(&rules).as_deref(), Some("http://env:1"));
        assert!(rules.proxy_for("a.example", 443).is_none() && rules.proxy_for("b.example", 443).is_some());
        let file = || Some(Secret("socks5://file:2".to_owned()));
        let rules = merge(&none, file().as_ref(), Some(vec!["b.example".to_owned()]), &system).unwrap();
        assert_eq!(shown(&rules).as_deref(), Some("socks5://file:2"));
        assert!(rules.proxy_for("a.example", 443).is_some() && rules.proxy_for("b.example", 443).is_none());
        let rules = merge(&flag("flag:3"), file().as_ref(), None, &system).unwrap();
        assert_eq!(shown(&rules).as_deref(), Some("http://flag:3"));
        for none in ["none", "direct", " "] {
            assert_eq!(merge(&flag(none), file().as_ref(), None, &system).unwrap().proxy, None);
        }
    }

    #[test]
    fn lower_case_and_https_come_first() {
        for (variables, wanted) in [
            (system(&[("https_proxy", "a"), ("HTTPS_PROXY", "b")]), "http://a:80"),
            (system(&[("https_proxy", ""), ("all_proxy", "c"), ("ALL_PROXY", "d")]), "http://c:80"),
        ] {
            let rules = merge(&Overrides::default(), None, None, &variables).unwrap();
            assert_eq!(shown(&rules).as_deref(), Some(wanted));
        }
    }

    #[test]
    fn a_url_that_is_none_is_refused_by_name_and_not_shown() {
        let broken = system(&[("HTTPS_PROXY", "socks4://jane:hush@p")]);
        let error = format!("{:#}", merge(&Overrides::default(), None, None, &broken).unwrap_err());
        assert!(error.starts_with("HTTPS_PROXY: ") && error.contains("socks5://"), "{error}");
        let error = format!("{:#}", merge(&flag("http://jane:hush@"), None, None, &broken).unwrap_err());
        assert!(error.starts_with("proxy: ") && !error.contains("hush"), "{error}");
    }
}
