//! The files of the demo: a tree that comes from a seed alone, the same bytes on every machine.
//!
//! What was written is known from the generator, never from a disk: each file is generated again
//! when it is compared.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::random::Random;
use super::report::Progress;
use super::trouble::{Result, Trouble, failed};

const FILES: u64 = 3000;
const FOLDERS: u64 = 96;
const CHUNK_BYTES: usize = 64 << 10;
/// ext4 makes it; it isn't ours.
const LOST_AND_FOUND: &str = "lost+found";
/// In the root of the mounted file system; the load knows what is in it.
pub(super) const LOAD_FILE: &str = "load.bin";

const WORDS: [&str; 32] = [
    "a", "the", "of", "block", "volume", "copy", "three", "disk", "write", "read", "again", "then",
    "never", "lost", "engine", "replica", "snapshot", "backup", "where", "some", "light", "river",
    "stone", "green", "north", "and", "but", "slowly", "early", "between", "many", "quiet",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { bytes: u64, is_text: bool },
    Link { target: PathBuf },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Below the tree's root.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    seed: u64,
}

pub(super) struct Tree {
    /// A folder goes before what is in it.
    pub(super) entries: Vec<Entry>,
}

impl Tree {
    /// About `bytes` in thousands of files, of which few hold the most.
    pub(super) fn new(seed: u64, bytes: u64) -> Self {
        let mut random = Random::new(seed);
        let mut entries = Vec::new();
        let mut add = |path: PathBuf, kind, random: &mut Random| {
            entries.push(Entry { path, kind, seed: random.next() });
        };
        let folders: Vec<_> = folders(&mut random);
        for folder in &folders {
            add(folder.clone(), Kind::Folder, &mut random);
        }
        let average = bytes / FILES;
        let mut left = bytes;
        for number in 0.. {
            let wanted = match random.below(100) {
                0..70 => 1 + random.below(average / 16 + 1),
                70..95 => 1 + random.below(average),
                _ => 1 + random.below(average * 35),
            };
            let size = wanted.min(left);
            let is_text = random.below(3) > 0;
            let extension = if is_text { "txt" } else { "bin" };
            let folder = &folders[random.below(FOLDERS) as usize];
            let path = folder.join(format!("file-{number:05}.{extension}"));
            add(path, Kind::File { bytes: size, is_text }, &mut random);
            left -= size;
            if left == 0 {
                break;
            }
        }
        add("empty file".into(), Kind::File { bytes: 0, is_text: false }, &mut random);
        add("Grüße.txt".into(), Kind::File { bytes: 1000, is_text: true }, &mut random);
        add("no files in here".into(), Kind::Folder, &mut random);
        add("link".into(), Kind::Link { target: "empty file".into() }, &mut random);
        add("dangling".into(), Kind::Link { target: "../not/there".into() }, &mut random);
        Self { entries }
    }

    pub(super) fn files(&self) -> u64 {
        self.entries.iter().filter(|entry| matches!(entry.kind, Kind::File { .. })).count() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.iter().map(Entry::bytes).sum()
    }

    /// Into an empty folder.
    pub(super) fn write(&self, root: &Path, progress: &Progress<'_>) -> Result<()> {
        for entry in &self.entries {
            let path = root.join(&entry.path);
            match &entry.kind {
                Kind::Folder => fs::create_dir(&path).map_err(failed("make", &path))?,
                Kind::Link { target } => symlink(target, &path).map_err(failed("link", &path))?,
                Kind::File { .. } => {
                    let mut file = File::create_new(&path).map_err(failed("make", &path))?;
                    entry.contents(|chunk| {
                        file.write_all(chunk).map_err(failed("write", &path))?;
                        progress.advance(chunk.len() as u64)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Every byte of every file, every link, and that there is nothing else.
    pub(super) fn compare(&self, root: &Path, progress: &Progress<'_>) -> Result<()> {
        let mut there = BTreeSet::new();
        list(root, Path::new(""), &mut there)?;
        for entry in &self.entries {
            if !there.remove(&entry.path) {
                return mismatch(entry, "is missing");
            }
            let path = root.join(&entry.path);
            match &entry.kind {
                Kind::Folder if path.is_dir() => {}
                Kind::Folder => return mismatch(entry, "isn't a folder any more"),
                Kind::Link { target } if fs::read_link(&path).is_ok_and(|now| now == *target) => {}
                Kind::Link { .. } => return mismatch(entry, "isn't the link that was made"),
                Kind::File { bytes, .. } => entry.compare(&path, *bytes, progress)?,
            }
        }
        match there.first() {
            None => Ok(()),
            Some(path) => {
                Err(Trouble::Mismatch(format!("nobody has made the file {}", path.display())))
            }
        }
    }
}

impl Entry {
    fn bytes(&self) -> u64 {
        match self.kind {
            Kind::File { bytes, .. } => bytes,
            Kind::Folder | Kind::Link { .. } => 0,
        }
    }

    /// Hands the file's bytes to `take`, piece by piece.
    fn contents(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Kind::File { bytes, is_text } = self.kind else { return Ok(()) };
        let mut random = Random::new(self.seed);
        let mut chunk = Vec::with_capacity(CHUNK_BYTES + 64);
        let mut left = bytes;
        while left > 0 {
            let length = left.min(CHUNK_BYTES as u64) as usize;
            chunk.clear();
            if is_text {
                while chunk.len() < length {
                    let number = random.next();
                    for shift in (0..40).step_by(5) {
                        let word = WORDS[(number >> shift) as usize % WORDS.len()];
                        chunk.extend_from_slice(word.as_bytes());
                        chunk.push(if shift == 35 { b'\n' } else { b' ' });
                    }
                }
                chunk.truncate(length);
            } else {
                chunk.resize(length, 0);
                random.fill(&mut chunk);
            }
            take(&chunk)?;
            left -= length as u64;
        }
        Ok(())
    }

    fn compare(&self, path: &Path, bytes: u64, progress: &Progress<'_>) -> Result<()> {
        let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        if !metadata.is_file() || metadata.len() != bytes {
            let now = metadata.len();
            return mismatch(self, &format!("has {now} bytes, and {bytes} were written"));
        }
        let mut file = File::open(path).map_err(failed("open", path))?;
        let mut now = Vec::with_capacity(CHUNK_BYTES);
        let mut offset = 0;
        self.contents(|chunk| {
            now.resize(chunk.len(), 0);
            file.read_exact(&mut now).map_err(failed("read", path))?;
            if let Some(at) = chunk.iter().zip(&now).position(|(was, is)| was != is) {
                return mismatch(self, &format!("differs at byte {}", offset + at));
            }
            offset += chunk.len();
            progress.advance(chunk.len() as u64)
        })
    }
}

fn mismatch<T>(entry: &Entry, problem: &str) -> Result<T> {
    Err(Trouble::Mismatch(format!("the file {} {problem}", entry.path.display())))
}

/// Folders of two levels; those of the first go before those of the second.
fn folders(random: &mut Random) -> Vec<PathBuf> {
    let tops: Vec<_> = (0..FOLDERS / 4).map(|n| PathBuf::from(format!("folder-{n:02}"))).collect();
    let below = (tops.len() as u64..FOLDERS).map(|n| {
        let top = &tops[random.below(tops.len() as u64) as usize];
        top.join(format!("below-{n:02}"))
    });
    let below: Vec<_> = below.collect();
    tops.into_iter().chain(below).collect()
}

fn list(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).map_err(failed("list", &folder))? {
        let entry = entry.map_err(failed("list", &folder))?;
        let path = below.join(entry.file_name());
        if path == Path::new(LOST_AND_FOUND) || path == Path::new(LOAD_FILE) {
            continue;
        }
        if entry.file_type().map_err(failed("look at", &folder))?.is_dir() {
            list(root, &path, found)?;
        }
        found.insert(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ankole_blockdev::hash::fnv1a;

    use super::super::report::Reporter;
    use super::*;

    const BYTES: u64 = 3 << 20;

    fn written(reporter: &Reporter) -> (Tree, tempfile::TempDir) {
        let tree = Tree::new(7, BYTES);
        let folder = tempfile::tempdir().unwrap();
        tree.write(folder.path(), &reporter.progress("write", 0)).unwrap();
        (tree, folder)
    }

    /// Figures of two machines can be compared only if they moved the same bytes.
    #[test]
    fn the_same_seed_gives_the_same_bytes_everywhere() {
        let mut bytes = Vec::new();
        let tree = Tree::new(7, BYTES);
        for entry in &tree.entries {
            bytes.extend_from_slice(entry.path.to_str().unwrap().as_bytes());
            entry
                .contents(|chunk| {
                    bytes.extend_from_slice(chunk);
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(tree.bytes(), BYTES + 1000);
        assert_eq!(fnv1a(&bytes), GOLDEN, "{:#x}", fnv1a(&bytes));
    }
    const GOLDEN: u64 = 0xddf4_2109_ab5d_2a4a;

    #[test]
    fn there_are_thousands_of_files_whatever_the_size() {
        for bytes in [20 << 20, 340 << 20, 8_u64 << 30] {
            let files = Tree::new(1, bytes).files();
            assert!((1500..6000).contains(&files), "{files} files in {bytes} bytes");
        }
    }

    #[test]
    fn what_was_written_compares_equal() {
        let reporter = Reporter::quiet();
        let (tree, folder) = written(&reporter);
        tree.compare(folder.path(), &reporter.progress("compare", 0)).unwrap();
    }

    /// A comparison that overlooks something would make every demo end well.
    #[test]
    fn every_kind_of_damage_is_found_and_named() {
        let reporter = Reporter::quiet();
        type Damage = fn(&Path);
        let damages: [(&str, Damage); 6] = [
            ("empty file", |root| fs::write(root.join("empty file"), "x").unwrap()),
            ("link", |root| {
                fs::remove_file(root.join("link")).unwrap();
                symlink("elsewhere", root.join("link")).unwrap();
            }),
            ("stranger", |root| fs::write(root.join("stranger"), "").unwrap()),
            ("dangling", |root| fs::remove_file(root.join("dangling")).unwrap()),
            ("no files in here", |root| fs::remove_dir(root.join("no files in here")).unwrap()),
            ("Grüße.txt differs at byte 999", |root| {
                let mut bytes = fs::read(root.join("Grüße.txt")).unwrap();
                bytes[999] ^= 1;
                fs::write(root.join("Grüße.txt"), bytes).unwrap();
            }),
        ];
        for (name, damage) in damages {
            let (tree, folder) = written(&reporter);
            damage(folder.path());
            let found = tree.compare(folder.path(), &reporter.progress("compare", 0));
            let error = found.expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
