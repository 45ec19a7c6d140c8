//! Where new replicas go: on as many different nodes as there are, then on different disks, the
//! emptiest first. Volumes are sparse, so what is free now is only an order of preference.

use std::path::PathBuf;

use super::{Known, Life};

/// Node and disk for each of `count` more replicas, or why there is none.
pub(super) fn places(known: &Known, count: usize) -> Result<Vec<(String, PathBuf)>, String> {
    let ready =
        known.nodes.iter().filter(|(_, node)| node.life == Life::Ready && node.takes_replicas);
    let disks: Vec<_> = ready
        .flat_map(|(name, node)| node.disks.iter().map(move |(disk, free)| (name, disk, *free)))
        .collect();
    let mut used: Vec<(String, PathBuf)> = Vec::new();
    used.extend(known.replicas.iter().map(|it| (it.spec.node.clone(), it.spec.disk.clone())));
    let before = used.len();
    for _ in 0..count {
        let crowd = |node: &str, disk: &PathBuf| {
            let on_node = used.iter().filter(|(it, _)| it == node).count();
            let on_disk = used.iter().filter(|(it, folder)| it == node && folder == disk).count();
            (on_node, on_disk)
        };
        let best = disks.iter().min_by_key(|(node, disk, free)| {
            (crowd(node, disk), std::cmp::Reverse(*free), (*node).clone(), (*disk).clone())
        });
        let Some((node, disk, _)) = best else {
            return Err("no node that is ready has a disk for its replicas".into());
        };
        used.push(((*node).clone(), (*disk).clone()));
    }
    Ok(used.split_off(before))
}
