//! Measures what the simulator's threads pay for; `src/thread.rs` has the figures, rounded up.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Instant;

use ankole_blockdev::disk::Buffer;
use ankole_replica::message::Request;
use ankole_replica::payload::{BlockData, Payload};
use ankole_replica::store::crash::Disk;
use ankole_replica::store::{Identity, Store, StoreOptions};
use ankole_replica::types::{
    BLOCK_BYTES, BLOCKS_PER_REGION, BlockIndex, BlockRange, Generation, Incarnation, LayerId,
    REGION_BYTES, Region, ReplicaId,
};
use ankole_replica::wire::{self, HEADER_BYTES, Header};

const SMALL: usize = 4 << 10;
const LARGE: usize = 1 << 20;

fn main() -> anyhow::Result<()> {
    let path = std::env::temp_dir().join(format!("ankole-costs-{}", std::process::id()));
    let file = File::options().create_new(true).read(true).write(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let mut bytes = vec![7; LARGE];
    for length in [SMALL, LARGE] {
        ns(&format!("pwrite, {length} bytes"), 2000, || {
            file.write_all_at(&bytes[..length], 0).expect("written");
        });
        ns(&format!("pread, {length} bytes, in the page cache"), 2000, || {
            file.read_exact_at(&mut bytes[..length], 0).expect("read");
        });
    }
    ns("fstat", 100_000, || drop(black_box(file.metadata())));
    for length in [SMALL, LARGE] {
        let blocks = length as u64 / BLOCK_BYTES;
        let payload = Rc::new(Payload::Blocks(BlockData::from_client(Buffer::zeroed(length))));
        let range = BlockRange::new(BlockIndex(0), blocks);
        let request = Request::Write { range, forced: false, payload };
        ns(&format!("encode and decode a write of {length} bytes"), 2000, || {
            let frame = wire::encode_request(1, &request).expect("it fits");
            let (header, meta) = frame.head.split_first_chunk::<HEADER_BYTES>().expect("a header");
            let header = Header::decode(header).expect("it was just made");
            let data = Buffer::copy_of(frame.data());
            black_box(wire::decode_request(&header, meta, data).expect("a message"));
        });
    }
    socket(SMALL)?;
    socket(LARGE)?;
    looks()
}

/// There and back, with the wake-ups of both ends.
fn socket(length: usize) -> anyhow::Result<()> {
    let (mut here, mut there) = UnixStream::pair()?;
    let echo = std::thread::spawn(move || {
        let mut bytes = vec![0; length];
        while there.read_exact(&mut bytes).is_ok() && there.write_all(&bytes).is_ok() {}
    });
    let mut bytes = vec![7; length];
    ns(&format!("{length} bytes through a socket, and back"), 500, || {
        here.write_all(&bytes).expect("sent");
        here.read_exact(&mut bytes).expect("received");
    });
    drop(here);
    echo.join().expect("it only copies");
    Ok(())
}

/// At pages in memory.
fn looks() -> anyhow::Result<()> {
    const REGIONS: u64 = 1000;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let disk = Disk::new(1);
        let (volume, replica, incarnation) = ("v".into(), ReplicaId::from("r"), Incarnation(1));
        let identity = Identity { volume, replica, incarnation };
        let size_bytes = REGIONS * REGION_BYTES;
        Store::format(disk.clone(), identity, size_bytes, LayerId(1)).await?;
        let store = Store::open(disk, StoreOptions::default()).await?;
        let one = |region: u64| BlockRange::new(BlockIndex(region * BLOCKS_PER_REGION), 1);
        for region in 0..REGIONS {
            let block = Payload::Blocks(BlockData::from_client({
                let mut block = Buffer::zeroed(BLOCK_BYTES as usize);
                block.fill(1);
                block
            }));
            let Payload::Blocks(BlockData { data, sums }) = block else { unreachable!() };
            store.write(one(region), data, 0, &sums, Generation::FIRST).await?;
        }
        let start = Instant::now();
        for region in (0..100).flat_map(|_| 0..REGIONS) {
            black_box(store.own_sums(LayerId(1), one(region)).await?);
        }
        tell("look at a page in memory", start, 100 * REGIONS);
        let start = Instant::now();
        for _ in 0..1000 {
            black_box(store.occupied(LayerId(1), Region(0), REGIONS).await?);
        }
        tell("look at which pages there are, each", start, 1000 * REGIONS);
        anyhow::Ok(())
    })
}

fn ns(what: &str, times: u64, mut act: impl FnMut()) {
    (0..times / 10).for_each(|_| act());
    let start = Instant::now();
    (0..times).for_each(|_| act());
    tell(what, start, times);
}

fn tell(what: &str, start: Instant, times: u64) {
    println!("{:>9} ns  {what}", start.elapsed().as_nanos() / u128::from(times));
}
