//! What the node changes on its machine beyond its own interface: rules and routes, forwarding, SNAT; and what it looks at: whether the LANs that it advertises
//! are there (`docs/routing.md`).
//!
//! ```text
//! subnets, exit, own addresses ─┐
//! the kernel's links and routes ┼─► plan ──► kernel         (rules, routes)
//! probes of hosts on the LAN ───┴─► health ─► gateway, nft  (forwarding, SNAT, MSS)
//!                                        └──► the peers: which subnets are down
//! ```
//!
//! [`clean`] undoes all of it, also what a daemon that was killed has left: at the end, at the next start, and by `edgelink down`.

mod gateway;
mod health;
pub(crate) mod journal;
mod kernel;
mod nft;
mod plan;
pub(crate) mod privilege;
pub(crate) mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use meshdp::proto::id::NodeId;
use meshdp::proto::node::{ExitStatus, SubnetRoute};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use self::gateway::{forward, is_forwarding, mind_marks, strict_reverse_path};
use self::health::{Health, Picture};
use self::journal::Journal;
use self::kernel::Kernel;
use self::nft::Table;
use self::plan::{Exit, Numbers, Plan, Wanted, is_six, plan};
use crate::config::Settings;

/// Changes come in bursts.
const SETTLE: Duration = Duration::from_millis(20);
/// Looked at this often even when the kernel says nothing.
const LOOK: Duration = Duration::from_secs(5);

/// What was done.
#[derive(Debug)]
pub(crate) struct Summary {
    /// Subnets that are routed to peers.
    pub(crate) subnets: Vec<IpNet>,
    /// Advertised ones that cannot be reached.
    pub(crate) down: Vec<IpNet>,
    /// The exit that is wanted, and what it takes.
    pub(crate) exit: Option<(String, Vec<IpNet>)>,
}

/// See the [module](self).
pub(crate) struct Host {
    interface: String,
    index: u32,
    numbers: Numbers,
    kernel: Kernel,
    changes: watch::Receiver<u64>,
    probes: mpsc::Receiver<(IpAddr, bool)>,
    clock: Interval,
    journal: Journal,
    health: Health,
    gateway: bool,
    snat: bool,
    offers_six: bool,
    offers_four: bool,
    accept_routes: bool,
    wanted: Wanted,
    /// As the machine has told it.
    subnets: Vec<SubnetRoute>,
    exit: Option<ExitStatus>,
    exit_name: Option<String>,
    addresses: BTreeMap<NodeId, Vec<IpNet>>,
    /// What was last done.
    picture: Picture,
    table: Table,
    /// Said before.
    errors: BTreeSet<String>,
}

impl Host {
    /// Takes away what an earlier daemon left, and goes on from there. In a tokio runtime.
    pub(crate) async fn open(settings: &Settings, interface: &str) -> anyhow::Result<Self> {
        let (journal, found) = clean(&settings.state_dir, interface).await?;
        if found {
            tracing::info!("took away what an earlier daemon had left");
        }
        let (kernel, changes) = Kernel::open()?;
        let index =
            kernel.links().await?.into_iter().find(|(_, name)| name == interface).map(|(index, _)| index);
        let (told, probes) = mpsc::channel(16);
        for probe in &settings.gateway.probes {
            tokio::spawn(probe::watch(*probe, told.clone()));
        }
        let mut clock = interval(LOOK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let offers: Vec<IpNet> = settings.advertise_routes.iter().map(|route| route.cidr.trunc()).collect();
        let exit = settings.exit.node.is_some().then(|| Exit {
            routes: BTreeMap::new(),
            outside: settings.exit.outside.iter().copied().collect(),
            lan: settings.exit.allow_lan,
        });
        Ok(Self {
            interface: interface.to_owned(),
            index: index.unwrap_or_default(),
            numbers: Numbers::of(interface),
            kernel,
            changes,
            probes,
            clock,
            journal,
            gateway: settings.gateway.enabled,
            snat: settings.gateway.snat,
            offers_six: offers.iter().any(|net| is_six(*net)),
            offers_four: offers.iter().any(|net| !is_six(*net)),
            health: Health::new(offers, settings.gateway.lan_interface.clone()),
            accept_routes: settings.accept_routes,
            wanted: Wanted { exit, ..Wanted::default() },
            subnets: Vec::new(),
            exit: None,
            exit_name: settings.exit.node.clone(),
            addresses: BTreeMap::new(),
            picture: Picture::default(),
            table: Table::default(),
            errors: BTreeSet::new(),
        })
    }

    /// Own addresses by membership; they are on the interface already.
    pub(crate) fn set_addresses(&mut self, addresses: &BTreeMap<NodeId, Vec<IpNet>>) {
        self.addresses.clone_from(addresses);
    }

    /// Subnets behind peers.
    pub(crate) fn set_subnets(&mut self, subnets: Vec<SubnetRoute>) {
        self.subnets = if self.accept_routes { subnets } else { Vec::new() };
    }

    /// What there is of the exit.
    pub(crate) fn set_exit(&mut self, exit: Option<ExitStatus>) {
        self.exit = exit;
    }

    /// For others who change the machine.
    pub(crate) const fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// For people.
    pub(crate) fn summary(&self) -> Summary {
        let routes = || self.exit.as_ref().map(|exit| exit.routes.clone()).unwrap_or_default();
        Summary {
            subnets: self.subnets.iter().map(|subnet| subnet.net).collect(),
            down: self.picture.down.clone(),
            exit: self.exit_name.as_ref().map(|name| (name.clone(), routes())),
        }
    }

    /// Until there is a reason for [`Host::refresh`]. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            tokio::select! {
                _ = self.clock.tick() => {}
                Some((host, alive)) = self.probes.recv() => {
                    self.health.probed(host, alive);
                    return;
                }
                Ok(()) = self.changes.changed() => {}
            }
            if !self.health.is_empty() || self.wanted.exit.is_some() || !self.subnets.is_empty() {
                return;
            }
        }
    }

    /// Brings the machine in line; `Some`: the advertised subnets that cannot be reached are others than before.
    pub(crate) async fn refresh(&mut self) -> Option<Vec<IpNet>> {
        sleep(SETTLE).await;
        let mut errors = Vec::new();
        let news = match self.look(&mut errors).await {
            Ok(news) => news,
            Err(error) => {
                errors.push(error);
                None
            }
        };
        let now: BTreeSet<String> = errors.iter().map(|error| format!("{error:#}")).collect();
        for error in now.difference(&self.errors) {
            tracing::error!("{error}");
        }
        self.errors = now;
        news
    }

    async fn look(&mut self, errors: &mut Vec<anyhow::Error>) -> anyhow::Result<Option<Vec<IpNet>>> {
        self.want();
        let index = Some(self.index);
        let routes = self.kernel.routes(self.numbers, index).await?;
        let plan = plan(self.numbers, &self.wanted, &routes.own(index));
        let picture = if self.health.is_empty() {
            Picture::default()
        } else {
            self.health.look(&routes, &self.kernel.links().await?, index)
        };
        let gateway = self.gateway && !self.health.is_empty();
        if gateway && picture.lans != self.picture.lans {
            errors.extend(forward(
                &mut self.journal,
                &self.interface,
                &picture.lans,
                self.offers_four,
                self.offers_six,
            ));
        }
        let mark_answers = !plan.rules.is_empty() && strict_reverse_path();
        let table = Table { gateway, snat: gateway && self.snat, mark_answers };
        if table != self.table {
            if mark_answers {
                errors.extend(mind_marks(&mut self.journal).err());
            } else {
                self.journal.restore_sysctls(|path| !is_forwarding(path));
            }
            self.journal.note_table(true);
            match nft::write(&self.interface, &table) {
                Ok(()) => self.table = table,
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.kernel.apply(self.numbers, &plan, &routes, index).await);
        let news = (picture.down != self.picture.down).then(|| picture.down.clone());
        if let Some(down) = &news {
            if down.is_empty() {
                tracing::info!("all advertised subnets can be reached");
            } else {
                tracing::warn!(
                    ?down,
                    "these advertised subnets cannot be reached: peers take other gateways"
                );
            }
        }
        self.picture = picture;
        Ok(news)
    }

    /// What the present facts ask for.
    fn want(&mut self) {
        let source = |own: NodeId, net: IpNet| {
            let addresses = self.addresses.get(&own)?;
            addresses.iter().map(IpNet::addr).find(|address| address.is_ipv6() == is_six(net))
        };
        // A subnet without an address of its family to send from: not reachable anyway.
        let with_source = |own: NodeId, net: IpNet| Some((net, Some(source(own, net)?)));
        let subnets = self.subnets.iter().filter_map(|subnet| with_source(subnet.own, subnet.net)).collect();
        let mesh = self.addresses.values().flatten().map(IpNet::trunc).collect();
        if let Some(wanted) = &mut self.wanted.exit {
            let exit = self.exit.as_ref();
            let routes = exit.into_iter().flat_map(|exit| exit.routes.iter().map(|net| (exit.own, *net)));
            wanted.routes = routes.filter_map(|(own, net)| with_source(own, net)).collect();
        }
        self.wanted.subnets = subnets;
        self.wanted.mesh = mesh;
    }

    /// Undoes all of it.
    pub(crate) async fn close(mut self) {
        let routes = self.kernel.routes(self.numbers, Some(self.index)).await;
        if let Ok(routes) = routes {
            for error in self.kernel.apply(self.numbers, &Plan::default(), &routes, Some(self.index)).await {
                tracing::warn!("{error:#}");
            }
        }
        undo(&mut self.journal, &self.interface);
    }
}

fn undo(journal: &mut Journal, interface: &str) {
    if journal.has_table() {
        match nft::remove(interface) {
            Ok(()) => journal.note_table(false),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }
    journal.restore_sysctls(|_| true);
    crate::names::system::restore(journal, interface);
}

/// Undoes what a daemon with this interface that is no more has left behind. `true`: there was something.
pub(crate) async fn clean(state_dir: &Path, interface: &str) -> anyhow::Result<(Journal, bool)> {
    let (kernel, _) = Kernel::open()?;
    let numbers = Numbers::of(interface);
    let routes = kernel.routes(numbers, None).await?;
    let ruled = kernel.has_rules(numbers).await?;
    for error in kernel.apply(numbers, &Plan::default(), &routes, None).await {
        tracing::warn!("{error:#}");
    }
    let mut journal = Journal::open(state_dir, interface);
    let found = ruled || !routes.is_clean() || !journal.is_empty();
    undo(&mut journal, interface);
    Ok((journal, found))
}
