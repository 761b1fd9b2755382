//! What the system should be told before many nodes come: limits of the kernel that will hurt, each with what to do about it.
//!
//! [`Facts`] are read from the machine, [`advise`] compares them with the configuration and is pure. Nothing is said about what is well.

use std::fs;

use meshdp::engine::Prefer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Settings;

/// Descriptors besides connections: rings, listeners, logs, the link to the controller.
const OTHER_FILES: u64 = 256;
/// As many connections as the engine's listeners let wait.
const BACKLOG: u64 = 4096;
/// One connection at 1 Gbit/s over a round trip of 30 ms.
const TCP_BUFFER: u64 = 4 << 20;
/// A burst of STUN requests.
const UDP_BUFFER: u64 = 1 << 20;

/// What this machine allows; `None`: it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The hard limit of `ulimit -n`.
    pub(crate) open_files: Option<u64>,
    pub(crate) somaxconn: Option<u64>,
    /// The third number each.
    pub(crate) tcp_rmem_max: Option<u64>,
    pub(crate) tcp_wmem_max: Option<u64>,
    pub(crate) rmem_max: Option<u64>,
    /// 0: allowed, 1: for a group, 2: for nobody.
    pub(crate) io_uring_disabled: Option<u64>,
    /// Entries of the connection tracking table, when it is in use.
    pub(crate) conntrack_max: Option<u64>,
}

impl Facts {
    /// Reads them.
    pub(crate) fn of_this_machine() -> Self {
        let number = |path: &str, column: usize| -> Option<u64> {
            fs::read_to_string(format!("/proc/sys/{path}")).ok()?.split_whitespace().nth(column)?.parse().ok()
        };
        Self {
            open_files: Some(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)),
            somaxconn: number("net/core/somaxconn", 0),
            tcp_rmem_max: number("net/ipv4/tcp_rmem", 2),
            tcp_wmem_max: number("net/ipv4/tcp_wmem", 2),
            rmem_max: number("net/core/rmem_max", 0),
            io_uring_disabled: number("kernel/io_uring_disabled", 0),
            conntrack_max: number("net/netfilter/nf_conntrack_max", 0),
        }
    }
}

/// Takes as many descriptors as the hard limit allows: the soft one is low for programs that use select(2).
pub(crate) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // If not, the advice says what follows from it.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// What will hurt with these settings, and what to do.
pub(crate) fn advise(settings: &Settings, facts: &Facts) -> Vec<String> {
    let relay = &settings.relay;
    let mut advice = Vec::new();
    let below = |fact: Option<u64>, least: u64| fact.filter(|fact| *fact < least);
    let connections = relay.limits.max_connections as u64;
    if !relay.listeners.is_empty() {
        let files = connections.saturating_add(OTHER_FILES);
        if let Some(have) = below(facts.open_files, files) {
            advice.push(format!(
                "open files are limited to {have}, and limits.max_connections is {connections}: raise the limit (LimitNOFILE={files} in the systemd \
                 unit, or `ulimit -Hn {files}`), or lower limits.max_connections"
            ));
        }
        if let Some(have) = below(facts.somaxconn, BACKLOG) {
            advice.push(format!(
                "net.core.somaxconn is {have}: when many nodes come back at once, more than that are turned away for a second; \
                 `sysctl -w net.core.somaxconn={BACKLOG}`"
            ));
        }
        for (name, have) in
            [("net.ipv4.tcp_rmem", facts.tcp_rmem_max), ("net.ipv4.tcp_wmem", facts.tcp_wmem_max)]
        {
            if let Some(have) = below(have, TCP_BUFFER) {
                advice.push(format!(
                    "{name} ends at {have} bytes: one connection over a round trip of 100 ms gets {} Mbit/s at most; \
                     `sysctl -w {name}=\"4096 131072 {TCP_BUFFER}\"`",
                    have * 8 / 100_000
                ));
            }
        }
        if let Some(have) = facts.io_uring_disabled.filter(|have| *have > 0 && relay.driver != Prefer::Epoll)
        {
            let who = if have == 1 { "for most users" } else { "for everybody" };
            advice.push(format!(
                "kernel.io_uring_disabled is {have}, io_uring is forbidden {who}: epoll does the same with a little more CPU; \
                 `sysctl -w kernel.io_uring_disabled=0`, or relay.driver = \"epoll\" to say that it is meant"
            ));
        }
        if let Some(have) = below(facts.conntrack_max, connections.saturating_add(connections / 4)) {
            advice.push(format!(
                "the connection tracking table has {have} entries, and limits.max_connections is {connections}: a full table drops packets of everybody; \
                 `sysctl -w net.netfilter.nf_conntrack_max={}`, or let the firewall not track the relay's ports (nft: notrack)",
                connections.saturating_mul(2)
            ));
        }
    }
    if relay.stun.is_some()
        && let Some(have) = below(facts.rmem_max, UDP_BUFFER)
    {
        advice.push(format!(
            "net.core.rmem_max is {have}: bursts of STUN requests beyond that are lost; `sysctl -w net.core.rmem_max={UDP_BUFFER}`"
        ));
    }
    advice
}

#[cfg(test)]
mod tests {
    use meshdp::engine::relay::{Listener, RelayConfig};

    use super::*;
    use crate::config::LogFormat;

    fn settings() -> Settings {
        let mut relay = RelayConfig::default();
        relay.listeners.push(Listener::new("[::]:443".parse().unwrap(), None));
        relay.stun = Some("[::]:3478".parse::<std::net::SocketAddr>().unwrap().into());
        Settings {
            relay,
            controller: None,
            admin: None,
            certificate: None,
            log_level: "info".into(),
            log_format: LogFormat::Text,
            drain: std::time::Duration::from_secs(5),
            notes: Vec::new(),
        }
    }

    #[test]
    fn what_is_well_or_unknown_is_not_talked_about() {
        let well = Facts {
            open_files: Some(1 << 20),
            somaxconn: Some(4096),
            tcp_rmem_max: Some(6 << 20),
            tcp_wmem_max: Some(4 << 20),
            rmem_max: Some(1 << 20),
            io_uring_disabled: Some(0),
            conntrack_max: Some(1 << 18),
        };
        assert_eq!(advise(&settings(), &well), Vec::<String>::new());
        assert_eq!(advise(&settings(), &Facts::default()), Vec::<String>::new());
    }

    #[test]
    fn what_will_hurt_is_named_with_the_command_that_helps() {
        let poor = Facts {
            open_files: Some(1024),
            somaxconn: Some(128),
            tcp_rmem_max: Some(1 << 20),
            tcp_wmem_max: Some(1 << 20),
            rmem_max: Some(212_992),
            io_uring_disabled: Some(2),
            conntrack_max: Some(65_536),
        };
        let advice = advise(&settings(), &poor);
        for (line, words) in advice.iter().zip([
            "LimitNOFILE=100256",
            "sysctl -w net.core.somaxconn=4096",
            "sysctl -w net.ipv4.tcp_rmem=\"4096 131072 4194304\"",
            "sysctl -w net.ipv4.tcp_wmem=",
            "relay.driver = \"epoll\"",
            "sysctl -w net.netfilter.nf_conntrack_max=200000",
            "sysctl -w net.core.rmem_max=1048576",
        ]) {
            assert!(line.contains(words), "{line}\n  should say: {words}");
        }
        assert_eq!(advice.len(), 7);
        assert!(advice[2].contains("83 Mbit/s"), "{}", advice[2]);
        let mut stun_only = settings();
        stun_only.relay.listeners.clear();
        assert_eq!(advise(&stun_only, &poor).len(), 1);
        let mut small = settings();
        small.relay.limits.max_connections = 500;
        small.relay.driver = Prefer::Epoll;
        assert_eq!(advise(&small, &poor).len(), 4);
    }
}
