//! The hub's thread: everything about a relay that is slow.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::worker::ToShell;
use super::{HubInput, MAX_MESSAGE, RelayConfig, Shared, dial, state};
use crate::engine::dial::Outbound;
use crate::proto::relay::hub::{HubCommand, SavedState};
use crate::proto::relay::mesh::Dial;

/// Looks at the hub at least that often, whatever it says.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// After what workers have reported: what many of them say in a crowd is taken together, and does not wake this thread each time.
const REST: Duration = Duration::from_millis(1);

/// See the module's doc.
pub(super) struct HubThread {
    shared: Arc<Shared>,
    input: Receiver<HubInput>,
    state_dir: Option<PathBuf>,
    outbound: Outbound,
    next_worker: usize,
}

impl HubThread {
    pub(super) fn new(shared: &Arc<Shared>, input: Receiver<HubInput>, config: &RelayConfig) -> Self {
        Self {
            shared: Arc::clone(shared),
            input,
            state_dir: config.state_dir.clone(),
            outbound: Outbound {
                rules: config.proxies.clone(),
                roots: config.mesh_roots.clone(),
                certificate: None,
            },
            next_worker: 0,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let first = match self.input.recv_timeout(self.wait()) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut slow = Vec::new();
            let (mut stop, mut crowded) = (false, false);
            let inputs = first.into_iter().chain(self.input.try_iter());
            self.shared.with_hub(|hub, now| {
                for input in inputs {
                    match input {
                        HubInput::Worker(worker, report) => {
                            crowded = true;
                            hub.handle_worker(worker, report, now);
                        }
                        HubInput::DialFailed(relay) => hub.dial_failed(relay, now.instant),
                        HubInput::Execute(command) => slow.push(command),
                        HubInput::Wake => {}
                        HubInput::Stop => stop = true,
                    }
                }
            });
            for command in slow {
                match command {
                    HubCommand::Dial(dial) => self.dial(dial),
                    HubCommand::Save(saved) => self.save(&saved),
                    HubCommand::All(_) | HubCommand::One(..) => {}
                }
            }
            if stop {
                return;
            }
            if crowded {
                std::thread::sleep(REST);
            }
        }
    }

    fn wait(&self) -> Duration {
        let next = self.shared.hub().poll_timeout();
        next.map_or(MAX_WAIT, |(at, _)| (at - self.shared.clock.instant()).min(MAX_WAIT))
            // Timers of the hub need no more precision.
            .max(Duration::from_millis(10))
    }

    fn save(&self, saved: &SavedState) {
        if let Some(directory) = &self.state_dir
            && let Err(error) = state::save(directory, saved)
        {
            tracing::error!(%error, "state is not kept");
        }
    }

    fn dial(&mut self, dial: Dial) {
        let relay = dial.relay;
        let mailboxes = &self.shared.mailboxes;
        let Some(mailbox) = mailboxes.get(self.next_worker % mailboxes.len().max(1)).cloned() else {
            return;
        };
        self.next_worker = self.next_worker.wrapping_add(1);
        let (outbound, failed) = (self.outbound.clone(), self.shared.hub_input.clone());
        let attempt = move || match dial::dial(dial, &outbound, MAX_MESSAGE) {
            Ok(dialled) => mailbox.post(ToShell::Dialled(Box::new(dialled))),
            Err(error) => {
                tracing::warn!(%relay, %error, "mesh link cannot be made, trying again");
                let _ = failed.send(HubInput::DialFailed(relay));
            }
        };
        // One per peer at most: the mesh has one attempt under way.
        let thread = std::thread::Builder::new().name(format!("mesh-dial-{relay}")).spawn(attempt);
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for a mesh link");
            let _ = self.shared.hub_input.send(HubInput::DialFailed(relay));
        }
    }
}
