//! A small value that is replaced as a whole and durably: two preallocated slots in one file.
//!
//! Owns the file's layout. Promises that after a crash the value is the one before or the one
//! after, and that replacing it needs no new space.
//!
//! ```text
//! slot of 64 bytes and JSON, little-endian; the file has two of them
//! 0 magic "ANKSLOTS" │ 8 version u32 │ 12 body length u32 │ 16 sequence u64 │ 24 kind 8 bytes
//! │ 32 reserved │ 60 crc32c of bytes 0..60 and the body │ 64 body
//! ```
//!
//! A new value goes to the slot that isn't known to be durable, is synced, and is believed then.
//! Afterwards the other slot gets it too, unsynced: one damaged slot doesn't bring the past back.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::storage::StorageFile;
use crate::mutation::{self, Mutation};

const MAGIC: [u8; 8] = *b"ANKSLOTS";
pub(super) const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const CHECK_AT: usize = 60;

#[derive(Clone, Copy)]
pub(super) struct TwoSlotsKind {
    pub(super) file: &'static str,
    pub(super) tag: [u8; 8],
    pub(super) slot_bytes: u64,
}

pub(super) enum TwoSlotsError {
    Io(io::Error),
    Version(u32),
    Damaged(String),
}

pub(super) struct TwoSlots<F, T> {
    file: F,
    kind: TwoSlotsKind,
    value: RefCell<Rc<T>>,
    sequence: Cell<u64>,
    /// The slot that is written next: not the one that was synced last.
    next: Cell<u64>,
    gate: Mutex<()>,
}

impl<F: StorageFile, T: Serialize + DeserializeOwned> TwoSlots<F, T> {
    /// Makes both slots, durable.
    pub(super) async fn format(file: &F, kind: TwoSlotsKind, value: &T) -> io::Result<()> {
        file.preallocate(2 * kind.slot_bytes)?;
        let bytes = encode(kind, 1, value)?;
        file.write_at(0, &bytes)?;
        file.write_at(kind.slot_bytes, &bytes)?;
        file.sync().await
    }

    pub(super) fn open(file: F, kind: TwoSlotsKind) -> Result<Self, TwoSlotsError> {
        let mut best: Option<(u64, u64, T)> = None;
        let mut problems = Vec::new();
        for slot in 0..2 {
            match decode(&file, kind, slot) {
                Ok((sequence, value)) => {
                    if best.as_ref().is_none_or(|(newest, ..)| sequence > *newest) {
                        best = Some((sequence, slot, value));
                    }
                }
                Err(TwoSlotsError::Version(version)) => {
                    return Err(TwoSlotsError::Version(version));
                }
                Err(TwoSlotsError::Io(error)) => return Err(TwoSlotsError::Io(error)),
                Err(TwoSlotsError::Damaged(problem)) => problems.push(problem),
            }
        }
        let Some((sequence, slot, value)) = best else {
            return Err(TwoSlotsError::Damaged(problems.join("; ")));
        };
        if let Some(problem) = problems.first() {
            tracing::warn!(file = kind.file, problem, "one of two slots can't be used");
        }
        Ok(Self {
            file,
            kind,
            value: RefCell::new(Rc::new(value)),
            sequence: Cell::new(sequence),
            next: Cell::new(1 - slot),
            gate: Mutex::new(()),
        })
    }

    /// Makes durable what was found at [`open`](Self::open): a process that was killed may have
    /// left it to the kernel.
    pub(super) async fn sync(&self) -> io::Result<()> {
        self.file.sync().await
    }

    pub(super) fn get(&self) -> Rc<T> {
        self.value.borrow().clone()
    }

    /// Whether `value` has room in a slot; if not, its size in bytes.
    pub(super) fn check_room(&self, value: &T) -> Result<(), usize> {
        let bytes = encode(self.kind, 0, value).map_or(usize::MAX, |bytes| bytes.len());
        if bytes as u64 <= self.kind.slot_bytes { Ok(()) } else { Err(bytes) }
    }

    /// Replaces the value by what `change` makes of it; durable when this returns.
    pub(super) async fn update(&self, change: impl FnOnce(&T) -> T) -> io::Result<()> {
        let _one_at_a_time = self.gate.lock().await;
        let value = change(&self.get());
        let sequence = self.sequence.get() + 1;
        let bytes = encode(self.kind, sequence, &value)?;
        if bytes.len() as u64 > self.kind.slot_bytes {
            return Err(io::Error::other("a value is larger than its slot"));
        }
        let slot = self.next.get();
        self.file.write_at(slot * self.kind.slot_bytes, &bytes)?;
        if !mutation::is_on(Mutation::FenceNotDurable) {
            self.file.sync().await?;
        }
        self.sequence.set(sequence);
        self.next.set(1 - slot);
        *self.value.borrow_mut() = Rc::new(value);
        self.file.write_at((1 - slot) * self.kind.slot_bytes, &bytes)
    }

    /// The same; where one slot can't be written, in the other one.
    pub(super) async fn update_either(&self, change: impl Fn(&T) -> T) -> io::Result<()> {
        let Err(error) = self.update(&change).await else { return Ok(()) };
        tracing::warn!(file = self.kind.file, %error, "one slot can't be written, the other is");
        self.next.set(1 - self.next.get());
        self.update(&change).await
    }
}

fn encode<T: Serialize>(kind: TwoSlotsKind, sequence: u64, value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut bytes, value)?;
    let body_length = (bytes.len() - HEADER_BYTES) as u32;
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&body_length.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&kind.tag);
    let check = check(&bytes[..CHECK_AT], &bytes[HEADER_BYTES..]);
    bytes[CHECK_AT..HEADER_BYTES].copy_from_slice(&check.to_le_bytes());
    Ok(bytes)
}

fn decode<F: StorageFile, T: DeserializeOwned>(
    file: &F,
    kind: TwoSlotsKind,
    slot: u64,
) -> Result<(u64, T), TwoSlotsError> {
    let damaged = |why: &str| TwoSlotsError::Damaged(format!("slot {slot} {why}"));
    let read = |at: u64, into: &mut [u8]| match file.read_at(slot * kind.slot_bytes + at, into) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged("is cut off")),
        Err(error) => Err(TwoSlotsError::Io(error)),
    };
    let mut header = [0; HEADER_BYTES];
    read(0, &mut header)?;
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if header[..8] != MAGIC || header[24..32] != kind.tag {
        return Err(damaged("has another magic"));
    }
    if number(8) != VERSION {
        return Err(TwoSlotsError::Version(number(8)));
    }
    let length = u64::from(number(12));
    if length > kind.slot_bytes - HEADER_BYTES as u64 {
        return Err(damaged("claims to be longer than a slot"));
    }
    let mut body = vec![0; length as usize];
    read(HEADER_BYTES as u64, &mut body)?;
    if check(&header[..CHECK_AT], &body) != number(CHECK_AT) {
        return Err(damaged("has a wrong checksum"));
    }
    let value = serde_json::from_slice(&body).map_err(|why| damaged(&why.to_string()))?;
    Ok((u64::from_le_bytes(header[16..24].try_into().expect("8 bytes")), value))
}

fn check(header: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), body)
}
