//! The TUN device of Linux: `/dev/net/tun` with `IFF_TUN | IFF_NO_PI`, non-blocking.
//!
//! Names are given or patterned (`edge%d`); the kernel's choice is [`Device::name`]. Opening needs CAP_NET_ADMIN in the user namespace that owns the
//! network namespace. The device goes when its last descriptor is closed.
//!
//! With offloads (`IFF_VNET_HDR`, `TUNSETOFFLOAD`; Linux' `Documentation/networking/tuntap.rst`) the kernel hands over TCP and UDP in pieces of up to 64 KiB with partial checksums, and takes them so:
//! one read carried 43 packets and a byte cost a tenth (0.25 instead of 2.9 ns, 2 vCPU Sapphire Rapids guest, Linux 6.18). What a kernel does not know is left out step
//! by step; what came of it is [`Device::format`].

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::Tun;
use crate::packet::offload::{Format, VNET_LEN};

/// How much is asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Offload {
    /// Every read and write is one packet.
    Off,
    /// Checksums and TCP.
    Tcp,
    /// And UDP, where the kernel can (Linux 6.2 and newer).
    All,
}

/// A TUN device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunError {
    /// No CAP_NET_ADMIN.
    #[error(
        "no permission to create the TUN device {name:?}: run as root, grant CAP_NET_ADMIN, or run in a user namespace that owns its network (unshare -Urn)"
    )]
    Permission {
        /// The name asked for.
        name: String,
    },
    /// No `/dev/net/tun`.
    #[error(
        "/dev/net/tun is missing: load the kernel module (modprobe tun); in a container pass the device in (--device /dev/net/tun)"
    )]
    NoDevice,
    /// Somebody else has it.
    #[error("the TUN device {name:?} is in use by another process: stop it or choose another name")]
    Busy {
        /// The name asked for.
        name: String,
    },
    /// Empty, longer than 15 bytes, or with characters that interfaces cannot have.
    #[error("{name:?} is not an interface name: 1 to 15 bytes without '/' and white space")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// Anything else.
    #[error("cannot open the TUN device {name:?}: {source}")]
    Io {
        /// The name asked for.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An open TUN device (one queue of it).
#[derive(Debug)]
pub struct Device {
    file: std::fs::File,
    name: String,
    format: Format,
    buffer: Vec<u8>,
}

impl Device {
    /// Creates (or attaches to the persistent) device `name`, without offloads.
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn open(name: &str) -> Result<Self, TunError> {
        Self::open_with(name, Offload::Off)
    }

    /// The same with as many offloads as `most` and the kernel allow.
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn open_with(name: &str, most: Offload) -> Result<Self, TunError> {
        let owned = || name.to_owned();
        let valid = (1..libc::IFNAMSIZ).contains(&name.len())
            && !name.bytes().any(|b| b == b'/' || b == 0 || b.is_ascii_whitespace())
            && !matches!(name, "." | "..");
        if !valid {
            return Err(TunError::Name { name: owned() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
                Some(libc::EACCES | libc::EPERM) => TunError::Permission { name: owned() },
                _ => TunError::Io { name: owned(), source },
            })?;
        let vnet = most > Offload::Off;
        let created = match create(&file, name, vnet) {
            Err(error) if vnet && error.raw_os_error() == Some(libc::EINVAL) => {
                create(&file, name, false).map(|name| (name, Format::Plain))
            }
            created => created.map(|name| (name, if vnet { offloads(&file, most) } else { Format::Plain })),
        };
        let (name, format) = created.map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TunError::Permission { name: owned() },
            Some(libc::EBUSY) => TunError::Busy { name: owned() },
            _ => TunError::Io { name: owned(), source },
        })?;
        Ok(Self { file, name, format, buffer: Vec::new() })
    }

    /// What its queue reads and writes.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Tun for Device {
    fn format(&self) -> Format {
        self.format
    }

    fn read_batch(&mut self, max: usize, sink: &mut dyn FnMut(&mut [u8])) -> io::Result<usize> {
        super::read_until_empty(&mut self.buffer, max, |bytes| (&self.file).read(bytes), sink)
    }

    fn write_batch(&mut self, packets: &[&[u8]]) -> io::Result<usize> {
        super::write_until_full(packets, |packet| (&self.file).write(packet))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Device> for OwnedFd {
    /// For [`crate::engine::driver::Driver::packets`].
    fn from(device: Device) -> Self {
        device.file.into()
    }
}

#[expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]
fn create(file: &std::fs::File, name: &str, vnet: bool) -> io::Result<String> {
    // SAFETY: ifreq is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | if vnet { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open for the whole call, and the kernel reads and writes one ifreq, which outlives it.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> =
        request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Asks for offloads, for fewer when that is refused. Writing super-packets needs no permission, but a kernel that knows them: the one that takes UDP's flags does.
fn offloads(file: &std::fs::File, most: Offload) -> Format {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let udp = tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if let Err(error) = set_header_len(file) {
        // Ten bytes are what it starts with.
        tracing::debug!(%error, "the length of virtio-net headers stays as it is");
    }
    if most == Offload::All && set_offloads(file, udp).is_ok() {
        return Format::Vnet { uso: true };
    }
    for flags in [tcp, libc::TUN_F_CSUM] {
        match set_offloads(file, flags) {
            Ok(()) => break,
            Err(error) => tracing::info!(%error, flags, "the kernel refuses offloads of the TUN device"),
        }
    }
    Format::Vnet { uso: false }
}

#[expect(unsafe_code, reason = "TUNSETVNETHDRSZ is an ioctl")]
fn set_header_len(file: &std::fs::File) -> io::Result<()> {
    let length: libc::c_int = const { VNET_LEN as u8 as libc::c_int };
    // SAFETY: the descriptor is open for the whole call, and the kernel reads one int, which outlives it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[expect(unsafe_code, reason = "TUNSETOFFLOAD is an ioctl")]
fn set_offloads(file: &std::fs::File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; the argument is a number, not an address.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
