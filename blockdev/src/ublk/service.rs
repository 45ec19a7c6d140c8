//! The engine's side of a queue: requests become calls of the disk, their results answers.
//!
//! Owns the holds of what was answered and not yet consumed by the kernel. Promises that each
//! request is answered at most once, and that nothing is answered after the disk has gone or after
//! a bug stopped a request half way: the kernel then gives it to the device's next server.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::link::{Answer, EngineEnd, Mailbox, Request, Turn};
use super::request::{Command, Errno};
use crate::disk::{Buffer, Disk, Hold};

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
pub(super) struct Ending(Rc<watch::Sender<Option<Ended>>>);

impl Ending {
    pub(super) fn new() -> (Self, watch::Receiver<Option<Ended>>) {
        let (sender, receiver) = watch::channel(None);
        (Self(Rc::new(sender)), receiver)
    }

    fn report(&self, reason: Ended) {
        self.0.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(reason);
            is_first
        });
    }
}

/// Serves a queue until its thread ends, and then until the last request that it sent is done.
pub(super) async fn serve<D: Disk + 'static>(disk: Rc<D>, mut link: EngineEnd, ending: Ending) {
    let holds = std::iter::repeat_with(Hold::default).take(link.depth).collect();
    let desk = Rc::new(Desk { disk, mailbox: link.mailbox, holds: RefCell::new(holds), ending });
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            turn = link.turns.recv() => match turn {
                Some(Ok(turn)) => desk.take(turn, &mut running),
                Some(Err(error)) => {
                    tracing::error!(%error, "a ublk queue failed");
                    desk.ending.report(Ended::Failed);
                }
                None => break,
            },
            Some(done) = running.join_next() => desk.look_at(done),
        }
    }
    desk.ending.report(Ended::Stopped);
    while let Some(done) = running.join_next().await {
        desk.look_at(done);
    }
}

struct Desk<D> {
    disk: Rc<D>,
    mailbox: std::sync::Arc<Mailbox>,
    /// By tag.
    holds: RefCell<Vec<Hold>>,
    ending: Ending,
}

impl<D: Disk + 'static> Desk<D> {
    fn take(self: &Rc<Self>, turn: Turn, running: &mut JoinSet<()>) {
        for tag in turn.committed {
            // Moved out first: what it frees may run code that comes back here.
            let hold = std::mem::take(&mut self.holds.borrow_mut()[tag.index()]);
            drop(hold);
        }
        for request in turn.requests {
            running.spawn_local(self.clone().handle(request));
        }
    }

    async fn handle(self: Rc<Self>, request: Request) {
        let Request { tag, command, data } = request;
        let (result, data) = perform(&*self.disk, command, data).await;
        let outcome = match result {
            Ok(hold) => {
                self.holds.borrow_mut()[tag.index()] = hold;
                Ok(data)
            }
            Err(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => {
                return self.ending.report(Ended::DiskGone);
            }
            Err(error) => {
                tracing::warn!(?command, %error, "a request over ublk failed");
                Err(Errno::from(&error))
            }
        };
        self.mailbox.answer(Answer { tag, outcome });
    }

    fn look_at(&self, done: Result<(), JoinError>) {
        if let Err(error) = done {
            tracing::error!(%error, "a request over ublk was not carried out");
            self.ending.report(Ended::Failed);
        }
    }
}

async fn perform<D: Disk>(disk: &D, command: Command, data: Buffer) -> (io::Result<Hold>, Buffer) {
    if let Err(Errno(errno)) = command.check(disk.size_bytes(), disk.is_read_only()) {
        return (Err(io::Error::from_raw_os_error(errno)), data);
    }
    let result = match command {
        Command::Read(at) => return disk.read(at, data).await,
        Command::Write(at, durability) => disk.write(at, data, durability).await,
        Command::Flush => disk.flush().await.map(|()| Hold::none()),
        Command::Trim(at) => disk.trim(at).await,
        Command::WriteZeroes(at, durability) => disk.write_zeroes(at, durability).await,
    };
    (result, Buffer::zeroed(0))
}
