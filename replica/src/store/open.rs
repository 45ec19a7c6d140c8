//! Making a directory a replica's, and opening it again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use tokio::sync::Mutex;

use super::intent::{self, Intent, IntentError, Used};
use super::meta::{
    CHAIN, INTENT_FILE, LOCK_FILE, NEW_USED_FILE, REPLICA, ReplicaMeta, UNFINISHED_FILE, USED_FILE,
    data_name, index_name, is_ours, layer_file, pages_name,
};
use super::pages::{self, KnownPages, Pages};
use super::storage::{FileKind, LockError, Storage, StorageFile};
use super::two_slots::{self, TwoSlots, TwoSlotsError, TwoSlotsKind};
use super::witness::Continuity;
use super::{
    DataFile, HeadState, Identity, Layers, Membership, OpenLayer, ReplicaState, Store, StoreError,
};
use crate::chain::{Chain, Layer};
use crate::mutation::{self, Mutation};
use crate::types::LayerId;

/// What may differ between two openings of one directory.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Memory for index pages.
    pub index_cache_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { index_cache_bytes: 32 << 20 }
    }
}

impl<S: Storage> Store<S> {
    /// Makes an empty directory a replica's. One that was left half done by a crash is made anew;
    /// one that holds anything else is refused.
    pub async fn format(
        storage: S,
        identity: Identity,
        size_bytes: u64,
        first_head: LayerId,
    ) -> Result<(), StoreError> {
        let place = storage.place();
        let failed = |doing: &'static str| {
            let place = place.clone();
            move |error| fail(&place, doing, error)
        };
        let chain = Chain::new(first_head, size_bytes)?;
        let names = storage.list().map_err(failed("list the files"))?;
        if names.iter().any(|name| name == REPLICA.file) {
            return Err(holds_replica(&storage));
        }
        let foreign = |name: &&String| *name != "lost+found" && !is_ours(name);
        if let Some(name) = names.iter().find(foreign) {
            return Err(StoreError::NotEmpty { place, name: name.clone() });
        }
        let _lock = lock(&storage)?;
        for name in names.iter().filter(|name| is_ours(name) && *name != LOCK_FILE) {
            storage.remove(name).map_err(failed("remove what a crash left"))?;
        }
        let done = write_new(&storage, identity, &chain).await;
        done.map_err(failed("make the replica's files"))
    }

    /// Opens and locks a replica's directory. Costs no scan of the index: which pages exist is
    /// read from the logs, and looked for where the logs may be short. A change of the chain that a
    /// crash interrupted is as if never begun, or done.
    pub async fn open(storage: S, options: StoreOptions) -> Result<Self, StoreError> {
        let place = storage.place();
        let names = storage.list().map_err(|error| fail(&place, "list the files", error))?;
        for missing in [REPLICA.file, CHAIN.file, INTENT_FILE] {
            if !names.iter().any(|name| name == missing) {
                return Err(StoreError::NoReplica { place, missing });
            }
        }
        let lock = lock(&storage)?;
        let meta: TwoSlots<S::File, ReplicaMeta> = open_slots(&storage, REPLICA)?;
        let chain: TwoSlots<S::File, Chain> = open_slots(&storage, CHAIN)?;
        // It is believed from here on, so no power cut may take it back.
        let durable = async {
            if mutation::is_on(Mutation::SlotsBelievedUnsynced) {
                return storage.sync_dir().await;
            }
            meta.sync().await?;
            chain.sync().await?;
            storage.sync_dir().await
        };
        durable.await.map_err(|error| fail(&place, "make durable what a crash left", error))?;
        let sound = (*chain.get()).clone().checked();
        sound.map_err(|error| damaged(&storage, CHAIN.file, error.to_string()))?;
        check_newest(&storage, &chain.get(), &names)?;
        let size_bytes = chain.get().size_bytes();
        let intent = open_intent(&storage, size_bytes, &names).await?;

        let pages = Pages::new(options.index_cache_bytes);
        let (layers, repairs) = open_layers(&storage, &chain.get(), &pages, None)?;
        let durable = async {
            for file in repairs.remains {
                pages.file(file).sync().await?;
            }
            if repairs.new_logs { storage.sync_dir().await } else { Ok(()) }
        };
        durable.await.map_err(|error| fail(&place, "make durable what a crash left", error))?;
        remove_unused(&storage, &chain.get(), &names);

        let continuity = Continuity::of(&storage, &meta.get());
        if matches!(continuity, Continuity::Lost(_)) && meta.get().witness.is_some() {
            // Whoever opens next may be able to tell less, and what is gone stays gone.
            let forget = |meta: &ReplicaMeta| ReplicaMeta { witness: None, ..meta.clone() };
            let done = meta.update(forget).await;
            done.map_err(|error| fail(&place, "note that power was lost", error))?;
        }
        let marked = intent.marked().map_err(|error| intent_error(&storage, error))?;
        let unrecovered: BTreeSet<_> = marked.into_iter().map(|(region, _)| region).collect();
        let store = Self {
            failure: RefCell::new(meta.get().failure.clone()),
            continuous: Cell::new(continuity == Continuity::Unbroken || unrecovered.is_empty()),
            lost_power: matches!(continuity, Continuity::Lost(_)),
            continuity: RefCell::new(continuity),
            unrecovered: RefCell::new(unrecovered),
            storage,
            meta,
            chain,
            intent,
            pages,
            layers: RefCell::new(layers),
            head_state: HeadState::default(),
            index_of_before: Cell::new(!mutation::is_on(Mutation::EarlierIndexUnsynced)),
            prepared: Cell::new(None),
            chain_gate: Mutex::new(()),
            recovery_gates: std::array::from_fn(|_| Mutex::new(())),
            flushes: super::Rounds::default(),
            _lock: lock,
        };
        if store.meta.get().membership.state == ReplicaState::Failed {
            let reason = "it failed before".to_owned();
            store.failure.borrow_mut().get_or_insert(reason);
            store.continuous.set(false);
        }
        if let Err(error) = store.shrink_to_fit() {
            tracing::warn!(place = store.place(), %error, "room for a larger volume stays taken");
        }
        store.pages.path_changed(store.head().file, None);
        store.find_fresh()?;
        Ok(store)
    }
}

async fn write_new<S: Storage>(storage: &S, identity: Identity, chain: &Chain) -> io::Result<()> {
    let head = chain.head();
    create_layer(storage, head.file, head.size_bytes).await?;
    let intent = storage.create(INTENT_FILE, FileKind::Metadata)?;
    intent.preallocate(intent::file_bytes(head.size_bytes))?;
    intent.sync().await?;
    let used = storage.create(USED_FILE, FileKind::Metadata)?;
    Used::make(&used, intent::sectors(head.size_bytes)).await?;
    let file = storage.create(CHAIN.file, FileKind::Metadata)?;
    TwoSlots::format(&file, CHAIN, chain).await?;
    let meta = ReplicaMeta {
        identity,
        fence: None,
        lessee: None,
        lessee_process: None,
        membership: Membership::NEW,
        witness: None,
        doubt: None,
        failure: None,
    };
    let file = storage.create(UNFINISHED_FILE, FileKind::Metadata)?;
    TwoSlots::format(&file, REPLICA, &meta).await?;
    storage.sync_dir().await?;
    storage.rename(UNFINISHED_FILE, REPLICA.file)?;
    storage.sync_dir().await
}

/// Makes the files of an empty layer, which take no space yet; their names become durable by the
/// caller's `sync_dir`.
pub(super) async fn create_layer<S: Storage>(
    storage: &S,
    file: u32,
    size_bytes: u64,
) -> io::Result<()> {
    let data = storage.create(&data_name(file), FileKind::Data)?;
    data.extend(size_bytes)?;
    let index = storage.create(&index_name(file), FileKind::Metadata)?;
    index.extend(pages::file_bytes(size_bytes))?;
    let log = storage.create(&pages_name(file), FileKind::Metadata)?;
    data.sync().await?;
    index.sync().await?;
    log.sync().await
}

/// Where the chain has no layer yet, and behind the volume's end, no index has a page: what a crash
/// left of a change that didn't come to count is empty. A page there shows that the chain is older
/// than it, and by it data would be removed.
fn check_newest<S: Storage>(
    storage: &S,
    chain: &Chain,
    names: &[String],
) -> Result<(), StoreError> {
    let failed = |error| fail(&storage.place(), "look at the files", error);
    let head = chain.head();
    for name in names.iter().filter(|name| name.ends_with(".index")) {
        let known_bytes = match layer_file(name) {
            Some(file) if file >= chain.next_file() => 0,
            Some(file) if file == head.file => pages::file_bytes(head.size_bytes),
            _ => continue,
        };
        let index = open_file(storage, name, FileKind::Metadata, 0)?;
        if pages::holds_any(&index, known_bytes).map_err(failed)? {
            let problem = format!("it is older than {name}, which has pages that it can't know");
            return Err(damaged(storage, CHAIN.file, problem));
        }
    }
    Ok(())
}

/// What has to become durable before the layers are used.
#[derive(Default)]
pub(super) struct Repairs {
    /// Files in which remains of pages were overwritten.
    remains: Vec<pages::FileNumber>,
    new_logs: bool,
}

/// Opens the files of all layers, taking those that are open already from `before`.
pub(super) fn open_layers<S: Storage>(
    storage: &S,
    chain: &Chain,
    pages: &Pages<S::File>,
    before: Option<&Layers<S::File>>,
) -> Result<(Layers<S::File>, Repairs), StoreError> {
    let mut repairs = Repairs::default();
    let mut open: BTreeMap<u32, Rc<DataFile<S::File>>> = BTreeMap::new();
    for layer in before.iter().flat_map(|before| before.by_id.values()) {
        open.insert(layer.file, layer.data.clone());
    }
    let mut by_id = BTreeMap::new();
    for layer in chain.layers() {
        let is_durable = chain.is_durable(layer) && layer.pages.is_some();
        let data = match open.get(&layer.file) {
            Some(data) => data.clone(),
            None => {
                let file =
                    open_file(storage, &data_name(layer.file), FileKind::Data, layer.size_bytes)?;
                let index_bytes = pages::file_bytes(layer.size_bytes);
                let name = index_name(layer.file);
                let index = open_file(storage, &name, FileKind::Metadata, index_bytes)?;
                let may_lack = before.is_none() && (layer.filling || layer.id == chain.head().id);
                let known = known_pages(storage, layer, &index, may_lack, &mut repairs)?;
                pages.add_file(layer.file, index, known, !is_durable);
                let is_synced = is_durable || mutation::is_on(Mutation::EarlierDataUnsynced);
                Rc::new(DataFile::new(file, !is_synced))
            }
        };
        if is_durable {
            data.file.rest();
            pages.rest(layer.file);
        }
        by_id.insert(
            layer.id,
            Rc::new(OpenLayer {
                id: layer.id,
                file: layer.file,
                data,
                size_bytes: layer.size_bytes,
                has_parent: layer.parent.is_some(),
                filling: layer.filling,
            }),
        );
    }
    let top = chain.path(chain.head().id).map(|layer| by_id[&layer.id].clone()).collect();
    Ok((Layers { by_id, top }, repairs))
}

/// Which pages a layer has, from its log and, where the log may lack some, from its index.
fn known_pages<S: Storage>(
    storage: &S,
    layer: &Layer,
    index: &S::File,
    may_lack: bool,
    repairs: &mut Repairs,
) -> Result<KnownPages<S::File>, StoreError> {
    let failed = |error| fail(&storage.place(), "read which pages an index has", error);
    let name = pages_name(layer.file);
    let log = match storage.open(&name, FileKind::Metadata) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            repairs.new_logs = true;
            storage.create(&name, FileKind::Metadata)
        }
        opened => opened,
    };
    let mut known = KnownPages::of_log(log.map_err(failed)?, layer.file).map_err(failed)?;
    let expected = layer.pages.unwrap_or(0);
    let is_short = known.count() < expected;
    if may_lack || is_short || layer.pages.is_none() {
        if known.search(index).map_err(failed)? {
            repairs.remains.push(layer.file);
        }
        let count = known.count();
        if count < expected {
            let problem = format!(
                "it knows of fewer pages than the {expected} that were written, and the index has {count}"
            );
            return Err(damaged(storage, &name, problem));
        }
    }
    if is_short {
        tracing::warn!(
            place = storage.place(),
            name,
            "the log of pages is damaged; its entries were found again in the index"
        );
    }
    Ok(known)
}

/// Files of layers that a crash has left after a join or a removal, or that were prepared and never
/// used.
fn remove_unused<S: Storage>(storage: &S, chain: &Chain, names: &[String]) {
    let used: BTreeSet<u32> = chain.layers().iter().map(|layer| layer.file).collect();
    for name in names {
        if layer_file(name).is_some_and(|file| !used.contains(&file))
            && let Err(error) = storage.remove(name)
        {
            tracing::warn!(place = storage.place(), name, %error, "an unused file stays");
        }
    }
}

fn open_file<S: Storage>(
    storage: &S,
    name: &str,
    kind: FileKind,
    expected_bytes: u64,
) -> Result<S::File, StoreError> {
    let file = storage.open(name, kind).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged(storage, name, "it is missing".into()),
        _ => fail(&storage.place(), "open the files", error),
    })?;
    match file.length_bytes() {
        Ok(length) if length >= expected_bytes => Ok(file),
        Ok(length) => {
            let problem = format!("it has {length} bytes, {expected_bytes} were written");
            Err(damaged(storage, name, problem))
        }
        Err(error) => Err(fail(&storage.place(), "look at the files", error)),
    }
}

async fn open_intent<S: Storage>(
    storage: &S,
    size_bytes: u64,
    names: &[String],
) -> Result<Intent<S::File>, StoreError> {
    let failed = |error| fail(&storage.place(), "read the intent map", error);
    let sectors = intent::sectors(size_bytes);
    let file = open_file(storage, INTENT_FILE, FileKind::Metadata, intent::file_bytes(size_bytes))?;
    let used = if names.iter().any(|name| name == USED_FILE) {
        open_file(storage, USED_FILE, FileKind::Metadata, intent::used_bytes(sectors))?
    } else {
        // A directory of before there was one: it is made once, and filled below.
        make_used(storage, sectors, names).await.map_err(failed)?
    };
    let opened = async {
        let used = Used::open(used, sectors)?;
        Intent::open(file, used, size_bytes).await
    };
    opened.await.map_err(|error| intent_error(storage, error))
}

async fn make_used<S: Storage>(storage: &S, sectors: u64, names: &[String]) -> io::Result<S::File> {
    if names.iter().any(|name| name == NEW_USED_FILE) {
        storage.remove(NEW_USED_FILE)?;
    }
    let used = storage.create(NEW_USED_FILE, FileKind::Metadata)?;
    Used::make(&used, sectors).await?;
    storage.rename(NEW_USED_FILE, USED_FILE)?;
    storage.sync_dir().await?;
    Ok(used)
}

pub(super) fn open_slots<S: Storage, T: serde::Serialize + serde::de::DeserializeOwned>(
    storage: &S,
    kind: TwoSlotsKind,
) -> Result<TwoSlots<S::File, T>, StoreError> {
    let open = storage.open(kind.file, FileKind::Metadata);
    let file = open.map_err(|error| fail(&storage.place(), "open the files", error))?;
    TwoSlots::open(file, kind).map_err(|error| match error {
        TwoSlotsError::Io(error) => fail(&storage.place(), "read the metadata", error),
        TwoSlotsError::Damaged(problem) => damaged(storage, kind.file, problem),
        TwoSlotsError::Version(found) => StoreError::Version {
            place: storage.place(),
            file: kind.file.into(),
            found,
            known: two_slots::VERSION,
        },
    })
}

fn lock<S: Storage>(storage: &S) -> Result<S::Lock, StoreError> {
    storage.lock().map_err(|error| match error {
        LockError::Held { pid } => StoreError::Locked { place: storage.place(), pid },
        LockError::Io(error) => fail(&storage.place(), "lock the directory", error),
    })
}

fn holds_replica<S: Storage>(storage: &S) -> StoreError {
    match open_slots::<S, ReplicaMeta>(storage, REPLICA) {
        Ok(meta) => {
            let identity = meta.get().identity.clone();
            StoreError::HoldsReplica {
                place: storage.place(),
                volume: identity.volume,
                replica: identity.replica.to_string(),
            }
        }
        Err(_) => StoreError::NotEmpty { place: storage.place(), name: REPLICA.file.into() },
    }
}

pub(super) fn intent_error<S: Storage>(storage: &S, error: IntentError) -> StoreError {
    match error {
        IntentError::Io(error) => fail(&storage.place(), "read the intent map", error),
        IntentError::Damaged { file, problem } => damaged(storage, file, problem),
    }
}

fn damaged<S: Storage>(storage: &S, file: &str, problem: String) -> StoreError {
    StoreError::Damaged { place: storage.place(), file: file.into(), problem }
}

fn fail(place: &str, doing: &'static str, source: io::Error) -> StoreError {
    StoreError::Io { doing, place: place.to_owned(), source }
}
