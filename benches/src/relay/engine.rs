//! Flows between clients that have signed in: one thread, one epoll, reading before sending.
//!
//! A flow goes from one client to another at a [`Pace`]: with a window, so that what is on its way stays bounded and nothing is lost; or by a
//! timetable that does not care what the server makes of it. By the timetable, what a socket does not take when it is due is *refused*: a sender
//! with a short queue drops it, and so does this one. What is due and sent is *sent*; what arrives is *delivered*.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::SockRef;

use super::client::Client;
use super::dialect::Batch;
use super::transport::{Reading, SCRATCH};

/// A flow with a window that has received nothing for so long has lost what it waits for.
const STALL: Duration = Duration::from_millis(300);
/// Frames that a flow sends before another one gets its turn; fewer when a timetable says what is sent.
const FRAMES_PER_TURN: u64 = 128;
const FRAMES_PER_TIMED_TURN: u64 = 32;
/// Frames that all send before what has arrived is read: receivers that are late would be part of the load.
const FRAMES_BETWEEN_READS: u64 = 512;
/// What is due for longer is refused: a sender's queue is not longer than that.
const LATEST: Duration = Duration::from_millis(20);
/// Bytes that a sender's socket holds beyond what the server's window takes, where more is offered than fits. Megabytes would lie there otherwise; on loopback
/// they are the very pages that the server receives, long cold, which no network would let it feel.
const SHORT_QUEUE: u32 = 32 << 10;
/// No client's.
const TIMER: Token = Token(usize::MAX);
/// When there is nothing to do.
const IDLE: Duration = Duration::from_millis(20);

/// When a flow sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// Not now.
    Never,
    /// As long as fewer frames than this are on their way.
    Window(u64),
    /// As often as the socket takes it.
    Flood,
    /// A batch each time so much has passed.
    Every(Duration),
}

/// From one client to another.
pub(super) struct Flow {
    /// Indices of clients.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Index of the sender among those that the receiver expects.
    source: usize,
    batch: Batch,
    pace: Pace,
    stamped: bool,
    /// Sends no more than this.
    limit: Option<u64>,
    /// By the timetable.
    due: Instant,
    queued: bool,
    /// Frames, in all.
    pub(super) sent: u64,
    pub(super) refused: u64,
    /// Given up, so that the window does not stay shut.
    lost: u64,
    /// For noticing a stall.
    seen: u64,
    seen_at: Instant,
}

impl Flow {
    /// `source` is the place of client `from` among the sources of client `to`.
    pub(super) fn new(from: usize, to: usize, source: usize, batch: Batch) -> Self {
        let now = Instant::now();
        Self {
            from,
            to,
            source,
            batch,
            pace: Pace::Never,
            stamped: false,
            limit: None,
            due: now,
            queued: false,
            sent: 0,
            refused: 0,
            lost: 0,
            seen: 0,
            seen_at: now,
        }
    }

    /// Its frames say when they were sent.
    pub(super) fn stamped(mut self) -> Self {
        self.stamped = true;
        self
    }

    /// It ends after so many frames.
    pub(super) fn limited(mut self, frames: u64) -> Self {
        self.limit = Some(frames);
        self
    }
}

/// Clients and flows.
pub(super) struct Engine {
    poll: Poll,
    events: Events,
    pub(super) clients: Vec<Client>,
    pub(super) flows: Vec<Flow>,
    /// Per client: in the queue of those to be read; its flow, if it sends.
    reading: Vec<bool>,
    sender_of: Vec<Vec<usize>>,
    receiver_of: Vec<Vec<usize>>,
    readable: VecDeque<usize>,
    sendable: VecDeque<usize>,
    timed: Vec<usize>,
    scratch: Vec<u8>,
    start: Instant,
    /// Frames of all flows that may be on their way at once.
    budget: u64,
    sent: u64,
    received: u64,
    given_up: u64,
    /// Nanoseconds that stamped frames took.
    pub(super) delays: Vec<u64>,
    /// Sleep until the next is due, rather than look for it all the time.
    pub(super) sleepy: bool,
    /// What it sleeps by: epoll counts in milliseconds.
    timer: TimerFd,
}

impl Engine {
    pub(super) fn new(mut clients: Vec<Client>, flows: Vec<Flow>) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        for (index, client) in clients.iter_mut().enumerate() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut client.transport.socket, Token(index), interest)?;
        }
        let mut sender_of = vec![Vec::new(); clients.len()];
        let mut receiver_of = vec![Vec::new(); clients.len()];
        for (index, flow) in flows.iter().enumerate() {
            sender_of[flow.from].push(index);
            receiver_of[flow.to].push(index);
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            reading: vec![false; clients.len()],
            sender_of,
            receiver_of,
            clients,
            flows,
            readable: VecDeque::new(),
            sendable: VecDeque::new(),
            timed: Vec::new(),
            scratch: vec![0; SCRATCH],
            start: Instant::now(),
            budget: u64::MAX,
            sent: 0,
            received: 0,
            given_up: 0,
            delays: Vec::new(),
            sleepy: false,
            timer,
        })
    }

    /// How fast one flow goes from now on.
    pub(super) fn pace(&mut self, flow: usize, pace: Pace) {
        self.flows[flow].pace = pace;
        self.timed.retain(|&timed| timed != flow);
        match pace {
            Pace::Never => {}
            Pace::Window(_) | Pace::Flood => self.queue(flow),
            Pace::Every(interval) => {
                // Flows do not all begin at once.
                let offset = interval.mul_f64(flow as f64 / self.flows.len() as f64);
                self.flows[flow].due = Instant::now() + offset;
                self.timed.push(flow);
            }
        }
    }

    /// How fast all go.
    pub(super) fn pace_all(&mut self, pace: Pace) {
        for flow in 0..self.flows.len() {
            self.pace(flow, pace);
        }
    }

    /// Keeps what waits in the clients' sockets short ([`SHORT_QUEUE`]).
    pub(super) fn shorten_queues(&self) -> anyhow::Result<()> {
        for client in &self.clients {
            SockRef::from(&client.transport.socket).set_tcp_notsent_lowat(SHORT_QUEUE)?;
        }
        Ok(())
    }

    /// Bounds what is on its way in all flows together.
    pub(super) fn set_budget(&mut self, frames: u64) {
        self.budget = frames;
    }

    /// Frames received by everybody.
    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    /// Frames sent and never received, up to now.
    pub(super) const fn missing(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// Frames that one flow delivered.
    pub(super) fn delivered(&self, flow: usize) -> u64 {
        let flow = &self.flows[flow];
        self.clients[flow.to].receiver.frames(flow.source)
    }

    /// Runs for so long.
    pub(super) fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        self.run_until(end, |_| false)
    }

    /// Sends no more, and waits until all has arrived or so much time has passed.
    pub(super) fn drain(&mut self, time: Duration) -> anyhow::Result<()> {
        self.pace_all(Pace::Never);
        let end = Instant::now() + time;
        self.run_until(end, |this| this.missing() == 0)
    }

    /// Runs until `end`, or until `done`.
    pub(super) fn run_until(&mut self, end: Instant, done: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let mut check_at = Instant::now() + STALL;
        loop {
            let now = Instant::now();
            if now >= end || done(self) {
                return Ok(());
            }
            if now >= check_at {
                self.give_up_stalled(now);
                check_at = now + STALL;
            }
            let timeout = self.timeout(now);
            self.events(timeout)?;
            // As many turns as there are now; those that come back wait for the next.
            for _ in 0..self.readable.len() {
                self.read_one()?;
            }
            let enough = self.sent + FRAMES_BETWEEN_READS;
            for _ in 0..self.timed.len() {
                // Whoever was last is first next time.
                self.timed.rotate_left(1);
                self.send_due(self.timed[0])?;
                if self.sent >= enough {
                    break;
                }
            }
            for _ in 0..self.sendable.len() {
                if self.sent >= enough || !self.send_one()? {
                    break;
                }
            }
        }
    }

    fn timeout(&self, now: Instant) -> Duration {
        if !self.readable.is_empty() || (!self.sendable.is_empty() && self.on_the_way() < self.budget) {
            return Duration::ZERO;
        }
        if self.timed.is_empty() {
            return IDLE;
        }
        if !self.sleepy {
            return Duration::ZERO;
        }
        let due = self.timed.iter().map(|&flow| self.flows[flow].due).min();
        due.map_or(IDLE, |due| due.saturating_duration_since(now).min(IDLE))
    }

    const fn on_the_way(&self) -> u64 {
        self.missing().saturating_sub(self.given_up)
    }

    fn events(&mut self, timeout: Duration) -> anyhow::Result<()> {
        if self.sleepy && !timeout.is_zero() {
            self.timer
                .set(Expiration::OneShot(TimeSpec::from_duration(timeout)), TimerSetTimeFlags::empty())?;
        }
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error).context("epoll"),
        }
        let mut writable = Vec::new();
        for event in self.events.iter().filter(|event| event.token() != TIMER) {
            let index = event.token().0;
            let transport = &mut self.clients[index].transport;
            if event.is_writable() && transport.blocked() && transport.flush()? {
                writable.push(index);
            }
            if event.is_readable() && !std::mem::replace(&mut self.reading[index], true) {
                self.readable.push_back(index);
            }
        }
        for client in writable {
            for index in 0..self.sender_of[client].len() {
                self.queue(self.sender_of[client][index]);
            }
        }
        Ok(())
    }

    fn read_one(&mut self) -> anyhow::Result<()> {
        let Some(index) = self.readable.pop_front() else { return Ok(()) };
        let client = &mut self.clients[index];
        let before = client.receiver.all_frames();
        match client.read(&mut self.scratch)? {
            Reading::Drained => self.reading[index] = false,
            Reading::More => self.readable.push_back(index),
        }
        client.look_at_notes(&mut self.scratch)?;
        let frames = client.receiver.all_frames() - before;
        if frames > 0 {
            let now = nanoseconds(self.start);
            self.delays.extend(client.receiver.take_stamps().map(|stamp| now.saturating_sub(stamp)));
            self.received += frames;
            for flow in 0..self.receiver_of[index].len() {
                self.queue(self.receiver_of[index][flow]);
            }
        }
        Ok(())
    }

    /// A flow with a window, or one that floods, gets a turn.
    fn queue(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        let by_turns = matches!(flow.pace, Pace::Window(_) | Pace::Flood);
        if by_turns && !std::mem::replace(&mut flow.queued, true) {
            self.sendable.push_back(index);
        }
    }

    /// Whether another one might send too.
    fn send_one(&mut self) -> anyhow::Result<bool> {
        let Some(index) = self.sendable.pop_front() else { return Ok(false) };
        let received = self.delivered(index);
        let flow = &mut self.flows[index];
        let window = match flow.pace {
            Pace::Window(window) => window,
            Pace::Flood => u64::MAX,
            Pace::Never | Pace::Every(_) => {
                flow.queued = false;
                return Ok(true);
            }
        };
        // With a budget for all, everybody gets one batch at a time.
        let turns = if self.budget == u64::MAX { (FRAMES_PER_TURN / flow.batch.frames).max(1) } else { 1 };
        // What was given up may have been late only.
        let lost = flow.lost.min(flow.sent.saturating_sub(received));
        self.given_up -= flow.lost - lost;
        flow.lost = lost;
        for _ in 0..turns {
            let flow = &self.flows[index];
            let on_the_way = flow.sent.saturating_sub(flow.lost).saturating_sub(received);
            let ended = flow.limit.is_some_and(|limit| flow.sent >= limit);
            let blocked = self.clients[flow.from].transport.blocked();
            if ended || blocked || on_the_way.saturating_add(flow.batch.frames) > window {
                self.flows[index].queued = false;
                return Ok(true);
            }
            if self.on_the_way() + flow.batch.frames > self.budget {
                self.sendable.push_front(index);
                return Ok(false);
            }
            self.send(index)?;
        }
        self.sendable.push_back(index);
        Ok(true)
    }

    /// Sends what the timetable says, as far as the socket takes it.
    fn send_due(&mut self, index: usize) -> anyhow::Result<()> {
        let Pace::Every(interval) = self.flows[index].pace else { return Ok(()) };
        let now = Instant::now();
        for _ in 0..(FRAMES_PER_TIMED_TURN / self.flows[index].batch.frames).max(1) {
            let flow = &mut self.flows[index];
            if flow.due > now {
                return Ok(());
            }
            flow.due += interval;
            if self.clients[flow.from].transport.blocked() {
                flow.refused += flow.batch.frames;
            } else {
                self.send(index)?;
            }
        }
        let flow = &mut self.flows[index];
        while flow.due + LATEST < now {
            flow.due += interval;
            flow.refused += flow.batch.frames;
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        let flow = &mut self.flows[index];
        if flow.stamped {
            flow.batch.stamp(nanoseconds(self.start));
        }
        let Batch { bytes, records, .. } = &flow.batch;
        self.clients[flow.from].transport.send_parts(bytes, records, &mut self.scratch)?;
        flow.sent += flow.batch.frames;
        self.sent += flow.batch.frames;
        Ok(())
    }

    /// A flow whose frames do not come gets its window back; what did not come is lost.
    fn give_up_stalled(&mut self, now: Instant) {
        for index in 0..self.flows.len() {
            let received = self.delivered(index);
            let flow = &mut self.flows[index];
            if received != flow.seen {
                (flow.seen, flow.seen_at) = (received, now);
            } else if now - flow.seen_at >= STALL && flow.sent > flow.lost + received {
                let lost = flow.sent - received;
                self.given_up += lost - flow.lost;
                flow.lost = lost;
                self.queue(index);
            }
        }
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
