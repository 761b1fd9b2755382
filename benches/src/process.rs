//! Server processes: started on a core of their own, their CPU time read from `/proc`, ended when they go out of scope.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Where servers run.
pub(crate) const SERVER_CORE: usize = 1;
/// Where the clients run.
pub(crate) const CLIENT_CORE: usize = 0;
/// From start until a port is open.
const START_TIME: Duration = Duration::from_secs(10);
/// How much of a server's output is shown when it fails.
const OUTPUT_SHOWN: usize = 2000;

/// Ties this thread, and what it starts from now on, to one core.
pub(crate) fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core).context("no such core")?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on core {core}"))
}

/// CPU time of the calling thread, nanoseconds.
pub(crate) fn own_cpu() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").context("schedstat of this thread")?;
    run_time(&text).context("schedstat of this thread is not what it was")
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port free")?;
    listener.local_addr().context("no port free")
}

/// A running server. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    output: PathBuf,
}

impl Server {
    /// Starts `command` on [`SERVER_CORE`] with its output in `output`, and waits until `address` accepts.
    pub(crate) fn start(mut command: Command, output: PathBuf, address: SocketAddr) -> anyhow::Result<Self> {
        let file = File::create(&output).with_context(|| format!("cannot write {}", output.display()))?;
        // Held open for the server's life: some end when it closes, so that none outlives us.
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        pin(SERVER_CORE)?;
        let child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()));
        pin(CLIENT_CORE)?;
        let mut server = Self { child: child?, output };
        let deadline = Instant::now() + START_TIME;
        while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", server.output_tail());
            }
            if Instant::now() > deadline {
                bail!("no answer on {address} after {START_TIME:?}:\n{}", server.output_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// CPU time of all its threads, nanoseconds. Threads that ended are not counted: servers here keep theirs.
    pub(crate) fn cpu(&self) -> anyhow::Result<u64> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut total = 0;
        for task in
            fs::read_dir(&tasks).with_context(|| format!("the server is gone:\n{}", self.output_tail()))?
        {
            // A thread may end between the listing and here.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            total += run_time(&text).context("schedstat is not what it was")?;
        }
        Ok(total)
    }

    /// The end of what it said.
    pub(crate) fn output_tail(&self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.output).and_then(|mut file| file.read_to_end(&mut bytes));
        if read.is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(OUTPUT_SHOWN)..]).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either fails only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first field of a `schedstat`: nanoseconds on a CPU.
fn run_time(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_of_schedstat_is_the_run_time() {
        assert_eq!(run_time("123456789 42 7\n"), Some(123_456_789));
        assert_eq!(run_time(""), None);
        assert_eq!(run_time("x 1 2"), None);
    }

    #[test]
    fn own_cpu_time_grows_with_work() {
        let before = own_cpu().expect("Linux");
        let mut sum = 0u64;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(30) {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        assert!(std::hint::black_box(sum) != 1 && own_cpu().expect("Linux") > before);
    }

    #[test]
    fn a_server_that_ends_at_once_is_reported_with_its_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no certificate >&2; exit 3"]);
        let output = std::env::temp_dir().join(format!("edgelink-bench-test-{}", std::process::id()));
        let address = free_port().expect("a port");
        let error = Server::start(command, output.clone(), address).expect_err("it ended");
        assert!(error.to_string().contains("no certificate"), "{error}");
        fs::remove_file(output).expect("it was written");
    }
}
