//! Devices of the kernel's in network namespaces of their own, with TCP between them: what is cut and put together on the way arrives whole, and neither end
//! sees a wrong checksum or sends anything twice.

use std::io::{BufRead, BufReader, IoSlice, Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Tun;
use super::linux::{Device, Offload, TunError};
use crate::packet::offload::{Coalescer, Fill, Format, Write};

/// Bytes each way, per connection.
const TOTAL: usize = 12 << 20;
const PORT: u16 = 5201;
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the ignored test `name` by itself in a user and a network namespace, and shows what it says; where such namespaces are forbidden it is skipped with
/// a line that says so.
pub(crate) fn in_namespace(name: &str) {
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", name])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("1 passed"), "there is a test of that name: {text}");
            print!("{text}");
        }
        Ok(output) if String::from_utf8_lossy(&output.stderr).starts_with("unshare:") => {
            println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output) => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
        }
        Err(error) => println!("skipped: no unshare: {error}"),
    }
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_stream_between_two_devices_arrives_whole() {
    in_namespace("tun::tests::inside_a_stream_between_two_devices");
}

#[test]
#[ignore = "run by a_stream_between_two_devices_arrives_whole in a namespace"]
fn inside_a_stream_between_two_devices() {
    let pairs = [
        (Offload::All, Offload::All, Fill::Partial),
        (Offload::All, Offload::Tcp, Fill::Complete),
        (Offload::Off, Offload::All, Fill::Partial),
        (Offload::Off, Offload::Off, Fill::Partial),
    ];
    for (n, (near, far, fill)) in pairs.into_iter().enumerate() {
        let (near_name, far_name) = (format!("near{n}"), format!("far{n}"));
        let (near, far) = match (Device::open_with(&near_name, near), Device::open_with(&far_name, far)) {
            (Ok(near), Ok(far)) => (near, far),
            (Err(error @ TunError::NoDevice), _) => return println!("skipped: {error}"),
            (near, far) => panic!("{:?} {:?}", near.err(), far.err()),
        };
        let mut other = Other::start();
        ip(&format!("link set {far_name} netns {}", other.child.id()));
        configure(&near_name, 1);
        other.say(&far_name);
        other.expect("listening");
        let formats = (near.format(), far.format());
        let wire = Wire::start(near, far, fill);
        for address in ["10.9.8.2", "fd09:8::2"] {
            exchange(SocketAddr::new(address.parse::<IpAddr>().unwrap(), PORT));
        }
        other.expect("received all");
        let carried = wire.stop();
        check_counters();
        other.expect("counters are right");
        if formats.0 == (Format::Vnet { uso: true }) {
            assert!(carried.longest > 20, "super-packets came: {carried:?}");
        }
        println!("{formats:?}, {fill:?}: {carried:?}");
    }
}

fn configure(device: &str, host: u8) {
    ip(&format!("link set {device} mtu 1400 txqueuelen 10000 up"));
    ip(&format!("address add 10.9.8.{host}/24 dev {device}"));
    ip(&format!("address add fd09:8::{host}/64 dev {device} nodad"));
}

fn pattern(n: usize) -> u8 {
    (n % 251) as u8 ^ (n >> 16) as u8
}

/// Sends and receives at once.
fn exchange(to: SocketAddr) {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    both_ways(&stream);
}

fn both_ways(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let whole: Vec<u8> = (0..TOTAL).map(pattern).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&*stream).write_all(&whole).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::with_capacity(TOTAL);
        (&*stream).read_to_end(&mut got).unwrap();
        assert!(got == whole, "{} of {TOTAL} bytes", got.len());
    });
}

/// What this namespace has counted: nothing was wrong, and nothing was sent again that had arrived the first time.
fn check_counters() {
    let snmp = counters("/proc/net/snmp");
    let extended = counters("/proc/net/netstat");
    let of = |table: &[(String, u64)], name: &str| {
        table.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
    };
    for name in ["Tcp:InErrs", "Tcp:InCsumErrors", "Udp:InCsumErrors", "Ip:InHdrErrors"] {
        assert_eq!(of(&snmp, name), 0, "{name}");
    }
    // A machine that is busy elsewhere is late with an answer: probes for what may be lost, and what the receiver says it had already.
    let needless: u64 = ["TCPDSACKRecv", "TCPDSACKOfoRecv", "TCPLossProbes"]
        .map(|name| of(&extended, &format!("TcpExt:{name}")))
        .into_iter()
        .sum();
    let again = of(&snmp, "Tcp:RetransSegs");
    let told: Vec<_> =
        snmp.iter().chain(&extended).filter(|(name, value)| name.starts_with("Tcp") && *value > 0).collect();
    assert!(again <= needless, "{again} segments sent again, {needless} of them needlessly: {told:?}");
}

fn counters(file: &str) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut counters = Vec::new();
    for pair in lines.chunks(2) {
        let (names, values) = (pair[0].split(' '), pair[1].split(' '));
        let table = pair[0].split(' ').next().unwrap();
        for (name, value) in names.zip(values).skip(1) {
            counters.push((format!("{table}{name}"), value.parse().unwrap_or(0)));
        }
    }
    counters
}

/// A process in a network namespace of its own, which runs [`the_other_end`].
struct Other {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Other {
    fn start() -> Self {
        let mut child = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "tun::tests::the_other_end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut other = Self { child, lines };
        other.expect("started");
        other
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn expect(&mut self, wanted: &str) {
        for line in &mut self.lines {
            let line = line.unwrap();
            if line == wanted {
                return;
            }
        }
        panic!("the other end has gone without saying {wanted:?}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "run by inside_a_stream_between_two_devices in a namespace of its own"]
fn the_other_end() {
    // Behind what the test harness says on the same line.
    println!("\nstarted");
    let mut device = String::new();
    std::io::stdin().read_line(&mut device).unwrap();
    configure(device.trim(), 2);
    let listener = TcpListener::bind(("::", PORT)).unwrap();
    println!("listening");
    for _ in 0..2 {
        let (stream, _) = listener.accept().unwrap();
        both_ways(&stream);
    }
    println!("received all");
    thread::sleep(Duration::from_millis(100));
    check_counters();
    println!("counters are right");
}

/// What went over the wire.
#[derive(Debug, Default)]
struct Carried {
    reads: usize,
    packets: usize,
    writes: usize,
    /// Packets in one read.
    longest: usize,
}

/// Carries packets between two devices on a thread of its own.
struct Wire {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Carried>,
}

impl Wire {
    fn start(near: Device, far: Device, fill: Fill) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || carry(near, far, fill, &stopped));
        Self { stop, thread }
    }

    fn stop(self) -> Carried {
        // The last acknowledgements.
        thread::sleep(Duration::from_millis(50));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn carry(mut near: Device, mut far: Device, fill: Fill, stop: &AtomicBool) -> Carried {
    let mut sum = Carried::default();
    let (mut to_near, mut to_far) = (Coalescer::new(near.format()), Coalescer::new(far.format()));
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(&near, PollFlags::IN), PollFd::new(&far, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        poll(&mut fds, Some(&timeout)).unwrap();
        hop(&mut near, &far, &mut to_far, fill, &mut sum);
        hop(&mut far, &near, &mut to_near, fill, &mut sum);
    }
    sum
}

fn hop(from: &mut Device, to: &Device, coalescer: &mut Coalescer, fill: Fill, sum: &mut Carried) {
    let format = from.format();
    let mut writes = 0;
    let mut write = |Write { header, packet, .. }: Write<'_>| {
        let written = rustix::io::writev(to.as_fd(), &[IoSlice::new(header), IoSlice::new(packet)]);
        assert_eq!(written, Ok(header.len() + packet.len()));
        writes += 1;
    };
    let mut packet = Vec::new();
    from.read_batch(64, &mut |read| {
        let whole = format.read(read).unwrap();
        sum.reads += 1;
        sum.packets += whole.count();
        sum.longest = sum.longest.max(whole.count());
        for index in 0..whole.count() {
            packet.resize(whole.len_of(index), 0);
            let checksum = whole.write(index, fill, &mut packet);
            coalescer.push(&mut packet, checksum, &mut write);
        }
    })
    .unwrap();
    coalescer.flush(&mut write);
    sum.writes += writes;
}
