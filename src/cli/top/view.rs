//! How `top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Sparkline, Table, TableState};

use super::model::{Model, Row, Sort};
use crate::units::format_short;

/// Letters of a bar in the table.
const BAR_WIDTH: u16 = 10;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(1),
    ];
    let [title, rates, pool, curve, list, help] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(title_line(model)), title);
    frame.render_widget(Paragraph::new(rates_line(model)), rates);
    frame.render_widget(Paragraph::new(pool_line(model, pool.width)), pool);
    let newest = model.history.len().saturating_sub(usize::from(curve.width));
    let history = Sparkline::default().data(&model.history[newest..]).style(Color::Cyan);
    frame.render_widget(history, curve);
    draw_list(frame, model, list);
    frame.render_widget(Paragraph::new(help_line(model)), help);
}

fn title_line(model: &Model) -> Line<'static> {
    let text = |pointer: &str| {
        let found = model.sample.stats.pointer(pointer);
        found.and_then(|value| value.as_str()).unwrap_or("?").to_owned()
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    Line::from(vec![
        Span::styled(model.mountpoint.clone(), bold),
        Span::raw(format!(
            " of {}  pid {}  {} partitions, {} at rest",
            text("/mount/swap_folders/0"),
            model.sample.count("/mount/pid"),
            model.rows.len(),
            model.resting
        )),
    ])
}

fn rates_line(model: &Model) -> Line<'static> {
    let (rates, bytes) = (&model.rates, |rate: f64| format_short(rate as u64));
    let hits = rates.hits.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0));
    let errors = model.sample.count("/cache/errors");
    let told = Span::styled(format!("{errors} failed transfers"), warning(errors > 0));
    Line::from(vec![
        Span::raw(format!(
            "read {}/s  write {}/s  {:.0} requests/s  hits {hits}  device read {}/s  write {}/s  \
             waits {:.0}/s  ",
            bytes(rates.read_bytes),
            bytes(rates.written_bytes),
            rates.requests,
            bytes(rates.device_read_bytes),
            bytes(rates.device_written_bytes),
            rates.waits
        )),
        told,
    ])
}

fn warning(when: bool) -> Style {
    if when { Style::new().fg(Color::Red).add_modifier(Modifier::BOLD) } else { Style::new() }
}

/// The pool's buffers as one bar: dirty, in flight, clean or otherwise bound, available.
fn pool_line(model: &Model, width: u16) -> Line<'static> {
    let count = |name: &str| model.sample.count(&format!("/pool/{name}"));
    let (all, dirty, available) = (count("buffers"), count("dirty"), count("available"));
    let (reserved, inflight) = (count("reserved"), count("inflight"));
    let size = format_short(all.saturating_mul(count("buffer_size")));
    let text = format!(
        " {size} pool: {available} available, {dirty} dirty, {inflight} in flight, \
         {reserved} reserved"
    );
    let room = usize::from(width).saturating_sub(text.chars().count()).min(40);
    let parts = shares(&[dirty, reserved, available], all, room);
    let rest = room.saturating_sub(parts.iter().sum());
    Line::from(vec![
        Span::styled("█".repeat(parts[0]), Color::Yellow),
        Span::styled("█".repeat(rest), Color::Blue),
        Span::styled("▒".repeat(parts[1]), Color::Magenta),
        Span::styled("░".repeat(parts[2]), Color::Green),
        Span::raw(text),
    ])
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

/// A bar of what is dirty and what else is resident of a partition.
fn bar(row: &Row) -> Line<'static> {
    let room = usize::from(BAR_WIDTH);
    let parts = shares(&[row.dirty, row.resident.saturating_sub(row.dirty)], row.size, room);
    let absent = room - parts.iter().sum::<usize>();
    Line::from(vec![
        Span::styled("█".repeat(parts[0]), Color::Yellow),
        Span::styled("█".repeat(parts[1]), Color::Blue),
        Span::styled("·".repeat(absent), Color::DarkGray),
    ])
}

fn cells(row: &Row) -> TableRow<'static> {
    let status = match row.status.as_str() {
        "available" => Style::new().fg(Color::Green),
        "inflight" => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    };
    let rate = |bytes: f64| if bytes < 1.0 { "-".to_owned() } else { format_short(bytes as u64) };
    let errors = match &row.error {
        Some(errno) => format!("{} {errno}", row.failures),
        None if row.failures == 0 => "-".to_owned(),
        None => row.failures.to_string(),
    };
    TableRow::new(vec![
        Cell::from(row.path.clone()),
        Cell::from(row.status.clone()).style(status),
        Cell::from(rate(row.read_rate)),
        Cell::from(rate(row.write_rate)),
        Cell::from(format_short(row.size)),
        Cell::from(bar(row)),
        Cell::from(format_short(row.resident)),
        Cell::from(format_short(row.dirty)),
        Cell::from(errors).style(warning(row.error.is_some())),
    ])
}

fn draw_list(frame: &mut Frame<'_>, model: &mut Model, area: Rect) {
    let columns = [
        ("PARTITION", Constraint::Fill(1), Some(Sort::Name)),
        ("STATUS", Constraint::Length(13), None),
        ("READ/s", Constraint::Length(10), Some(Sort::Read)),
        ("WRITE/s", Constraint::Length(10), Some(Sort::Write)),
        ("SIZE", Constraint::Length(10), Some(Sort::Size)),
        ("IN POOL", Constraint::Length(BAR_WIDTH), None),
        ("RESIDENT", Constraint::Length(10), Some(Sort::Resident)),
        ("DIRTY", Constraint::Length(10), Some(Sort::Dirty)),
        ("ERRORS", Constraint::Length(12), Some(Sort::Errors)),
    ];
    let marked = |sort: Option<Sort>| {
        let traffic = model.sort == Sort::Traffic && matches!(sort, Some(Sort::Read | Sort::Write));
        sort == Some(model.sort) || traffic
    };
    let header = columns.iter().map(|(name, _, sort)| {
        let style = Style::new().add_modifier(Modifier::REVERSED);
        let more =
            if marked(*sort) { Modifier::BOLD | Modifier::UNDERLINED } else { Modifier::empty() };
        Cell::from(*name).style(style.add_modifier(more))
    });
    // Only what can be seen is made.
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let first = model.selected.saturating_sub(room - 1);
    let seen = model.rows.iter().skip(first).take(room).map(cells);
    let table = Table::new(seen, columns.iter().map(|column| column.1))
        .header(TableRow::new(header))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let selected = (!model.rows.is_empty()).then_some(model.selected - first);
    let mut state = TableState::default().with_selected(selected);
    frame.render_stateful_widget(table, area, &mut state);
}

fn help_line(model: &Model) -> Line<'static> {
    let paused = if model.is_paused() { "PAUSED  " } else { "" };
    let order = if model.reversed { ", reversed" } else { "" };
    Line::from(format!(
        "{paused}by {:?}{order}  q quit  space pause  sort: t traffic  r read  w write  m resident  d dirty  \
         s size  e errors  n name  R reverse",
        model.sort
    ))
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
        assert!(lines[1].starts_with("read 4 MiB/s  write 0 B/s"), "{}", lines[1]);
        assert!(lines[1].contains("1 failed transfers"));
        assert!(lines[2].contains("10 MiB pool: 4 available, 3 dirty, 1 in flight, 2 reserved"));
        assert_eq!(lines[2].matches('░').count(), 16, "four of ten buffers: {}", lines[2]);
        assert!(lines[5].starts_with("PARTITION"), "{lines:#?}");
        assert!(lines[6].starts_with("p4"), "the most traffic first: {lines:#?}");
        assert!(lines[7].starts_with("p3") && lines[7].contains("1 EIO"), "{}", lines[7]);
        assert_eq!(
            lines[6].matches('█').count(),
            6,
            "dirty bytes are seen, and half is resident: {}",
            lines[6]
        );
        assert!(lines[15].starts_with("by Traffic  q quit"), "{}", lines[15]);
    }

    #[test]
    fn the_marked_line_stays_in_sight_and_small_screens_do_no_harm() {
        let mut model = model(9);
        model.grant(super::super::Wish::Sort(Sort::Name));
        model.grant(super::super::Wish::Last);
        let lines = screen(&mut model, 100, 10);
        assert!(lines[8].starts_with("p8"), "{lines:#?}");
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
