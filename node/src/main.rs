//! EdgeLink's node: the daemon and its command line.
mod args;
mod config;
mod control;
mod keys;
mod system;

fn main() {
    let _ = <args::Cli as clap::Parser>::parse();
}
