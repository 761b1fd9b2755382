//! What the daemon is put together from: settings, keys and files become the options of its parts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use meshdp::engine::dial::Outbound;
use meshdp::engine::tls::{ClientCertificate, ClientTls, Roots};
use meshdp::proto::crypto::keys::{MachineKey, NodeKey};
use meshdp::proto::node::NodeSettings;
use meshdp::proto::wire::control::node::Settings as NetworkSettings;
use meshdp::tun::linux::{Device, Offload, TunError};
use rustix::fs::{Access, access};
use tokio::time::{Instant, sleep};

use super::store::Store;
use crate::config::file::Cipher;
use crate::config::{Controller, Settings};
use crate::keys::{Keys, random_secret};

/// Where TUN devices come from.
const TUN_FILE: &str = "/dev/net/tun";
/// How long the kernel may take to give up a killed owner's device.
const FREED: Duration = Duration::from_secs(3);

/// Opens the TUN device. A device whose owner was killed is given up by the kernel a moment later (io_uring's teardown is deferred), so a name that is
/// taken is asked for again for a while.
pub(super) async fn open_device(name: &str) -> anyhow::Result<Device> {
    let end = Instant::now() + FREED;
    loop {
        match Device::open_with(name, Offload::All) {
            Ok(device) => {
                tracing::debug!(interface = device.name(), format = ?device.format(), "opened the TUN device");
                return Ok(device);
            }
            Err(TunError::Busy { .. }) if Instant::now() < end => sleep(Duration::from_millis(50)).await,
            Err(TunError::Busy { name }) => bail!(
                "the interface {name} is in use by another program. `ip tuntap show` lists such interfaces; choose another name with --interface"
            ),
            // With the capability, but kept out by the mode of the device file: most systems have 0666 there.
            Err(TunError::Permission { .. })
                if access(TUN_FILE, Access::READ_OK | Access::WRITE_OK).is_err() =>
            {
                bail!(
                    "this user may not open {TUN_FILE}. Run as root, or let everybody open it as most systems do (making an interface still needs \
                 CAP_NET_ADMIN): sudo chmod 666 {TUN_FILE}"
                )
            }
            Err(TunError::Permission { name }) => bail!(
                "no permission to make the interface {name}. Run as root, or give the program the right once with: sudo setcap cap_net_admin+ep \
                 $(command -v edgelink)"
            ),
            Err(other) => return Err(other.into()),
        }
    }
}

pub(super) fn node_settings(settings: &Settings, keys: &Keys, store: &Store) -> anyhow::Result<NodeSettings> {
    Ok(NodeSettings {
        machine: MachineKey::from_seed(keys.machine().seed())?,
        node_key: NodeKey::clone(keys.node()),
        node_key_created: keys.created(),
        previous_node_key: keys.previous(),
        aes: settings.cipher == Cipher::Auto && has_aes(),
        seed: *random_secret(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        advertised: settings.advertise_routes.clone(),
        pins: store.pins(),
    })
}

/// Whether AES-256-GCM is the faster cipher here.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// How controller and relays are reached, and what they are shown.
pub(super) fn outbound(settings: &Settings) -> anyhow::Result<Arc<Outbound>> {
    let certificate = match &settings.client_certificate {
        Some((certificate, key)) => {
            Some(ClientCertificate::load(certificate, key).context("client_cert and client_key")?)
        }
        None => None,
    };
    Ok(Arc::new(Outbound {
        rules: settings.proxies.clone(),
        roots: settings.controller.ca_file.clone().map_or(Roots::Native, Roots::File),
        certificate,
    }))
}

pub(super) fn tls_config(controller: &Controller, outbound: &Outbound) -> anyhow::Result<Option<ClientTls>> {
    if !controller.url.tls() {
        return Ok(None);
    }
    Ok(Some(ClientTls::new(&outbound.roots, controller.tls_pin, outbound.certificate.as_ref())?))
}

/// What this machine's settings say over the operator's.
pub(super) fn localise(network: &mut NetworkSettings, settings: &Settings) {
    if let Some(mtu) = settings.mtu {
        network.mtu = mtu;
    }
    if let Some(keepalive) = settings.p2p.keepalive {
        network.keepalive_s = keepalive.as_secs();
    }
    if let Some(latency) = settings.latency_report {
        network.latency_report_s = latency.as_secs();
    }
}
