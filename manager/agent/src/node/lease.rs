//! That this node lives, and what it has: its Node and its Lease.

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

/// Until it is dropped.
pub(super) async fn renew(node: Arc<Node>) {
    let mut pause = FIRST;
    loop {
        if let Err(error) = say(&node).await {
            tracing::warn!(node = node.name, error = chain(&error), "say that this node lives");
        }
        tokio::time::sleep(pause).await;
        pause = RENEW.min(2 * pause);
    }
}

async fn say(node: &Arc<Node>) -> Result<(), StoreError> {
    let store = &*node.store;
    let Ok(name) = node.name.parse::<ankole_api::Name>() else { return Ok(()) };
    let renewed = Timestamp::now();
    match store.find::<LeaseSpec>(&name).await? {
        None => drop(
            store.create::<LeaseSpec>(&Object::new(name.clone(), LeaseSpec { renewed })).await?,
        ),
        Some(_) => {
            store
                .modify(&name, |lease: &mut Lease| {
                    lease.spec.renewed = renewed;
                    Ok::<_, StoreError>(())
                })
                .await?;
        }
    }
    if store.find::<NodeSpec>(&name).await?.is_none() {
        store.create(&NodeObject::new(name.clone(), NodeSpec::default())).await?;
    }
    let looking = Arc::clone(node);
    let look = move || {
        let disks = looking.layout.disks().iter().filter_map(|disk| {
            let capacity_bytes = probe::capacity_bytes(disk).ok()?;
            let step = (capacity_bytes / STEPS).max(1);
            let free_bytes = probe::free_bytes(disk).ok()? / step * step;
            Some((disk.clone(), DiskStatus { capacity_bytes, free_bytes }))
        });
        disks.collect()
    };
    let Ok(disks) = tokio::task::spawn_blocking(look).await else { return Ok(()) };
    store
        .modify_status::<NodeSpec, _, _>(&name, |_, status| {
            status.boot_id.clone_from(&node.boot_id);
            status.disks.clone_from(&disks);
            Ok::<_, StoreError>(())
        })
        .await
}
