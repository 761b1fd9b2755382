//! `edgelink-relay`: the relay and STUN server as a program.
//!
//! The relay itself is [`meshdp::engine::relay`]; here are configuration ([`config`]), start, signals and stop ([`run`], [`reload`]), the link to the
//! controller ([`control`]), admin HTTP ([`admin`]), the [`log`], what the system should be told ([`advice`]) and a self-test ([`mod@bench`]).

mod admin;
mod advice;
mod args;
mod bench;
mod config;
mod control;
mod log;
mod process;
mod reload;
mod run;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use config::Settings;
use log::Log;

fn main() -> ExitCode {
    let mut args = Args::parse();
    let outcome = match args.command.take() {
        None => load(&args).and_then(|settings| start(&args, settings)),
        Some(Command::Check { config, file, dev }) => {
            args.config = config.or(file).or(args.config);
            args.dev = dev;
            load(&args).map(|settings| check(&settings))
        }
        Some(Command::Bench(options)) => bench::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgelink-relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(settings: &Settings) {
    advice::raise_open_files();
    for note in &settings.notes {
        println!("note: {note}");
    }
    for advice in advice::advise(settings, &advice::Facts::of_this_machine()) {
        println!("advice: {advice}");
    }
    println!("configuration is valid");
}

fn load(args: &Args) -> anyhow::Result<Settings> {
    config::load(args, &|name| std::env::var(name).ok())
}

fn start(args: &Args, settings: Settings) -> anyhow::Result<()> {
    let log = Log::start(&settings.log_level, settings.log_format)?;
    advice::raise_open_files();
    for note in settings.notes.iter().chain(&advice::advise(&settings, &advice::Facts::of_this_machine())) {
        tracing::warn!("{note}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run::run(args, settings, &log));
    if let Err(error) = &outcome {
        tracing::error!(error = format!("{error:#}"), "stopped");
    }
    log.flush();
    // Whatever still runs in threads of its own is of no use any more.
    runtime.shutdown_background();
    outcome
}
