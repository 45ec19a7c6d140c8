//! The ends of processes, waited for by one thread whatever their number.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

/// What the supervisor's own end is told by.
const OVER: u64 = 0;
const EVENTS: usize = 64;

type OnEnd = Box<dyn FnOnce() + Send>;

/// Until it is dropped.
pub(super) struct Ends {
    awaited: Arc<Awaited>,
    over: OwnedFd,
}

struct Awaited {
    epoll: OwnedFd,
    processes: Mutex<Processes>,
}

#[derive(Default)]
struct Processes {
    last_id: u64,
    on_end: BTreeMap<u64, (Arc<OwnedFd>, OnEnd)>,
}

impl Ends {
    pub(super) fn start() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let over = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &over, EventData::new_u64(OVER), EventFlags::IN)?;
        let awaited = Arc::new(Awaited { epoll, processes: Mutex::default() });
        let waits = Arc::clone(&awaited);
        thread::Builder::new().name("ends".into()).spawn(move || waits.run())?;
        Ok(Self { awaited, over })
    }

    /// A pidfd becomes readable when its process ends.
    pub(super) fn when_ended(&self, pidfd: Arc<OwnedFd>, on_end: OnEnd) {
        let mut processes = self.awaited.lock();
        processes.last_id += 1;
        let id = processes.last_id;
        let (data, flags) = (EventData::new_u64(id), EventFlags::IN | EventFlags::ONESHOT);
        match epoll::add(&self.awaited.epoll, &pidfd, data, flags) {
            Ok(()) => drop(processes.on_end.insert(id, (pidfd, on_end))),
            Err(error) => {
                // The kernel has no room for one more: it gets a thread of its own.
                tracing::warn!(%error, "watch a process");
                thread::spawn(move || {
                    wait_for_end(&pidfd);
                    on_end();
                });
            }
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // Only a full counter refuses, and nobody else writes to it.
        let _ = rustix::io::write(&self.over, &1u64.to_ne_bytes());
    }
}

impl Awaited {
    fn lock(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "wait for the end of processes");
                    thread::sleep(Duration::from_secs(1));
                }
            }
            for event in &events {
                let id = event.data.u64();
                if id == OVER {
                    return;
                }
                let ended = self.lock().on_end.remove(&id);
                if let Some((_, on_end)) = ended {
                    on_end();
                }
            }
        }
    }
}

fn wait_for_end(pidfd: &OwnedFd) {
    loop {
        let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(count) if count > 0 => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Out of kernel memory, most likely.
                tracing::warn!(%error, "poll a process");
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}
