//! Power cuts of machines whose disks are images: the real binary, the real file systems.
//!
//! A cut is one point in time: the engine is stopped, so that nothing that happens on one machine
//! is known on another; the client's history says what it was told; then the images are copied
//! within milliseconds, while the replicas' writes to them go on. The run goes on as well, and each
//! cut is checked afterwards.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::nbd;
use ankole_replica::record::{Member, Record};
use ankole_replica::store::crash::Random;
use ankole_replica::types::{Incarnation, ReplicaId};
use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::admin;
use crate::arbiter::Arbiter;
use crate::case::{Case, CaseMachine, Disks, Fate};
use crate::client::{Client, read_all};
use crate::cluster::{REPLICAS, until_healthy};
use crate::image::{Disk, Filesystem, copy_at_once};
use crate::inspect::{Inspection, describe, hash};
use crate::machine::{VOLUME, fresh_folder, run};
use crate::oracle::{Clock, Expectation, History, View};
use crate::process::Process;
use crate::recording::Boot;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Requests that the client makes between two cuts, at most.
const BETWEEN_CUTS_MAX: u64 = 60;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub filesystem: Filesystem,
    pub size_bytes: u64,
    pub cuts: u64,
}

/// The programs.
pub struct Programs {
    pub ankole: PathBuf,
    /// This one.
    pub powercut: PathBuf,
}

impl Programs {
    fn format(&self, directory: &Path, replica: &str, size_bytes: u64) -> Vec<String> {
        let (program, directory) = (self.powercut.display(), directory.display());
        let size_bytes = size_bytes.to_string();
        [&program.to_string(), "format", &directory.to_string(), replica, &size_bytes]
            .map(str::to_owned)
            .into()
    }

    fn inspect(&self, directory: &Path, case: &Path) -> Vec<String> {
        let (program, directory) = (self.powercut.display(), directory.display());
        [&program.to_string(), "inspect", &directory.to_string(), &case.display().to_string()]
            .map(str::to_owned)
            .into()
    }

    fn serve(&self, directory: &Path, replica: &str, socket: &Path) -> Vec<String> {
        let (program, directory) = (self.ankole.display(), directory.display());
        let listen = format!("unix:{}", socket.display());
        let arguments = ["--volume", VOLUME, "--replica", replica, "--listen", &listen, "--dir"];
        [&program.to_string(), "replica", "serve"]
            .into_iter()
            .chain(arguments)
            .chain([&*directory.to_string()])
            .map(str::to_owned)
            .collect()
    }
}

/// Machines that run, and the engine of their volume.
struct Cluster<'a> {
    folder: PathBuf,
    programs: &'a Programs,
    disks: Vec<Disk>,
    machines: Vec<Option<Process>>,
    arbiter: Arbiter,
    engine: Option<Process>,
}

impl<'a> Cluster<'a> {
    /// Over the images `r1.img`, … of `folder`.
    fn new(
        folder: &Path,
        filesystem: Filesystem,
        record: Record,
        clock: Clock,
        programs: &'a Programs,
    ) -> anyhow::Result<Self> {
        let disk = |name: &&str| disk(folder, filesystem, name);
        Ok(Self {
            folder: folder.to_owned(),
            programs,
            disks: REPLICAS.iter().map(disk).collect(),
            machines: REPLICAS.iter().map(|_| None).collect(),
            arbiter: Arbiter::start(&folder.join("arbiter.sock"), record, clock)?,
            engine: None,
        })
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sock"))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Returns when the replica's process listens.
    async fn boot(&mut self, index: usize, boot_id: &str) -> anyhow::Result<()> {
        let (disk, socket) = (&self.disks[index], self.socket(REPLICAS[index]));
        let _none = std::fs::remove_file(&socket); // of the machine's last life, if it had one
        let command = self.programs.serve(&disk.directory(), REPLICAS[index], &socket);
        let mut machine = disk.boot(boot_id, &command, &self.log())?;
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            machine.check_runs().with_context(|| self.last_words())?;
            if Instant::now() > deadline {
                bail!("{} isn't served", REPLICAS[index]);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.machines[index] = Some(machine);
        Ok(())
    }

    /// Starts an engine with a new grant; returns when the volume is open.
    async fn start_engine(&mut self) -> anyhow::Result<nbd::Client> {
        let instance = self.arbiter.grant();
        let mut command = Command::new(&self.programs.ankole);
        command.args(["engine", "run", "--volume", VOLUME, "--node", "here", "--instance"]);
        command.arg(&instance.0).arg("--arbiter").arg(self.socket("arbiter"));
        command.arg("--admin").arg(self.socket("admin"));
        command.arg("--socket").arg(self.socket("nbd"));
        for name in REPLICAS {
            let address = format!("{name}=unix:{}", self.socket(name).display());
            command.arg("--replica").arg(address);
        }
        self.engine = Some(Process::start(command, "the engine", &self.log())?);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = admin::status(&self.socket("admin")).await;
            if status.is_ok_and(|status| status.endpoint.is_some()) {
                return Ok(nbd::Client::connect_unix(&self.socket("nbd"), "").await?);
            }
            self.engine().check_runs().with_context(|| self.last_words())?;
            if Instant::now() > deadline {
                bail!("the volume isn't open after {PATIENCE:?}: {}", self.last_words());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn engine(&mut self) -> &mut Process {
        self.engine.as_mut().expect("it was started")
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Whether a member is left that runs when this one is gone.
    fn can_lose(&self, index: usize) -> bool {
        let members = self.arbiter.record().in_sync;
        let is_member = |name: &str| members.iter().any(|member| &*member.replica.0 == name);
        let others = (0..REPLICAS.len()).filter(|other| *other != index);
        others.into_iter().any(|at| self.machines[at].is_some() && is_member(REPLICAS[at]))
    }

    /// Cuts the power of one machine while the others go on.
    fn lose(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(machine) = self.machines[index].take() else { return Ok(()) };
        let image = self.disks[index].image.clone();
        let left = image.with_extension("left");
        machine.stop()?;
        copy_at_once(&image, &left)?;
        machine.kill()?;
        self.disks[index].until_free()?;
        std::fs::rename(left, image)?;
        Ok(())
    }

    /// Everything ends, in no order.
    fn kill(mut self) -> anyhow::Result<()> {
        drop(self.engine.take());
        self.machines.clear();
        self.disks.iter().try_for_each(Disk::until_free)
    }
}

fn disk(folder: &Path, filesystem: Filesystem, name: &str) -> Disk {
    let image = folder.join(format!("{name}.img"));
    Disk { image, filesystem, place: folder.join(name) }
}

/// Runs the plan in `folder`, which must lie on a ground, and puts each cut into a folder of its
/// own beside it. Returns what the client did, in words.
pub fn make(
    plan: &Plan,
    programs: &Programs,
    folder: &Path,
) -> anyhow::Result<(String, Vec<(Case, PathBuf)>)> {
    fresh_folder(folder)?;
    run(async {
        let mut in_sync = Vec::new();
        for name in REPLICAS {
            let disk = disk(folder, plan.filesystem, name);
            plan.filesystem.make(&disk.image)?;
            let output = folder.join(format!("{name}.formatted"));
            let command = programs.format(&disk.directory(), name, plan.size_bytes);
            finish(disk.boot("factory", &command, &output)?, &output)?;
            let incarnation = std::fs::read_to_string(&output)?.trim().to_owned();
            let incarnation = Incarnation::try_from(incarnation)?;
            in_sync.push(Member { replica: ReplicaId::from(name), incarnation });
        }
        let clock = Clock::default();
        let history = History::new(plan.seed, plan.size_bytes, clock.clone());
        let history = Rc::new(RefCell::new(history));
        let record = Record::first(in_sync);
        let mut cluster = Cluster::new(folder, plan.filesystem, record, clock, programs)?;
        for (index, name) in REPLICAS.iter().enumerate() {
            cluster.boot(index, &format!("{name}-boot-1")).await?;
        }
        let nbd = cluster.start_engine().await?;
        let mut random = Random::new(plan.seed);
        let mut for_client = Random::new(random.number());
        let client = Client::new(nbd, cluster.socket("admin"), history.clone(), u64::MAX);
        let cutting = async {
            let cuts = cut_many(plan, &mut cluster, &client, &history, &mut random).await;
            client.stop();
            cuts
        };
        let (worked, cuts) = tokio::join!(client.work(&mut for_client), cutting);
        worked.context("the client's run")?;
        let (writes, flushes, snapshots) = history.borrow().counts();
        cluster.kill()?;
        Ok((format!("{writes} writes, {flushes} flushes, {snapshots} snapshots"), cuts?))
    })
}

async fn cut_many(
    plan: &Plan,
    cluster: &mut Cluster<'_>,
    client: &Client<nbd::Client>,
    history: &RefCell<History>,
    random: &mut Random,
) -> anyhow::Result<Vec<(Case, PathBuf)>> {
    let mut cuts = Vec::new();
    let mut absent: Option<usize> = None;
    let mut boots = 1;
    for number in 0..plan.cuts {
        client.until_requests_made(1 + random.below(BETWEEN_CUTS_MAX)).await;
        match (absent, random.below(4)) {
            (None, 0) => {
                let index = random.below(REPLICAS.len() as u64) as usize;
                if cluster.can_lose(index) {
                    cluster.lose(index)?;
                    absent = Some(index);
                }
            }
            (Some(index), 0 | 1) => {
                boots += 1;
                cluster.boot(index, &format!("{}-boot-{boots}", REPLICAS[index])).await?;
                absent = None;
                if random.below(2) == 0 {
                    until_healthy(&cluster.socket("admin")).await?;
                }
            }
            _ => {}
        }
        cuts.push(cut(plan, number, cluster, history, random)?);
    }
    Ok(cuts)
}

/// All machines lose power now, in copies of their disks. The client waits meanwhile: it is on
/// this thread.
fn cut(
    plan: &Plan,
    number: u64,
    cluster: &mut Cluster<'_>,
    history: &RefCell<History>,
    random: &mut Random,
) -> anyhow::Result<(Case, PathBuf)> {
    let folder = cluster.folder.with_extension(format!("cut{number}"));
    fresh_folder(&folder)?;
    cluster.engine().stop()?;
    let at = history.borrow().now();
    let record = cluster.arbiter.record();
    let mut order = [0, 1, 2];
    order.swap(0, random.below(3) as usize);
    for index in order {
        let image = &cluster.disks[index].image;
        let copy = folder.join(format!("{}.img", REPLICAS[index]));
        copy_at_once(image, &copy).with_context(|| format!("copy {} at once", image.display()))?;
    }
    cluster.engine().go_on()?;
    let machine = |name: &&str| CaseMachine {
        replica: (*name).into(),
        fate: Fate::PowerLost,
        boot: Boot { id: format!("{name}-rebooted") },
    };
    let name = format!("{:?} images, seed {}, cut {number}", plan.filesystem, plan.seed);
    let machines = REPLICAS.iter().map(machine).collect();
    let disks = Disks::Images(plan.filesystem);
    Ok((Case::new(name, disks, at, record, machines, &history.borrow()), folder))
}

fn finish(process: Process, output: &Path) -> anyhow::Result<()> {
    let status = process.end()?;
    if !status.success() {
        bail!("{status}: {}", std::fs::read_to_string(output).unwrap_or_default());
    }
    Ok(())
}

/// What is wrong after the cut in `folder`. Uses and empties `scratch`, on the same ground. With
/// `survivor`, an engine is also given that member alone.
pub fn check(
    case: &Case,
    folder: &Path,
    scratch: &Path,
    filesystem: Filesystem,
    programs: &Programs,
    survivor: Option<u64>,
) -> anyhow::Result<Vec<String>> {
    case.save(folder)?;
    let mut problems = Vec::new();
    copy_all(folder, scratch)?;
    for member in case.members() {
        let disk = disk(scratch, filesystem, &member.replica);
        let name = &member.replica;
        match inspect(&disk, &member.boot.id, programs, folder) {
            Ok(found) => {
                problems.extend(found.problems.iter().map(|each| format!("{name} alone: {each}")));
            }
            Err(error) => problems.push(format!("{name} alone: {error:#}")),
        }
        if let Err(error) = filesystem.check(&disk.image) {
            problems.push(format!("{name}: the file system is damaged: {error:#}"));
        }
    }
    let members = case.record.in_sync.len() as u64;
    let alone = survivor.map(|index| case.record.in_sync[(index % members) as usize].clone());
    let mut rounds = vec![("together".to_owned(), case.record.clone())];
    rounds.extend(alone.map(|member| {
        let name = format!("{} alone with an engine", member.replica);
        (name, Record { in_sync: vec![member], ..case.record.clone() })
    }));
    for (name, record) in rounds {
        copy_all(folder, scratch)?;
        let cluster = Cluster::new(scratch, filesystem, record, Clock::default(), programs)?;
        let found = run(check_with_engine(cluster, case, folder));
        let found = found.unwrap_or_else(|error| vec![format!("{error:#}")]);
        problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    Ok(problems)
}

fn copy_all(folder: &Path, scratch: &Path) -> anyhow::Result<()> {
    fresh_folder(scratch)?;
    for name in REPLICAS {
        let image = format!("{name}.img");
        copy_at_once(&folder.join(&image), &scratch.join(&image))?;
    }
    Ok(())
}

fn inspect(
    disk: &Disk,
    boot_id: &str,
    programs: &Programs,
    case: &Path,
) -> anyhow::Result<Inspection> {
    let output = disk.image.with_extension("inspection");
    let command = programs.inspect(&disk.directory(), case);
    finish(disk.boot(boot_id, &command, &output)?, &output)?;
    disk.until_free()?;
    Ok(serde_json::from_slice(&std::fs::read(&output)?)?)
}

/// Boots the machines of the record (all, or one that stands alone and fills the others again),
/// reads everything twice, and compares the replicas.
async fn check_with_engine(
    mut cluster: Cluster<'_>,
    case: &Case,
    folder: &Path,
) -> anyhow::Result<Vec<String>> {
    for (index, machine) in case.machines.iter().enumerate() {
        cluster.boot(index, &machine.boot.id).await?;
    }
    let nbd = cluster.start_engine().await?;
    let expectation: &Expectation = &case.flushed;
    let mut found = Inspection::default();
    let bytes = read_all(&nbd).await?;
    found.problems.extend(describe(&expectation.check(&View::Volume, 0, &bytes)));
    until_healthy(&cluster.socket("admin")).await?;
    if read_all(&nbd).await? != bytes {
        found.problems.push("two reads disagree".into());
    }
    let snapshots = admin::status(&cluster.socket("admin")).await?.snapshots;
    found.check_names(expectation, snapshots.iter().map(|snapshot| &*snapshot.name));
    nbd.disconnect().await?;
    admin::detach(&cluster.socket("admin")).await?;
    cluster.engine.take().map(Process::end).transpose()?;
    let mut first = None;
    for (index, name) in REPLICAS.iter().enumerate() {
        if let Some(machine) = cluster.machines[index].take() {
            machine.signal(Signal::SIGTERM)?;
            machine.end()?;
        }
        let alone = inspect(&cluster.disks[index], "later", cluster.programs, folder)?;
        let problems = alone.problems.iter().map(|problem| format!("{name}: {problem}"));
        found.problems.extend(problems);
        if alone.hashes.get(&View::Volume.to_string()) != Some(&hash(&bytes)) {
            found.problems.push(format!("{name} has other bytes than were read"));
        }
        if *first.get_or_insert_with(|| alone.hashes.clone()) != alone.hashes {
            found.problems.push(format!("{name} and r1 differ in a snapshot"));
        }
    }
    Ok(found.problems)
}
