//! `edgelink-relay bench`: what this machine can relay, measured on loopback within this process.
//!
//! A relay is started as for production; pairs of stock WebSocket clients push frames through it, each with a window of frames under way so that
//! the relay is never offered more than it can carry. What the relay costs is read from the kernel's account of its threads, so the clients' own
//! cost is not in it; the throughput is also theirs, and on a small machine they are what ends first.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use meshdp::engine::relay::{Listener, RelayConfig, RelayHandle};
use meshdp::engine::tls::{self, Roots};
use meshdp::proto::id::{NetworkId, NodeId, RelayId};
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::token::{RelaySubject, Token};
use meshdp::proto::wire::control::server::TokenKeys;
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, write_frame};
use meshdp::proto::wire::reassembly::write_control;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::args::{BenchOptions, Output};

/// Frames in one message, as a node coalesces them.
const BATCH: usize = 16;
/// Frames under way per pair.
const WINDOW: usize = 256;
const WARM_UP: Duration = Duration::from_millis(500);
/// Between two packets of the pair that measures latency.
const PROBE_INTERVAL: Duration = Duration::from_millis(2);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
type Socket = WebSocketStream<Box<dyn Stream>>;

/// What came of it.
#[derive(Debug, serde::Serialize)]
struct Report {
    pairs: u32,
    size_bytes: u32,
    workers: u32,
    driver: &'static str,
    tls: bool,
    seconds: f64,
    frames: u64,
    frames_per_s: f64,
    goodput_gbit_s: f64,
    /// Of the relay's threads.
    cpu_ns_per_frame: Option<f64>,
    latency_p50_us: f64,
    latency_p99_us: f64,
    latency_max_us: f64,
    dropped: u64,
}

/// Measures and prints.
pub(crate) fn run(options: &BenchOptions) -> anyhow::Result<()> {
    if !(options.seconds >= 0.1 && options.seconds <= 3600.0) {
        bail!("--seconds {}: from 0.1 to 3600", options.seconds);
    }
    let directory = Scratch::new()?;
    let signer = TokenSigner::eddsa("bench", &[7; 32]).context("key")?;
    let (tls, client) = if options.plain {
        (None, None)
    } else {
        let (server, pin) = tls::self_signed(&["localhost".to_owned()], directory.path())?;
        (Some(server), Some(tls::client_config(&Roots::None, Some(pin))?))
    };
    let mut config = RelayConfig { workers: options.workers as usize, ..RelayConfig::default() };
    config.driver = options.driver.parse().context("--driver")?;
    config.listeners.push(Listener::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), tls));
    config.settings.relay_id = RelayId(1);
    config.settings.has_controller = false;
    config.settings.token_keys =
        Some(TokenKeys { algorithm: signer.algorithm(), keys: vec![signer.verification_key()] });
    let relay = RelayHandle::start(config)?;
    let address = relay.data_addr().context("the relay does not listen")?;
    let shared = Arc::new(Shared::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(options, &relay, address, client, &signer, &shared))?;
    shared.stop.store(true, Ordering::Relaxed);
    runtime.shutdown_background();
    let report = report(options, &relay, &shared, &measured);
    relay.stop();
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print_table(&report),
    }
    Ok(())
}

#[derive(Default)]
struct Shared {
    frames: AtomicU64,
    stop: AtomicBool,
    /// Nanoseconds of each probe.
    latencies: Mutex<Vec<u64>>,
}

struct Measured {
    seconds: f64,
    frames: u64,
    cpu: Option<u64>,
}

async fn measure(
    options: &BenchOptions,
    relay: &RelayHandle,
    address: SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
    signer: &TokenSigner,
    shared: &Arc<Shared>,
) -> anyhow::Result<Measured> {
    let started = Instant::now();
    // The last pair measures latency beside the load.
    for pair in 0..=options.pairs {
        let (from, to) = (2 * pair + 1, 2 * pair + 2);
        let sender = connect(address, tls.clone(), signer, from).await?;
        let receiver = connect(address, tls.clone(), signer, to).await?;
        if pair == options.pairs {
            tokio::spawn(probe(sender, from, to, started));
            tokio::spawn(collect(receiver, Arc::clone(shared), started));
        } else {
            let window = Arc::new(Semaphore::new(WINDOW));
            let message = data(from, to, options.size as usize, 0)?.repeat(BATCH);
            tokio::spawn(push(sender, message, Arc::clone(&window)));
            tokio::spawn(pull(receiver, Arc::clone(shared), window));
        }
    }
    tokio::time::sleep(WARM_UP).await;
    let (frames, cpu, begun) = (shared.frames.load(Ordering::Relaxed), relay_cpu(), Instant::now());
    lock(&shared.latencies).clear();
    tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
    if let Some(reason) = relay.failure() {
        bail!("{reason}");
    }
    Ok(Measured {
        seconds: begun.elapsed().as_secs_f64(),
        frames: shared.frames.load(Ordering::Relaxed) - frames,
        cpu: relay_cpu().zip(cpu).map(|(after, before)| after - before),
    })
}

fn report(options: &BenchOptions, relay: &RelayHandle, shared: &Shared, measured: &Measured) -> Report {
    let &Measured { seconds, frames, cpu } = measured;
    let mut latencies = std::mem::take(&mut *lock(&shared.latencies));
    latencies.sort_unstable();
    let percentile = |percent: usize| {
        let place = latencies.len().saturating_sub(1) * percent / 100;
        latencies.get(place).map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
    };
    let stats = relay.stats();
    Report {
        pairs: options.pairs,
        size_bytes: options.size,
        workers: options.workers,
        driver: stats.workers.first().map_or("", |worker| worker.driver),
        tls: !options.plain,
        seconds,
        frames,
        frames_per_s: frames as f64 / seconds,
        goodput_gbit_s: frames as f64 * f64::from(options.size) * 8.0 / seconds / 1e9,
        cpu_ns_per_frame: cpu.filter(|_| frames > 0).map(|cpu| cpu as f64 / frames as f64),
        latency_p50_us: percentile(50),
        latency_p99_us: percentile(99),
        latency_max_us: percentile(100),
        dropped: stats.workers.iter().flat_map(|worker| worker.drops.iter()).map(|(_, n)| n).sum(),
    }
}

fn print_table(report: &Report) {
    let tls = if report.tls { "WSS" } else { "WS without TLS" };
    println!(
        "{} pairs, packets of {} bytes, {tls}, {} worker(s), {}, {:.1} s on loopback in one process",
        report.pairs, report.size_bytes, report.workers, report.driver, report.seconds
    );
    let cpu = report.cpu_ns_per_frame.map_or("unknown".into(), |cpu| format!("{cpu:.0} ns"));
    for (what, value) in [
        ("frames per second", format!("{:.0}", report.frames_per_s)),
        ("goodput", format!("{:.3} Gbit/s", report.goodput_gbit_s)),
        ("CPU of the relay per frame", cpu),
        ("latency under load, median", format!("{:.0} µs", report.latency_p50_us)),
        ("latency under load, 99 %", format!("{:.0} µs", report.latency_p99_us)),
        ("latency under load, longest", format!("{:.0} µs", report.latency_max_us)),
        ("frames dropped", report.dropped.to_string()),
    ] {
        println!("  {what:<28} {value:>16}");
    }
}

async fn connect(
    address: SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
    signer: &TokenSigner,
    node: u32,
) -> anyhow::Result<Socket> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let name = ServerName::try_from("localhost")?;
            Box::new(tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?)
        }
    };
    let (mut socket, _) = tokio_tungstenite::client_async("ws://localhost/ws/data", stream).await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let subject = RelaySubject {
        node_id: NodeId(node),
        network_id: NetworkId(1),
        allowed_relays: Vec::new(),
        rate_up: None,
        rate_down: None,
    };
    let token = Token { subject, jti: format!("bench-{node}"), iat: now, exp: now + 5400, not_after: None };
    let request = serde_json::json!({"kind": "relay", "token": signer.sign(&token)?, "version": "bench"});
    let mut out = Vec::new();
    write_control(FrameType::AuthRequest, Flags::NONE, request.to_string().as_bytes(), &mut out)?;
    socket.send(Message::binary(out)).await?;
    let answer = socket.next().await.context("closed at sign-in")??.into_data();
    let first = Frames::new(&answer).next().context("an empty answer to the sign-in")??;
    if first.header.kind != FrameType::AuthResponse {
        bail!("sign-in refused: {}", String::from_utf8_lossy(first.payload()));
    }
    Ok(socket)
}

/// A DATA frame whose body begins with `stamp`.
fn data(from: u32, to: u32, size: usize, stamp: u64) -> anyhow::Result<Vec<u8>> {
    let mut payload = vec![0; 8 + 12 + size];
    payload[..4].copy_from_slice(&from.to_be_bytes());
    payload[4..8].copy_from_slice(&to.to_be_bytes());
    payload[20..28].copy_from_slice(&stamp.to_be_bytes());
    let mut frame = Vec::new();
    write_frame(FrameType::Data, Flags::NONE, &payload, &mut frame)?;
    Ok(frame)
}

async fn push(mut socket: Socket, message: Vec<u8>, window: Arc<Semaphore>) {
    let message = tokio_tungstenite::tungstenite::Bytes::from(message);
    while let Ok(permit) = window.acquire_many(BATCH as u32).await {
        permit.forget();
        if socket.send(Message::Binary(message.clone())).await.is_err() {
            return;
        }
    }
}

async fn pull(mut socket: Socket, shared: Arc<Shared>, window: Arc<Semaphore>) {
    while let Some(Ok(message)) = socket.next().await {
        let frames = Frames::new(&message.into_data()).filter(is_data).count();
        window.add_permits(frames);
        shared.frames.fetch_add(frames as u64, Ordering::Relaxed);
    }
}

async fn probe(mut socket: Socket, from: u32, to: u32, started: Instant) {
    loop {
        let Ok(frame) = data(from, to, 64, started.elapsed().as_nanos() as u64) else { return };
        if socket.send(Message::binary(frame)).await.is_err() {
            return;
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}

async fn collect(mut socket: Socket, shared: Arc<Shared>, started: Instant) {
    while let Some(Ok(message)) = socket.next().await {
        let now = started.elapsed().as_nanos() as u64;
        let bytes = message.into_data();
        for frame in Frames::new(&bytes).filter(is_data).flatten() {
            if let Some(stamp) = frame.payload().get(20..28).and_then(|stamp| stamp.first_chunk::<8>()) {
                lock(&shared.latencies).push(now.saturating_sub(u64::from_be_bytes(*stamp)));
            }
        }
    }
}

fn is_data<E>(frame: &Result<meshdp::proto::wire::frame::Frame<'_>, E>) -> bool {
    frame.as_ref().is_ok_and(|frame| frame.header.kind == FrameType::Data)
}

/// Nanoseconds that the relay's workers have run, by the kernel's account of each thread.
fn relay_cpu() -> Option<u64> {
    let mut sum = None;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).ok();
        if read("comm").is_some_and(|name| name.starts_with("relay-") && !name.starts_with("relay-hub")) {
            let ran: u64 = read("schedstat")?.split_whitespace().next()?.parse().ok()?;
            sum = Some(sum.unwrap_or(0) + ran);
        }
    }
    sum
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder of our own for the certificate, gone afterwards.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let mut bytes = [0; 8];
        meshdp::engine::random(&mut bytes)?;
        let path = std::env::temp_dir().join(format!("edgelink-bench-{:016x}", u64::from_le_bytes(bytes)));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
