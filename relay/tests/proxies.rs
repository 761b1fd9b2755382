//! A relay behind proxies: whom it takes its clients for, and who is not believed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meshdp::engine::tls::{Roots, client_config};
use meshdp::proto::wire::frame::FrameType;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use support::*;

/// One worker, so that limits are exact; two unauthenticated connections for each address.
fn start(relay: &str, flags: &[&str]) -> (tempfile::TempDir, Relay) {
    let directory = tempfile::tempdir().unwrap();
    let more = format!("{relay}\n[limits]\nmax_unauthenticated_per_address = 2\n");
    let config = standalone(1, &more).replace("workers = 2", "workers = 1");
    let relay = Relay::start(directory.path(), &config, flags);
    (directory, relay)
}

/// A connection from another address of this machine.
async fn from(local: &str, relay: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(local.parse().unwrap(), 0)).unwrap();
    socket.connect(relay).await.unwrap()
}

fn v2(client: &str) -> Vec<u8> {
    let IpAddr::V4(client) = client.parse().unwrap() else { panic!("IPv4 only") };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend_from_slice(&client.octets());
    header.extend_from_slice(&[127, 0, 0, 1, 0xdc, 4, 1, 0xbb]);
    header
}

/// The addresses of the clients as `/debug/connections` has them.
fn clients(relay: &Relay) -> Vec<String> {
    let (_, list) = relay.admin("/debug/connections");
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    let mut clients: Vec<_> = list.iter().map(|one| one["peer"].as_str().unwrap().to_owned()).collect();
    clients.sort();
    clients
}

#[tokio::test]
async fn clients_of_one_proxy_are_limited_apart_and_strangers_cannot_forge_an_address() {
    let (_directory, relay) =
        start("trusted_proxies = [\"127.0.0.1/32\"]\nclient_address = \"X-Forwarded-For\"\n", &[]);
    let through = |proxy: &'static str, told: &'static str| async move {
        let stream = from(proxy, relay.data).await;
        Client::with_headers(stream, "/ws/data", &[("x-forwarded-for", told)]).await
    };
    let mut held = Vec::new();
    for told in ["203.0.113.7", "198.51.100.1, 203.0.113.7", "203.0.113.8"] {
        held.push(through("127.0.0.1", told).await);
    }
    assert_eq!(clients(&relay), ["203.0.113.7", "203.0.113.7", "203.0.113.8"]);
    assert_eq!(
        through("127.0.0.1", "203.0.113.7").await.expect_close().await,
        1013,
        "the third of one client"
    );
    held.push(through("127.0.0.1", "203.0.113.8").await);
    // Not the proxy: whatever it writes, it is itself, and its third is one too many.
    for told in ["203.0.113.9", "203.0.113.10"] {
        held.push(through("127.0.0.2", told).await);
    }
    assert_eq!(clients(&relay)[..2], ["127.0.0.2", "127.0.0.2"]);
    let mut refused = from("127.0.0.2", relay.data).await;
    let mut rest = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut refused, &mut rest).await;
    assert!(rest.is_empty());
    // Who has signed in does not count, whoever it is.
    let token = signer().sign(&relay_token(17, 1)).unwrap();
    held[0].sign_in(&token).await;
    assert_eq!(held[0].next().await.0, FrameType::AuthResponse);
    held.push(through("127.0.0.1", "203.0.113.7").await);
    assert_eq!(relay.metric_sum("edgelink_relay_refused_connections_total"), 2);
}

#[tokio::test]
async fn a_proxy_header_stands_before_tls_and_only_a_trusted_proxy_may_send_one() {
    let (directory, relay) =
        start("proxy_protocol = true\ntrusted_proxies = [\"127.0.0.1/32\"]\n", &["--dev"]);
    let pem = directory.path().join("state/self-signed.crt");
    let config = client_config(&Roots::File(pem), None).unwrap();
    let connect = |client: &'static str, slowly: bool| {
        let config = std::sync::Arc::clone(&config);
        async move {
            let mut stream = from("127.0.0.1", relay.data).await;
            let header = v2(client);
            if slowly {
                for byte in header {
                    stream.write_all(&[byte]).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            } else {
                stream.write_all(&header).await.unwrap();
            }
            tokio_rustls::TlsConnector::from(config)
                .connect(ServerName::try_from("localhost").unwrap(), stream)
                .await
        }
    };
    let mut first = Client::over(connect("203.0.113.7", false).await.unwrap(), "/ws/data").await;
    let _second = Client::over(connect("203.0.113.7", true).await.unwrap(), "/ws/data").await;
    let _other = Client::over(connect("203.0.113.8", false).await.unwrap(), "/ws/data").await;
    assert!(connect("203.0.113.7", false).await.is_err(), "the third of one client");
    assert_eq!(clients(&relay), ["203.0.113.7", "203.0.113.7", "203.0.113.8"]);
    first.sign_in(&signer().sign(&relay_token(17, 1)).unwrap()).await;
    assert_eq!(first.next().await.0, FrameType::AuthResponse);
    let big = data(17, 17, &vec![1; 50_000]);
    first.send(big.clone()).await;
    assert_eq!(first.next_frame().await, big);

    // Somebody else with the same header, and the proxy without one.
    let mut stranger = from("127.0.0.2", relay.data).await;
    let _ = stranger.write_all(&v2("203.0.113.9")).await;
    let mut bare = from("127.0.0.1", relay.data).await;
    bare.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
    for mut stream in [stranger, bare] {
        let mut rest = Vec::new();
        // An orderly end or a reset, but an end without a word.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await;
        assert!(rest.is_empty());
    }
    assert_eq!(clients(&relay).len(), 3);
}

#[tokio::test]
async fn a_plain_and_a_tls_listener_stand_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let list = "listen = [{ address = \"127.0.0.1:0\" }, { address = \"127.0.0.1:0\", tls = false, behind_proxy = true }]";
    let config = standalone(1, "").replace("listen = \"127.0.0.1:0\"\nworkers", &format!("{list}\nworkers"));
    let relay = Relay::start(directory.path(), &config, &["--dev"]);
    let [tls, plain] = relay.addresses[..] else { panic!("{:?}", relay.addresses) };
    let config = client_config(&Roots::File(directory.path().join("state/self-signed.crt")), None).unwrap();
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(ServerName::try_from("localhost").unwrap(), TcpStream::connect(tls).await.unwrap())
        .await
        .unwrap();
    let mut a = Client::over(stream, "/ws/data").await;
    a.sign_in(&signer().sign(&relay_token(17, 1)).unwrap()).await;
    assert_eq!(a.next().await.0, FrameType::AuthResponse);
    let mut b = Client::node(plain, 18, 1).await;
    b.send(data(18, 17, b"from the plain side")).await;
    assert_eq!(a.next_frame().await, data(18, 17, b"from the plain side"));
}

#[test]
fn a_health_check_of_the_proxy_is_no_clients() {
    let (_directory, relay) = start("proxy_protocol = true\ntrusted_proxies = [\"127.0.0.0/8\"]\n", &[]);
    for _ in 0..5 {
        let mut check = std::net::TcpStream::connect(relay.data).unwrap();
        check.set_read_timeout(Some(PATIENCE)).unwrap();
        check.write_all(b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut answer = String::new();
        check.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer:?}");
    }
}
