//! `edgelink-relay`: the relay and STUN server as a program.
//!
//! The relay itself is [`meshdp::engine::relay`]; here are configuration ([`config`]), the link to the controller ([`control`]), admin
//! HTTP ([`admin`]), the [`log`] and signals: TERM and INT drain and stop, HUP reads certificates and limits again.

mod admin;
mod args;
mod config;
mod control;
mod log;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use meshdp::engine::relay::RelayHandle;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use args::{Args, Command};
use config::{LogFormat, Settings};
use log::Lines;

fn main() -> ExitCode {
    let mut args = Args::parse();
    let check = args.command.take();
    if let Some(Command::Check { config, dev }) = check.clone() {
        args.config = Some(config);
        args.dev = dev;
    }
    let outcome = load(&args).and_then(|settings| match check {
        Some(_) => {
            settings.notes.iter().for_each(|note| println!("note: {note}"));
            println!("configuration is valid");
            Ok(())
        }
        None => start(&args, settings),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgelink-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(args: &Args) -> anyhow::Result<Settings> {
    config::load(args, &|name| std::env::var(name).ok())
}

fn start(args: &Args, settings: Settings) -> anyhow::Result<()> {
    let lines = start_log(&settings)?;
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(args, settings));
    lines.flush();
    outcome
}

async fn run(args: &Args, settings: Settings) -> anyhow::Result<()> {
    // Before anything else listens: a signal that comes early is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let admin = match settings.admin {
        Some(address) => Some(admin::listen(address).await?),
        None => None,
    };
    let relay = Arc::new(RelayHandle::start(settings.relay)?);
    for address in relay.addresses() {
        tracing::info!(%address, "relay listens");
    }
    if let Some(address) = relay.stun_addr() {
        tracing::info!(%address, "STUN listens");
    }
    let mut tasks = Vec::new();
    if let Some(listener) = admin {
        tracing::info!(address = %listener.local_addr()?, "admin HTTP listens");
        let relay = Arc::clone(&relay);
        tasks.push(tokio::spawn(async move {
            if let Err(error) = admin::run(listener, relay).await {
                tracing::error!(%error, "admin HTTP ended");
            }
        }));
    }
    if let Some(controller) = settings.controller {
        tasks.push(tokio::spawn(control::run(controller, Arc::clone(&relay))));
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => match reload(args, &relay) {
                Ok(()) => tracing::info!("certificates and limits were read again"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "not reloaded, going on as before"),
            },
        }
    }
    tracing::info!(seconds = settings.drain.as_secs_f64(), "draining");
    let draining = Arc::clone(&relay);
    let drain = tokio::task::spawn_blocking(move || draining.drain(settings.drain));
    tokio::select! {
        _ = drain => {}
        // Who asks twice is in a hurry.
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    tracing::info!("stopping");
    if let Ok(relay) = Arc::try_unwrap(relay) {
        relay.stop();
    }
    Ok(())
}

fn reload(args: &Args, relay: &RelayHandle) -> anyhow::Result<()> {
    let settings = load(args)?;
    relay.set_limits(&settings.relay.limits);
    if let Some(tls) = settings.relay.listeners.iter().find_map(|listener| listener.tls.as_ref()) {
        relay.set_tls(tls);
    }
    relay.set_trust(&Arc::new(settings.relay.trust));
    Ok(())
}

fn start_log(settings: &Settings) -> anyhow::Result<Lines> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) => EnvFilter::try_new(&filter).context("RUST_LOG")?,
        Err(_) => EnvFilter::try_new(&settings.log_level).context("log.level")?,
    };
    let lines = Lines::to(std::io::stderr())?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines.clone());
    match settings.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(lines)
}
