//! The end of all of a node at once, as somebody asked for who can't wait. Its agent has ended before.

use ankole_api::error::chain;
use ankole_api::objects::Volume;

use super::Node;
use super::engine::{own_device, stop_device};
use crate::kill;

/// Devices are stopped once they have no engine, so that their clients get errors and don't hang.
pub fn at_once(node: &Node, volumes: &[Volume]) {
    kill::engines(&*node.supervisor);
    for volume in volumes {
        let stopped = own_device(node, volume)
            .and_then(|device| device.map_or(Ok(()), |device| stop_device(node, volume, device)));
        if let Err(error) = stopped {
            let error = chain(&error);
            tracing::warn!(volume = %volume.name(), %error, "its device can't be stopped");
        }
    }
    // Also what a pass that was on its way has started meanwhile.
    kill::all(&*node.supervisor);
}
