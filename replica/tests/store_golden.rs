//! A replica that an earlier version of this program has written must stay readable.
//!
//! `tests/golden/v3.txt` has the sectors of its files as hexadecimal text. To make one for a new
//! version (never to make this test pass): `ANKOLE_TEST_WRITE_GOLDEN=v4 cargo test`.

mod store;

use std::fmt::Write;

use ankole_replica::chain::{ChainChange, ChainOp, Seal};
use ankole_replica::store::crash::Disk;
use ankole_replica::store::{BlockSum, ReplicaState, Storage, View};
use ankole_replica::types::{
    BlockIndex, BlockRange, ChainOpId, Fence, Generation, LayerId, Region, Session,
};
use store::world::{World, open};
use store::{Fill, GENERATION, identity, read_fill, run, write_fill};

const SECTOR: usize = 512;

fn blocks(first: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(first), count)
}

async fn write_golden() -> Disk {
    let World { disk, store, .. } = World::new(1).await;
    let fence = Fence { generation: Generation::FIRST.next(), session: Session(5) };
    store.set_fence(fence).await.expect("a sound disk");
    write_fill(&store, blocks(254, 3), Fill(11)).await.expect("a sound disk");
    let seal = Seal {
        name: Some("before-upgrade".into()),
        created_unix_s: 1_800_000_000,
        user_created: true,
        labels: [("app".to_owned(), "db".to_owned())].into(),
        generation: None,
    };
    let change = ChainChange::Snapshot { seal, new_head: LayerId(2) };
    store.apply(&ChainOp { id: ChainOpId(41), change }).await.expect("a sound disk");
    store.clear(&[Region(1)]).await.expect("a sound disk");
    write_fill(&store, blocks(255, 1), Fill(12)).await.expect("a sound disk");
    store.zero(blocks(254, 1), GENERATION).await.expect("a sound disk");
    store.close().await.expect("a sound disk");
    disk
}

fn to_text(disk: &Disk) -> String {
    let mut text = String::new();
    for name in disk.list().expect("a sound disk") {
        let bytes = disk.bytes_of(&name);
        writeln!(text, "{name} {}", bytes.len()).expect("into memory");
        for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            if used > 0 {
                let hex: String = bytes[..used].iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(text, " {sector} {hex}").expect("into memory");
            }
        }
    }
    text
}

fn from_text(text: &str) -> Disk {
    let disk = Disk::new(1);
    let mut file: Option<(String, Vec<u8>)> = None;
    for line in text.lines() {
        if let Some(sector) = line.strip_prefix(' ') {
            let (number, hex) = sector.split_once(' ').expect("two words");
            let at = number.parse::<usize>().expect("a number") * SECTOR;
            let (_, bytes) = file.as_mut().expect("a file comes first");
            for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
                let pair = std::str::from_utf8(pair).expect("hex");
                bytes[at + index] = u8::from_str_radix(pair, 16).expect("hex");
            }
        } else {
            let (name, length) = line.split_once(' ').expect("two words");
            let next = (name.to_owned(), vec![0; length.parse().expect("a number")]);
            if let Some((name, bytes)) = file.replace(next) {
                disk.put_file(&name, &bytes);
            }
        }
    }
    let (name, bytes) = file.expect("a file");
    disk.put_file(&name, &bytes);
    disk
}

/// v2: the index had no log, so its pages are looked for, and found in the log from then on.
#[test]
fn replicas_of_before_are_read_in_full() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    if let Ok(version) = std::env::var("ANKOLE_TEST_WRITE_GOLDEN") {
        let text = to_text(&run(write_golden()));
        std::fs::write(format!("{golden}/{version}.txt"), text).expect("writable");
    }
    for version in ["v2", "v3"] {
        let text = std::fs::read_to_string(format!("{golden}/{version}.txt"));
        run(check(&from_text(&text.expect("it is in the tree"))));
    }
}

async fn check(disk: &Disk) {
    // The second time with what the first one has added.
    for _ in 0..2 {
        let store = open(disk).await.expect("what was written stays readable");
        assert_eq!(store.identity(), identity());
        let fence = Fence { generation: Generation::FIRST.next(), session: Session(5) };
        assert_eq!(store.fence(), Some(fence));
        assert_eq!(store.membership().state, ReplicaState::Member);
        let chain = store.chain();
        assert_eq!((chain.head, chain.last_op), (LayerId(2), ChainOpId(41)));
        let seal = chain.layers[0].seal.clone().expect("a snapshot");
        assert_eq!(seal.name.as_deref(), Some("before-upgrade"));
        assert_eq!((seal.created_unix_s, seal.user_created), (1_800_000_000, true));
        assert_eq!(seal.labels["app"], "db");
        let top = [0, 0, 12, 11, 0].map(Fill);
        assert_eq!(read_fill(&store, View::Top, blocks(253, 5)).await, top);
        let before = [0, 11, 11, 11, 0].map(Fill);
        assert_eq!(read_fill(&store, View::Layer(LayerId(1)), blocks(253, 5)).await, before);
        let own = store.own_sums(LayerId(2), blocks(253, 3)).await.expect("sound");
        assert!(matches!(
            own[..],
            [BlockSum::Absent, BlockSum::Zero, BlockSum::Data { verified: true, .. }]
        ));
        assert_eq!(store.marked_regions().expect("sound"), [(Region(0), GENERATION)]);
        assert_eq!(store.verify().await.expect("sound").blocks_bad, 0);
        store.flush().await.expect("a sound disk");
        for (layer, regions) in
            [(LayerId(1), vec![Region(0), Region(1)]), (LayerId(2), vec![Region(0)])]
        {
            let occupied = store.occupied(layer, Region(0), 9).await.expect("it is there");
            assert_eq!(occupied, (regions, None));
        }
    }
}
