//! What has to be done from time to time: the configuration and the pins are kept on disk, and the node_key is rotated.

use std::time::Duration;

use meshdp::engine::node::{Command, Report};
use meshdp::proto::id::NodeId;
use meshdp::proto::wire::control::PublicKey;
use meshdp::proto::wire::control::node::Config;
use tokio::time::Instant;

use super::{Daemon, SNAPSHOT, unix_now};
use crate::ipc::message::ControllerState;

impl Daemon {
    pub(super) fn housekeep(&mut self) {
        if self.snapshot_due.is_some_and(|due| due <= Instant::now()) {
            self.snapshot_due = None;
            if let Err(error) = self.shared.data.send(Command::Snapshot) {
                tracing::debug!(%error, "no snapshot this time");
                self.snapshot_due = Some(Instant::now() + SNAPSHOT);
            }
        }
        self.rotate_if_due();
    }

    /// Only while the controller is there to tell the peers (`docs/protocol.md` §2.1).
    fn rotate_if_due(&mut self) {
        let connected = self.shared.view.borrow().state() == ControllerState::Connected;
        let mut identity = self.shared.identity.borrow_mut();
        let due = identity.keys.created().saturating_add(self.network.node_key_rotate_s.max(60));
        if !connected || unix_now() < due {
            return;
        }
        match identity.keys.rotate(unix_now()) {
            Ok(()) => {
                let (key, created) = (identity.keys.node().clone(), identity.keys.created());
                tracing::info!(node_key = %key.public(), "rotated the node key");
                drop(identity);
                if let Err(error) = self.shared.data.send(Command::RotateNodeKey { key, created }) {
                    tracing::error!(%error, "the new node key comes into force at the next start");
                }
            }
            Err(error) => tracing::error!("the node key was not rotated: {error:#}"),
        }
    }

    pub(super) fn keep(&mut self, config: Option<&Config>, pins: &[(NodeId, PublicKey)]) {
        let kept = config.map_or(Ok(()), |config| self.store.keep_config(config)).and_then(|()| {
            if pins == self.pins_kept {
                return Ok(());
            }
            self.store.keep_pins(pins)?;
            self.pins_kept = pins.to_vec();
            Ok(())
        });
        if let Err(error) = kept {
            tracing::warn!("cannot keep the configuration for a start without the controller: {error:#}");
        }
    }

    /// Before the end, when there is something that was not kept yet.
    pub(super) async fn take_snapshot_now(&mut self) {
        if self.snapshot_due.take().is_none() || self.shared.data.send(Command::Snapshot).is_err() {
            return;
        }
        let wait = async {
            while let Some(report) = self.reports.recv().await {
                if let Report::Snapshot { config, pins } = report {
                    return Some((config, pins));
                }
            }
            None
        };
        if let Ok(Some((config, pins))) = tokio::time::timeout(Duration::from_secs(1), wait).await {
            self.keep(config.as_deref(), &pins);
        }
    }
}
