//! What a mount says about itself in `MOUNTPOINT/.swapfs/stats.json`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::mount::read_control;
use crate::sys_process::pid_namespace;

/// The statistics of a mount at one moment.
#[derive(Debug, Clone)]
pub struct MountStats(Json);

impl MountStats {
    /// Asks the mount; `None` when it does not answer, or is not believed.
    #[must_use]
    pub fn read(mountpoint: &Path) -> Option<Self> {
        Self::parse(&read_control(mountpoint, "stats.json").ok()?)
    }

    /// What a text of `stats.json` says.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok().map(Self)
    }

    /// The statistics in an object that was read before.
    #[must_use]
    pub fn of(object: Json) -> Self {
        Self(object)
    }

    /// The daemon's process; `None` when it runs in a container, where ids are others.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        let namespace = self.0.pointer("/mount/pid_namespace").and_then(Json::as_u64);
        if namespace.is_some() && namespace != pid_namespace() {
            return None;
        }
        self.0.pointer("/mount/pid")?.as_i64()?.try_into().ok()
    }

    /// The swap folder (the first one).
    #[must_use]
    pub fn swap_folder(&self) -> Option<PathBuf> {
        Some(self.0.pointer("/mount/swap_folders/0")?.as_str()?.into())
    }

    /// What its daemon has not given up, in words of `stats.json`; empty where it says nothing about that.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        let kept = self.0.pointer("/sandbox/kept").and_then(Json::as_array);
        let words = kept.into_iter().flatten().filter_map(Json::as_str);
        words.map(|word| word.replace('_', " ")).collect()
    }

    /// A count of the `pool` object, such as `dirty`.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<u64> {
        self.0.get("pool")?.get(name)?.as_u64()
    }

    /// The partitions that could not be stored; `None` when the mount does not tell.
    #[must_use]
    pub fn unstored(&self) -> Option<Vec<Unstored>> {
        let rows = self.0.get("unstored")?.as_array()?;
        let row = |row: &Json| {
            let uid = row.get("uid").and_then(Json::as_u64);
            Some(Unstored {
                uid: uid.and_then(|uid| uid.try_into().ok()),
                error: row.get("error")?.as_str()?.to_owned(),
                partitions: row.get("partitions")?.as_u64()?,
            })
        };
        rows.iter().map(row).collect()
    }

    /// How many partitions have a failed transfer.
    #[must_use]
    pub fn failed_partitions(&self) -> Option<u64> {
        self.0.pointer("/partitions/failed")?.as_u64()
    }
}

/// Partitions of one owner that could not be stored, for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unstored {
    /// Their owner; `None` when the mount does not know.
    pub uid: Option<u32>,
    /// The error's name.
    pub error: String,
    /// How many these are.
    pub partitions: u64,
}

/// Errors that a partition's owner can cause, and that trying again does not mend: its bytes in the swap folder are damaged,
/// its quota is used up, it was changed there. All others may be the device's, and end.
const OF_THE_OWNER: [&str; 8] =
    ["EBADMSG", "EUCLEAN", "EDQUOT", "EACCES", "EPERM", "EFBIG", "ESTALE", "ETXTBSY"];

impl Unstored {
    /// Whether an unmount by the user `asker` is to wait for them: they are this user's or root's, or may be stored later.
    #[must_use]
    pub fn holds_up(&self, asker: u32) -> bool {
        let is_others = self.uid.is_some_and(|uid| uid != 0 && uid != asker);
        !is_others || !OF_THE_OWNER.contains(&self.error.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_spoilt_holds_nobody_up() {
        let of = |uid: Json, error: &str| {
            let row = json!({ "uid": uid, "error": error, "partitions": 2 });
            let stats = MountStats(json!({ "unstored": [row] })).unstored().unwrap();
            stats.iter().any(|unstored| unstored.holds_up(7))
        };
        assert!(!of(json!(8), "EUCLEAN") && !of(json!(8), "EBADMSG"));
        assert!(of(json!(7), "EUCLEAN") && of(json!(0), "EUCLEAN") && of(json!(null), "EUCLEAN"));
        assert!(of(json!(8), "EIO") && of(json!(8), "ENOSPC") && of(json!(-1), "EUCLEAN"));
        assert_eq!(MountStats(json!({})).unstored(), None);
        assert_eq!(MountStats(json!({ "unstored": [1] })).unstored(), None);
    }
    use serde_json::json;

    #[test]
    fn a_pid_of_another_namespace_is_nobody_here() {
        let pid = |namespace: Json| {
            MountStats(json!({ "mount": { "pid": 1, "pid_namespace": namespace } })).pid()
        };
        assert_eq!(pid(json!(pid_namespace().unwrap())), Some(1));
        assert_eq!(pid(json!(1)), None);
        assert_eq!(MountStats(json!({ "mount": { "pid": 1 } })).pid(), Some(1));
    }
}
