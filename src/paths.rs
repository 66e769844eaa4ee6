//! Paths in JSON, which has no bytes that are not text.

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

/// A path for a message: as it is, but for what would end the line or steer a terminal. Users name files as
/// they like, and others read the messages.
pub(crate) fn plain(path: &Path) -> String {
    let text = path.to_string_lossy();
    if !text.chars().any(char::is_control) {
        return text.into_owned();
    }
    let letter = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(letter).collect()
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
}
