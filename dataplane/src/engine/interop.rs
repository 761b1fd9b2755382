//! Connections over each driver against a stock client and server (tokio-tungstenite over tokio-rustls), and both drivers against each other.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant as Clock};

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::connection::{ClientOptions, Connection, Incoming, ServerOptions};
use super::driver::{Driver, Event, Token};
use super::epoll::Epoll;
use super::outbox::Outbox;
use super::tls::{Roots, client_config, self_signed};
use super::uring::Uring;
use super::{Opened, Prefer, open, socket};
use crate::packet::pool::Pool;
use crate::proto::error::ErrorCode;
use crate::proto::time::Instant;
use crate::proto::wire::websocket::Role;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(20);

/// The drivers that can be opened here.
fn drivers() -> Vec<Prefer> {
    match Uring::open() {
        Ok(_) => vec![Prefer::Epoll, Prefer::Uring],
        Err(error) => {
            println!("skipped on io_uring: {error}");
            vec![Prefer::Epoll]
        }
    }
}

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let directory = std::env::temp_dir().join(format!(
        "meshdp-interop-{}-{:?}",
        std::process::id(),
        thread::current().id()
    ));
    let (server, pin) = self_signed(&["relay.test".to_owned()], &directory).unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    (server, client_config(&Roots::None, Some(pin)).unwrap())
}

fn name() -> ServerName<'static> {
    ServerName::try_from("relay.test").unwrap()
}

/// Messages of all the sizes at which headers and records change form.
fn messages() -> Vec<Vec<u8>> {
    let lengths = [1usize, 125, 126, 1400, 16_384, 16_400, 65_535, 65_536, 200_000];
    lengths.into_iter().map(|length| (0..length).map(|i| (i % 253) as u8).collect()).collect()
}

/// One worker, as small as it gets.
struct Worker<D> {
    driver: D,
    pool: Pool,
    connections: BTreeMap<Token, (Connection, Outbox)>,
    finishing: Vec<Token>,
    closed: usize,
}

impl<D: Driver> Worker<D> {
    fn new(driver: D) -> Self {
        Self { driver, pool: Pool::new(), connections: BTreeMap::new(), finishing: Vec::new(), closed: 0 }
    }

    fn add(&mut self, token: Token, connection: Connection, role: Role) {
        let outbox = Outbox::new(role, connection.framing(), 64 << 20, &self.pool, [1; 32]);
        self.connections.insert(token, (connection, outbox));
    }

    /// Runs until `until` is true; every message that comes goes to `sink` with the outbox of its connection.
    fn run(
        &mut self,
        server: Option<&ServerOptions>,
        mut sink: impl FnMut(&[u8], &mut Outbox),
        mut until: impl FnMut(&Self) -> bool,
    ) {
        let deadline = Clock::now() + PATIENCE;
        while !until(self) {
            assert!(Clock::now() < deadline, "nothing happens any more");
            self.driver.wait(Some(Duration::from_millis(50))).unwrap();
            while let Some(event) = self.driver.next_event() {
                match event {
                    Event::Accepted { socket, .. } => {
                        let token = self.driver.stream(socket).unwrap();
                        let connection = Connection::server(server.unwrap(), &self.pool).unwrap();
                        self.add(token, connection, Role::Server);
                    }
                    Event::Received { token, buffer } => {
                        if let Some((connection, outbox)) = self.connections.get_mut(&token) {
                            let outcome = connection.receive(self.driver.bytes(&buffer), &mut |incoming| {
                                if let Incoming::Message(message) = incoming {
                                    sink(message, outbox);
                                }
                            });
                            if let Err(error) = outcome {
                                connection.close(
                                    error.error_code().and_then(ErrorCode::close_code).unwrap_or(1002),
                                    "",
                                );
                            }
                        }
                        self.driver.recycle(buffer);
                    }
                    Event::Closed { token, .. } => {
                        self.connections.remove(&token);
                        self.closed += 1;
                    }
                    _ => {}
                }
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        for (&token, (connection, outbox)) in &mut self.connections {
            if self.driver.can_send(token) {
                if let Some(buffer) = connection.take_output(outbox).unwrap() {
                    self.driver.send(token, buffer);
                } else if connection.is_finished() && !self.finishing.contains(&token) {
                    self.finishing.push(token);
                    self.driver.shutdown(token);
                }
            }
        }
    }
}

/// Echoes every message of `connections` connections, on a thread of its own.
fn echo_server(
    prefer: Prefer,
    tls: Option<Arc<ServerConfig>>,
    connections: usize,
) -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = socket::tcp_listener(LOCAL, false).unwrap();
    let address = socket::local_address(&listener).unwrap();
    let options = ServerOptions { tls, paths: &["/ws/data"], max_message: 256 << 10 };
    let serve = move || match open(prefer).unwrap() {
        Opened::Uring(driver) => serve(driver, listener, &options, connections),
        Opened::Epoll(driver) => serve(driver, listener, &options, connections),
    };
    (address, thread::spawn(serve))
}

fn serve<D: Driver>(mut driver: D, listener: OwnedFd, options: &ServerOptions, connections: usize) {
    driver.listen(listener).unwrap();
    let mut worker = Worker::new(driver);
    let echo = |message: &[u8], outbox: &mut Outbox| {
        // A message of the client's becomes frames that are shorter than a frame may be at most.
        message.chunks(60_000).for_each(|chunk| outbox.push(chunk, Instant::ZERO).unwrap());
    };
    worker.run(Some(options), echo, |worker| worker.closed == connections);
}

async fn stock_client<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let (mut socket, response) =
        tokio_tungstenite::client_async("ws://relay.test/ws/data", stream).await.unwrap();
    assert_eq!(response.status(), 101);
    for message in messages() {
        socket.send(Message::Ping("are you there".into())).await.unwrap();
        socket.send(Message::Binary(message.clone().into())).await.unwrap();
        let (mut got, mut pongs) = (Vec::new(), 0);
        while got.len() < message.len() || pongs == 0 {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(part) => got.extend_from_slice(&part),
                Message::Pong(payload) => {
                    assert_eq!(&payload[..], b"are you there");
                    pongs += 1;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(got == message);
    }
    socket.close(Some(CloseFrame { code: 1001.into(), reason: "done".into() })).await.unwrap();
    let answer = socket.next().await.unwrap().unwrap();
    assert!(matches!(answer, Message::Close(Some(frame)) if u16::from(frame.code) == 1001));
    assert!(socket.next().await.is_none());
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.unwrap() });
}

#[test]
fn a_stock_client_talks_to_our_server() {
    let (server_tls, client_tls) = configs();
    for prefer in drivers() {
        let (address, server) = echo_server(prefer, None, 1);
        block_on(async { stock_client(tokio::net::TcpStream::connect(address).await.unwrap()).await });
        server.join().unwrap();

        let (address, server) = echo_server(prefer, Some(Arc::clone(&server_tls)), 1);
        block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let connector = TlsConnector::from(Arc::clone(&client_tls));
            let mut stream = connector.connect(name(), stream).await.unwrap();
            // Asks us to change keys too, before anything else.
            stream.get_mut().1.refresh_traffic_keys().unwrap();
            assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            stock_client(stream).await;
        });
        server.join().unwrap();
    }
}

/// A stock server that echoes one connection, on a thread of its own.
fn stock_server(tls: Option<Arc<ServerConfig>>) -> (SocketAddr, thread::JoinHandle<()>) {
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_binary() {
                socket.send(message).await.unwrap();
                socket.send(Message::Ping("still there".into())).await.unwrap();
            }
        }
    }
    let listener = std::net::TcpListener::bind(LOCAL).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = thread::spawn(move || {
        block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            match tls {
                Some(config) => serve(TlsAcceptor::from(config).accept(stream).await.unwrap()).await,
                None => serve(stream).await,
            }
        });
    });
    (address, server)
}

/// Sends all messages (up to what the other end's limit allows as frames) and compares what comes back.
fn our_client<D: Driver>(mut driver: D, address: SocketAddr, tls: Option<Arc<ClientConfig>>) {
    let options = ClientOptions {
        tls: tls.map(|config| (config, name())),
        host: "relay.test".into(),
        path: "/ws/data".into(),
        max_message: 256 << 10,
    };
    let token = driver.connect(address).unwrap();
    let mut worker = Worker::new(driver);
    let connection = Connection::client(&options, &worker.pool, [5; 16]).unwrap();
    worker.add(token, connection, Role::Client);
    let whole = messages().concat();
    let outbox = &mut worker.connections.get_mut(&token).unwrap().1;
    whole.chunks(50_000).for_each(|frame| outbox.push(frame, Instant::ZERO).unwrap());
    let got = std::cell::RefCell::new(Vec::new());
    let keep = |message: &[u8], _: &mut Outbox| got.borrow_mut().extend_from_slice(message);
    worker.run(None, keep, |_| got.borrow().len() == whole.len());
    assert!(*got.borrow() == whole);
    worker.connections.get_mut(&token).unwrap().0.close(1000, "");
    worker.flush();
    worker.run(None, |_, _| {}, |worker| worker.closed == 1);
}

fn with_driver(prefer: Prefer, address: SocketAddr, tls: Option<Arc<ClientConfig>>) {
    match open(prefer).unwrap() {
        Opened::Uring(driver) => our_client(driver, address, tls),
        Opened::Epoll(driver) => our_client(driver, address, tls),
    }
}

#[test]
fn our_client_talks_to_a_stock_server() {
    let (server_tls, client_tls) = configs();
    for prefer in drivers() {
        for tls in [false, true] {
            let (address, server) = stock_server(tls.then(|| Arc::clone(&server_tls)));
            with_driver(prefer, address, tls.then(|| Arc::clone(&client_tls)));
            server.join().unwrap();
        }
    }
}

#[test]
fn each_driver_talks_to_each() {
    let (server_tls, client_tls) = configs();
    for one in drivers() {
        for other in drivers() {
            let (address, server) = echo_server(one, Some(Arc::clone(&server_tls)), 1);
            with_driver(other, address, Some(Arc::clone(&client_tls)));
            server.join().unwrap();
        }
    }
}

#[test]
fn a_driver_can_be_forced_and_unknown_names_are_refused() {
    assert!(matches!(open(Prefer::Epoll), Ok(Opened::Epoll(Epoll { .. }))));
    assert_eq!("io_uring".parse::<Prefer>().unwrap(), Prefer::Uring);
    assert_eq!("auto".parse::<Prefer>().unwrap(), Prefer::Auto);
    assert!("kqueue".parse::<Prefer>().unwrap_err().to_string().contains("kqueue"));
}
