//! A whole mesh in one process under a virtual clock.
//!
//! Real node and relay machines; a small controller that builds their configurations; links with delay, loss, reordering and duplication, all drawn
//! from one seed. [`model`] knows every packet that was put in and says which may come out, and where. A failing run prints its seed
//! and runs again the same way with `EDGELINK_SIM_SEED` set to it; `EDGELINK_SIM_SEEDS` asks for more seeds than usual.
//!
//! ```text
//! World ── clock, what is on its way        world.rs, world/carriage.rs
//!   ├─ Machine: a node and its shell        machine.rs
//!   ├─ RelayHost: hub, worker, their shell  relay_host.rs
//!   ├─ Controller                           controller.rs
//!   ├─ Links                                link.rs
//!   ├─ Internet: NATs, STUN servers         nat.rs, world/udp.rs
//!   └─ Model                                model.rs
//! ```

pub mod controller;
pub mod link;
pub mod machine;
pub mod model;
pub mod nat;
pub mod packet;
pub mod relay_host;
pub mod scenario;
pub mod world;

pub use link::Quality;
pub use model::Model;
pub use scenario::run;
pub use world::World;
