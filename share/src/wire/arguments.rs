//! The arguments of each operation, decoded. Bytes and names are borrowed from the message.

use super::arguments40::Operation40;
use super::arguments42::Operation42;
use super::attributes::{AttributeSet, AttributeValues};
use super::rpc::{CallbackAuth, decode_auth_sys};
use super::types::*;
use super::xdr::{Decoded, Decoder, Malformed};

macro_rules! operations {
    ($($name:ident = $number:literal,)*) => {
        /// The operations that have a number in the minor versions 0 to 2.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Number { $($name = $number,)* }

        impl Number {
            pub const LAST: Number = Number::RemoveXattr;

            pub fn new(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

operations! {
    Access = 3, Close = 4, Commit = 5, Create = 6, DelegPurge = 7, DelegReturn = 8, GetAttr = 9, GetFh = 10,
    Link = 11, Lock = 12, LockT = 13, LockU = 14, Lookup = 15, LookupP = 16, NVerify = 17, Open = 18,
    OpenAttr = 19, OpenConfirm = 20, OpenDowngrade = 21, PutFh = 22, PutPubFh = 23, PutRootFh = 24,
    Read = 25, ReadDir = 26, ReadLink = 27, Remove = 28, Rename = 29, Renew = 30, RestoreFh = 31, SaveFh = 32,
    SecInfo = 33, SetAttr = 34, SetClientId = 35, SetClientIdConfirm = 36, Verify = 37, Write = 38,
    ReleaseLockOwner = 39, BackChannelCtl = 40, BindConnToSession = 41, ExchangeId = 42, CreateSession = 43,
    DestroySession = 44, FreeStateId = 45, GetDirDelegation = 46, GetDeviceInfo = 47, GetDeviceList = 48,
    LayoutCommit = 49, LayoutGet = 50, LayoutReturn = 51, SecInfoNoName = 52, Sequence = 53, SetSsv = 54,
    TestStateId = 55, WantDelegation = 56, DestroyClientId = 57, ReclaimComplete = 58, Allocate = 59, Copy = 60,
    CopyNotify = 61, Deallocate = 62, IoAdvise = 63, LayoutError = 64, LayoutStats = 65, OffloadCancel = 66,
    OffloadStatus = 67, ReadPlus = 68, Seek = 69, WriteSame = 70, Clone = 71, GetXattr = 72, SetXattr = 73,
    ListXattrs = 74, RemoveXattr = 75,
}

pub const ILLEGAL: u32 = 10044;

/// How many stateids one TEST_STATEID may ask about.
const TEST_STATEIDS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    Access(u32),
    Close {
        seqid: u32,
        stateid: StateId,
    },
    Commit {
        offset: u64,
        count: u32,
    },
    Create(Create<'a>),
    DelegReturn(StateId),
    GetAttr(AttributeSet),
    GetFh,
    Link(&'a [u8]),
    Lock(Lock<'a>),
    LockT {
        client: ClientId,
        range: LockRange,
        exclusive: bool,
        owner: &'a [u8],
    },
    LockU {
        seqid: u32,
        stateid: StateId,
        range: LockRange,
    },
    Lookup(&'a [u8]),
    LookupP,
    Verify {
        values: AttributeValues<'a>,
        same: bool,
    },
    Open(Open<'a>),
    OpenDowngrade {
        stateid: StateId,
        seqid: u32,
        access: u32,
        deny: u32,
    },
    PutFh(&'a [u8]),
    PutRootFh,
    Read {
        stateid: StateId,
        offset: u64,
        count: u32,
    },
    ReadDir(ReadDir),
    ReadLink,
    Remove(&'a [u8]),
    Rename {
        from: &'a [u8],
        to: &'a [u8],
    },
    RestoreFh,
    SaveFh,
    SecInfo(&'a [u8]),
    SecInfoNoName {
        of_parent: bool,
    },
    SetAttr {
        stateid: StateId,
        values: AttributeValues<'a>,
    },
    Write {
        stateid: StateId,
        offset: u64,
        stability: Stability,
        data: &'a [u8],
    },
    BackChannelCtl {
        program: u32,
        auth: Option<CallbackAuth>,
    },
    BindConnToSession {
        session: SessionId,
        direction: u32,
    },
    ExchangeId(ExchangeId<'a>),
    CreateSession(CreateSession),
    DestroySession(SessionId),
    FreeStateId(StateId),
    Sequence(Sequence),
    TestStateId(Decoder<'a>, usize),
    DestroyClientId(ClientId),
    ReclaimComplete {
        one_fs: bool,
    },
    V40(Operation40<'a>),
    V42(Operation42<'a>),
    /// Known, and not served.
    NotSupported,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Create<'a> {
    pub kind: CreateKind<'a>,
    pub name: &'a [u8],
    pub values: AttributeValues<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateKind<'a> {
    Directory,
    Symlink(&'a [u8]),
    Device {
        kind: FileType,
        major: u32,
        minor: u32,
    },
    Special(FileType),
    /// A type that this operation doesn't make.
    Bad,
}

/// As a client says it: a length of all ones is "to the end".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    pub offset: u64,
    pub length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock<'a> {
    pub exclusive: bool,
    /// The client asks again until it has it.
    pub waits: bool,
    pub reclaim: bool,
    pub range: LockRange,
    pub locker: Locker<'a>,
    /// Minor version 0 counts by them; zero where there is none.
    pub open_seqid: u32,
    pub lock_seqid: u32,
    pub client: ClientId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locker<'a> {
    /// The first lock of this owner on this file; it goes with an open.
    New {
        open: StateId,
        owner: &'a [u8],
    },
    Known(StateId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open<'a> {
    /// These two have a meaning in minor version 0 only.
    pub seqid: u32,
    pub client: ClientId,
    pub access: u32,
    pub deny: u32,
    pub owner: &'a [u8],
    /// `None`: the file has to be there.
    pub create: Option<HowToCreate<'a>>,
    pub claim: Claim<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowToCreate<'a> {
    Unchecked(AttributeValues<'a>),
    Guarded(AttributeValues<'a>),
    Exclusive(Verifier, Option<AttributeValues<'a>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim<'a> {
    Name(&'a [u8]),
    /// The current filehandle, which was open before the server restarted.
    Previous {
        delegated: bool,
    },
    /// The current filehandle.
    File,
    /// With a delegation, which nobody has.
    Delegation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDir {
    pub cookie: u64,
    pub verifier: Verifier,
    /// How much of names and cookies, a hint; how much of a reply in all.
    pub names_bytes_max: u32,
    pub reply_bytes_max: u32,
    pub wanted: AttributeSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeId<'a> {
    pub verifier: Verifier,
    pub owner: &'a [u8],
    pub flags: u32,
    pub protect: Protect,
}

/// How a client's state is to be protected: we know no more than not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protect {
    None,
    MachineCredential,
    SharedSecret,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelAttributes {
    pub request_bytes_max: u32,
    pub reply_bytes_max: u32,
    pub cached_reply_bytes_max: u32,
    pub operations_max: u32,
    pub slots: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateSession {
    pub client: ClientId,
    pub sequence: u32,
    pub flags: u32,
    pub fore: ChannelAttributes,
    pub back: ChannelAttributes,
    pub callback_program: u32,
    pub callback_auth: Option<CallbackAuth>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub session: SessionId,
    pub sequence: u32,
    pub slot: u32,
    pub highest_slot: u32,
    pub cache_this: bool,
}

impl<'a> Operation<'a> {
    /// The arguments of operation `number` of the minor versions 1 and 2.
    pub fn decode(number: Number, body: &mut Decoder<'a>) -> Decoded<Self> {
        use Number as N;
        Ok(match number {
            N::Access => Self::Access(body.u32()?),
            N::Close => {
                let seqid = body.u32()?;
                Self::Close { seqid, stateid: stateid(body)? }
            }
            N::Commit => Self::Commit { offset: body.u64()?, count: body.u32()? },
            N::Create => Self::Create(Create::decode(body)?),
            N::DelegReturn => Self::DelegReturn(stateid(body)?),
            N::GetAttr => Self::GetAttr(AttributeSet::decode(body)?),
            N::GetFh => Self::GetFh,
            N::Link => Self::Link(name(body)?),
            N::Lock => Self::Lock(Lock::decode(body)?),
            N::LockT => {
                let exclusive = lock_is_exclusive(body)?;
                let range = LockRange::decode(body)?;
                let client = ClientId(body.u64()?);
                Self::LockT { client, range, exclusive, owner: body.opaque(OWNER_BYTES_MAX)? }
            }
            N::LockU => {
                let _type = lock_is_exclusive(body)?;
                let seqid = body.u32()?;
                Self::LockU { seqid, stateid: stateid(body)?, range: LockRange::decode(body)? }
            }
            N::Lookup => Self::Lookup(name(body)?),
            N::LookupP => Self::LookupP,
            N::NVerify => Self::Verify { values: AttributeValues::decode(body)?, same: false },
            N::Verify => Self::Verify { values: AttributeValues::decode(body)?, same: true },
            N::Open => Self::Open(Open::decode(body)?),
            N::OpenDowngrade => {
                let stateid = stateid(body)?;
                let seqid = body.u32()?;
                Self::OpenDowngrade { stateid, seqid, access: body.u32()?, deny: body.u32()? }
            }
            N::PutFh => Self::PutFh(body.opaque(FileHandle::WIRE_BYTES_MAX)?),
            N::PutPubFh | N::PutRootFh => Self::PutRootFh,
            N::Read => {
                Self::Read { stateid: stateid(body)?, offset: body.u64()?, count: body.u32()? }
            }
            N::ReadDir => Self::ReadDir(ReadDir {
                cookie: body.u64()?,
                verifier: body.array()?,
                names_bytes_max: body.u32()?,
                reply_bytes_max: body.u32()?,
                wanted: AttributeSet::decode(body)?,
            }),
            N::ReadLink => Self::ReadLink,
            N::Remove => Self::Remove(name(body)?),
            N::Rename => Self::Rename { from: name(body)?, to: name(body)? },
            N::RestoreFh => Self::RestoreFh,
            N::SaveFh => Self::SaveFh,
            N::SecInfo => Self::SecInfo(name(body)?),
            N::SecInfoNoName => Self::SecInfoNoName { of_parent: body.bool()? },
            N::SetAttr => {
                let stateid = stateid(body)?;
                Self::SetAttr { stateid, values: AttributeValues::decode(body)? }
            }
            N::Write => Self::Write {
                stateid: stateid(body)?,
                offset: body.u64()?,
                stability: match body.u32()? {
                    0 => Stability::Unstable,
                    1 => Stability::DataSync,
                    2 => Stability::FileSync,
                    _ => return Err(Malformed),
                },
                data: body.opaque(IO_BYTES_MAX as usize)?,
            },
            N::BackChannelCtl => {
                Self::BackChannelCtl { program: body.u32()?, auth: callback_auth(body)? }
            }
            N::BindConnToSession => {
                let (session, direction) = (SessionId(body.array()?), body.u32()?);
                let _rdma = body.bool()?;
                Self::BindConnToSession { session, direction }
            }
            N::ExchangeId => Self::ExchangeId(ExchangeId::decode(body)?),
            N::CreateSession => Self::CreateSession(CreateSession::decode(body)?),
            N::DestroySession => Self::DestroySession(SessionId(body.array()?)),
            N::FreeStateId => Self::FreeStateId(stateid(body)?),
            N::Sequence => Self::Sequence(Sequence {
                session: SessionId(body.array()?),
                sequence: body.u32()?,
                slot: body.u32()?,
                highest_slot: body.u32()?,
                cache_this: body.bool()?,
            }),
            N::TestStateId => {
                let count = body.count(TEST_STATEIDS_MAX)?;
                let ids = body.clone();
                for _ in 0..count {
                    stateid(body)?;
                }
                Self::TestStateId(ids, count)
            }
            N::DestroyClientId => Self::DestroyClientId(ClientId(body.u64()?)),
            N::ReclaimComplete => Self::ReclaimComplete { one_fs: body.bool()? },
            _ => Operation42::decode(number, body)?.map_or(Self::NotSupported, Self::V42),
        })
    }
}

impl Operation<'_> {
    /// Whether it is nothing for an export that can only be read.
    pub fn changes_files(&self) -> bool {
        match self {
            Self::Create(_)
            | Self::Link(_)
            | Self::Remove(_)
            | Self::Rename { .. }
            | Self::SetAttr { .. }
            | Self::Write { .. } => true,
            Self::Open(open) => open.create.is_some() || open.access & Share::WRITE_BIT != 0,
            Self::V42(operation) => operation.changes_files(),
            _ => false,
        }
    }
}

pub fn stateid(body: &mut Decoder) -> Decoded<StateId> {
    Ok(StateId { seqid: body.u32()?, other: body.array()? })
}

/// A name of any length that fits a message: too long a one has an error of its own.
pub fn name<'a>(body: &mut Decoder<'a>) -> Decoded<&'a [u8]> {
    body.opaque(16 * 1024)
}

fn lock_is_exclusive(body: &mut Decoder) -> Decoded<bool> {
    lock_kind(body).map(|(exclusive, _)| exclusive)
}

/// Whether it keeps out readers too, and whether its owner is ready to wait.
fn lock_kind(body: &mut Decoder) -> Decoded<(bool, bool)> {
    match body.u32()? {
        kind @ 1..=4 => Ok((kind % 2 == 0, kind > 2)),
        _ => Err(Malformed),
    }
}

impl LockRange {
    fn decode(body: &mut Decoder) -> Decoded<Self> {
        Ok(Self { offset: body.u64()?, length: body.u64()? })
    }
}

impl<'a> Create<'a> {
    fn decode(body: &mut Decoder<'a>) -> Decoded<Self> {
        let kind = match FileType::from_number(body.u32()?) {
            Some(FileType::Directory) => CreateKind::Directory,
            Some(FileType::Symlink) => CreateKind::Symlink(body.opaque(16 * 1024)?),
            Some(kind @ (FileType::BlockDevice | FileType::CharacterDevice)) => {
                CreateKind::Device { kind, major: body.u32()?, minor: body.u32()? }
            }
            Some(kind @ (FileType::Socket | FileType::Fifo)) => CreateKind::Special(kind),
            Some(FileType::Regular) | None => CreateKind::Bad,
        };
        Ok(Self { kind, name: name(body)?, values: AttributeValues::decode(body)? })
    }
}

impl<'a> Lock<'a> {
    fn decode(body: &mut Decoder<'a>) -> Decoded<Self> {
        let (exclusive, waits) = lock_kind(body)?;
        let reclaim = body.bool()?;
        let range = LockRange::decode(body)?;
        let (mut open_seqid, mut client) = (0, ClientId(0));
        let (locker, lock_seqid);
        if body.bool()? {
            open_seqid = body.u32()?;
            let open = stateid(body)?;
            lock_seqid = body.u32()?;
            client = ClientId(body.u64()?);
            locker = Locker::New { open, owner: body.opaque(OWNER_BYTES_MAX)? };
        } else {
            locker = Locker::Known(stateid(body)?);
            lock_seqid = body.u32()?;
        }
        Ok(Self { exclusive, waits, reclaim, range, locker, open_seqid, lock_seqid, client })
    }
}

impl<'a> Open<'a> {
    fn decode(body: &mut Decoder<'a>) -> Decoded<Self> {
        let seqid = body.u32()?;
        let (access, deny) = (body.u32()?, body.u32()?);
        let client = ClientId(body.u64()?);
        let owner = body.opaque(OWNER_BYTES_MAX)?;
        let create = match body.u32()? {
            0 => None,
            1 => Some(match body.u32()? {
                0 => HowToCreate::Unchecked(AttributeValues::decode(body)?),
                1 => HowToCreate::Guarded(AttributeValues::decode(body)?),
                2 => HowToCreate::Exclusive(body.array()?, None),
                3 => {
                    let verifier = body.array()?;
                    HowToCreate::Exclusive(verifier, Some(AttributeValues::decode(body)?))
                }
                _ => return Err(Malformed),
            }),
            _ => return Err(Malformed),
        };
        let claim = match body.u32()? {
            0 => Claim::Name(name(body)?),
            1 => Claim::Previous { delegated: body.u32()? != 0 },
            2 => {
                stateid(body)?;
                name(body)?;
                Claim::Delegation
            }
            3 => {
                name(body)?;
                Claim::Delegation
            }
            4 => Claim::File,
            5 => {
                stateid(body)?;
                Claim::Delegation
            }
            6 => Claim::Delegation,
            _ => return Err(Malformed),
        };
        Ok(Self { seqid, client, access, deny, owner, create, claim })
    }
}

impl<'a> ExchangeId<'a> {
    fn decode(body: &mut Decoder<'a>) -> Decoded<Self> {
        let verifier = body.array()?;
        let owner = body.opaque(OWNER_BYTES_MAX)?;
        let flags = body.u32()?;
        let protect = match body.u32()? {
            0 => Protect::None,
            1 => {
                AttributeSet::decode(body)?; // operations that must be, and that may be
                AttributeSet::decode(body)?;
                Protect::MachineCredential
            }
            2 => {
                AttributeSet::decode(body)?;
                AttributeSet::decode(body)?;
                for _ in 0..2 {
                    for _ in 0..body.count(16)? {
                        body.opaque(64)?; // names of algorithms
                    }
                }
                let (_window, _handles) = (body.u32()?, body.u32()?);
                Protect::SharedSecret
            }
            _ => return Err(Malformed),
        };
        for _ in 0..body.count(1)? {
            let (_domain, _name) = (body.opaque(1024)?, body.opaque(1024)?);
            let _built = (body.i64()?, body.u32()?);
        }
        Ok(Self { verifier, owner, flags, protect })
    }
}

impl ChannelAttributes {
    fn decode(body: &mut Decoder) -> Decoded<Self> {
        let _header_padding = body.u32()?;
        let attributes = Self {
            request_bytes_max: body.u32()?,
            reply_bytes_max: body.u32()?,
            cached_reply_bytes_max: body.u32()?,
            operations_max: body.u32()?,
            slots: body.u32()?,
        };
        for _ in 0..body.count(1)? {
            let _rdma_depth = body.u32()?;
        }
        Ok(attributes)
    }
}

impl CreateSession {
    fn decode(body: &mut Decoder) -> Decoded<Self> {
        Ok(Self {
            client: ClientId(body.u64()?),
            sequence: body.u32()?,
            flags: body.u32()?,
            fore: ChannelAttributes::decode(body)?,
            back: ChannelAttributes::decode(body)?,
            callback_program: body.u32()?,
            callback_auth: callback_auth(body)?,
        })
    }
}

/// How we may show who we are when we call back: the best that we can do, if any.
fn callback_auth(body: &mut Decoder) -> Decoded<Option<CallbackAuth>> {
    let mut best = None;
    for _ in 0..body.count(16)? {
        match body.u32()? {
            0 => best = best.or(Some(CallbackAuth::None)),
            1 => best = Some(CallbackAuth::Sys(decode_auth_sys(body)?)),
            6 => {
                body.u32()?;
                let _handles = (body.opaque(1024)?, body.opaque(1024)?);
            }
            _ => return Err(Malformed),
        }
    }
    Ok(best)
}
