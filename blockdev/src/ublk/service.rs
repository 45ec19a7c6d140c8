//! Requests of the kernel become calls of the disk, and their results answers.
//!
//! Owns the holds of what was answered and not yet consumed by the kernel. Promises that each
//! request is answered at most once, and that nothing is answered after the disk has gone or after
//! a bug stopped a request half way: the kernel then gives it to the device's next server.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::request::{Answer, Command, Errno, Request, Tag};
use crate::device::{Ended, Ending};
use crate::disk::{Buffer, Disk, Hold};

/// Whose requests are served.
pub(super) trait Kernel {
    /// Gives the answers and takes what is asked now, without waiting. When it returns, the kernel
    /// has consumed the answers, and none is left. `None` when the device has been stopped.
    fn exchange(&mut self, answers: &mut Vec<Answer>) -> io::Result<Option<Vec<Request>>>;

    /// Waits until there may be requests to take.
    async fn called(&self) -> io::Result<()>;
}

/// Serves the kernel until the device is stopped, breaks, or is to be left, and then until the last
/// call of the disk has returned.
pub(super) async fn serve<D: Disk>(
    disk: Rc<D>,
    mut kernel: impl Kernel,
    leave: impl Future<Output = ()>,
    ending: Ending,
) {
    let served = serve_requests(&*disk, &mut kernel, leave, &ending);
    if AssertUnwindSafe(served).catch_unwind().await.is_err() {
        // What else the disk was doing was dropped with it, and is unanswered too.
        tracing::error!("a request over ublk was not carried out");
        ending.report(Ended::Failed);
    }
}

/// One whose call of the disk has returned.
struct Done {
    tag: Tag,
    command: Command,
    result: io::Result<Hold>,
    /// What was read, or an empty buffer.
    data: Buffer,
}

async fn serve_requests<D: Disk>(
    disk: &D,
    kernel: &mut impl Kernel,
    leave: impl Future<Output = ()>,
    ending: &Ending,
) {
    let mut leave = pin!(leave);
    let mut running = FuturesUnordered::new();
    let mut answers = Vec::new();
    let mut holds = Vec::new();
    let result: io::Result<()> = loop {
        match kernel.exchange(&mut answers) {
            Ok(Some(requests)) => {
                running.extend(requests.into_iter().map(|request| carry_out(disk, request)));
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
        holds.clear();
        let mut next = tokio::select! {
            biased;
            () = &mut leave => break Ok(()),
            Some(done) = running.next() => Some(done),
            called = kernel.called() => match called {
                Ok(()) => None,
                Err(error) => break Err(error),
            }
        };
        // All that are done by now, so that one exchange has them together.
        while let Some(done) = next {
            if !ending.is_over() {
                answers.extend(answer(done, &mut holds, ending));
            }
            next = running.next().now_or_never().flatten();
        }
    };
    match result {
        Ok(()) => ending.report(Ended::Stopped),
        Err(error) => {
            tracing::error!(%error, "a ublk queue failed");
            ending.report(Ended::Failed);
        }
    }
    // The next server decides what these results are worth.
    while running.next().await.is_some() {}
}

async fn carry_out<D: Disk>(disk: &D, request: Request) -> Done {
    let Request { tag, command, data } = request;
    let (result, data) = perform(disk, command, data).await;
    Done { tag, command, result, data }
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

/// None if the request is left to the next server.
fn answer(done: Done, holds: &mut Vec<Hold>, ending: &Ending) -> Option<Answer> {
    let Done { tag, command, result, data } = done;
    let outcome = match result {
        Ok(hold) => {
            holds.push(hold);
            Ok(data)
        }
        Err(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => {
            ending.report(Ended::DiskGone);
            return None;
        }
        Err(error) => {
            tracing::warn!(?command, %error, "a request over ublk failed");
            Err(Errno::from(&error))
        }
    };
    Some(Answer { tag, outcome })
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    use tokio::sync::{Notify, oneshot, watch};
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;
    use crate::disk::{Allocation, Durability, Extent};

    const SIZE_BYTES: u64 = 1 << 20;

    /// Reads as a pattern, counts the holds that it has given out, and does as it is told.
    #[derive(Default)]
    struct Scripted {
        held: Rc<Cell<usize>>,
        write_errno: Cell<Option<i32>>,
        panics_on_flush: bool,
        /// A trim waits for it.
        trim: Rc<Notify>,
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
            self.trim.notified().await;
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

    /// The kernel, played by the test.
    #[derive(Default)]
    struct Played {
        asked: RefCell<Vec<Request>>,
        answered: RefCell<Vec<Answer>>,
        bell: Notify,
        is_stopped: Cell<bool>,
        held: Rc<Cell<usize>>,
        /// How much was held while answers were consumed.
        held_meanwhile: Cell<usize>,
    }

    impl Kernel for Rc<Played> {
        fn exchange(&mut self, answers: &mut Vec<Answer>) -> io::Result<Option<Vec<Request>>> {
            if !answers.is_empty() {
                self.held_meanwhile.set(self.held.get());
            }
            self.answered.borrow_mut().append(answers);
            Ok((!self.is_stopped.get()).then(|| self.asked.take()))
        }
        async fn called(&self) -> io::Result<()> {
            self.bell.notified().await;
            Ok(())
        }
    }

    struct Story {
        kernel: Rc<Played>,
        ended: watch::Receiver<Option<Ended>>,
        leave: Option<oneshot::Sender<()>>,
        service: tokio::task::JoinHandle<()>,
    }

    impl Story {
        fn begin(disk: Scripted) -> Self {
            let kernel = Rc::new(Played { held: disk.held.clone(), ..Default::default() });
            let (ending, ended) = Ending::new();
            let (leave, told) = oneshot::channel();
            let serving = serve(Rc::new(disk), kernel.clone(), told.map(drop), ending);
            Self { kernel, ended, leave: Some(leave), service: spawn_local(serving) }
        }

        fn ask(&self, tag: u16, command: Command) {
            let data = Buffer::zeroed(command.data_bytes() as usize);
            self.kernel.asked.borrow_mut().push(Request { tag: Tag(tag), command, data });
            self.kernel.bell.notify_one();
        }

        async fn answer(&self) -> Answer {
            loop {
                let answer = self.kernel.answered.borrow_mut().pop();
                match answer {
                    Some(answer) => return answer,
                    None => yield_now().await,
                }
            }
        }

        /// Lets everything run that can, and looks whether there was an answer.
        async fn is_silent(&self) -> bool {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.kernel.answered.borrow().is_empty()
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

    fn trim() -> Command {
        Command::Trim(Extent { offset_bytes: 0, length_bytes: 4096 })
    }

    #[test]
    fn read_comes_back_with_its_data() {
        run(async {
            let story = Story::begin(Scripted::default());
            story.ask(2, read(512));
            let answer = story.answer().await;
            assert_eq!((answer.tag, &answer.outcome.unwrap()[..]), (Tag(2), &[2; 512][..]));
        });
    }

    #[test]
    fn a_request_that_takes_long_holds_up_no_other() {
        run(async {
            let disk = Scripted::default();
            let trimmed = disk.trim.clone();
            let story = Story::begin(disk);
            story.ask(0, trim());
            assert!(story.is_silent().await);
            story.ask(1, read(0));
            assert_eq!(story.answer().await.tag, Tag(1));
            trimmed.notify_one();
            assert_eq!(story.answer().await.tag, Tag(0));
        });
    }

    /// If the range were free before the kernel has the answer, a newer write could be seen, then
    /// the server die, and the older request, given again, bring the older data back.
    #[test]
    fn range_is_held_until_the_kernel_has_consumed_the_answer() {
        run(async {
            let story = Story::begin(Scripted::default());
            story.ask(1, write());
            assert!(story.answer().await.outcome.is_ok());
            assert_eq!(story.kernel.held_meanwhile.get(), 1, "answered, but not consumed");
            while story.kernel.held.get() > 0 {
                yield_now().await;
            }
        });
    }

    #[test]
    fn error_of_the_disk_reaches_the_kernel_and_the_service_goes_on() {
        run(async {
            let disk =
                Scripted { write_errno: Cell::new(Some(libc::ENOSPC)), ..Default::default() };
            let story = Story::begin(disk);
            story.ask(0, write());
            assert_eq!(story.answer().await.outcome.unwrap_err(), Errno(libc::ENOSPC));
            story.ask(0, read(SIZE_BYTES));
            assert_eq!(story.answer().await.outcome.unwrap_err(), Errno(libc::EINVAL));
            story.ask(0, read(0));
            assert!(story.answer().await.outcome.is_ok());
        });
    }

    /// An error would reach the file system, which shuts down; without an answer the kernel gives
    /// the request to the next server.
    #[test]
    fn request_to_a_disk_that_has_gone_is_not_answered_at_all() {
        run(async {
            let errno = Cell::new(Some(libc::ESHUTDOWN));
            let mut story = Story::begin(Scripted { write_errno: errno, ..Default::default() });
            story.ask(0, write());
            let ended = *story.ended.wait_for(Option::is_some).await.unwrap();
            assert_eq!(ended, Some(Ended::DiskGone));
            story.ask(1, read(0));
            assert!(story.is_silent().await, "nor is any other request");
        });
    }

    /// As above: a bug of ours isn't the file system's error.
    #[test]
    fn request_that_panics_is_not_answered_and_ends_the_device() {
        run(async {
            let mut story = Story::begin(Scripted { panics_on_flush: true, ..Default::default() });
            story.ask(0, Command::Flush);
            let ended = *story.ended.wait_for(Option::is_some).await.unwrap();
            assert_eq!(ended, Some(Ended::Failed));
            story.ask(1, read(0));
            assert!(story.is_silent().await);
        });
    }

    /// Its result is for the next server to find out; but the disk is in use until then.
    #[test]
    fn a_device_that_is_left_waits_for_the_disk_and_answers_nothing_more() {
        run(async {
            let disk = Scripted::default();
            let trimmed = disk.trim.clone();
            let mut story = Story::begin(disk);
            story.ask(0, trim());
            assert!(story.is_silent().await);
            drop(story.leave.take());
            assert!(story.is_silent().await);
            assert!(!story.service.is_finished());
            trimmed.notify_one();
            (&mut story.service).await.unwrap();
            assert!(story.is_silent().await);
            assert_eq!(story.kernel.held.get(), 0);
        });
    }

    #[test]
    fn device_that_someone_stopped_is_told_apart_from_a_failure() {
        run(async {
            let mut story = Story::begin(Scripted::default());
            story.kernel.is_stopped.set(true);
            story.kernel.bell.notify_one();
            let ended = *story.ended.wait_for(Option::is_some).await.unwrap();
            assert_eq!(ended, Some(Ended::Stopped));
        });
    }
}
