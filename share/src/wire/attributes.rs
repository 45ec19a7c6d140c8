//! Attributes: their numbers, sets of them, and the values that a client sets (RFC 8881, 5; RFC 7862, 12).

use super::types::NAME_BYTES_MAX;
use super::xdr::{Decoded, Decoder, Encoder, Malformed};

const WORDS: usize = 3;
/// A set may be longer than what we know; the rest is read and ignored.
const WIRE_WORDS_MAX: usize = 64;

/// A set of attributes' numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeSet([u32; WORDS]);

pub mod number {
    pub const SUPPORTED_ATTRS: u32 = 0;
    pub const TYPE: u32 = 1;
    pub const FH_EXPIRE_TYPE: u32 = 2;
    pub const CHANGE: u32 = 3;
    pub const SIZE: u32 = 4;
    pub const LINK_SUPPORT: u32 = 5;
    pub const SYMLINK_SUPPORT: u32 = 6;
    pub const NAMED_ATTR: u32 = 7;
    pub const FSID: u32 = 8;
    pub const UNIQUE_HANDLES: u32 = 9;
    pub const LEASE_TIME: u32 = 10;
    pub const RDATTR_ERROR: u32 = 11;
    pub const ACLSUPPORT: u32 = 13;
    pub const CANSETTIME: u32 = 15;
    pub const CASE_INSENSITIVE: u32 = 16;
    pub const CASE_PRESERVING: u32 = 17;
    pub const CHOWN_RESTRICTED: u32 = 18;
    pub const FILEHANDLE: u32 = 19;
    pub const FILEID: u32 = 20;
    pub const FILES_AVAIL: u32 = 21;
    pub const FILES_FREE: u32 = 22;
    pub const FILES_TOTAL: u32 = 23;
    pub const HOMOGENEOUS: u32 = 26;
    pub const MAXFILESIZE: u32 = 27;
    pub const MAXLINK: u32 = 28;
    pub const MAXNAME: u32 = 29;
    pub const MAXREAD: u32 = 30;
    pub const MAXWRITE: u32 = 31;
    pub const MODE: u32 = 33;
    pub const NO_TRUNC: u32 = 34;
    pub const NUMLINKS: u32 = 35;
    pub const OWNER: u32 = 36;
    pub const OWNER_GROUP: u32 = 37;
    pub const RAWDEV: u32 = 41;
    pub const SPACE_AVAIL: u32 = 42;
    pub const SPACE_FREE: u32 = 43;
    pub const SPACE_TOTAL: u32 = 44;
    pub const SPACE_USED: u32 = 45;
    pub const TIME_ACCESS: u32 = 47;
    pub const TIME_ACCESS_SET: u32 = 48;
    pub const TIME_CREATE: u32 = 50;
    pub const TIME_DELTA: u32 = 51;
    pub const TIME_METADATA: u32 = 52;
    pub const TIME_MODIFY: u32 = 53;
    pub const TIME_MODIFY_SET: u32 = 54;
    pub const MOUNTED_ON_FILEID: u32 = 55;
    pub const SUPPATTR_EXCLCREAT: u32 = 75;
    pub const XATTR_SUPPORT: u32 = 82;
}

impl AttributeSet {
    pub const fn of(numbers: &[u32]) -> Self {
        let mut set = Self([0; WORDS]);
        let mut at = 0;
        while at < numbers.len() {
            set.0[(numbers[at] / 32) as usize] |= 1 << (numbers[at] % 32);
            at += 1;
        }
        set
    }

    pub fn has(&self, number: u32) -> bool {
        self.0[(number / 32) as usize] & (1 << (number % 32)) != 0
    }

    pub fn insert(&mut self, number: u32) {
        self.0[(number / 32) as usize] |= 1 << (number % 32);
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    pub fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    pub fn or(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..32 * WORDS as u32).filter(move |&number| self.has(number))
    }

    /// Numbers that we don't know are left out.
    pub fn decode(body: &mut Decoder) -> Decoded<Self> {
        Self::decode_all(body).map(|(set, _)| set)
    }

    /// Also whether it has numbers that are left out.
    fn decode_all(body: &mut Decoder) -> Decoded<(Self, bool)> {
        let (mut set, mut beyond) = (Self::default(), false);
        for word in 0..body.count(WIRE_WORDS_MAX)? {
            let bits = body.u32()?;
            match set.0.get_mut(word) {
                Some(known) => *known = bits,
                None => beyond |= bits != 0,
            }
        }
        Ok((set, beyond))
    }

    pub fn encode(&self, reply: &mut Encoder) {
        let words = WORDS - self.0.iter().rev().take_while(|&&word| word == 0).count();
        reply.u32(words as u32);
        self.0[..words].iter().for_each(|&word| reply.u32(word));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Time {
    pub fn encode(&self, reply: &mut Encoder) {
        reply.i64(self.seconds);
        reply.u32(self.nanoseconds);
    }

    fn decode(body: &mut Decoder) -> Decoded<Self> {
        Ok(Self { seconds: body.i64()?, nanoseconds: body.u32()? })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// To what the server's clock says.
    Now,
    To(Time),
}

impl SetTime {
    fn decode(body: &mut Decoder) -> Decoded<Self> {
        match body.u32()? {
            0 => Ok(SetTime::Now),
            1 => Ok(SetTime::To(Time::decode(body)?)),
            _ => Err(Malformed),
        }
    }
}

/// Values as they stand on the wire: to be set, or to be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeValues<'a> {
    pub set: AttributeSet,
    /// It names attributes that are beyond all that we know.
    pub names_unknown: bool,
    pub bytes: &'a [u8],
}

/// The longest list of values that is looked at: what is set is small, and there are no ACLs.
const VALUES_BYTES_MAX: usize = 4096;

impl<'a> AttributeValues<'a> {
    pub fn decode(body: &mut Decoder<'a>) -> Decoded<Self> {
        let (set, names_unknown) = AttributeSet::decode_all(body)?;
        Ok(Self { set, names_unknown, bytes: body.opaque(VALUES_BYTES_MAX)? })
    }
}

/// What SETATTR, CREATE and OPEN may set.
pub const SETTABLE: AttributeSet = AttributeSet::of(&[
    number::SIZE,
    number::MODE,
    number::OWNER,
    number::OWNER_GROUP,
    number::TIME_ACCESS_SET,
    number::TIME_MODIFY_SET,
]);

/// What a client wants to set, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes<'a> {
    pub size_bytes: Option<u64>,
    pub mode: Option<u32>,
    pub owner: Option<&'a [u8]>,
    pub group: Option<&'a [u8]>,
    pub accessed: Option<SetTime>,
    pub modified: Option<SetTime>,
}

impl<'a> Changes<'a> {
    /// The values stand in the order of their numbers; `set` has none but settable ones.
    pub fn decode(values: &AttributeValues<'a>) -> Decoded<Self> {
        let mut body = Decoder::new(values.bytes);
        let has = |number| values.set.has(number);
        let mut changes = Self::default();
        if has(number::SIZE) {
            changes.size_bytes = Some(body.u64()?);
        }
        if has(number::MODE) {
            changes.mode = Some(body.u32()?);
        }
        if has(number::OWNER) {
            changes.owner = Some(body.opaque(NAME_BYTES_MAX)?);
        }
        if has(number::OWNER_GROUP) {
            changes.group = Some(body.opaque(NAME_BYTES_MAX)?);
        }
        if has(number::TIME_ACCESS_SET) {
            changes.accessed = Some(SetTime::decode(&mut body)?);
        }
        if has(number::TIME_MODIFY_SET) {
            changes.modified = Some(SetTime::decode(&mut body)?);
        }
        if body.is_empty() { Ok(changes) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_as_short_as_it_can_be_and_comes_back() {
        let set = AttributeSet::of(&[number::TYPE, number::MODE]);
        let mut bytes = Vec::new();
        set.encode(&mut Encoder::new(&mut bytes));
        assert_eq!(bytes, [0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]);
        assert_eq!(AttributeSet::decode(&mut Decoder::new(&bytes)), Ok(set));
        assert_eq!(set.iter().collect::<Vec<_>>(), [number::TYPE, number::MODE]);
    }

    #[test]
    fn what_nobody_knows_is_noticed() {
        let values = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        let decoded = AttributeValues::decode(&mut Decoder::new(&values)).unwrap();
        assert!(decoded.set.is_empty() && decoded.names_unknown);
    }

    #[test]
    fn values_that_say_more_than_their_set_are_malformed() {
        let set = AttributeSet::of(&[number::MODE]);
        let with = |bytes| AttributeValues { set, names_unknown: false, bytes };
        assert_eq!(Changes::decode(&with(&[0, 0, 1, 0xa4])).unwrap().mode, Some(0o644));
        assert_eq!(Changes::decode(&with(&[0, 0, 1, 0xa4, 0, 0, 0, 0])), Err(Malformed));
        assert_eq!(Changes::decode(&with(&[0, 0, 1])), Err(Malformed));
    }
}
