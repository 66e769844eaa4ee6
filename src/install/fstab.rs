//! The line of /etc/fstab.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Item;

/// What is to be mounted at every start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FstabEntry {
    /// The swap folder, absolute.
    pub swap_folder: PathBuf,
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// `-o` lists, checked already.
    pub options: Vec<String>,
    /// How long the unmount may take.
    pub stop_time: Duration,
}

impl FstabEntry {
    /// The line as an item of an install.
    #[must_use]
    pub fn item(&self) -> Item {
        Item::Line { path: "/etc/fstab".into(), line: self.line(), key: 1, create: true }
    }

    /// `FOLDER MOUNTPOINT swapfs OPTIONS 0 0`: a mount that fails does not stop the machine's start (`nofail`),
    /// waits for the disk that the folder is on, and has the time that its pool needs to be written.
    #[must_use]
    pub fn line(&self) -> String {
        let mut options = self.options.clone();
        options.retain(|list| !list.is_empty());
        let given = |name: &str| {
            let items = self.options.iter().flat_map(|list| list.split(','));
            items.map(|item| item.split('=').next().unwrap_or(item)).any(|item| item == name)
        };
        if !given("nofail") {
            options.push("nofail".to_owned());
        }
        let folder = self.swap_folder.display().to_string();
        // systemd takes these letters of an option's value otherwise than mount(8) does.
        if !given("x-systemd.requires-mounts-for") && !folder.contains([',', '\\', '"', '\'', ' '])
        {
            options.push(format!("x-systemd.requires-mounts-for={folder}"));
        }
        if !given("x-systemd.mount-timeout") {
            options.push(format!("x-systemd.mount-timeout={}s", self.stop_time.as_secs()));
        }
        let (folder, mountpoint) = (field(&self.swap_folder), field(&self.mountpoint));
        format!("{folder} {mountpoint} swapfs {} 0 0", escape(&options.join(",")))
    }
}

fn field(path: &Path) -> String {
    escape(&path.display().to_string())
}

/// Octal escapes for what separates fields and lines, as fstab(5) asks.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            ' ' | '\t' | '\n' | '\\' | '#' => escaped.push_str(&format!("\\{:03o}", letter as u32)),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(folder: &str, options: &[&str]) -> FstabEntry {
        FstabEntry {
            swap_folder: folder.into(),
            mountpoint: "/mnt/s".into(),
            options: options.iter().map(|list| (*list).to_owned()).collect(),
            stop_time: Duration::from_secs(81),
        }
    }

    #[test]
    fn the_line_waits_for_the_disk_and_does_not_stop_the_start() {
        assert_eq!(
            entry("/nvme/s", &["pool_size=2g,allow_other"]).line(),
            "/nvme/s /mnt/s swapfs pool_size=2g,allow_other,nofail,\
             x-systemd.requires-mounts-for=/nvme/s,x-systemd.mount-timeout=81s 0 0"
        );
    }

    #[test]
    fn what_was_given_is_not_given_again() {
        assert_eq!(
            entry("/s", &["nofail,x-systemd.mount-timeout=9", "x-systemd.requires-mounts-for=/n"])
                .line(),
            "/s /mnt/s swapfs nofail,x-systemd.mount-timeout=9,x-systemd.requires-mounts-for=/n 0 0"
        );
    }

    #[test]
    fn letters_that_separate_are_escaped() {
        assert_eq!(
            entry("/a b\t#c\\d", &[]).line(),
            "/a\\040b\\011\\043c\\134d /mnt/s swapfs nofail,x-systemd.mount-timeout=81s 0 0"
        );
    }
}
