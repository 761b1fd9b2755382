//! Runs scenarios over seeds, and tells the seed of one that fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `scenario` for seeds from 0 to `seeds` (or the number in `EDGELINK_SIM_SEEDS`), or for the one in `EDGELINK_SIM_SEED`.
///
/// # Panics
/// When the scenario does.
pub fn run(seeds: u64, scenario: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = number("EDGELINK_SIM_SEEDS").unwrap_or(seeds);
    let seeds = number("EDGELINK_SIM_SEED").map_or(0..seeds, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!("failed with seed {seed}; run it again with EDGELINK_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
