//! What the kernel has to know about the interface: addresses, MTU, up. Routes that lead into it are the business of [`crate::host`].
//!
//! Everything is done over rtnetlink in the current network namespace, which needs CAP_NET_ADMIN and nothing else. Only what this process added is ever
//! removed: addresses of others stay, and what belongs to the interface goes with it when the device is closed, `kill -9` included.

use std::collections::BTreeSet;
#[cfg(test)]
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec};

/// Of the interface, packets: bursts wait in the kernel while the data thread or a relay's socket is busy. Against 500 that was 45 % more of a flood of small packets
/// (2 vCPU Sapphire Rapids guest, Linux 6.18).
const TX_QUEUE: u32 = 5000;
/// The longest super-packet that the kernel hands over, bytes: sealed, its packets still fit one UDP send of 64 KiB (44 of 1,441 bytes; 64 KiB are 46).
const GSO_MAX: u32 = 60_600;

/// The interface as the kernel sees it.
pub(crate) struct System {
    netlink: Handle,
    index: u32,
    name: String,
    addresses: BTreeSet<IpNet>,
}

impl System {
    /// Finds the interface `name`. In a tokio runtime.
    pub(crate) async fn open(name: &str) -> anyhow::Result<Self> {
        let (connection, netlink, _) =
            rtnetlink::new_connection().context("cannot talk to the kernel over netlink")?;
        tokio::spawn(connection);
        let link = netlink.link().get().match_name(name).execute().try_next().await;
        let Ok(Some(link)) = link else { bail!("the interface {name} is not there") };
        Ok(Self { netlink, index: link.header.index, name: name.to_owned(), addresses: BTreeSet::new() })
    }

    /// Its number.
    pub(crate) const fn index(&self) -> u32 {
        self.index
    }

    /// Sets the MTU and brings the interface up.
    pub(crate) async fn bring_up(&self, mtu: u16) -> anyhow::Result<()> {
        self.silence_link_local();
        let message =
            LinkUnspec::new_with_index(self.index).mtu(u32::from(mtu)).txqueuelen(TX_QUEUE).up().build();
        self.netlink
            .link()
            .set(message)
            .execute()
            .await
            .with_context(|| format!("cannot bring up {} with MTU {mtu}", self.name))?;
        self.limit_super_packets().await;
        Ok(())
    }

    /// A kernel that refuses hands over longer ones, which only cost a second send.
    async fn limit_super_packets(&self) {
        let mut message = LinkUnspec::new_with_index(self.index).build();
        message.attributes.push(LinkAttribute::GsoMaxSize(GSO_MAX));
        if let Err(error) = self.netlink.link().set(message).execute().await {
            tracing::debug!(interface = %self.name, %error, "super-packets keep their length");
        }
    }

    /// Changes the MTU.
    pub(crate) async fn set_mtu(&self, mtu: u16) -> anyhow::Result<()> {
        let message = LinkUnspec::new_with_index(self.index).mtu(u32::from(mtu)).build();
        self.netlink
            .link()
            .set(message)
            .execute()
            .await
            .with_context(|| format!("cannot set the MTU of {} to {mtu}", self.name))
    }

    /// Without it the kernel would send router solicitations and multicast reports into the mesh from an address that nobody there knows.
    fn silence_link_local(&self) {
        let path = format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", self.name);
        if let Err(error) = std::fs::write(&path, "1") {
            tracing::debug!(%path, %error, "the interface keeps its link-local address");
        }
    }

    /// Makes `wanted` the addresses that we have put there. Says what did not work and goes on.
    pub(crate) async fn set_addresses(&mut self, wanted: BTreeSet<IpNet>) -> Vec<anyhow::Error> {
        let mut errors = Vec::new();
        for address in self.addresses.difference(&wanted).copied().collect::<Vec<_>>() {
            match self.remove_address(address).await {
                Ok(()) => tracing::info!(%address, interface = %self.name, "removed address"),
                Err(error) => errors.push(error),
            }
            self.addresses.remove(&address);
        }
        for address in wanted.difference(&self.addresses).copied().collect::<Vec<_>>() {
            let added =
                self.netlink.address().add(self.index, address.addr(), address.prefix_len()).execute().await;
            match added {
                Ok(()) => {
                    tracing::info!(%address, interface = %self.name, "added address");
                    self.addresses.insert(address);
                }
                Err(error) => {
                    let hint = if address.addr().is_ipv6() {
                        " (is IPv6 switched off? sysctl net.ipv6.conf.all.disable_ipv6)"
                    } else {
                        ""
                    };
                    errors.push(anyhow::anyhow!("cannot add {address} to {}: {error}{hint}", self.name));
                }
            }
        }
        errors
    }

    async fn remove_address(&self, address: IpNet) -> anyhow::Result<()> {
        let mut found = self
            .netlink
            .address()
            .get()
            .set_link_index_filter(self.index)
            .set_address_filter(address.addr())
            .execute();
        while let Some(message) = found.try_next().await? {
            if message.header.prefix_len == address.prefix_len() {
                self.netlink
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .with_context(|| format!("cannot remove {address} from {}", self.name))?;
            }
        }
        Ok(())
    }

    /// Waits until the interface is gone, which the kernel may do a moment after its descriptor is closed. `false`: it still is there.
    pub(crate) async fn wait_gone(&self, limit: Duration) -> bool {
        let gone = async {
            while let Ok(Some(_)) =
                self.netlink.link().get().match_index(self.index).execute().try_next().await
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(limit, gone).await.is_ok()
    }

    /// Whether `address` is one that we have put there.
    #[cfg(test)]
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use meshdp::tun::linux::Device;

    use super::*;

    /// Runs the ignored test `name` alone in namespaces of its own, where those are permitted.
    fn in_namespace(name: &str) {
        let me = std::env::current_exe().unwrap();
        let run = Command::new("unshare")
            .args(["-Urn", "--"])
            .arg(me)
            .args([name, "--exact", "--ignored", "--nocapture"])
            .output();
        match run {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(text.contains("1 passed") || text.contains("SKIPPED"), "{text}");
                if let Some(line) = text.lines().find(|line| line.contains("SKIPPED")) {
                    println!("{line}");
                }
            }
            Ok(output) if String::from_utf8_lossy(&output.stderr).starts_with("unshare:") => {
                println!(
                    "SKIPPED {name}: no user namespaces here: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            Ok(output) => panic!(
                "{}\n{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => println!("SKIPPED {name}: cannot run unshare: {error}"),
        }
    }

    fn ip(args: &str) -> String {
        let output = Command::new("ip").args(args.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_come_and_go_with_the_device() {
        in_namespace("system::tests::inside_addresses");
    }

    #[test]
    #[ignore = "run by addresses_come_and_go_with_the_device in a namespace"]
    fn inside_addresses() {
        let device = match Device::open("edgetest0") {
            Ok(device) => device,
            Err(error) => return println!("SKIPPED inside_addresses: {error}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut system = System::open("edgetest0").await.unwrap();
            system.bring_up(1380).await.unwrap();
            let errors = system.set_addresses(nets(&["10.9.1.5/24", "10.9.2.5/24", "fd12:1::5/64"])).await;
            assert!(errors.is_empty(), "{errors:?}");
            let shown = ip("-d link show dev edgetest0");
            assert!(shown.contains("qlen 5000") && shown.contains("gso_max_size 60600"), "{shown}");
            let shown = ip("addr show dev edgetest0");
            assert!(
                shown.contains("mtu 1380") && shown.contains("UP") && shown.contains("10.9.1.5/24"),
                "{shown}"
            );
            assert!(shown.contains("fd12:1::5/64") && !shown.contains("fe80::"), "{shown}");
            assert!(system.has_address("fd12:1::5".parse().unwrap()));

            // What somebody else put there stays.
            ip("addr add 10.9.3.5/24 dev edgetest0");
            assert!(system.set_addresses(nets(&["10.9.2.5/24"])).await.is_empty());
            let shown = ip("addr show dev edgetest0");
            assert!(
                !shown.contains("10.9.1.5") && !shown.contains("fd12:1::5") && shown.contains("10.9.2.5"),
                "{shown}"
            );
            assert!(shown.contains("10.9.3.5"), "{shown}");
            system.set_mtu(1300).await.unwrap();
            assert!(ip("link show dev edgetest0").contains("mtu 1300"));

            drop(device);
            assert!(system.wait_gone(Duration::from_secs(3)).await);
            assert!(System::open("edgetest0").await.is_err(), "the interface goes with the device");
            assert!(!ip("route").contains("edgetest0"));
        });
    }
}
