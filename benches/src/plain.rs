//! The rival: a WebSocket forwarder as one would write it on tokio, tokio-rustls and tokio-tungstenite, with their best settings.
//!
//! One thread. Each connection has a reader, which looks up the destination of every frame and hands it over as a message of its own, and a
//! writer, which takes all that waits before it flushes (with `--flush-each`: which sends one after the other, as most are written). Frames are EdgeLink's (`docs/protocol.md` §1); the source id is checked against the
//! connection, as a relay must. What it leaves out: tokens (the sign-in names the node), networks, mesh, limits, drops.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, accept_async};

use meshdp::proto::id::{NodeId, RelayId};
use meshdp::proto::wire::control::server::NodeAuthorised;
use meshdp::proto::wire::control::{AuthRequest, AuthResponse, parse, to_payload};
use meshdp::proto::wire::data::route;
use meshdp::proto::wire::frame::{Flags, FrameType, Frames, HEADER_LEN, write_frame};

/// Messages that may wait for one writer; a full queue stops the reader that fills it.
const QUEUE: usize = 1024;
/// Messages taken before a flush.
const TAKEN_AT_ONCE: usize = 256;

/// How to run it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Address to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// PEM file; without it there is no TLS.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// PEM file.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
    /// Flush after every frame, as `Sink::send` does, instead of when no more waits.
    #[arg(long)]
    flush_each: bool,
}

type Directory = Rc<RefCell<BTreeMap<NodeId, mpsc::Sender<Bytes>>>>;

/// Serves until stdin ends.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let acceptor = match (&options.certificate, &options.key) {
        (Some(certificate), Some(key)) => Some(acceptor(certificate, key)?),
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(options.listen).await.context("cannot listen")?;
        tokio::select! {
            result = accept(listener, acceptor, options.flush_each) => result,
            () = stdin_ends() => Ok(()),
        }
    })?;
    // Reading stdin occupies a thread that cannot be interrupted.
    runtime.shutdown_background();
    Ok(())
}

fn acceptor(certificate: &PathBuf, key: &PathBuf) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let config = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn stdin_ends() {
    let mut sink = [0; 64];
    let mut stdin = tokio::io::stdin();
    while stdin.read(&mut sink).await.is_ok_and(|read| read > 0) {}
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    flush_each: bool,
) -> anyhow::Result<()> {
    let directory = Directory::default();
    loop {
        let (socket, _) = listener.accept().await?;
        let (acceptor, directory) = (acceptor.clone(), directory.clone());
        tokio::task::spawn_local(async move {
            // A connection that fails is closed; the generator notices and says so.
            let _ = serve(socket, acceptor, directory, flush_each).await;
        });
    }
}

async fn serve(
    socket: TcpStream,
    acceptor: Option<TlsAcceptor>,
    directory: Directory,
    flush_each: bool,
) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    match acceptor {
        Some(acceptor) => {
            let socket = accept_async(acceptor.accept(socket).await?).await?;
            forward(socket, directory, flush_each).await
        }
        None => forward(accept_async(socket).await?, directory, flush_each).await,
    }
}

async fn forward<S>(
    mut socket: WebSocketStream<S>,
    directory: Directory,
    flush_each: bool,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let Some(first) = socket.next().await else { bail!("closed before it signed in") };
    let node = sign_in(&first?.into_data())?;
    socket.send(Message::Binary(welcome(node)?)).await?;

    let (mut sink, mut stream) = socket.split();
    let (sender, mut queue) = mpsc::channel::<Bytes>(QUEUE);
    directory.borrow_mut().insert(node, sender);
    let writer = async move {
        let mut waiting = Vec::with_capacity(TAKEN_AT_ONCE);
        while queue.recv_many(&mut waiting, TAKEN_AT_ONCE).await > 0 {
            for message in waiting.drain(..) {
                sink.feed(Message::Binary(message)).await?;
                if flush_each {
                    sink.flush().await?;
                }
            }
            if queue.is_empty() {
                sink.flush().await?;
            }
        }
        anyhow::Ok(())
    };
    let reader = async {
        let mut last: Option<(NodeId, mpsc::Sender<Bytes>)> = None;
        while let Some(message) = stream.next().await {
            let Message::Binary(message) = message? else { continue };
            for frame in Frames::new(&message) {
                let frame = frame?;
                let route = route(frame.bytes)?;
                if route.source != node {
                    bail!("not the sender's own id");
                }
                if last.as_ref().is_none_or(|(id, _)| *id != route.destination) {
                    let found = directory.borrow().get(&route.destination).cloned();
                    last = found.map(|sender| (route.destination, sender));
                }
                if let Some((_, sender)) = &last {
                    // Shares the received message's memory.
                    let _ = sender.send(message.slice_ref(frame.bytes)).await;
                }
            }
        }
        anyhow::Ok(())
    };
    let writer = tokio::task::spawn_local(writer);
    let result = reader.await;
    directory.borrow_mut().remove(&node);
    writer.abort();
    result
}

/// AUTH_REQUEST `relay` whose token is the node's id in decimal.
fn sign_in(message: &[u8]) -> anyhow::Result<NodeId> {
    let frame = Frames::new(message).next().context("empty")??;
    if frame.header.kind != FrameType::AuthRequest {
        bail!("expected AUTH_REQUEST");
    }
    match parse(frame.header.kind, &message[HEADER_LEN..])? {
        AuthRequest::Relay(auth) => Ok(NodeId(auth.token.reveal().parse()?)),
        _ => bail!("expected a relay token"),
    }
}

fn welcome(node: NodeId) -> anyhow::Result<Bytes> {
    let response = AuthResponse::Relay(NodeAuthorised {
        node_id: node,
        relay_id: RelayId(1),
        expires: u64::from(u32::MAX),
    });
    let mut frame = Vec::new();
    write_frame(FrameType::AuthResponse, Flags::NONE, &to_payload(&response), &mut frame)?;
    Ok(frame.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_signs_in_with_its_id() {
        let mut frame = Vec::new();
        let payload = br#"{"kind":"relay","token":"17"}"#;
        write_frame(FrameType::AuthRequest, Flags::NONE, payload, &mut frame).expect("short");
        assert_eq!(sign_in(&frame).expect("well formed"), NodeId(17));
        assert!(sign_in(&frame[..frame.len() - 1]).is_err());
        assert!(sign_in(&welcome(NodeId(17)).expect("short")).is_err());
    }
}
