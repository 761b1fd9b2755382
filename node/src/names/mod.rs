//! Names: every node is `NAME.NETWORK.edge.internal`, by a small resolver in the daemon (`docs/routing.md`).
//!
//! [`zone`] knows the names, [`server`] answers on this machine's addresses in the mesh, [`system`] has the system ask there.

mod server;
pub(crate) mod system;
mod zone;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use meshdp::proto::node::NodeStatus;

use self::server::{Listener, PORT, Shared};
use self::zone::Zone;
use crate::config::{NameMode, NameSettings};
use crate::host::journal::Journal;

/// See the [module](self).
pub(crate) struct Names {
    settings: NameSettings,
    interface: String,
    shared: Rc<Shared>,
    listeners: BTreeMap<IpAddr, Listener>,
    /// As the system was last told: servers and domains.
    told: Option<(Vec<IpAddr>, Vec<String>)>,
}

impl Names {
    pub(crate) fn new(settings: &NameSettings, interface: &str) -> anyhow::Result<Self> {
        let upstream = settings.upstream.iter().map(|server| SocketAddr::new(*server, PORT)).collect();
        let shared = Rc::new(Shared::new(Zone::new(&settings.suffix)?, upstream));
        Ok(Self {
            settings: settings.clone(),
            interface: interface.to_owned(),
            shared,
            listeners: BTreeMap::new(),
            told: None,
        })
    }

    /// Whether there are any.
    pub(crate) fn wanted(&self) -> bool {
        self.settings.mode != NameMode::Off
    }

    /// Takes a new picture of the networks: names, and own addresses, which are on the interface already.
    pub(crate) async fn update(&mut self, status: &NodeStatus, journal: &mut Journal) {
        self.shared.zone.borrow_mut().fill(status);
        let addresses: Vec<IpAddr> =
            status.memberships.iter().flat_map(|m| m.addresses.iter().map(ipnet::IpNet::addr)).collect();
        self.listeners.retain(|address, _| addresses.contains(address));
        for &address in &addresses {
            if self.listeners.contains_key(&address) {
                continue;
            }
            match Listener::open(address, &self.shared).await {
                Ok(listener) => drop(self.listeners.insert(address, listener)),
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    tracing::info!(%address, "no names: a port below 1024 needs CAP_NET_BIND_SERVICE");
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "no names on this address: does another resolver listen on all addresses?");
                }
            }
        }
        let servers: Vec<IpAddr> =
            addresses.into_iter().filter(|address| self.listeners.contains_key(address)).collect();
        let domains = self.shared.zone.borrow().search_domains();
        if self.told.as_ref() != Some(&(servers.clone(), domains.clone())) {
            self.told = Some((servers.clone(), domains.clone()));
            if let Err(error) = self.tell_system(&servers, &domains, journal) {
                tracing::warn!("the system does not ask for the mesh's names: {error:#}");
            }
        }
    }

    fn tell_system(
        &self,
        servers: &[IpAddr],
        domains: &[String],
        journal: &mut Journal,
    ) -> anyhow::Result<()> {
        if servers.is_empty() {
            return Ok(());
        }
        let suffix = self.shared.zone.borrow().suffix();
        let resolved = match self.settings.mode {
            NameMode::Resolved => true,
            NameMode::Auto => system::has_resolved(),
            NameMode::ResolvConf => {
                let upstream = system::take_over(
                    journal,
                    &self.settings.resolv_conf,
                    &self.interface,
                    servers,
                    domains,
                )?;
                if self.settings.upstream.is_empty() {
                    *self.shared.upstream.borrow_mut() = upstream;
                }
                tracing::info!(file = %self.settings.resolv_conf.display(), suffix, "names by resolv.conf");
                return Ok(());
            }
            NameMode::Off | NameMode::Serve => false,
        };
        if resolved {
            let mut all = domains.to_vec();
            all.push(format!("~{suffix}"));
            system::tell_resolved(&self.interface, servers, &all)?;
            tracing::info!(suffix, "names by systemd-resolved");
        } else {
            tracing::info!(
                ?servers,
                suffix,
                "names are answered here; the system asks only when it is told to (--names)"
            );
        }
        Ok(())
    }
}
