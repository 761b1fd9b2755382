//! Ports mapped at the router: by PCP (RFC 6887) or NAT-PMP (RFC 6886), else by UPnP-IGD, so that peers reach this machine without luck.
//!
//! ```text
//! ports of the data thread, addresses ─▶ default routers ─▶ PCP and NAT-PMP at once, UPnP beside them ─▶ addresses for the peers
//!                                                               ▲ half of the lease, another network │          end: taken back
//!                                                               └────────────────────────────────────┘
//! ```
//!
//! One mapping for IPv4. For IPv6 PCP asks the firewall for a pinhole, where the default route names the router by an address that is not link-local: the protocol takes the
//! sender's address for the one to open, and towards a link-local address the kernel sends from one. Nothing here can hurt: a router that lies
//! makes peers send a few sealed probes elsewhere. What `kill -9` leaves behind runs out with its lease.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    GATEWAY_PORT, GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType,
    TimeoutConfig, natpmp, pcp,
};
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::network::{self, Address, Gateway};

/// Asked for; long enough that renewing costs nothing, short enough that what a crash leaves behind is soon gone.
const LEASE: Duration = Duration::from_hours(1);
/// A lease is not renewed more often than this, whatever the router grants.
const SOONEST: Duration = Duration::from_secs(30);
/// Without a router, or with one that maps nothing.
const NO_ROUTER: Duration = Duration::from_secs(10);
const NOTHING: Duration = Duration::from_mins(10);
/// Requests go out at once and after 250, 500 and 1,000 ms.
const TIMING: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 3, max_retry_timeout: None };
/// How long UPnP routers may take to be found; they may wait up to 3 s before they answer.
const SEARCH: Duration = Duration::from_millis(3500);
/// The longest that a UPnP router is waited for.
const PATIENCE: Duration = Duration::from_secs(12);
/// Taking a mapping back may delay the end by so much.
const GOODBYE: Duration = Duration::from_secs(2);
/// What routers show in their lists.
const DESCRIPTION: &str = "EdgeLink";

/// How a port is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// A port that the router maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mapped {
    /// By which means.
    pub(crate) protocol: Protocol,
    /// Of this machine.
    pub(crate) port: u16,
    /// Where others reach it.
    pub(crate) external: SocketAddr,
}

/// A router found by UPnP.
type Igd = igd_next::aio::Gateway<Tokio>;

/// What is known of the router.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Picture {
    /// The router for IPv4, or else IPv6; `None`: there is none, or mapping is off.
    pub(crate) router: Option<IpAddr>,
    /// Whether it speaks PCP; `None`: not known yet.
    pub(crate) pcp: Option<bool>,
    /// Whether it speaks NAT-PMP.
    pub(crate) nat_pmp: Option<bool>,
    /// Whether it speaks UPnP-IGD.
    pub(crate) upnp: Option<bool>,
    /// What it maps to us now.
    pub(crate) mapped: Vec<Mapped>,
}

impl Picture {
    /// Where peers reach this machine.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.mapped.iter().map(|mapped| mapped.external).collect()
    }
}

/// What is to be mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Of the IPv4 socket.
    pub(crate) port4: Option<u16>,
    /// Of the IPv6 socket.
    pub(crate) port6: Option<u16>,
    /// A change of these is a change of the network.
    pub(crate) addresses: BTreeSet<Address>,
}

/// Keeps the mappings in a task of its own.
#[derive(Debug)]
pub(crate) struct Mapper {
    wanted: watch::Sender<Wanted>,
    picture: watch::Receiver<Picture>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Mapper {
    /// Starts without anything to map. `own`: the interface behind which no router counts. In a tokio runtime with a local set.
    pub(crate) fn start(own: u32) -> Self {
        let (wanted, wants) = watch::channel(Wanted::default());
        let (out, picture) = watch::channel(Picture::default());
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper { own, out, targets: Vec::new(), held: Vec::new() };
        let task = tokio::task::spawn_local(keeper.run(wants, stopped));
        Self { wanted, picture, stop, task }
    }

    /// Says what is to be mapped from now on.
    pub(crate) fn want(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.clone();
            change(wanted);
            *wanted != before
        });
    }

    /// How things stand.
    pub(crate) fn picture(&self) -> Picture {
        self.picture.borrow().clone()
    }

    /// Waits for a change of the picture.
    pub(crate) async fn changed(&mut self) {
        if self.picture.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes the mappings back, if the router lets us in time.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        let _ = timeout(GOODBYE, self.task).await;
    }
}

/// One router and the own address and port that it is to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    gateway: Gateway,
    local: SocketAddr,
}

/// A mapping that the router has made.
#[derive(Debug)]
enum Held {
    Crab { mapping: Box<PortMapping>, external: IpAddr },
    Upnp { gateway: Box<Igd>, local: SocketAddr, external: SocketAddr, lease: Duration },
}

/// The task's state.
struct Keeper {
    own: u32,
    out: watch::Sender<Picture>,
    targets: Vec<Target>,
    held: Vec<Held>,
}

impl Keeper {
    async fn run(mut self, mut wants: watch::Receiver<Wanted>, mut stopped: oneshot::Receiver<()>) {
        loop {
            let wanted = wants.borrow_and_update().clone();
            tokio::select! {
                // A look that is given up may leave a mapping that runs out with its lease.
                _ = &mut stopped => break,
                pause = self.round(&wanted) => tokio::select! {
                    () = sleep(pause) => {}
                    change = wants.changed() => if change.is_err() { break },
                    _ = &mut stopped => break,
                },
            }
        }
        for held in self.held.drain(..) {
            held.take_back().await;
        }
    }

    /// Looks, maps or renews; how long to wait before the next.
    async fn round(&mut self, wanted: &Wanted) -> Duration {
        let targets = match network::gateways(self.own).await {
            Ok(gateways) => targets(&gateways, wanted),
            Err(error) => {
                tracing::debug!("{error:#}");
                Vec::new()
            }
        };
        let renewed = targets == self.targets && !self.held.is_empty() && self.renew().await;
        if !renewed {
            self.leave();
            self.out.send_replace(Picture {
                router: targets.first().map(|target| target.gateway.ip),
                ..Picture::default()
            });
            self.targets.clone_from(&targets);
            for target in targets {
                self.look(target).await;
            }
        }
        match self.held.iter().map(Held::lease).min() {
            Some(lease) => (lease / 2).max(SOONEST),
            None if self.targets.is_empty() => NO_ROUTER,
            None => NOTHING,
        }
    }

    /// Renews everything that is held; false: something is lost.
    async fn renew(&mut self) -> bool {
        let mut whole = true;
        for held in &mut self.held {
            if let Err(error) = held.renew().await {
                tracing::info!("the router does not renew the mapping of a port: {error:#}");
                whole = false;
            }
        }
        self.publish();
        whole
    }

    /// Gives up what is held, in the background: the router may be out of reach.
    fn leave(&mut self) {
        for held in self.held.drain(..) {
            tokio::task::spawn_local(timeout(GOODBYE, held.take_back()));
        }
    }

    async fn look(&mut self, target: Target) {
        let igd = target.local.is_ipv4().then(|| tokio::task::spawn_local(find_igd(target)));
        let found = look_for_pcp(target, LEASE).await;
        if target.local.is_ipv4() {
            self.out.send_modify(|picture| {
                (picture.pcp, picture.nat_pmp) = (Some(found.pcp), Some(found.nat_pmp));
            });
        }
        let mut held = found.held;
        if held.is_some() {
            self.held.extend(held.take());
            self.publish();
        }
        let Some(igd) = igd else { return };
        let igd = igd.await.ok().flatten();
        self.out.send_modify(|picture| picture.upnp = Some(igd.is_some()));
        if self.held.is_empty()
            && let Some(gateway) = igd
        {
            let mapped = timeout(PATIENCE, map_upnp(gateway, target.local, LEASE)).await;
            match mapped.map_err(Into::into).flatten() {
                Ok(held) => self.held.push(held),
                Err(error) => {
                    tracing::info!(router = %target.gateway.ip, "the router's UPnP maps no port: {error:#}");
                }
            }
            self.publish();
        }
    }

    fn publish(&self) {
        let mapped: Vec<Mapped> = self.held.iter().map(Held::mapped).collect();
        self.out.send_if_modified(|picture| {
            if picture.mapped == mapped {
                return false;
            }
            for mapped in &mapped {
                tracing::info!(protocol = %mapped.protocol, external = %mapped.external, port = mapped.port, "the router maps a port");
            }
            picture.mapped = mapped;
            true
        });
    }
}

impl Held {
    fn mapped(&self) -> Mapped {
        match self {
            Self::Crab { mapping, external } => Mapped {
                protocol: protocol_of(mapping),
                port: mapping.internal_port().get(),
                external: SocketAddr::new(*external, mapping.external_port().get()),
            },
            Self::Upnp { local, external, .. } => {
                Mapped { protocol: Protocol::Upnp, port: local.port(), external: *external }
            }
        }
    }

    fn lease(&self) -> Duration {
        match self {
            Self::Crab { mapping, .. } => Duration::from_secs(u64::from(mapping.lifetime())),
            // One without an end is looked at like any other: routers restart.
            Self::Upnp { lease, .. } => {
                if lease.is_zero() {
                    LEASE
                } else {
                    *lease
                }
            }
        }
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Crab { mapping, external } => {
                mapping.renew().await?;
                *external = external_address(mapping).await?;
            }
            Self::Upnp { gateway, local, external, lease } => {
                timeout(PATIENCE, add_upnp(gateway, *local, external.port(), *lease)).await??;
                external.set_ip(timeout(PATIENCE, gateway.get_external_ip()).await??);
            }
        }
        Ok(())
    }

    async fn take_back(self) {
        let mapped = self.mapped();
        let done = match self {
            Self::Crab { mapping, .. } => {
                mapping.try_drop().await.map_err(|(error, _)| anyhow::Error::from(error))
            }
            Self::Upnp { gateway, external, .. } => {
                gateway.remove_port(PortMappingProtocol::UDP, external.port()).await.map_err(Into::into)
            }
        };
        match done {
            Ok(()) => {
                tracing::info!(protocol = %mapped.protocol, external = %mapped.external, "took the mapping back");
            }
            Err(error) => {
                tracing::info!(external = %mapped.external, "the mapping stays until it runs out: {error:#}");
            }
        }
    }
}

/// What a look at a router's port 5351 brought.
struct Found {
    pcp: bool,
    nat_pmp: bool,
    held: Option<Held>,
}

/// PCP and NAT-PMP are asked at once; what PCP maps is preferred.
async fn look_for_pcp(target: Target, lease: Duration) -> Found {
    let Some(port) = NonZeroU16::new(target.local.port()) else {
        return Found { pcp: false, nat_pmp: false, held: None };
    };
    let gateway = match target.gateway.ip {
        IpAddr::V4(ip) => GatewayAddress::IpV4(ip),
        IpAddr::V6(ip) => GatewayAddress::IpV6(ip, Some(target.gateway.link)),
    };
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(seconds(lease)),
        timeout_config: Some(TIMING),
    };
    let request = pcp::BaseMapRequest::new(gateway, target.local.ip(), InternetProtocol::Udp, port);
    let nat_pmp = async {
        if target.local.is_ipv4() { natpmp::external_address(gateway, Some(TIMING)).await.ok() } else { None }
    };
    let (by_pcp, address) = tokio::join!(pcp::port_mapping(request, None, None, options), nat_pmp);
    let mut found = Found { pcp: by_pcp.is_ok(), nat_pmp: address.is_some(), held: None };
    let mapping = match (by_pcp, address) {
        (Ok(mapping), _) => Some(mapping),
        (Err(error), Some(_)) => {
            tracing::debug!(%error, "no PCP");
            let mapped = natpmp::port_mapping(gateway, InternetProtocol::Udp, port, options).await;
            mapped.inspect_err(|error| tracing::debug!(%error, "NAT-PMP maps no port")).ok()
        }
        (Err(error), None) => {
            tracing::debug!(router = %target.gateway.ip, %error, "neither PCP nor NAT-PMP");
            None
        }
    };
    if let Some(mapping) = mapping
        && let Ok(external) = external_address(&mapping).await
    {
        found.held = Some(Held::Crab { mapping: Box::new(mapping), external });
    }
    found
}

/// NAT-PMP tells the outer address by itself only.
async fn external_address(mapping: &PortMapping) -> anyhow::Result<IpAddr> {
    Ok(match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip,
        PortMappingType::NatPmp => {
            IpAddr::V4(natpmp::external_address(mapping.gateway(), Some(TIMING)).await?)
        }
    })
}

fn protocol_of(mapping: &PortMapping) -> Protocol {
    match mapping.mapping_type() {
        PortMappingType::Pcp { .. } => Protocol::Pcp,
        PortMappingType::NatPmp => Protocol::NatPmp,
    }
}

/// The UPnP router on the network of `target`.
async fn find_igd(target: Target) -> Option<Box<Igd>> {
    let mut options = SearchOptions::default();
    options.bind_addr = SocketAddr::new(target.local.ip(), 0);
    options.timeout = Some(SEARCH);
    options.single_search_timeout = Some(SEARCH);
    let found = search_gateway(options).await;
    found.map(Box::new).inspect_err(|error| tracing::debug!(%error, "no UPnP router")).ok()
}

/// The same port outside as inside, where that is free.
async fn map_upnp(gateway: Box<Igd>, local: SocketAddr, lease: Duration) -> anyhow::Result<Held> {
    let ip = gateway.get_external_ip().await?;
    let (port, lease) = match add_upnp(&gateway, local, local.port(), lease).await {
        Ok(()) => (local.port(), lease),
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            add_upnp(&gateway, local, local.port(), Duration::ZERO).await?;
            (local.port(), Duration::ZERO)
        }
        Err(_) => {
            let any = gateway.add_any_port(PortMappingProtocol::UDP, local, seconds(lease), DESCRIPTION);
            (any.await?, lease)
        }
    };
    Ok(Held::Upnp { gateway, local, external: SocketAddr::new(ip, port), lease })
}

async fn add_upnp(gateway: &Igd, local: SocketAddr, port: u16, lease: Duration) -> Result<(), AddPortError> {
    gateway.add_port(PortMappingProtocol::UDP, port, local, seconds(lease), DESCRIPTION).await
}

fn seconds(lease: Duration) -> u32 {
    u32::try_from(lease.as_secs()).unwrap_or(u32::MAX)
}

/// What to map where: one for each family that has a socket and a router, IPv4 first.
fn targets(gateways: &[Gateway], wanted: &Wanted) -> Vec<Target> {
    let target = |gateway: &Gateway| {
        let port = if gateway.ip.is_ipv4() { wanted.port4 } else { wanted.port6 };
        let local = SocketAddr::new(source_towards(*gateway)?, port?);
        Some(Target { gateway: *gateway, local }).filter(|target| may_be_opened(target.local.ip()))
    };
    gateways.iter().filter_map(target).collect()
}

/// The address from which the kernel sends to a router.
fn source_towards(gateway: Gateway) -> Option<IpAddr> {
    let any: IpAddr = match gateway.ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut router = SocketAddr::new(gateway.ip, GATEWAY_PORT);
    if let SocketAddr::V6(router) = &mut router {
        router.set_scope_id(gateway.link);
    }
    // Connecting a datagram socket sends nothing.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(router).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether others could come to an address at all.
const fn may_be_opened(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unique_local(),
    }
}

/// A look at the router without a daemon: what it speaks. Nothing stays mapped. `socket`: bound, so that nobody else has its port.
pub(crate) async fn probe(socket: &UdpSocket) -> Picture {
    let port = socket.local_addr().ok().map(|address| address.port());
    let wanted = Wanted { port4: port, ..Wanted::default() };
    let gateways = network::gateways(0).await.unwrap_or_default();
    let Some(target) = targets(&gateways, &wanted).first().copied() else { return Picture::default() };
    let (found, igd) = tokio::join!(look_for_pcp(target, Duration::from_mins(2)), find_igd(target));
    if let Some(held) = found.held {
        let _ = timeout(GOODBYE, held.take_back()).await;
    }
    Picture {
        router: Some(target.gateway.ip),
        pcp: Some(found.pcp),
        nat_pmp: Some(found.nat_pmp),
        upnp: Some(igd.is_some()),
        mapped: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_could_come_to_are_mapped() {
        for fine in ["192.168.1.2", "100.64.0.9", "203.0.113.4", "2001:db8::2"] {
            assert!(may_be_opened(fine.parse().unwrap()), "{fine}");
        }
        for not in ["127.0.0.1", "169.254.3.4", "0.0.0.0", "::1", "fe80::1", "fd00::2"] {
            assert!(!may_be_opened(not.parse().unwrap()), "{not}");
        }
    }

    #[test]
    fn a_router_without_a_socket_of_its_family_is_left_alone() {
        let gateway = Gateway { ip: Ipv4Addr::LOCALHOST.into(), link: 1 };
        let wanted = Wanted { port6: Some(4), ..Wanted::default() };
        assert_eq!(targets(&[gateway], &wanted), []);
    }
}
