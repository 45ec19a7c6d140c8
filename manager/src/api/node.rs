//! The node that a standalone runs on, as it is shown: `GET /v1/node`.

use serde::{Deserialize, Serialize};

use crate::agent::probe::Capability;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    pub name: String,
    /// Ways to show a volume, best first, as they were a few seconds ago.
    pub frontends: Vec<Capability>,
}
