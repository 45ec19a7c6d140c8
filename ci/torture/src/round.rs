//! One round: trouble under load, peace, and everything compared.

use std::time::{Duration, Instant};

use ankole_replica::admin::{Answer, Request};
use anyhow::{Context, anyhow, bail, ensure};
use tokio::sync::watch;

use crate::admin;
use crate::arbiter::Mood;
use crate::compare;
use crate::load::{Done, Load, Pace};
use crate::operator::Operator;
use crate::oracle::{Checked, Oracle};
use crate::plan::{Fault, Plan, Trouble};
use crate::proxy::Weather;
use crate::random::Random;
use crate::sabotage::{self, Known, Sabotage};
use crate::sector::Number;
use crate::world::{TICK, World};

/// Everything that heals has done so by then; if it hasn't, it is said what is waited for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A run's parts.
pub struct Torture {
    pub world: World,
    pub load: Load,
    pub operator: Operator,
    pub volume: u64,
    /// Done at the next comparison, to show that it is found.
    pub sabotage: Option<(Sabotage, Known)>,
    /// Things that end: when, and what.
    ends: Vec<(Instant, Ending)>,
}

enum Ending {
    GoOn(usize),
    EngineGoesOn,
    OlderGoesOn,
    LinkHeals(usize),
    ArbiterLinkHeals,
    ArbiterRecovers,
    DiskHasRoom(usize),
}

/// What a round was.
#[derive(Clone, Debug)]
pub struct Report {
    pub what: String,
    pub done: Done,
    pub checked: Checked,
    pub snapshots: usize,
    pub healing: Duration,
    pub whole: Duration,
}

impl Torture {
    pub fn new(world: World, load: Load, operator: Operator, volume: u64) -> Self {
        Self { world, load, operator, volume, sabotage: None, ends: Vec::new() }
    }

    /// Lets everything start.
    pub async fn begin(&mut self) -> anyhow::Result<()> {
        self.until_whole().await
    }

    pub async fn round(&mut self, plan: &Plan, random: &mut Random) -> anyhow::Result<Report> {
        let began = Instant::now();
        let is_quiet = plan.length.is_zero();
        self.load.set_pace(if is_quiet { Pace::Resting } else { Pace::Full });
        self.trouble(plan, random).await?;
        let healed = Instant::now();
        self.ends.clear();
        self.world.heal()?;
        self.world.note("healed");
        self.load.set_pace(if is_quiet { Pace::Resting } else { Pace::Gentle });
        self.until_whole().await?;
        let healing = healed.elapsed();
        self.load.set_pace(Pace::Resting);
        self.until_idle().await?;
        for _ in 0..2 {
            self.read_all().await?;
        }
        let snapshots = match random.below(3) {
            0 if self.sabotage.is_none() => self.compare_served().await?,
            way => self.compare_directories(way == 1).await?,
        };
        let checked = self.world.oracle.borrow_mut().finish_round()?;
        let said = self.world.said_what_may_not_be();
        ensure!(said.is_empty(), "in the logs:\n{}", said.join("\n"));
        let faults: Vec<_> = plan.steps.iter().map(|(_, fault)| fault.to_string()).collect();
        let what = format!("{:?}: {}", plan.theme, faults.join(", "));
        let done = self.load.take_done();
        Ok(Report { what, done, checked, snapshots, healing, whole: began.elapsed() })
    }

    // ---- trouble ---------------------------------------------------------------------------

    async fn trouble(&mut self, plan: &Plan, random: &mut Random) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut steps = plan.steps.iter().peekable();
        while began.elapsed() < plan.length || steps.peek().is_some() {
            while let Some((_, fault)) = steps.next_if(|(at, _)| *at <= began.elapsed()) {
                self.world.note(fault.to_string());
                self.inflict(*fault, random).await?;
            }
            self.tick()?;
            tokio::time::sleep(TICK).await;
        }
        // What is to last longer than the round does so.
        while !self.ends.is_empty() {
            self.tick()?;
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    async fn inflict(&mut self, fault: Fault, random: &mut Random) -> anyhow::Result<()> {
        let now = Instant::now();
        let admin = self.world.engine.running.as_ref().map(|running| running.admin.clone());
        match fault {
            Fault::KillReplica { replica, down } => {
                let host = &mut self.world.replicas[replica];
                host.down_until = now + down;
                if let Some(process) = &mut host.process {
                    process.kill();
                }
            }
            Fault::KillEngine { down } => {
                self.world.engine.down_until = now + down;
                if let Some(running) = &mut self.world.engine.running {
                    running.process.kill();
                }
            }
            Fault::StopReplica { replica, time } => {
                if let Some(process) = &mut self.world.replicas[replica].process {
                    process.stop();
                    self.ends.push((now + time, Ending::GoOn(replica)));
                }
            }
            Fault::StopEngine { time } => {
                if let Some(running) = &mut self.world.engine.running {
                    running.process.stop();
                    self.ends.push((now + time, Ending::EngineGoesOn));
                }
            }
            Fault::Link { replica, trouble, time } => {
                let weather = self.weather(trouble);
                self.world.replicas[replica].weather.send_replace(weather);
                self.ends.push((now + time, Ending::LinkHeals(replica)));
            }
            Fault::ArbiterLink { trouble, time } => {
                let weather = self.weather(trouble);
                self.world.arbiter_weather.send_replace(weather);
                self.ends.push((now + time, Ending::ArbiterLinkHeals));
            }
            Fault::Arbiter { mood, time } => {
                self.world.arbiter.mood.set(mood);
                self.ends.push((now + time, Ending::ArbiterRecovers));
            }
            Fault::FillDisk { replica, left_bytes, time } => {
                self.world.replicas[replica].disk.fill(left_bytes)?;
                self.ends.push((now + time, Ending::DiskHasRoom(replica)));
            }
            Fault::ReplaceDisk { replica } => {
                self.world.replace_disk(replica, self.operator.size_bytes()).await?;
            }
            Fault::Race { stopped } => {
                if self.world.older.is_none()
                    && let Some(mut running) = self.world.engine.running.take()
                {
                    running.process.stop();
                    self.world.older = Some(running);
                    self.world.engine.down_until = now;
                    self.ends.push((now + stopped, Ending::OlderGoesOn));
                }
            }
            Fault::Snapshot => {
                if let Some(name) = admin.and_then(|admin| self.operator.make(admin)) {
                    self.world.note(format!("snapshot {name} asked for"));
                }
            }
            Fault::RemoveSnapshot => {
                let choice = random.next();
                let removed = admin.and_then(|admin| self.operator.remove(admin, choice));
                if let Some(name) = removed {
                    self.world.note(format!("removal of snapshot {name} asked for"));
                }
            }
            Fault::Expand => {
                if let Some(bytes) = admin.and_then(|admin| self.operator.expand(admin)) {
                    self.world.note(format!("{bytes} bytes asked for"));
                }
            }
        }
        Ok(())
    }

    fn weather(&self, trouble: Trouble) -> Weather {
        match trouble {
            Trouble::Cut => Weather::Cut,
            Trouble::Silent => Weather::Silent,
            Trouble::NoAnswers => Weather::NoAnswers,
            Trouble::NoRequests => Weather::NoRequests,
            Trouble::Slow(delay) => Weather::Slow(delay),
            Trouble::Brittle(bytes) => Weather::Brittle(bytes),
            Trouble::Misrouted(replica) => {
                Weather::Misrouted(self.world.replica_socket(replica).to_owned())
            }
            Trouble::OtherVolume => Weather::Misrouted(self.world.decoy.socket.clone()),
        }
    }

    pub fn tick(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.ends).into_iter().partition(|end| end.0 <= now);
        self.ends = later;
        let due: Vec<(Instant, Ending)> = due;
        for (_, ending) in due {
            self.end(ending)?;
        }
        self.world.tick()?;
        self.operator.check()?;
        self.load.check()
    }

    fn end(&mut self, ending: Ending) -> anyhow::Result<()> {
        let fine = |weather: &watch::Sender<Weather>| drop(weather.send_replace(Weather::Fine));
        let world = &mut self.world;
        match ending {
            Ending::GoOn(replica) => {
                world.replicas[replica].process.iter_mut().for_each(|process| process.go_on());
            }
            Ending::EngineGoesOn => {
                world.engine.running.iter_mut().for_each(|running| running.process.go_on());
            }
            Ending::OlderGoesOn => {
                if let Some(older) = &mut world.older {
                    older.process.go_on();
                    self.load.probe_older(older.number);
                }
            }
            Ending::LinkHeals(replica) => fine(&world.replicas[replica].weather),
            Ending::ArbiterLinkHeals => fine(&world.arbiter_weather),
            Ending::ArbiterRecovers => world.arbiter.mood.set(Mood::Good),
            Ending::DiskHasRoom(replica) => world.replicas[replica].disk.make_room()?,
        }
        Ok(())
    }

    // ---- peace -----------------------------------------------------------------------------

    async fn until_whole(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.tick()?;
            let Some(missing) = self.world.missing().await else { return Ok(()) };
            if Instant::now() > deadline {
                bail!("not whole {} s after all trouble ended: {missing}", PATIENCE.as_secs());
            }
            tokio::time::sleep(TICK).await;
        }
    }

    pub async fn until_idle(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.load.is_idle() || !self.operator.is_idle() {
            self.tick()?;
            if Instant::now() > deadline {
                let load = self.load.waiting();
                let operator =
                    if self.operator.is_idle() { "" } else { "; the operator waits too" };
                bail!(
                    "requests have no answer {} s after all trouble ended{operator}: {load}",
                    PATIENCE.as_secs(),
                );
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    async fn read_all(&mut self) -> anyhow::Result<()> {
        let load = self.load.clone();
        let status = self.status().await?;
        self.operator.look(&status)?;
        self.world
            .oracle
            .borrow_mut()
            .grow(status.size_bytes / ankole_blockdev::disk::SECTOR_BYTES);
        let reading = load.read_all(4);
        let read = tokio::time::timeout(PATIENCE, reading).await;
        read.context("reading the whole volume doesn't end")?
    }

    async fn status(&self) -> anyhow::Result<Box<ankole_replica::admin::EngineStatus>> {
        let running = self.world.engine.running.as_ref().context("the engine is gone")?;
        let asked = tokio::time::timeout(PATIENCE, admin::status(&running.admin)).await;
        asked.ok().flatten().context("the engine doesn't tell its status")
    }

    // ---- comparing -------------------------------------------------------------------------

    /// With the processes gone, killed or in order; they are started again afterwards.
    async fn compare_directories(&mut self, in_order: bool) -> anyhow::Result<usize> {
        if in_order {
            self.world.detach_all(PATIENCE).await?;
        } else {
            self.world.kill_all()?;
        }
        if let Some((sabotage, known)) = self.sabotage.take() {
            let directories: Vec<_> =
                (0..self.world.replicas.len()).map(|index| self.world.replica_dir(index)).collect();
            let said = sabotage::damage(sabotage, self.volume, &directories, &known).await?;
            println!("      sabotage: {said}");
        }
        let mut copies = Vec::new();
        for (index, host) in self.world.replicas.iter().enumerate() {
            let dir = self.world.replica_dir(index);
            let copy = compare::from_directory(&host.id, &dir).await;
            copies.push(copy.with_context(|| format!("replica {}", host.id))?);
        }
        self.world.start_again();
        let views = self.agree(copies)?;
        self.judge(views)
    }

    /// While all processes run.
    async fn compare_served(&mut self) -> anyhow::Result<usize> {
        let admin = self.world.engine.running.as_ref().context("the engine is gone")?.admin.clone();
        let name = "probe".to_owned();
        self.command(&admin, Request::Snapshot { name: name.clone(), labels: Default::default() })
            .await?;
        let reading: Vec<_> = (0..self.world.replicas.len())
            .map(|index| {
                let socket = self.world.replica_socket(index).to_owned();
                let id = self.world.replicas[index].id.clone();
                tokio::task::spawn_blocking(move || {
                    compare::from_socket(&id, socket).with_context(|| format!("replica {id}"))
                })
            })
            .collect();
        let mut copies = Vec::new();
        for copy in reading {
            copies.push(copy.await??);
        }
        let mut views = self.agree(copies)?;
        for view in &mut views {
            view.0.take_if(|it| *it == name); // it is what the head was
        }
        let count = self.judge(views)?;
        self.command(&admin, Request::RemoveSnapshot { name }).await?;
        Ok(count)
    }

    async fn command(&self, admin: &std::path::Path, request: Request) -> anyhow::Result<()> {
        let asked = tokio::time::timeout(PATIENCE, admin::ask(admin, &request)).await;
        match asked.with_context(|| format!("{request:?} has no answer"))?? {
            Answer::Ok => Ok(()),
            answer => bail!("{request:?} was answered by {answer:?}"),
        }
    }

    /// What all replicas show; if they differ, also what happened there.
    fn agree(
        &self,
        copies: Vec<compare::Copy>,
    ) -> anyhow::Result<Vec<(Option<String>, Vec<Number>)>> {
        compare::agree(self.volume, copies).map_err(|error| {
            match error.downcast_ref::<compare::Differ>() {
                Some(differ) => {
                    let history = self.world.oracle.borrow().history(differ.sector as usize);
                    anyhow!("{error}\nsector {} in this round:\n{history}", differ.sector)
                }
                None => error,
            }
        })
    }

    /// Tells the oracle what all replicas show.
    fn judge(&mut self, views: Vec<(Option<String>, Vec<Number>)>) -> anyhow::Result<usize> {
        let mut snapshots = 0;
        let names = self.operator.names();
        for name in names {
            let is_there = views.iter().any(|view| view.0.as_ref() == Some(&name));
            ensure!(is_there, "the replicas have no snapshot {name}");
        }
        for (name, numbers) in views {
            let Some(name) = name else {
                let began = self.world.oracle.borrow_mut().now();
                self.world.oracle.borrow_mut().read(0, began, 0, &numbers);
                continue;
            };
            snapshots += 1;
            if let Some(fresh) = self.operator.shows(&name, &numbers)? {
                let oracle: &mut Oracle = &mut self.world.oracle.borrow_mut();
                oracle
                    .snapshot(fresh.began, fresh.ended, &numbers)
                    .with_context(|| format!("snapshot {name}"))?;
            }
        }
        Ok(snapshots)
    }
}
