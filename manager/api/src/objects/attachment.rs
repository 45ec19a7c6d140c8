//! Who wants a volume to be attached, and where: one object for each volume, by its name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::attachment::TicketKind;
use crate::object::{Kind, Object, Spec};

pub type VolumeAttachment = Object<AttachmentSpec>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentSpec {
    /// By their ids: one wish has one, so that asking twice gives one ticket. The volume is attached
    /// while there is any.
    pub tickets: BTreeMap<String, Ticket>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    pub kind: TicketKind,
    /// Where; the manager chooses if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default)]
    pub read_only: bool,
}

impl Spec for AttachmentSpec {
    const KIND: Kind = Kind { name: "VolumeAttachment", plural: "volumeattachments" };
    type Status = ();
}

impl AttachmentSpec {
    pub fn is_read_only(&self) -> bool {
        self.tickets.values().all(|ticket| ticket.read_only)
    }

    /// Of those that name one. Users come before jobs.
    pub fn node(&self) -> Option<&str> {
        let mut tickets: Vec<_> = self.tickets.values().collect();
        tickets.sort_by_key(|ticket| ticket.kind != TicketKind::User);
        tickets.into_iter().find_map(|ticket| ticket.node.as_deref())
    }
}
