//! Reading a backup's manifest in little memory, whatever its bytes are.
//!
//! The map is read block by block, 40 bytes for each of [`BLOCKS_MAX`] at most, or none if only
//! [`MapFacts`] are wanted. All the rest (names, labels, fields of later versions) may have
//! [`REST_BYTES_MAX`] together, which a stream of bytes can't go past.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::ManifestProblem;
use super::map::{BLOCKS_MAX, BlockMapping, MapFacts};

/// Bytes of a manifest besides its map. The largest that is known are labels with what Kubernetes
/// says of the volume, and no object there has more than 1.5 MiB.
pub const REST_BYTES_MAX: u64 = 2 << 20;
/// Bytes of one block in the map; one has some 110.
const BLOCK_TEXT_BYTES_MAX: u64 = 4096;

const BLOCKS: &str = "Blocks";

/// A manifest before its fields have meaning.
pub(super) struct Parts {
    /// Everything but the map.
    pub(super) rest: Value,
    /// In the order of the text; `None` if it has none, or if it wasn't to be kept.
    pub(super) map: Option<Vec<BlockMapping>>,
    pub(super) facts: MapFacts,
}

pub(super) fn read(reader: impl Read, keeps_map: bool) -> Result<Parts, ManifestProblem> {
    let allowed = Cell::new(REST_BYTES_MAX);
    let reader = Allowed { reader: BufReader::new(reader), left: &allowed };
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let parts = Manifest { allowed: &allowed, keeps_map }
        .deserialize(&mut deserializer)
        .and_then(|parts| deserializer.end().map(|()| parts));
    parts.map_err(|error| match error.classify() {
        serde_json::error::Category::Io => {
            let error = io::Error::from(error);
            if error.get_ref().is_some_and(|inner| inner.is::<Exceeded>()) {
                ManifestProblem::TooBig
            } else {
                ManifestProblem::Unreadable(error)
            }
        }
        _ => ManifestProblem::Json(error),
    })
}

/// Gives no more bytes than are left at a time.
struct Allowed<'a, R> {
    reader: R,
    left: &'a Cell<u64>,
}

#[derive(Debug, thiserror::Error)]
#[error("more text than a manifest has")]
struct Exceeded;

impl<R: Read> Read for Allowed<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(into)?;
        match self.left.get().checked_sub(read as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::other(Exceeded)),
        }
        Ok(read)
    }
}

struct Manifest<'a> {
    allowed: &'a Cell<u64>,
    keeps_map: bool,
}

impl<'de> DeserializeSeed<'de> for Manifest<'_> {
    type Value = Parts;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Parts, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Manifest<'_> {
    type Value = Parts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Parts, A::Error> {
        let (mut rest, mut blocks) = (Map::new(), None);
        while let Some(key) = fields.next_key::<String>()? {
            let is_new = if key == BLOCKS {
                let seed = Blocks { allowed: self.allowed, keeps_map: self.keeps_map };
                blocks.replace(fields.next_value_seed(seed)?).is_none()
            } else {
                rest.insert(key.clone(), fields.next_value()?).is_none()
            };
            if !is_new {
                return Err(A::Error::custom(format_args!("the field {key:?} is there twice")));
            }
        }
        let (map, facts) = blocks.unwrap_or_default();
        Ok(Parts { rest: Value::Object(rest), map, facts })
    }
}

struct Blocks<'a> {
    allowed: &'a Cell<u64>,
    keeps_map: bool,
}

impl<'de> DeserializeSeed<'de> for Blocks<'_> {
    type Value = (Option<Vec<BlockMapping>>, MapFacts);

    fn deserialize<D>(self, deserializer: D) -> Result<Self::Value, D::Error>
    where
        D: serde::Deserializer<'de>,
    {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Blocks<'_> {
    type Value = (Option<Vec<BlockMapping>>, MapFacts);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of blocks")
    }

    /// `null`
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Default::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut blocks: A) -> Result<Self::Value, A::Error> {
        let of_the_rest = self.allowed.replace(BLOCK_TEXT_BYTES_MAX);
        let mut map = self.keeps_map.then(Vec::new);
        let mut facts = MapFacts::default();
        while let Some(block) = blocks.next_element::<BlockMapping>()? {
            facts.add(&block);
            if facts.blocks > BLOCKS_MAX {
                return Err(A::Error::custom(format_args!("more than {BLOCKS_MAX} blocks")));
            }
            if let Some(map) = &mut map {
                map.push(block);
            }
            self.allowed.set(BLOCK_TEXT_BYTES_MAX);
        }
        self.allowed.set(of_the_rest);
        Ok((map, facts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text of any length, made while it is read.
    fn endless(head: &str, again: &str, times: usize, tail: &str) -> impl Read + use<> {
        struct Text(Box<dyn Iterator<Item = u8>>);
        impl Read for Text {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let bytes = into.iter_mut().zip(&mut self.0);
                Ok(bytes.map(|(to, byte)| *to = byte).count())
            }
        }
        let again = again.as_bytes().to_vec();
        let middle = (0..times).flat_map(move |_| again.clone());
        let (head, tail) = (head.as_bytes().to_vec(), tail.as_bytes().to_vec());
        Text(Box::new(head.into_iter().chain(middle).chain(tail)))
    }

    /// 91 MiB of labels took 1.7 GB of memory, in the process that keeps volumes going.
    #[test]
    fn text_without_end_is_refused_before_it_is_kept() {
        for (head, again) in [
            (r#"{"Labels":{"a":"a""#, r#","a":"a""#),
            (r#"{"Name":""#, "aaaaaaaaaaaaaaaa"),
            (r#"{"#, r#""Fuu":[[[[]]]],"#),
            (r#"{""#, "aaaaaaaaaaaaaaaa"),
            (r#"{"Blocks":[{"Offset":"#, "1111"),
            (r#"{"Blocks":[{"Offset":1,"BlockChecksum":""#, "1111"),
            (r#"{"Blocks":["#, "        "),
            ("", "        "),
        ] {
            let outcome = read(endless(head, again, usize::MAX, ""), true);
            assert!(
                matches!(outcome, Err(ManifestProblem::TooBig | ManifestProblem::Json(_))),
                "{head}"
            );
        }
    }

    #[test]
    fn a_map_of_any_length_is_counted_and_what_follows_is_read() {
        let checksum = crate::block::BlockChecksum::of(b"x");
        let block = format!(r#","Offset":0,"BlockChecksum":"{checksum}"}},{{"I":0"#);
        let text = || {
            let head = r#"{"Name":"b1","Blocks":[{"I":0"#;
            let last = format!(r#","Offset":4096,"BlockChecksum":"{checksum}"}}],"Size":"1"}}"#);
            endless(head, &block, 100_000, &last)
        };
        let parts = read(text(), false).unwrap();
        assert!(parts.map.is_none());
        assert_eq!((parts.facts.blocks, parts.facts.last_offset_bytes), (100_001, Some(4096)));
        assert_eq!(parts.rest, serde_json::json!({ "Name": "b1", "Size": "1" }));
        assert_eq!(read(text(), true).unwrap().map.unwrap().len(), 100_001);
    }

    #[test]
    fn a_field_that_is_there_twice_is_refused() {
        for text in [r#"{"Blocks":[],"Blocks":[]}"#, r#"{"Size":"1","Size":"2"}"#] {
            assert!(matches!(read(text.as_bytes(), true), Err(ManifestProblem::Json(_))), "{text}");
        }
    }
}
