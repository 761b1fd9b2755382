//! The hub's thread: everything about a relay that is slow.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use super::worker::ToShell;
use super::{HubInput, MAX_MESSAGE, Mailbox, Shared, dial, state};
use crate::engine::tls::Roots;
use crate::proto::relay::hub::HubCommand;
use crate::proto::relay::mesh::Dial;

/// Looks at the hub at least that often, whatever it says.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// See the module's doc.
pub(super) struct HubThread {
    pub(super) shared: Arc<Shared>,
    pub(super) input: Receiver<HubInput>,
    pub(super) input_sender: Sender<HubInput>,
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) roots: Roots,
    pub(super) next_worker: usize,
}

impl HubThread {
    pub(super) fn run(mut self) {
        loop {
            let wait = self.wait();
            let first = match self.input.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = self.shared.clock.now();
            let mut hub = self.shared.hub();
            for input in first.into_iter().chain(self.input.try_iter()) {
                match input {
                    HubInput::Worker(worker, report) => hub.handle_worker(worker, report, now),
                    HubInput::DialFailed(relay) => hub.dial_failed(relay, now.instant),
                    HubInput::Wake => {}
                    HubInput::Stop => return,
                }
            }
            let mut commands = Vec::new();
            while let Some(command) = hub.poll_command(now) {
                commands.push(command);
            }
            drop(hub);
            self.shared.changed.notify_all();
            for command in commands {
                self.execute(command);
            }
        }
    }

    fn wait(&self) -> Duration {
        let next = self.shared.hub().poll_timeout();
        next.map_or(MAX_WAIT, |(at, _)| (at - self.shared.clock.instant()).min(MAX_WAIT))
            // A report for the controller may be due for a while before somebody takes it.
            .max(Duration::from_millis(10))
    }

    fn execute(&mut self, command: HubCommand) {
        match command {
            HubCommand::All(message) => {
                for mailbox in &self.mailboxes {
                    mailbox.post(ToShell::Hub(message.clone()));
                }
            }
            HubCommand::One(worker, message) => {
                if let Some(mailbox) = self.mailboxes.get(usize::from(worker.0)) {
                    mailbox.post(ToShell::Hub(message));
                }
            }
            HubCommand::Dial(dial) => self.dial(dial),
            HubCommand::Save(saved) => {
                if let Some(directory) = &self.state_dir
                    && let Err(error) = state::save(directory, &saved)
                {
                    tracing::error!(%error, "state is not kept");
                }
            }
        }
    }

    fn dial(&mut self, dial: Dial) {
        let relay = dial.relay;
        let Some(mailbox) = self.mailboxes.get(self.next_worker % self.mailboxes.len().max(1)).cloned()
        else {
            return;
        };
        self.next_worker = self.next_worker.wrapping_add(1);
        let (roots, failed) = (self.roots.clone(), self.input_sender.clone());
        let attempt = move || match dial::dial(dial, &roots, MAX_MESSAGE) {
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
            let _ = self.input_sender.send(HubInput::DialFailed(relay));
        }
    }
}
