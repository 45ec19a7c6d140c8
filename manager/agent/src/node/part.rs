//! A task: passes over one part, for as long as there is anything of it.

use std::future::{Future, pending};
use std::time::Duration;

use ankole_api::ApiError;
use ankole_api::error::chain;
use ankole_store::StoreError;
use tokio::sync::mpsc;

use super::Told;
use crate::backoff::Backoff;

pub(super) trait Part: Send {
    fn name(&self) -> String;
    fn hear(&mut self, told: Told);
    /// When something is new of which nobody tells it. It may be dropped halfway.
    fn news(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }
    /// At all parts of the node.
    fn look_at_all(&self);
    /// When to look again at the latest; zero: at once. None: nothing is left of it.
    fn pass(
        &mut self,
        back: &mpsc::WeakUnboundedSender<Told>,
    ) -> impl Future<Output = Result<Option<Duration>, PassError>> + Send;
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{action}")]
    Action { action: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// For a size that the disks can't have.
    #[error(transparent)]
    NoRoom(ApiError),
    #[error("{what}")]
    Look { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the pass panicked")]
    Panicked,
}

/// `back` is how work that was begun says later what became of it.
pub(super) async fn run(
    mut part: impl Part,
    back: mpsc::WeakUnboundedSender<Told>,
    mut hears: mpsc::UnboundedReceiver<Told>,
) {
    let mut failing = Backoff::default();
    loop {
        let look_again = match part.pass(&back).await {
            Ok(Some(look_again)) => {
                failing = Backoff::default();
                look_again
            }
            Ok(None) => {
                // Whoever tells something from now on starts a new task; what was told is looked at.
                hears.close();
                if hears.try_recv().is_ok() {
                    part.look_at_all();
                }
                return;
            }
            Err(error) => {
                let (part, error) = (part.name(), chain(&error));
                tracing::warn!(part, error, "will be tried again");
                failing.failed_now()
            }
        };
        tokio::select! {
            told = hears.recv() => match told {
                Some(told) => part.hear(told),
                None => return,
            },
            () = part.news() => {}
            () = tokio::time::sleep(look_again) => {}
        }
        while let Ok(told) = hears.try_recv() {
            part.hear(told);
        }
    }
}
