//! Sizes as people write them, and as swapfs prints them.
//!
//! Every unit is binary: `k`, `K` and `KiB` are all 1024 bytes, and so on up to `t`.

/// Bytes in a KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;
/// Bytes in a TiB.
pub const TIB: u64 = 1 << 40;

/// Units from large to small, with the name they are printed with.
const UNITS: [(u64, &str); 4] = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];

/// Reads a size such as `4096`, `64k`, `1 MiB`, `2G`; `None` when it is none or exceeds 64 bits.
///
/// ```
/// assert_eq!(swapfs::units::parse_size("64k"), Some(65_536));
/// assert_eq!(swapfs::units::parse_size("1 GiB"), Some(1 << 30));
/// assert_eq!(swapfs::units::parse_size("many"), None);
/// ```
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "t" | "tib" => TIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// Prints a size so that [`parse_size`] gives the same number back: `1 GiB`, `1000` (a bare number of bytes).
#[must_use]
pub fn format_exact(bytes: u64) -> String {
    for (scale, name) in UNITS {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{} {name}", bytes / scale);
        }
    }
    bytes.to_string()
}

/// Prints a size for a table, rounded to one decimal: `1.5 GiB`, `700 B`.
#[must_use]
pub fn format_short(bytes: u64) -> String {
    for (scale, name) in UNITS {
        if bytes >= scale {
            let tenths = u128::from(bytes) * 10 / u128::from(scale);
            return match tenths % 10 {
                0 => format!("{} {name}", tenths / 10),
                rest => format!("{}.{rest} {name}", tenths / 10),
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_every_documented_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64k", 64 * KIB),
            ("64K", 64 * KIB),
            ("64KiB", 64 * KIB),
            (" 64 kib ", 64 * KIB),
            ("3m", 3 * MIB),
            ("3M", 3 * MIB),
            ("3 MiB", 3 * MIB),
            ("2g", 2 * GIB),
            ("2G", 2 * GIB),
            ("2GiB", 2 * GIB),
            ("1t", TIB),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text:?}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_no_sizes() {
        for text in
            ["", "k", "-1", "1.5G", "1KB", "1 x", "0x10", "18446744073709551616", "99999999999t"]
        {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn exact_format_is_read_back_unchanged() {
        for bytes in [0, 1, 1000, KIB, 1536, MIB + 1, GIB, 3 * GIB / 2, 5 * TIB, u64::MAX] {
            assert_eq!(parse_size(&format_exact(bytes)), Some(bytes));
        }
        assert_eq!(format_exact(GIB), "1 GiB");
        assert_eq!(format_exact(3 * GIB / 2), "1536 MiB");
    }

    #[test]
    fn short_format_keeps_one_decimal() {
        assert_eq!(format_short(700), "700 B");
        assert_eq!(format_short(3 * GIB / 2), "1.5 GiB");
        assert_eq!(format_short(2 * MIB), "2 MiB");
        assert_eq!(format_short(u64::MAX), "16777215.9 TiB");
    }
}
