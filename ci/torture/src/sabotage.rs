//! Damage that must be found: shows that the program can fail.
//!
//! Done to the directories between the end of the processes and the comparison, so that nothing can
//! repair or overwrite it in between; or, for the arbiter, by a record that it must never have.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer, SECTOR_BYTES};
use ankole_replica::store::View;
use ankole_replica::types::{BlockIndex, BlockRange, Generation};
use anyhow::{Context, bail, ensure};

use crate::compare::open_directory;
use crate::load::Pace;
use crate::round::{PATIENCE, Torture};
use crate::sector::{Number, SECTOR, encode};
use crate::world::TICK;

const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// A bit of one replica's data flips; its checksum stays
    FlippedBit,
    /// One replica has other bytes, with a checksum that fits
    OtherBytes,
    /// All replicas have a value that a sector had in an earlier round
    OldSector,
    /// All replicas have another sector's bytes
    MisplacedSector,
    /// All replicas have half of one write and half of another
    TornSector,
    /// The arbiter says that only a replica which missed writes is in sync
    LyingArbiter,
}

impl Sabotage {
    pub fn is_of_directories(self) -> bool {
        self != Self::LyingArbiter
    }

    /// Words of the report that finds it: that a run fails isn't enough.
    pub fn reported_as(self) -> &'static str {
        match self {
            Self::FlippedBit => "don't match their checksums",
            Self::OtherBytes => "replicas differ in their heads",
            Self::OldSector | Self::LyingArbiter => "it can have held only",
            Self::MisplacedSector => "misplaced",
            Self::TornSector => "a torn sector",
        }
    }
}

/// What the oracle knew after two rounds, one after the other.
pub struct Known {
    pub before: Vec<Number>,
    pub now: Vec<Number>,
}

/// Damages replicas whose processes are gone.
pub async fn damage(
    sabotage: Sabotage,
    volume: u64,
    directories: &[impl AsRef<Path>],
    known: &Known,
) -> anyhow::Result<String> {
    let changed = known.before.iter().zip(&known.now).position(|(before, now)| {
        before != now && *before != Number::ZEROES && *now != Number::ZEROES
    });
    let sector = changed.context("no sector had two values in two rounds")? as u64;
    let old = known.before[sector as usize];
    let new = |sector: u64, number: Number| {
        let mut bytes = [0; SECTOR];
        encode(volume, sector, number, &mut bytes);
        bytes
    };
    let (first, others) = directories.split_first().context("there are no replicas")?;
    let bytes = match sabotage {
        Sabotage::FlippedBit => {
            flip_bit(first.as_ref(), sector)?;
            return Ok(format!("a bit of sector {sector} of the first replica flipped"));
        }
        Sabotage::OtherBytes => {
            replace(first.as_ref(), sector, &new(sector, old)).await?;
            return Ok(format!("sector {sector} of the first replica has {old}"));
        }
        Sabotage::OldSector => new(sector, old),
        Sabotage::MisplacedSector => new(sector + 1, old),
        Sabotage::TornSector => {
            let mut torn = new(sector, old);
            torn[SECTOR / 2..]
                .copy_from_slice(&new(sector, known.now[sector as usize])[SECTOR / 2..]);
            torn
        }
        Sabotage::LyingArbiter => bail!("that isn't done to directories"),
    };
    replace(first.as_ref(), sector, &bytes).await?;
    for other in others {
        replace(other.as_ref(), sector, &bytes).await?;
    }
    Ok(format!("all replicas have something else in sector {sector}"))
}

/// In whichever layer's file shows the sector: the newest one that has data there.
fn flip_bit(directory: &Path, sector: u64) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "data") {
            files.push(path);
        }
    }
    files.sort();
    for path in files.iter().rev() {
        let mut file = std::fs::File::options().read(true).write(true).open(path)?;
        let at = SeekFrom::Start(sector * SECTOR_BYTES);
        let mut byte = [0];
        file.seek(at)?;
        if file.read(&mut byte)? == 1 && byte[0] != 0 {
            file.seek(at)?;
            file.write_all(&[byte[0] ^ 1])?;
            return Ok(());
        }
    }
    bail!("no layer has data for sector {sector}")
}

async fn replace(directory: &Path, sector: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let store = open_directory(directory).await?;
    let range = BlockRange::new(BlockIndex(sector / SECTORS_PER_BLOCK), 1);
    let block = Buffer::zeroed(BLOCK_BYTES as usize);
    let (done, mut block) = store.read(View::Top, range, block).await;
    done?;
    let at = (sector % SECTORS_PER_BLOCK) as usize * SECTOR;
    block[at..at + SECTOR].copy_from_slice(bytes);
    let sum = ankole_replica::checksum::of_block(&block);
    let generation = store.fence().map_or(Generation::FIRST, |fence| fence.generation);
    store.write(range, Rc::new(block), 0, &[sum], generation).await?;
    store.close().await?;
    Ok(())
}

/// A replica dies and is removed, others take writes; then the record says that it alone counts.
pub async fn lie(torture: &mut Torture) -> anyhow::Result<String> {
    let stale = torture.world.arbiter.record().in_sync[0].clone();
    torture.load.set_pace(Pace::Full);
    let host = &mut torture.world.replicas[0];
    ensure!(host.id == stale.replica, "the first replica is the first member");
    host.down_until = Instant::now() + PATIENCE;
    host.process.iter_mut().for_each(|process| process.kill());
    let deadline = Instant::now() + PATIENCE;
    while torture.world.arbiter.record().in_sync.contains(&stale) {
        ensure!(Instant::now() < deadline, "a dead replica stays in sync");
        torture.tick()?;
        tokio::time::sleep(TICK).await;
    }
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        torture.tick()?;
        tokio::time::sleep(TICK).await;
    }
    torture.load.set_pace(Pace::Resting);
    torture.until_idle().await?;
    torture.world.kill_all()?;
    let mut record = torture.world.arbiter.record();
    let said = format!("the record says that {} alone is in sync", stale.replica);
    record.in_sync = vec![stale];
    torture.world.arbiter.overwrite(record);
    torture.world.start_again();
    Ok(said)
}
