//! The rows of the table, word for word as the goals have them, and what has to be measured for each.

use super::contender::{Cipher, ONE_THREAD, Setting, Way};
use super::lab::{ETHERNET, Wire};
use crate::report::Better;

/// Daemons and wire for some of the rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Scene {
    Direct,
    ChaCha,
    NoOffload,
    Jumbo,
    Relay,
    /// Daemons by themselves.
    Idle,
}

/// What is measured in a scene.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Figure {
    OneStream,
    FourStreams,
    CpuPerGb,
    Flood,
    Paced,
    RoundTrip,
    PercentOfDirect,
    Resident,
}

impl Figure {
    /// In progress lines, after its value.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OneStream => "Gbit/s, 1 stream",
            Self::FourStreams => "Gbit/s, 4 streams",
            Self::CpuPerGb => "CPU s per GB",
            Self::Flood => "packets/s under flood",
            Self::Paced => "CPU ns per paced packet",
            Self::RoundTrip => "us added",
            Self::PercentOfDirect => "% of direct",
            Self::Resident => "MiB",
        }
    }

    /// Whether the bare wire has such a figure.
    pub(super) const fn is_of_the_wire(self) -> bool {
        matches!(self, Self::OneStream | Self::FourStreams | Self::Flood)
    }
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowSpec {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) scene: Scene,
    pub(super) figure: Figure,
}

const fn row(
    what: &'static str,
    unit: &'static str,
    better: Better,
    scene: Scene,
    figure: Figure,
) -> RowSpec {
    RowSpec { what, unit, better, scene, figure }
}

const HIGHER: Better = Better::Higher;
const LOWER: Better = Better::Lower;

/// In the order of the goals.
pub(super) const ROWS: &[RowSpec] = &[
    row("direct path, 1 TCP stream, AES-256-GCM, Gbit/s", "Gbit/s", HIGHER, Scene::Direct, Figure::OneStream),
    row(
        "direct path, 4 TCP streams, AES-256-GCM, Gbit/s",
        "Gbit/s",
        HIGHER,
        Scene::Direct,
        Figure::FourStreams,
    ),
    row(
        "direct path, 1 TCP stream, ChaCha20-Poly1305, Gbit/s",
        "Gbit/s",
        HIGHER,
        Scene::ChaCha,
        Figure::OneStream,
    ),
    row(
        "direct path, no transmit offload, 1 TCP stream, AES-256-GCM, Gbit/s",
        "Gbit/s",
        HIGHER,
        Scene::NoOffload,
        Figure::OneStream,
    ),
    row(
        "direct path, MTU 8800, 1 TCP stream, AES-256-GCM, Gbit/s",
        "Gbit/s",
        HIGHER,
        Scene::Jumbo,
        Figure::OneStream,
    ),
    row(
        "CPU seconds per GB, both daemons, 1 TCP stream, AES-256-GCM",
        "s",
        LOWER,
        Scene::Direct,
        Figure::CpuPerGb,
    ),
    row("64 B packets/s received under flood", "1/s", HIGHER, Scene::Direct, Figure::Flood),
    row("64 B paced at 20,000/s, CPU ns per packet, both daemons", "ns", LOWER, Scene::Direct, Figure::Paced),
    row(
        "through one relay (WSS), 1 TCP stream, percent of direct",
        "%",
        HIGHER,
        Scene::Relay,
        Figure::PercentOfDirect,
    ),
    row("added round trip on the direct path, us", "us", LOWER, Scene::Direct, Figure::RoundTrip),
    row("idle node with 1,000 peers, RSS MiB", "MiB", LOWER, Scene::Idle, Figure::Resident),
];

/// Scenes in which rounds go, in order.
pub(super) const SCENES: [Scene; 5] =
    [Scene::Direct, Scene::ChaCha, Scene::NoOffload, Scene::Jumbo, Scene::Relay];

impl Scene {
    /// In progress lines.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::ChaCha => "ChaCha20-Poly1305",
            Self::NoOffload => "no transmit offload",
            Self::Jumbo => "MTU 8800",
            Self::Relay => "relay",
            Self::Idle => "idle",
        }
    }

    pub(super) const fn wire(self) -> Wire {
        match self {
            Self::Jumbo => Wire { mtu: 9000, transmit_offload: true },
            Self::NoOffload => Wire { mtu: ETHERNET, transmit_offload: false },
            _ => Wire { mtu: ETHERNET, transmit_offload: true },
        }
    }

    pub(super) const fn setting(self) -> Setting {
        Setting {
            mtu: if matches!(self, Self::Jumbo) { 8800 } else { 1420 },
            cipher: if matches!(self, Self::ChaCha) { Cipher::ChaCha } else { Cipher::Aes },
            way: if matches!(self, Self::Relay) { Way::Relay } else { Way::Direct },
        }
    }

    /// Whether a rival takes part. What it has no other way of doing is not measured twice, and those whose speed does not depend on the wire
    /// are not measured on another one.
    pub(super) fn has_rival(self, name: &str) -> bool {
        match self {
            Self::Direct => true,
            Self::Idle => name != ONE_THREAD,
            Self::NoOffload => name.starts_with("wireguard-go"),
            Self::Jumbo => name == "wireguard-go-tailscale",
            Self::ChaCha | Self::Relay => false,
        }
    }

    /// Where the figures of rivals are from: WireGuard has one cipher only, so theirs of the direct path are those for ChaCha20-Poly1305.
    pub(super) const fn of_rivals(self) -> Self {
        if matches!(self, Self::ChaCha) { Self::Direct } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_there_once_and_no_two_are_the_same_measurement() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.what).collect();
        assert_eq!(names.len(), 11);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 11);
        let measured: std::collections::BTreeSet<_> =
            ROWS.iter().map(|row| (row.scene, row.figure)).collect();
        assert_eq!(measured.len(), 11);
        assert!(ROWS.iter().all(|row| row.scene == Scene::Idle || SCENES.contains(&row.scene)));
    }
}
