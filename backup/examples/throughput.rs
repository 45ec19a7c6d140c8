//! How near a full backup comes to what hashing and compressing alone allow.
//!
//! `cargo run --release -p ankole-backup --example throughput [FOLDER]` makes 512 MiB, half of it
//! text and half random bytes, in FOLDER (default: the temporary folder), then in turns backs it up
//! to a directory there, with 1 and 2 workers, and hashes and compresses the same bytes with as
//! many threads. Prints every round and the ratio of the medians.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ankole_backup::block::{BlockChecksum, CompressionMethod, encode};
use ankole_backup::parallel::try_map;
use ankole_backup::target::DirectoryTarget;
use ankole_backup::{
    BackupRequest, Changed, LockTimes, Name, RestoreOptions, Source, back_up, restore_to_file,
    unobserved,
};

const BLOCK_BYTES: u64 = 2 << 20;
const SIZE_BYTES: u64 = 512 << 20;
const ROUNDS: usize = 5;

struct FileSource(File);

impl Source for FileSource {
    fn volume(&self) -> &str {
        "throughput"
    }
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }
    fn snapshot_name(&self) -> &str {
        "s1"
    }
    fn snapshot_id(&self) -> &str {
        "throughput-s1"
    }
    #[expect(clippy::single_range_in_vec_init, reason = "the whole volume is one range")]
    fn changed(&self, _since: Option<&str>) -> io::Result<Changed> {
        Ok(Changed::Everything(vec![0..SIZE_BYTES]))
    }
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset_bytes)
    }
}

fn make_file(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words = ["volume", "replica", "engine", "snapshot", "chain", "horn", "of", "the", "\n"];
    for block in 0..SIZE_BYTES / BLOCK_BYTES {
        let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize + 16);
        while (bytes.len() as u64) < BLOCK_BYTES {
            if block % 2 == 0 {
                bytes.extend_from_slice(words[random() as usize % words.len()].as_bytes());
                bytes.extend_from_slice(format!(" {} ", random() % 1000).as_bytes());
            } else {
                bytes.extend_from_slice(&random().to_le_bytes());
            }
        }
        file.write_all(&bytes[..BLOCK_BYTES as usize])?;
    }
    file.sync_all()
}

/// The same reading, hashing and compressing, without a target.
fn limit(source: &FileSource, workers: usize) -> Result<Duration, Box<dyn Error>> {
    let offsets: Vec<u64> = (0..SIZE_BYTES / BLOCK_BYTES).map(|b| b * BLOCK_BYTES).collect();
    let begun = Instant::now();
    let sizes = try_map(workers, &offsets, |offset_bytes| {
        let mut block = vec![0; BLOCK_BYTES as usize];
        source.read(*offset_bytes, &mut block).map_err(|_| ankole_backup::Error::Cancelled)?;
        let checksum = BlockChecksum::of(&block);
        Ok((checksum, encode(CompressionMethod::Lz4, &block).len()))
    })?;
    std::hint::black_box(sizes);
    Ok(begun.elapsed())
}

fn backup(source: &FileSource, workers: usize, folder: &Path) -> Result<Duration, Box<dyn Error>> {
    fs::create_dir(folder)?;
    let target = DirectoryTarget::open("file:///throughput".into(), folder.to_owned())?;
    let mut request = BackupRequest::new("b1".parse()?);
    request.workers = workers;
    // The wait for other lock holders is two seconds whatever the size: not what is measured.
    request.lock_times = LockTimes { settle: Duration::ZERO, ..LockTimes::default() };
    let begun = Instant::now();
    let report = back_up(&target, source, &request, &unobserved)?;
    let took = begun.elapsed();
    assert_eq!(report.blocks_new, SIZE_BYTES / BLOCK_BYTES, "every block was stored");
    Ok(took)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let folder = parent.join(format!("ankole-throughput-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let measured = measure(&folder);
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure(folder: &Path) -> Result<(), Box<dyn Error>> {
    let data = folder.join("data");
    make_file(&data)?;
    let source = FileSource(File::open(&data)?);
    let mebibytes = (SIZE_BYTES >> 20) as f64;
    let stored = folder.join("stored");
    for workers in [1, 2] {
        let (mut limits, mut backups, mut restores) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            limits.push(limit(&source, workers)?);
            backups.push(backup(&source, workers, &stored)?);
            restores.push(restore(workers, &stored, &folder.join("restored"))?);
            fs::remove_dir_all(&stored)?;
            println!(
                "workers {workers} round {round}: limit {:.2?}, backup {:.2?}, restore {:.2?}",
                limits[round], backups[round], restores[round]
            );
        }
        let (limit, backup, restore) = (median(limits), median(backups), median(restores));
        println!(
            "workers {workers}: limit {:.0} MiB/s, backup {:.0} MiB/s = {:.2} of it, \
             restore {:.0} MiB/s",
            mebibytes / limit,
            mebibytes / backup,
            limit / backup,
            mebibytes / restore
        );
    }
    Ok(())
}

fn restore(workers: usize, stored: &Path, to: &Path) -> Result<Duration, Box<dyn Error>> {
    let target = DirectoryTarget::open("file:///throughput".into(), stored.to_owned())?;
    let lock_times = LockTimes { settle: Duration::ZERO, ..LockTimes::default() };
    let options = RestoreOptions { workers, lock_times };
    let (volume, backup): (Name, Name) = ("throughput".parse()?, "b1".parse()?);
    let begun = Instant::now();
    restore_to_file(&target, &volume, &backup, to, true, &options, &unobserved)?;
    Ok(begun.elapsed())
}
