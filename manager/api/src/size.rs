//! Sizes of volumes: read from what people type, and written so that people can read them.

use ankole_replica::types::{VOLUME_BYTES_MAX, VOLUME_UNIT_BYTES};

/// A size that a volume can have, and what was asked for if that was rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSize {
    pub bytes: u64,
    pub rounded_from_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    #[error("{text:?} isn't a size: write a number of bytes, or a unit as in 512MiB, 10G, 1.5TiB")]
    NotASize { text: String },
    #[error("{text:?} could mean powers of 10 or of 2: write {}iB", .text.trim_end_matches(['B', 'b']))]
    Ambiguous { text: String },
    #[error("a volume can't have the size 0")]
    Zero,
    #[error("a volume can't be larger than 64 TiB")]
    TooLarge,
}

impl VolumeSize {
    pub fn of(bytes: u64) -> Result<Self, SizeError> {
        match bytes {
            0 => Err(SizeError::Zero),
            _ if bytes > VOLUME_BYTES_MAX => Err(SizeError::TooLarge),
            _ => {
                let rounded = bytes.next_multiple_of(VOLUME_UNIT_BYTES);
                let rounded_from_bytes = (rounded != bytes).then_some(bytes);
                Ok(Self { bytes: rounded, rounded_from_bytes })
            }
        }
    }

    /// `1G`, `1Gi` and `1GiB` are the same; a number alone is bytes.
    pub fn parse(text: &str) -> Result<Self, SizeError> {
        Self::of(parse_bytes(text)?)
    }
}

/// Exact: the digits never pass through a float.
fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError::NotASize { text: text.into() };
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = trimmed.split_at(digits_end.unwrap_or(trimmed.len()));
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        "p" | "pi" | "pib" => 50,
        "kb" | "mb" | "gb" | "tb" | "pb" => return Err(SizeError::Ambiguous { text: text.into() }),
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return Err(wrong());
    }
    // All digits by now, so that a failure to parse means "too many of them".
    let whole: u64 = whole.parse().map_err(|_| SizeError::TooLarge)?;
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 = fraction.parse().map_err(|_| wrong())?;
    let bytes = (u128::from(whole) << shift) + ((fraction << shift).div_ceil(scale));
    u64::try_from(bytes).map_err(|_| SizeError::TooLarge)
}

/// For a command: `1GiB`, `1026MiB`; every size of a volume is a whole number of MiB.
pub fn exact(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB")];
    let fits = |(shift, _): &(u32, &str)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    let unit = units.into_iter().find(fits);
    unit.map_or(bytes.to_string(), |(shift, name)| format!("{}{name}", bytes >> shift))
}

/// For tables: `1 GiB`, `1.5 TiB`, `512 B`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    let tenths = (u128::from(bytes) * 10) >> (10 * unit);
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn one_g_means_one_gib_however_it_is_written() {
        for text in ["1G", "1Gi", "1GiB", "1g", "1 GiB", "1024M", "1073741824", "1.0G"] {
            assert_eq!(VolumeSize::parse(text).map(|size| size.bytes), Ok(GIB), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "G", "NaN", "-1G", "1.G", ".5G", "1.2.3G", "1 potato", "0x10", "1e9", "+1G"]
        {
            assert!(matches!(VolumeSize::parse(text), Err(SizeError::NotASize { .. })), "{text}");
        }
        assert_eq!(VolumeSize::parse("0"), Err(SizeError::Zero));
        assert_eq!(VolumeSize::parse("0.0G"), Err(SizeError::Zero));
        assert_eq!(VolumeSize::parse("65T"), Err(SizeError::TooLarge));
        assert_eq!(VolumeSize::parse("99999999999999999999999"), Err(SizeError::TooLarge));
        assert!(matches!(VolumeSize::parse("1GB"), Err(SizeError::Ambiguous { .. })));
    }

    #[test]
    fn the_largest_volume_has_64_tib() {
        assert_eq!(VolumeSize::parse("64TiB").map(|size| size.bytes), Ok(VOLUME_BYTES_MAX));
        assert_eq!(VolumeSize::of(VOLUME_BYTES_MAX + 1), Err(SizeError::TooLarge));
    }

    proptest! {
        /// Rounding down would cut off a file system that was made for the size asked for.
        #[test]
        fn a_size_is_rounded_up_by_less_than_a_unit(bytes in 1..=VOLUME_BYTES_MAX) {
            let size = VolumeSize::of(bytes).unwrap();
            prop_assert!(size.bytes >= bytes && size.bytes - bytes < VOLUME_UNIT_BYTES);
            prop_assert_eq!(size.bytes % VOLUME_UNIT_BYTES, 0);
            prop_assert_eq!(size.rounded_from_bytes.is_some(), size.bytes != bytes);
        }

        #[test]
        fn what_is_written_for_a_command_is_read_as_the_same(bytes in 1..=VOLUME_BYTES_MAX) {
            let bytes = VolumeSize::of(bytes).unwrap().bytes;
            prop_assert_eq!(VolumeSize::parse(&exact(bytes)).map(|size| size.bytes), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = VolumeSize::parse(&text);
        }

        #[test]
        fn any_number_can_be_written_for_people(bytes: u64) {
            prop_assert!(!human(bytes).is_empty());
        }
    }

    #[test]
    fn tables_show_binary_units() {
        let shown: Vec<_> =
            [0, 512, 2 << 20, GIB, GIB + GIB / 2, 64 << 40].map(human).into_iter().collect();
        assert_eq!(shown, ["0 B", "512 B", "2 MiB", "1 GiB", "1.5 GiB", "64 TiB"]);
    }
}
