//! io_uring for the files of one thread.
//!
//! Owns the ring and every buffer that the kernel may touch. Promises that memory and file of an
//! operation live until the kernel has completed it, even if the future that waits is dropped or
//! the ring is. Everything submitted within one turn of the runtime goes to the kernel with one
//! `io_uring_enter`, which also collects what has completed.
//!
//! ```text
//! future ──queue──▶ slab + submission queue ──driver task, one enter a turn──▶ kernel
//!    ▲──────────────wake── slab ◀──completion queue── driver ◀── ring fd readable (AsyncFd)
//! ```

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use ankole_blockdev::disk::Buffer;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Submission slots; more operations than this may be in flight.
const ENTRIES: u32 = 256;
const ENTER_GETEVENTS: u32 = 1;

/// A ring with the task that drives it. Must be made and used within one `LocalSet`.
pub(super) struct Ring {
    shared: Rc<Shared>,
}

struct Shared {
    ring: RefCell<IoUring>,
    operations: RefCell<Slab<InFlight>>,
    driver: RefCell<Option<Waker>>,
    /// Something was queued since the last enter.
    queued: Cell<bool>,
}

/// What the kernel may be reading or writing.
struct InFlight {
    memory: Memory,
    /// Keeps the descriptor's number from meaning another file before the kernel has taken it.
    file: Rc<File>,
    progress: Progress,
}

enum Memory {
    None,
    Into(Buffer),
    From(#[expect(dead_code, reason = "held for the kernel")] Rc<Buffer>),
}

enum Progress {
    Waiting(Option<Waker>),
    Done(i32),
    /// Nobody waits any more; freed when the kernel is done.
    Abandoned,
}

impl Ring {
    /// Fails where the kernel or a seccomp filter doesn't allow io_uring.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun() // not deferred: epoll isn't told of deferred completions
            .build(ENTRIES)
            .or_else(|_| IoUring::new(ENTRIES))?;
        // SAFETY: the descriptor is a duplicate that nobody else has; it is owned by `watched`.
        #[expect(unsafe_code, reason = "tokio can't see that the descriptor stays open")]
        let watched = unsafe {
            AsyncFd::register_with_interest(ring_descriptor(&ring)?, Interest::READABLE)
        }?;
        let shared = Rc::new(Shared {
            ring: RefCell::new(ring),
            operations: RefCell::default(),
            driver: RefCell::default(),
            queued: Cell::new(false),
        });
        tokio::task::spawn_local(drive(Rc::downgrade(&shared), watched));
        Ok(Self { shared })
    }

    /// Fills `into` from the file; its length is what is read.
    pub(super) async fn read(
        &self,
        file: &Rc<File>,
        offset_bytes: u64,
        into: Buffer,
    ) -> (io::Result<()>, Buffer) {
        let mut into = into;
        let mut done = 0;
        while done < into.len() {
            let rest = &mut into[done..];
            let descriptor = types::Fd(file.as_raw_fd());
            let entry = opcode::Read::new(descriptor, rest.as_mut_ptr(), rest.len() as u32)
                .offset(offset_bytes + done as u64)
                .build();
            let (result, memory) = self.shared.run(entry, file, Memory::Into(into)).await;
            let Memory::Into(back) = memory else { unreachable!("an operation keeps its memory") };
            into = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), into),
                Ok(count) => done += count,
                Err(error) => return (Err(error), into),
            }
        }
        (Ok(()), into)
    }

    /// Writes `part` of `from`. A disk that is about to be full takes a part first and says so at
    /// the next.
    pub(super) async fn write(
        &self,
        file: &Rc<File>,
        offset_bytes: u64,
        from: Rc<Buffer>,
        part: Range<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < part.len() {
            let rest = &from[part.start + done..part.end];
            let descriptor = types::Fd(file.as_raw_fd());
            let entry = opcode::Write::new(descriptor, rest.as_ptr(), rest.len() as u32)
                .offset(offset_bytes + done as u64)
                .build();
            let (result, _) = self.shared.run(entry, file, Memory::From(from.clone())).await;
            match result? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count,
            }
        }
        Ok(())
    }

    pub(super) async fn sync(&self, file: &Rc<File>) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.shared.run(entry, file, Memory::None).await.0.map(drop)
    }

    pub(super) async fn punch(&self, file: &Rc<File>, range_bytes: Range<u64>) -> io::Result<()> {
        let length = range_bytes.end - range_bytes.start;
        let entry = opcode::Fallocate::new(types::Fd(file.as_raw_fd()), length)
            .offset(range_bytes.start)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build();
        self.shared.run(entry, file, Memory::None).await.0.map(drop)
    }
}

/// A duplicate, so that watching it can end after the ring was dropped.
fn ring_descriptor(ring: &IoUring) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open as long as `ring`, which outlives this borrow.
    #[expect(unsafe_code, reason = "the crate lends its descriptor as a number only")]
    let borrowed = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
    borrowed.try_clone_to_owned()
}

impl Shared {
    fn run(self: &Rc<Self>, entry: squeue::Entry, file: &Rc<File>, memory: Memory) -> Operation {
        let progress = Progress::Waiting(None);
        let key =
            self.operations.borrow_mut().insert(InFlight { memory, file: file.clone(), progress });
        let entry = entry.user_data(key as u64);
        while !self.push(&entry) {
            self.enter(0); // full: hand over what is queued, which makes room
        }
        if !self.queued.replace(true) {
            self.wake_driver();
        }
        Operation { shared: self.clone(), key, taken: false }
    }

    fn push(&self, entry: &squeue::Entry) -> bool {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: memory and file of the entry are in `operations` until its completion was seen:
        // `complete` is the only place that frees them, and dropping `Shared` waits for it.
        #[expect(unsafe_code, reason = "the kernel gets pointers into our buffers")]
        let pushed = unsafe { ring.submission().push(entry) };
        pushed.is_ok()
    }

    fn wake_driver(&self) {
        if let Some(waker) = &*self.driver.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Hands over what is queued and collects what has completed, waiting for `wanted` of them.
    fn enter(&self, wanted: u32) {
        self.queued.set(false);
        let mut ring = self.ring.borrow_mut();
        let queued = ring.submission().len() as u32;
        // SAFETY: `queued` entries are in the queue, and no argument is passed.
        #[expect(unsafe_code, reason = "the safe calls collect completions only when they wait")]
        let entered =
            unsafe { ring.submitter().enter::<()>(queued, wanted, ENTER_GETEVENTS, None) };
        if let Err(error) = entered {
            // EINTR, EBUSY, EAGAIN: nothing is lost, the entries stay queued.
            tracing::debug!(%error, "io_uring_enter is tried again");
            if !ring.submission().is_empty() {
                self.queued.set(true);
            }
        }
        drop(ring);
        self.collect();
    }

    fn collect(&self) {
        loop {
            let Some(completion) = self.ring.borrow_mut().completion().next() else { return };
            self.complete(completion.user_data() as usize, completion.result());
        }
    }

    fn complete(&self, key: usize, result: i32) {
        let mut operations = self.operations.borrow_mut();
        match std::mem::replace(&mut operations[key].progress, Progress::Done(result)) {
            Progress::Waiting(waker) => {
                drop(operations);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Progress::Abandoned => drop(operations.remove(key)),
            Progress::Done(_) => unreachable!("an operation completes once"),
        }
    }

    fn in_flight(&self) -> bool {
        let operations = self.operations.borrow();
        operations.iter().any(|(_, operation)| !matches!(operation.progress, Progress::Done(_)))
    }
}

impl Drop for Shared {
    /// The kernel may still write into our buffers: waits until it doesn't.
    fn drop(&mut self) {
        self.wake_driver();
        while self.in_flight() {
            self.enter(1);
        }
    }
}

/// One operation; dropped before its end it leaves its memory with the ring.
struct Operation {
    shared: Rc<Shared>,
    key: usize,
    taken: bool,
}

impl Future for Operation {
    type Output = (io::Result<usize>, Memory);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut operations = self.shared.operations.borrow_mut();
        match &mut operations[self.key].progress {
            Progress::Waiting(waker) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *waker = Some(context.waker().clone());
                }
                Poll::Pending
            }
            Progress::Done(result) => {
                let result =
                    usize::try_from(*result).map_err(|_| io::Error::from_raw_os_error(-*result));
                let InFlight { memory, file, .. } = operations.remove(self.key);
                drop((operations, file));
                self.taken = true;
                Poll::Ready((result, memory))
            }
            Progress::Abandoned => unreachable!("only a dropped future abandons"),
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut operations = self.shared.operations.borrow_mut();
        if matches!(operations[self.key].progress, Progress::Done(_)) {
            drop(operations.remove(self.key));
        } else {
            operations[self.key].progress = Progress::Abandoned;
        }
    }
}

/// Runs as long as the ring: enters the kernel when something was queued or has completed.
async fn drive(shared: Weak<Shared>, ring: AsyncFd<OwnedFd>) {
    poll_fn(|context| {
        let Some(shared) = shared.upgrade() else { return Poll::Ready(()) };
        shared.driver.replace(Some(context.waker().clone()));
        let mut completed = false;
        loop {
            match ring.poll_read_ready(context) {
                Poll::Ready(Ok(mut ready)) => {
                    ready.clear_ready();
                    completed = true;
                }
                Poll::Ready(Err(error)) => {
                    tracing::error!(%error, "the ring can't be watched");
                    return Poll::Ready(());
                }
                Poll::Pending => break,
            }
        }
        if completed || shared.queued.get() {
            shared.enter(0);
        }
        if shared.queued.get() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}
