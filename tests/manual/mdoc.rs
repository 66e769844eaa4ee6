//! As much of mdoc(7) as swapfs's pages use: sections, items of lists, and which words are flags, commands
//! and arguments.

use std::path::Path;

/// A word with what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// Of `.Fl`, with the dash of a long option: `v`, `-json`.
    Flag(String),
    /// Of `.Cm`.
    Command(String),
    /// Of `.Ar`.
    Argument(String),
    /// Of `.Sx`: a section, all words of it.
    Section(String),
    /// Of `.Er`.
    Errno(String),
    /// Of `.Pa`.
    File(String),
    /// Of `.Nm` at the beginning of a line.
    Name,
    /// Anything else.
    Text(String),
}

/// One line of the source.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The section (`.Sh`) and the subsection (`.Ss`) it is in.
    pub(crate) section: String,
    pub(crate) subsection: String,
    /// How many lists it is in.
    pub(crate) depth: usize,
    /// Whether it is the head of an item (`.It`).
    pub(crate) is_head: bool,
    pub(crate) words: Vec<Word>,
    /// The line as it stands, without its macro.
    pub(crate) text: String,
}

/// A page of the manual.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) name: &'static str,
    pub(crate) lines: Vec<Line>,
}

/// Macros that may stand within a line; what follows one is its.
const INNER: [&str; 30] = [
    "Fl", "Cm", "Ar", "Sx", "Er", "Pa", "Nm", "Op", "Pq", "Po", "Pc", "No", "Ns", "Ta", "Em", "Xr",
    "Ev", "Dv", "Ql", "Sq", "Dq", "Bq", "Li", "Sy", "Pf", "Oo", "Oc", "Qq", "Ic", "Va",
];

impl Page {
    /// Reads `man/NAME` of the repository.
    pub(crate) fn read(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(name);
        let text = std::fs::read_to_string(&path).unwrap().replace("\\\n", "");
        let (mut section, mut subsection, mut depth) = (String::new(), String::new(), 0);
        let mut lines = Vec::new();
        for source in text.lines() {
            let (name, rest) = match source.strip_prefix('.') {
                Some(call) => call.split_once(' ').unwrap_or((call, "")),
                None => ("", source),
            };
            match name {
                "Sh" => (section, subsection) = (rest.to_owned(), String::new()),
                "Ss" => rest.clone_into(&mut subsection),
                "Bl" => depth += 1,
                "El" => depth -= 1,
                _ => lines.push(Line {
                    section: section.clone(),
                    subsection: subsection.clone(),
                    depth,
                    is_head: name == "It",
                    words: words(name, rest),
                    text: rest.to_owned(),
                }),
            }
        }
        Self { name, lines }
    }

    /// The lines of a section.
    pub(crate) fn section(&self, name: &str) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.section == name).collect()
    }

    /// The lines of a subsection.
    pub(crate) fn subsection(&self, name: &str) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.subsection == name).collect()
    }
}

fn words(name: &str, rest: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut mode = match name {
        "" | "It" => "",
        "Nm" => {
            words.push(Word::Name);
            ""
        }
        other => other,
    };
    for word in rest.split_whitespace() {
        if !name.is_empty() && INNER.contains(&word) {
            mode = word;
            continue;
        }
        let text = word.trim_matches('"').to_owned();
        let word = match mode {
            _ if [",", "|", ".", ";", ":", "(", ")", "..."].contains(&word) => Word::Text(text),
            "Fl" => Word::Flag(text),
            "Cm" => Word::Command(text),
            "Ar" => Word::Argument(text),
            "Er" => Word::Errno(text),
            "Pa" => Word::File(text),
            "Sx" => match words.last_mut() {
                Some(Word::Section(section)) => {
                    *section = format!("{section} {text}");
                    continue;
                }
                _ => Word::Section(text),
            },
            _ => Word::Text(text),
        };
        words.push(word);
    }
    words
}

/// What the lines say about flags: `v`, `-json`; several letters behind one dash are as many flags.
pub(crate) fn flags<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Vec<String> {
    let words = lines.into_iter().flat_map(|line| &line.words);
    words
        .flat_map(|word| match word {
            Word::Flag(flag) if flag.starts_with('-') => vec![flag.clone()],
            Word::Flag(flag) => flag.chars().map(String::from).collect(),
            _ => Vec::new(),
        })
        .collect()
}

/// The commands that a run of words names: `,` and `|` stand between two of them.
pub(crate) fn command_names(words: &[Word]) -> Vec<String> {
    let mut names = vec![String::new()];
    for word in words {
        let last = names.last_mut().expect("never empty");
        match word {
            Word::Command(name) if last.is_empty() => last.clone_from(name),
            Word::Command(name) => *last = format!("{last} {name}"),
            Word::Text(text) if text == "," || text == "|" => names.push(String::new()),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// All words of the lines, without what surrounds them.
pub(crate) fn plain<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Vec<String> {
    let words = lines.into_iter().flat_map(|line| line.text.split_whitespace());
    words.map(|word| word.trim_matches(|c: char| ".,;:()\"".contains(c)).to_owned()).collect()
}
