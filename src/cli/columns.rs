//! Tables that fit a terminal: names are shortened in the middle, or stand on a line of their own.

use std::io::{IsTerminal, stdout};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Letters between two columns.
const GAP: usize = 2;

/// Shortest room for a name beside its figures.
const NAME_MIN: usize = 24;

/// Narrowest terminal that is respected.
const WIDTH_MIN: usize = 40;

/// Columns of the terminal that standard output is; `None` when it is none, and lines may be of any length.
pub(super) fn terminal_width() -> Option<usize> {
    if !stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout()).ok().filter(|size| size.ws_col > 0);
    Some(size.map_or(80, |size| usize::from(size.ws_col)).max(WIDTH_MIN))
}

/// Shortens a text in the middle to so many columns: the ends of a path say most.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let tail = room - room / 2;
    let take = |letters: &mut dyn Iterator<Item = char>, room: usize| -> Vec<char> {
        let mut used = 0;
        let fits = |letter: &char| {
            used += letter.width().unwrap_or(0);
            used <= room
        };
        letters.take_while(fits).collect()
    };
    let end = take(&mut text.chars().rev(), tail);
    let begin = take(&mut text.chars(), room / 2);
    begin.into_iter().chain(['…']).chain(end.into_iter().rev()).collect()
}

/// A table whose first columns are names of any length; what follows them is short.
pub(super) struct Listing<'a> {
    /// A title for each column.
    pub(super) header: &'a [&'a str],
    /// How many columns are names.
    pub(super) names: usize,
    pub(super) rows: Vec<Vec<String>>,
}

impl Listing<'_> {
    /// The table for a terminal of this width. Where names do not fit they are cut, and where hardly anything is left for
    /// them they stand on a line of their own above their figures.
    pub(super) fn layout(self, width: Option<usize>) -> String {
        let header = self.header.iter().map(|title| (*title).to_owned()).collect();
        let mut rows = vec![header];
        rows.extend(self.rows);
        let names = self.names;
        let mut widths = widths(&rows);
        let figures: usize = widths[names..].iter().map(|width| width + GAP).sum();
        let whole = widths[..names].iter().map(|width| width + GAP).sum::<usize>() + figures - GAP;
        let Some(limit) = width.filter(|limit| whole > *limit) else {
            return join(rows.iter().map(|row| line(row, &widths)));
        };
        let room = limit.saturating_sub(figures + GAP * (names - 1));
        if room / names < NAME_MIN {
            let stacked = rows.iter().map(|row| {
                let title = cut(&row[..names].join("  "), limit);
                format!("{title}\n  {}", line(&row[names..], &widths[names..]))
            });
            return join(stacked);
        }
        share(&mut widths[..names], room);
        for row in &mut rows {
            for (cell, width) in row.iter_mut().zip(&widths[..names]) {
                *cell = cut(cell, *width);
            }
        }
        join(rows.iter().map(|row| line(row, &widths)))
    }
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let column = |at: usize| rows.iter().map(|row| row[at].width()).max().unwrap_or(0);
    (0..rows[0].len()).map(column).collect()
}

/// Shares `room` among columns: the longest give first.
fn share(widths: &mut [usize], room: usize) {
    while widths.iter().sum::<usize>() > room {
        let longest = (0..widths.len()).max_by_key(|at| widths[*at]).unwrap_or(0);
        widths[longest] -= 1;
    }
}

/// Cells side by side, each as wide as its column.
fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        line += cell;
        line += &" ".repeat(width.saturating_sub(cell.width()) + GAP);
    }
    line.trim_end().to_owned()
}

fn join(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

/// Breaks a text between words into lines of at most so many columns; a longer word is left whole.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &[&[&str]], width: Option<usize>) -> Vec<String> {
        let figures = ["not_available", "1023.9 MiB", "1023.9 MiB", "0 B", "0 B", "-"];
        let row = |names: &&[&str]| names.iter().chain(&figures).map(|s| (*s).to_owned()).collect();
        let titles = ["PARTITION", "OTHER"];
        let count = names[0].len();
        let header: Vec<&str> = titles[..count]
            .iter()
            .chain(&["STATUS", "SIZE", "RESIDENT", "DIRTY", "IN FLIGHT", "ERROR"])
            .copied()
            .collect();
        let rows = names.iter().map(row).collect();
        let text = Listing { header: &header, names: count, rows }.layout(width);
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn names_are_cut_in_the_middle() {
        for (text, width, expected) in [
            ("layers/0/weight", 20, "layers/0/weight"),
            ("layers/0/weight", 15, "layers/0/weight"),
            ("layers/0/weight", 14, "layers…/weight"),
            ("layers/0/weight", 5, "la…ht"),
            ("layers/0/weight", 1, "…"),
            ("layers/0/weight", 0, ""),
            ("重み重み重み", 12, "重み重み重み"),
            ("重み重み重み", 7, "重…み"),
        ] {
            let shown = cut(text, width);
            assert!(shown.width() <= width);
            // A wide letter may leave a column free.
            assert!(shown == expected || text.width() > text.chars().count(), "{shown}");
        }
        let long = cut(&format!("first/{}/last", "x".repeat(500)), 40);
        assert!(long.starts_with("first/") && long.ends_with("/last") && long.width() == 40);
    }

    #[test]
    fn tables_fit_and_keep_every_name_readable() {
        let long = format!("layers/{}/weight", "x".repeat(300));
        for names in [["a", "b"], ["a", long.as_str()], [long.as_str(), "重み"]] {
            let names: Vec<Vec<&str>> = names.iter().map(|name| vec![*name]).collect();
            let names: Vec<&[&str]> = names.iter().map(Vec::as_slice).collect();
            for width in [70, 80, 100, 120, 160, 400] {
                let lines = shown(&names, Some(width));
                for line in &lines {
                    assert!(line.width() <= width, "{width}: {line}");
                }
                for name in &names {
                    let whole = name[0].width() < NAME_MIN;
                    let ends = if whole { name[0] } else { "/weight" };
                    assert!(lines.iter().any(|line| line.contains(ends)), "{lines:#?}");
                }
            }
            let programs = shown(&names, None);
            assert_eq!(programs.len(), 3, "a line for each");
            assert!(names.iter().all(|name| programs.iter().any(|line| line.starts_with(name[0]))));
        }
        let beside = shown(&[&["short"]], Some(80));
        assert_eq!(beside.len(), 2, "{beside:#?}");
        let above = shown(&[&["layers/0/mlp/weight_of_some_length"]], Some(80));
        assert_eq!(above.len(), 4, "{above:#?}");
        assert_eq!(above[2], "layers/0/mlp/weight_of_some_length");
        assert!(above[3].starts_with("  not_available  1023.9 MiB"), "{above:#?}");
    }

    #[test]
    fn two_names_share_the_room() {
        let (long, short) = ("/mnt/swapfs/with/a/long/name/of/some/letters/more", "/swap");
        let lines = shown(&[&[short, long]], Some(140));
        assert!(lines[1].starts_with("/swap      /mnt/swapfs/with/a/long/name"), "{lines:#?}");
        let lines = shown(&[&[long, long]], Some(130));
        assert!(lines[1].contains('…') && lines[1].matches("more").count() == 2, "{lines:#?}");
        let lines = shown(&[&[long, short]], Some(80));
        assert_eq!(lines[2], format!("{long}  {short}"));
    }

    #[test]
    fn words_are_wrapped() {
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("a longword b", 4), ["a", "longword", "b"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
