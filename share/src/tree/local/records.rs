//! What the share keeps on the exported file system itself, so that it moves with it: a hidden directory.
//!
//! ```text
//! .ankole-share/ ─┬─ identity         who this file system is (16 bytes), key of its handles (32)
//!                 └─ clients/NAME     who may claim after a restart; NAME is the SHA-256 of its owner
//!
//! clients/NAME:  | version: 1 | what it had | how many files | numbers of the files (8 each) | owner … |
//!                               bit 0: denials, bit 1: locks of any file, not only of those that follow
//! ```
//! A file appears whole, by a rename, and is durable when the call returns. The first version had nothing
//! before the owner; its clients may have had anything.

use super::super::Result;
use crate::state::{Claims, FEW, LockedFiles};
use crate::wire::types::{OWNER_BYTES_MAX, OWNER_PREFIX_BYTES_MAX};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

pub const HIDDEN: &[u8] = b".ankole-share";
const IDENTITY: &str = "identity";
const CLIENTS: &str = "clients";
/// More clients than the server takes; the rest of a directory that grew too large isn't read.
const CLIENTS_MAX: usize = 16_384;

pub struct Records {
    /// `None`: the file system can't be written, so nothing is kept.
    clients: Option<OwnedFd>,
    pub id: u128,
    pub key: [u8; 32],
}

impl Records {
    /// Makes what isn't there yet.
    pub fn open(root: BorrowedFd) -> rustix::io::Result<Self> {
        match Self::open_kept(root) {
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => {
                tracing::warn!(
                    "nothing can be kept in the export: handles and locks end with this process"
                );
                let (id, key) = split(&new_identity()?);
                Ok(Self { clients: None, id, key })
            }
            kept => kept,
        }
    }

    fn open_kept(root: BorrowedFd) -> rustix::io::Result<Self> {
        let hidden = directory(root, std::str::from_utf8(HIDDEN).expect("it is ASCII"))?;
        let clients = directory(hidden.as_fd(), CLIENTS)?;
        let identity = match read(hidden.as_fd(), IDENTITY.as_bytes(), 48) {
            Ok(bytes) => bytes.try_into().map_err(|_| Errno::IO)?,
            Err(Errno::NOENT) => {
                let new = new_identity()?;
                write(hidden.as_fd(), IDENTITY, &new)?;
                new
            }
            Err(error) => return Err(error),
        };
        rustix::fs::fsync(root)?;
        let (id, key) = split(&identity);
        Ok(Self { clients: Some(clients), id, key })
    }

    pub fn remembered(&self) -> Vec<(Box<[u8]>, Claims)> {
        let Some(clients) = &self.clients else { return Vec::new() };
        let Ok(entries) = rustix::fs::Dir::read_from(clients) else { return Vec::new() };
        entries
            .flatten()
            .take(CLIENTS_MAX)
            .filter(|entry| entry.file_name().count_bytes() == NAME_CHARACTERS)
            .filter_map(|entry| {
                let name = entry.file_name().to_bytes();
                let record = read(clients.as_fd(), name, RECORD_BYTES_MAX).ok()?;
                decode(name, &record)
            })
            .collect()
    }

    pub fn remember(&self, owner: &[u8], claims: Claims) -> Result<()> {
        let Some(clients) = &self.clients else { return Ok(()) };
        Ok(write(clients.as_fd(), &name_of(owner), &encode(owner, claims))?)
    }

    pub fn forget(&self, owners: &[&[u8]]) -> Result<()> {
        let Some(clients) = &self.clients else { return Ok(()) };
        for owner in owners {
            match rustix::fs::unlinkat(clients, name_of(owner), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rustix::fs::fsync(clients)?)
    }
}

fn encode(owner: &[u8], claims: Claims) -> Vec<u8> {
    let few = claims.locks.numbers();
    let bits = u8::from(claims.denials) | u8::from(few.is_none()) << 1;
    let few = few.unwrap_or_default();
    let mut record = vec![VERSION, bits, few.len() as u8];
    few.iter().for_each(|number| record.extend(number.to_be_bytes()));
    record.extend(owner);
    record
}

/// `None`: it isn't a record of ours.
fn decode(name: &[u8], record: &[u8]) -> Option<(Box<[u8]>, Claims)> {
    if name_of(record).as_bytes() == name {
        return Some((record.into(), Claims::ALL));
    }
    let (&[version, bits, count], mut owner) = record.split_first_chunk()?;
    let mut few = Vec::with_capacity(count.into());
    for _ in 0..count {
        let (number, rest) = owner.split_first_chunk()?;
        few.push(u64::from_be_bytes(*number));
        owner = rest;
    }
    let locks = if bits & 2 != 0 { LockedFiles::ANY } else { LockedFiles::few(&few) };
    let claims = Claims { denials: bits & 1 != 0, locks };
    let ours = version == VERSION && name_of(owner).as_bytes() == name;
    ours.then(|| (owner.into(), claims))
}

const VERSION: u8 = 1;
const RECORD_BYTES_MAX: usize = 3 + 8 * FEW + OWNER_PREFIX_BYTES_MAX + OWNER_BYTES_MAX;
const NAME_CHARACTERS: usize = 64;

fn name_of(owner: &[u8]) -> String {
    Sha256::digest(owner).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn new_identity() -> rustix::io::Result<[u8; 48]> {
    let mut identity = [0; 48];
    let filled = rustix::rand::getrandom(&mut identity, rustix::rand::GetRandomFlags::empty())?;
    if filled == identity.len() { Ok(identity) } else { Err(Errno::IO) }
}

fn split(identity: &[u8; 48]) -> (u128, [u8; 32]) {
    let (id, key) = identity.split_first_chunk().expect("48 bytes have 16");
    (u128::from_be_bytes(*id), *key.first_chunk().expect("32 are left"))
}

fn directory(parent: BorrowedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        // It may be there all the same, on a file system that can only be read.
        Err(error) if error != Errno::ROFS => return Err(error),
        Err(_) => {}
    }
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn read(directory: BorrowedFd, name: &[u8], max_bytes: usize) -> rustix::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let mut bytes = vec![0; max_bytes + 1];
    let size_bytes = rustix::io::pread(&file, &mut bytes, 0)?;
    if size_bytes > max_bytes {
        return Err(Errno::FBIG);
    }
    bytes.truncate(size_bytes);
    Ok(bytes)
}

fn write(directory: BorrowedFd, name: &str, bytes: &[u8]) -> rustix::io::Result<()> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let new = format!("{name}.new");
    let file = rustix::fs::openat(directory, &*new, flags, Mode::RUSR | Mode::WUSR)?;
    if rustix::io::pwrite(&file, bytes, 0)? != bytes.len() {
        return Err(Errno::NOSPC);
    }
    rustix::fs::fsync(&file)?;
    rustix::fs::renameat(directory, &*new, directory, name)?;
    rustix::fs::fsync(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_one_of_the_first_version_may_claim_anything() {
        let owner = b"\x01\x00Linux NFSv4.1 node";
        let name = name_of(owner);
        let read = |record: &[u8]| decode(name.as_bytes(), record);
        for locks in [LockedFiles::NONE, LockedFiles::few(&[1, u64::MAX]), LockedFiles::ANY] {
            for denials in [false, true] {
                let claims = Claims { denials, locks };
                let record = encode(owner, claims);
                assert_eq!(read(&record), Some(((*owner).into(), claims)));
                (0..record.len()).for_each(|cut| assert_eq!(read(&record[..cut]), None));
            }
        }
        let written = [&[1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 9], &owner[..]].concat();
        let claims = Claims { denials: true, locks: LockedFiles::few(&[9]) };
        assert_eq!(read(&written), Some(((*owner).into(), claims)));
        assert_eq!(encode(owner, claims), written);
        assert_eq!(read(owner), Some(((*owner).into(), Claims::ALL)));
        assert_eq!(read(&[&[2, 0, 0], &owner[..]].concat()), None, "a version that isn't known");
    }
}
