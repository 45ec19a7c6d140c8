//! Opening the standalone's store: also one of a version before, and one that is made of its copy.

mod believed;
mod older;

use ankole_replica::inspect::{fence, inspect};
use ankole_store::EmbeddedStore;
use ankole_store::embedded::{OpenError, Opening, Recover};
use jiff::Timestamp;

use crate::agent::{Layout, replica_folders};
use crate::api::objects::of_one_node::OneNode;

/// `node` is the name of this machine's. Looks into directories of replicas where it has to.
pub fn open(
    layout: &Layout,
    node: &str,
    recover: Option<Recover>,
) -> Result<EmbeddedStore, OpenError> {
    let folders = replica_folders::all(layout.disks());
    let told = || format!("the disks have {}", replica_folders::Named(&folders));
    let one_node = OneNode {
        name: node,
        socket: &|volume, replica| layout.replica_socket(volume, replica),
        found: &|directory| inspect(directory).replica().map(|replica| replica.incarnation),
        now: Timestamp::now(),
    };
    let opening = Opening {
        elsewhere: (!folders.is_empty()).then(told),
        recover,
        believable: &|objects| believed::believed(objects, node, &fence),
        convert: Some(&|older| Ok(older::convert(older, &one_node)?)),
    };
    EmbeddedStore::open_as(&layout.store(), &opening)
}
