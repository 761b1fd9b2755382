//! What runs out or stands still around the relay: descriptors, the disk behind its log, the reader of its log, its state directory, its controller, time.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use meshdp::proto::wire::frame::FrameType;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::raw::*;
use crate::siege::*;
use crate::support::*;

fn limit_descriptors(relay: &Relay, current: u64) {
    let limits = Rlimit { current: Some(current), maximum: Some(current) };
    prlimit(Pid::from_raw(relay.pid().cast_signed()), Resource::Nofile, limits).unwrap();
}

/// Processor time of all its threads so far.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    // USER_HZ is 100 on every Linux that this runs on.
    Duration::from_millis(ticks * 10)
}

fn without_descriptors(driver: &str) {
    let siege = Siege::plain(&format!("driver = \"{driver}\"\n[limits]\nhandshake_timeout_s = 60\n"));
    limit_descriptors(&siege.relay, siege.before.descriptors as u64 + 60);
    let crowd: Vec<_> =
        (0..400).map(|number| connect_from(address(number), siege.relay.data).unwrap()).collect();
    let until = Instant::now() + PATIENCE;
    while descriptors(siege.relay.pid()) < siege.before.descriptors + 60 {
        assert!(Instant::now() < until, "its descriptors are never exhausted");
        std::thread::sleep(Duration::from_millis(10));
    }
    siege.holds();
    let before = cpu_time(siege.relay.pid());
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_time(siege.relay.pid()).saturating_sub(before);
    assert!(spent < Duration::from_millis(700), "it waits for descriptors by working: {spent:?} of a second");
    siege.holds();
    drop(crowd);
    // Those who come now are let in as if nothing had been.
    let mut newcomer = Raw::node(siege.relay.data, 50, 1);
    newcomer.send(&message(&data(50, 50, b"in")));
    assert!(newcomer.next_frame().unwrap().1.ends_with(b"in"));
    drop(newcomer);
    siege.lift();
}

#[test]
fn out_of_descriptors_it_serves_whom_it_has_and_recovers_with_io_uring_or_whatever_there_is() {
    without_descriptors("auto");
}

#[test]
fn out_of_descriptors_it_serves_whom_it_has_and_recovers_with_epoll() {
    without_descriptors("epoll");
}

/// A relay whose log goes elsewhere; it listens where the system has just had a free port.
fn with_log(log: Stdio) -> Siege {
    let directory = tempfile::tempdir().unwrap();
    // An address that no client has: the port stays free.
    let free = || std::net::TcpListener::bind("127.200.1.1:0").unwrap().local_addr().unwrap();
    let (data, admin): (SocketAddr, SocketAddr) = (free(), free());
    let config = standalone(1, "[limits]\nhandshake_timeout_s = 60\n[log]\nlevel = \"debug\"\n")
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", &format!("[admin]\nlisten = \"{admin}\""))
        .replace("id = 1\nlisten = \"127.0.0.1:0\"", &format!("id = 1\nlisten = \"{data}\""));
    let relay = Relay::start_logging_to(directory.path(), &config, log, data, admin);
    Siege::around(directory, relay, None)
}

/// Makes the relay log more than any pipe holds.
fn make_noise(siege: &Siege) {
    for number in 0..3000 {
        let mut raw = Raw::over(connect_from(address(number), siege.relay.data).unwrap());
        raw.send(b"nonsense\r\n\r\n");
        if number % 500 == 0 {
            siege.holds();
        }
    }
    siege.relay.signal("HUP");
    siege.holds();
    Raw::node(siege.relay.data, 50, 1);
}

#[test]
fn a_full_disk_under_the_log_disturbs_nobody() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let siege = with_log(full.into());
    make_noise(&siege);
    siege.lift();
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let siege = with_log(Stdio::piped());
    make_noise(&siege);
    siege.lift();
}

#[test]
fn a_closed_log_disturbs_nobody() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let siege = with_log(writer.into());
    make_noise(&siege);
    siege.lift();
}

#[test]
fn stopped_for_two_seconds_it_goes_on_and_nothing_is_lost() {
    let siege = Siege::tls("");
    siege.relay.signal("STOP");
    // Those who come meanwhile wait in the kernel's queue.
    let waiting: Vec<_> =
        (0..50).map(|number| connect_from(address(number), siege.relay.data).unwrap()).collect();
    std::thread::sleep(Duration::from_secs(2));
    siege.relay.signal("CONT");
    siege.holds();
    drop(waiting);
    siege.lift();
}

#[tokio::test]
async fn a_controller_that_vanishes_stalls_or_raves_disturbs_nobody() {
    let directory = tempfile::tempdir().unwrap();
    // An address that no client has: its port stays free when it goes.
    let controller = Controller::at("127.200.1.2:0".parse().unwrap()).await;
    let at = controller.address();
    let relay = Relay::start(directory.path(), &controller.config(), &[]);
    let (mut link, _) = controller.accept().await;
    link.send(FrameType::Config, &config(1, &[], &[(50, 1, &[1])])).await;
    let siege = Siege::around(directory, relay, None);
    // It dies.
    drop((controller, link));
    let comes_in = |siege: &Siege| {
        siege.holds();
        let mut node = Raw::node(siege.relay.data, 50, 1);
        node.send(&message(&data(50, 50, b"in")));
        assert!(node.next_frame().unwrap().1.ends_with(b"in"));
    };
    comes_in(&siege);
    // Somebody else has its port: says nothing, hangs up at once, or talks nonsense.
    let listener = std::net::TcpListener::bind(at).unwrap();
    let nonsense = vec![0xff; 100_000];
    for answer in [
        &b"HTTP/1.1 500 Sorry\r\nContent-Length: 0\r\n\r\n"[..],
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: no\r\n\r\n",
        nonsense.as_slice(),
    ] {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(answer);
        comes_in(&siege);
    }
    let silent = listener.accept().unwrap();
    comes_in(&siege);
    drop((silent, listener));
    // It comes back and is talked to again.
    let controller = Controller::at(at).await;
    let (mut link, register) = controller.accept().await;
    assert_eq!(register["token"], "server-token");
    // Now it sends what no controller should.
    link.send_raw(frame(FrameType::Config, b"{\"version\": 1, \"relay_id\": 0}")).await;
    link.send_raw(frame(FrameType::ConfigUpdate, b"[]")).await;
    link.send_raw(frame(FrameType::Data, &[0; 30])).await;
    comes_in(&siege);
    link.send_raw(vec![9; 50]).await;
    comes_in(&siege);
    drop((link, controller));
    siege.lift();
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_disturbs_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start().await;
    let relay = Relay::start(directory.path(), &controller.config(), &[]);
    let (mut link, _) = controller.accept().await;
    let state = directory.path().join("state");
    std::fs::remove_dir_all(&state).unwrap();
    File::create(&state).unwrap();
    link.send(FrameType::Config, &config(1, &[], &[(50, 1, &[1])])).await;
    relay.logged("state is not kept");
    let siege = Siege::around(directory, relay, None);
    link.send(
        FrameType::ServerNodeLoc,
        &serde_json::json!({"set": locations(&[(51, 1, &[1])]), "remove": []}),
    )
    .await;
    Raw::node(siege.relay.data, 51, 1);
    siege.lift();
}

#[test]
fn killed_it_can_start_again_at_once_on_its_port() {
    let directory = tempfile::tempdir().unwrap();
    // An address that no client has.
    let at = |address: &str| {
        standalone(1, "")
            .replace("id = 1\nlisten = \"127.0.0.1:0\"", &format!("id = 1\nlisten = \"{address}\""))
    };
    let mut relay = Relay::start(directory.path(), &at("127.200.1.3:0"), &[]);
    for _ in 0..8 {
        let crowd: Vec<_> =
            (0..300).map(|number| connect_from(address(number), relay.data).unwrap()).collect();
        relay.kill();
        relay = Relay::start(directory.path(), &at(&relay.data.to_string()), &[]);
        drop(crowd);
    }
    Siege::around(directory, relay, None).lift();
}
