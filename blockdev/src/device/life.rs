//! The life of a device, which is the same for all drivers.
//!
//! A device outlives its server: when that dies, requests wait in the kernel, and the next server
//! takes the device over and gets them again.

use std::rc::Rc;

use tokio::sync::watch;

/// Where a device comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A new one, with this number or one that the kernel chooses.
    New { id: Option<u32> },
    /// One whose server has died or left it. Its parameters stay as they are.
    Recovery { id: u32 },
}

/// Why a device is no longer served, when we didn't ask for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Someone stopped or deleted the device.
    Stopped,
    /// The disk said `ESHUTDOWN`. Requests stay with the kernel: end this process, so that the
    /// next one takes the device over.
    DiskGone,
    /// A queue or a request broke; see the log. As with `DiskGone`, end this process.
    Failed,
}

/// Tells the first reason for which a device isn't served any more.
#[derive(Clone)]
pub(crate) struct Ending(Rc<watch::Sender<Option<Ended>>>);

impl Ending {
    pub(crate) fn new() -> (Self, watch::Receiver<Option<Ended>>) {
        let (sender, receiver) = watch::channel(None);
        (Self(Rc::new(sender)), receiver)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.borrow().is_some()
    }

    pub(crate) fn report(&self, reason: Ended) {
        self.0.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(reason);
            is_first
        });
    }
}

/// Waits for the reason.
pub(crate) async fn ended(ending: &watch::Receiver<Option<Ended>>) -> Ended {
    let mut ending = ending.clone();
    // The other end has gone without a word only if its tasks were aborted.
    let reason = ending.wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
    reason.unwrap_or(Ended::Failed)
}
