//! One relay without a controller: stock clients sign in, exchange frames, and get what the protocol says for each mistake.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use meshdp::engine::tls::{Roots, client_config, pin_of};
use meshdp::proto::error::ErrorCode;
use meshdp::proto::id::RelayId;
use meshdp::proto::token::Token;
use meshdp::proto::token::sign::TokenSigner;
use meshdp::proto::wire::frame::FrameType;
use meshdp::proto::wire::stun;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

use support::*;

fn start(more: &str) -> (tempfile::TempDir, Relay) {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(directory.path(), &standalone(1, more), &[]);
    (directory, relay)
}

#[tokio::test]
async fn stock_clients_exchange_frames_of_all_sizes_in_order() {
    let (_directory, relay) = start("");
    let mut a = Client::node(relay.data, 17, 1).await;
    // Several, so that some of them are on the other worker.
    let mut others = Vec::new();
    for node in 18..26 {
        others.push((node, Client::node(relay.data, node, 1).await));
    }
    for (node, client) in &mut others {
        let frames: Vec<_> =
            [0, 1, 1400, 16_384, 60_000].map(|size| data(17, *node, &vec![size as u8; size])).into();
        a.send(frames[..4].concat()).await;
        a.send(frames[4].clone()).await;
        for frame in &frames {
            assert_eq!(&client.next_frame().await, frame);
        }
        let back = data(*node, 17, b"back");
        client.send(back.clone()).await;
        assert_eq!(a.next_frame().await, back);
    }
    a.send(frame(FrameType::Ping, b"12345678")).await;
    assert_eq!(a.next().await, (FrameType::Pong, b"12345678".to_vec()));
    assert_eq!(relay.admin("/readyz").0, "HTTP/1.1 200 OK");
    assert_eq!(relay.metric("edgelink_relay_nodes"), 9);
    let (_, connections) = relay.admin("/debug/connections");
    let connections: Vec<serde_json::Value> = serde_json::from_str(&connections).unwrap();
    assert_eq!(connections.len(), 9);
    let workers: std::collections::BTreeSet<_> =
        connections.iter().map(|c| c["worker"].to_string()).collect();
    assert!(workers.len() <= 2);
}

#[tokio::test]
async fn bad_tokens_get_their_code_and_are_closed_with_1008() {
    let (_directory, relay) = start("");
    let base = relay_token(17, 1);
    let sign = |token: &Token<_>| signer().sign(token).unwrap();
    let mut elsewhere = base.clone();
    elsewhere.subject.allowed_relays = vec![RelayId(9)];
    let other_key = TokenSigner::eddsa("k1", &[8; 32]).unwrap().sign(&base).unwrap();
    let other_algorithm = TokenSigner::hs256("k1", &[7; 32]).unwrap().sign(&base).unwrap();
    let expired = Token { iat: now() - 100, exp: now() - 10, ..base.clone() };
    for (token, code) in [
        ("nonsense".to_owned(), ErrorCode::InvalidToken),
        ("x".repeat(5000), ErrorCode::InvalidToken),
        (other_key, ErrorCode::InvalidToken),
        (other_algorithm, ErrorCode::InvalidToken),
        (sign(&elsewhere), ErrorCode::InvalidToken),
        (mesh_token(2, 1), ErrorCode::InvalidToken),
        (sign(&expired), ErrorCode::TokenExpired),
    ] {
        let mut client = Client::connect(relay.data, "/ws/data").await;
        client.sign_in(&token).await;
        let error = client.expect_error().await;
        assert_eq!((error.code, error.fatal), (code, true), "{token}");
        assert_eq!(client.expect_close().await, 1008);
    }
    assert_eq!(relay.metric("edgelink_relay_errors_total{code=\"1001\"}"), 6);
}

#[tokio::test]
async fn malformed_messages_get_their_code_and_disturb_nobody_else() {
    let (_directory, relay) = start("");
    let mut bystander = Client::node(relay.data, 50, 1).await;
    for (message, code, close) in [
        (vec![2, 0x10, 0, 0, 0], ErrorCode::UnsupportedVersion, 1002),
        (vec![1, 0x77, 0, 0, 0], ErrorCode::Malformed, 1002),
        (vec![], ErrorCode::Malformed, 1002),
        (vec![1, 0x10, 0, 0, 9, 1], ErrorCode::Malformed, 1002),
        (vec![1, 0x10, 0x80, 0, 0], ErrorCode::Malformed, 1002),
        (frame(FrameType::AuthRequest, &vec![b' '; 40_000]), ErrorCode::TooLarge, 1009),
        (vec![0; 300 << 10], ErrorCode::TooLarge, 1009),
    ] {
        let mut client = Client::node(relay.data, 17, 1).await;
        let length = message.len();
        client.send(message).await;
        assert_eq!(client.expect_error().await.code, code, "{length} bytes");
        assert_eq!(client.expect_close().await, close);
    }
    let mut client = Client::node(relay.data, 17, 1).await;
    let text = tokio_tungstenite::tungstenite::Message::text("hello");
    futures_util::SinkExt::send(&mut client.socket, text).await.unwrap();
    assert_eq!(client.expect_error().await.code, ErrorCode::Malformed);
    client.expect_close().await;
    let to_self = data(50, 50, b"still here");
    bystander.send(to_self.clone()).await;
    assert_eq!(bystander.next_frame().await, to_self);
}

#[tokio::test]
async fn destinations_out_of_reach_get_3001_and_3002_once_a_second_and_spoofing_gets_nothing() {
    let (_directory, relay) = start("");
    let mut a = Client::node(relay.data, 17, 1).await;
    let mut other_network = Client::node(relay.data, 18, 2).await;
    let gone = Client::node(relay.data, 19, 1).await;
    drop(gone);
    while relay.metric("edgelink_relay_nodes") > 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        a.send([data(17, 99, b""), data(17, 18, b""), data(17, 19, b"")].concat()).await;
    }
    let mut errors = Vec::new();
    for _ in 0..3 {
        let error = a.expect_error().await;
        assert!(!error.fatal);
        errors.push((error.code.code(), error.node.unwrap().0));
    }
    errors.sort_unstable();
    assert_eq!(errors, [(3001, 18), (3001, 99), (3002, 19)]);
    a.send(data(18, 17, b"spoofed")).await;
    a.send(data(17, 17, b"own")).await;
    assert_eq!(a.next_frame().await, data(17, 17, b"own"));
    other_network.expect_silence().await;
    assert_eq!(relay.metric("edgelink_relay_drops_total{reason=\"spoofed_source\"}"), 1);
    assert_eq!(relay.metric("edgelink_relay_drops_total{reason=\"other_network\"}"), 20);
    assert_eq!(
        relay.metric("edgelink_relay_network_drops_total{network=\"1\",reason=\"other_network\"}"),
        20
    );
}

#[tokio::test]
async fn whoever_connects_and_says_nothing_is_cut_after_the_handshake_time() {
    let (_directory, relay) = start("[limits]\nhandshake_timeout_s = 0.5\n");
    let started = Instant::now();
    let mut silent = Client::connect(relay.data, "/ws/data").await;
    let mut raw = std::net::TcpStream::connect(relay.data).unwrap();
    raw.set_read_timeout(Some(PATIENCE)).unwrap();
    raw.write_all(b"GET /ws/data HTTP/1.1\r\n").unwrap();
    let mut node = Client::node(relay.data, 17, 1).await;
    assert_eq!(silent.expect_error().await.code, ErrorCode::InvalidToken);
    assert_eq!(silent.expect_close().await, 1008);
    assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
    let mut rest = Vec::new();
    // An orderly end or a reset, but an end.
    let _ = raw.read_to_end(&mut rest);
    assert!(started.elapsed() < Duration::from_secs(10));
    node.send(data(17, 17, b"on")).await;
    assert_eq!(node.next_frame().await, data(17, 17, b"on"));
    assert_eq!(relay.metric("edgelink_relay_nodes"), 1);
}

#[tokio::test]
async fn a_second_connection_of_a_node_replaces_the_first() {
    let (_directory, relay) = start("");
    let mut first = Client::node(relay.data, 17, 1).await;
    let mut second = Client::node(relay.data, 17, 1).await;
    let (kind, payload) = first.next().await;
    assert_eq!(kind, FrameType::GoAway);
    assert!(String::from_utf8(payload).unwrap().contains("\"replaced\""));
    assert_eq!(first.expect_close().await, 1000);
    second.send(data(17, 17, b"mine")).await;
    assert_eq!(second.next_frame().await, data(17, 17, b"mine"));
}

#[tokio::test]
async fn a_token_that_runs_out_ends_a_live_connection() {
    let (_directory, relay) = start("");
    let mut client = Client::connect(relay.data, "/ws/data").await;
    let token = Token { iat: now() - 10, exp: now() - 3, ..relay_token(17, 1) };
    client.sign_in(&signer().sign(&token).unwrap()).await;
    assert_eq!(client.next().await.0, FrameType::AuthResponse, "within the leeway");
    assert_eq!(client.expect_error().await.code, ErrorCode::TokenExpired);
    assert_eq!(client.expect_close().await, 1008);
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_else_and_its_queue_stays_bounded() {
    let (_directory, relay) = start("[limits]\nqueue_bytes = 262144\n");
    let mut a = Client::node(relay.data, 17, 1).await;
    let slow = Client::node(relay.data, 18, 1).await;
    let mut quick = Client::node(relay.data, 19, 1).await;
    let body = vec![7; 30_000];
    // More than the sockets' buffers take, however large the kernel made them.
    for round in 0..600u32 {
        a.send(data(17, 18, &body)).await;
        if round % 100 == 0 {
            let frame = data(17, 19, &round.to_be_bytes());
            a.send(frame.clone()).await;
            assert_eq!(quick.next_frame().await, frame);
        }
    }
    assert!(relay.metric("edgelink_relay_drops_total{reason=\"queue_full\"}") > 0);
    drop(slow);
}

#[tokio::test]
async fn term_says_goaway_drains_and_ends_with_success() {
    let (_directory, mut relay) = start("[limits]\ndrain_s = 10\n");
    let mut a = Client::node(relay.data, 17, 1).await;
    relay.signal("TERM");
    let (kind, payload) = a.next().await;
    assert_eq!(kind, FrameType::GoAway);
    assert_eq!(String::from_utf8(payload).unwrap(), "{\"reason\":\"drain\",\"grace_ms\":10000}");
    a.send(data(17, 17, b"last")).await;
    assert_eq!(a.next_frame().await, data(17, 17, b"last"), "frames still pass");
    let started = Instant::now();
    drop(a);
    assert!(relay.wait().success());
    assert!(started.elapsed() < Duration::from_secs(8), "nobody is left: no need to wait");
}

#[tokio::test]
async fn dev_makes_a_certificate_that_clients_pin() {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(directory.path(), &standalone(1, ""), &["--dev"]);
    let pem = directory.path().join("state/self-signed.crt");
    let certificate = CertificateDer::from_pem_file(&pem).unwrap();
    let connect = |pin| {
        let config = client_config(&Roots::File(pem.clone()), pin).unwrap();
        async move {
            let connector = tokio_rustls::TlsConnector::from(config);
            let stream = TcpStream::connect(relay.data).await.unwrap();
            connector.connect(ServerName::try_from("some.name").unwrap(), stream).await
        }
    };
    let stream = connect(Some(pin_of(&certificate))).await.unwrap();
    let mut a = Client::over(stream, "/ws/data").await;
    a.sign_in(&signer().sign(&relay_token(17, 1)).unwrap()).await;
    assert_eq!(a.next().await.0, FrameType::AuthResponse);
    let big = data(17, 17, &vec![1; 50_000]);
    a.send(big.clone()).await;
    assert_eq!(a.next_frame().await, big);
    assert!(connect(Some([0; 32])).await.is_err(), "another pin, another name");
}

#[test]
fn stun_answers_beside_the_relay() {
    let (_directory, relay) = start("");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = Vec::new();
    stun::binding_request([3; 12], &mut request);
    client.send_to(&request, relay.stun.unwrap()).unwrap();
    let mut answer = [0; 300];
    let (length, _) = client.recv_from(&mut answer).unwrap();
    assert_eq!(stun::parse_response(&answer[..length], &[3; 12]), Ok(client.local_addr().unwrap()));
    assert_eq!(relay.metric("edgelink_stun_requests_total{outcome=\"answered\"}"), 1);
}

#[test]
fn what_is_wrong_at_start_is_said_with_what_to_do() {
    let (directory, relay) = start("");
    let file = directory.path().join("other.toml");
    let run = |config: &str, arguments: &[&str]| {
        std::fs::write(&file, config).unwrap();
        let output = command().args(arguments).arg("--config").arg(&file).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let taken = standalone(1, "").replace(
        "[relay]\nid = 1\nlisten = \"127.0.0.1:0\"",
        &format!("[relay]\nid = 1\nlisten = \"{}\"", relay.data),
    );
    let taken = taken.replace("workers = 2", "workers = 1");
    let message = run(&taken, &[]);
    assert!(message.contains("in use") && message.contains(&relay.data.to_string()), "{message}");
    let message = run(&standalone(1, "wrokers = 3\n"), &["check"]);
    assert!(message.contains("other.toml:") && message.contains("workers\"?"), "{message}");
    let message =
        run(&standalone(1, "tls = { cert = \"missing.pem\", key = \"missing.key\" }\n"), &["check"]);
    assert!(message.contains("missing.pem does not exist"), "{message}");
    std::fs::write(&file, standalone(1, "")).unwrap();
    let output = command().arg("check").arg("--config").arg(&file).output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("configuration is valid"));
}

#[test]
fn bench_measures_a_relay_of_its_own() {
    let run = |arguments: &[&str]| {
        let output =
            command().args(["bench", "--pairs", "1", "--seconds", "0.3"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let report: serde_json::Value = serde_json::from_str(&run(&["--output", "json"])).unwrap();
    assert!(report["frames"].as_u64().unwrap() > 0 && report["tls"] == true, "{report}");
    assert!(report["cpu_ns_per_frame"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["latency_p50_us"].as_f64().unwrap() <= report["latency_max_us"].as_f64().unwrap());
    let table = run(&["--plain", "--size", "100", "--driver", "epoll"]);
    assert!(table.contains("WS without TLS") && table.contains("epoll"), "{table}");
    assert!(table.contains("CPU of the relay per frame"), "{table}");
}
