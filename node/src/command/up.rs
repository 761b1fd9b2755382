//! `edgelink up`: the daemon in the foreground, or started in the background.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tracing_subscriber::EnvFilter;

use crate::args::UpArgs;
use crate::config::file::LogFormat;
use crate::config::{self, Settings};
use crate::ipc::client::Daemon;
use crate::ipc::default_socket;
use crate::ipc::message::{Answer, ControllerState, Request, Status};
use crate::keys::create_private_dir;

/// How long `--detach` waits for the interface, and then for the controller.
const START: Duration = Duration::from_secs(10);
const SIGN_IN: Duration = Duration::from_secs(10);

/// Runs the command.
pub(crate) fn run(args: &UpArgs) -> anyhow::Result<()> {
    let settings = config::resolve(&args.overrides)?;
    let socket =
        args.socket.clone().unwrap_or_else(|| default_socket(&settings.interface, &settings.state_dir));
    if args.detach {
        return detach(&settings, &socket);
    }
    if args.detached {
        // Out of the terminal's session: closing it ends nothing.
        rustix::process::setsid().context("cannot leave the terminal's session")?;
    }
    log(&settings)?;
    crate::daemon::run(settings, &socket)
}

fn log(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log_level)
        .with_context(|| format!("log level {:?}: expected error, warn, info, debug, trace or a filter such as info,edgelink=debug", settings.log_level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Starts this program again without a terminal and waits until it is up.
fn detach(settings: &Settings, socket: &Path) -> anyhow::Result<()> {
    if Daemon::at(socket).is_ok() {
        bail!("edgelink is already up: a daemon answers at {}. `edgelink down` stops it", socket.display());
    }
    create_private_dir(&settings.state_dir)?;
    let path = settings.state_dir.join(format!("{}.log", settings.interface));
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write the log {}", path.display()))?;
    let start = log.seek(SeekFrom::End(0))?;
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| if argument == "--detach" { "--detached".into() } else { argument });
    let mut child = Command::new(std::env::current_exe().context("cannot find this program's own file")?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .spawn()
        .context("cannot start the daemon")?;
    let status = wait(&mut child, socket, &mut log, start)?;
    println!("{} is up (log: {})", settings.interface, path.display());
    for membership in &status.memberships {
        let addresses: Vec<String> = membership.addresses.iter().map(ToString::to_string).collect();
        println!("{}: node {}, {}", membership.network, membership.node_id, addresses.join(", "));
    }
    if let Some(message) = &status.controller.message {
        println!("controller {}: {message}", status.controller.state.label());
    }
    Ok(())
}

/// Until the interface is up, and a little longer for the controller's answer.
fn wait(child: &mut Child, socket: &Path, log: &mut File, start: u64) -> anyhow::Result<Box<Status>> {
    let begun = Instant::now();
    let mut last = None;
    loop {
        if let Some(code) = child.try_wait()? {
            let mut text = String::new();
            log.seek(SeekFrom::Start(start))?;
            log.take(64 << 10).read_to_string(&mut text)?;
            bail!("the daemon did not start ({code}):\n{}", text.trim_end());
        }
        if let Some(status) = ask(socket) {
            let settled = match status.controller.state {
                ControllerState::Pending | ControllerState::Refused => true,
                ControllerState::Connected => !status.memberships.is_empty(),
                ControllerState::Connecting | ControllerState::Disconnected => false,
            };
            if settled || begun.elapsed() > SIGN_IN {
                return Ok(status);
            }
            last = Some(status);
        } else if begun.elapsed() > START {
            return last.context("the daemon started but does not answer; look at its log");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ask(socket: &Path) -> Option<Box<Status>> {
    let mut daemon = Daemon::at(socket).ok()?;
    daemon.ask(&Request::Status).ok()?;
    match daemon.answer().ok()?? {
        Answer::Status(status) => Some(status),
        _ => None,
    }
}
