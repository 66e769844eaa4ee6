//! `-o` lists: swapfs's own options, and the standard ones of mount(8), which become flags of the mount.

use nix::mount::MsFlags;

use super::ConfigError;
use super::error::nearest;
use super::json::shown_key;
use super::kind::{Kind, Value};
use super::options::{Key, OPTIONS, find};
use super::settings::{Origin, Settings};

/// The standard options of mount(8) that reach the kernel.
///
/// `nosuid` and `nodev` are on unless `suid` or `dev` lift them, as for every FUSE mount: the
/// filesystem beneath may have been mounted with them. `ro` stands in [`super::Config::ro`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFlags {
    /// Flags of mount(2).
    pub flags: MsFlags,
    /// The mount's source as `/proc/mounts` shows it, when not the swap folder.
    pub fsname: Option<String>,
}

impl Default for MountFlags {
    fn default() -> Self {
        Self { flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), fsname: None }
    }
}

/// Options that set a flag of mount(2), and options that clear one.
const FLAG_OPTIONS: [(&str, MsFlags, bool); 19] = [
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("nostrictatime", MsFlags::MS_STRICTATIME, false),
    ("lazytime", MsFlags::MS_LAZYTIME, true),
    ("nolazytime", MsFlags::MS_LAZYTIME, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
];

/// Options for mount(8), systemd and fstab that mean nothing to the mount itself.
const OPTIONS_FOR_OTHERS: [&str; 9] =
    ["auto", "noauto", "defaults", "_netdev", "nofail", "nouser", "nousers", "noowner", "nogroup"];

/// Options of FUSE that every mount has anyway.
const OPTIONS_IN_FORCE: [&str; 1] = ["default_permissions"];

/// Options that let users mount; as mount(8) says, they imply these flags unless a later option lifts them.
const USER_OPTIONS: [&str; 4] = ["user", "users", "owner", "group"];

/// The names of the standard options that `-o` takes; `x-` and `X-` begin any number of others.
pub fn standard_options() -> impl Iterator<Item = &'static str> {
    let words = ["rw", "fsname", "comment"].into_iter();
    let flags = FLAG_OPTIONS.iter().map(|entry| entry.0);
    let others = OPTIONS_FOR_OTHERS.into_iter().chain(OPTIONS_IN_FORCE);
    words.chain(flags).chain(others).chain(USER_OPTIONS)
}

/// Applies a list. A comma inside double quotes or behind a backslash belongs to the value.
pub(super) fn apply(settings: &mut Settings, list: &str, sloppy: bool) -> Result<(), ConfigError> {
    for item in split(list) {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (item.as_str(), None),
        };
        // Skipping it would leave the user with a mount that is not as asked.
        if name == "remount" {
            return Err(ConfigError::Remount);
        }
        let known = apply_own(settings, name, value)? || apply_standard(settings, name, value)?;
        if !known && !sloppy {
            let names = OPTIONS.iter().map(|option| option.name);
            return Err(ConfigError::UnknownOption {
                name: shown_key(name),
                nearest: nearest(name, names.chain(standard_options())),
            });
        }
    }
    Ok(())
}

fn apply_own(
    settings: &mut Settings, name: &str, value: Option<&str>,
) -> Result<bool, ConfigError> {
    let Some(option) = find(name) else {
        return Ok(false);
    };
    match (value, option.kind) {
        (Some(text), _) => settings.set_text(option, text, Origin::MountOption)?,
        (None, Kind::Switch) => settings.set(option.key, Value::Switch(true), Origin::MountOption),
        (None, kind) => {
            return Err(ConfigError::Value {
                place: Origin::MountOption.place(name),
                value: "nothing".to_owned(),
                accepted: kind.accepted(),
            });
        }
    }
    Ok(true)
}

fn apply_standard(
    settings: &mut Settings, name: &str, value: Option<&str>,
) -> Result<bool, ConfigError> {
    if name == "fsname" {
        let text = value.filter(|text| !text.is_empty()).ok_or_else(|| ConfigError::Value {
            place: "-o fsname".to_owned(),
            value: "nothing".to_owned(),
            accepted: "a name".to_owned(),
        })?;
        settings.mount.fsname = Some(text.to_owned());
        return Ok(true);
    }
    let for_others = name.starts_with("x-") || name.starts_with("X-") || name == "comment";
    if for_others || (name == "user" && value.is_some()) {
        return Ok(true);
    }
    let known = apply_word(settings, name);
    match value {
        Some(text) if known => Err(ConfigError::Value {
            place: format!("-o {name}"),
            value: format!("{text:?}"),
            accepted: "the name alone".to_owned(),
        }),
        _ => Ok(known),
    }
}

/// Applies an option that takes no value; false when there is none of that name.
fn apply_word(settings: &mut Settings, name: &str) -> bool {
    let flags = &mut settings.mount.flags;
    if let Some((_, flag, set)) = FLAG_OPTIONS.iter().find(|entry| entry.0 == name) {
        flags.set(*flag, *set);
    } else if name == "rw" {
        settings.set(Key::ro, Value::Switch(false), Origin::MountOption);
    } else if USER_OPTIONS.contains(&name) {
        flags.insert(MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        flags.set(
            MsFlags::MS_NOEXEC,
            name.starts_with("user") || flags.contains(MsFlags::MS_NOEXEC),
        );
    } else {
        return OPTIONS_FOR_OTHERS.contains(&name) || OPTIONS_IN_FORCE.contains(&name);
    }
    true
}

/// The items of a list, quotes and backslashes taken off, blanks around them too; empty items are skipped.
fn split(list: &str) -> Vec<String> {
    let mut items = Vec::new();
    // What belongs to the item: all but blanks at its end.
    let (mut item, mut kept) = (String::new(), 0);
    let (mut quoted, mut letters) = (false, list.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' => item.extend(letters.next()),
            ',' if !quoted => {
                item.truncate(kept);
                items.push(std::mem::take(&mut item));
                kept = 0;
                continue;
            }
            _ => item.push(letter),
        }
        let is_blank = !quoted && letter.is_whitespace();
        if is_blank && kept == 0 {
            item.clear();
        } else if !is_blank {
            kept = item.len();
        }
    }
    item.truncate(kept);
    items.push(item);
    items.retain(|item| !item.is_empty());
    items
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn blanks_around_items_are_no_part_of_them() {
        for (list, expected) in [
            ("a, b", &["a", "b"][..]),
            (" pool_size=1g , ro ", &["pool_size=1g", "ro"]),
            ("a,\tb\n,c", &["a", "b", "c"]),
            ("a, ,b,", &["a", "b"]),
            ("pool_size=1 GiB, ro", &["pool_size=1 GiB", "ro"]),
            ("fsname=\" a, b \", c", &["fsname= a, b ", "c"]),
            ("fsname=a\\, b ,c", &["fsname=a, b", "c"]),
            ("fsname=a\\ ,c", &["fsname=a ", "c"]),
            ("", &[]),
            (" , ", &[]),
        ] {
            assert_eq!(split(list), expected, "{list:?}");
        }
    }
}
