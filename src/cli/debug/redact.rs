//! Takes the names of partitions out of texts.
//!
//! Names may have any letter in them, also those that end them in a message. So whatever follows the swap folder's
//! or the mountpoint's path in a line is taken for a name, up to how the daemon's own messages about failed
//! transfers end, or to the end of the line. Lines for developers (debug, trace) are left out whole.

use std::collections::HashMap;

/// Where the daemon's own words begin again behind a name: ` failed: offset 5, length 4096: EIO (...)`, and the same
/// without offset and length. A name that looks like that as well is the earlier one.
fn end_of_name(rest: &str) -> Option<usize> {
    let at = rest.rfind(" failed: ")?;
    let tail = &rest[at + " failed: ".len()..];
    let errno = match tail.strip_prefix("offset ") {
        Some(numbers) => {
            let (numbers, errno) = numbers.split_once(": ")?;
            let (offset, length) = numbers.split_once(", length ")?;
            let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            (is_number(offset) && is_number(length)).then_some(errno)?
        }
        None => tail,
    };
    let (name, _) = errno.split_once(" (")?;
    name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()).then_some(at)
}

/// Whether a line begins as the log's do: `[2026-11-21T10:18:23.030Z `.
fn is_log_line(line: &str) -> bool {
    line.starts_with("[20") && line.get(24..26) == Some("Z ")
}

/// What begins a list of names.
const LISTS: [&str; 1] = ["not on stable storage: "];

/// What stands for names.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    /// Absolute paths below which everything is a name; longest first. Empty: nothing is taken out.
    folders: Vec<String>,
    /// Keeps everything.
    keeps: bool,
    /// The same name gets the same number.
    numbers: HashMap<String, usize>,
}

impl Redactor {
    /// Keeps everything.
    pub(super) fn none() -> Self {
        Self { keeps: true, ..Self::default() }
    }

    /// Takes out what lies below these folders.
    pub(super) fn new<'a>(folders: impl Iterator<Item = &'a str>) -> Self {
        let mut folders: Vec<String> =
            folders.filter(|path| path.len() > 1).map(str::to_owned).collect();
        folders.sort_by_key(|path| std::cmp::Reverse(path.len()));
        Self { folders, ..Self::default() }
    }

    /// Whether a line has one of the folders in it; every line has, where everything is kept.
    pub(super) fn concerns(&self, line: &str) -> bool {
        self.keeps || self.folders.iter().any(|folder| line.contains(folder.as_str()))
    }

    fn number(&mut self, name: &str) -> String {
        let next = self.numbers.len() + 1;
        let number = *self.numbers.entry(name.to_owned()).or_insert(next);
        format!("<name {number}>")
    }

    /// A text of lines without names.
    pub(super) fn text(&mut self, text: &str) -> String {
        if self.keeps {
            return text.to_owned();
        }
        text.lines().map(|line| self.line(line) + "\n").collect()
    }

    /// As [`Redactor::text`]; what does not begin like a line of the log is what a name with a line's end in it
    /// has left.
    pub(super) fn log(&mut self, text: &str) -> String {
        if self.keeps {
            return text.to_owned();
        }
        let mut out = String::new();
        for line in text.lines() {
            let level = line.get(26..31).unwrap_or_default();
            out += &match is_log_line(line) {
                true if matches!(level, "DEBUG" | "TRACE") => {
                    format!("{} <left out>", &line[..31])
                }
                true => self.line(line),
                false => "<rest of a name>".to_owned(),
            };
            out.push('\n');
        }
        out
    }

    fn line(&mut self, line: &str) -> String {
        for list in LISTS {
            if let Some(at) = line.find(list) {
                let (kept, names) = line.split_at(at + list.len());
                let count = names.split(", ").count();
                return format!("{kept}<about {count} names>");
            }
        }
        let found = self.folders.iter().filter_map(|folder| {
            let below = format!("{folder}/");
            line.find(&below).map(|at| at + below.len())
        });
        let Some(at) = found.min() else {
            return line.to_owned();
        };
        let (kept, rest) = line.split_at(at);
        // What is swapfs's own names nobody.
        if rest.starts_with(".swapfs") {
            let (own, more) = rest.split_at(".swapfs".len());
            return format!("{kept}{own}{}", self.line(more));
        }
        let (name, rest) = rest.split_at(end_of_name(rest).unwrap_or(rest.len()));
        let number = self.number(name);
        format!("{kept}{number}{rest}")
    }

    /// Metrics without the names of directories.
    pub(super) fn metrics(&mut self, text: &str) -> String {
        if self.keeps {
            return text.to_owned();
        }
        let kept = text.lines().filter(|line| !line.contains("{directory=\""));
        kept.map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        Redactor::new(["/nvme/swap", "/mnt/x"].into_iter())
    }

    #[test]
    fn names_go_and_messages_stay() {
        let mut redactor = redactor();
        for (line, expected) in [
            (
                "[2026-11-21T10:18:23.030Z ERROR s] swap out of /nvme/swap/a: b/c failed: x failed: offset 5, length 4096: EIO (Input)",
                "[2026-11-21T10:18:23.030Z ERROR s] swap out of /nvme/swap/<name 1> failed: offset 5, length 4096: EIO (Input)",
            ),
            (
                "[2026-11-21T10:18:23.030Z INFO s] /nvme/swap mounted at /mnt/x, pid 7",
                "[2026-11-21T10:18:23.030Z INFO s] /nvme/swap mounted at /mnt/x, pid 7",
            ),
            (
                "[2026-11-21T10:18:23.030Z WARN s] /nvme/swap/.swapfs/log: no",
                "[2026-11-21T10:18:23.030Z WARN s] /nvme/swap/.swapfs/log: no",
            ),
            (
                "[2026-11-21T10:18:23.030Z DEBUG s] opened secret",
                "[2026-11-21T10:18:23.030Z DEBUG <left out>",
            ),
            (
                "[2026-11-21T10:18:23.030Z WARN s] odd /mnt/x/secret: name failed: too",
                "[2026-11-21T10:18:23.030Z WARN s] odd /mnt/x/<name 2>",
            ),
            (
                "[2026-11-21T10:18:23.030Z ERROR s] before the unmount: not on stable storage: /nvme/swap/a, b and 5 more",
                "[2026-11-21T10:18:23.030Z ERROR s] before the unmount: not on stable storage: <about 2 names>",
            ),
        ] {
            assert_eq!(redactor.log(line), format!("{expected}\n"));
        }
        let same = "[2026-11-21T10:18:23.030Z ERROR s] swap in of /nvme/swap/a: b/c failed: x failed: offset 9, length 1: EIO (x)";
        assert!(redactor.log(same).contains("<name 1>"), "one name, one number");
        let cut = "[2026-11-21T10:18:23.030Z ERROR s] swap in of /nvme/swap/a\nb failed: offset 1, length 1: EIO (x)\n[c";
        assert_eq!(
            redactor.log(cut),
            "[2026-11-21T10:18:23.030Z ERROR s] swap in of /nvme/swap/<name 3>\n<rest of a name>\n<rest of a name>\n"
        );
    }

    #[test]
    fn directories_of_the_metrics_go_too_unless_names_are_kept() {
        let text = "# TYPE a counter\na{directory=\"secret\"} 1\nb 2\n";
        assert_eq!(redactor().metrics(text), "# TYPE a counter\nb 2\n");
        let mut none = Redactor::none();
        assert_eq!((none.metrics(text), none.log("x\n")), (text.to_owned(), "x\n".to_owned()));
        assert!(none.concerns("anything") && !redactor().concerns("/nvme/other"));
    }
}
