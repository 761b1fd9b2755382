//! The configuration file as it stands, and variables and flags over it.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use meshdp::proto::wire::control::Secret;
use meshdp::proto::wire::control::server::TokenAlgorithm;
use serde::Deserialize;

use crate::args::Args;

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    pub(super) controller: Controller,
    pub(super) jwt: Jwt,
    pub(super) relay: Relay,
    pub(super) stun: Stun,
    pub(super) mesh: Mesh,
    pub(super) admin: Admin,
    pub(super) limits: LimitsSection,
    pub(super) log: Log,
    /// A URL, or `none`.
    pub(super) proxy: Option<Secret>,
    pub(super) no_proxy: Option<Vec<String>>,
    pub(super) state_dir: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Controller {
    pub(super) url: Option<String>,
    pub(super) token: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) tls_pin: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Jwt {
    pub(super) algorithm: Option<TokenAlgorithm>,
    pub(super) secret: Option<String>,
    pub(super) public_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Relay {
    pub(super) enabled: Option<bool>,
    pub(super) id: Option<u16>,
    pub(super) listen: Option<Listen>,
    pub(super) ws_data: Option<String>,
    pub(super) ws_mesh: Option<String>,
    pub(super) tls: Option<TlsFiles>,
    pub(super) data_url: Option<String>,
    pub(super) mesh_url: Option<String>,
    pub(super) workers: Option<usize>,
    pub(super) behind_proxy: Option<bool>,
    pub(super) proxy_protocol: Option<bool>,
    #[serde(deserialize_with = "meshdp::config::networks")]
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) client_address: Option<String>,
    pub(super) driver: Option<String>,
}

/// `"0.0.0.0:443"`, with what stands beside it, or a list of listeners.
#[derive(Clone, Debug)]
pub(super) enum Listen {
    One(String),
    Many(Vec<ListenTable>),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListenTable {
    pub(super) address: String,
    pub(super) tls: Option<bool>,
    pub(super) behind_proxy: bool,
    pub(super) proxy_protocol: bool,
}

impl<'de> Deserialize<'de> for Listen {
    /// By hand, so that an error names the key and the place: serde's untagged enums forget both.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Listen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string such as \"0.0.0.0:443\" or a list of tables with address")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listen, E> {
                Ok(Listen::One(text.to_owned()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, list: A) -> Result<Listen, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list)).map(Listen::Many)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsFiles {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Stun {
    pub(super) enabled: Option<bool>,
    pub(super) listen: Option<String>,
    #[serde(deserialize_with = "meshdp::config::address")]
    pub(super) external_ip: Option<IpAddr>,
    /// For NAT behaviour discovery (RFC 5780), with a second port.
    #[serde(deserialize_with = "meshdp::config::address")]
    pub(super) secondary_ip: Option<IpAddr>,
    /// What `secondary_ip` is on this machine, when a cloud translates it.
    #[serde(deserialize_with = "meshdp::config::address")]
    pub(super) secondary_listen: Option<IpAddr>,
    pub(super) secondary_port: Option<u16>,
    pub(super) requests_per_s: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mesh {
    pub(super) peers: Vec<Peer>,
    pub(super) ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    pub(super) id: u16,
    pub(super) url: String,
    pub(super) token: Option<String>,
    pub(super) tls_pin: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) enabled: Option<bool>,
    pub(super) listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LimitsSection {
    pub(super) handshake_timeout_s: Option<f64>,
    pub(super) max_connections: Option<usize>,
    pub(super) max_unauthenticated: Option<usize>,
    pub(super) max_unauthenticated_per_address: Option<usize>,
    pub(super) max_memberships: Option<usize>,
    pub(super) max_connections_per_address: Option<usize>,
    pub(super) connections_per_s_per_address: Option<u32>,
    pub(super) connection_burst_per_address: Option<u32>,
    pub(super) node_up: Option<RateSection>,
    pub(super) node_down: Option<RateSection>,
    pub(super) address_up: Option<RateSection>,
    pub(super) address_down: Option<RateSection>,
    pub(super) rate_burst_ms: Option<u64>,
    pub(super) queue_bytes: Option<usize>,
    pub(super) queue_total_bytes: Option<usize>,
    pub(super) queue_age_ms: Option<u64>,
    pub(super) drain_s: Option<f64>,
}

/// A limit of rate; what is absent or 0 limits nothing.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RateSection {
    pub(super) bytes_per_s: u64,
    pub(super) frames_per_s: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) level: Option<String>,
    pub(super) format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, an object per line.
    Json,
}

macro_rules! without_secrets {
    ($name:ident { $($shown:ident),* }) => {
        impl std::fmt::Debug for $name {
            /// Leaves secrets out.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    };
}
without_secrets!(Controller { url, ca_file, tls_pin });
without_secrets!(Jwt { algorithm });
without_secrets!(Peer { id, url, tls_pin });

/// Every variable, and where it goes.
pub(super) fn apply_environment(
    file: &mut File,
    environment: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<()> {
    fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> anyhow::Result<T>
    where
        T::Err: std::fmt::Display,
    {
        value.parse().map_err(|error| anyhow::anyhow!("{name}={value:?}: {error}"))
    }
    type Set = fn(&mut File, &str, String) -> anyhow::Result<()>;
    const VARIABLES: &[(&str, Set)] = &[
        ("EDGELINK_CONTROLLER_URL", |f, _, v| {
            f.controller.url = Some(v);
            Ok(())
        }),
        ("EDGELINK_CONTROLLER_TOKEN", |f, _, v| {
            f.controller.token = Some(v);
            Ok(())
        }),
        ("EDGELINK_CONTROLLER_CA_FILE", |f, _, v| {
            f.controller.ca_file = Some(v.into());
            Ok(())
        }),
        ("EDGELINK_CONTROLLER_TLS_PIN", |f, _, v| {
            f.controller.tls_pin = Some(v);
            Ok(())
        }),
        ("EDGELINK_JWT_ALGORITHM", |f, n, v| {
            let value = serde_json::Value::String(v);
            f.jwt.algorithm =
                Some(serde_json::from_value(value).with_context(|| format!("{n}: EdDSA, HS256 or RS256"))?);
            Ok(())
        }),
        ("EDGELINK_JWT_SECRET", |f, _, v| {
            f.jwt.secret = Some(v);
            Ok(())
        }),
        ("EDGELINK_JWT_PUBLIC_KEY", |f, _, v| {
            f.jwt.public_key = Some(v);
            Ok(())
        }),
        ("EDGELINK_RELAY_ENABLED", |f, n, v| {
            f.relay.enabled = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_RELAY_ID", |f, n, v| {
            f.relay.id = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_RELAY_LISTEN", |f, _, v| {
            f.relay.listen = Some(Listen::One(v));
            Ok(())
        }),
        ("EDGELINK_RELAY_DATA_URL", |f, _, v| {
            f.relay.data_url = Some(v);
            Ok(())
        }),
        ("EDGELINK_RELAY_MESH_URL", |f, _, v| {
            f.relay.mesh_url = Some(v);
            Ok(())
        }),
        ("EDGELINK_RELAY_WORKERS", |f, n, v| {
            f.relay.workers = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_RELAY_BEHIND_PROXY", |f, n, v| {
            f.relay.behind_proxy = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_RELAY_TRUSTED_PROXIES", |f, n, v| {
            let networks = v.split(',').map(|network| parsed(n, network.trim()));
            f.relay.trusted_proxies = networks.collect::<anyhow::Result<_>>()?;
            Ok(())
        }),
        ("EDGELINK_RELAY_CLIENT_ADDRESS", |f, _, v| {
            f.relay.client_address = Some(v);
            Ok(())
        }),
        ("EDGELINK_STUN_ENABLED", |f, n, v| {
            f.stun.enabled = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_STUN_LISTEN", |f, _, v| {
            f.stun.listen = Some(v);
            Ok(())
        }),
        ("EDGELINK_STUN_EXTERNAL_IP", |f, n, v| {
            f.stun.external_ip = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_STUN_SECONDARY_IP", |f, n, v| {
            f.stun.secondary_ip = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_ADMIN_ENABLED", |f, n, v| {
            f.admin.enabled = Some(parsed(n, &v)?);
            Ok(())
        }),
        ("EDGELINK_ADMIN_LISTEN", |f, _, v| {
            f.admin.listen = Some(v);
            Ok(())
        }),
        ("EDGELINK_PROXY", |f, _, v| {
            f.proxy = Some(v.into());
            Ok(())
        }),
        ("EDGELINK_NO_PROXY", |f, _, v| {
            f.no_proxy = Some(v.split(',').map(str::to_owned).collect());
            Ok(())
        }),
        ("EDGELINK_STATE_DIR", |f, _, v| {
            f.state_dir = Some(v.into());
            Ok(())
        }),
        ("EDGELINK_LOG_LEVEL", |f, _, v| {
            f.log.level = Some(v);
            Ok(())
        }),
        ("EDGELINK_DRIVER", |f, _, v| {
            f.relay.driver = Some(v);
            Ok(())
        }),
    ];
    for (name, set) in VARIABLES {
        if let Some(value) = environment(name) {
            set(file, name, value)?;
        }
    }
    Ok(())
}

/// Flags are over everything else.
pub(super) fn apply_flags(file: &mut File, args: &Args) {
    fn over<T: Clone>(flag: Option<&T>, to: &mut Option<T>) {
        if let Some(value) = flag {
            *to = Some(value.clone());
        }
    }
    over(args.listen.clone().map(Listen::One).as_ref(), &mut file.relay.listen);
    over(args.controller.as_ref(), &mut file.controller.url);
    over(args.token.as_ref(), &mut file.controller.token);
    over(args.admin.as_ref(), &mut file.admin.listen);
    over(args.state_dir.as_ref(), &mut file.state_dir);
    over(args.log_format.as_ref(), &mut file.log.format);
}
