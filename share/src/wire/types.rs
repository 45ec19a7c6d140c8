//! Small types of the protocol, and the limits that we set where it leaves them open.

/// The most that one READ or WRITE moves. Linux asks for no more.
pub const IO_BYTES_MAX: u32 = 1 << 20;
pub const NAME_BYTES_MAX: usize = 255;
pub const LINK_BYTES_MAX: usize = 4096;
/// Of the value of an extended attribute: the kernel's limit.
pub const XATTR_BYTES_MAX: usize = 64 * 1024;
pub const TAG_BYTES_MAX: usize = 1024;
/// Of client owners, open owners and lock owners; the protocol's limit.
pub const OWNER_BYTES_MAX: usize = 1024;
/// What the owner of a client has before it in what is kept, at most.
pub const OWNER_PREFIX_BYTES_MAX: usize = 8;
/// The operations of one compound; Linux sends ten or so.
pub const OPERATIONS_MAX: u32 = 64;

/// A file's name for the wire: what the tree made, opaque to everybody else. As large as the largest
/// that a local tree makes, and small enough to be copied about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileHandle {
    len: u8,
    bytes: [u8; FileHandle::BYTES_MAX],
}

impl FileHandle {
    pub const BYTES_MAX: usize = 63;
    /// What the protocol allows; a handle of ours is smaller.
    pub const WIRE_BYTES_MAX: usize = 128;

    /// `None`: no handle of ours is so long.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut handle = Self { len: bytes.len() as u8, bytes: [0; Self::BYTES_MAX] };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(handle)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }
}

impl std::fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Names a state of the server (an open, locks) at one point of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateId {
    pub seqid: u32,
    pub other: [u8; 12],
}

impl StateId {
    /// No open at all: every access is checked by itself.
    pub const ANONYMOUS: StateId = StateId { seqid: 0, other: [0; 12] };
    /// As anonymous; a read may pass by mandatory locks, which we don't have.
    pub const BYPASS: StateId = StateId { seqid: u32::MAX, other: [0xff; 12] };
    /// The one that an earlier operation of this compound gave.
    pub const CURRENT: StateId = StateId { seqid: 1, other: [0; 12] };
    /// None: what a server gives when there is nothing to give.
    pub const INVALID: StateId = StateId { seqid: u32::MAX, other: [0; 12] };

    pub fn is_special(&self) -> bool {
        *self == Self::ANONYMOUS || *self == Self::BYPASS
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

pub type Verifier = [u8; 8];

/// What an open may do, and what it denies others: the same two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share(u32);

impl Share {
    pub const NONE: Share = Share(0);
    pub const READ: Share = Share(1);
    pub const WRITE: Share = Share(2);
    pub const BOTH: Share = Share(3);
    pub const WRITE_BIT: u32 = Share::WRITE.0;

    /// `None`: a bit that has no meaning.
    pub fn new(bits: u32) -> Option<Self> {
        (bits <= 3).then_some(Share(bits))
    }

    pub fn reads(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn writes(self) -> bool {
        self.0 & 2 != 0
    }

    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    pub fn with(self, other: Share) -> Share {
        Share(self.0 | other.0)
    }

    pub fn contains(self, other: Share) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn overlaps(self, other: Share) -> bool {
        self.0 & other.0 != 0
    }
}

/// How far a WRITE has to be before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stability {
    Unstable = 0,
    DataSync = 1,
    FileSync = 2,
}

/// Numbers of the file types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FileType {
    Regular = 1,
    Directory = 2,
    BlockDevice = 3,
    CharacterDevice = 4,
    Symlink = 5,
    Socket = 6,
    Fifo = 7,
}

impl FileType {
    pub fn from_number(number: u32) -> Option<Self> {
        use FileType::*;
        [Regular, Directory, BlockDevice, CharacterDevice, Symlink, Socket, Fifo]
            .into_iter()
            .find(|&kind| kind as u32 == number)
    }
}
