//! `edgelink-bench node`: what a tunnel between two nodes carries and costs, beside user-space implementations of WireGuard in the same run.
//!
//! Two network namespaces joined by a veth pair ([`lab`]), a daemon on a core each ([`daemon`], [`contender`]); controller and relay of ours stand in a
//! third one ([`mesh`]). In every round each scene of [`row`] is set up in turn, and in it every contender, freshly started, is measured ([`mod@measure`]) by
//! iperf3 ([`iperf`]), by datagrams of our own ([`packets`]) and by ping ([`ping`]). Reported is the median over rounds, with least and most.
//!
//! All of it happens in namespaces of processes, mounts and networks of its own, which this program starts itself in ([`run`]): when it ends, whatever
//! way, the kernel takes everything away.

mod contender;
mod daemon;
mod iperf;
mod lab;
mod measure;
mod mesh;
mod packets;
mod ping;
mod row;
mod uapi;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::machine::Machine;
use crate::report::{self, Measurement, Report, Row, number};
use crate::stats::Summary;
use crate::{FOLDER, plot};
use contender::Contender;
use lab::{Lab, run as run_command, set_wire};
use measure::{Manner, Sample, Samples, measure};
use mesh::{Mesh, Programs};
use row::{Figure, ROWS, RowSpec, SCENES, Scene};

/// A contender that failed so often in a scene is not tried again in it.
const MAX_FAILURES: usize = 2;
/// Bounds that keep a mistyped option from running for a day.
const MAX_ROUNDS: u32 = 100;
const MAX_SECONDS: u32 = 60;
/// For the peers of a node that is idle: what 16 bits of an address hold, roughly.
const MAX_PEERS: u32 = 60_000;
/// Before the memory of an idle daemon is read.
const SETTLED: Duration = Duration::from_secs(5);
/// A neighbour who takes more than this of the machine is worth a note, percent.
const STOLEN: f64 = 3.0;
/// The name of the bare wire in progress lines.
const BARE: &str = "the bare wire";

/// How to measure.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Rounds; each measures every contender once per row.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of what is measured each time, in each direction.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Only rows whose name contains this.
    #[arg(long, alias = "rows", value_name = "SUBSTRING")]
    only: Option<String>,
    /// Only these contenders, such as edgelink,boringtun.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    contenders: Vec<String>,
    /// Where edgelink and edgelink-relay are; by default beside this program.
    #[arg(long, value_name = "FOLDER")]
    binaries: Option<PathBuf>,
    /// Another build of edgelink, in this folder, measured beside the first as edgelink-other.
    #[arg(long, value_name = "FOLDER")]
    other: Option<PathBuf>,
    /// Where edgelink-controller and edgelink-ctl are.
    #[arg(long, value_name = "FOLDER", default_value = ".venv/bin")]
    scripts: PathBuf,
    /// Where rivals are; those that are not there are left out.
    #[arg(long, value_name = "FOLDER", default_value = "target/rivals")]
    rivals: PathBuf,
    /// Keep iperf3 and the generator of small packets on the core of their end; otherwise the system's scheduler places them.
    #[arg(long)]
    pin_load: bool,
    /// What goes to stdout; the files are written either way.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Set for the process in namespaces of its own.
    #[arg(long, hide = true)]
    inside: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

/// Peers of the idle node; the row is named after them.
const PEERS: u32 = 1_000;
const _: () = assert!(PEERS <= MAX_PEERS);

/// Measures, prints, writes; an error when a row lacks ours, or everybody. Who else fails is left out of a row.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !(1..=MAX_ROUNDS).contains(&options.rounds) || !(1..=MAX_SECONDS).contains(&options.seconds) {
        bail!("1 to {MAX_ROUNDS} rounds of 1 to {MAX_SECONDS} seconds");
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        bail!("two cores are needed, one for each end; this machine has {cores}");
    }
    let rows = chosen_rows(options.only.as_deref())?;
    if options.inside { inside(options, &rows) } else { outside() }
}

fn chosen_rows(only: Option<&str>) -> anyhow::Result<Vec<RowSpec>> {
    let rows: Vec<_> =
        ROWS.iter().copied().filter(|row| only.is_none_or(|part| row.what.contains(part))).collect();
    if rows.is_empty() {
        let all: Vec<_> = ROWS.iter().map(|row| row.what).collect();
        bail!("no such row; rows:\n  {}", all.join("\n  "));
    }
    Ok(rows)
}

/// Starts this program again as the first process of namespaces of its own. It ends when its standard input does, which is when this one ends: the
/// kernel then kills whatever it has started, and takes networks and mounts away.
fn outside() -> anyhow::Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let root = nix::unistd::geteuid().is_root();
    if !root {
        // Root in there is nobody outside.
        command.args(["--user", "--map-root-user"]);
    }
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).arg("--inside");
    let mut child = command.stdin(Stdio::piped()).spawn().context("cannot run unshare (util-linux)")?;
    // Open until this process ends: waiting would close it.
    let _open = child.stdin.take();
    let status = child.wait()?;
    if !status.success() {
        // What went wrong has been said.
        if !root {
            eprintln!("without root this takes user namespaces, and a /dev/net/tun that everybody may open");
        }
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

fn inside(options: &Options, rows: &[RowSpec]) -> anyhow::Result<()> {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(130);
    });
    run_command(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
    let folder = PathBuf::from(FOLDER);
    let lab = Lab::new(&folder.join("node-files"))?;
    let contenders = chosen(options)?;
    let edgelink = contenders.iter().any(Contender::is_edgelink);
    let mut bench = Bench {
        manner: Manner { seconds: options.seconds, pinned: options.pin_load },
        mesh: if edgelink { Some(start_mesh(options, &lab)?) } else { None },
        lab,
        contenders,
        samples: BTreeMap::new(),
        failures: Vec::new(),
    };
    let begun = Instant::now();
    let plan = Plan::of(rows);
    for round in 1..=options.rounds {
        for scene in SCENES {
            bench.scene(round, options.rounds, scene, &plan)?;
        }
    }
    if plan.figures(Scene::Idle).is_some() {
        bench.idle();
    }
    eprintln!("measured in {:.0} s", begun.elapsed().as_secs_f64());
    bench.finish(options, rows)
}

fn start_mesh(options: &Options, lab: &Lab) -> anyhow::Result<Mesh> {
    let programs = Programs { binaries: binaries(options)?, scripts: options.scripts.clone() };
    eprintln!("starting controller and relay");
    Mesh::start(lab, &programs, Path::new("/run/edgelink-bench"))
}

/// Where our programs are.
fn binaries(options: &Options) -> anyhow::Result<PathBuf> {
    match &options.binaries {
        Some(folder) => Ok(folder.clone()),
        None => Ok(std::env::current_exe()?.parent().context("this program is nowhere")?.to_owned()),
    }
}

/// Those that the command line asks for.
fn chosen(options: &Options) -> anyhow::Result<Vec<Contender>> {
    let all = contender::all(&binaries(options)?, options.other.as_deref(), &options.rivals)?;
    let names: Vec<_> = all.iter().map(|one| one.name).collect();
    if let Some(name) = options.contenders.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("no contender is called {name}; there are {}", names.join(", "));
    }
    let wanted = |one: &Contender| {
        options.contenders.is_empty() || options.contenders.iter().any(|name| name == one.name)
    };
    Ok(all.into_iter().filter(wanted).collect())
}

/// What has to be measured, by scene.
struct Plan(BTreeMap<Scene, BTreeSet<Figure>>);

impl Plan {
    fn of(rows: &[RowSpec]) -> Self {
        let mut plan = BTreeMap::<_, BTreeSet<_>>::new();
        for row in rows {
            plan.entry(row.scene).or_default().insert(row.figure);
            if row.scene != row.scene.of_rivals() {
                plan.entry(row.scene.of_rivals()).or_default().insert(row.figure);
            }
            if row.figure == Figure::PercentOfDirect {
                plan.entry(row.scene).or_default().insert(Figure::OneStream);
                plan.entry(Scene::Direct).or_default().insert(Figure::OneStream);
            }
        }
        Self(plan)
    }

    fn figures(&self, scene: Scene) -> Option<&BTreeSet<Figure>> {
        self.0.get(&scene)
    }
}

struct Bench {
    lab: Lab,
    mesh: Option<Mesh>,
    contenders: Vec<Contender>,
    manner: Manner,
    /// Rounds by scene and contender.
    samples: BTreeMap<(Scene, &'static str), Vec<Samples>>,
    failures: Vec<(Scene, &'static str, String)>,
}

impl Bench {
    /// One round of a scene: everybody who takes part in it.
    fn scene(&mut self, round: u32, rounds: u32, scene: Scene, plan: &Plan) -> anyhow::Result<()> {
        let Some(figures) = plan.figures(scene) else { return Ok(()) };
        set_wire(scene.wire())?;
        let context = format!("round {round} of {rounds}, {}", scene.name());
        let bare = matches!(scene, Scene::Direct | Scene::NoOffload | Scene::Jumbo);
        if bare && figures.iter().any(|figure| figure.is_of_the_wire()) {
            let result = measure(&self.lab, None, figures, self.manner);
            self.note(&context, scene, BARE, result);
        }
        for index in 0..self.contenders.len() {
            let contender = &self.contenders[index];
            let name = contender.name;
            if !contender.is_edgelink() && !scene.has_rival(name) || self.has_given_up(scene, name) {
                continue;
            }
            let result = contender
                .start(&self.lab, self.mesh.as_ref(), scene.setting())
                .and_then(|pair| measure(&self.lab, Some(&pair), figures, self.manner));
            let result = result.map(|samples| self.with_percent(samples, scene, name));
            self.note(&context, scene, name, result);
        }
        Ok(())
    }

    fn has_given_up(&self, scene: Scene, name: &str) -> bool {
        let same = |(of, whose, _): &&(Scene, &str, String)| *of == scene && *whose == name;
        self.failures.iter().filter(same).count() >= MAX_FAILURES
    }

    /// Through the relay: in percent of what the same round gave directly.
    fn with_percent(&self, mut samples: Samples, scene: Scene, name: &'static str) -> Samples {
        let direct = self
            .samples
            .get(&(Scene::Direct, name))
            .and_then(|rounds| rounds.last()?.get(&Figure::OneStream));
        if let (Scene::Relay, Some(direct), Some(relay)) = (scene, direct, samples.get(&Figure::OneStream)) {
            let value = 100.0 * relay.value / direct.value;
            let percent = Sample { value, note: None, ..relay.clone() };
            samples.insert(Figure::PercentOfDirect, percent);
        }
        samples
    }

    fn note(&mut self, context: &str, scene: Scene, name: &'static str, result: anyhow::Result<Samples>) {
        match result {
            Ok(samples) => {
                for (figure, sample) in &samples {
                    eprintln!("{context}, {name}: {}", progress(*figure, sample));
                }
                self.samples.entry((scene, name)).or_default().push(samples);
            }
            Err(error) => {
                let failure = format!("{context}, {name}: {error:#}");
                eprintln!("{failure}");
                self.failures.push((scene, name, failure));
            }
        }
    }

    /// Memory of one daemon that knows many peers, once: it does not vary.
    fn idle(&mut self) {
        for index in 0..self.contenders.len() {
            let contender = &self.contenders[index];
            let name = contender.name;
            if !contender.is_edgelink() && !Scene::Idle.has_rival(name) {
                continue;
            }
            let started = contender.idle(&self.lab, self.mesh.as_ref(), PEERS);
            let result = started.and_then(|mut daemon| {
                thread::sleep(SETTLED);
                daemon.check()?;
                let resident = daemon.resident()? as f64 / f64::from(1 << 20);
                Ok(Samples::from([(Figure::Resident, Sample::of(resident))]))
            });
            self.note("once, 1,000 peers", Scene::Idle, name, result);
        }
    }

    fn finish(self, options: &Options, rows: &[RowSpec]) -> anyhow::Result<()> {
        let rows: Vec<Row> = rows.iter().map(|spec| self.row(spec)).collect();
        let report = Report {
            title: "Node: two namespaces, one wire, a daemon on a core each",
            busy: ["daemons", "others"],
            machine: Machine::here(),
            rows,
        };
        let folder = Path::new(FOLDER);
        fs::write(folder.join("node.json"), report.to_json())
            .context("cannot write target/bench/node.json")?;
        let speed = |row: &Row| matches!(row.unit, "Gbit/s" | "1/s" | "%");
        for (name, speeds) in [("node.svg", true), ("node-cost.svg", false)] {
            let plot = plot::svg(&report, |row| speed(row) == speeds);
            fs::write(folder.join(name), plot)
                .with_context(|| format!("cannot write target/bench/{name}"))?;
        }
        match options.output {
            Output::Table => println!("{}", report::table(&report)),
            Output::Json => println!("{}", report.to_json()),
        }
        if !self.failures.is_empty() {
            eprintln!(
                "left out where they failed:\n{}",
                self.failures.iter().map(|(.., failure)| failure.as_str()).collect::<Vec<_>>().join("\n")
            );
        }
        let ours = self.contenders.iter().any(Contender::is_ours);
        let lacks = |row: &&Row| ours && !row.measurements.iter().any(|one| one.ours);
        let missing: Vec<_> = report.rows.iter().filter(lacks).map(|row| row.what).collect();
        if missing.is_empty() { Ok(()) } else { bail!("not measured:\n  {}", missing.join("\n  ")) }
    }

    fn row(&self, spec: &RowSpec) -> Row {
        let of = |scene, name, ours| {
            let rounds = self.samples.get(&(scene, name)).map_or(&[][..], Vec::as_slice);
            let samples: Vec<_> = rounds.iter().filter_map(|samples| samples.get(&spec.figure)).collect();
            summarise(name, ours, &samples)
        };
        let wire = of(spec.scene.of_rivals(), BARE, false).map(|bare| bare.value.median);
        let floor = wire.filter(|_| spec.figure.is_of_the_wire());
        let mut measurements: Vec<_> = self
            .contenders
            .iter()
            .filter_map(|one| {
                let scene = if one.is_edgelink() { spec.scene } else { spec.scene.of_rivals() };
                of(scene, one.name, one.is_ours())
            })
            .collect();
        if let (Some(floor), Some(first)) = (floor, measurements.first_mut()) {
            first.notes.push(format!("{BARE}: {}", number(floor)));
        }
        Row { what: spec.what, unit: spec.unit, better: spec.better, floor, measurements }
    }
}

fn progress(figure: Figure, sample: &Sample) -> String {
    let mut parts = vec![format!("{} {}", number(sample.value), figure.name())];
    parts.extend(sample.note.clone());
    if let (Some(daemons), Some(others)) = (sample.daemons, sample.others) {
        parts.push(format!("daemons {daemons:.0} %, others {others:.0} % of all cores"));
    }
    if sample.stolen > STOLEN {
        parts.push(format!("{:.0} % stolen", sample.stolen));
    }
    parts.join(", ")
}

fn summarise(name: &str, ours: bool, samples: &[&Sample]) -> Option<Measurement> {
    let median = |of: &dyn Fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(|sample| of(sample)).collect();
        Summary::of(&values)
    };
    let mut notes = Vec::new();
    let stolen = median(&|sample| Some(sample.stolen)).map_or(0.0, |stolen| stolen.median);
    if stolen > STOLEN {
        notes.push(format!("{stolen:.0} % of the machine stolen"));
    }
    // Of one round; all of them went to stderr.
    notes.extend(samples.last().and_then(|sample| sample.note.clone()));
    Some(Measurement {
        name: name.to_owned(),
        ours,
        value: median(&|sample| Some(sample.value))?,
        server_percent: median(&|sample| sample.daemons).map(|share| share.median),
        client_percent: median(&|sample| sample.others).map(|share| share.median),
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_takes_along_what_it_is_compared_with() {
        let relay = chosen_rows(Some("through one relay")).expect("it is there");
        let plan = Plan::of(&relay);
        assert!(plan.figures(Scene::Direct).is_some_and(|figures| figures.contains(&Figure::OneStream)));
        assert!(plan.figures(Scene::Relay).is_some_and(|figures| figures.contains(&Figure::OneStream)));
        let cipher = Plan::of(&chosen_rows(Some("ChaCha20")).expect("it is there"));
        assert!(cipher.figures(Scene::ChaCha).is_some() && cipher.figures(Scene::Direct).is_some());
        assert!(cipher.figures(Scene::Jumbo).is_none());
        assert!(chosen_rows(Some("no such thing")).is_err());
    }

    #[test]
    fn a_neighbour_is_noted() {
        let quiet = Sample { daemons: Some(70.0), others: Some(20.0), ..Sample::of(5.0) };
        let noisy = Sample { stolen: 20.0, note: Some("why".to_owned()), ..quiet.clone() };
        let measurement = summarise("x", false, &[&quiet, &noisy, &noisy]).expect("three rounds");
        assert_eq!(measurement.notes, ["20 % of the machine stolen", "why"]);
        assert_eq!(measurement.server_percent, Some(70.0));
        assert!(summarise("x", false, &[]).is_none());
    }
}
