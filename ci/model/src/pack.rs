//! A state in five words, so that tens of millions fit into memory and are compared quickly.
//!
//! Promises: two states have the same key exactly if they are equal but for the order of their
//! replicas, which are symmetric: no rule prefers one.

use crate::history::History;
use crate::state::{
    Change, Client, Delivery, ENGINES, Engine, Phase, Property, REPLICAS, Rebuild, Replica, State,
    View,
};
use crate::values::Values;

/// One word for each replica, in order; what clients know; the engines and the record.
pub type Key = [u64; REPLICAS + 2];

#[derive(Default)]
pub struct Packer {
    word: u64,
    used: u32,
}

impl Packer {
    pub fn put(&mut self, value: u64, bits: u32) {
        debug_assert!(value >> bits == 0 && self.used + bits <= u64::BITS);
        self.word |= value << self.used;
        self.used += bits;
    }

    fn flags<const N: usize>(&mut self, flags: [bool; N]) {
        for flag in flags {
            self.put(u64::from(flag), 1);
        }
    }
}

pub struct Unpacker(u64);

impl Unpacker {
    pub fn take(&mut self, bits: u32) -> u64 {
        let value = self.0 & ((1 << bits) - 1);
        self.0 >>= bits;
        value
    }

    fn flag(&mut self) -> bool {
        self.take(1) != 0
    }

    fn number(&mut self, bits: u32) -> u8 {
        self.take(bits) as u8
    }

    fn one_of<T: Copy>(&mut self, variants: &[T], bits: u32) -> T {
        variants[self.take(bits) as usize]
    }
}

pub fn pack(state: &State) -> Key {
    let mut key = Key::default();
    for (word, replica) in key.iter_mut().zip(&state.replicas) {
        *word = pack_replica(replica);
    }
    key[..REPLICAS].sort_unstable();
    key[REPLICAS] = pack_client(state);
    let mut bits = Packer::default();
    bits.put(state.named.into(), 1);
    bits.put(state.generation.into(), 4);
    for engine in &state.engines {
        bits.put(engine.phase as u64, 2);
        bits.put(engine.change as u64, 2);
        bits.put(engine.write.into(), 2);
        bits.flags([engine.applied, engine.settled, engine.gave_up]);
        bits.put(engine.generation.into(), 4);
    }
    key[REPLICAS + 1] = bits.word;
    key
}

pub fn unpack(key: Key) -> State {
    let mut state = State::default();
    for (replica, word) in state.replicas.iter_mut().zip(key) {
        *replica = unpack_replica(word);
    }
    unpack_client(key[REPLICAS], &mut state);
    let mut bits = Unpacker(key[REPLICAS + 1]);
    state.named = bits.number(1);
    state.generation = bits.number(4);
    for engine in &mut state.engines {
        *engine = Engine {
            phase: bits.one_of(&[Phase::Unborn, Phase::Opening, Phase::Serving, Phase::Gone], 2),
            change: bits.one_of(&[Change::Steady, Change::Swapping, Change::Advancing], 2),
            write: bits.number(2),
            applied: bits.flag(),
            settled: bits.flag(),
            gave_up: bits.flag(),
            generation: bits.number(4),
        };
    }
    state
}

fn pack_client(state: &State) -> u64 {
    let client = &state.client;
    let mut bits = Packer::default();
    client.history.pack(&mut bits);
    let (by, value) = client.read.unwrap_or_default();
    bits.flags([client.read.is_some(), by != 0]);
    bits.put(value.into(), 2);
    bits.put(client.current.bits(), 3);
    bits.put(client.durable.bits(), 3);
    bits.put(state.broken.map_or(0, |property| 1 + property as u64), 4);
    bits.word
}

fn unpack_client(word: u64, state: &mut State) {
    let mut bits = Unpacker(word);
    let history = History::unpack(&mut bits);
    let (reads, read) = (bits.flag(), (bits.number(1), bits.number(2)));
    state.client = Client {
        history,
        read: reads.then_some(read),
        current: Values::from_bits(bits.take(3)),
        durable: Values::from_bits(bits.take(3)),
    };
    state.broken = match bits.take(4) {
        0 => None,
        number => Some(Property::ALL[number as usize - 1]),
    };
}

fn pack_replica(replica: &Replica) -> u64 {
    let mut bits = Packer::default();
    bits.put(replica.value.into(), 2);
    bits.put(replica.durable.into(), 2);
    bits.flags([
        replica.in_record,
        replica.foreign,
        replica.suspect,
        replica.fenced,
        replica.forgot,
    ]);
    bits.flags([replica.marked]);
    bits.put(replica.synced.into(), 4);
    bits.put(replica.stamp.into(), 4);
    for view in &replica.views {
        bits.flags([
            view.link,
            view.member,
            view.proposed,
            view.advanced,
            view.outdated,
            view.lease,
        ]);
        bits.put(view.write as u64, 2);
        bits.put(view.rebuild as u64, 2);
        bits.put(view.old_writes.bits() >> 1, 2);
    }
    bits.word
}

fn unpack_replica(word: u64) -> Replica {
    let mut bits = Unpacker(word);
    Replica {
        value: bits.number(2),
        durable: bits.number(2),
        in_record: bits.flag(),
        foreign: bits.flag(),
        suspect: bits.flag(),
        fenced: bits.flag(),
        forgot: bits.flag(),
        marked: bits.flag(),
        synced: bits.number(4),
        stamp: bits.number(4),
        views: [(); ENGINES].map(|()| unpack_view(&mut bits)),
    }
}

fn unpack_view(bits: &mut Unpacker) -> View {
    const REBUILDS: [Rebuild; 4] = [Rebuild::No, Rebuild::Greeted, Rebuild::Copied, Rebuild::Ready];
    View {
        link: bits.flag(),
        member: bits.flag(),
        proposed: bits.flag(),
        advanced: bits.flag(),
        outdated: bits.flag(),
        lease: bits.flag(),
        write: bits.one_of(&[Delivery::NotSent, Delivery::Sent, Delivery::Confirmed], 2),
        rebuild: bits.one_of(&REBUILDS, 2),
        old_writes: Values::from_bits(bits.take(2) << 1),
    }
}
