//! Log lines on their way out, by a thread of their own: a worker that logs never waits for a disk or for whoever reads the log.
//!
//! Lines wait in a bounded queue; what does not fit is lost, and how much was is the next line that gets through. Errors of writing (a full disk, a
//! reader that is gone) lose lines, too, and nothing else.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::LogFormat;

/// A burst of reconnecting nodes at `debug`; about a megabyte.
const WAITING: usize = 4096;
/// Whoever stops waits that long for the last lines at most.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The program's log. Clones are the same.
#[derive(Clone)]
pub(crate) struct Log {
    lines: Lines,
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Log {
    /// To standard error, from now on, panics of any thread included.
    pub(crate) fn start(level: &str, format: LogFormat) -> anyhow::Result<Self> {
        let (filter, handle) = reload::Layer::new(filter(level)?);
        let lines = Lines::to(io::stderr())?;
        let layer = tracing_subscriber::fmt::layer().with_writer(lines.clone());
        let subscriber = tracing_subscriber::registry().with(filter);
        match format {
            LogFormat::Text => subscriber.with(layer).init(),
            LogFormat::Json => subscriber.with(layer.json()).init(),
        }
        let log = Self { lines, filter: handle };
        let flushed = log.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current().name().unwrap_or("?").to_owned();
            tracing::error!(thread, what = %panic, "panic");
            // With panic = "abort" this is the last moment.
            flushed.flush();
        }));
        Ok(log)
    }

    /// Other lines from now on.
    pub(crate) fn set_filter(&self, filter: EnvFilter) -> anyhow::Result<()> {
        self.filter.reload(filter).context("log.level")
    }

    /// See [`Lines::flush`].
    pub(crate) fn flush(&self) {
        self.lines.flush();
    }
}

/// `RUST_LOG`, or else what the configuration says.
pub(crate) fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    match std::env::var("RUST_LOG") {
        Ok(filter) => EnvFilter::try_new(&filter).context("RUST_LOG"),
        Err(_) => EnvFilter::try_new(level).context("log.level"),
    }
}

enum ToWriter {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where lines go in. Clones are the same queue.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<ToWriter>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes to `out`.
    fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        std::thread::Builder::new().name("log".into()).spawn(move || write(out, &lines, &counter))?;
        Ok(Self { queue, lost })
    }

    /// Waits, for a moment at most, until all that was logged is written.
    fn flush(&self) {
        let until = Instant::now() + LAST_LINES;
        let (done, written) = sync_channel(1);
        while self.queue.try_send(ToWriter::Flush(done.clone())).is_err() {
            if Instant::now() > until {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write(mut out: impl Write, lines: &Receiver<ToWriter>, lost: &AtomicU64) {
    for line in lines {
        match line {
            ToWriter::Line(line) => {
                if out.write_all(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                match lost.swap(0, Ordering::Relaxed) {
                    0 => {}
                    lines => tracing::warn!(lines, "log lines were lost: the log was full or nobody read it"),
                }
            }
            ToWriter::Flush(done) => {
                let _ = out.flush();
                let _ = done.try_send(());
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &Lines {
    /// A whole line: the formatter writes each at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(ToWriter::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn lines_come_out_in_order_before_a_flush_returns() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let lines = Lines::to(Out(Arc::clone(&written))).unwrap();
        for number in 0..100u8 {
            (&lines).write_all(&[number]).unwrap();
        }
        lines.flush();
        assert_eq!(*written.lock().unwrap(), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn a_writer_that_stands_still_costs_lines_and_no_time() {
        let (release, held) = channel();
        let lines = Lines::to(Stuck(held)).unwrap();
        for _ in 0..3 * WAITING {
            (&lines).write_all(b"line\n").unwrap();
        }
        let lost = lines.lost.load(Ordering::Relaxed) as usize;
        // One is in the writer's hands.
        assert!((2 * WAITING - 1..=2 * WAITING).contains(&lost), "{lost}");
        drop(release);
    }

    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
