//! How `top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Sparkline, Table, TableState};

use unicode_width::UnicodeWidthStr;

use super::model::{Model, Row, Sort};
use crate::cli::columns::cut;
use crate::cli::stats::format_tight;
use crate::units::format_short;

/// Letters of a bar in the table.
const BAR_WIDTH: u16 = 10;

/// Narrower screens get shorter sizes and fewer columns.
const WIDE: u16 = 120;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let width = frame.area().width;
    let help = help_lines(model, usize::from(width));
    let rows = [
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(2),
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(help.len() as u16),
    ];
    let [title, rates, pool, curve, list, keys] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(title_line(model, usize::from(width))), title);
    frame.render_widget(Paragraph::new(rates_lines(model)), rates);
    frame.render_widget(Paragraph::new(pool_lines(model, width)), pool);
    let newest = model.history.len().saturating_sub(usize::from(curve.width));
    let history = Sparkline::default().data(&model.history[newest..]).style(Color::Cyan);
    frame.render_widget(history, curve);
    draw_list(frame, model, list);
    frame.render_widget(Paragraph::new(help), keys);
}

fn title_line(model: &Model, width: usize) -> Line<'static> {
    let text = |pointer: &str| {
        let found = model.sample.stats.pointer(pointer);
        found.and_then(|value| value.as_str()).unwrap_or("?").to_owned()
    };
    let rest = format!(
        "  pid {}  {} partitions, {} at rest",
        model.sample.count("/mount/pid"),
        model.rows.len(),
        model.resting
    );
    // Two names and " of " between share what is left.
    let room = width.saturating_sub(rest.len() + 4);
    let folder = text("/mount/swap_folders/0");
    let at = cut(&model.mountpoint, room.saturating_sub(folder.width()).max(room / 2));
    let folder = cut(&folder, room.saturating_sub(at.width()));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    Line::from(vec![Span::styled(at, bold), Span::raw(format!(" of {folder}{rest}"))])
}

/// What clients do, and what the device does for them.
fn rates_lines(model: &Model) -> Vec<Line<'static>> {
    let (rates, bytes) = (&model.rates, |rate: f64| format_short(rate as u64));
    let hits = rates.hits.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0));
    let errors = model.sample.count("/cache/errors");
    let told = Span::styled(format!("{errors} failed transfers"), warning(errors > 0));
    let clients = format!(
        "clients  read {}/s  write {}/s  {:.0} requests/s  hits {hits}",
        bytes(rates.read_bytes),
        bytes(rates.written_bytes),
        rates.requests,
    );
    let device = format!(
        "device   read {}/s  write {}/s  waits {:.0}/s  ",
        bytes(rates.device_read_bytes),
        bytes(rates.device_written_bytes),
        rates.waits
    );
    vec![Line::from(clients), Line::from(vec![Span::raw(device), told])]
}

fn warning(when: bool) -> Style {
    if when { Style::new().fg(Color::Red).add_modifier(Modifier::BOLD) } else { Style::new() }
}

/// The pool's buffers as one bar, and below it what its letters are, in bytes: dirty, clean, otherwise in use (small
/// partitions, buffers under transfer or kept), reserved, free.
fn pool_lines(model: &Model, width: u16) -> Vec<Line<'static>> {
    let count = |name: &str| model.sample.count(&format!("/pool/{name}"));
    let (all, dirty, available, reserved) =
        (count("buffers"), count("dirty"), count("available"), count("reserved"));
    let free = count("free").min(available);
    let clean = available - free;
    let used = all.saturating_sub(dirty + available + reserved);
    let size = |buffers: u64| format_tight(buffers.saturating_mul(count("buffer_size")));
    let title = format!("pool {}  ", size(all));
    let room = usize::from(width).saturating_sub(title.len()).min(60);
    let parts = [
        (dirty, "█", "dirty", Color::Yellow),
        (used, "▓", "in use", Color::Blue),
        (clean, "▒", "clean", Color::Cyan),
        (reserved, "◆", "reserved", Color::Magenta),
        (free, "░", "free", Color::Green),
    ];
    let lengths = shares(&parts.map(|part| part.0), all, room);
    let mut bar = vec![Span::raw(title)];
    let mut legend = Vec::new();
    for ((buffers, letter, name, color), length) in parts.into_iter().zip(lengths) {
        bar.push(Span::styled(letter.repeat(length), color));
        legend.push(Span::styled(letter, color));
        legend.push(Span::raw(format!(" {name} {}  ", size(buffers))));
    }
    vec![Line::from(bar), Line::from(legend)]
}

/// How many of `room` letters each part of `all` gets; never more than `room` together.
fn shares(parts: &[u64], all: u64, room: usize) -> Vec<usize> {
    let mut left = room;
    let share = |part: &u64| {
        let letters = (*part as f64 / all.max(1) as f64 * room as f64).round() as usize;
        // What is there is seen.
        let letters = if *part > 0 { letters.max(1) } else { 0 }.min(left);
        left -= letters;
        letters
    };
    parts.iter().map(share).collect()
}

/// A bar of what is dirty and what is clean of a partition, and what is not in the pool.
fn bar(row: &Row) -> Line<'static> {
    let room = usize::from(BAR_WIDTH);
    let parts = shares(&[row.dirty, row.resident.saturating_sub(row.dirty)], row.size, room);
    let absent = room - parts.iter().sum::<usize>();
    Line::from(vec![
        Span::styled("█".repeat(parts[0]), Color::Yellow),
        Span::styled("▒".repeat(parts[1]), Color::Cyan),
        Span::styled("·".repeat(absent), Color::DarkGray),
    ])
}

/// How sizes are printed.
type Format = fn(u64) -> String;

/// What makes a cell of a row.
type Draw = fn(&Row, Format) -> Cell<'static>;

/// A column of the list.
struct Column {
    title: &'static str,
    width: u16,
    sort: Option<Sort>,
    cell: Draw,
}

impl Column {
    const fn new(title: &'static str, width: u16, sort: Option<Sort>, cell: Draw) -> Self {
        Self { title, width, sort, cell }
    }
}

fn status_cell(row: &Row) -> Cell<'static> {
    let style = match row.status.as_str() {
        "available" => Style::new().fg(Color::Green),
        "inflight" => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    };
    Cell::from(row.status.clone()).style(style)
}

fn errors_cell(row: &Row) -> Cell<'static> {
    let errors = match &row.error {
        Some(errno) => format!("{} {errno}", row.failures),
        None if row.failures == 0 => "-".to_owned(),
        None => row.failures.to_string(),
    };
    Cell::from(errors).style(warning(row.error.is_some()))
}

fn rate(bytes: f64, format: Format) -> Cell<'static> {
    Cell::from(if bytes < 1.0 { "-".to_owned() } else { format(bytes as u64) })
}

/// The columns behind the name, and how their sizes are printed. A narrow screen has one size, by which is sorted if by any.
fn columns(width: u16, sort: Sort) -> (Vec<Column>, Format) {
    let is_wide = width >= WIDE;
    let (bytes, errors) = if is_wide { (10, 12) } else { (7, 8) };
    let mut columns = vec![
        Column::new("STATUS", 13, None, |row, _| status_cell(row)),
        Column::new("READ/s", bytes, Some(Sort::Read), |row, format| rate(row.read_rate, format)),
        Column::new("WRITE/s", bytes, Some(Sort::Write), |row, format| {
            rate(row.write_rate, format)
        }),
        Column::new("SIZE", bytes, Some(Sort::Size), |row, format| format(row.size).into()),
        Column::new("IN POOL", BAR_WIDTH, None, |row, _| Cell::from(bar(row))),
        Column::new("RESIDENT", bytes.max(8), Some(Sort::Resident), |row, format| {
            format(row.resident).into()
        }),
        Column::new("DIRTY", bytes, Some(Sort::Dirty), |row, format| format(row.dirty).into()),
        Column::new("ERRORS", errors, Some(Sort::Errors), |row, _| errors_cell(row)),
    ];
    if !is_wide {
        let shown = if matches!(sort, Sort::Resident | Sort::Dirty) { sort } else { Sort::Size };
        let sizes = [Sort::Size, Sort::Resident, Sort::Dirty];
        columns.retain(|column| {
            column.sort == Some(shown) || !column.sort.is_some_and(|sort| sizes.contains(&sort))
        });
    }
    (columns, if is_wide { format_short } else { format_tight })
}

fn draw_list(frame: &mut Frame<'_>, model: &mut Model, area: Rect) {
    let (columns, format) = columns(area.width, model.sort);
    let used: u16 = columns.iter().map(|column| column.width + 1).sum();
    let name_width = area.width.saturating_sub(used);
    let marked = |sort: Option<Sort>| {
        let traffic = model.sort == Sort::Traffic && matches!(sort, Some(Sort::Read | Sort::Write));
        sort == Some(model.sort) || traffic
    };
    let titles = columns.iter().map(|column| (column.title, column.sort));
    let header =
        std::iter::once(("PARTITION", Some(Sort::Name))).chain(titles).map(|(name, sort)| {
            let style = Style::new().add_modifier(Modifier::REVERSED);
            let more = if marked(sort) {
                Modifier::BOLD | Modifier::UNDERLINED
            } else {
                Modifier::empty()
            };
            Cell::from(name).style(style.add_modifier(more))
        });
    // Only what can be seen is made.
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let first = model.selected.saturating_sub(room - 1);
    let seen = model.rows.iter().skip(first).take(room).map(|row| {
        let name = Cell::from(cut(&row.path, usize::from(name_width)));
        let cells = columns.iter().map(|column| (column.cell)(row, format));
        TableRow::new(std::iter::once(name).chain(cells))
    });
    let lengths = columns.iter().map(|column| Constraint::Length(column.width));
    let table = Table::new(seen, std::iter::once(Constraint::Fill(1)).chain(lengths))
        .header(TableRow::new(header))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let selected = (!model.rows.is_empty()).then_some(model.selected - first);
    let mut state = TableState::default().with_selected(selected);
    frame.render_stateful_widget(table, area, &mut state);
}

/// The keys, on one line where it is long enough.
fn help_lines(model: &Model, width: usize) -> Vec<Line<'static>> {
    let paused = if model.is_paused() { "PAUSED  " } else { "" };
    let order = if model.reversed { ", reversed" } else { "" };
    let first = format!("{paused}by {:?}{order}  q quit  space pause  R reverse", model.sort);
    let second = "sort: t traffic  r read  w write  m resident  d dirty  s size  e errors  n name";
    match first.len() + 2 + second.len() <= width {
        true => vec![Line::from(format!("{first}  {second}"))],
        false => vec![Line::from(first), Line::from(second)],
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::model;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(model: &mut Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width));
        lines.map(|cells| cells.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
    }

    #[test]
    fn the_mount_and_its_partitions_are_on_the_screen() {
        let mut model = model(5);
        let lines = screen(&mut model, 140, 16);
        assert!(lines[0].starts_with("/mnt/x of /nvme  pid 7  5 partitions, 5 at rest"));
        assert!(lines[1].starts_with("clients  read 4 MiB/s  write 0 B/s"), "{}", lines[1]);
        assert!(lines[2].contains("1 failed transfers"));
        let legend = "█ dirty 3MiB  ▓ in use 1MiB  ▒ clean 3MiB  ◆ reserved 2MiB  ░ free 1MiB";
        assert!(lines[4].starts_with(legend), "{}", lines[4]);
        assert!(lines[3].starts_with("pool 10MiB  █"), "{}", lines[3]);
        let letters = ['█', '▓', '▒', '◆', '░'].map(|letter| lines[3].matches(letter).count());
        assert_eq!(letters, [18, 6, 18, 12, 6], "by tenths of 60: {}", lines[3]);
        assert!(lines[7].starts_with("PARTITION"), "{lines:#?}");
        assert!(lines[8].starts_with("p4"), "the most traffic first: {lines:#?}");
        assert!(lines[9].starts_with("p3") && lines[9].contains("1 EIO"), "{}", lines[9]);
        let bar = ['█', '▒', '·'].map(|letter| lines[8].matches(letter).count());
        assert_eq!(bar, [1, 5, 4], "dirty bytes are seen, and half is resident: {}", lines[8]);
        assert!(lines[15].starts_with("by Traffic  q quit"), "{}", lines[15]);
    }

    #[test]
    fn everything_fits_80_and_160_letters() {
        let names = [
            "layers.0.mlp.down_proj.weight_of_more_letters_than_there_is_room.swp".to_owned(),
            format!("{}/0_param.tensor.swp", "deep/".repeat(90)),
            "重み/重み重み重み重み重み重み重み/重み.swp".to_owned(),
        ];
        for (width, wide) in [(80, false), (100, false), (160, true)] {
            let mut model = model(names.len());
            model.mountpoint = format!("/mnt/{}/swapfs", "folder/".repeat(20));
            for (row, name) in model.rows.iter_mut().zip(&names) {
                row.path.clone_from(name);
                row.status = "not_available".to_owned();
                (row.read_rate, row.write_rate) = (1023.9 * 1_048_576.0, 1023.9 * 1_048_576.0);
                (row.failures, row.error) = (99, Some("EUCLEAN".to_owned()));
            }
            for sort in [Sort::Traffic, Sort::Dirty, Sort::Resident, Sort::Name] {
                model.sort = sort;
                let lines = screen(&mut model, width, 24);
                let text = lines.join("\n");
                for word in [
                    "not_available",
                    "99 EUC",
                    "swp",
                    "…",
                    "n name",
                    "q quit",
                    "░ free",
                    "/swapfs of",
                ] {
                    assert!(text.contains(word), "{word} at {width}:\n{text}");
                }
                assert_eq!(text.contains("RESIDENT"), wide || sort == Sort::Resident, "{text}");
                assert_eq!(text.contains("DIRTY"), wide || sort == Sort::Dirty, "{text}");
                assert_eq!(lines[22].starts_with("by "), !wide || width < 130, "{text}");
            }
        }
    }

    #[test]
    fn the_marked_line_stays_in_sight_and_small_screens_do_no_harm() {
        let mut model = model(9);
        model.grant(super::super::Wish::Sort(Sort::Name));
        model.grant(super::super::Wish::Last);
        let lines = screen(&mut model, 100, 12);
        assert!(lines[9].starts_with("p8"), "{lines:#?}");
        for (width, height) in [(1, 1), (5, 3), (20, 7), (300, 100)] {
            screen(&mut model, width, height);
        }
        let mut nothing = super::super::model::tests::model(0);
        screen(&mut nothing, 80, 24);
    }

    #[test]
    fn bars_show_what_is_there_and_never_overflow() {
        assert_eq!(shares(&[1, 0, 1000], 1001, 10), [1, 0, 9]);
        assert_eq!(shares(&[5, 5], 10, 10), [5, 5]);
        assert_eq!(shares(&[9, 9], 10, 10), [9, 1]);
        assert_eq!(shares(&[1, 1], 0, 0), [0, 0]);
    }
}
