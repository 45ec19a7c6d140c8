//! The node as it is shown.

use super::Service;
use crate::agent::probe;
use crate::api::ApiError;
use crate::api::node::{DiskView, NodeView};
use ankole_api::objects::ReplicaSpec;

impl Service {
    pub fn node(&self) -> Result<NodeView, ApiError> {
        let agent = self.agents.first();
        let disks = agent.layout.disks().iter();
        let mut disks: Vec<_> = disks
            .map(|path| DiskView {
                path: path.clone(),
                capacity_bytes: probe::capacity_bytes(path).ok(),
                free_bytes: probe::free_bytes(path).ok(),
                used_bytes: 0,
                replicas: 0,
            })
            .collect();
        let replicas = self.objects.readable::<ReplicaSpec>()?;
        let here = replicas.iter().filter(|replica| replica.spec.node == agent.name);
        let directories: Vec<_> = here.map(|replica| replica.spec.directory()).collect();
        let used = self.usage.of(&directories);
        for directory in directories {
            let is_there = |disk: &&mut DiskView| directory.starts_with(&disk.path);
            let Some(disk) = disks.iter_mut().find(is_there) else { continue };
            disk.used_bytes += used.get(&directory).unwrap_or(&0);
            disk.replicas += 1;
        }
        let frontends = agent.frontends.capabilities();
        Ok(NodeView { name: agent.name.clone(), frontends, disks })
    }
}
