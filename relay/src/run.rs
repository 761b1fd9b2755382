//! A relay from start to stop: signals, the tasks beside it, readiness for systemd, and what happens when a thread of it fails.
//!
//! TERM and INT drain and stop; a second one ends at once. HUP reloads ([`crate::reload`]). A worker that panics or loses its ring cannot be mended: the
//! process ends with an error, so that systemd starts another (nodes are on other relays meanwhile).

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use meshdp::engine::relay::RelayHandle;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::args::Args;
use crate::config::Settings;
use crate::log::Log;
use crate::{admin, control, reload};

/// How soon a failure is noticed.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// How often the admin address is tried, which the relay that is taken over still has.
const ADMIN_INTERVAL: Duration = Duration::from_millis(200);

/// Until it is told to stop.
///
/// # Errors
/// It cannot start, or has failed.
pub(crate) async fn run(args: &Args, settings: Settings, log: &Log) -> anyhow::Result<()> {
    // Before anything else listens: a signal that comes early is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let admin = match settings.admin {
        Some(address) if args.take_over => Some(admin::listen(address).await.map_err(|_| address)),
        Some(address) => Some(Ok(admin::listen(address).await?)),
        None => None,
    };
    let relay = Arc::new(RelayHandle::start(settings.relay.clone())?);
    for address in relay.addresses() {
        tracing::info!(%address, "relay listens");
    }
    if let Some(address) = relay.stun_addr() {
        tracing::info!(%address, "STUN listens");
    }
    let mut tasks = Vec::new();
    if let Some(listener) = admin {
        if let Ok(listener) = &listener {
            tracing::info!(address = %listener.local_addr()?, "admin HTTP listens");
        }
        let relay = Arc::clone(&relay);
        tasks.push(tokio::spawn(async move {
            let listener = match listener {
                Ok(listener) => listener,
                Err(address) => loop {
                    sleep(ADMIN_INTERVAL).await;
                    if let Ok(listener) = admin::listen(address).await {
                        tracing::info!(%address, "admin HTTP listens");
                        break listener;
                    }
                },
            };
            if let Err(error) = admin::run(listener, relay).await {
                tracing::error!(%error, "admin HTTP ended");
            }
        }));
    }
    let (leaving, left) = tokio::sync::watch::channel(false);
    if let Some(controller) = settings.controller.clone() {
        tasks.push(tokio::spawn(control::run(controller, Arc::clone(&relay), left)));
    }
    let drain = Arc::new(std::sync::Mutex::new(settings.drain));
    tasks.push(tokio::spawn(reloads(
        hangup,
        args.clone(),
        settings,
        Arc::clone(&relay),
        log.clone(),
        Arc::clone(&drain),
    )));
    notify(&[NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        reason = failure(&relay) => {
            notify(&[NotifyState::Stopping, NotifyState::Status(&reason)]);
            // What still works is told to close; what does not is left behind.
            bail!("{reason}: ending, so that the relay is started anew");
        }
    }
    notify(&[NotifyState::Stopping]);
    // Nobody takes this process's place with the controller from now on, nor does it take another's.
    let _ = leaving.send(true);
    let grace = *drain.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    tracing::info!(seconds = grace.as_secs_f64(), "draining; another signal ends it at once");
    let draining = Arc::clone(&relay);
    let mut drained = tokio::task::spawn_blocking(move || draining.drain(grace));
    let hurried = tokio::select! {
        _ = &mut drained => false,
        // Who asks twice is in a hurry.
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
    };
    if hurried {
        relay.hurry();
        let _ = drained.await;
    }
    tracing::info!("stopping");
    stop(relay, tasks).await;
    Ok(())
}

/// Why the relay does not work any more; waits for as long as it does.
async fn failure(relay: &RelayHandle) -> String {
    let mut ticks = interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(reason) = relay.failure() {
            return reason;
        }
    }
}

async fn reloads(
    mut hangup: Signal,
    args: Args,
    mut settings: Settings,
    relay: Arc<RelayHandle>,
    log: Log,
    drain: Arc<std::sync::Mutex<Duration>>,
) {
    while hangup.recv().await.is_some() {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
        match reload::reload(&args, &mut settings, &relay, &log) {
            Ok(outcome) => outcome.tell(),
            Err(error) => tracing::error!(error = format!("{error:#}"), "not reloaded, going on as before"),
        }
        *drain.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = settings.drain;
        notify(&[NotifyState::Ready]);
    }
}

/// Lets tasks go, which hold the relay, and then closes what is open.
async fn stop(relay: Arc<RelayHandle>, tasks: Vec<JoinHandle<()>>) {
    tasks.iter().for_each(JoinHandle::abort);
    for task in tasks {
        let _ = task.await;
    }
    // A look at connections may be under way in a thread of its own; it ends by itself.
    for _ in 0..20 {
        if Arc::strong_count(&relay) == 1 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    if let Ok(relay) = Arc::try_unwrap(relay) {
        relay.stop();
    }
}

/// To systemd, if it started us. Nobody else has to hear it.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}
