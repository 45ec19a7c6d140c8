//! NFSv4's error numbers (RFC 8881, 15.1; RFC 7862, 11).

use super::xdr::Malformed;
use rustix::io::Errno;

/// Why an operation failed. Success is `Ok(…)`, 0 on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{self:?}")]
#[repr(u32)]
pub enum Status {
    Perm = 1,
    NoEnt = 2,
    Io = 5,
    NxIo = 6,
    Access = 13,
    Exist = 17,
    XDev = 18,
    NotDir = 20,
    IsDir = 21,
    Inval = 22,
    FBig = 27,
    NoSpc = 28,
    RoFs = 30,
    MLink = 31,
    NameTooLong = 63,
    NotEmpty = 66,
    DQuot = 69,
    Stale = 70,
    BadHandle = 10001,
    BadCookie = 10003,
    NotSupp = 10004,
    TooSmall = 10005,
    ServerFault = 10006,
    BadType = 10007,
    Delay = 10008,
    Same = 10009,
    Denied = 10010,
    Expired = 10011,
    Locked = 10012,
    Grace = 10013,
    FhExpired = 10014,
    ShareDenied = 10015,
    WrongSec = 10016,
    ClidInUse = 10017,
    Resource = 10018,
    NoFileHandle = 10020,
    MinorVersMismatch = 10021,
    StaleClientId = 10022,
    StaleStateId = 10023,
    OldStateId = 10024,
    BadStateId = 10025,
    BadSeqId = 10026,
    NotSame = 10027,
    LockRange = 10028,
    Symlink = 10029,
    RestoreFh = 10030,
    AttrNotSupp = 10032,
    NoGrace = 10033,
    ReclaimBad = 10034,
    BadXdr = 10036,
    LocksHeld = 10037,
    OpenMode = 10038,
    BadOwner = 10039,
    BadChar = 10040,
    BadName = 10041,
    BadRange = 10042,
    LockNotSupp = 10043,
    OpIllegal = 10044,
    Deadlock = 10045,
    FileOpen = 10046,
    AdminRevoked = 10047,
    CbPathDown = 10048,
    BadSession = 10052,
    BadSlot = 10053,
    CompleteAlready = 10054,
    ConnNotBoundToSession = 10055,
    BackChanBusy = 10057,
    SeqMisordered = 10063,
    SequencePos = 10064,
    ReqTooBig = 10065,
    RepTooBig = 10066,
    RepTooBigToCache = 10067,
    RetryUncachedRep = 10068,
    UnsafeCompound = 10069,
    TooManyOps = 10070,
    OpNotInSession = 10071,
    HashAlgUnsupp = 10072,
    ClientIdBusy = 10074,
    SeqFalseRetry = 10076,
    BadHighSlot = 10077,
    NotOnlyOp = 10081,
    WrongType = 10083,
    EncrAlgUnsupp = 10079,
    UnionNotSupp = 10090,
    NoXattr = 10095,
    Xattr2Big = 10096,
}

pub const OK: u32 = 0;

impl Status {
    pub fn number(self) -> u32 {
        self as u32
    }
}

impl From<Malformed> for Status {
    fn from(_: Malformed) -> Self {
        Status::BadXdr
    }
}

impl From<Errno> for Status {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PERM => Status::Perm,
            Errno::NOENT => Status::NoEnt,
            Errno::NXIO | Errno::NODEV => Status::NxIo,
            Errno::ACCESS => Status::Access,
            Errno::EXIST => Status::Exist,
            Errno::XDEV => Status::XDev,
            Errno::NOTDIR => Status::NotDir,
            Errno::ISDIR => Status::IsDir,
            Errno::INVAL => Status::Inval,
            Errno::FBIG => Status::FBig,
            Errno::NOSPC => Status::NoSpc,
            Errno::ROFS => Status::RoFs,
            Errno::MLINK => Status::MLink,
            Errno::NAMETOOLONG => Status::NameTooLong,
            Errno::NOTEMPTY => Status::NotEmpty,
            Errno::DQUOT => Status::DQuot,
            Errno::STALE => Status::Stale,
            Errno::LOOP => Status::Symlink,
            Errno::NOTSUP => Status::NotSupp,
            Errno::NODATA => Status::NoXattr,
            Errno::TOOBIG => Status::Xattr2Big,
            // They pass: the client asks again.
            Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN => Status::Delay,
            _ => Status::Io,
        }
    }
}
