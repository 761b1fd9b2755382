//! `edgelink down`: stops the daemon and returns when the interface is gone. Where there is no daemon, undoes what one that was killed has left.

use anyhow::bail;

use crate::args::ClientArgs;
use crate::config;
use crate::host;
use crate::ipc::client::Daemon;
use crate::ipc::message::{Answer, Request};

/// Runs the command.
pub(crate) fn run(args: &ClientArgs) -> anyhow::Result<()> {
    let mut daemon = match Daemon::find(args) {
        Ok(daemon) => daemon,
        Err(error) => return clean(args, error),
    };
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

/// `no_daemon`: what is wrong when there is nothing to clean up either.
fn clean(args: &ClientArgs, no_daemon: anyhow::Error) -> anyhow::Result<()> {
    let place = config::Place::of(args);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(host::clean(&place.state_dir, &place.interface)).map(|(_, found)| found);
    if !found.unwrap_or(false) {
        return Err(no_daemon);
    }
    println!("no daemon answers; took away what an earlier one had left");
    Ok(())
}
