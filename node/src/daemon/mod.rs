//! The daemon: joins control link, data thread, system and commands. One control thread, one data thread.
//!
//! ```text
//! controller ──link──▶ configuration ──▶ data thread ──reports──▶ addresses and routes of the system, requests to the controller
//! command line ──socket──▶ status, ping, down
//! ```
//!
//! Beside them: [`network`] watches the machine's addresses [`crate::mapping`] the router, and [`crate::discovery`] listens for peers nearby, all for the direct paths.
//!
//! Start: keys, TUN device, last known configuration; all of that works without the controller. End: connections are closed, the device goes and takes
//! addresses and routes along. What `kill -9` leaves behind is a socket file, which the next start replaces.

pub(crate) mod data;
mod keeping;
mod news;
mod serve;
mod setup;
pub(crate) mod store;
mod view;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use meshdp::engine::Prefer;
use meshdp::engine::dial::Outbound;
use meshdp::engine::node::{Command, Endpoints, Options, Report};
use meshdp::proto::id::NodeId;
use meshdp::proto::node::{Event, NodeStatus};
use meshdp::proto::wire::control::PublicKey;
use meshdp::proto::wire::control::node::{NodeUpdate, Settings as NetworkSettings};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::config::Settings;
use crate::control::link::{self, LinkEvent, LinkSettings, Request, SharedIdentity};
use crate::control::sign_in::Introduction;
use crate::discovery::Lan;
use crate::host::Host;
use crate::ipc::server::{Listener, MAX_CLIENTS};
use crate::keys::{Keys, create_private_dir};
use crate::mapping::{Mapper, Picture};
use crate::names::Names;
use crate::network::{self, Address};
use crate::system::System;
use data::DataThread;
use setup::{localise, node_settings, open_device, outbound, tls_config};
use store::{Owner, Store};
use view::View;

/// At most one snapshot of the configuration is written in this time.
const SNAPSHOT: Duration = Duration::from_secs(5);
/// From a change in the networks to the names that follow.
const LEARN: Duration = Duration::from_millis(200);
/// The clock of housekeeping.
const TICK: Duration = Duration::from_secs(1);

/// Runs the daemon until it is told to stop.
pub(crate) fn run(settings: Settings, socket: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let mut daemon = Daemon::start(settings, socket).await?;
        let end = daemon.serve().await;
        daemon.stop().await;
        end
    })
}

/// What commands and the main loop share; one thread.
struct Shared {
    settings: Settings,
    data: DataThread,
    identity: Rc<RefCell<SharedIdentity>>,
    view: RefCell<View>,
    stop: mpsc::Sender<crate::ipc::server::Client>,
    clients: Cell<usize>,
}

struct Daemon {
    shared: Rc<Shared>,
    listener: Listener,
    reports: mpsc::Receiver<Report>,
    link: mpsc::Sender<Request>,
    link_events: mpsc::Receiver<LinkEvent>,
    stops: mpsc::Receiver<crate::ipc::server::Client>,
    system: System,
    host: Host,
    names: Names,
    pictures: mpsc::Receiver<Box<NodeStatus>>,
    picture_wanted: mpsc::Sender<Box<NodeStatus>>,
    /// A picture is on its way.
    learning: Rc<Cell<bool>>,
    /// Of this machine, without the mesh's.
    interfaces: Option<watch::Receiver<BTreeSet<Address>>>,
    mapper: Option<Mapper>,
    lan: Option<Lan>,
    store: Store,
    /// By own node id.
    addresses: BTreeMap<NodeId, Vec<IpNet>>,
    network: NetworkSettings,
    snapshot_due: Option<Instant>,
    pins_kept: Vec<(NodeId, PublicKey)>,
    leaving: Vec<crate::ipc::server::Client>,
}

impl Daemon {
    async fn start(settings: Settings, socket: &Path) -> anyhow::Result<Self> {
        create_private_dir(&settings.state_dir)?;
        let listener = Listener::bind(socket)?;
        let keys = Keys::load_or_create(&settings.key_file, unix_now(), settings.post_quantum)?;
        let owner =
            Owner { controller: settings.controller.url.to_string(), machine_key: keys.machine().public() };
        let store = Store::new(&settings.state_dir, owner);
        let outbound = outbound(&settings)?;
        let tls = tls_config(&settings.controller, &outbound)?;
        if let Some(proxy) = &outbound.rules.proxy {
            tracing::info!(%proxy, "going through a proxy");
        }
        let mut config = store.config();
        if let Some(config) = &mut config {
            localise(&mut config.settings, &settings);
            tracing::info!(version = config.version, "starting with the last known configuration");
        }
        let network = config.as_ref().map_or_else(
            || {
                let mut network = NetworkSettings::default();
                localise(&mut network, &settings);
                network
            },
            |config| config.settings.clone(),
        );
        let device = open_device(&settings.interface).await?;
        let system = System::open(device.name()).await?;
        system.bring_up(network.mtu).await?;
        let mut host = Host::open(&settings, device.name()).await?;
        // What should go out at an exit must not go elsewhere, from now on.
        host.refresh().await;
        let config_version = config.as_ref().map_or(0, |config| config.version);
        let options = Options {
            node: node_settings(&settings, &keys, &store)?,
            config,
            driver: Prefer::from_env()?,
            outbound: Outbound::clone(&outbound),
        };
        let (data, reports) = DataThread::start(options, device)?;
        tracing::info!(interface = %settings.interface, mtu = network.mtu, driver = data.driver(), socket = %listener.path().display(), "up");

        let identity = Rc::new(RefCell::new(SharedIdentity { keys, config_version }));
        let introduction = Introduction {
            controller: settings.controller.url.host().to_owned(),
            hostname: settings.hostname.clone(),
            networks: settings.networks.clone(),
            enrolment_key: settings.enrolment_key.clone(),
            routes: settings.advertise_routes.clone(),
        };
        let (link, requests) = mpsc::channel(64);
        let (events, link_events) = mpsc::channel(64);
        let (stop, stops) = mpsc::channel(4);
        let link_settings = LinkSettings {
            url: settings.controller.url.clone(),
            tls,
            outbound,
            introduction,
            identity: Rc::clone(&identity),
        };
        tokio::task::spawn_local(link::run(link_settings, requests, events));
        let interfaces = if settings.p2p.enabled { watch_network(&system).await } else { None };
        let mapper =
            (settings.p2p.port_mapping && interfaces.is_some()).then(|| Mapper::start(system.index()));
        let lan = (settings.p2p.lan_discovery && interfaces.is_some()).then(Lan::new);
        let view = View::new(&settings);
        let names = Names::new(&settings.names, &settings.interface)?;
        let (picture_wanted, pictures) = mpsc::channel(1);
        data.send(Command::Exit(settings.exit.node.clone()))?;
        let shared = Rc::new(Shared {
            settings,
            data,
            identity,
            view: RefCell::new(view),
            stop,
            clients: Cell::new(0),
        });
        let mut daemon = Self {
            shared,
            listener,
            reports,
            link,
            link_events,
            stops,
            system,
            host,
            names,
            pictures,
            picture_wanted,
            learning: Rc::default(),
            interfaces,
            mapper,
            lan,
            store,
            addresses: BTreeMap::new(),
            network,
            snapshot_due: None,
            pins_kept: Vec::new(),
            leaving: Vec::new(),
        };
        daemon.send_endpoints();
        Ok(daemon)
    }

    /// `Err`: it cannot go on.
    async fn serve(&mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // The data thread first: what it has applied is known before the link signs in again.
                biased;
                report = self.reports.recv() => {
                    let report = report.context("the data thread has ended without a word")?;
                    if let Some(report) = self.shared.data.sort(report) {
                        self.handle_report(report).await?;
                    }
                }
                event = self.link_events.recv() => self.handle_link(event.context("the control link has ended")?)?,
                client = self.stops.recv() => {
                    self.leaving.extend(client);
                    tracing::info!("asked to go down");
                    return Ok(());
                }
                client = self.listener.accept(), if self.shared.clients.get() < MAX_CLIENTS => {
                    serve::spawn(client, Rc::clone(&self.shared), self.host.summary());
                }
                () = changed(&mut self.interfaces) => self.send_endpoints(),
                () = remapped(&mut self.mapper) => self.send_endpoints(),
                datagram = announced(&mut self.lan) => {
                    // One that is not taken comes again.
                    let _ = self.shared.data.send(Command::Announcement(datagram));
                }
                _ = terminate.recv() => return {
                    let _: () = tracing::info!("stopping on SIGTERM");
                    Ok(())
                },
                _ = interrupt.recv() => return {
                    let _: () = tracing::info!("stopping on SIGINT");
                    Ok(())
                },
                _ = hangup.recv() => {
                    if std::io::stderr().is_terminal() {
                        return {
                            let _: () = tracing::info!("stopping: the terminal is gone");
                            Ok(())
                        };
                    }
                    tracing::info!("SIGHUP: settings are read at start only; restart to change them");
                }
                Some(picture) = self.pictures.recv() => self.names.update(&picture, self.host.journal()).await,
                () = self.host.changed() => self.apply_routes().await,
                _ = tick.tick() => self.housekeep(),
            }
        }
    }

    async fn stop(mut self) {
        self.take_snapshot_now().await;
        self.stops.close();
        let Self { shared, system, host, listener, leaving, link, mapper, .. } = self;
        drop(link);
        if let Some(mapper) = mapper {
            mapper.stop().await;
        }
        host.close().await;
        match Rc::try_unwrap(shared) {
            Ok(shared) => shared.data.stop(),
            // A command is being answered: dropping the handle stops the thread as well.
            Err(shared) => drop(shared.data.send(Command::Stop)),
        }
        if !system.wait_gone(Duration::from_secs(3)).await {
            tracing::warn!("the interface is still there; it goes with this process");
        }
        drop(listener);
        drop(leaving);
    }

    async fn handle_report(&mut self, report: Report) -> anyhow::Result<()> {
        match report {
            Report::Node(event) => self.handle_event(event).await,
            Report::Applied { version } => {
                self.shared.identity.borrow_mut().config_version = version;
                self.snapshot_due.get_or_insert(Instant::now() + SNAPSHOT);
                self.learn_names();
            }
            Report::NeedResync => self.ask(NodeUpdate { resync: true, ..NodeUpdate::default() }),
            Report::KeyRotated(key) => self.ask(NodeUpdate { node_key: Some(key), ..NodeUpdate::default() }),
            Report::Snapshot { config, pins } => self.keep(config.as_deref(), &pins),
            Report::Sockets { port4, port6 } => {
                if let Some(mapper) = &self.mapper {
                    mapper.want(|wanted| (wanted.port4, wanted.port6) = (port4, port6));
                }
            }
            Report::RelayFailed { relay, error } => {
                tracing::warn!(relay, error, "no connection to the relay; trying again");
            }
            Report::Stopped(Some(error)) => bail!("the data thread has ended: {error}"),
            Report::Stopped(None) => bail!("the data thread has ended"),
            _ => {}
        }
        Ok(())
    }

    async fn handle_event(&mut self, event: Event) {
        match event {
            Event::MembershipAdded { node, name, addresses, .. } => {
                tracing::info!(network = name, %node, "in the network");
                self.addresses.insert(node, addresses);
                self.apply_addresses().await;
            }
            Event::MembershipRemoved { node, name, reason, .. } => {
                tracing::warn!(network = name, %node, reason, "out of the network");
                self.addresses.remove(&node);
                self.apply_addresses().await;
            }
            Event::NetworkRefused { network, other } => {
                tracing::error!(
                    network,
                    other,
                    "did not join: its addresses overlap with those of the other network. Leave one of them, or ask the operator for another subnet"
                );
            }
            Event::RoutesChanged { routes } => {
                self.host.set_subnets(routes);
                self.apply_routes().await;
            }
            Event::ExitChanged { exit } => {
                match &exit {
                    Some(exit) if exit.routes.is_empty() => {
                        tracing::warn!(
                            exit = exit.name,
                            "the exit node is there, but the operator has not enabled that it takes all traffic: nothing leaves this machine"
                        );
                    }
                    Some(exit) => {
                        tracing::info!(exit = exit.name, routes = ?exit.routes, "all traffic goes through the exit node");
                    }
                    None => tracing::warn!("the exit node is not there: nothing leaves this machine"),
                }
                self.host.set_exit(exit);
                self.apply_routes().await;
            }
            Event::MtuChanged { mtu } => {
                if let Err(error) = self.system.set_mtu(mtu).await {
                    tracing::error!("{error:#}");
                }
            }
            Event::PeerUntrusted { peer, reason } => {
                tracing::error!(%peer, ?reason, "this peer's keys are not believed: no session with it. `edgelink status` says more, and what to do");
            }
            Event::SessionEstablished { peer, cipher } => tracing::debug!(%peer, cipher, "session"),
            Event::PathChanged { peer, path } => tracing::info!(%peer, ?path, "path"),
            Event::DirectChanged { peer, address } => tracing::info!(%peer, ?address, "direct path"),
            Event::EndpointsChanged { endpoints, nat } => {
                tracing::info!(?endpoints, ?nat, "reachable at");
                self.shared.view.borrow_mut().reachable(&endpoints);
                self.ask(NodeUpdate { endpoints: Some(endpoints), ..NodeUpdate::default() });
            }
            Event::RelayState { relay, ready } => tracing::info!(%relay, ready, "relay"),
            Event::Announce { from, datagram } => {
                if let Some(lan) = &self.lan {
                    lan.announce(from, &datagram);
                }
            }
            Event::LatencyReport(report) => drop(self.link.try_send(Request::Report(report))),
            Event::NeedTokens => self.ask(NodeUpdate { refresh_tokens: true, ..NodeUpdate::default() }),
            _ => {}
        }
    }

    /// What cannot be asked now is asked again by whoever needs it, or said at the next sign-in.
    fn ask(&self, update: NodeUpdate) {
        if self.link.try_send(Request::Update(update)).is_err() {
            tracing::debug!("the control link is busy");
        }
    }

    /// Tells the data thread where its UDP sockets belong and which addresses this machine has.
    fn send_endpoints(&mut self) {
        let Some(interfaces) = &self.interfaces else { return };
        let port = self.shared.settings.p2p.port;
        if let Some(lan) = &mut self.lan {
            lan.listen_on(&interfaces.borrow());
        }
        let picture = self.mapper.as_ref().map(|mapper| {
            mapper.want(|wanted| wanted.addresses.clone_from(&interfaces.borrow()));
            mapper.picture()
        });
        let endpoints = Endpoints {
            bind4: Some((Ipv4Addr::UNSPECIFIED, port).into()),
            bind6: Some((Ipv6Addr::UNSPECIFIED, port).into()),
            addresses: interfaces.borrow().iter().map(|address| address.net).collect(),
            mapped: picture.as_ref().map(Picture::addresses).unwrap_or_default(),
            lan_discovery: self.lan.is_some(),
        };
        self.shared.view.borrow_mut().mapping(picture);
        tracing::debug!(addresses = ?endpoints.addresses, "this machine's addresses");
        if let Err(error) = self.shared.data.send(Command::Endpoints(endpoints)) {
            tracing::warn!(%error, "the data thread did not take a change of the network");
        }
    }

    async fn apply_addresses(&mut self) {
        let wanted: BTreeSet<IpNet> = self.addresses.values().flatten().copied().collect();
        for error in self.system.set_addresses(wanted).await {
            tracing::error!("{error:#}");
        }
        self.host.set_addresses(&self.addresses);
        // Taking an address away makes the kernel drop routes of ours that preferred it.
        self.apply_routes().await;
        self.learn_names();
    }

    async fn apply_routes(&mut self) {
        let Some(down) = self.host.refresh().await else { return };
        if let Err(error) = self.shared.data.send(Command::RoutesDown(down)) {
            tracing::error!(%error, "peers do not hear which subnets cannot be reached");
        }
    }

    /// Asks the machine for a picture of its networks: who has which name.
    fn learn_names(&self) {
        if !self.names.wanted() || self.learning.replace(true) {
            return;
        }
        let (shared, learnt) = (Rc::clone(&self.shared), self.picture_wanted.clone());
        let learning = Rc::clone(&self.learning);
        tokio::task::spawn_local(async move {
            // Changes come in bursts.
            tokio::time::sleep(LEARN).await;
            learning.set(false);
            if let Ok(status) = shared.data.status().await {
                let _ = learnt.send(status).await;
            }
        });
    }
}

/// Direct paths need to know the interfaces; relays do without.
async fn watch_network(system: &System) -> Option<watch::Receiver<BTreeSet<Address>>> {
    let watched = network::watch(system.index()).await;
    watched.inspect_err(|error| tracing::warn!("no direct paths: {error:#}")).ok()
}

/// Waits for another set of addresses; for ever when nobody watches.
async fn changed(interfaces: &mut Option<watch::Receiver<BTreeSet<Address>>>) {
    if let Some(watched) = interfaces
        && watched.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Waits for an announcement on an own network.
async fn announced(lan: &mut Option<Lan>) -> Vec<u8> {
    match lan {
        Some(lan) => lan.heard().await,
        None => std::future::pending().await,
    }
}

/// Waits for another picture of the router.
async fn remapped(mapper: &mut Option<Mapper>) {
    match mapper {
        Some(mapper) => mapper.changed().await,
        None => std::future::pending().await,
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
