//! What the control link says: how things stand with the controller, and configurations for the data thread.

use anyhow::bail;
use meshdp::engine::node::Command;
use meshdp::proto::wire::control::node::{AuthState, Change, NodeUpdate};

use super::setup::localise;
use super::{Daemon, unix_now};
use crate::control::link::LinkEvent;
use crate::control::sign_in::{News, authorise_advice};
use crate::ipc::message::ControllerState;

/// Tokens and handshakes carry dates: beyond this the clock is worth a warning.
const CLOCK_SKEW_S: u64 = 30;

impl Daemon {
    pub(super) fn handle_link(&mut self, event: LinkEvent) -> anyhow::Result<()> {
        let mut view = self.shared.view.borrow_mut();
        match event {
            LinkEvent::Connecting => view.controller(ControllerState::Connecting, None),
            LinkEvent::Lost { reason, retry_in } => {
                tracing::warn!(reason, retry_in_ms = retry_in.as_millis() as u64, "no controller");
                view.controller(ControllerState::Disconnected, Some(reason));
            }
            LinkEvent::Refused { advice } => {
                if self.shared.identity.borrow().config_version == 0 {
                    bail!(advice);
                }
                tracing::error!("{advice}. Going on with the last configuration; asking again in a minute");
                view.controller(ControllerState::Refused, Some(advice));
            }
            LinkEvent::News(news) => {
                drop(view);
                self.handle_news(news);
            }
        }
        Ok(())
    }

    fn handle_news(&mut self, news: News) {
        match news {
            News::ServerTime(theirs) => {
                let ours = unix_now();
                if ours.abs_diff(theirs) > CLOCK_SKEW_S {
                    tracing::warn!(
                        seconds = ours.abs_diff(theirs),
                        "this machine's clock and the controller's differ: relays may refuse tokens. Set the clock (timedatectl set-ntp true)"
                    );
                }
            }
            News::SignedIn(answer) => {
                let mut view = self.shared.view.borrow_mut();
                view.memberships = answer.nodes;
                if answer.state == AuthState::Authorised {
                    // What changed while it was away.
                    let endpoints = Some(view.endpoints().to_vec());
                    self.ask(NodeUpdate { endpoints, ..NodeUpdate::default() });
                    tracing::info!(controller = %self.shared.settings.controller.url, "signed in");
                    view.controller(ControllerState::Connected, None);
                }
            }
            News::Pending(nodes) => {
                let advice = authorise_advice(&nodes);
                let mut view = self.shared.view.borrow_mut();
                // Said by the answer and again by an error: once is enough in the log.
                if view.message() != Some(advice.as_str()) {
                    tracing::warn!("{advice}");
                }
                let state = if view.memberships.iter().any(|node| node.state == AuthState::Authorised) {
                    ControllerState::Connected
                } else {
                    ControllerState::Pending
                };
                view.controller(state, Some(advice));
            }
            News::Config(mut config) => {
                localise(&mut config.settings, &self.shared.settings);
                self.network = config.settings.clone();
                self.hand_over(Command::Config(config));
            }
            News::Update(mut update) => {
                for change in &mut update.changes {
                    if let Change::SettingsSet { settings } = change {
                        localise(settings, &self.shared.settings);
                        self.network = settings.clone();
                    }
                }
                self.hand_over(Command::Update(update));
            }
            News::Warning(error) => {
                tracing::warn!(code = error.code.code(), "the controller says: {}", error.message);
            }
        }
    }

    fn hand_over(&self, command: Command) {
        if let Err(error) = self.shared.data.send(command) {
            tracing::error!(%error, "a configuration was not taken; asking for all of it");
            self.ask(NodeUpdate { resync: true, ..NodeUpdate::default() });
        }
    }
}
