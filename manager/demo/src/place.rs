//! The folder of one demo: found, locked, and removed at the end.
//!
//! ```text
//! DIR/ankole-demo-PID-N/lock     held while the demo lives
//!                       kept     there after --keep: nobody removes the folder
//!                       data/    the standalone's
//! ```
//! A folder whose lock nobody holds is what a demo that was killed has left; the next one ends its
//! processes and removes it. What may never happen: that anything else is removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ankole_agent::layout::is_ours;
use ankole_agent::probe::free_bytes;
use ankole_api::ApiError;
use ankole_api::size::human;

use super::Surroundings;
use super::server;
use super::trouble::{Result, failed};

const PREFIX: &str = "ankole-demo-";
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Left to others when the folder is in memory.
const MEMORY_RESERVE_BYTES: u64 = 512 << 20;

pub(super) struct Place {
    root: PathBuf,
    /// Made for the demo by its own wish, so it goes with it.
    made: Option<PathBuf>,
    keep: bool,
    _lock: File,
}

/// Where a demo could work.
struct Candidate {
    folder: PathBuf,
    free_bytes: u64,
    in_memory: bool,
}

impl Place {
    /// `tell` gets what a person should know about the choice.
    pub(super) fn choose(
        wanted: Option<&Path>,
        surroundings: &Surroundings,
        need_bytes: u64,
        tell: impl Fn(&str),
    ) -> Result<Self> {
        let mut made = None;
        let folders = match wanted {
            Some(folder) => {
                made = make(folder)?;
                vec![folder.canonicalize().map_err(failed("find", folder))?]
            }
            None => surroundings.folders(),
        };
        for folder in &folders {
            remove_leftovers(folder, &surroundings.program, &tell);
        }
        let candidates: Vec<_> = folders.iter().filter_map(|f| Candidate::look(f)).collect();
        let fits = |candidate: &&Candidate| candidate.free_bytes >= need_bytes;
        let Some(chosen) = candidates.iter().find(fits) else {
            if let Some(made) = made {
                let _ = fs::remove_dir(made);
            }
            return Err(too_small(&folders, &candidates, need_bytes).into());
        };
        for candidate in &candidates {
            if std::ptr::eq(candidate, chosen) {
                break;
            }
            tell(&format!("{} has only {} free", candidate.name(), human(candidate.free_bytes)));
        }
        let place = Self::make(&chosen.folder, made)?;
        tell(&format!(
            "It needs about {} in {}; {} are free{}.",
            human(need_bytes),
            place.root.display(),
            human(chosen.free_bytes),
            if chosen.in_memory {
                " (in memory, so the times say nothing about a disk)"
            } else {
                ""
            },
        ));
        Ok(place)
    }

    fn make(folder: &Path, made: Option<PathBuf>) -> Result<Self> {
        let pid = std::process::id();
        for number in 0.. {
            let root = folder.join(format!("{PREFIX}{pid}-{number}"));
            match DirBuilder::new().mode(0o700).create(&root) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => {
                    outcome.map_err(failed("make", &root))?;
                    // Locked before it has its name: a lock that is there and free means a dead
                    // demo.
                    let draft = root.join("lock.new");
                    let lock = File::create(&draft).map_err(failed("make", &draft))?;
                    lock.lock().map_err(failed("lock", &draft))?;
                    let path = root.join("lock");
                    fs::rename(&draft, &path).map_err(failed("make", &path))?;
                    return Ok(Self { root, made, keep: false, _lock: lock });
                }
            }
        }
        unreachable!("the numbers don't end")
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Nothing is removed, now or by a later demo.
    pub(super) fn keep(&mut self) -> Result<()> {
        let path = self.root.join("kept");
        self.keep = true;
        remove_sockets(&self.root);
        fs::write(&path, "").map_err(failed("write", &path))
    }

    pub(super) fn is_full(&self) -> bool {
        free_bytes(&self.root).is_ok_and(|free| free < 4 << 20)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = remove(&self.root) {
            tracing::warn!(folder = %self.root.display(), %error, "the demo's folder is left");
        }
        if let Some(made) = &self.made {
            // Others may be using it by now.
            let _ = fs::remove_dir(made);
        }
    }
}

impl Candidate {
    fn look(folder: &Path) -> Option<Self> {
        let in_disk = free_bytes(folder).ok()?;
        let in_memory =
            rustix::fs::statfs(folder).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC);
        let free_bytes = match memory_available_bytes().filter(|_| in_memory) {
            Some(available) => in_disk.min(available.saturating_sub(MEMORY_RESERVE_BYTES)),
            None => in_disk,
        };
        let writable = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
        writable.then(|| Self { folder: folder.into(), free_bytes, in_memory })
    }

    fn name(&self) -> String {
        let memory = if self.in_memory { " (in memory)" } else { "" };
        format!("{}{memory}", self.folder.display())
    }
}

fn too_small(folders: &[PathBuf], candidates: &[Candidate], need_bytes: u64) -> ApiError {
    let need = human(need_bytes);
    let message = match candidates.iter().max_by_key(|candidate| candidate.free_bytes) {
        Some(best) => format!(
            "the demo needs about {need}, and {} has {} free",
            best.name(),
            human(best.free_bytes)
        ),
        None => {
            let names: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
            format!("the demo needs about {need}, and {} can't be written", names.join(", "))
        }
    };
    ApiError::failed(message).next("name a folder with more room by --dir, or use a smaller --size")
}

/// The topmost folder that wasn't there before.
fn make(folder: &Path) -> Result<Option<PathBuf>> {
    let missing = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists());
    let topmost = missing.last().map(Path::to_path_buf);
    fs::create_dir_all(folder).map_err(failed("make", folder))?;
    // Only the last one is removed again if several were made.
    Ok(topmost.filter(|topmost| topmost == folder))
}

fn memory_available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn remove(root: &Path) -> io::Result<()> {
    remove_sockets(root);
    fs::remove_dir_all(root)
}

/// They lie elsewhere if the path of the data folder is long. A standalone makes the folder anew.
fn remove_sockets(root: &Path) {
    if let Ok(sockets) = fs::read_to_string(root.join("data/run/sockets")) {
        let sockets = Path::new(sockets.trim_end());
        let _ = fs::remove_dir_all(sockets);
        // Of this user; it goes when it was only made for us.
        sockets.parent().map(fs::remove_dir);
    }
}

fn remove_leftovers(folder: &Path, program: &Path, tell: &impl Fn(&str)) {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(std::result::Result::ok);
    for entry in entries {
        let root = entry.path();
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !named || !is_ours(&root).unwrap_or(false) || root.join("kept").exists() {
            continue;
        }
        // Held to the end: two demos may find the same one.
        let Ok(lock) = File::open(root.join("lock")) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        let name = root.display();
        match server::end_leftover(&root.join("data"), program).and_then(|()| remove(&root)) {
            Ok(()) => tell(&format!("Removed {name}, which a demo that was killed had left.")),
            Err(error) => tell(&format!("A demo that was killed has left {name}: {error}.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings() -> Surroundings {
        Surroundings { program: "/nowhere/ankole".into(), ..Surroundings::default() }
    }

    #[test]
    fn too_little_room_names_the_folder_the_need_and_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("new");
        let error = Place::choose(Some(&missing), &surroundings(), u64::MAX, |_| {});
        let error = error.err().unwrap().to_string();
        assert!(error.contains("needs about 15.9 EiB") && error.contains("/new has "), "{error}");
        assert!(!missing.exists());
    }

    #[test]
    fn the_folder_goes_with_the_demo_and_stays_when_it_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::choose(Some(folder.path()), &surroundings(), 1, |_| {}).unwrap();
        let root = place.root().to_owned();
        assert!(root.join("lock").exists());
        drop(place);
        assert!(!root.exists());

        let mut place = Place::choose(Some(folder.path()), &surroundings(), 1, |_| {}).unwrap();
        place.keep().unwrap();
        let root = place.root().to_owned();
        drop(place);
        assert!(root.join("lock").exists());
        drop(Place::choose(Some(folder.path()), &surroundings(), 1, |_| {}).unwrap());
        assert!(root.exists(), "a later demo leaves it, too");
    }

    /// Removing the folder of a demo that runs would be the worst of all leftovers.
    #[test]
    fn only_the_folder_of_a_dead_demo_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let choose = || Place::choose(Some(folder.path()), &surroundings(), 1, |_| {}).unwrap();
        let living = choose();
        let dead = folder.path().join("ankole-demo-1-0");
        let stranger = folder.path().join("ankole-demo-files");
        for path in [&dead, &stranger] {
            DirBuilder::new().mode(0o700).create(path).unwrap();
        }
        fs::write(dead.join("lock"), "").unwrap();
        let next = choose();
        assert!(!dead.exists());
        assert!(living.root().exists() && stranger.exists());
        drop((living, next));
    }
}
