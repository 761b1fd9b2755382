//! What a new session costs the server: TCP, a TLS handshake (full or resumed), the upgrade, the sign-in. Clients are plain blocking ones on a
//! few threads; what they cost does not matter. All stay connected until the server's CPU time has been read.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use meshdp::proto::id::NodeId;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

use super::contender::{Contender, Running};
use super::dialect::{Answer, Dialect, iroh_header};
use super::receiver::Receiver;
use super::row::{Bench, Sample};
use super::transport::{dial, server_name, upgrade_request, upgrade_response};
use crate::process::whole_cpu;

/// Threads, and sessions that each opens.
const THREADS: u32 = 8;
const EACH: u32 = 64;
/// For one session.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tickets that a client keeps.
const TICKETS: usize = 32;
/// After the warm-up, so that nothing of it is measured.
const SETTLE: Duration = Duration::from_millis(300);

type Session = StreamOwned<ClientConnection, TcpStream>;

/// CPU microseconds of the server a session.
pub(super) fn measure(bench: &Bench, contender: &Contender, resumed: bool) -> anyhow::Result<Vec<Sample>> {
    let server = contender.start(bench.setting, true, 1)?;
    server.saying(|| {
        let mut configs = Vec::new();
        let mut kept = Vec::new();
        for thread in 0..THREADS {
            let mut config = bench.client_config()?;
            if resumed {
                config.resumption = rustls::client::Resumption::in_memory_sessions(TICKETS);
            }
            let config = Arc::new(config);
            // Not measured: code and tickets are there afterwards.
            kept.push(open(&server, &config, NodeId(1_000_000 + thread))?);
            configs.push(config);
        }
        std::thread::sleep(SETTLE);
        let (from, server_cpu, client_cpu) = (Instant::now(), server.process.cpu()?, whole_cpu()?);
        let sessions = std::thread::scope(|scope| {
            let open_some = |thread: u32| {
                let (server, config) = (&server, &configs[thread as usize]);
                scope.spawn(move || {
                    (0..EACH)
                        .map(|one| open(server, config, NodeId(thread * EACH + one + 1)))
                        .collect::<anyhow::Result<Vec<_>>>()
                })
            };
            let threads: Vec<_> = (0..THREADS).map(open_some).collect();
            let mut sessions = Vec::new();
            for thread in threads {
                sessions.extend(thread.join().ok().context("a thread that opens sessions ended")??);
            }
            anyhow::Ok(sessions)
        })?;
        let (server_cpu, client_cpu, wall) =
            (server.process.cpu()? - server_cpu, whole_cpu()? - client_cpu, from.elapsed());
        let kind = if resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };
        let others = sessions.iter().filter(|session| session.conn.handshake_kind() != Some(kind)).count();
        if others > 0 {
            bail!("{others} of {} handshakes were not {kind:?}", sessions.len());
        }
        let percent = |cpu: u64| cpu as f64 / wall.as_nanos() as f64 * 100.0;
        let each = server_cpu as f64 / 1000.0 / sessions.len() as f64;
        Ok(vec![Sample::of(each).shares(percent(server_cpu), percent(client_cpu))])
    })
}

/// Up to the server's welcome.
fn open(server: &Running, config: &Arc<ClientConfig>, node: NodeId) -> anyhow::Result<Session> {
    let socket = dial(server.address, node.0)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut session = StreamOwned::new(ClientConnection::new(Arc::clone(config), server_name())?, socket);
    let (path, headers) = server.dialect.upgrade();
    let mut headers = headers.to_owned();
    if server.dialect == Dialect::Iroh {
        while session.conn.is_handshaking() {
            session.conn.complete_io(&mut session.sock).context("TLS")?;
        }
        headers += &iroh_header(node, |label, context| {
            Ok(session.conn.export_keying_material([0; 32], label, Some(context))?)
        })?;
    }
    session.write_all(upgrade_request(path, &headers).as_bytes())?;
    let mut response = Vec::new();
    let end = loop {
        if let Some(end) = upgrade_response(&response)? {
            break end;
        }
        read_more(&mut session, &mut response)?;
    };
    session.write_all(&server.dialect.sign_in(&server.token(node)?)?)?;
    let mut receiver = Receiver::new(server.dialect, Vec::new(), 0, false);
    let mut bytes = response.split_off(end);
    loop {
        receiver.push(&bytes)?;
        for (kind, payload) in receiver.take_notes().collect::<Vec<_>>() {
            match server.dialect.answer(node, kind, &payload)? {
                Answer::None => {}
                Answer::Welcome => return Ok(session),
                Answer::Send(answer) => session.write_all(&answer)?,
            }
        }
        bytes.clear();
        read_more(&mut session, &mut bytes)?;
    }
}

fn read_more(session: &mut Session, into: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    let read = session.read(&mut buffer).context("no answer")?;
    if read == 0 {
        bail!("the server closed the connection");
    }
    into.extend_from_slice(&buffer[..read]);
    Ok(())
}
