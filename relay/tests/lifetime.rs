//! Start, reload, take-over, drain, stop and failure of a relay, as an operator and systemd see them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use meshdp::engine::tls::{Roots, client_config, self_signed};
use meshdp::proto::wire::frame::FrameType;
use rustls::pki_types::ServerName;

use support::*;

fn start(more: &str) -> (tempfile::TempDir, Relay) {
    let directory = tempfile::tempdir().unwrap();
    let relay = Relay::start(directory.path(), &standalone(1, more), &[]);
    (directory, relay)
}

fn rewrite(directory: &tempfile::TempDir, change: impl Fn(String) -> String) {
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, change(std::fs::read_to_string(&file).unwrap())).unwrap();
}

#[tokio::test]
async fn hup_applies_what_it_can_and_says_what_needs_a_restart() {
    let (directory, relay) = start("[limits]\nmax_memberships = 1\n");
    let mut node = Client::node(relay.data, 17, 1).await;
    rewrite(&directory, |text| {
        text.replace("max_memberships = 1", "max_memberships = 2\ndrain_s = 1")
            .replace("workers = 2", "workers = 1")
            + "[log]\nlevel = \"debug\"\n"
    });
    relay.signal("HUP");
    let line = relay.logged("configuration was read again");
    assert!(line.contains("limits, log.level, limits.drain_s"), "{line}");
    let line = relay.logged("need a restart");
    assert!(line.contains("\"keys\":\"relay.workers\""), "{line}");
    // Both hold for the connection that is there: a second membership, and lines of another level.
    node.sign_in(&signer().sign(&relay_token(18, 1)).unwrap()).await;
    assert_eq!(node.next().await.0, FrameType::AuthResponse);
    drop(node);
    let mut broken = std::net::TcpStream::connect(relay.data).unwrap();
    broken.write_all(b"this is no HTTP\r\n\r\n").unwrap();
    assert!(relay.logged("connection broken").contains("DEBUG"));
    relay.signal("HUP");
    let line = relay.logged("configuration was read again");
    assert!(line.contains("\"changed\":\"nothing\""), "{line}");
}

#[tokio::test]
async fn a_broken_configuration_changes_nothing_and_is_explained() {
    let (directory, relay) = start("[limits]\nmax_memberships = 1\n");
    rewrite(&directory, |text| {
        text.replace("max_memberships = 1", "max_memberships = 2\nmax_conections = 7")
    });
    relay.signal("HUP");
    let line = relay.logged("not reloaded");
    assert!(line.contains("max_conections") && line.contains("max_connections"), "{line}");
    rewrite(&directory, |text| text.replace("\nmax_conections = 7", "") + "[log]\nlevel = \"relay=loud\"\n");
    relay.signal("HUP");
    assert!(relay.logged("not reloaded").contains("log.level"));
    let mut node = Client::node(relay.data, 17, 1).await;
    node.sign_in(&signer().sign(&relay_token(18, 1)).unwrap()).await;
    assert_eq!(node.next().await.0, FrameType::Error, "still one membership");
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let (_directory, mut relay) = start("[limits]\ndrain_s = 600\n");
    let mut node = Client::node(relay.data, 17, 1).await;
    relay.signal("TERM");
    assert_eq!(node.next().await.0, FrameType::GoAway);
    let asked = Instant::now();
    relay.signal("TERM");
    assert_eq!(node.expect_close().await, 1001, "told, even so");
    assert!(relay.wait().success());
    assert!(asked.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_new_process_takes_the_ports_over_while_the_old_one_drains() {
    let (_directory, mut old) = start("[limits]\ndrain_s = 600\n");
    let mut node = Client::node(old.data, 17, 1).await;
    let directory = tempfile::tempdir().unwrap();
    let same = |text: &str| {
        let stun = old.stun.unwrap();
        text.replace(
            "[relay]\nid = 1\nlisten = \"127.0.0.1:0\"",
            &format!("[relay]\nid = 1\nlisten = \"{}\"", old.data),
        )
        .replace("[stun]\nlisten = \"127.0.0.1:0\"", &format!("[stun]\nlisten = \"{stun}\""))
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", &format!("[admin]\nlisten = \"{}\"", old.admin))
    };
    let config = same(&standalone(1, ""));
    // By mistake nobody shares a port.
    let file = directory.path().join("mistake.toml");
    std::fs::write(&file, &config).unwrap();
    let output =
        command().arg("--config").arg(&file).arg("--state-dir").arg(directory.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use"));

    let mut new = Relay::spawn(directory.path(), &config, &["--take-over"]);
    new.logged("relay listens");
    old.signal("TERM");
    assert_eq!(node.next().await.0, FrameType::GoAway);
    // Whoever comes now comes to the new one, however many workers' queues the kernel has to choose from.
    for id in 20..40 {
        let mut client = Client::node(old.data, id, 1).await;
        client.send(data(id, id, b"new")).await;
        assert_eq!(client.next_frame().await, data(id, id, b"new"));
    }
    node.send(data(17, 17, b"old")).await;
    assert_eq!(node.next_frame().await, data(17, 17, b"old"), "the old one still delivers");
    drop(node);
    assert!(old.wait().success());
    new.logged("admin HTTP listens");
    new.admin = old.admin;
    assert_eq!(new.metric("edgelink_relay_nodes"), 0);
    new.kill();
}

#[tokio::test]
async fn a_worker_that_panics_ends_the_process_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay =
        Relay::start_with(directory.path(), &standalone(1, ""), &[], &[("EDGELINK_DEBUG_HOOKS", "1")]);
    let _node = Client::node(relay.data, 17, 1).await;
    assert!(relay.post("/debug/panic").starts_with("HTTP/1.1 202"));
    let line = relay.logged("\"panic\"");
    assert!(line.contains("relay-0") && line.contains("asked for"), "{line}");
    relay.logged("the relay has failed");
    assert_eq!(relay.wait().code(), Some(1));
    let (_directory, relay) = start("");
    assert!(relay.post("/debug/panic").starts_with("HTTP/1.1 404"), "not without the environment's word");
}

#[test]
fn systemd_hears_when_the_relay_is_ready_reloads_and_stops() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut relay = Relay::start_with(directory.path(), &standalone(1, ""), &[], &environment);
    assert_eq!(hear().trim(), "READY=1");
    relay.signal("HUP");
    let reloading = hear();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert_eq!(hear().trim(), "READY=1");
    relay.signal("TERM");
    assert_eq!(hear().trim(), "STOPPING=1");
    assert!(relay.wait().success());
}

#[test]
fn check_says_what_the_system_should_be_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    std::fs::write(&file, standalone(1, "[limits]\nmax_connections = 1000000000\n")).unwrap();
    let output = command().arg("check").arg(&file).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("advice: open files are limited to") && text.contains("LimitNOFILE="), "{text}");
    assert!(text.ends_with("configuration is valid\n"));
}

#[tokio::test]
async fn hup_takes_a_new_certificate_for_new_connections_and_none_that_is_broken() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["localhost".to_owned()];
    let (_, first) = self_signed(&names, directory.path()).unwrap();
    let [cert, key] = ["self-signed.crt", "self-signed.key"].map(|name| directory.path().join(name));
    let tls = format!("tls = {{ cert = {cert:?}, key = {key:?} }}\n");
    let relay = Relay::start(directory.path(), &standalone(1, &tls), &[]);
    let connects = |pin| {
        let config = client_config(&Roots::None, Some(pin)).unwrap();
        async move {
            let stream = tokio::net::TcpStream::connect(relay.data).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await
        }
    };
    let mut old = Client::over(connects(first).await.unwrap(), "/ws/data").await;
    old.sign_in(&signer().sign(&relay_token(17, 1)).unwrap()).await;
    assert_eq!(old.next().await.0, FrameType::AuthResponse);

    std::fs::write(&cert, "no certificate").unwrap();
    relay.signal("HUP");
    assert!(relay.logged("not reloaded").contains("self-signed.crt"));
    assert!(connects(first).await.is_ok(), "the old one is still shown");

    std::fs::remove_file(&cert).unwrap();
    let (_, second) = self_signed(&names, directory.path()).unwrap();
    relay.signal("HUP");
    assert!(relay.logged("configuration was read again").contains("relay.tls"));
    assert!(connects(first).await.is_err());
    assert!(connects(second).await.is_ok());
    old.send(data(17, 17, b"stays")).await;
    assert_eq!(old.next_frame().await, data(17, 17, b"stays"), "who is connected stays connected");
}
