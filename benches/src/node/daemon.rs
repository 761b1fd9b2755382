//! A program in a namespace and, if it is to be, on a core of its own; its CPU time, its memory, its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::lab::Place;
use crate::process::{pin, resident_of, tail_of};

/// From SIGTERM to SIGKILL.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks.
pub(super) const MOMENT: Duration = Duration::from_millis(30);

/// A running program. Ended when dropped.
pub(super) struct Daemon {
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, which [`Place::command`] made, on `core`, with its output in `log`.
    pub(super) fn start(mut command: Command, core: Option<usize>, log: PathBuf) -> anyhow::Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // It inherits the core of the thread that starts it.
        let started = thread::scope(|scope| {
            let start = || {
                core.map_or(Ok(()), pin)?;
                command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))
            };
            scope.spawn(start).join().map_err(|_| anyhow!("cannot start a thread"))?
        });
        let child = started?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Self { child, pid, log })
    }

    /// CPU time of all its threads, those that ended and io_uring's workers included, nanoseconds: what `/proc/PID/stat` says in hundredths of a
    /// second. What the kernel's own threads and interrupts did for it is charged to whom they interrupted, or to nobody.
    pub(super) fn cpu(&self) -> anyhow::Result<u64> {
        let gone = || format!("{} is gone: {}", self.log.display(), self.said());
        let time = ClockId::pid_cpu_clock_id(self.pid).and_then(ClockId::now).with_context(gone)?;
        Ok(u64::try_from(Duration::from(time).as_nanos())?)
    }

    /// Resident memory, bytes.
    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        resident_of(self.pid.as_raw()).with_context(|| format!("it said: {}", self.said()))
    }

    /// The end of what it said.
    pub(super) fn said(&self) -> String {
        tail_of(&self.log).trim().to_owned()
    }

    /// An error when it has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("it ended with {status}; it said: {}", self.said()),
            None => Ok(()),
        }
    }

    /// Waits until `sign` gives something; an error when the program has ended or `patience` is over.
    pub(super) fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut sign: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + patience;
        loop {
            let last = sign();
            if let Ok(Some(found)) = last {
                return Ok(found);
            }
            self.check()?;
            if Instant::now() > end {
                let why = last.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
                bail!("{what}: not within {patience:?}{why}; it said: {}", self.said());
            }
            thread::sleep(MOMENT);
        }
    }

    /// Waits for words in its output, and gives the line that has them.
    pub(super) fn wait_to_say(&mut self, words: &str, patience: Duration) -> anyhow::Result<String> {
        let log = self.log.clone();
        self.wait_for(&format!("{words:?} in its output"), patience, || {
            let text = fs::read_to_string(&log)?;
            Ok(text.lines().find(|line| line.contains(words)).map(str::to_owned))
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Either fails only when it is gone already.
        let _ = kill(self.pid, Signal::SIGTERM);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(MOMENT);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two daemons that make a tunnel.
pub(super) struct Pair {
    pub(super) a: Daemon,
    pub(super) b: Daemon,
    /// Of `b`, in the tunnel.
    pub(super) address: std::net::Ipv4Addr,
}

impl Pair {
    /// CPU time of both, nanoseconds.
    pub(super) fn cpu(&self) -> anyhow::Result<u64> {
        Ok(self.a.cpu()? + self.b.cpu()?)
    }

    /// Waits until a ping comes back through the tunnel.
    pub(super) fn wait_until_it_pings(&mut self, patience: Duration) -> anyhow::Result<()> {
        let target = self.address.to_string();
        let Self { a, b, .. } = self;
        a.wait_for("a ping through the tunnel", patience, || {
            let ping = Place::A.command("ping").args(["-n", "-q", "-c", "1", "-W", "1", &target]).output()?;
            Ok(ping.status.success().then_some(()))
        })
        .with_context(|| format!("the other end said: {}", b.said()))?;
        b.check()
    }
}

/// The program at `path`; an error that says who builds it.
pub(super) fn program(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_file() {
        bail!("{} is not there; make bench-node builds it", path.display());
    }
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}
