//! One queue's thread: the only one that may talk to the kernel about the queue's requests.
//!
//! Owns the queue's ring and the copying of data between the kernel's pages and our buffers.
//! Promises that a tag is reported as committed only after the kernel has consumed its answer:
//! a commit is executed within the system call that submits it.
//!
//! ```text
//! ┌▶ answers of the engine ─▶ commits ─▶ submit; wait only if there were none ─┐
//! └── turn to the engine ◀── requests, their data copied in ◀── completions ◀──┘
//! ```
//!
//! Each arrow is one system call at most, however many requests it carries.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};
use libublk::io::{BufDesc, BufDescList, UblkDev, UblkIOCtx, UblkQueue};
use libublk::sys::{UBLK_IO_RES_ABORT, UBLK_IO_RES_OK};
use libublk::{UblkError as LibraryError, UblkIORes, UblkUringData};

use super::copy::Copier;
use super::error::cause;
use super::link::{Answer, Pause, QueueEnd, Request, Tag, Turn};
use super::request::{Command, Errno, result_code};
use super::sys;
use crate::disk::Buffer;

/// Serves the queue until the device is stopped or left. `ready` is called once the kernel has
/// taken the queue's first commands; after an error before that, it isn't.
pub(super) fn serve(
    index: u16,
    device: &UblkDev,
    link: &QueueEnd,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let queue = UblkQueue::new(index, device).map_err(cause)?;
    let queue = queue.submit_fetch_commands_unified(BufDescList::Slices(None)).map_err(cause)?;
    let depth = device.dev_info.queue_depth;
    let copier = Copier::new(sys::character_device(device)?, depth)?;
    let in_hand = vec![None; usize::from(depth)];
    let mut worker = Worker { index, queue, link, copier, in_hand, answers: Vec::new() };
    let result = worker.run(ready);
    match result {
        Ok(End::Stopped) => {}
        // The kernel still has commands of this queue.
        Ok(End::Left) | Err(_) => sys::abandon(worker.queue),
    }
    result.map(drop)
}

/// Why a queue ends without a failure.
enum End {
    /// The device was stopped: the kernel has given every command back.
    Stopped,
    /// It was told to leave the device to the next server, or its engine has gone.
    Left,
}

struct Worker<'a> {
    index: u16,
    queue: UblkQueue<'a>,
    link: &'a QueueEnd,
    copier: Copier,
    /// By tag, what the engine is doing.
    in_hand: Vec<Option<Command>>,
    answers: Vec<Answer>,
}

/// What the kernel said in one round.
#[derive(Default)]
struct Reaped {
    requested: Vec<Tag>,
    must_listen_again: bool,
    refused: Option<i32>,
}

impl Worker<'_> {
    fn run(&mut self, ready: impl FnOnce()) -> io::Result<End> {
        self.listen_to_bell()?;
        // Without waiting: a command that the kernel refuses comes back at once.
        let Some(mut reaped) = self.reap(0)? else { return Ok(End::Stopped) };
        ready();
        let mut committed = Vec::new();
        loop {
            let turn = Turn { requests: self.accept(&reaped.requested), committed };
            if !turn.is_empty() && self.link.turns.blocking_send(Ok(turn)).is_err() {
                return Ok(End::Left);
            }
            committed = self.commit_answers();
            // What was committed is told to the engine before this thread sleeps.
            let pause = match committed.is_empty() {
                true => self.link.mailbox.pause(),
                false => Pause::GoOn,
            };
            if pause == Pause::Leave {
                return Ok(End::Left);
            }
            let next = self.reap((pause == Pause::Sleep).into())?;
            if pause == Pause::Sleep {
                self.link.mailbox.awake();
            }
            match next {
                Some(next) => reaped = next,
                None => return Ok(End::Stopped),
            }
        }
    }

    /// Queues the answers that the engine has left; the next `reap` hands them to the kernel.
    fn commit_answers(&mut self) -> Vec<Tag> {
        let mut answers = std::mem::take(&mut self.answers);
        self.link.mailbox.take_answers(&mut answers);
        let tags = answers.iter().map(|answer| answer.tag).collect();
        let (mut given, mut moves) = (Vec::new(), Vec::new());
        for Answer { tag, outcome } in answers.drain(..) {
            let command = self.in_hand[tag.index()].take();
            let command = command.expect("the engine answers what it was asked, once");
            match outcome {
                Ok(read) if matches!(command, Command::Read(_)) => {
                    given.push((tag, command));
                    moves.push((self.data_offset(tag), read));
                }
                outcome => self.commit(tag, outcome.map(|_| command.data_bytes())),
            }
        }
        for ((tag, command), result) in given.into_iter().zip(self.copier.give(&moves)) {
            let outcome = self.or_log(tag, result, "give read data");
            self.commit(tag, outcome.map(|()| command.data_bytes()));
        }
        self.answers = answers; // keeps its memory for the next round
        tags
    }

    fn or_log(&self, tag: Tag, result: io::Result<()>, what: &str) -> Result<(), Errno> {
        result.map_err(|error| {
            tracing::error!(queue = self.index, tag = tag.0, %error, "{what}");
            Errno(libc::EIO)
        })
    }

    fn commit(&self, tag: Tag, outcome: Result<u64, Errno>) {
        let result = Ok(UblkIORes::Result(result_code(outcome)));
        self.queue
            .complete_io_cmd_unified(tag.0, BufDesc::Slice(&[]), result)
            .expect("an empty slice suits every device with USER_COPY");
    }

    /// Hands over what is queued, waits for `at_least` completions, and reads all there are.
    /// `None` when the device has been stopped.
    fn reap(&mut self, at_least: usize) -> io::Result<Option<Reaped>> {
        let mut reaped = Reaped::default();
        let result = self.queue.flush_and_wake_io_tasks(
            |user_data, completion, _| {
                let tag = UblkIOCtx::user_data_to_tag(user_data) as u16; // 16 bits by its making
                match completion.result() {
                    _ if user_data & UblkUringData::Target as u64 != 0 => {
                        reaped.must_listen_again |= !io_uring::cqueue::more(completion.flags());
                    }
                    code if code == UBLK_IO_RES_OK as i32 => reaped.requested.push(Tag(tag)),
                    UBLK_IO_RES_ABORT => {} // the library counts it, and says when all have come
                    code => reaped.refused = Some(code),
                }
            },
            at_least,
        );
        match result.map_err(|error| (matches!(error, LibraryError::QueueIsDown), cause(error))) {
            Err((true, _)) => return Ok(None),
            Err((false, error)) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        if let Some(code) = reaped.refused {
            return Err(io::Error::from_raw_os_error(code.abs()));
        }
        if reaped.must_listen_again {
            self.listen_to_bell()?;
        }
        Ok(Some(reaped))
    }

    /// Has the ring wake this thread whenever the bell is rung.
    fn listen_to_bell(&self) -> io::Result<()> {
        let bell = types::Fd(self.link.mailbox.bell().as_raw_fd());
        let poll = opcode::PollAdd::new(bell, libc::POLLIN as u32).multi(true).build();
        let poll = poll.user_data(UblkUringData::Target as u64);
        self.queue.ublk_submit_sqe_sync(poll).map_err(cause)
    }

    /// Takes requests from the kernel with their data. What can't be taken is answered here.
    fn accept(&mut self, tags: &[Tag]) -> Vec<Request> {
        let mut requests = Vec::with_capacity(tags.len());
        let (mut writing, mut moves) = (Vec::new(), Vec::new());
        for &tag in tags {
            match Command::parse(self.queue.get_iod(tag.0)) {
                Ok(command) => {
                    let length_bytes = usize::try_from(command.data_bytes());
                    let data = Buffer::for_data(length_bytes.expect("parse() has bounded it"));
                    if let Command::Write(..) = command {
                        writing.push((tag, command));
                        moves.push((self.data_offset(tag), data));
                    } else {
                        requests.push(Request { tag, command, data });
                    }
                }
                Err(errno) => self.commit(tag, Err(errno)),
            }
        }
        let results = self.copier.take(&mut moves);
        for (((tag, command), (_, data)), result) in writing.into_iter().zip(moves).zip(results) {
            match self.or_log(tag, result, "take write data") {
                Ok(()) => requests.push(Request { tag, command, data }),
                Err(errno) => self.commit(tag, Err(errno)),
            }
        }
        for request in &requests {
            self.in_hand[request.tag.index()] = Some(request.command);
        }
        requests
    }

    fn data_offset(&self, tag: Tag) -> u64 {
        UblkIOCtx::ublk_user_copy_pos(self.index, tag.0, 0)
    }
}
