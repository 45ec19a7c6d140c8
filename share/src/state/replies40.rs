//! Replies of minor version 0 that may be asked for again: without sessions a message is known by its number
//! and its bytes.
//!
//! Only what changes something is kept; what only looks is done again. Who asks while the first is being done
//! waits for it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A client asks again within a minute; then the number may be another message's.
const KEPT_TIME: Duration = Duration::from_secs(120);
const KEPT_MAX: usize = 4096;
/// Messages and replies of what changes something are short; a write that is repeated is the same write.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;
const REPLY_BYTES_MAX: usize = 2 * 1024;

/// Two hashes with keys that nobody knows: no client can make up a message that is taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(u64, u64);

#[derive(Default)]
pub struct Replies40 {
    hashers: [RandomState; 2],
    /// `None`: it is being done.
    all: HashMap<MessageId, Option<Kept>>,
    oldest: VecDeque<MessageId>,
}

struct Kept {
    at: Instant,
    reply: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// To be done, and given to [`Replies40::end`].
    New(MessageId),
    Repeated(Vec<u8>),
    BeingDone,
}

impl Replies40 {
    /// `None`: too long to be one that is kept.
    pub fn begin(&mut self, now: Instant, peer: IpAddr, message: &[u8]) -> Option<Message> {
        if message.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let [first, second] = [0, 1].map(|at: usize| self.hashers[at].hash_one((peer, message)));
        let id = MessageId(first, second);
        match self.all.get(&id) {
            Some(None) => return Some(Message::BeingDone),
            Some(Some(kept)) if now.saturating_duration_since(kept.at) < KEPT_TIME => {
                return Some(Message::Repeated(kept.reply.clone()));
            }
            _ => {}
        }
        self.all.insert(id, None);
        Some(Message::New(id))
    }

    /// With the reply, if something was changed.
    pub fn end(&mut self, now: Instant, id: MessageId, reply: Option<&[u8]>) {
        let Some(reply) = reply.filter(|reply| reply.len() <= REPLY_BYTES_MAX) else {
            self.all.remove(&id);
            return;
        };
        self.all.insert(id, Some(Kept { at: now, reply: reply.into() }));
        self.oldest.push_back(id);
        while self.oldest.len() > KEPT_MAX {
            let oldest = self.oldest.pop_front().expect("it isn't empty");
            if self.all.get(&oldest).is_some_and(Option::is_some) {
                self.all.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_known_again_for_a_while_and_by_who_sent_it() {
        let (mut replies, now) = (Replies40::default(), Instant::now());
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let Some(Message::New(id)) = replies.begin(now, one, b"message") else { panic!("new") };
        assert_eq!(replies.begin(now, one, b"message"), Some(Message::BeingDone));
        replies.end(now, id, Some(b"reply"));
        let repeated = Message::Repeated(b"reply".into());
        assert_eq!(replies.begin(now, one, b"message"), Some(repeated));
        assert!(matches!(replies.begin(now, other, b"message"), Some(Message::New(_))));
        assert!(matches!(replies.begin(now + KEPT_TIME, one, b"message"), Some(Message::New(_))));
        assert_eq!(replies.begin(now, one, &[0; MESSAGE_BYTES_MAX + 1]), None);
    }

    #[test]
    fn what_changed_nothing_is_done_again_and_no_more_is_kept_than_the_limit() {
        let (mut replies, now) = (Replies40::default(), Instant::now());
        let peer = IpAddr::from([10, 0, 0, 1]);
        for number in 0..2 * KEPT_MAX as u32 {
            let message = number.to_be_bytes();
            let Some(Message::New(id)) = replies.begin(now, peer, &message) else { panic!("new") };
            replies.end(now, id, number.is_multiple_of(2).then_some(b"reply"));
            assert_eq!(replies.all.contains_key(&id), number.is_multiple_of(2));
        }
        let id = replies.begin(now, peer, b"more");
        let Some(Message::New(id)) = id else { panic!("new") };
        replies.end(now, id, Some(b"reply"));
        assert_eq!((replies.all.len(), replies.oldest.len()), (KEPT_MAX, KEPT_MAX));
    }
}
