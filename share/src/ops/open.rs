//! OPEN, CLOSE and what is between (RFC 8881, 18.2, 18.16, 18.18).

use super::attributes::Wanted;
use super::names::encode_changed;
use super::{Cursor, Held, Place};
use crate::state::{Claims, OpenRequest};
use crate::tree::{Access, Change, Changed, Name, NewFile, Result};
use crate::wire::arguments::{Claim, HowToCreate, Open};
use crate::wire::attributes::{AttributeSet, SetTime, Time, number};
use crate::wire::status::Status;
use crate::wire::types::{FileHandle, FileType, Share, StateId, Verifier};
use crate::wire::xdr::Encoder;

/// What a client would like of delegations: bits that may be there and mean nothing here.
const WANT_BITS: u32 = 0x3_ff00;
/// Locks replace and split each other, as POSIX has it.
const RESULT_LOCKTYPE_POSIX: u32 = 4;
/// Who waits for a lock may be told that it is free.
const RESULT_MAY_NOTIFY_LOCK: u32 = 0x20;
/// Minor version 0: the client has to say that this wasn't an old request.
const RESULT_CONFIRM: u32 = 2;
const NO_DELEGATION: u32 = 0;
/// With the reason, for who has asked in particular: it isn't given for files at all, or wasn't wanted.
const NO_DELEGATION_BECAUSE: u32 = 3;
const WANTED_NONE: u32 = 0x400;
const NOT_WANTED: u32 = 0;
const NOT_FOR_THIS_FILE: u32 = 3;
/// Until the client sets one.
const MODE_UNSAID: u32 = 0o600;

/// The file that an OPEN came to.
struct Found {
    file: FileHandle,
    changed: Changed,
    created: bool,
    /// What was set of what was wanted; and whether the file has to be emptied.
    set: AttributeSet,
    truncate: bool,
}

impl Cursor<'_> {
    pub(super) fn open(&mut self, asked: &Open, reply: &mut Encoder) -> Result<()> {
        let wanted = if self.minor_version == 0 { 0 } else { asked.access & WANT_BITS };
        let access = Share::new(asked.access & !wanted).ok_or(Status::Inval)?;
        let deny = Share::new(asked.deny).ok_or(Status::Inval)?;
        if access.is_none() {
            return Err(Status::Inval);
        }
        let (client, here) = (self.client(asked.client)?, self.current()?.file);
        let claims = matches!(asked.claim, Claim::Previous { .. });
        let kind = Claims::of_open(!deny.is_none());
        self.may_acquire(client, kind, claims)?;

        let found = match asked.claim {
            Claim::Name(name) => self.find(here, Name::new(name)?, asked.create.as_ref())?,
            Claim::Previous { delegated: true } | Claim::Delegation => {
                return Err(Status::ReclaimBad); // nobody had a delegation
            }
            Claim::Previous { .. } | Claim::File if asked.create.is_some() => {
                return Err(Status::Inval);
            }
            Claim::Previous { .. } | Claim::File => self.existing(here, here)?,
        };
        match self.export.tree.attributes(found.file)?.kind {
            FileType::Regular => {}
            FileType::Directory => return Err(Status::IsDir),
            FileType::Symlink => return Err(Status::Symlink),
            _ => return Err(Status::WrongType),
        }
        if !found.created {
            // Who has had the file open keeps it, whatever its mode is by now.
            let by_handle = !matches!(asked.claim, Claim::Name(_));
            let needed = if found.truncate { access.with(Share::WRITE) } else { access };
            self.permit(found.file, needed, by_handle)?;
        }
        let held = Held { file: self.export.tree.open(found.file)?, uid: self.caller.uid };
        let request = OpenRequest { client, owner: asked.owner, file: found.file, access, deny };
        let now = self.now;
        let stateid =
            self.acquire(client, kind, claims, |state| state.open(now, request, held.clone()))?;
        self.current = Some(Place { file: found.file, stateid });
        if found.truncate {
            held.file.set_size(self.caller, 0)?;
        }
        encode_stateid(&stateid, reply);
        encode_changed(&found.changed, reply);
        let confirm = self.minor_version == 0
            && self.export.with_state(|state| {
                if claims {
                    state.confirm_owner(client, asked.owner);
                }
                state.needs_confirmation(client, asked.owner)
            });
        let may_notify = self.export.with_state(|state| state.has_way_back(client));
        let flags = [(confirm, RESULT_CONFIRM), (may_notify, RESULT_MAY_NOTIFY_LOCK)];
        let flags = flags.into_iter().filter(|(set, _)| *set);
        reply.u32(flags.fold(RESULT_LOCKTYPE_POSIX, |all, (_, flag)| all | flag));
        found.set.encode(reply);
        match wanted {
            0 => reply.u32(NO_DELEGATION),
            want => {
                reply.u32(NO_DELEGATION_BECAUSE);
                reply.u32(if want == WANTED_NONE { NOT_WANTED } else { NOT_FOR_THIS_FILE });
            }
        }
        Ok(())
    }

    /// By its name, or made.
    fn find(
        &mut self,
        directory: FileHandle,
        name: Name,
        create: Option<&HowToCreate>,
    ) -> Result<Found> {
        let Some(how) = create else {
            let file = self.export.tree.lookup(self.caller, directory, name)?;
            return self.existing(directory, file);
        };
        let wanted = match how {
            HowToCreate::Unchecked(values) | HowToCreate::Guarded(values) => {
                Wanted::parse(values, self.minor_version)?
            }
            HowToCreate::Exclusive(_, Some(values)) => {
                Wanted::parse_exclusive(values, self.minor_version)?
            }
            HowToCreate::Exclusive(_, None) => Wanted::nothing(),
        };
        let mode = wanted.change.mode.unwrap_or(MODE_UNSAID);
        let tree = &self.export.tree;
        match tree.create(self.caller, directory, name, NewFile::Regular, mode) {
            Ok((file, changed)) => self.created(file, changed, how, wanted),
            Err(Status::Exist) => {
                let file = tree.lookup(self.caller, directory, name)?;
                let mut found = self.existing(directory, file)?;
                match how {
                    HowToCreate::Unchecked(_) => {
                        found.truncate = wanted.size_bytes == Some(0);
                        if found.truncate {
                            found.set = AttributeSet::of(&[number::SIZE]);
                        }
                        Ok(found)
                    }
                    HowToCreate::Guarded(_) => Err(Status::Exist),
                    // It may be ours, from a try whose answer was lost.
                    HowToCreate::Exclusive(verifier, _) => {
                        let attributes = tree.attributes(file)?;
                        let (accessed, modified) = kept_in_times(verifier);
                        let ours = attributes.size_bytes == 0
                            && (attributes.accessed, attributes.modified) == (accessed, modified);
                        if !ours {
                            return Err(Status::Exist);
                        }
                        found.created = true;
                        found.set = wanted.set.or(&TIMES);
                        Ok(found)
                    }
                }
            }
            Err(status) => Err(status),
        }
    }

    fn existing(&self, changed_there: FileHandle, file: FileHandle) -> Result<Found> {
        let now = self.export.tree.attributes(changed_there)?.change;
        let changed = Changed { before: now, after: now };
        Ok(Found { file, changed, created: false, set: AttributeSet::default(), truncate: false })
    }

    fn created(
        &self,
        file: FileHandle,
        changed: Changed,
        how: &HowToCreate,
        wanted: Wanted,
    ) -> Result<Found> {
        let tree = &self.export.tree;
        let mut set = wanted.set;
        let mut rest = Change { mode: None, ..wanted.change };
        if let HowToCreate::Exclusive(verifier, _) = how {
            let (accessed, modified) = kept_in_times(verifier);
            rest.accessed = Some(SetTime::To(accessed));
            rest.modified = Some(SetTime::To(modified));
            set = set.or(&TIMES);
        }
        if let Some(size_bytes) = wanted.size_bytes.filter(|&size_bytes| size_bytes > 0) {
            tree.open(file)?.set_size(self.caller, size_bytes)?;
        }
        if !rest.is_empty() {
            tree.set(self.caller, file, &rest)?;
        }
        Ok(Found { file, changed, created: true, set, truncate: false })
    }

    /// The caller's right to a file. `owner_may`: its owner has it in any case.
    pub(super) fn permit(&self, file: FileHandle, access: Share, owner_may: bool) -> Result<()> {
        let tree = &self.export.tree;
        let (read, write) = (access.reads(), access.writes());
        // Who may run a program may read it, or it couldn't run there.
        let wanted = Access { read, write, execute: read };
        let may = tree.access(self.caller, file, wanted)?;
        if (!read || may.read || may.execute) && (!write || may.write) {
            return Ok(());
        }
        if owner_may && tree.attributes(file)?.uid == self.caller.uid {
            return Ok(());
        }
        Err(Status::Access)
    }

    pub(super) fn close(&mut self, stateid: StateId, reply: &mut Encoder) -> Result<()> {
        let file = self.current()?.file;
        let stateid = self.stateid(stateid)?;
        let client = self.holder(stateid)?;
        if self.minor_version == 0 {
            let last = self.export.with_state(|state| state.close40(client, stateid, file))?;
            encode_stateid(&last, reply);
            return Ok(());
        }
        self.export.with_state(|state| state.close(client, stateid, file))?;
        self.set_stateid(StateId::INVALID);
        encode_stateid(&StateId::INVALID, reply);
        Ok(())
    }

    pub(super) fn open_downgrade(
        &mut self,
        stateid: StateId,
        access: u32,
        deny: u32,
        reply: &mut Encoder,
    ) -> Result<()> {
        let file = self.current()?.file;
        let wanted = if self.minor_version == 0 { 0 } else { access & WANT_BITS };
        let access = Share::new(access & !wanted).ok_or(Status::Inval)?;
        let deny = Share::new(deny).ok_or(Status::Inval)?;
        let stateid = self.stateid(stateid)?;
        let client = self.holder(stateid)?;
        let lowered =
            self.export.with_state(|state| state.downgrade(client, stateid, file, access, deny))?;
        self.set_stateid(lowered);
        encode_stateid(&lowered, reply);
        Ok(())
    }
}

const TIMES: AttributeSet = AttributeSet::of(&[number::TIME_ACCESS, number::TIME_MODIFY]);

/// An exclusive creation leaves its verifier in the file's times, where a restart of ours finds it; the
/// client sets them afterwards.
fn kept_in_times(verifier: &Verifier) -> (Time, Time) {
    let (first, second) = verifier.split_first_chunk::<4>().expect("it has 8 bytes");
    let second = *second.first_chunk().expect("4 are left");
    let time = |half: [u8; 4]| Time {
        // As file systems with 32 bits of time can keep it.
        seconds: (u32::from_be_bytes(half) & 0x7fff_ffff).into(),
        nanoseconds: 0,
    };
    (time(*first), time(second))
}

pub(super) fn encode_stateid(stateid: &StateId, reply: &mut Encoder) {
    reply.u32(stateid.seqid);
    reply.fixed(&stateid.other);
}
