//! For the fuzz target `record`: two ends over memory, and whatever one of them may put into records that it seals rightly, or instead of records.

use std::sync::{Arc, OnceLock};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, Error, ServerConfig};

use super::filter::Filter;
use super::{Roots, client_config, self_signed};
use crate::packet::pool::Pool;

/// Each input needs a handshake; the certificate is made once.
fn configs() -> &'static (Arc<ServerConfig>, Arc<ClientConfig>) {
    static CONFIGS: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("meshdp-fuzz-record-{}", std::process::id()));
        let (server, pin) = self_signed(&["relay.test".to_owned()], &directory).expect("a certificate");
        let _ = std::fs::remove_dir_all(directory);
        (server, client_config(&Roots::None, Some(pin)).expect("a configuration"))
    })
}

/// Input: steps of content type (1; 255: not sealed at all) ‖ length (1) ‖ bytes. What comes out is bounded by what went in, and after an error nothing
/// comes out any more.
///
/// # Panics
/// When one of that does not hold.
pub fn records(input: &[u8]) {
    let (server, client) = configs();
    let pool = Pool::new();
    let name = ServerName::try_from("relay.test").expect("a name");
    let mut server = Filter::server(Arc::clone(server)).expect("a server");
    let mut client = Filter::client(Arc::clone(client), name).expect("a client");
    for _ in 0..4 {
        give(&mut server, &mut client.take_pending().expect("no keys are due"), &pool).expect("a handshake");
        give(&mut client, &mut server.take_pending().expect("no keys are due"), &pool).expect("a handshake");
    }
    assert!(server.is_established() && client.is_established());
    let (mut rest, mut sent, mut failed) = (input, 0, false);
    while let [kind, length, after @ ..] = rest {
        let (content, after) = after.split_at(after.len().min(usize::from(*length) * 64));
        rest = after;
        let mut bytes = match kind {
            255 => content.to_vec(),
            kind => client.any_record(*kind, content),
        };
        sent += bytes.len();
        for piece in bytes.chunks_mut(usize::from(*length).max(1)) {
            match give(&mut server, piece, &pool) {
                Ok(got) => assert!(!failed || got == 0, "data after an error"),
                Err(_) => failed = true,
            }
        }
        let answer = server.take_pending().expect("new keys can always be made");
        assert!(answer.len() <= sent + 64, "{} bytes of answer for {sent}", answer.len());
    }
}

fn give(filter: &mut Filter, bytes: &mut [u8], pool: &Pool) -> Result<usize, Error> {
    let mut got = 0;
    let offered = bytes.len();
    let taken = filter.receive(bytes, usize::MAX, pool, &mut |plain: &mut [u8]| {
        got += plain.len();
        Ok::<_, Error>(())
    })?;
    assert_eq!(taken, offered);
    Ok(got)
}
