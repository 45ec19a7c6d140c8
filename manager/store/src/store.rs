//! What every backend does.

use std::sync::Arc;

use ankole_api::object::{Kind, ResourceVersion};
use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::{Precondition, Raw, Selector, StoreError};

/// Objects as JSON; typed calls are built on these ([`crate::Listed`] and the methods beside it).
///
/// Which reads are which: `get_raw` and `list_raw` see every write that was answered before they were
/// called, whoever wrote it (in Kubernetes a quorum read, without `resourceVersion`). A watch comes after:
/// what it has told was true, and something newer may be by now. Whoever decides on a watch (or on a
/// cache that is kept by one) is saved by the version that its write names.
///
/// A call that is dropped halfway may still come true.
#[async_trait]
pub trait Store: Send + Sync {
    async fn get_raw(&self, kind: Kind, name: &str) -> Result<Option<Arc<Raw>>, StoreError>;

    /// By name, as of one moment.
    async fn list_raw(&self, kind: Kind, selector: &Selector) -> Result<List, StoreError>;

    /// Gives it uid, version, generation 1 and the time. The status isn't taken.
    async fn create_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError>;

    /// Spec and metadata (but uid, generation and times) in place of the version that it names; the
    /// status isn't taken. Without its last finalizer an object that was deleted goes: the answer is
    /// how it was last.
    async fn replace_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError>;

    /// The status of the version that it names; the rest isn't taken.
    async fn replace_status_raw(&self, kind: Kind, object: Raw) -> Result<Arc<Raw>, StoreError>;

    /// None: it is gone. One with finalizers is ending, and is the answer.
    async fn delete_raw(
        &self,
        kind: Kind,
        name: &str,
        precondition: &Precondition,
    ) -> Result<Option<Arc<Raw>>, StoreError>;

    /// All changes after that version (of a list, or of an event), in their order, each object's
    /// versions possibly not all. What doesn't match any more is told as deleted.
    async fn watch_raw(
        &self,
        kind: Kind,
        selector: &Selector,
        from: &ResourceVersion,
    ) -> Result<Events, StoreError>;
}

pub type Events = BoxStream<'static, Event>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Applied(Arc<Raw>),
    /// As it was last, or as it is now that the selector no longer has it.
    Deleted(Arc<Raw>),
    /// Something was missed: list again, and watch from there. It is the last event; a stream that
    /// ends without it means the same.
    Resync,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Where a watch goes on.
    pub version: ResourceVersion,
    pub objects: Vec<Arc<Raw>>,
    pub unreadable: Vec<Unreadable>,
}

/// What is stored isn't even an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Of its kind.
    pub plural: String,
    pub name: String,
    pub version: ResourceVersion,
    pub why: String,
    /// As it is stored.
    pub text: Arc<str>,
}
