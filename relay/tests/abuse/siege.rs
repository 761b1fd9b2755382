//! A relay, two clients that behave, and what the relay used before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshdp::engine::tls::{Roots, client_config, pin_of};
use meshdp::proto::wire::frame::FrameType;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::support::*;

/// Memory that the allocator, the pools and the kernel's buffers may keep after an attack.
pub const SLACK: u64 = 24 << 20;
/// The bystanders' nodes and network; a third, of another network, must never hear anything.
pub const BYSTANDERS: [u32; 3] = [900_001, 900_002, 900_003];
pub const BYSTANDERS_NETWORK: u32 = 900;

/// What a relay's process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    pub rss: u64,
    pub descriptors: usize,
    pub connections: u64,
    pub unauthenticated: u64,
    pub nodes: u64,
}

impl Vitals {
    pub fn of(relay: &Relay) -> Self {
        let metrics = metrics(relay);
        let sum = |name| sum(&metrics, name);
        Self {
            rss: rss(relay.pid()),
            descriptors: descriptors(relay.pid()),
            connections: sum("edgelink_relay_connections"),
            unauthenticated: sum("edgelink_relay_unauthenticated_connections"),
            nodes: sum("edgelink_relay_nodes"),
        }
    }

    /// Waits until the relay is back at this, with `slack` bytes more of memory at most.
    pub fn wait_for(self, relay: &Relay, slack: u64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = Self::of(relay);
            let back = now.rss <= self.rss + slack
                // The connection that has asked for the metrics may still be open.
                && now.descriptors <= self.descriptors + 1
                && (now.connections, now.unauthenticated, now.nodes)
                    == (self.connections, self.unauthenticated, self.nodes);
            if back {
                return;
            }
            assert!(Instant::now() < until, "before: {self:?}, now: {now:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Of both workers: one that has its hands full may be left out.
fn metrics(relay: &Relay) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let (_, metrics) = relay.admin("/metrics");
        if metrics.matches("\nedgelink_relay_connections{").count() == 2 {
            return metrics;
        }
        assert!(Instant::now() < until, "a worker does not answer:\n{metrics}");
    }
}

/// Over all labels.
fn sum(metrics: &str, name: &str) -> u64 {
    let values = metrics.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
    });
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

pub fn rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A relay that is attacked.
pub struct Siege {
    pub directory: tempfile::TempDir,
    pub relay: Relay,
    pub bystanders: Bystanders,
    pub before: Vitals,
}

impl Siege {
    /// Plain, with `more` configuration.
    pub fn plain(more: &str) -> Self {
        Self::start(more, &[])
    }

    /// With TLS and a self-signed certificate.
    pub fn tls(more: &str) -> Self {
        Self::start(more, &["--dev"])
    }

    fn start(more: &str, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let relay = Relay::start(directory.path(), &standalone(1, more), flags);
        let tls = flags.contains(&"--dev").then(|| client_tls(directory.path()));
        Self::around(directory, relay, tls)
    }

    /// Around a relay that runs already.
    pub fn around(directory: tempfile::TempDir, relay: Relay, tls: Option<ClientConfig>) -> Self {
        let bystanders = Bystanders::start([relay.data, relay.data], tls);
        bystanders.keep_on();
        let before = Vitals::of(&relay);
        assert_eq!((before.connections, before.unauthenticated), (3, 0));
        Self { directory, relay, bystanders, before }
    }

    pub fn vitals(&self) -> Vitals {
        Vitals::of(&self.relay)
    }

    /// A counter over all workers.
    pub fn counter(&self, name: &str) -> u64 {
        sum(&metrics(&self.relay), name)
    }

    pub fn client_tls(&self) -> ClientConfig {
        client_tls(self.directory.path())
    }

    /// Proves that the relay forwards right now.
    pub fn holds(&self) {
        self.bystanders.keep_on();
    }

    /// The attack is over: what the bystanders sent has arrived, and the relay is as it was.
    pub fn lift(self) {
        self.lift_with(SLACK);
    }

    pub fn lift_with(self, slack: u64) {
        self.holds();
        self.before.wait_for(&self.relay, slack);
        self.bystanders.end();
    }
}

/// A client's configuration that trusts the certificate of a `--dev` relay.
pub fn client_tls(directory: &std::path::Path) -> ClientConfig {
    let certificate = CertificateDer::from_pem_file(directory.join("state/self-signed.crt")).unwrap();
    (*client_config(&Roots::None, Some(pin_of(&certificate))).unwrap()).clone()
}

/// Two clients that exchange frames on a thread of their own, in step: each frame must be the next one to come.
pub struct Bystanders {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}
type Peer = Client<Box<dyn Io>>;

impl Bystanders {
    /// The first client (and the one that must hear nothing) at the first relay, the second at the second.
    pub fn start(relays: [SocketAddr; 2], tls: Option<ClientConfig>) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(exchange(relays, tls.map(Arc::new), &stopped, &counted));
        });
        Self { stop, rounds, thread }
    }

    /// Waits for several more rounds.
    pub fn keep_on(&self) {
        let until = Instant::now() + PATIENCE;
        let wanted = self.rounds.load(Ordering::Relaxed) + 10;
        while self.rounds.load(Ordering::Relaxed) < wanted {
            assert!(!self.thread.is_finished(), "a bystander was disturbed: see its panic above");
            assert!(Instant::now() < until, "bystanders' frames do not arrive any more");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All that was sent has arrived, and nothing else.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("bystanders");
    }
}

async fn peer(relay: SocketAddr, tls: Option<&Arc<ClientConfig>>, node: u32, network: u32) -> Peer {
    let tcp = TcpStream::connect(relay).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let stream: Box<dyn Io> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
            Box::new(connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap())
        }
    };
    let mut client = Client::over(stream, "/ws/data").await;
    client.sign_in(&signer().sign(&relay_token(node, network)).unwrap()).await;
    assert_eq!(client.next().await.0, FrameType::AuthResponse);
    client
}

async fn exchange(
    relays: [SocketAddr; 2],
    tls: Option<Arc<ClientConfig>>,
    stop: &AtomicBool,
    rounds: &AtomicU64,
) {
    let [a_id, b_id, stranger_id] = BYSTANDERS;
    let mut a = peer(relays[0], tls.as_ref(), a_id, BYSTANDERS_NETWORK).await;
    let mut b = peer(relays[1], tls.as_ref(), b_id, BYSTANDERS_NETWORK).await;
    let mut stranger = peer(relays[0], tls.as_ref(), stranger_id, BYSTANDERS_NETWORK + 1).await;
    while !stop.load(Ordering::Relaxed) {
        let round = rounds.load(Ordering::Relaxed);
        let frames = |from: u32, to: u32| -> Vec<Vec<u8>> {
            let body = |part: u64| [&round.to_be_bytes()[..], &part.to_be_bytes()].concat();
            let sizes = [0, 200, 1400, if round.is_multiple_of(16) { 30_000 } else { 60 }];
            sizes
                .iter()
                .zip(0..)
                .map(|(&size, part)| {
                    let mut body = body(part);
                    body.resize(16 + size, part as u8);
                    data(from, to, &body)
                })
                .collect()
        };
        let (there, back) = (frames(a_id, b_id), frames(b_id, a_id));
        a.send(there.concat()).await;
        b.send(back.concat()).await;
        for (expected, by) in there.iter().map(|f| (f, true)).chain(back.iter().map(|f| (f, false))) {
            let got = if by { b.next_frame().await } else { a.next_frame().await };
            assert!(
                got == *expected,
                "round {round}: expected {:?}…, got {:?}…",
                &expected[..expected.len().min(40)],
                String::from_utf8_lossy(&got[..got.len().min(200)])
            );
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    a.expect_silence().await;
    b.expect_silence().await;
    stranger.expect_silence().await;
}
