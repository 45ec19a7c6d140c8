//! Who waits for a lock, in the order in which they came (RFC 8881, 9.4, 18.10.4).
//!
//! ```text
//!  LOCK that waits, denied ──▶ waits ──the lock is free──▶ offered ──it comes and gets it──▶ (gone)
//!                                                             │ the time is over: the next one
//!                                                             ▼
//!                                                          (gone)
//! ```
//! What is offered is kept free for its waiter, from all others, for a moment: who can be called back is
//! told; who can't asks by itself, and has a lease for that if it asked within the last one. Nothing is kept
//! in the way of others while the lock isn't free.

use super::State;
use super::callbacks::Notice;
use super::locks::Conflict;
use super::ranges::Range;
use crate::wire::types::{ClientId, FileHandle};
use std::time::{Duration, Instant};

/// Who was told comes at once, or not at all: it may have been interrupted meanwhile.
const COMES_WITHIN: Duration = Duration::from_secs(1);
/// More aren't queued, of one file and of all: they ask now and then.
const WAITERS_MAX: usize = 1024;
const ALL_WAITERS_MAX: usize = 16_384;

pub struct Waiter {
    client: ClientId,
    owner: Box<[u8]>,
    range: Range,
    exclusive: bool,
    asked: Instant,
    /// Until when the lock is kept free for it.
    offered: Option<Instant>,
}

/// The lock that somebody asks for.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub client: ClientId,
    pub owner: &'a [u8],
    pub file: FileHandle,
    pub range: Range,
    pub exclusive: bool,
}

impl Waiter {
    fn is(&self, asked: &Asked) -> bool {
        self.client == asked.client && *self.owner == *asked.owner
    }

    fn is_against(&self, range: Range, exclusive: bool) -> bool {
        self.range.overlaps(&range) && (self.exclusive || exclusive)
    }
}

impl<F: Clone> State<F> {
    /// It was denied, and will ask again.
    pub(super) fn wait_for_lock(&mut self, now: Instant, asked: Asked) {
        let Some(file) = self.files.get_mut(&asked.file) else { return };
        let mine = |waiter: &&mut Waiter| waiter.is(&asked) && waiter.range == asked.range;
        if let Some(waiter) = file.waiters.iter_mut().find(mine) {
            waiter.asked = now;
            waiter.exclusive = asked.exclusive;
        } else if file.waiters.len() < WAITERS_MAX && self.waiters < ALL_WAITERS_MAX {
            self.waiters += 1;
            file.waiters.push(Waiter {
                client: asked.client,
                owner: asked.owner.into(),
                range: asked.range,
                exclusive: asked.exclusive,
                asked: now,
                offered: None,
            });
            self.waited_for.insert(asked.file);
        }
    }

    /// It has the lock, or doesn't wait for it any more.
    pub(super) fn stop_waiting(&mut self, asked: Asked) {
        let Some(file) = self.files.get_mut(&asked.file) else { return };
        let before = file.waiters.len();
        file.waiters.retain(|waiter| !waiter.is(&asked) || !waiter.range.overlaps(&asked.range));
        let gone = before - file.waiters.len();
        if gone > 0 {
            self.waiters -= gone;
            self.freed.push(asked.file);
        }
    }

    /// A client has closed a file: if that was its last open of it, it waits for no lock there.
    pub(super) fn stop_waiting_if_closed(&mut self, client: ClientId, handle: FileHandle) {
        let Some(file) = self.files.get_mut(&handle) else { return };
        if file.opens.iter().any(|&open| self.states.open(open).client == client) {
            return;
        }
        let before = file.waiters.len();
        file.waiters.retain(|waiter| waiter.client != client);
        let gone = before - file.waiters.len();
        if gone > 0 {
            self.waiters -= gone;
            self.freed.push(handle);
        }
    }

    /// It is free, but kept for somebody else.
    pub(super) fn kept_for(&self, now: Instant, asked: Asked) -> Option<Conflict> {
        let waiters = &self.files.get(&asked.file)?.waiters;
        let first = waiters.iter().find(|waiter| {
            waiter.offered.is_some_and(|until| now < until)
                && !waiter.is(&asked)
                && waiter.is_against(asked.range, asked.exclusive)
                && !self.is_expired(now, waiter.client)
        })?;
        Some(Conflict {
            range: first.range,
            exclusive: first.exclusive,
            client: first.client,
            owner: first.owner.clone(),
        })
    }

    /// Something isn't locked any more.
    pub(super) fn freed(&mut self, file: FileHandle) {
        if self.waited_for.contains(&file) {
            self.freed.push(file);
        }
    }

    /// Offers what is free by now to who has waited longest.
    pub fn offer_freed(&mut self) {
        for file in std::mem::take(&mut self.freed) {
            self.offer(file);
        }
    }

    /// Called now and then: offers whose time is over go to the next.
    pub(super) fn offer_all(&mut self) {
        self.freed.extend(&self.waited_for);
        self.offer_freed();
    }

    fn offer(&mut self, handle: FileHandle) {
        let now = self.now;
        let Some(mut waiters) =
            self.files.get_mut(&handle).map(|file| std::mem::take(&mut file.waiters))
        else {
            self.waited_for.remove(&handle);
            return;
        };
        let before = waiters.len();
        waiters.retain(|waiter| {
            waiter.offered.is_none_or(|until| now < until) && !self.is_expired(now, waiter.client)
        });
        let mut kept = Vec::with_capacity(waiters.len());
        for mut waiter in waiters {
            let mine = self.lock_owner(waiter.client, &waiter.owner, handle);
            let in_the_way = |other: &Waiter| {
                other.offered.is_some() && other.is_against(waiter.range, waiter.exclusive)
            };
            let is_free = self.conflict(handle, waiter.range, waiter.exclusive, mine).is_none()
                && !kept.iter().any(in_the_way);
            if waiter.offered.is_none() && is_free {
                let (client, owner) = (waiter.client, waiter.owner.clone());
                let told = self.notify(Notice { client, file: handle, owner });
                if !told && now.saturating_duration_since(waiter.asked) > self.lease {
                    continue; // it has given up asking
                }
                waiter.offered = Some(now + if told { COMES_WITHIN } else { self.lease });
            }
            kept.push(waiter);
        }
        self.waiters -= before - kept.len();
        if kept.is_empty() {
            self.waited_for.remove(&handle);
        }
        if let Some(file) = self.files.get_mut(&handle) {
            file.waiters = kept;
        }
    }
}
