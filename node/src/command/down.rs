//! `edgelink down`: stops the daemon and returns when the interface is gone.

use anyhow::bail;

use crate::args::ClientArgs;
use crate::ipc::client::Daemon;
use crate::ipc::message::{Answer, Request};

/// Runs the command.
pub(crate) fn run(args: &ClientArgs) -> anyhow::Result<()> {
    let mut daemon = Daemon::find(args)?;
    daemon.ask(&Request::Down)?;
    match daemon.answer()? {
        Some(Answer::Stopping) => {}
        other => bail!("the daemon answered {other:?}: are this program and the daemon of the same version?"),
    }
    // The end of the connection is the end of the daemon.
    while daemon.answer()?.is_some() {}
    println!("down");
    Ok(())
}
