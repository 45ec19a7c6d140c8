//! `ankole demo`: the main job, start to end, on this machine.
//!
//! ```text
//! files ─▶ ext4 image ─▶ volume ─▶ snapshot ─▶ load, replica killed ─▶ rebuild
//!                                                     │
//!   load, engine killed ◀─────────────────────────────┘
//!     └─▶ full backup ─▶ 1 % changed ─▶ incremental ─▶ new volume, file ─▶ compare all
//! ```
//! Owns one folder and one `ankole standalone`, and drives it as a user does: by the API, the
//! command line and the volume's endpoint. Promises that whatever ends it (the last step, an
//! error, a signal, a full disk), no process, device, mount or file of it is left, unless `--keep`
//! asks for it. Even after SIGKILL its processes end, and the next demo removes its folder.

mod channel;
mod load;
mod mount;
mod place;
mod plan;
mod random;
mod report;
mod server;
mod steps;
mod tool;
mod tree;
mod trouble;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ankole_agent::probe;
use ankole_api::ApiError;
use ankole_api::size::{VolumeSize, human};
use ankole_api::volume::Frontend;
use ankole_blockdev::device::Driver;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::place::Place;
use self::plan::Plan;
use self::report::{Done, Reporter};
use self::steps::{Demo, STEPS};
use self::tool::Tools;
use self::trouble::{Result, Stop, Trouble};

#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Where to work [default: a new folder in the system's temporary folder]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Size of the volume
    #[arg(long, default_value = "1GiB", value_parser = VolumeSize::parse)]
    pub size: VolumeSize,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub replicas: u8,
    /// Leave everything in place at the end
    #[arg(long)]
    pub keep: bool,
}

/// What the demo finds around it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// PATH
    pub search_path: OsString,
    /// The system's folder for what is temporary.
    pub temporary: PathBuf,
    pub home: Option<PathBuf>,
    /// This binary.
    pub program: PathBuf,
}

impl Surroundings {
    /// Where a demo may work that wasn't told where, the best first.
    fn folders(&self) -> Vec<PathBuf> {
        let others = [Some("/var/tmp".into()), std::env::current_dir().ok(), self.home.clone()];
        let folders = std::iter::once(self.temporary.clone()).chain(others.into_iter().flatten());
        let mut distinct: Vec<PathBuf> = Vec::new();
        for folder in folders.filter_map(|folder| folder.canonicalize().ok()) {
            if !distinct.contains(&folder) {
                distinct.push(folder);
            }
        }
        distinct
    }
}

/// The exit code is 128 and the signal's number if a signal ended it.
pub fn run(args: DemoArgs, surroundings: Surroundings) -> std::result::Result<ExitCode, ApiError> {
    let stop = Stop::default();
    let (listening, heard) = mpsc::channel();
    let (finished, finish) = oneshot::channel::<()>();
    let listener = {
        let stop = stop.clone();
        thread::spawn(move || listen(&stop, listening, finish))
    };
    // No signal may come before somebody listens.
    let caught = heard.recv().unwrap_or_else(|_| Err(io::Error::other("no thread for signals")));
    caught.map_err(|error| ApiError::failed(format!("catch signals: {error}")))?;
    let worker = {
        let stop = stop.clone();
        thread::spawn(move || perform(&args, &surroundings, stop))
    };
    let outcome = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    drop(finished);
    let _ = listener.join();
    match (outcome, stop.requested()) {
        (Ok(()), _) => Ok(ExitCode::SUCCESS),
        (Err(_), Some(signal)) => Ok(ExitCode::from(128 + (signal & 0x7f) as u8)),
        (Err(Trouble::Api(error)), None) => Err(error),
        (Err(trouble), None) => Err(ApiError::failed(trouble.to_string())),
    }
}

/// Hears signals until the demo has finished.
fn listen(stop: &Stop, listening: mpsc::Sender<io::Result<()>>, finish: oneshot::Receiver<()>) {
    let work = async {
        let (mut interrupt, mut terminate, mut hangup) = match (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
            signal(SignalKind::hangup()),
        ) {
            (Ok(interrupt), Ok(terminate), Ok(hangup)) => (interrupt, terminate, hangup),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
                let _ = listening.send(Err(error));
                return;
            }
        };
        let _ = listening.send(Ok(()));
        let hear = async {
            loop {
                let kind = tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                    _ = hangup.recv() => SignalKind::hangup(),
                };
                stop.request(kind.as_raw_value());
                let text = "\nending the demo and removing what it made; again: in haste\n";
                let _ = io::stderr().write_all(text.as_bytes());
            }
        };
        tokio::select! {
            () = hear => {}
            _ = finish => {}
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => drop(listening.send(Err(error))),
    }
}

fn perform(args: &DemoArgs, surroundings: &Surroundings, stop: Stop) -> Result<()> {
    let reporter = Reporter::new(stop);
    let mut demo = prepare(args, surroundings, &reporter)?;
    // The last is the removal.
    let all = STEPS.len() + usize::from(!args.keep);
    let outcome = steps(&mut demo, &reporter, all);
    let outcome = outcome.map_err(|trouble| match demo.place.is_full() {
        true => full(&demo, &trouble),
        false => trouble,
    });
    let ended = demo.end();
    if args.keep {
        tell_of_what_is_kept(&reporter, &demo);
        let kept = demo.place.keep();
        drop(demo);
        outcome.and(ended).and(kept)?;
    } else if outcome.is_ok() {
        reporter.run((all, all), "remove the files", |_| {
            drop(demo);
            Ok(Done::default())
        })?;
        ended?;
    } else {
        drop(demo);
        return outcome;
    }
    reporter.table();
    reporter.say("\ndemo: ok");
    if !args.keep {
        reporter.say(NEXT);
    }
    Ok(())
}

/// Says what is going to happen, and finds a place for it.
fn prepare(args: &DemoArgs, surroundings: &Surroundings, reporter: &Reporter) -> Result<Demo> {
    let plan = Plan::new(args.size.bytes, args.replicas)?;
    let tools = Tools::find(&surroundings.search_path)?;
    let is_root = rustix::process::geteuid().is_root();
    let drivers = [
        (Driver::Ublk, Frontend::Ublk),
        (Driver::Nbd, Frontend::Nbd),
        (Driver::Tgt, Frontend::Tgt),
    ];
    let device = drivers.into_iter().find(|(driver, _)| is_root && probe::can_serve(*driver));
    let (frontend, by) = match device {
        Some((driver, frontend)) => {
            mount::enter_private_namespace()?;
            (frontend, format!("a device of the driver {driver} and a mounted file system"))
        }
        None => (Frontend::Socket, "an NBD socket, without root and kernel modules".to_owned()),
    };
    let costs = STEPS.iter().map(|step| step.cost).chain([plan::END]);
    let time: Duration = costs.map(|cost| cost.estimate(&plan)).sum();
    reporter.say(&format!(
        "A volume of {} with {} replicas, over {by}.\nIt takes about {} s here.",
        human(plan.size_bytes),
        plan.replicas,
        time.as_secs().next_multiple_of(5),
    ));
    let tell = |text: &str| reporter.say(text);
    let place = Place::choose(args.dir.as_deref(), surroundings, plan.need_bytes(), tell)?;
    reporter.say("");
    Demo::new(plan, place, frontend, tools, surroundings)
}

fn full(demo: &Demo, trouble: &Trouble) -> Trouble {
    let root = demo.place.root().display();
    let error = ApiError::failed(format!("the disk of {root} is full: {trouble}"));
    error.next("name a folder with more room by --dir").into()
}

fn steps(demo: &mut Demo, reporter: &Reporter, all: usize) -> Result<()> {
    for (number, step) in STEPS.iter().enumerate() {
        let number = (number + 1, all);
        reporter.run(number, step.title, |progress| (step.run)(demo, progress))?;
    }
    Ok(())
}

fn tell_of_what_is_kept(reporter: &Reporter, demo: &Demo) {
    let root = demo.place.root().display();
    let data = demo.place.data();
    let data = data.display();
    reporter.say(&format!(
        "
Kept in {root}:
  data/            of the standalone     disk1/ …      the replicas
  backups/         the backup target     restored.img  the restored file
Go on with it:
  ankole standalone --data {data} &
  ankole --data {data} volume attach demo
  ankole --data {data} snapshot ls demo --tree
  ankole backup ls --target file://{root}/backups
Remove it: rm -r {root}"
    ));
}

const NEXT: &str = "
Try next:
  ankole standalone --data ./data &
  ankole volume create v1 --size 1GiB --replicas 3 --frontend socket
  ankole volume attach v1
  ankole snapshot create v1 s1
  ankole demo --keep        leaves volume, snapshots and backups to look at
  ankole check              what this machine can do";
