//! One replica's directory alone, with nobody to ask: what a single survivor has.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use ankole_blockdev::disk::{BLOCK_BYTES, Buffer};
use ankole_replica::store::file::{Directory, DirectoryOptions};
use ankole_replica::store::{Storage, Store, StoreOptions, View as StoreView};
use ankole_replica::types::{BlockIndex, BlockRange, REGION_BYTES, Region};
use serde::{Deserialize, Serialize};

use crate::oracle::{Clock, Expectation, View, Wrong};
use crate::recording::{Boot, Recording, Sabotage};
use crate::write_log::{Files, WriteLog};

/// Findings that a report names; more are only counted.
const NAMED_MAX: usize = 5;

/// What was found in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// In words; empty if all is well.
    pub problems: Vec<String>,
    /// A hash of all bytes of the volume and of each snapshot.
    pub hashes: BTreeMap<String, u64>,
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The first of them in words, and how many there are.
pub fn describe(wrong: &[Wrong]) -> Option<String> {
    let named: Vec<_> = wrong.iter().take(NAMED_MAX).map(Wrong::to_string).collect();
    let count = wrong.len();
    (count > 0).then(|| format!("{count} sectors are wrong: {}", named.join("; ")))
}

/// Opens the store in `directory` as after a reboot, and reads all of it. Within a `LocalSet`.
pub async fn inspect_directory(directory: &Path, expectation: &Expectation) -> Inspection {
    let options = DirectoryOptions { boot_id: Some("another".into()), ..Default::default() };
    match Directory::open(directory, &options) {
        Ok(storage) => inspect(storage, expectation).await,
        Err(error) => Inspection::of_problem(format!("the directory can't be opened: {error}")),
    }
}

/// The same on a machine whose boot is `boot`: its replica may know that no power was lost.
pub async fn inspect_on(directory: &Path, boot: Boot, expectation: &Expectation) -> Inspection {
    let opened = Files::read(directory).and_then(|files| {
        let directory = Directory::open(directory, &DirectoryOptions::default())?;
        let log = WriteLog::new(Clock::default());
        Ok(Recording::new(directory, files.numbered(), log, boot, Sabotage::default()))
    });
    match opened {
        Ok(storage) => inspect(storage, expectation).await,
        Err(error) => Inspection::of_problem(format!("the directory can't be opened: {error}")),
    }
}

impl Inspection {
    fn of_problem(problem: String) -> Self {
        Self { problems: vec![problem], hashes: BTreeMap::new() }
    }
}

async fn inspect<S: Storage>(storage: S, expectation: &Expectation) -> Inspection {
    let store = match Store::open(storage, StoreOptions::default()).await {
        Ok(store) => store,
        Err(error) => return Inspection::of_problem(format!("the store can't be opened: {error}")),
    };
    let mut found = Inspection::default();
    let mut views = vec![(View::Volume, StoreView::Top)];
    for layer in store.chain().layers.iter().filter(|layer| !layer.removed) {
        if let Some(name) = layer.seal.as_ref().and_then(|seal| seal.name.clone()) {
            views.push((View::Snapshot(name), StoreView::Layer(layer.id)));
        }
    }
    found.check_names(expectation, views.iter().filter_map(|(view, _)| view.snapshot()));
    for (view, of_store) in views {
        match read(&store, of_store, expectation.size_bytes()).await {
            Ok(bytes) => {
                found.problems.extend(describe(&expectation.check(&view, 0, &bytes)));
                found.hashes.insert(view.to_string(), hash(&bytes));
            }
            Err(problem) => found.problems.push(format!("{view} can't be read: {problem}")),
        }
    }
    match store.verify().await {
        Ok(report) if report.blocks_bad == 0 => {}
        Ok(report) => found.problems.push(format!("blocks are bad: {:?}", report.bad.first())),
        Err(error) => found.problems.push(format!("it can't be verified: {error}")),
    }
    found
}

impl Inspection {
    /// Every reported snapshot is there, and none that nobody asked for.
    pub fn check_names<'a>(
        &mut self,
        expectation: &Expectation,
        names: impl Iterator<Item = &'a str>,
    ) {
        let names: Vec<String> = names.map(str::to_owned).collect();
        let missing = expectation.missing(&names);
        self.problems.extend(missing.map(|name| format!("snapshot {name} is missing")));
        let unknown = names.iter().filter(|name| !expectation.knows(name));
        self.problems.extend(unknown.map(|name| format!("nobody asked for snapshot {name}")));
    }
}

impl View {
    fn snapshot(&self) -> Option<&str> {
        match self {
            Self::Volume => None,
            Self::Snapshot(name) => Some(name),
        }
    }
}

async fn read<S: Storage>(
    store: &Store<S>,
    view: StoreView,
    size_bytes: u64,
) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(size_bytes as usize);
    for region in (0..size_bytes / REGION_BYTES).map(Region) {
        let range: BlockRange = region.range();
        let (done, buffer) = store.read(view, range, Buffer::zeroed(REGION_BYTES as usize)).await;
        let BlockIndex(first) = range.first;
        done.map_err(|error| format!("from byte {}: {error}", first * BLOCK_BYTES))?;
        bytes.extend_from_slice(&buffer);
    }
    Ok(bytes)
}
