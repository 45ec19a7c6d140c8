//! The kernel's side of a device's queue: takes its requests, and commits their answers.
//!
//! Owns the queue's ring, which is the library's one for this thread, and the copying of data between
//! the kernel's pages and our buffers. Promises that the kernel has consumed the answers when
//! [`exchange`](Queue::exchange) returns: a commit is executed within the system call that submits
//! it. Dropping it leaves the requests that weren't answered to the device's next server.
//!
//! One exchange is a system call for each arrow at most, however many requests it carries. Requests
//! for whose data there is no memory wait in the kernel's pages, so that a volume's memory is bounded.
//!
//! ```text
//!  answers ─▶ data copied out ─▶ commits submitted, completions ─▶ data copied in ─▶ requests
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use libublk::io::{BufDesc, BufDescList, UblkDev, UblkIOCtx, UblkQueue, with_task_io_ring_mut};
use libublk::sys::{UBLK_IO_RES_ABORT, UBLK_IO_RES_OK};
use libublk::{UblkError as LibraryError, UblkIORes};
use tokio::io::unix::AsyncFd;

use super::copy::Copier;
use super::error::cause;
use super::request::{Answer, Command, Errno, Request, Tag, result_code};
use super::service::Kernel;
use super::sys;
use crate::disk::Buffer;

/// The only one: the engine is one thread, which nothing makes faster that comes before it.
const INDEX: u16 = 0;
/// Data of the requests that the engine has at a time, in bytes, more than one request's most: as
/// much as is kept for them (see [`Buffer::for_data`]).
const DATA_BYTES_MAX: u64 = 16 << 20;

pub(super) struct Queue<'a> {
    /// Says when the ring has completions.
    ring: AsyncFd<OwnedFd>,
    /// None only while it is dropped.
    queue: Option<UblkQueue<'a>>,
    /// The kernel has given every command back.
    is_stopped: bool,
    copier: Copier,
    room: Room,
    /// By tag, what the engine is doing.
    in_hand: Vec<Option<Command>>,
}

impl<'a> Queue<'a> {
    /// Gives the kernel the queue's first commands. At most one for each thread, which has to serve
    /// it too.
    pub(super) fn open(device: &'a UblkDev) -> io::Result<Self> {
        let queue = UblkQueue::new(INDEX, device).map_err(cause)?;
        let queue =
            queue.submit_fetch_commands_unified(BufDescList::Slices(None)).map_err(cause)?;
        let depth = device.dev_info.queue_depth;
        let mut queue = Self {
            ring: sys::ring()?,
            queue: Some(queue),
            is_stopped: false,
            copier: Copier::new(sys::character_device(device)?, depth)?,
            room: Room::default(),
            in_hand: vec![None; usize::from(depth)],
        };
        // A command that the kernel refuses comes back at once; a request, once the device is started.
        let early = queue.reap()?;
        debug_assert!(early.is_none_or(|tags| tags.is_empty()));
        Ok(queue)
    }

    fn queue(&self) -> &UblkQueue<'a> {
        self.queue.as_ref().expect("it is there until it is dropped")
    }

    /// Hands over what is queued, and reads the completions that there are. `None` when the device
    /// has been stopped.
    fn reap(&mut self) -> io::Result<Option<Vec<Tag>>> {
        let mut requested = Vec::new();
        let mut refused = None;
        let take = |user_data, completion: &io_uring::cqueue::Entry, _| match completion.result() {
            code if code == UBLK_IO_RES_OK as i32 => {
                requested.push(Tag(UblkIOCtx::user_data_to_tag(user_data) as u16)); // 16 bits by its making
            }
            UBLK_IO_RES_ABORT => {} // the library counts it, and says when all have come
            code => refused = Some(code),
        };
        match self.queue().flush_and_wake_io_tasks(take, 0) {
            Err(LibraryError::QueueIsDown) => {
                self.is_stopped = true;
                return Ok(None);
            }
            Err(error) => match cause(error) {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
            Ok(_) => {}
        }
        match refused {
            Some(code) => Err(io::Error::from_raw_os_error(code.abs())),
            None => Ok(Some(requested)),
        }
    }

    /// Takes the requests' data from the kernel. What can't be taken is answered here.
    fn accept(&mut self, tags: &[Tag]) -> Vec<Request> {
        let mut requests = Vec::with_capacity(tags.len());
        let (mut writing, mut moves) = (Vec::new(), Vec::new());
        for &tag in tags {
            match Command::parse(self.queue().get_iod(tag.0)) {
                Ok(command) => self.room.wait((tag, command)),
                Err(errno) => self.commit(tag, Err(errno)),
            }
        }
        while let Some((tag, command)) = self.room.enter() {
            let length_bytes = usize::try_from(command.data_bytes());
            let data = Buffer::for_data(length_bytes.expect("parse() has bounded it"));
            if let Command::Write(..) = command {
                writing.push((tag, command));
                moves.push((data_offset(tag), data));
            } else {
                requests.push(Request { tag, command, data });
            }
        }
        let results = self.copier.take(&mut moves);
        for (((tag, command), (_, data)), result) in writing.into_iter().zip(moves).zip(results) {
            match or_log(tag, result, "take write data") {
                Ok(()) => requests.push(Request { tag, command, data }),
                Err(errno) => {
                    self.room.leave(command);
                    self.commit(tag, Err(errno));
                }
            }
        }
        for request in &requests {
            self.in_hand[request.tag.index()] = Some(request.command);
        }
        requests
    }

    /// Queues the answers; the next `reap` hands them to the kernel.
    fn commit_all(&mut self, answers: &mut Vec<Answer>) {
        let (mut given, mut moves) = (Vec::new(), Vec::new());
        for Answer { tag, outcome } in answers.drain(..) {
            let command = self.in_hand[tag.index()].take();
            let command = command.expect("the engine answers what it was asked, once");
            self.room.leave(command);
            match outcome {
                Ok(read) if matches!(command, Command::Read(_)) => {
                    given.push((tag, command));
                    moves.push((data_offset(tag), read));
                }
                outcome => self.commit(tag, outcome.map(|_| command.data_bytes())),
            }
        }
        for ((tag, command), result) in given.into_iter().zip(self.copier.give(&moves)) {
            let outcome = or_log(tag, result, "give read data");
            self.commit(tag, outcome.map(|()| command.data_bytes()));
        }
    }

    fn commit(&self, tag: Tag, outcome: Result<u64, Errno>) {
        let result = Ok(UblkIORes::Result(result_code(outcome)));
        self.queue()
            .complete_io_cmd_unified(tag.0, BufDesc::Slice(&[]), result)
            .expect("an empty slice suits every device with USER_COPY");
    }
}

impl Kernel for Queue<'_> {
    fn exchange(&mut self, answers: &mut Vec<Answer>) -> io::Result<Option<Vec<Request>>> {
        self.commit_all(answers);
        let is_idle = |ring: &mut io_uring::IoUring| {
            ring.submission().is_empty() && ring.completion().is_empty()
        };
        let mut tags = Vec::new();
        if !with_task_io_ring_mut(is_idle) || self.queue().is_stopping() {
            let Some(requested) = self.reap()? else { return Ok(None) };
            tags = requested;
        }
        Ok(Some(self.accept(&tags)))
    }

    async fn called(&self) -> io::Result<()> {
        if self.room.is_wanted() || self.queue().is_stopping() {
            tokio::task::yield_now().await; // others may have to run first
            return Ok(());
        }
        self.ring.readable().await?.clear_ready();
        Ok(())
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        let queue = self.queue.take();
        if let Some(queue) = queue.filter(|_| !self.is_stopped) {
            // The kernel still has commands of this queue.
            sys::abandon(queue);
        }
    }
}

fn data_offset(tag: Tag) -> u64 {
    UblkIOCtx::ublk_user_copy_pos(INDEX, tag.0, 0)
}

fn or_log(tag: Tag, result: io::Result<()>, what: &str) -> Result<(), Errno> {
    result.map_err(|error| {
        tracing::error!(tag = tag.0, %error, "{what}");
        Errno(libc::EIO)
    })
}

/// Which requests have memory for their data: the first ones, in the order in which they came.
#[derive(Default)]
struct Room {
    taken_bytes: u64,
    waiting: VecDeque<(Tag, Command)>,
}

impl Room {
    fn wait(&mut self, request: (Tag, Command)) {
        self.waiting.push_back(request);
    }

    /// Whether one that waits can enter.
    fn is_wanted(&self) -> bool {
        let fits = |(_, command): &(Tag, Command)| {
            self.taken_bytes + command.data_bytes() <= DATA_BYTES_MAX
        };
        self.waiting.front().is_some_and(fits)
    }

    fn enter(&mut self) -> Option<(Tag, Command)> {
        let request = if self.is_wanted() { self.waiting.pop_front() } else { None }?;
        self.taken_bytes += request.1.data_bytes();
        Some(request)
    }

    fn leave(&mut self, command: Command) {
        self.taken_bytes -= command.data_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::REQUEST_BYTES_MAX;
    use super::*;
    use crate::disk::{Durability, Extent};

    #[test]
    fn as_many_requests_have_memory_as_fit_and_none_overtakes_another() {
        let bytes = u64::from(REQUEST_BYTES_MAX);
        let write = |offset_bytes, length_bytes| {
            Command::Write(Extent { offset_bytes, length_bytes }, Durability::Volatile)
        };
        let mut room = Room::default();
        let fit = (DATA_BYTES_MAX / bytes) as u16;
        (0..=fit).for_each(|tag| room.wait((Tag(tag), write(0, bytes))));
        room.wait((Tag(100), Command::Flush));
        let entered: Vec<u16> = std::iter::from_fn(|| room.enter()).map(|(tag, _)| tag.0).collect();
        assert_eq!(entered, (0..fit).collect::<Vec<_>>());
        assert!(!room.is_wanted());
        room.leave(write(0, bytes));
        assert!(room.is_wanted());
        assert_eq!(room.enter().map(|(tag, _)| tag), Some(Tag(fit)));
        assert_eq!(room.enter().map(|(tag, _)| tag), Some(Tag(100)), "it needs none");
        assert!(room.enter().is_none());
    }
}
