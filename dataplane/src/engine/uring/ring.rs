//! The ring itself: set-up, submission, completions.

use std::fmt;
use std::io;
use std::time::Duration;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

/// Submissions between two system calls; more are submitted early.
const ENTRIES: u32 = 512;
/// Completions that wait; over that the kernel keeps them (IORING_FEAT_NODROP).
const COMPLETIONS: u32 = 4096;

/// One completion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

pub(super) struct Ring {
    uring: IoUring,
    /// The kernel knows `IORING_OP_READ_MULTISHOT` (6.7).
    pub(super) read_multishot: bool,
}

impl Ring {
    /// Opens a ring with what the kernel has: completions run when this thread asks for them (6.1), else cooperatively (5.19).
    pub(super) fn open() -> io::Result<Self> {
        let build = |deferred: bool| {
            let mut builder = IoUring::builder();
            builder.setup_clamp().setup_cqsize(COMPLETIONS).setup_submit_all();
            if deferred {
                builder.setup_single_issuer().setup_defer_taskrun();
            } else {
                builder.setup_coop_taskrun();
            }
            builder.build(ENTRIES)
        };
        let uring = match build(true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false)?,
            other => other?,
        };
        if !(uring.params().is_feature_ext_arg() && uring.params().is_feature_nodrop()) {
            return Err(unsupported("timeouts in io_uring_enter"));
        }
        let mut probe = io_uring::Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        for (code, name) in [
            (opcode::RecvMulti::CODE, "receive"),
            (opcode::RecvMsgMulti::CODE, "receive message"),
            (opcode::Send::CODE, "send"),
            (opcode::AcceptMulti::CODE, "accept"),
            (opcode::PollAdd::CODE, "poll"),
            (opcode::Read::CODE, "read"),
            (opcode::AsyncCancel::CODE, "cancel"),
        ] {
            if !probe.is_supported(code) {
                return Err(unsupported(name));
            }
        }
        let read_multishot = probe.is_supported(opcode::ReadMulti::CODE);
        Ok(Self { uring, read_multishot })
    }

    /// Queues an operation, submitting earlier ones when the queue is full.
    ///
    /// # Safety
    /// All memory that `entry` names must stay where it is until its last completion (the one without `IORING_CQE_F_MORE`) has been taken from
    /// this ring, or until the ring is gone.
    #[expect(unsafe_code, reason = "the kernel keeps the addresses that an entry names")]
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the caller keeps what the entry names.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            match self.uring.submit() {
                Ok(_) => {}
                Err(error) if passes(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Submits what is queued and waits for a completion, at most `timeout`.
    pub(super) fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let outcome = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if passes(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Submits what is queued and gives completions that long to collect; the kernel does not wake this thread for each. Says whether there are
    /// any.
    pub(super) fn gather(&mut self, time: Duration) -> io::Result<bool> {
        let timespec = Timespec::from(time);
        let want = COMPLETIONS as usize;
        match self.uring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timespec)) {
            Err(error) if !passes(&error) => Err(error),
            _ => Ok(!self.uring.completion().is_empty()),
        }
    }

    /// Takes the completions that are there.
    pub(super) fn completions(&mut self, out: &mut Vec<Completion>) {
        out.extend(self.uring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
    }

    /// Cancels everything; completions follow.
    pub(super) fn cancel_all(&mut self) {
        let timeout = Timespec::from(Duration::from_secs(1));
        let _ = self.uring.submit();
        let _ = self.uring.submitter().register_sync_cancel(Some(timeout), CancelBuilder::any());
    }

    /// Registers a ring of provided buffers.
    ///
    /// # Safety
    /// `address` must be page-aligned memory for `entries` entries that stays until the ring is gone.
    #[expect(unsafe_code, reason = "the kernel keeps the address")]
    pub(super) unsafe fn register_buffers(
        &mut self,
        address: u64,
        entries: u16,
        group: u16,
    ) -> io::Result<()> {
        // SAFETY: the caller keeps the memory.
        unsafe { self.uring.submitter().register_buf_ring_with_flags(address, entries, group, 0) }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("read_multishot", &self.read_multishot).finish_non_exhaustive()
    }
}

/// Not failures: the time is over, a signal came, or completions must be taken first.
fn passes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

pub(super) fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("this kernel's io_uring lacks: {what}"))
}
