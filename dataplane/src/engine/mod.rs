//! The shell: owns time, threads and system calls, and drives the machines of [`crate::proto`].
//!
//! [`driver`] is what a worker sees of the kernel, [`uring`] and [`epoll`] implement it, [`open`] chooses. [`connection`] turns a stream of
//! bytes into EdgeLink messages (TLS, HTTP upgrade, WebSocket) and [`outbox`] turns frames into bytes, both without touching the driver.
//! [`tls`] makes configurations and certificates, [`socket`] makes sockets, [`udp`] those of the data path.

pub mod connection;
pub mod dial;
pub mod driver;
pub mod epoll;
#[cfg(test)]
mod interop;
mod moderation;
pub mod node;
pub mod outbox;
pub mod relay;
mod slab;
pub mod socket;
pub mod stun;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod udp;
pub mod uring;

use std::io;
use std::sync::Once;

/// Which driver is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Prefer {
    /// io_uring where it is permitted and new enough, else epoll.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll.
    Epoll,
}

impl std::str::FromStr for Prefer {
    type Err = UnknownDriver;

    fn from_str(name: &str) -> Result<Self, UnknownDriver> {
        match name {
            "" | "auto" => Ok(Self::Auto),
            "io_uring" | "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            other => Err(UnknownDriver(other.to_owned())),
        }
    }
}

/// A driver's name that is none.
#[derive(Debug, thiserror::Error)]
#[error("unknown driver {0:?}: auto, io_uring or epoll")]
pub struct UnknownDriver(String);

impl Prefer {
    /// From `EDGELINK_DRIVER`; `Auto` when it is not set.
    ///
    /// # Errors
    /// When it is set to something else than `auto`, `io_uring` or `epoll`.
    pub fn from_env() -> Result<Self, UnknownDriver> {
        std::env::var("EDGELINK_DRIVER").unwrap_or_default().parse()
    }
}

/// An open driver: match once, then run generic code.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "matched once, right after it was made")]
pub enum Opened {
    /// The default.
    Uring(uring::Uring),
    /// The fallback.
    Epoll(epoll::Epoll),
}

/// Opens a driver, in the thread that will use it. That io_uring was wanted and is not to be had is said once in the log.
///
/// # Errors
/// Neither can be opened, or not the one that was asked for.
pub fn open(prefer: Prefer) -> io::Result<Opened> {
    static SAID: Once = Once::new();
    if prefer == Prefer::Epoll {
        return epoll::Epoll::open().map(Opened::Epoll);
    }
    match uring::Uring::open() {
        Ok(driver) => Ok(Opened::Uring(driver)),
        Err(error) if prefer == Prefer::Auto => {
            SAID.call_once(|| {
                tracing::warn!(%error, "io_uring is not available here, using epoll (same function, a little more CPU)");
            });
            epoll::Epoll::open().map(Opened::Epoll)
        }
        Err(error) => Err(error),
    }
}

/// Fills `bytes` from the system's generator.
///
/// # Errors
/// The system has none.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| io::Error::other("the system gives no random bytes"))
}
