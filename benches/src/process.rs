//! Server processes: started on a core of their own, their CPU time read from `/proc`, ended when they go out of scope.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike as _;
use nix::unistd::Pid;
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

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

/// From now on this thread runs only when nothing else wants its core.
pub(crate) fn work_when_idle() -> anyhow::Result<()> {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
        .map_err(|error| anyhow!("cannot give way to other threads: {error}"))
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

/// CPU time of all threads of this process, those that ended included, nanoseconds.
pub(crate) fn whole_cpu() -> anyhow::Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let total = usage.user_time() + usage.system_time();
    Ok(u64::try_from(total.num_microseconds())? * 1000)
}

/// Lets this process and what it starts have as many open files as it may; how many that is.
pub(crate) fn raise_open_files() -> anyhow::Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// When a server that was started can be used.
#[derive(Clone, Debug)]
pub(crate) enum Ready {
    /// Its port accepts.
    Accepts,
    /// It has written this.
    Says(String),
}

/// A running server. Killed when dropped, if it was started here.
#[derive(Debug)]
pub(crate) struct Server {
    child: Option<Child>,
    /// Whose CPU time and memory count.
    pid: i32,
    output: PathBuf,
}

impl Server {
    /// Starts `command` on [`SERVER_CORE`] with its output in `output`, and waits until `address` accepts.
    pub(crate) fn start(command: Command, output: PathBuf, address: SocketAddr) -> anyhow::Result<Self> {
        Self::start_when(command, output, address, &Ready::Accepts)
    }

    /// The same, with another sign that it is ready.
    pub(crate) fn start_when(
        mut command: Command,
        output: PathBuf,
        address: SocketAddr,
        ready: &Ready,
    ) -> anyhow::Result<Self> {
        let file = File::create(&output).with_context(|| format!("cannot write {}", output.display()))?;
        // Held open for the server's life: some end when it closes, so that none outlives us.
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        pin(SERVER_CORE)?;
        let child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()));
        pin(CLIENT_CORE)?;
        let child = child?;
        let pid = i32::try_from(child.id())?;
        let mut server = Self { child: Some(child), pid, output };
        let deadline = Instant::now() + START_TIME;
        while !server.is_ready(ready, address) {
            if let Some(status) = server.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("the server ended with {status}:\n{}", server.output_tail());
            }
            if Instant::now() > deadline {
                bail!("not ready on {address} after {START_TIME:?}:\n{}", server.output_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Takes over the measuring of what somebody else started: its threads are tied to [`SERVER_CORE`].
    pub(crate) fn attach(pid: i32, address: SocketAddr) -> anyhow::Result<Self> {
        let server = Self { child: None, pid, output: PathBuf::new() };
        if !server.is_ready(&Ready::Accepts, address) {
            bail!("nobody listens on {address}");
        }
        Ok(server)
    }

    /// Counts what process `pid` uses, and ties its threads to [`SERVER_CORE`].
    pub(crate) fn count(&mut self, pid: i32) -> anyhow::Result<()> {
        let mut core = CpuSet::new();
        core.set(SERVER_CORE).context("no such core")?;
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("no process {pid}"))? {
            let task = task?.file_name().to_string_lossy().parse()?;
            sched_setaffinity(Pid::from_raw(task), &core)
                .with_context(|| format!("cannot move thread {task}"))?;
        }
        self.pid = pid;
        Ok(())
    }

    fn is_ready(&self, ready: &Ready, address: SocketAddr) -> bool {
        match ready {
            Ready::Accepts => TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok(),
            Ready::Says(words) => self.output_tail().contains(words),
        }
    }

    /// Resident memory, bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        resident_of(self.pid).with_context(|| format!("the server is gone:\n{}", self.output_tail()))
    }

    /// CPU time of all its threads, nanoseconds. Threads that ended are not counted: servers here keep theirs.
    pub(crate) fn cpu(&self) -> anyhow::Result<u64> {
        cpu_of(&self.pid.to_string()).with_context(|| format!("the server is gone:\n{}", self.output_tail()))
    }

    /// The end of what it said.
    pub(crate) fn output_tail(&self) -> String {
        tail_of(&self.output)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Either fails only when it is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn cpu_of(process: &str) -> anyhow::Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end between the listing and here.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += run_time(&text).context("schedstat is not what it was")?;
    }
    Ok(total)
}

/// The end of a file, as text; nothing when it cannot be read.
pub(crate) fn tail_of(file: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|mut file| file.read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(OUTPUT_SHOWN)..]).into_owned()
}

/// Resident memory of a process, bytes.
pub(crate) fn resident_of(pid: i32) -> anyhow::Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("no process {pid}"))?;
    resident(&status).context("the status of a process is not what it was")
}

/// `VmRSS` of a process' `status`, bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
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
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident("VmSize:\t 9 kB\nVmRSS:\t    5124 kB\nRssAnon:\t 1 kB\n"), Some(5124 * 1024));
        assert_eq!(resident("Name:\tzombie\n"), None);
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
