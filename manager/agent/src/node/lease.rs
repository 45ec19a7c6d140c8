//! That this node lives, and what it has: its Node and its Lease.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ankole_api::error::chain;
use ankole_api::object::Object;
use ankole_api::objects::node::{DiskStatus, Lease, LeaseSpec};
use ankole_api::objects::{Node as NodeObject, NodeSpec};
use ankole_store::StoreError;
use jiff::Timestamp;

use super::Node;
use crate::probe;

/// A manager takes a node for silent after twice that.
const RENEW: Duration = Duration::from_secs(3);
/// Free space is told in steps, so that a write to a volume isn't one to the store.
const STEPS: u64 = 100;

/// A manager believes a lease that it has seen to be renewed: at first that is soon.
const FIRST: Duration = Duration::from_millis(20);

/// Until it is dropped. A disk that hangs doesn't keep the node from saying that it lives.
pub(super) async fn renew(node: Arc<Node>) {
    tokio::join!(
        again_and_again(&node, "say that this node lives", say),
        again_and_again(&node, "say what this node has", say_disks),
    );
}

async fn again_and_again<Saying: Future<Output = Result<(), StoreError>>>(
    node: &Arc<Node>,
    what: &str,
    say: impl Fn(Arc<Node>) -> Saying,
) {
    let mut pause = FIRST;
    loop {
        if let Err(error) = say(Arc::clone(node)).await {
            tracing::warn!(node = node.name, error = chain(&error), "{what}");
        }
        tokio::time::sleep(pause).await;
        pause = RENEW.min(2 * pause);
    }
}

async fn say(node: Arc<Node>) -> Result<(), StoreError> {
    let store = &*node.store;
    let Ok(name) = node.name.parse::<ankole_api::Name>() else { return Ok(()) };
    let renewed = Timestamp::now();
    if store.find::<LeaseSpec>(&name).await?.is_none() {
        store.create::<LeaseSpec>(&Object::new(name, LeaseSpec { renewed })).await?;
        return Ok(());
    }
    let renew = |lease: &mut Lease| {
        lease.spec.renewed = renewed;
        Ok::<_, StoreError>(())
    };
    store.modify(&name, renew).await
}

async fn say_disks(node: Arc<Node>) -> Result<(), StoreError> {
    let store = &*node.store;
    let Ok(name) = node.name.parse::<ankole_api::Name>() else { return Ok(()) };
    if store.find::<NodeSpec>(&name).await?.is_none() {
        store.create(&NodeObject::new(name.clone(), NodeSpec::default())).await?;
    }
    let mut disks = BTreeMap::new();
    for disk in node.layout.disks() {
        let at = disk.clone();
        let looked = node.places.of_disk(disk, move || look(&at)).await;
        disks.extend(looked.ok().flatten().map(|status| (disk.clone(), status)));
    }
    store
        .modify_status::<NodeSpec, _, _>(&name, |_, status| {
            status.boot_id.clone_from(&node.boot_id);
            status.disks.clone_from(&disks);
            Ok::<_, StoreError>(())
        })
        .await
}

/// None: it can't be asked.
fn look(disk: &Path) -> Option<DiskStatus> {
    let capacity_bytes = probe::capacity_bytes(disk).ok()?;
    let step = (capacity_bytes / STEPS).max(1);
    let free_bytes = probe::free_bytes(disk).ok()? / step * step;
    Some(DiskStatus { capacity_bytes, free_bytes })
}
