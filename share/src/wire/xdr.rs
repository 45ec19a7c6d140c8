//! XDR (RFC 4506): big-endian numbers, and bytes padded to four.
//!
//! The decoder borrows from the record and allocates nothing; each length is checked against what is
//! left *and* a limit of the caller, so a peer's number never sizes memory. The encoder appends to a
//! buffer that the connection uses again and again.

/// The message ends too early, or a length or a choice in it can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message that is cut off, or a length or choice in it that can't be")]
pub struct Malformed;

pub type Decoded<T> = Result<T, Malformed>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What isn't decoded yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn u32(&mut self) -> Decoded<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Decoded<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn i64(&mut self) -> Decoded<i64> {
        self.array().map(i64::from_be_bytes)
    }

    pub fn bool(&mut self) -> Decoded<bool> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// Bytes of a fixed size that is a multiple of four.
    pub fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        const { assert!(N.is_multiple_of(4)) };
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*bytes)
    }

    /// Bytes with their length before them, at most `max_bytes`.
    pub fn opaque(&mut self, max_bytes: usize) -> Decoded<&'a [u8]> {
        let size_bytes = self.u32()? as usize;
        if size_bytes > max_bytes {
            return Err(Malformed);
        }
        let (padded, rest) =
            self.rest.split_at_checked(size_bytes.next_multiple_of(4)).ok_or(Malformed)?;
        self.rest = rest;
        Ok(&padded[..size_bytes])
    }

    /// The number of elements that follow, at most `max`; each takes four bytes or more.
    pub fn count(&mut self, max: usize) -> Decoded<usize> {
        let count = self.u32()? as usize;
        if count > max || count > self.rest.len() / 4 { Err(Malformed) } else { Ok(count) }
    }
}

/// Appends to `bytes`. What is written can be patched or taken back up to a mark.
#[derive(Debug)]
pub struct Encoder<'a> {
    bytes: &'a mut Vec<u8>,
}

/// A place in the encoder's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(usize);

impl<'a> Encoder<'a> {
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// Bytes without a length; the caller keeps to multiples of four.
    pub fn fixed(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len().is_multiple_of(4));
        self.bytes.extend_from_slice(bytes);
    }

    pub fn opaque(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("nothing that is sent is so long"));
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// A number as text in decimal, with its length before it.
    pub fn decimal(&mut self, mut value: u32) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.opaque(&digits[at..]);
    }

    /// Room for up to `max_bytes` that `fill` writes; it returns how many it wrote. They get their
    /// length before them.
    pub fn opaque_filled<E>(
        &mut self,
        max_bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let length = self.mark();
        self.u32(0);
        let start = self.bytes.len();
        self.bytes.resize(start + max_bytes, 0);
        let filled = fill(&mut self.bytes[start..])?;
        self.bytes.truncate(start + filled);
        self.patch_u32(length, filled as u32);
        self.pad();
        Ok(())
    }

    /// Goes on in another buffer, which is empty.
    pub fn move_to(&mut self, mut buffer: Vec<u8>) {
        buffer.extend_from_slice(self.bytes);
        *self.bytes = buffer;
    }

    /// What fits without a larger buffer.
    pub fn spare_bytes(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    pub fn mark(&self) -> Mark {
        Mark(self.bytes.len())
    }

    /// How many bytes were written since `mark`.
    pub fn since(&self, mark: Mark) -> usize {
        self.bytes.len() - mark.0
    }

    pub fn written_since(&self, mark: Mark) -> &[u8] {
        &self.bytes[mark.0..]
    }

    pub fn take_back(&mut self, mark: Mark) {
        self.bytes.truncate(mark.0);
    }

    pub fn patch_u32(&mut self, at: Mark, value: u32) {
        self.bytes[at.0..at.0 + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub fn patch_u64(&mut self, at: Mark, value: u64) {
        self.bytes[at.0..at.0 + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.u32(7);
        encoder.u64(1 << 40);
        encoder.bool(true);
        encoder.opaque(b"hello");
        encoder.decimal(0);
        encoder.decimal(u32::MAX);
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.u32(), Ok(7));
        assert_eq!(decoder.u64(), Ok(1 << 40));
        assert_eq!(decoder.bool(), Ok(true));
        assert_eq!(decoder.opaque(5), Ok(&b"hello"[..]));
        assert_eq!(decoder.opaque(10), Ok(&b"0"[..]));
        assert_eq!(decoder.opaque(10), Ok(&b"4294967295"[..]));
        assert!(decoder.is_empty());
    }

    /// A peer that announces four gigabytes must not make us reserve them.
    #[test]
    fn a_length_beyond_the_message_or_the_limit_is_refused() {
        assert_eq!(Decoder::new(&[0xff; 8]).opaque(usize::MAX), Err(Malformed));
        assert_eq!(Decoder::new(&[0, 0, 0, 4, 1, 2, 3, 4]).opaque(3), Err(Malformed));
        assert_eq!(Decoder::new(&[0, 0, 0, 3, 1, 2, 3]).opaque(3), Err(Malformed), "no padding");
        assert_eq!(Decoder::new(&[0, 0, 0, 2, 0, 0, 0, 0]).count(9), Err(Malformed));
        assert_eq!(Decoder::new(&[0, 0, 0, 2]).bool(), Err(Malformed));
    }

    #[test]
    fn bytes_filled_in_place_get_their_length_and_padding() {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder
            .opaque_filled(100, |room| {
                room[..5].copy_from_slice(b"abcde");
                Ok::<_, ()>(5)
            })
            .unwrap();
        assert_eq!(bytes, b"\0\0\0\x05abcde\0\0\0");
    }
}
