//! Every error text of the program says itself what to do, or stands in swapfs(7), TROUBLESHOOTING.
//!
//! The sources are read for strings inside of error constructors. Errors of the library alone (the aio handle, the
//! swapper) are left out: they are for programmers, who find them explained where they are defined.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What begins an expression whose strings are shown to the user as errors or warnings; it ends with its bracket.
const CONSTRUCTORS: [&str; 13] = [
    "Err(",
    "Failed(",
    "Usage(",
    "failed(",
    "map_err(",
    "Error::other(",
    "log::error!(",
    "log::warn!(",
    "tell!(",
    "ok_or(",
    "ok_or_else(",
    "#[error(",
    "Error::new(",
];

/// Functions whose strings are such texts, by the ends of their names.
const FUNCTIONS: [&str; 7] =
    ["_line(", "not_stored(", "no_room(", "failure(", "refusal(", "unreservable(", "unknown("];

/// Sources of the library's own errors, and of what is drawn.
const LEFT_OUT: [&str; 4] = ["deepspeed/handle", "deepspeed/swapper", "cli/top/", "aio/fault"];

/// Words by which a text says what to do, or what is accepted.
const MENDS: [&str; 34] = [
    "give ",
    "create it",
    "is not accepted",
    "are accepted",
    "accepted is",
    "accepted are",
    "the nearest",
    "name another",
    "needs write permission",
    "needs a mount without",
    "only the owner",
    "only root mounts",
    "remove it",
    "larger pool_size",
    "--replace",
    "is not installed",
    "measure its",
    "tune its",
    "tune that",
    "fuser -vm",
    "unmount it first",
    "use a folder",
    "reserve more",
    "measure the copy",
    "with metrics_public",
    "at most the pool_size",
    "two mounts, ",
    "at least are needed; ",
    "a whole number",
    "a number above 0",
    "true or false",
    "RLIMIT_MEMLOCK may",
    "seccomp filter",
    "sysctl ",
];

/// Texts that only say what is wrong with what was typed or with the file that was named, or that are part of another.
/// A new one belongs here when nobody who reads it has to ask what to do.
const PLAIN: [&str; 51] = [
    // The mount is then unmounted as one that is busy.
    "descriptors below {}: {error}",
    // It was turned back.
    ".swapfs/session: a bit of byte {} had flipped",
    // In brackets behind the line about what could not be given up.
    "that takes CAP_SYS_ADMIN",
    "as the first process of a container, whose commands share it",
    "/proc is not mounted",
    "-o fsname",
    "fusermount3 -uz",
    "{name} is about torch and has no effect here",
    "stopped by {signal}; what the benchmark had made is removed",
    "{shown}: not a regular file",
    "{}: not a regular file",
    "{}: an empty file, nothing to read",
    "{shown} has {size} bytes, fewer than the {bytes} to be read",
    "{shown}: Not a directory",
    "Not a directory",
    "Is a directory",
    "--block-size: {} is no multiple of {alignment}, the alignment of direct transfers in {shown}",
    "{shown} is not on a swapfs mount",
    "{} is not on a swapfs mount",
    "{}: no partition of a swapfs mount",
    "{} is not a swapfs mountpoint",
    "{shown}: nothing matches",
    "{}: no access log of swapfs",
    "standard output: {}",
    "the terminal: {}",
    "interrupted before everything was checked",
    "--no-read and --no-write together leave nothing to measure",
    "a minute was enough for {measured} of {planned} combinations; without --quick all are measured",
    "-o {name}: no such mount option{}",
    "{}: {section}.{key}: no such key{}",
    "a JSON object",
    "larger than {}, which no configuration is",
    "not UTF-8 text (byte {})",
    "neither valid JSON nor Hjson: {fault}",
    "{} at line {number} column {column}",
    "a string without an end",
    "the file is not a JSON object",
    "the key {key} stands twice",
    "the name alone",
    "mountpoint {shown} is not a directory",
    "swap folder {shown}: {}{mend}",
    "{key}: the list is empty",
    "--fstab {}: a path in /etc/fstab has to be text (UTF-8)",
    "-o remount: the options of a swapfs mount are fixed; unmount it and mount it again with the new ones",
    "-o says nothing without --fstab or --systemd",
    "{0}; nothing was changed",
    "{} is there already, and not by `swapfs install`; move it away",
    "{}, line {}, is about the same already: {other}",
    "interrupted before everything was verified",
    "{name}: the device answers again, after {s} s",
    "a reader of a pipe ended",
];

/// A source with comments and strings blanked, and its strings with where they begin.
fn strings(source: &str) -> (Vec<u8>, Vec<(usize, String)>) {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let end = if rest.starts_with("//") {
            at + rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with('"') {
            let mut end = at + 1;
            while bytes[end] != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            found.push((at, joined(&source[at + 1..end])));
            end + 1
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            let end = at + 3 + raw.find("\"#").expect("a raw string has an end");
            found.push((at, source[at + 3..end].to_owned()));
            end + 2
        } else if rest.starts_with("'\\") || (rest.starts_with('\'') && is_letter(rest)) {
            let letter = rest.chars().nth(1).map_or(1, char::len_utf8);
            let skip = if rest.starts_with("'\\") { 3 } else { 1 + letter };
            at + skip + rest.get(skip..).and_then(|rest| rest.find('\'')).map_or(0, |end| end + 1)
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        code[at..end].fill(b' ');
        at = end;
    }
    (code, found)
}

/// Whether a quote begins a letter, and not a lifetime.
fn is_letter(rest: &str) -> bool {
    let mut letters = rest.chars().skip(1);
    let (first, second) = (letters.next(), letters.next());
    first.is_some_and(|letter| letter != '\'') && second == Some('\'')
}

/// A string that goes on after a backslash at a line's end.
fn joined(text: &str) -> String {
    let mut lines = text.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |all, line| all + line.trim_start())
}

/// Where the bracket that opens at `open` is closed.
fn closing(code: &[u8], open: usize) -> usize {
    let (opens, closes) = if code[open] == b'{' { (b'{', b'}') } else { (b'(', b')') };
    let mut depth = 0;
    for (at, byte) in code.iter().enumerate().skip(open) {
        if *byte == opens {
            depth += 1;
        } else if *byte == closes {
            depth -= 1;
            if depth == 0 {
                return at;
            }
        }
    }
    code.len()
}

/// Where the texts of errors may stand.
fn spans(code: &[u8]) -> Vec<(usize, usize)> {
    let text = String::from_utf8_lossy(code);
    let mut spans = Vec::new();
    for constructor in CONSTRUCTORS {
        for (at, _) in text.match_indices(constructor) {
            let open = at + constructor.len() - 1;
            spans.push((open, closing(code, open)));
        }
    }
    for (at, _) in text.match_indices("fn ") {
        let head = &text[at..text[at..].find('{').map_or(text.len(), |end| at + end)];
        let name = head.split_inclusive('(').next().unwrap_or_default();
        if FUNCTIONS.iter().any(|end| name.ends_with(end)) {
            let open = at + head.len();
            if open < code.len() {
                spans.push((open, closing(code, open)));
            }
        }
    }
    spans
}

/// The longest part of a text that does not vary.
fn fixed(text: &str) -> String {
    let parts = text.split('{').flat_map(|part| {
        let (inside, after) = part.split_once('}').unwrap_or(("", part));
        [if inside.is_empty() { "" } else { " " }, after]
    });
    let longest = parts.max_by_key(|part| part.len()).unwrap_or_default();
    longest
        .trim_matches(|letter: char| letter.is_whitespace() || ":;,.()`".contains(letter))
        .to_owned()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// All texts of errors with a file they stand in.
fn texts() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut texts = BTreeMap::new();
    for path in files {
        let shown = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        if LEFT_OUT.iter().any(|start| shown.starts_with(start)) || shown.contains("tests") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let product = source.split("#[cfg(test)]").next().unwrap();
        let (code, strings) = strings(product);
        let spans = spans(&code);
        for (at, text) in strings {
            let within = spans.iter().any(|(from, to)| (from + 1..*to).contains(&at));
            let before =
                String::from_utf8_lossy(&code[at.saturating_sub(30)..at]).trim_end().to_owned();
            let panics = ["expect(", "unreachable!(", "panic!(", "assert!("];
            let is_bug = panics.iter().any(|end| before.ends_with(end));
            let fixed = fixed(&text);
            let letters = fixed.chars().filter(char::is_ascii_alphabetic).count();
            if within && !is_bug && letters >= 6 && fixed.contains(' ') {
                texts.insert(text, shown.clone());
            }
        }
    }
    texts
}

/// The manual page without its macros, in one line.
fn manual() -> String {
    let page = include_str!("../man/swapfs.7");
    let section = page.split(".Sh TROUBLESHOOTING").nth(1).unwrap().split("\n.Sh ").next().unwrap();
    let words = section.lines().flat_map(|line| line.split(' ')).filter(|word| {
        let is_macro = word.starts_with('.') && word.len() <= 3;
        !(word.is_empty() || is_macro || ["Ql", "Cm", "Ar", "Fl", "Pa", "Xr", "Er"].contains(word))
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_error_text_explains_itself_or_is_explained() {
    let manual = manual();
    let texts = texts();
    assert!(texts.len() > 150, "the sources were not read: {} texts", texts.len());
    let explained = |text: &str| {
        MENDS.iter().any(|mend| text.contains(mend))
            || PLAIN.contains(&text)
            || manual.contains(&fixed(text))
    };
    let missing: Vec<String> = texts
        .iter()
        .filter(|(text, _)| !explained(text))
        .map(|(text, file)| format!("{file}: {text}"))
        .collect();
    assert!(
        missing.is_empty(),
        "error texts that nobody explains: let each say what to do or what is accepted, or explain it in \
         man/swapfs.7, TROUBLESHOOTING, or, if there is nothing to ask, name it in PLAIN here:\n{}",
        missing.join("\n")
    );
    let gone: Vec<_> = PLAIN.iter().filter(|text| !texts.contains_key(**text)).collect();
    assert!(gone.is_empty(), "texts in PLAIN that are no error's any more: {gone:#?}");
}

#[test]
fn sources_are_read_rightly() {
    let source = "fn a() { let x = 'x'; Err(format!(\"b \\\"c\\\" \\\n     {d} e f\")) } // \"g\"\n\
                  fn b<'a>(y: &'a str) { f(\"not an error\") }\nfn dead_line(x: u8) -> String { \"h i j\" }";
    let (code, found) = strings(source);
    let texts: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["b \\\"c\\\" {d} e f", "not an error", "h i j"]);
    let spans = spans(&code);
    let within = |at: usize| spans.iter().any(|(from, to)| (*from..*to).contains(&at));
    assert_eq!(found.iter().map(|(at, _)| within(*at)).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(fixed("{a}: no such thing {b}, really"), "no such thing");
}
