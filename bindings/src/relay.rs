//! A relay and a STUN server inside the caller's process: the threads and machines of `edgelink-relay`, without its links.
//!
//! The relay takes and gives the control messages of `docs/protocol.md` §5, so that whoever embeds it serves it like one on `/ws/server`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use ipnet::IpNet;
use meshdp::engine::relay::{Listener, RelayConfig, RelayHandle};
use meshdp::engine::stun;
use meshdp::engine::tls;
use meshdp::proto::drop_reason::DropCounters;
use meshdp::proto::id::RelayId;
use meshdp::proto::wire::forwarded::{HeaderNameError, Trust};
use meshdp::proto::wire::frame::FrameType;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict};
use serde::Deserialize;

use crate::errors;

/// The keys of the dictionary that `Relay` takes.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    relay_id: u16,
    token: String,
    listen: Option<SocketAddr>,
    ws_data: Option<String>,
    ws_mesh: Option<String>,
    data_url: Option<String>,
    mesh_url: Option<String>,
    stun: Option<SocketAddr>,
    tls: Option<TlsFiles>,
    tls_pin: Option<String>,
    state_dir: Option<PathBuf>,
    workers: usize,
    /// Networks of proxies that are believed, and the header in which they say for whom they speak.
    trusted_proxies: Vec<String>,
    client_address: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
}

/// A relay with its worker threads.
#[pyclass(module = "meshdp", frozen)]
pub(crate) struct Relay {
    config: RelayConfig,
    running: Mutex<Option<std::sync::Arc<RelayHandle>>>,
}

impl Relay {
    fn handle(&self, py: Python<'_>) -> PyResult<std::sync::Arc<RelayHandle>> {
        let running = self.running.lock().map_err(|_| errors::mesh(py, "the relay failed earlier"))?;
        running.clone().ok_or_else(|| errors::mesh(py, "the relay is not running: call start() first"))
    }
}

#[pymethods]
impl Relay {
    /// Reads the settings; nothing is opened before `start`.
    #[new]
    fn new(py: Python<'_>, config: &Bound<'_, PyDict>) -> PyResult<Self> {
        let text: String = py.import("json")?.call_method1("dumps", (config,))?.extract()?;
        let given: Settings = serde_json::from_str(&text)
            .map_err(|error| errors::mesh(py, format!("relay settings: {error}")))?;
        let mut config = RelayConfig { state_dir: given.state_dir, ..RelayConfig::default() };
        let server = |files: TlsFiles| tls::server_config(&files.cert, &files.key);
        let tls = given.tls.map(server).transpose().map_err(|error| errors::mesh(py, error.to_string()))?;
        config.listeners.extend(given.listen.map(|address| Listener::new(address, tls)));
        config.data_path = given.ws_data.unwrap_or(config.data_path);
        config.mesh_path = given.ws_mesh.unwrap_or(config.mesh_path);
        config.workers = given.workers;
        let header = given.client_address.as_deref().map(str::parse).transpose();
        let header = header.map_err(|error: HeaderNameError| errors::mesh(py, error.to_string()))?;
        let network = |text: &String| {
            let wrong =
                || errors::mesh(py, format!("trusted_proxies: {text:?} is no network such as 10.0.0.0/8"));
            text.parse::<IpNet>().map_err(|_| wrong())
        };
        let networks = given.trusted_proxies.iter().map(network).collect::<PyResult<_>>()?;
        config.trust = Trust { networks, header };
        config.settings.relay_id = RelayId(given.relay_id);
        let register = &mut config.settings.register;
        register.token = given.token.into();
        register.data_url = given.data_url;
        register.mesh_url = given.mesh_url;
        register.stun = given.stun;
        register.tls_pin = given.tls_pin;
        if given.stun.is_some() {
            register.capabilities.push("stun".into());
        }
        Ok(Self { config, running: Mutex::new(None) })
    }

    /// Opens the ports and starts the threads. Raises `MeshError` when a port cannot be had.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        let mut running = self.running.lock().map_err(|_| errors::mesh(py, "the relay failed earlier"))?;
        if running.is_none() {
            let config = self.config.clone();
            let handle = py
                .detach(|| RelayHandle::start(config))
                .map_err(|error| errors::mesh(py, error.to_string()))?;
            *running = Some(std::sync::Arc::new(handle));
        }
        Ok(())
    }

    /// Tells the nodes to move, gives them `grace_ms` milliseconds, then ends the threads. Waits without the interpreter lock.
    #[pyo3(signature = (grace_ms = 0))]
    fn stop(&self, py: Python<'_>, grace_ms: u64) -> PyResult<()> {
        let handle = self.running.lock().map_err(|_| errors::mesh(py, "the relay failed earlier"))?.take();
        if let Some(handle) = handle {
            py.detach(|| {
                if grace_ms > 0 {
                    handle.drain(Duration::from_millis(grace_ms));
                }
                // Somebody may still wait in next_event; the last one to let go ends the threads.
                drop(handle);
            });
        }
        Ok(())
    }

    /// A control message from the controller: CONFIG, CONFIG_UPDATE, SERVER_NODE_LOC or SERVER_BLACKLIST.
    fn control(&self, py: Python<'_>, kind: u8, payload: &[u8]) -> PyResult<()> {
        let handle = self.handle(py)?;
        let Some(kind) = FrameType::from_byte(kind) else {
            return Err(errors::mesh(py, format!("unknown frame type {kind:#04x}")));
        };
        py.detach(|| handle.control(kind, payload)).map_err(|error| errors::mesh(py, error.to_string()))
    }

    /// The controller starts anew with this relay: the next event is SERVER_REGISTER again.
    fn controller_connected(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.handle(py)?;
        py.detach(|| handle.controller_connected());
        Ok(())
    }

    /// The next message for the controller, as `(type, payload)`: SERVER_REGISTER first. `None` after `timeout` seconds.
    fn next_event<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Option<(u8, Bound<'py, PyBytes>)>> {
        let handle = self.handle(py)?;
        let timeout = Duration::try_from_secs_f64(timeout.clamp(0.0, 3600.0)).unwrap_or_default();
        let event = py.detach(|| handle.next_event(timeout));
        Ok(event.map(|(kind, payload)| (kind as u8, PyBytes::new(py, &payload))))
    }

    /// State and counters: `relay_id`, `ready`, `config_version`, `connected_nodes`, `open_connections`, `mesh_rtt_ms` (relay id to milliseconds or
    /// `None`) and `drops` (reason to number).
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let handle = self.handle(py)?;
        let stats = py.detach(|| handle.stats());
        let mut drops = DropCounters::default();
        for worker in &stats.workers {
            drops.merge(&worker.drops);
        }
        let dict = PyDict::new(py);
        dict.set_item("relay_id", stats.relay_id.0)?;
        dict.set_item("ready", stats.ready)?;
        dict.set_item("config_version", stats.config_version)?;
        dict.set_item("connected_nodes", stats.connected_nodes)?;
        dict.set_item("open_connections", stats.workers.iter().map(|worker| worker.open).sum::<usize>())?;
        let links = stats.links.iter().map(|(id, rtt)| (id.0, rtt.map(|rtt| rtt.as_secs_f64() * 1000.0)));
        dict.set_item("mesh_rtt_ms", links.into_py_dict(py)?)?;
        dict.set_item("drops", drops.iter().map(|(reason, n)| (reason.label(), n)).into_py_dict(py)?)?;
        Ok(dict)
    }

    /// `address:port` that it listens on; `None` before `start` or without a listener.
    #[getter]
    fn data_addr(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.handle(py)?.data_addr().map(|address| address.to_string()))
    }
}

/// Answers STUN binding requests on one UDP address.
#[pyclass(module = "meshdp", frozen)]
pub(crate) struct StunServer {
    listen: SocketAddr,
    running: Mutex<Option<stun::StunServer>>,
}

#[pymethods]
impl StunServer {
    /// `external_ip` is what nodes are told to use; it is checked here and announced by whoever embeds the server.
    #[new]
    #[pyo3(signature = (listen, external_ip = None))]
    fn new(py: Python<'_>, listen: &str, external_ip: Option<&str>) -> PyResult<Self> {
        let listen = listen.parse().map_err(|_| {
            errors::mesh(py, format!("STUN listen address {listen:?}: expected address:port"))
        })?;
        if let Some(text) = external_ip {
            let _: IpAddr = text.parse().map_err(|_| {
                errors::mesh(py, format!("STUN external_ip {text:?}: expected an IP address"))
            })?;
        }
        Ok(Self { listen, running: Mutex::new(None) })
    }

    /// Opens the port and starts the thread. Raises `MeshError` when the port cannot be had.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        let mut running =
            self.running.lock().map_err(|_| errors::mesh(py, "the STUN server failed earlier"))?;
        if running.is_none() {
            let server =
                stun::StunServer::start(self.listen).map_err(|error| errors::mesh(py, error.to_string()))?;
            *running = Some(server);
        }
        Ok(())
    }

    /// Closes the port.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let server =
            self.running.lock().map_err(|_| errors::mesh(py, "the STUN server failed earlier"))?.take();
        py.detach(|| drop(server));
        Ok(())
    }

    /// `address:port` that it answers on; `None` before `start`.
    #[getter]
    fn address(&self) -> Option<String> {
        let running = self.running.lock().ok()?;
        running.as_ref().map(|server| server.address().to_string())
    }
}
