//! Dials on loopback, with proxies as simple as can be.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use rustls::{ServerConnection, StreamOwned};
use socket2::{Domain, SockAddr, Socket, Type};

use super::*;
use crate::engine::tls::self_signed;

const LIMIT: Duration = Duration::from_secs(10);

fn host(name: &str, port: u16) -> Host {
    Host { name: name.to_owned(), port }
}

fn through(proxy: &str) -> Outbound {
    let rules = ProxyRules { proxy: Some(proxy.parse().unwrap()), ..ProxyRules::default() };
    Outbound { rules, ..Outbound::default() }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A listener whose queue is full: the kernel drops what comes, as a black hole does.
fn black_hole() -> (Vec<Socket>, u16) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = vec![listener];
    for _ in 0..4 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address);
        held.push(socket);
    }
    (held, address.as_socket().unwrap().port())
}

/// Serves one client: `greet` is the proxy's part, then everything comes back as it went.
fn proxy<S: Read + Write + Send + 'static>(
    wrap: impl FnOnce(TcpStream) -> S + Send + 'static,
    greet: impl FnOnce(&mut BufReader<S>) -> bool + Send + 'static,
) -> (u16, JoinHandle<()>) {
    let (listener, port) = listener();
    let thread = std::thread::spawn(move || {
        let mut stream = BufReader::new(wrap(listener.accept().unwrap().0));
        if !greet(&mut stream) {
            return;
        }
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut bytes) {
            if stream.get_mut().write_all(&bytes[..read]).is_err() {
                return;
            }
        }
    });
    (port, thread)
}

/// The request's lines; the answer opens the way.
fn http_proxy<S: Read + Write>(stream: &mut BufReader<S>, wanted: &[&str]) -> bool {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let lets = wanted.iter().all(|want| lines.iter().any(|line| line == want));
    let answer: &[u8] = if lets {
        b"HTTP/1.1 200 Connection established\r\n\r\n"
    } else {
        b"HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n<html/>"
    };
    stream.get_mut().write_all(answer).unwrap();
    lets
}

/// What goes in comes out again, in any sizes.
fn echoes(connected: Connected) {
    let mut stream = TcpStream::from(connected.socket);
    stream.set_nonblocking(false).unwrap();
    let sent: Vec<u8> = (0..300_000u32).map(|n| (n * 7 + n / 256) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let sender = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == sent);
}

#[test]
fn goes_directly_where_there_is_no_proxy() {
    let (listener, port) = listener();
    let connected = Outbound::default().connect(&[host("127.0.0.1", port)], LIMIT).unwrap();
    assert_eq!((connected.host, connected.peer.port(), connected.bridged), (0, port, false));
    drop(listener.accept().unwrap());
    let connected = Outbound::default().connect(&[host("localhost", port)], LIMIT).unwrap();
    assert!(connected.peer.ip().is_loopback());
}

#[test]
fn goes_through_an_http_proxy_that_knows_the_name_and_the_password() {
    let (port, thread) = proxy(
        |tcp| tcp,
        |stream| {
            let login = "Proxy-Authorization: Basic amFuZTpodXNo";
            http_proxy(stream, &["CONNECT relay.invalid:443 HTTP/1.1", "Host: relay.invalid:443", login])
        },
    );
    let outbound = through(&format!("http://jane:hush@127.0.0.1:{port}"));
    let connected = outbound.connect(&[host("relay.invalid", 443)], LIMIT).unwrap();
    assert_eq!((connected.peer.port(), connected.bridged), (port, false));
    echoes(connected);
    thread.join().unwrap();
}

#[test]
fn a_wrong_password_is_told_as_such_and_not_shown() {
    let (port, _thread) = proxy(|tcp| tcp, |stream| http_proxy(stream, &["nobody gets in"]));
    let outbound = through(&format!("http://jane:hush@127.0.0.1:{port}"));
    let error = outbound.connect(&[host("relay.invalid", 443)], LIMIT).unwrap_err().to_string();
    assert!(error.starts_with(&format!("proxy http://127.0.0.1:{port}: ")), "{error}");
    assert!(error.contains("does not accept the user name and password"), "{error}");
    assert!(!error.contains("hush") && !error.contains("jane"), "{error}");
}

#[test]
fn goes_through_a_socks_proxy() {
    let (port, thread) = proxy(
        |tcp| tcp,
        |stream| {
            let mut exchange = |wanted: &[u8], answer: &[u8]| {
                let mut got = vec![0; wanted.len()];
                stream.read_exact(&mut got).unwrap();
                assert_eq!(got, wanted);
                stream.get_mut().write_all(answer).unwrap();
            };
            exchange(&[5, 2, 0, 2], &[5, 2]);
            exchange(b"\x01\x04jane\x04hush", &[1, 0]);
            exchange(b"\x05\x01\x00\x03\x0drelay.invalid\x01\xbb", &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            true
        },
    );
    let outbound = through(&format!("socks5h://jane:hush@127.0.0.1:{port}"));
    echoes(outbound.connect(&[host("relay.invalid", 443)], LIMIT).unwrap());
    thread.join().unwrap();
}

#[test]
fn goes_through_a_proxy_within_tls() {
    let directory = std::env::temp_dir().join(format!("meshdp-dial-{}", std::process::id()));
    let (config, _) = self_signed(&["localhost".to_owned()], &directory).unwrap();
    let (port, thread) = proxy(
        move |tcp| StreamOwned::new(ServerConnection::new(config).unwrap(), tcp),
        |stream| http_proxy(stream, &["CONNECT relay.invalid:443 HTTP/1.1"]),
    );
    let roots = Roots::File(directory.join("self-signed.crt"));
    let outbound = Outbound { roots, ..through(&format!("https://localhost:{port}")) };
    let connected = outbound.connect(&[host("relay.invalid", 443)], LIMIT).unwrap();
    assert!(connected.bridged);
    echoes(connected);
    thread.join().unwrap();
    let stranger = Outbound { roots: Roots::File(PathBuf::from("/does/not/exist")), ..outbound };
    assert!(matches!(stranger.connect(&[host("relay.invalid", 443)], LIMIT), Err(DialError::Tls(_))));
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_black_hole_holds_nothing_up() {
    let (_held, hole) = black_hole();
    let (_listener, port) = listener();
    let begun = std::time::Instant::now();
    let connected =
        Outbound::default().connect(&[host("127.0.0.1", hole), host("127.0.0.1", port)], LIMIT).unwrap();
    assert_eq!((connected.host, connected.peer.port()), (1, port));
    assert!((Duration::from_millis(250)..LIMIT).contains(&begun.elapsed()), "after the attempt delay");
}

#[test]
fn every_failure_is_told_and_a_proxy_that_is_silent_is_named() {
    let closed = || listener().1;
    let (one, two) = (closed(), closed());
    let error = Outbound::default()
        .connect(&[host("127.0.0.1", one), host("127.0.0.1", two)], LIMIT)
        .unwrap_err()
        .to_string();
    for port in [one, two] {
        assert!(error.contains(&format!("cannot connect to 127.0.0.1:{port}: ")), "{error}");
    }
    let (_listener, silent) = listener();
    let limit = Duration::from_secs(1);
    let error = through(&format!("http://127.0.0.1:{silent}"))
        .connect(&[host("relay.invalid", 443)], limit)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!("no answer from the proxy http://127.0.0.1:{silent} (127.0.0.1:{silent}) within 1 s")
    );
    assert!(matches!(Outbound::default().connect(&[], LIMIT), Err(DialError::System(_))));
}

#[test]
fn a_name_that_nobody_knows_is_told() {
    let error = Outbound::default().connect(&[host("no such name", 443)], LIMIT).unwrap_err();
    assert!(matches!(&error, DialError::Name { whom, .. } if whom == "no such name"), "{error}");
}
