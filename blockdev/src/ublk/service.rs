//! The engine's side of a queue: requests become calls of the disk, their results answers.
//!
//! Owns the holds of what was answered and not yet consumed by the kernel. Promises that each
//! request is answered at most once, and that nothing is answered after the disk has gone or after
//! a bug stopped a request half way: the kernel then gives it to the device's next server.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use tokio::task::{JoinError, JoinSet};

use super::link::{Answer, EngineEnd, Mailbox, Request, Turn};
use super::request::{Command, Errno};
use crate::device::{Ended, Ending};
use crate::disk::{Buffer, Disk, Hold};

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
        if self.ending.is_over() {
            return; // whatever this result is worth, the next server decides
        }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::sync::watch;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;
    use crate::disk::{Allocation, Durability, Extent};
    use crate::ublk::link::{self, QueueEnd, Tag};

    const SIZE_BYTES: u64 = 1 << 20;

    /// Reads as a pattern, counts the holds that it has given out, and fails as it is told.
    #[derive(Default)]
    struct Scripted {
        held: Rc<Cell<usize>>,
        write_errno: Cell<Option<i32>>,
        panics_on_flush: bool,
    }

    impl Scripted {
        fn hold(&self) -> Hold {
            struct Held(Rc<Cell<usize>>);
            impl Drop for Held {
                fn drop(&mut self) {
                    self.0.set(self.0.get() - 1);
                }
            }
            self.held.set(self.held.get() + 1);
            Hold::until_dropped(Held(self.held.clone()))
        }
    }

    impl Disk for Scripted {
        fn size_bytes(&self) -> u64 {
            SIZE_BYTES
        }
        async fn read(&self, at: Extent, mut into: Buffer) -> (io::Result<Hold>, Buffer) {
            into.fill(at.offset_bytes.to_le_bytes()[1]);
            (Ok(self.hold()), into)
        }
        async fn write(&self, _: Extent, _: Buffer, _: Durability) -> io::Result<Hold> {
            match self.write_errno.get() {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Ok(self.hold()),
            }
        }
        async fn flush(&self) -> io::Result<()> {
            assert!(!self.panics_on_flush, "a bug, as the test wants it");
            Ok(())
        }
        async fn trim(&self, _: Extent) -> io::Result<Hold> {
            Ok(self.hold())
        }
        async fn write_zeroes(&self, _: Extent, _: Durability) -> io::Result<Hold> {
            Ok(self.hold())
        }
        async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
            Ok(vec![(at, Allocation::Data)])
        }
        async fn resize(&self, _: u64) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
    }

    /// The kernel's side of a queue, played by the test.
    struct Queue {
        end: QueueEnd,
        ended: watch::Receiver<Option<Ended>>,
        held: Rc<Cell<usize>>,
    }

    impl Queue {
        fn serve(disk: Scripted) -> Self {
            let (end, engine_end) = link::pair(4).unwrap();
            let (ending, ended) = Ending::new();
            let held = disk.held.clone();
            spawn_local(serve(Rc::new(disk), engine_end, ending));
            Self { end, ended, held }
        }

        async fn send(&self, tag: u16, command: Command) {
            let data = Buffer::zeroed(command.data_bytes() as usize);
            let requests = vec![Request { tag: Tag(tag), command, data }];
            self.end.turns.send(Ok(Turn { requests, ..Default::default() })).await.unwrap();
        }

        async fn answer(&self) -> Answer {
            let mut answers = Vec::new();
            while answers.is_empty() {
                yield_now().await;
                self.end.mailbox.take_answers(&mut answers);
            }
            answers.pop().unwrap()
        }

        /// Lets everything run that can, and looks whether there was an answer.
        async fn is_silent(&self) -> bool {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut answers = Vec::new();
            self.end.mailbox.take_answers(&mut answers);
            answers.is_empty()
        }
    }

    fn run(story: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async { tokio::time::timeout(Duration::from_secs(60), story).await };
        LocalSet::new().block_on(&runtime, limited).expect("the story comes to its end");
    }

    fn read(offset_bytes: u64) -> Command {
        Command::Read(Extent { offset_bytes, length_bytes: 512 })
    }

    fn write() -> Command {
        Command::Write(Extent { offset_bytes: 0, length_bytes: 512 }, Durability::Volatile)
    }

    #[test]
    fn read_comes_back_with_its_data() {
        run(async {
            let queue = Queue::serve(Scripted::default());
            queue.send(2, read(512)).await;
            let answer = queue.answer().await;
            assert_eq!((answer.tag, &answer.outcome.unwrap()[..]), (Tag(2), &[2; 512][..]));
        });
    }

    /// If the range were free before the kernel has the answer, a newer write could be seen, then
    /// the server die, and the older request, given again, bring the older data back.
    #[test]
    fn range_is_held_until_the_kernel_has_consumed_the_answer() {
        run(async {
            let queue = Queue::serve(Scripted::default());
            queue.send(1, write()).await;
            assert!(queue.answer().await.outcome.is_ok());
            assert!(queue.is_silent().await);
            assert_eq!(queue.held.get(), 1, "answered, but not consumed");
            let committed = Turn { committed: vec![Tag(1)], ..Default::default() };
            queue.end.turns.send(Ok(committed)).await.unwrap();
            while queue.held.get() > 0 {
                yield_now().await;
            }
        });
    }

    #[test]
    fn error_of_the_disk_reaches_the_kernel_and_the_service_goes_on() {
        run(async {
            let disk =
                Scripted { write_errno: Cell::new(Some(libc::ENOSPC)), ..Default::default() };
            let queue = Queue::serve(disk);
            queue.send(0, write()).await;
            assert_eq!(queue.answer().await.outcome.unwrap_err(), Errno(libc::ENOSPC));
            queue.send(0, read(SIZE_BYTES)).await;
            assert_eq!(queue.answer().await.outcome.unwrap_err(), Errno(libc::EINVAL));
            queue.send(0, read(0)).await;
            assert!(queue.answer().await.outcome.is_ok());
        });
    }

    /// An error would reach the file system, which shuts down; without an answer the kernel gives
    /// the request to the next server.
    #[test]
    fn request_to_a_disk_that_has_gone_is_not_answered_at_all() {
        run(async {
            let errno = Cell::new(Some(libc::ESHUTDOWN));
            let mut queue = Queue::serve(Scripted { write_errno: errno, ..Default::default() });
            queue.send(0, write()).await;
            let ended = *queue.ended.wait_for(Option::is_some).await.unwrap();
            assert_eq!(ended, Some(Ended::DiskGone));
            queue.send(1, read(0)).await;
            assert!(queue.is_silent().await, "nor is any other request");
        });
    }

    /// As above: a bug of ours isn't the file system's error.
    #[test]
    fn request_that_panics_is_not_answered_and_ends_the_device() {
        run(async {
            let mut queue = Queue::serve(Scripted { panics_on_flush: true, ..Default::default() });
            queue.send(0, Command::Flush).await;
            let ended = *queue.ended.wait_for(Option::is_some).await.unwrap();
            assert_eq!(ended, Some(Ended::Failed));
            assert!(queue.is_silent().await);
        });
    }

    #[test]
    fn device_that_someone_stopped_is_told_apart_from_a_failure() {
        run(async {
            let Queue { end, mut ended, .. } = Queue::serve(Scripted::default());
            drop(end);
            let ended = *ended.wait_for(Option::is_some).await.unwrap();
            assert_eq!(ended, Some(Ended::Stopped));
        });
    }
}
