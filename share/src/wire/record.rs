//! Record marking (RFC 5531, 11): over TCP a message is one fragment or several, each with its length
//! before it.

/// The most that a message may have: the largest write, and room for what is around it.
pub const RECORD_BYTES_MAX: usize = super::types::IO_BYTES_MAX as usize + 16 * 1024;
/// Enough for pieces of a kilobyte, which is less than any client makes of a large message.
pub const FRAGMENTS_MAX: usize = 1024;
pub const MARK_BYTES: usize = 4;

const LAST: u32 = 1 << 31;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub size_bytes: usize,
    pub is_last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of more than {RECORD_BYTES_MAX} bytes, or an empty piece of one")]
pub struct TooLong;

impl Fragment {
    /// The fragment that follows `before` bytes of the same message.
    pub fn parse(mark: [u8; MARK_BYTES], before: usize) -> Result<Self, TooLong> {
        let mark = u32::from_be_bytes(mark);
        let fragment = Self { size_bytes: (mark & !LAST) as usize, is_last: mark & LAST != 0 };
        let empty = fragment.size_bytes == 0 && !fragment.is_last;
        if empty || fragment.size_bytes > RECORD_BYTES_MAX - before {
            return Err(TooLong);
        }
        Ok(fragment)
    }
}

/// The mark of a message that is sent whole.
pub fn whole(size_bytes: usize) -> [u8; MARK_BYTES] {
    (size_bytes as u32 | LAST).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up_to_no_more_than_the_limit() {
        let last = Fragment { size_bytes: 8, is_last: true };
        assert_eq!(Fragment::parse(whole(8), 0), Ok(last));
        assert_eq!(Fragment::parse(whole(8), RECORD_BYTES_MAX - 8), Ok(last));
        assert_eq!(Fragment::parse(whole(9), RECORD_BYTES_MAX - 8), Err(TooLong));
        assert_eq!(Fragment::parse([0x7f, 0xff, 0xff, 0xff], 0), Err(TooLong));
        assert_eq!(
            Fragment::parse([0, 0, 0, 0], 0),
            Err(TooLong),
            "pieces of nothing, without end"
        );
    }
}
