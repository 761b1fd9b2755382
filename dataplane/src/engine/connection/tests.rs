//! Two ends over memory: messages, closes and refusals, however the bytes between them are cut.

#![allow(clippy::option_option, reason = "whether it came, and whether it said something")]

use proptest::prelude::*;

use super::super::tls::{Roots, client_config, self_signed};
use super::*;
use crate::proto::time::Instant;

const PATHS: &[&str] = &["/ws/data"];

/// One end with everything a worker would have around it.
struct End {
    connection: Connection,
    outbox: Outbox,
    got: Vec<Vec<u8>>,
    upgraded: Option<Option<Request>>,
    closed: Option<Option<u16>>,
    error: Option<ConnectionError>,
}

impl End {
    fn new(connection: Connection, role: Role, pool: &Pool) -> Self {
        let outbox = Outbox::new(role, connection.framing(), 1 << 20, pool, [7; 32]);
        Self { connection, outbox, got: Vec::new(), upgraded: None, closed: None, error: None }
    }

    fn push(&mut self, frame: &[u8]) {
        self.outbox.push(frame, Instant::ZERO).unwrap();
    }

    fn receive(&mut self, bytes: &mut [u8]) {
        let (got, upgraded, closed) = (&mut self.got, &mut self.upgraded, &mut self.closed);
        let outcome = self.connection.receive(bytes, &mut |incoming| match incoming {
            Incoming::Upgraded(request) => *upgraded = Some(request.cloned()),
            Incoming::Message(message) => got.push(message.to_vec()),
            Incoming::Closed { code } => *closed = Some(code),
        });
        self.error = self.error.take().or(outcome.err());
    }
}

/// Carries bytes both ways, cut into pieces of `cut`, until nothing moves.
fn run(a: &mut End, b: &mut End, cut: usize) {
    loop {
        let mut moved = false;
        for swap in [false, true] {
            let (from, to) = if swap { (&mut *b, &mut *a) } else { (&mut *a, &mut *b) };
            while let Some(mut out) = from.connection.take_output(&mut from.outbox).unwrap() {
                moved = true;
                out.filled_mut().chunks_mut(cut).for_each(|piece| to.receive(piece));
            }
        }
        if !moved {
            return;
        }
    }
}

fn ends(tls: bool) -> (End, End, Pool) {
    ends_named(tls, &["relay.test".to_owned()])
}

/// With a certificate for all of `names`.
fn ends_named(tls: bool, names: &[String]) -> (End, End, Pool) {
    let pool = Pool::new();
    let (server_tls, client_tls) = if tls {
        let unique = format!("meshdp-connection-{}-{:?}", std::process::id(), std::thread::current().id());
        let directory = std::env::temp_dir().join(unique);
        let (server, pin) = self_signed(names, &directory).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        let client = client_config(&Roots::None, Some(pin)).unwrap();
        (Some(server), Some((client, ServerName::try_from("relay.test").unwrap())))
    } else {
        (None, None)
    };
    let server = ServerOptions { tls: server_tls, paths: PATHS, max_message: 256 << 10 };
    let client = ClientOptions {
        tls: client_tls,
        host: "relay.test".into(),
        path: "/ws/data".into(),
        max_message: 256 << 10,
    };
    let server = End::new(Connection::server(&server, &pool).unwrap(), Role::Server, &pool);
    let client = End::new(Connection::client(&client, &pool, [1; 16]).unwrap(), Role::Client, &pool);
    (client, server, pool)
}

#[test]
fn messages_cross_whole_however_the_bytes_are_cut() {
    for tls in [false, true] {
        for cut in [1, 7, 1000, 16_384, 1 << 20] {
            let (mut client, mut server, _pool) = ends(tls);
            let frames: Vec<Vec<u8>> = (0..60usize).map(|i| vec![i as u8; i * 37 + 1]).collect();
            let long = vec![9; 65_540];
            // Before the upgrade they wait.
            for frame in &frames {
                client.push(frame);
            }
            client.push(&long);
            run(&mut client, &mut server, cut);
            for frame in &frames {
                server.push(frame);
            }
            server.push(&long);
            run(&mut client, &mut server, cut);
            assert!(client.connection.is_open() && server.connection.is_open());
            assert_eq!(server.upgraded.as_ref().unwrap().as_ref().unwrap().path, "/ws/data");
            let whole: Vec<u8> = frames.concat().into_iter().chain(long).collect();
            for end in [&client, &server] {
                assert_eq!(end.got.concat(), whole, "tls {tls}, cut {cut}");
                assert!(end.error.is_none() && end.closed.is_none());
                assert!(end.got.len() < 10, "frames share messages");
                // Every message is one TLS record, but for the frame that is longer than one.
                assert!(end.got.iter().all(|m| m.len() < crate::engine::outbox::RECORD || m.len() == 65_540));
            }
        }
    }
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let (mut client, mut server, pool) = ends(true);
    for _ in 0..40 {
        client.push(&[1; 3000]);
    }
    run(&mut client, &mut server, 1000);
    let (held, _) = pool.idle();
    drop((client, server));
    assert_eq!(pool.idle().0, held);
}

#[test]
fn closing_says_the_code_after_what_was_queued() {
    for tls in [false, true] {
        let (mut client, mut server, _pool) = ends(tls);
        run(&mut client, &mut server, 1 << 20);
        server.push(b"last words");
        server.connection.close(1008, "token expired");
        run(&mut client, &mut server, 1 << 20);
        assert_eq!(client.got, [b"last words"]);
        assert_eq!(client.closed, Some(Some(1008)));
        assert!(client.connection.is_finished() && server.connection.is_finished());
        assert_eq!(server.closed, Some(Some(1008)));
    }
}

#[test]
fn a_broken_frame_is_answered_with_its_code() {
    let (mut client, mut server, _pool) = ends(false);
    run(&mut client, &mut server, 1 << 20);
    server.receive(&mut [0x81, 0x80, 0, 0, 0, 0]);
    let error = server.error.take().unwrap();
    assert_eq!(error.error_code(), Some(ErrorCode::Malformed));
    server.push(b"error frame");
    server.connection.close(1002, "");
    run(&mut client, &mut server, 1 << 20);
    assert_eq!((client.got, client.closed), (vec![b"error frame".to_vec()], Some(Some(1002))));
}

#[test]
fn another_path_and_an_untrusted_certificate_end_both_sides() {
    let (_, mut server, pool) = ends(false);
    let options = ClientOptions { tls: None, host: "a".into(), path: "/other".into(), max_message: 1 };
    let mut client = End::new(Connection::client(&options, &pool, [0; 16]).unwrap(), Role::Client, &pool);
    run(&mut client, &mut server, 100);
    assert!(matches!(server.error, Some(ConnectionError::Upgrade(UpgradeError::Path(_)))));
    assert!(matches!(client.error, Some(ConnectionError::Upgrade(UpgradeError::Status(404)))));
    assert!(server.connection.is_finished());

    let (_, mut server, pool) = ends(true);
    let tls = Some((client_config(&Roots::None, Some([0; 32])).unwrap(), "relay.test".try_into().unwrap()));
    let options = ClientOptions { tls, host: "a".into(), path: "/ws/data".into(), max_message: 1 };
    let mut client = End::new(Connection::client(&options, &pool, [0; 16]).unwrap(), Role::Client, &pool);
    run(&mut client, &mut server, 100);
    assert!(matches!(client.error, Some(ConnectionError::Tls(rustls::Error::InvalidCertificate(_)))));
    // The alert arrived.
    assert!(matches!(server.error, Some(ConnectionError::Tls(rustls::Error::AlertReceived(_)))));
}

#[test]
fn a_handshake_message_longer_than_a_record_is_put_together() {
    let names: Vec<String> = (0..1500).map(|number| format!("name-{number}.relay.test")).collect();
    for cut in [100, 5000, 1 << 20] {
        let (mut client, mut server, _pool) = ends_named(true, &names);
        client.push(b"hello");
        run(&mut client, &mut server, cut);
        assert_eq!(server.got, [b"hello"], "cut {cut}");
    }
}

#[test]
fn what_is_no_tls_or_was_changed_on_the_way_is_refused_with_an_alert() {
    let (_, mut server, _pool) = ends(true);
    server.receive(&mut b"GET /ws/data HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
    assert!(matches!(server.error, Some(ConnectionError::Tls(_))));
    server.connection.close(1002, "");
    assert!(
        server.connection.take_output(&mut server.outbox).unwrap().is_none_or(|out| out.filled()[0] == 21)
    );

    let (mut client, mut server, _pool) = ends(true);
    run(&mut client, &mut server, 1 << 20);
    client.push(b"secret");
    let mut record = client.connection.take_output(&mut client.outbox).unwrap().unwrap();
    record.filled_mut()[9] ^= 1;
    server.receive(record.filled_mut());
    assert!(matches!(server.error, Some(ConnectionError::Tls(rustls::Error::DecryptError))));
    assert!(server.got.is_empty());
    server.connection.close(1002, "");
    run(&mut client, &mut server, 1 << 20);
    assert!(matches!(client.error, Some(ConnectionError::Tls(rustls::Error::AlertReceived(_)))));
    assert!(server.connection.is_finished());
}

proptest! {
    /// Nothing that comes over the network makes an end panic, whatever it has been told before.
    #[test]
    fn any_bytes_end_in_an_error_or_nothing(tls in any::<bool>(), before in any::<bool>(), bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let (mut client, mut server, _pool) = ends(tls);
        if before {
            run(&mut client, &mut server, 1 << 20);
        }
        for end in [&mut client, &mut server] {
            end.receive(&mut bytes.clone());
            end.receive(&mut bytes.clone());
            end.connection.close(1002, "");
            while let Ok(Some(_)) = end.connection.take_output(&mut end.outbox) {}
            prop_assert!(end.connection.is_finished());
        }
    }
}

#[test]
fn tickets_wait_for_the_answer_to_the_upgrade() {
    let (mut client, mut server, _pool) = ends(true);
    let mut buffers = 0;
    loop {
        let mut answers = Vec::new();
        while let Some(mut out) = client.connection.take_output(&mut client.outbox).unwrap() {
            // Byte by byte: the handshake is over long before the request is whole.
            for byte in out.filled_mut().chunks_mut(1) {
                server.receive(byte);
                while let Some(answer) = server.connection.take_output(&mut server.outbox).unwrap() {
                    answers.push(answer);
                }
            }
        }
        if answers.is_empty() {
            break;
        }
        buffers += answers.len();
        for answer in &mut answers {
            client.receive(answer.filled_mut());
        }
    }
    assert!(client.upgraded.is_some() && server.upgraded.is_some());
    assert_eq!(buffers, 2, "the handshake's flight, and tickets with the answer");
}
