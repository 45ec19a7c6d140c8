//! The demo's steps, in their order. Each is a small function; what one leaves for the next lies
//! in [`Demo`].

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ankole_api::attachment::AttachRequest;
use ankole_api::backup::{BackupRequest, BackupView, Job, JobState, RestoreRequest};
use ankole_api::replica::Mode;
use ankole_api::size::human;
use ankole_api::volume::{Frontend, Robustness, Transport, VolumeRequest, VolumeView};
use ankole_api::{ApiError, Name};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use super::Surroundings;
use super::channel::{Channel, Endpoint, Sum};
use super::load::{Load, Seen, Victim};
use super::mount::Mounted;
use super::place::Place;
use super::plan::{Cost, Plan};
use super::report::{Done, Progress, seconds};
use super::server::Server;
use super::tool::{Tools, image_bytes, run};
use super::tree::{LOAD_FILE, Tree};
use super::trouble::{Result, Trouble, failed};
use super::watch::Watch;

const SEED: u64 = 0x616e_6b6f_6c65;
const VOLUME: &str = "demo";
const RESTORED: &str = "restored";
/// Without any sign of progress.
const PATIENCE: Duration = Duration::from_secs(300);
/// The same, on a disk that is full.
const FULL_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Step {
    pub(super) title: &'static str,
    pub(super) cost: Cost,
    pub(super) run: fn(&mut Demo, &Progress<'_>) -> Result<Done>,
}

const fn step(
    title: &'static str,
    fixed_ms: u64,
    bytes: fn(&Plan) -> u64,
    mib_per_s: u64,
    run: fn(&mut Demo, &Progress<'_>) -> Result<Done>,
) -> Step {
    Step { title, cost: Cost { fixed_ms, bytes, mib_per_s }, run }
}

pub(super) const STEPS: [Step; 17] = [
    step("write a tree of files", 300, |p| p.tree_bytes, 200, Demo::write_tree),
    step("make an ext4 of them", 500, |p| p.tree_bytes, 200, Demo::make_image),
    step("start standalone, make volume", 1000, |_| 0, 0, Demo::make_volume),
    step("copy the ext4 to the volume", 100, |p| p.tree_bytes, 100, Demo::copy_in),
    step("read all back, compare", 100, |p| p.size_bytes, 300, Demo::read_all_back),
    step("take a snapshot", 300, |_| 0, 0, Demo::take_first_snapshot),
    step("kill a replica under load", 3500, |p| p.load_bytes, 200, Demo::lose_replica),
    step("rebuild the replica", 2000, |p| p.copy_bytes(), 100, Demo::rebuild),
    step("kill the engine under load", 5000, |p| p.load_bytes, 200, Demo::lose_engine),
    step("back up, full", 500, |p| p.copy_bytes(), 80, Demo::back_up_full),
    step("change 1 %", 300, |p| p.change_bytes, 50, Demo::change),
    step("back up, incremental", 1000, |p| p.change_bytes, 20, Demo::back_up_changes),
    step("restore to a new volume", 1000, |p| p.copy_bytes(), 60, Demo::restore_to_volume),
    step("restore to a file", 300, |p| p.copy_bytes(), 150, Demo::restore_to_file),
    step("compare the restored volume", 300, |p| p.size_bytes, 300, Demo::compare_volume),
    step("compare the restored file", 300, |p| p.size_bytes, 400, Demo::compare_file),
    step("compare every file", 500, |p| p.tree_bytes, 100, Demo::compare_tree),
];

/// The standalone goes before the folder that it works in.
pub(super) struct Demo {
    server: Option<Server>,
    pub(super) place: Place,
    plan: Plan,
    frontend: Frontend,
    tools: Tools,
    program: PathBuf,
    runtime: Runtime,
    tree: Tree,
    load: Load,
    volume: Name,
    restored: Name,
    endpoint: Option<Endpoint>,
    lost: Option<Lost>,
    /// Of the whole device, as the last snapshot has it.
    sum: Option<Sum>,
    full: Option<BackupView>,
    newest: Option<BackupView>,
}

/// A replica that was killed.
struct Lost {
    replica: String,
    at: Instant,
    watch: Watch,
}

/// Where the load goes, and what keeps it there.
struct Region {
    channel: Channel,
    _mounted: Option<Mounted>,
}

impl Demo {
    pub(super) fn new(
        plan: Plan,
        place: Place,
        frontend: Frontend,
        tools: Tools,
        surroundings: &Surroundings,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let base_bytes = if frontend.forced_driver().is_some() { 0 } else { plan.filesystem_bytes };
        Ok(Self {
            server: None,
            runtime: runtime.map_err(failed("start a runtime for", place.root()))?,
            place,
            frontend,
            tools,
            program: surroundings.program.clone(),
            tree: Tree::new(SEED, plan.tree_bytes),
            load: Load::new(base_bytes, plan.load_bytes, SEED),
            plan,
            volume: VOLUME.parse().expect("a name"),
            restored: RESTORED.parse().expect("a name"),
            endpoint: None,
            lost: None,
            sum: None,
            full: None,
            newest: None,
        })
    }

    /// In order; without it, the same happens when it is dropped, but nobody hears of a failure.
    pub(super) fn end(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), Server::end)
    }

    // --- files, volume, snapshot

    fn write_tree(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let folder = self.place.join("files");
        std::fs::create_dir(&folder).map_err(failed("make", &folder))?;
        progress.expect(self.tree.bytes());
        self.tree.write(&folder, progress)?;
        Ok(Done::bytes(self.tree.bytes(), format!("{} files", self.tree.files())))
    }

    fn make_image(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let (folder, image) = (self.place.join("files"), self.image());
        let file = std::fs::File::create_new(&image).map_err(failed("make", &image))?;
        file.set_len(self.plan.size_bytes).map_err(failed("size", &image))?;
        progress.expect(self.tree.bytes());
        let (bytes, files) = (self.plan.filesystem_bytes, self.tree.entries.len() as u64);
        self.tools.make_ext4(&image, bytes, &folder, files, progress)?;
        std::fs::remove_dir_all(&folder).map_err(failed("remove", &folder))?;
        let size = human(self.plan.filesystem_bytes);
        Ok(Done::bytes(image_bytes(&image), format!("a file system of {size}")))
    }

    fn make_volume(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let Plan { size_bytes, replicas, .. } = self.plan;
        let server = Server::start(&self.place, replicas, &self.program, progress.stop())?;
        let server = self.server.insert(server);
        let (name, frontend) = (self.volume.clone(), self.frontend);
        let request = VolumeRequest {
            name,
            size_bytes,
            replicas,
            frontend,
            transport: Transport::Unix,
            in_engine: false,
        };
        server.ask(move |client| client.create_volume(&request))?;
        let view = self.attach(&self.volume.clone(), progress)?;
        Ok(Done::remark(view.endpoint.unwrap_or_default()))
    }

    fn copy_in(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let (channel, image) = (self.whole()?, self.image());
        let bytes = self.drive(progress, channel.copy_from(&image, progress))?;
        Ok(Done::bytes(bytes, format!("to {} replicas", self.plan.replicas)))
    }

    fn read_all_back(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let wanted = Sum::of_file(&self.image(), &progress.silent())?;
        self.checksum(progress)?.expect(wanted, "the volume")?;
        Ok(Done::bytes(self.plan.size_bytes, format!("SHA-256 {}…", short(wanted))))
    }

    fn take_first_snapshot(&mut self, _: &Progress<'_>) -> Result<Done> {
        self.snapshot("files").map(|()| Done::remark("files"))
    }

    // --- failures

    fn lose_replica(&mut self, progress: &Progress<'_>) -> Result<Done> {
        if self.plan.replicas < 2 {
            return Ok(Done::remark("skipped: the volume has only one"));
        }
        let view = self.show(&self.volume)?;
        let served = |replica: &&ankole_api::replica::ReplicaView| {
            replica.mode == Mode::ReadWrite && replica.pid.is_some()
        };
        let replica = view.replicas.iter().rfind(served);
        let replica = replica.ok_or_else(|| ApiError::failed("no replica serves the volume"))?;
        let pid = replica.pid.unwrap_or_default();
        let (client, name) = (self.server()?.client(), replica.replica.to_string());
        let watch = Watch::start(client, self.volume.clone(), name.clone(), pid);
        let seen = self.load(pid, progress)?;
        if seen.reconnects > 0 {
            let text = "the volume's clients lost their connection when a replica died";
            return Err(Trouble::Mismatch(text.into()));
        }
        let requests = seen.requests;
        let remark = format!("{name} SIGKILLed, no request of {requests} failed");
        self.lost = seen.killed.map(|at| Lost { replica: name, at, watch });
        Ok(Done::bytes(seen.bytes, format!("{remark}, {}", stall(&seen))))
    }

    fn rebuild(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let Some(Lost { replica, at, watch }) = self.lost.take() else {
            return Ok(Done::remark("skipped: nothing to rebuild"));
        };
        loop {
            let rebuild = watch.seen();
            progress.expect(rebuild.total_bytes);
            progress.set(rebuild.done_bytes)?;
            if let Some(back) = rebuild.back {
                let (after, all) = (seconds(back.duration_since(at)), self.plan.replicas);
                let remark = format!("{replica} was back {after} after its death, {all} in sync");
                return Ok(Done::remark(remark));
            }
            if progress.idle() > PATIENCE {
                let text = format!("replica {replica} isn't rebuilt; look at the log with --keep");
                return Err(ApiError::timed_out(text).into());
            }
            self.check_room(progress.idle())?;
            progress.stop().pause()?;
        }
    }

    fn lose_engine(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let pid = self.show(&self.volume)?.engine_pid;
        let pid = pid.ok_or_else(|| ApiError::failed("the volume has no engine"))?;
        let seen = self.load(pid, progress)?;
        self.until(progress, "have all its replicas again", |view| {
            let successor = view.engine_pid.is_some_and(|now| now != pid);
            Ok(successor && view.robustness == Robustness::Healthy)
        })?;
        let how = match seen.reconnects {
            0 => "clients waited".into(),
            1 => "reconnected once".into(),
            count => format!("reconnected {count} times"),
        };
        let remark = format!("{how}, nothing acknowledged was lost, {}", stall(&seen));
        Ok(Done::bytes(seen.bytes, remark))
    }

    /// The load with a kill in its middle, and everything read back.
    fn load(&self, victim: u32, progress: &Progress<'_>) -> Result<Seen> {
        let victim = Victim::of(victim)?;
        let region = self.region()?;
        progress.expect(3 * self.load.bytes());
        let work = async {
            let seen = self.load.run(&region.channel, victim, progress).await?;
            self.load.read_back(&region.channel, progress).await?;
            Ok(seen)
        };
        self.drive(progress, work)
    }

    // --- backups

    fn back_up_full(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let backup = self.back_up("full", progress)?;
        let new_bytes = backup.new_bytes;
        self.full = Some(backup);
        Ok(Done::bytes(new_bytes, "lies in the target now"))
    }

    fn change(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let region = self.region()?;
        progress.expect(self.plan.change_bytes);
        let change = self.load.change(&region.channel, self.plan.change_bytes, progress);
        let bytes = self.drive(progress, change)?;
        Ok(Done::bytes(bytes, "spread over the region of the load"))
    }

    fn back_up_changes(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let backup = self.back_up("changed", progress)?;
        let full_bytes = self.full.as_ref().map_or(0, |full| full.new_bytes);
        let new_bytes = backup.new_bytes;
        if new_bytes == 0 || new_bytes >= full_bytes {
            return Err(Trouble::Mismatch(format!(
                "the incremental backup of a change of {} uploaded {}; the full one had {}",
                human(self.plan.change_bytes),
                human(new_bytes),
                human(full_bytes)
            )));
        }
        self.newest = Some(backup);
        Ok(Done::bytes(new_bytes, "new blocks of 2 MiB, compressed"))
    }

    /// Of a new snapshot, whose checksum is taken first.
    fn back_up(&mut self, snapshot: &str, progress: &Progress<'_>) -> Result<BackupView> {
        if self.frontend.forced_driver().is_some() {
            // The kernel's file system has changed what it liked; nobody has mounted it now.
            self.sum = Some(self.checksum(&progress.silent())?);
        } else {
            self.load.write_to(&self.image())?;
            self.sum = Some(Sum::of_file(&self.image(), &progress.silent())?);
        }
        self.snapshot(snapshot)?;
        let target = format!("file://{}", self.place.join("backups").display());
        let folder = self.place.join("backups");
        std::fs::create_dir_all(&folder).map_err(failed("make", &folder))?;
        let (volume, snapshot) = (self.volume.clone(), snapshot.parse().expect("a name"));
        let request =
            BackupRequest { volume, snapshot: Some(snapshot), target: Some(target), full: false };
        let job = self.server()?.ask(move |client| client.create_backup(&request))?;
        self.follow(job, progress)
    }

    fn restore_to_volume(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let (url, volume) = (self.newest()?.url.clone(), self.restored.clone());
        let request = RestoreRequest { url, volume, replicas: self.plan.replicas };
        let job = self.server()?.ask(move |client| client.restore_backup(&request))?;
        self.follow(job, progress)?;
        let remark = format!("with {} replicas", self.plan.replicas);
        Ok(Done::bytes(self.plan.copy_bytes(), remark))
    }

    /// As a user does, who has a backup and nothing else.
    fn restore_to_file(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let file = self.restored_file();
        let mut command = Command::new(&self.program);
        command.args(["backup", "restore", &self.newest()?.url, "--to-file"]).arg(&file);
        progress.expect(self.plan.copy_bytes());
        run(&mut command, &self.program, progress, &|| image_bytes(&file))?;
        Ok(Done::bytes(image_bytes(&file), "by `ankole backup restore --to-file`"))
    }

    fn follow(&self, mut job: Job, progress: &Progress<'_>) -> Result<BackupView> {
        loop {
            progress.expect(job.progress.total_bytes);
            progress.set(job.progress.done_bytes)?;
            match job.state {
                JobState::Running => {}
                JobState::Done { backup } => return Ok(backup),
                JobState::Failed { error } => return Err(error.into()),
            }
            self.check_room(progress.idle())?;
            progress.stop().pause()?;
            let id = job.id;
            job = self.server()?.ask(move |client| client.job(id))?;
        }
    }

    // --- comparisons

    fn compare_volume(&mut self, progress: &Progress<'_>) -> Result<Done> {
        let view = self.attach(&self.restored.clone(), progress)?;
        let endpoint = Endpoint::parse(view.endpoint.as_deref().unwrap_or_default())?;
        let wanted = self.sum()?;
        let size_bytes = self.plan.size_bytes;
        let channel = endpoint.open()?;
        let sum = self.drive(progress, channel.checksum(size_bytes, progress))?;
        sum.expect(wanted, "the restored volume")?;
        self.endpoint = Some(endpoint);
        Ok(Done::bytes(size_bytes, format!("SHA-256 {}…", short(sum))))
    }

    fn compare_file(&mut self, progress: &Progress<'_>) -> Result<Done> {
        progress.expect(self.plan.size_bytes);
        let sum = Sum::of_file(&self.restored_file(), progress)?;
        sum.expect(self.sum()?, "the restored file")?;
        Ok(Done::bytes(self.plan.size_bytes, format!("SHA-256 {}…", short(sum))))
    }

    /// By the kernel on the restored volume, or by debugfs in the restored file, which is equal.
    fn compare_tree(&mut self, progress: &Progress<'_>) -> Result<Done> {
        progress.expect(self.tree.bytes());
        if let Some(Endpoint::Device(device)) = &self.endpoint {
            let mounted = Mounted::new(device, &self.place.join("restored"), true)?;
            self.tree.compare(mounted.path(), progress)?;
        } else {
            let folder = self.place.join("restored");
            std::fs::create_dir(&folder).map_err(failed("make", &folder))?;
            self.tools.read_ext4(&self.restored_file(), &folder, progress)?;
            self.tree.compare(&folder, progress)?;
        }
        let remark = format!("{} files are what was written", self.tree.files());
        Ok(Done::bytes(self.tree.bytes(), remark))
    }

    // --- what several steps need

    fn image(&self) -> PathBuf {
        self.place.join("expected.img")
    }

    fn restored_file(&self) -> PathBuf {
        self.place.join("restored.img")
    }

    fn server(&self) -> Result<&Server> {
        self.server.as_ref().ok_or_else(|| ApiError::failed("the standalone isn't there").into())
    }

    fn newest(&self) -> Result<&BackupView> {
        self.newest.as_ref().ok_or_else(|| ApiError::failed("there is no backup").into())
    }

    fn sum(&self) -> Result<Sum> {
        self.sum.ok_or_else(|| ApiError::failed("there is no checksum").into())
    }

    fn show(&self, volume: &Name) -> Result<VolumeView> {
        let volume = volume.clone();
        self.server()?.ask(move |client| client.volume(&volume))
    }

    fn snapshot(&self, name: &str) -> Result<()> {
        let (volume, name): (_, Name) = (self.volume.clone(), name.parse().expect("a name"));
        self.server()?.ask(move |client| client.create_snapshot(&volume, Some(name))).map(drop)
    }

    fn attach(&mut self, volume: &Name, progress: &Progress<'_>) -> Result<VolumeView> {
        let (name, request) = (volume.clone(), AttachRequest { read_only: false, node: None });
        self.server()?.ask(move |client| client.attach(&name, &request))?;
        let is_there = |view: &VolumeView| Ok(view.endpoint.is_some());
        let view = self.until_of(volume, progress, "be attached", is_there)?;
        self.endpoint = Some(Endpoint::parse(view.endpoint.as_deref().unwrap_or_default())?);
        Ok(view)
    }

    fn until(
        &self,
        progress: &Progress<'_>,
        what: &str,
        look: impl FnMut(&VolumeView) -> Result<bool>,
    ) -> Result<VolumeView> {
        self.until_of(&self.volume, progress, what, look)
    }

    /// Waits; gives up when nothing has moved for long.
    fn until_of(
        &self,
        volume: &Name,
        progress: &Progress<'_>,
        what: &str,
        mut look: impl FnMut(&VolumeView) -> Result<bool>,
    ) -> Result<VolumeView> {
        loop {
            let view = self.show(volume)?;
            if look(&view)? {
                return Ok(view);
            }
            if progress.idle() > PATIENCE {
                let conditions = view.conditions.iter().map(|condition| &condition.message);
                let reasons: Vec<_> = conditions.chain(&view.waiting).cloned().collect();
                let text = format!("volume {volume} should {what}: {}", reasons.join("; "));
                return Err(ApiError::timed_out(text).into());
            }
            self.check_room(progress.idle())?;
            progress.stop().pause()?;
        }
    }

    fn whole(&self) -> Result<Channel> {
        let attached = self.endpoint.as_ref();
        attached.ok_or_else(|| ApiError::failed("the volume isn't attached"))?.open()
    }

    fn checksum(&self, progress: &Progress<'_>) -> Result<Sum> {
        let channel = self.whole()?;
        self.drive(progress, channel.checksum(self.plan.size_bytes, progress))
    }

    /// On a socket, a part of the volume; on a device, a file in its file system.
    fn region(&self) -> Result<Region> {
        let Some(Endpoint::Device(device)) = &self.endpoint else {
            return Ok(Region { channel: self.whole()?, _mounted: None });
        };
        let mounted = Mounted::new(device, &self.place.join("mounted"), false)?;
        let path = mounted.path().join(LOAD_FILE);
        if !path.exists() {
            let file = std::fs::File::create(&path).map_err(failed("make", &path))?;
            file.set_len(self.plan.load_bytes).map_err(failed("size", &path))?;
        }
        Ok(Region { channel: Channel::file(&path, false)?, _mounted: Some(mounted) })
    }

    fn drive<T>(
        &self,
        progress: &Progress<'_>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        LocalSet::new().block_on(&self.runtime, async {
            tokio::select! {
                outcome = work => outcome,
                stopped = progress.stop().wait() => Err(stopped),
                stuck = self.stuck(progress) => Err(stuck),
            }
        })
    }

    /// Ends when the disk is full and nothing moves: the volume waits for room, and nobody is
    /// going to make any.
    async fn stuck(&self, progress: &Progress<'_>) -> Trouble {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Err(stuck) = self.check_room(progress.idle()) {
                return stuck;
            }
        }
    }

    fn check_room(&self, idle: Duration) -> Result<()> {
        if idle > FULL_PATIENCE && self.place.is_full() {
            let text = format!("nothing has moved for {} s", FULL_PATIENCE.as_secs());
            return Err(ApiError::failed(text).into());
        }
        Ok(())
    }
}

fn short(sum: Sum) -> String {
    sum.to_string().chars().take(12).collect()
}

fn stall(seen: &Seen) -> String {
    let (after, before) = (seen.longest_after.as_millis(), seen.longest_before.as_millis());
    format!("longest stall {after} ms ({before} ms before)")
}
