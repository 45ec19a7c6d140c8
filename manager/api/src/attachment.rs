//! Tickets: who wants a volume to be attached. A volume is attached while it has any.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// One wish has one id, so that asking twice gives one ticket.
    pub id: String,
    pub kind: TicketKind,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TicketKind {
    /// Stays until the user takes it back, also through a restart of the manager.
    User,
    /// Of the object that is named like the ticket: its agent takes it back when that is over.
    Backup,
    Restore,
    /// Of one request: ends with it, at the latest when the manager starts anew.
    Snapshot,
}

/// The ticket that `ankole volume attach` makes.
pub const USER_TICKET: &str = "user";

impl fmt::Display for TicketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Snapshot => "snapshot",
        })
    }
}

/// What `PUT /v1/volumes/V/tickets/ID` takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachRequest {
    #[serde(default)]
    pub read_only: bool,
    /// The node that shall attach it; any, if there is none.
    #[serde(default)]
    pub node: Option<String>,
}
