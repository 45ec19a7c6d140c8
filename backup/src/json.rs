//! JSON as Go's `encoding/json` writes it, which is what Longhorn's stores contain.
//!
//! Besides the escapes that JSON asks for, Go escapes `<`, `>`, `&`, U+2028 and U+2029.

use std::io::{self, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn to_vec(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, GoFormatter);
    value.serialize(&mut serializer).expect("our manifests have string keys and go to memory");
    bytes
}

struct GoFormatter;

impl serde_json::ser::Formatter for GoFormatter {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        let is_escaped = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        for part in fragment.split_inclusive(is_escaped) {
            match part.chars().next_back().filter(|last| is_escaped(*last)) {
                Some(last) => {
                    writer.write_all(&part.as_bytes()[..part.len() - last.len_utf8()])?;
                    write!(writer, "\\u{:04x}", u32::from(last))?;
                }
                None => writer.write_all(part.as_bytes())?,
            }
        }
        Ok(())
    }
}

/// A number that is stored as a string of decimal digits; an empty one is 0, as in a stub.
pub(crate) mod decimal {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(0);
        }
        // Go reads these into an int64.
        text.parse::<i64>().ok().and_then(|number| u64::try_from(number).ok()).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            serde::de::Error::custom(format_args!("{shown:?} is not a decimal number of 63 bits"))
        })
    }
}

/// A string that is stored as JSON inside a JSON string: `"\"lz4\""`. A plain one is read too.
pub(crate) mod quoted {
    use super::*;

    pub(crate) fn serialize<S, T>(value: &T, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        T: Serialize,
    {
        let inner = String::from_utf8(to_vec(value)).expect("JSON is UTF-8");
        serializer.serialize_str(&inner)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<String, D::Error> {
        let outer = String::deserialize(deserializer)?;
        Ok(serde_json::from_str(&outer).unwrap_or(outer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_escapes_them() {
        let text = "a<b>&c \"quoted\" \u{2028}é\\";
        assert_eq!(
            String::from_utf8(to_vec(&text)).unwrap(),
            r#""a\u003cb\u003e\u0026c \"quoted\" \u2028é\\""#
        );
        assert_eq!(serde_json::from_slice::<String>(&to_vec(&text)).unwrap(), text);
    }
}
