//! Runs scenarios over seeds, and tells the seed of one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `scenario` for seeds from 0 to `seeds`, or for the one in `EDGELINK_SIM_SEED`.
///
/// # Panics
/// When the scenario does.
pub fn run(seeds: u64, scenario: impl Fn(u64)) {
    let chosen: Option<u64> = std::env::var("EDGELINK_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = chosen.map_or(0..seeds, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("failed with seed {seed}; run it again with EDGELINK_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
