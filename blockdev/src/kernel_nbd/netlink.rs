//! Messages of generic netlink; pure: no socket, no clock.
//!
//! Layout after the kernel's `include/uapi/linux/netlink.h` and `genetlink.h`. Numbers are in the
//! machine's order; headers and attributes begin at multiples of four.
//!
//! ```text
//! message    length u32 │ type u16 │ flags u16 │ sequence u32 │ port u32 │ command u8 │ version u8 │ 0 u16 │ attributes
//! attribute  length u16 │ type u16 │ value │ padding
//! ```

/// `NLM_F_REQUEST | NLM_F_ACK`
const REQUEST_WITH_ANSWER: u16 = 1 | 4;
const TYPE_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
/// The rest of an attribute's type says how its value is laid out.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const ATTRIBUTE_NESTED: u16 = 1 << 15;

/// A list of attributes that is being written.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Ends with a zero, as the kernel wants its strings.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(super) fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | ATTRIBUTE_NESTED, &inner.0)
    }

    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("what we send is short");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// A request that is to be answered. `family` is the message's type.
pub(super) fn request(family: u16, sequence: u32, command: u8, attributes: &Attributes) -> Vec<u8> {
    let length = HEADER_BYTES + GENERIC_BYTES + attributes.0.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).expect("what we send is short").to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(REQUEST_WITH_ANSWER.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]); // the kernel knows our port
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(&attributes.0);
    bytes
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// The end of the answer: zero, or an errno.
    Done { errno: i32 },
    /// Attributes of a reply.
    Reply(&'a [u8]),
}

/// The messages for `sequence` in what was received; what is malformed or another's is left out.
pub(super) fn messages(received: &[u8], sequence: u32) -> impl Iterator<Item = Message<'_>> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER_BYTES)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
    .filter(move |message| u32_at(message, 8) == Some(sequence))
    .filter_map(|message| match u16_at(message, 4)? {
        TYPE_ERROR => {
            let code = u32_at(message, HEADER_BYTES)?.cast_signed();
            Some(Message::Done { errno: code.checked_neg()? })
        }
        _ => Some(Message::Reply(message.get(HEADER_BYTES + GENERIC_BYTES..)?)),
    })
}

/// The value of the first attribute of this type.
pub(super) fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let found = u16_at(rest, 2)? & ATTRIBUTE_TYPE;
        let value = rest.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(sequence: u32, attributes: Attributes) -> Vec<u8> {
        request(30, sequence, 1, &attributes)
    }

    fn error(sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = request(TYPE_ERROR, sequence, 0, &Attributes::default());
        bytes.truncate(HEADER_BYTES);
        bytes.extend(code.to_ne_bytes());
        bytes[0] = 20;
        bytes
    }

    #[test]
    fn attributes_begin_at_multiples_of_four_and_are_found_again() {
        let list = Attributes::default().text(10, "v1").u32(1, 7).nested(7, Attributes::default());
        assert_eq!(list.0.len(), 8 + 8 + 4);
        assert_eq!(attribute(&list.0, 10), Some(&b"v1\0"[..]));
        assert_eq!(attribute(&list.0, 1), Some(&7_u32.to_ne_bytes()[..]));
        assert_eq!(attribute(&list.0, 7), Some(&[][..]));
        assert_eq!(attribute(&list.0, 3), None);
    }

    #[test]
    fn an_answer_is_its_replies_and_its_end_and_nothing_of_others() {
        let ours = reply(5, Attributes::default().u32(1, 3));
        let received =
            [reply(4, Attributes::default()), ours, error(4, -1), error(5, -22)].concat();
        let found: Vec<_> = messages(&received, 5).collect();
        let [Message::Reply(attributes), Message::Done { errno: 22 }] = found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(attribute(attributes, 1), Some(&3_u32.to_ne_bytes()[..]));
    }

    /// Bytes from the kernel are bytes from a peer.
    #[test]
    fn what_is_cut_off_or_lies_about_its_length_is_left_out() {
        let whole = [reply(5, Attributes::default().u32(1, 3)), error(5, 0)].concat();
        for end in 0..whole.len() {
            for length in [0, 1, 3, 15, 16, 24, 255] {
                let mut received = whole[..end].to_vec();
                received.iter_mut().take(1).for_each(|byte| *byte = length);
                for message in messages(&received, 5) {
                    if let Message::Reply(attributes) = message {
                        let _ = attribute(attributes, 1);
                    }
                }
            }
        }
        assert_eq!(messages(&error(5, i32::MIN), 5).count(), 0);
    }
}
