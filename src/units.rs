//! Sizes as people write them, and as swapfs prints them.
//!
//! `k`, `K`, `Ki` and `KiB` are 1024 bytes, and so on up to `t`; `kB` is 1000 bytes, `MB` a million, as dd(1) has it.

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

/// What messages show as examples.
pub const EXAMPLES: &str = "as in 4096, 64k, 1.5 GiB, 2 GB";

/// Digits behind a decimal point that are read; more say nothing about bytes.
const DECIMALS_MAX: usize = 15;

/// Reads a size such as `4096`, `64k`, `1.5 GiB`, `2GB`; `None` when it is none or exceeds 64 bits. A part of a byte
/// counts as one: so what is printed in short prints the same again.
///
/// ```
/// assert_eq!(swapfs::units::parse_size("64k"), Some(65_536));
/// assert_eq!(swapfs::units::parse_size("1.5 GiB"), Some(3 << 29));
/// assert_eq!(swapfs::units::parse_size("2GB"), Some(2_000_000_000));
/// assert_eq!(swapfs::units::parse_size("many"), None);
/// ```
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.bytes().position(|byte| !byte.is_ascii_digit() && byte != b'.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let scale = scale_of(unit.trim_start())?;
    let (whole, decimals) = match number.split_once('.') {
        Some((whole, decimals)) if decimals.len() <= DECIMALS_MAX => (whole, decimals),
        Some(_) => return None,
        None => (number, "0"),
    };
    let parsed = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => digits.parse::<u64>().ok(),
        false => None,
    };
    // Half a byte is a mistake.
    if scale == 1 && decimals.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let part = u128::from(parsed(decimals)?) * u128::from(scale);
    let part = part.div_ceil(10_u128.pow(u32::try_from(decimals.len()).ok()?));
    parsed(whole)?.checked_mul(scale)?.checked_add(u64::try_from(part).ok()?)
}

/// The bytes that a unit stands for, in any case of its letters.
fn scale_of(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let mut letters = unit.chars();
    let Some(first) = letters.next() else { return Some(1) };
    let power = "bkmgt".find(first)?;
    let power = u32::try_from(power).ok()?;
    match (power, letters.as_str()) {
        (0, "") => Some(1),
        (0, _) => None,
        (_, "" | "i" | "ib") => Some(1 << (10 * power)),
        (_, "b") => Some(1000_u64.pow(power)),
        _ => None,
    }
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
            ("4096 b", 4096),
            ("64k", 64 * KIB),
            ("64K", 64 * KIB),
            ("64Ki", 64 * KIB),
            ("64KiB", 64 * KIB),
            (" 64 kib ", 64 * KIB),
            ("64kB", 64_000),
            ("64 KB", 64_000),
            ("3m", 3 * MIB),
            ("3M", 3 * MIB),
            ("3 MiB", 3 * MIB),
            ("3MB", 3_000_000),
            ("2g", 2 * GIB),
            ("2G", 2 * GIB),
            ("2Gi", 2 * GIB),
            ("2GiB", 2 * GIB),
            ("2GB", 2_000_000_000),
            ("1t", TIB),
            ("1tb", 1_000_000_000_000),
            ("1.5G", 3 * GIB / 2),
            ("10.2GiB", 10_952_166_605),
            ("0.5 GB", 500_000_000),
            ("1.0", 1),
            ("4096.0B", 4096),
            ("0.25k", 256),
            ("16777215.999999 TiB", 18_446_744_073_708_452_105),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text:?}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_no_sizes() {
        for text in [
            "",
            "k",
            "-1",
            "+1",
            "1 x",
            "0x10",
            "1e9",
            "1,5g",
            "1.2.3g",
            ".",
            ".5g",
            "1.g",
            "1.5",
            "1.5B",
            "1kk",
            "1bb",
            "1kiby",
            "1 G iB",
            "١k",
            "1.0000000000000001g",
            "18446744073709551616",
            "99999999999t",
            "16777216t",
        ] {
            assert_eq!(parse_size(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_for_people_can_be_typed() {
        for bytes in [0, 700, KIB, 1100 * KIB, 3 * GIB / 2, 10_952_166_605, 7 * TIB] {
            let shown = format_short(bytes);
            let typed = parse_size(&shown).unwrap_or_else(|| panic!("{shown}"));
            assert!(typed <= bytes && bytes - typed <= bytes / 10, "{shown}");
            assert_eq!(format_short(typed), shown);
            assert_eq!(parse_size(&shown.replace(' ', "")), Some(typed));
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
