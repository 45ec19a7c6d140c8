//! Power cuts of machines whose disks are recorded: thousands from one run.
//!
//! The run is real: an engine, three replicas and their stores over sockets and files. Every call
//! that a store makes is written down with the moments of its beginning and its end, on the clock
//! of the client's history; so a cut at any moment of the run is one point in time for all of it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ankole_replica::engine::Engine;
use ankole_replica::record::{Member, Record};
use ankole_replica::server::format;
use ankole_replica::store::crash::Random;
use ankole_replica::types::ReplicaId;
use anyhow::Context;

use crate::arbiter::Arbiter;
use crate::case::{Case, CaseMachine, Disks, Fate};
use crate::client::{Client, read_all};
use crate::cluster::{Cluster, REPLICAS, detach, until_healthy};
use crate::inspect::{Inspection, describe, hash, inspect_directory, inspect_on};
use crate::machine::{Life, VOLUME, fresh_folder, run};
use crate::oracle::{Clock, History, Moment, View};
use crate::recording::{Boot, Sabotage};
use crate::write_log::Files;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub size_bytes: u64,
    /// Requests of the client.
    pub requests: u64,
    /// Machines that lose power while the others go on.
    pub losses: u64,
    pub sabotage: Sabotage,
}

/// A run that is over.
pub struct Recorded {
    seed: u64,
    history: Rc<RefCell<History>>,
    arbiter: Arbiter,
    /// Of each machine, one boot after the other.
    lives: Vec<Vec<Life>>,
    /// When the volume was open, and when the client had ended.
    began: Moment,
    ended: Moment,
}

impl Recorded {
    /// Runs the plan in an empty folder.
    pub fn make(plan: &Plan, folder: &Path) -> anyhow::Result<Self> {
        fresh_folder(folder)?;
        run(async {
            let mut in_sync = Vec::new();
            for name in REPLICAS {
                let replica = ReplicaId::from(name);
                let made = format(&folder.join(name), VOLUME, &replica, plan.size_bytes).await?;
                in_sync.push(Member { replica, incarnation: made });
            }
            let clock = Clock::default();
            let history = History::new(plan.seed, plan.size_bytes, clock.clone());
            let history = Rc::new(RefCell::new(history));
            let boots: Vec<Boot> = (0..REPLICAS.len()).map(|index| first_boot(index, 1)).collect();
            let record = Record::first(in_sync);
            let cluster = Cluster::boot(folder, &boots, record, clock.clone(), plan.sabotage);
            let mut cluster = cluster.await?;
            let engine = cluster.start_engine().await?;
            let began = clock.now();
            let client =
                Client::new(engine, cluster.admin_socket(), history.clone(), plan.requests);
            let mut lives: Vec<Vec<Life>> = REPLICAS.iter().map(|_| Vec::new()).collect();
            let mut random = Random::new(plan.seed);
            let mut for_client = Random::new(random.number());
            let working = client.work(&mut for_client);
            let losing = async {
                let lost = lose_machines(plan, &mut cluster, &mut lives, &mut random, &client);
                lost.await.inspect_err(|_| client.stop())
            };
            let (worked, lost) = tokio::join!(working, losing);
            worked.context("the client's run")?;
            lost.context("machines that lost power during the run")?;
            let ended = clock.now();
            for (lives, machine) in lives.iter_mut().zip(cluster.machines) {
                lives.extend(machine.map(|machine| machine.kill()).transpose()?);
            }
            let (seed, arbiter) = (plan.seed, cluster.arbiter);
            Ok(Self { seed, history, arbiter, lives, began, ended })
        })
    }

    /// In one line, for people.
    pub fn describe(&self) -> String {
        let (writes, flushes, snapshots) = self.history.borrow().counts();
        let counts = self.lives.iter().flatten().map(|life| life.log.counts());
        let (calls, syncs) = counts.fold((0, 0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
        let boots: usize = self.lives.iter().map(Vec::len).sum();
        format!(
            "{writes} writes, {flushes} flushes, {snapshots} snapshots; {calls} calls of the \
             stores, {syncs} of them syncs; {boots} boots"
        )
    }

    /// Cuts the power, as `random` decides, and puts what is left into `folder`.
    pub fn cut(&self, number: u64, random: &mut Random, folder: &Path) -> anyhow::Result<Case> {
        fresh_folder(folder)?;
        let at = self.moment(random);
        let record = self.arbiter.record_at(at);
        let survivor = (random.below(4) == 0).then(|| random.below(REPLICAS.len() as u64));
        let mut machines = Vec::new();
        for (index, name) in REPLICAS.iter().enumerate() {
            let fate = if survivor == Some(index as u64) { Fate::Killed } else { Fate::PowerLost };
            let (files, boot) = self.left_of(index, at, fate, random);
            files.write(&folder.join(name))?;
            machines.push(CaseMachine { replica: (*name).into(), fate, boot });
        }
        let name = format!("seed {}, cut {number} at moment {}", self.seed, at.0);
        Ok(Case::new(name, Disks::Directories, at, record, machines, &self.history.borrow()))
    }

    /// Half of them right after a promise, when it hurts most.
    fn moment(&self, random: &mut Random) -> Moment {
        let promises = self.history.borrow().promises();
        if random.below(2) == 0 && !promises.is_empty() {
            return promises[random.below(promises.len() as u64) as usize];
        }
        Moment(self.began.0 + random.below(self.ended.0 - self.began.0))
    }

    fn left_of(&self, index: usize, at: Moment, fate: Fate, random: &mut Random) -> (Files, Boot) {
        let lives = &self.lives[index];
        let current = lives.iter().rposition(|life| life.since <= at).unwrap_or(0);
        let life = &lives[current];
        match fate {
            Fate::PowerLost => {
                let files = life.log.after_power_cut(&life.before, at, random);
                (files, first_boot(index, lives.len() + 1))
            }
            Fate::Killed => {
                let files = life.log.after_kill(&life.before, at, random);
                (files, Boot { id: life.boot_id.clone() })
            }
        }
    }
}

/// The machine's `number`th boot.
fn first_boot(index: usize, number: usize) -> Boot {
    Boot { id: format!("{}-boot-{number}", REPLICAS[index]) }
}

/// One machine after the other loses power, and comes back, while the client works.
async fn lose_machines(
    plan: &Plan,
    cluster: &mut Cluster,
    lives: &mut [Vec<Life>],
    random: &mut Random,
    client: &Client<Engine>,
) -> anyhow::Result<()> {
    for _ in 0..plan.losses {
        client.until_requests_made(random.below(plan.requests / (plan.losses + 1) + 1)).await;
        let index = random.below(REPLICAS.len() as u64) as usize;
        if !cluster.can_lose(index) {
            until_healthy(&cluster.admin_socket()).await?;
        }
        let Some(machine) = cluster.machines[index].take() else { continue };
        let life = machine.kill()?;
        let left = life.log.after_power_cut(&life.before, cluster.clock.now(), random);
        let directory = &cluster.sites[index].directory;
        fresh_folder(directory)?;
        left.write(directory)?;
        lives[index].push(life);
        client.until_requests_made(random.below(60)).await;
        let boot = first_boot(index, lives[index].len() + 1);
        cluster.boot_again(index, boot).await?;
        // The next one may lose power in the middle of this one's rebuild.
        if random.below(3) > 0 {
            until_healthy(&cluster.admin_socket()).await?;
        }
    }
    Ok(())
}

/// How thoroughly a cut is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Each member's directory alone.
    Alone,
    /// Also all of them together, with an engine.
    Together,
}

/// What is wrong after the cut in `folder`, in words. Uses and empties `scratch`.
pub fn check(
    case: &Case,
    folder: &Path,
    scratch: &Path,
    depth: Depth,
) -> anyhow::Result<Vec<String>> {
    let mut problems = Vec::new();
    for member in case.members() {
        fresh_folder(scratch)?;
        let directory = copy(folder, scratch, &member.replica)?;
        let (boot, expectation) = (member.boot.clone(), case.expectation_of(member));
        let found = run(async { Ok(inspect_on(&directory, boot, expectation).await) })?;
        let named = |problem| format!("{} alone: {problem}", member.replica);
        problems.extend(found.problems.into_iter().map(named));
    }
    if depth == Depth::Together {
        fresh_folder(scratch)?;
        for machine in &case.machines {
            copy(folder, scratch, &machine.replica)?;
        }
        let found = run(check_together(case, scratch));
        problems.extend(found.unwrap_or_else(|error| vec![format!("together: {error:#}")]));
    }
    Ok(problems)
}

fn copy(from: &Path, to: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let directory = to.join(name);
    Files::read(&from.join(name))?.write(&directory)?;
    Ok(directory)
}

/// Boots all machines, reads everything twice through an engine, and compares the replicas.
async fn check_together(case: &Case, folder: &Path) -> anyhow::Result<Vec<String>> {
    let boots: Vec<Boot> = case.machines.iter().map(|machine| machine.boot.clone()).collect();
    let (record, clock) = (case.record.clone(), Clock::default());
    let mut cluster = Cluster::boot(folder, &boots, record, clock, Sabotage::default()).await?;
    let engine = cluster.start_engine().await?;
    let mut found = Inspection::default();
    let bytes = read_all(&engine).await?;
    found.problems.extend(describe(&case.expectation().check(&View::Volume, 0, &bytes)));
    until_healthy(&cluster.admin_socket()).await?;
    if read_all(&engine).await? != bytes {
        found.problems.push("two reads disagree".into());
    }
    let snapshots = engine.status().snapshots;
    found.check_names(case.expectation(), snapshots.iter().map(|snapshot| &*snapshot.name));
    detach(&engine).await?;
    for machine in &mut cluster.machines {
        machine.take().map(|machine| machine.close()).transpose()?;
    }
    let mut hashes = None;
    for site in &cluster.sites {
        let alone = inspect_directory(&site.directory, case.expectation()).await;
        let named = |problem| format!("{} afterwards: {problem}", site.replica);
        found.problems.extend(alone.problems.into_iter().map(named));
        if alone.hashes.get(&View::Volume.to_string()) != Some(&hash(&bytes)) {
            found.problems.push(format!("{} has other bytes than were read", site.replica));
        }
        let first = hashes.get_or_insert_with(|| alone.hashes.clone());
        if *first != alone.hashes {
            found.problems.push(format!("{} and r1 differ in a snapshot", site.replica));
        }
    }
    let named = |problem| format!("together: {problem}");
    Ok(found.problems.into_iter().map(named).collect())
}
