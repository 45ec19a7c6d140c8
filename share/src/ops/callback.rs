//! Calls to clients, on their connections (RFC 8881, 20.9, 20.11).

use super::Export;
use crate::state::{Callback, ConnectionId, Notice};
use crate::wire::callback::{Head, decode_reply, encode_notify_lock};
use crate::wire::xdr::Malformed;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Takes a message that is to be sent, and doesn't wait for that.
pub type Send = dyn Fn(Vec<u8>) + std::marker::Send + Sync;

#[derive(Default)]
pub(super) struct WaysBack {
    connections: Mutex<HashMap<ConnectionId, Arc<Send>>>,
    last: AtomicU64,
}

impl WaysBack {
    pub fn send(&self, callback: &Callback) {
        let Some(send) = self.lock().get(&callback.connection).cloned() else { return };
        let Notice { client, file, owner } = &callback.notice;
        let head = Head {
            xid: callback.xid,
            program: callback.program,
            auth: callback.auth,
            minor_version: callback.minor_version,
            session: callback.session,
            sequence: callback.sequence,
        };
        send(encode_notify_lock(&head, *file, *client, owner));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Send>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Export {
    /// A client can be called on this connection, until [`Self::disconnected`].
    pub fn connected(&self, send: Arc<Send>) -> ConnectionId {
        let id = ConnectionId(self.ways_back.last.fetch_add(1, Ordering::SeqCst));
        self.ways_back.lock().insert(id, send);
        id
    }

    pub fn disconnected(&self, id: ConnectionId) {
        self.ways_back.lock().remove(&id);
        self.with_state(|state| state.connection_ended(id));
    }

    /// The reply to a call of ours.
    pub fn called_back(&self, on: ConnectionId, record: &[u8]) -> Result<(), Malformed> {
        let (xid, status) = decode_reply(record)?;
        self.with_state(|state| state.answered(on, xid, status));
        Ok(())
    }
}
