//! Paths in JSON, which has no bytes that are not text.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

/// A path as it is, for what swapfs reads again: text, or a list of bytes where it is none.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Exact {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&PathBuf> for Exact {
    fn from(path: &PathBuf) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<Exact> for PathBuf {
    fn from(name: Exact) -> Self {
        match name {
            Exact::Text(text) => Self::from(text),
            Exact::Bytes(bytes) => OsString::from_vec(bytes).into(),
        }
    }
}

/// One path, exactly.
pub(crate) mod exact {
    use super::{Exact, PathBuf};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &PathBuf, out: S) -> Result<S::Ok, S::Error> {
        Exact::from(path).serialize(out)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(Exact::deserialize(from)?.into())
    }
}

/// A list of them, exactly.
pub(crate) mod exact_list {
    use super::{Exact, PathBuf};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq(paths.iter().map(Exact::from))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Exact>::deserialize(from)?.into_iter().map(PathBuf::from).collect())
    }
}

/// A path for reports: always text, with U+FFFD for what is none.
pub(crate) fn shown<S: Serializer>(path: &Path, out: S) -> Result<S::Ok, S::Error> {
    path.to_string_lossy().serialize(out)
}

/// The same where there may be none.
#[allow(clippy::ref_option)]
pub(crate) fn shown_option<S: Serializer>(
    path: &Option<PathBuf>, out: S,
) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(out)
}

/// The same for several.
pub(crate) fn shown_list<S: Serializer>(paths: &[PathBuf], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// Letters that nobody sees, and that change what is seen of others: of no width, or turning the direction.
const UNSEEN: [(char, char); 20] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
    ('\u{f0000}', '\u{ffffd}'),
    ('\u{100000}', '\u{10fffd}'),
];

/// Returns true for a letter that a terminal shows as it is. Control characters, those of C1 among them, steer it.
pub(crate) fn is_plain(letter: char) -> bool {
    letter.is_ascii_graphic()
        || letter == ' '
        || !(letter.is_control()
            || UNSEEN.iter().any(|(first, last)| (*first..=*last).contains(&letter)))
}

/// The text with escapes for all letters that are not plain.
pub(crate) fn plain_text(text: &str) -> String {
    replaced(text, "", |letter| letter.escape_default().to_string())
}

/// As [`plain_text`], of a text of several lines, which stay lines.
pub(crate) fn plain_lines(text: &str) -> String {
    replaced(text, "\n\t", |letter| letter.escape_default().to_string())
}

/// A JSON text that says the same with plain letters alone.
pub(crate) fn plain_json(text: &str) -> String {
    replaced(text, "\n", |letter| {
        let mut units = [0; 2];
        letter.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    })
}

/// Replaces all letters that are neither plain nor among the kept ones.
fn replaced(text: &str, kept: &str, escape: impl Fn(char) -> String) -> String {
    // Most texts, and long ones, have nothing to replace.
    let is_kept = |byte: u8| matches!(byte, b' '..=b'~') || kept.as_bytes().contains(&byte);
    if text.bytes().all(is_kept) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_plain(letter) || kept.contains(letter) {
            true => out.push(letter),
            false => out += &escape(letter),
        }
    }
    out
}

/// A path for a message: as it is, but for what would end the line, steer a terminal or deceive who reads it. Users name
/// files as they like, and others read the messages.
pub(crate) fn plain(path: &Path) -> String {
    plain_text(&shortened(path).to_string_lossy())
}

/// Bytes of the longest path that any call takes.
const PATH_BYTES_MAX: usize = 4095;

/// Bytes that are shown of the beginning, and of the end, of a path that is longer.
const SHOWN_BYTES: usize = 1024;

/// A path for people. One that is longer than any call takes is cut in its middle: it may be of any length, and there may be
/// as many of them as users like.
pub(crate) fn shortened(path: &Path) -> Cow<'_, Path> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= PATH_BYTES_MAX {
        return path.into();
    }
    let (start, end) = (&bytes[..SHOWN_BYTES], &bytes[bytes.len() - SHOWN_BYTES..]);
    let left_out = format!("[{} bytes left out]", bytes.len() - 2 * SHOWN_BYTES);
    PathBuf::from(OsString::from_vec([start, left_out.as_bytes(), end].concat())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        #[serde(with = "exact")]
        one: PathBuf,
        #[serde(with = "exact_list")]
        list: Vec<PathBuf>,
    }

    #[test]
    fn exact_paths_come_back_as_they_were() {
        let odd = PathBuf::from(OsString::from_vec(b"odd \xff\n".to_vec()));
        let both = Both { one: odd.clone(), list: vec!["plain".into(), odd] };
        let text = serde_json::to_string(&both).unwrap();
        assert!(text.contains("\"plain\""), "{text}");
        assert_eq!(serde_json::from_str::<Both>(&text).unwrap(), both);
    }

    #[test]
    fn plain_paths_are_one_line() {
        assert_eq!(plain(Path::new("/a b/ü\\'")), "/a b/ü\\'");
        assert_eq!(plain(Path::new("a\n\x1b[2Jb")), "a\\n\\u{1b}[2Jb");
        assert_eq!(plain(&PathBuf::from(OsString::from_vec(b"x\xff".to_vec()))), "x\u{fffd}");
    }

    #[test]
    fn paths_that_no_call_takes_are_shortened() {
        let longest = "d/".repeat(2047) + "f";
        assert_eq!(plain(Path::new(&longest)), longest);
        let longer = "a/".repeat(500_000) + "file";
        let shown = plain(Path::new(&longer));
        assert!(shown.starts_with("a/a/") && shown.ends_with("/a/file"), "{shown}");
        assert!(shown.contains("[997956 bytes left out]") && shown.len() < 2100, "{shown}");
    }

    /// "Bidirectional and zero-width characters reach the terminal raw."
    #[test]
    fn letters_that_deceive_are_escaped() {
        let name = "a\u{202e}txt.\u{200b}b\u{9b}2J\u{feff}\u{2066}\u{e0041}";
        let plain = plain_text(name);
        assert_eq!(plain, r"a\u{202e}txt.\u{200b}b\u{9b}2J\u{feff}\u{2066}\u{e0041}");
        assert!(plain.is_ascii());
        for kept in ["ü ß 漢字 كتاب ✓ 🙂", "~^`|"] {
            assert_eq!(plain_text(kept), kept);
        }
        assert_eq!(plain_lines("a\n\tb\r\u{1b}"), "a\n\tb\\r\\u{1b}");
        let text = serde_json::to_string_pretty(&[name, "x\n\u{7f}"]).unwrap();
        let escaped = plain_json(&text);
        assert!(escaped.chars().all(|letter| is_plain(letter) || letter == '\n'), "{escaped}");
        assert_eq!(serde_json::from_str::<[String; 2]>(&escaped).unwrap(), [name, "x\n\u{7f}"]);
    }
}
