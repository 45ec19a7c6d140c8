//! The node as it is shown.

use super::Service;
use crate::agent::probe;
use crate::api::ApiError;
use crate::api::node::{DiskView, NodeView};
use crate::api::volume::Volume;

impl Service {
    pub fn node(&self) -> Result<NodeView, ApiError> {
        let disks = self.context.layout.disks().iter();
        let mut disks: Vec<_> = disks
            .map(|path| DiskView {
                path: path.clone(),
                capacity_bytes: probe::capacity_bytes(path).ok(),
                free_bytes: probe::free_bytes(path).ok(),
                used_bytes: 0,
                replicas: 0,
            })
            .collect();
        for volume in self.context.store.readable::<Volume>()? {
            let used = self.context.board.get(&volume.name).map(|observed| observed.used_bytes);
            for place in &volume.status.places {
                let is_here = |disk: &&mut DiskView| place.directory.starts_with(&disk.path);
                let Some(disk) = disks.iter_mut().find(is_here) else { continue };
                let of_replica = used.as_ref().and_then(|used| used.get(&place.replica));
                disk.used_bytes += of_replica.unwrap_or(&0);
                disk.replicas += 1;
            }
        }
        let frontends = self.context.frontends.capabilities();
        Ok(NodeView { name: self.context.node.clone(), frontends, disks })
    }
}
