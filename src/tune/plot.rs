//! The heat map.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Combination, Measured};
use crate::plot::{Area, Drawn, document, text};
use crate::units::{GIB, format_exact};

/// Stands at the end of a plot; files with it are the tuner's own.
const MARK: &str = "<!-- swapfs tune -->";

/// Pixels.
const CELL: (i32, i32) = (64, 24);
const LABELS: i32 = 230;
const LETTER: i32 = 7;
const TOP: i32 = 72;
const GAP: i32 = 28;
const BOTTOM: i32 = 44;

/// Narrowest field: its heading and scale fit.
const FIELD_MIN: i32 = 170;

/// Fields of the scale.
const SCALE: i32 = 8;

/// Whether a text is a drawing of [`heat_map`].
#[must_use]
pub fn is_heat_map(text: &str) -> bool {
    text.trim_end().ends_with(MARK)
}

/// The figure of a cell.
type Figure = fn(&Measured) -> f64;

/// Draws what was measured as SVG: a row for each block size, depth and kind of submission, a column for
/// each number of threads, and a field of them for writes and reads each.
///
/// # Errors
/// One line; drawing into memory has no reason to fail.
pub fn heat_map(measured: &[Measured], title: &str) -> Result<String, String> {
    let mut rows: Vec<Combination> = measured.iter().map(|one| row(&one.combination)).collect();
    let mut columns: Vec<u64> =
        measured.iter().map(|one| one.combination.intra_op_parallelism).collect();
    columns.sort_unstable();
    columns.dedup();
    rows.sort_unstable();
    rows.dedup();
    let figures: [(&str, Figure); 2] =
        [("write", |one| one.write.speed()), ("read", |one| one.read.speed())];
    let fields: Vec<(&str, Figure)> = figures
        .into_iter()
        .filter(|(_, figure)| measured.iter().any(|one| figure(one) > 0.0))
        .collect();
    let pixels = |count: usize, each: i32| i32::try_from(count).unwrap_or(i32::MAX / each) * each;
    let field_width = (pixels(columns.len(), CELL.0) + GAP).max(FIELD_MIN);
    let width = (LABELS + pixels(fields.len(), field_width)).max(pixels(title.len(), LETTER) + 24);
    let height = TOP + pixels(rows.len(), CELL.1) + BOTTOM;
    let map = Map { measured, rows, columns };
    document((width, height), MARK, |area| map.draw(area, title, &fields, field_width))
}

struct Map<'a> {
    measured: &'a [Measured],
    /// Each with one thread.
    rows: Vec<Combination>,
    columns: Vec<u64>,
}

impl Map<'_> {
    fn draw(
        &self, area: &Area<'_>, title: &str, fields: &[(&str, Figure)], field_width: i32,
    ) -> Drawn {
        text(area, title, (12, 18), 15, HPos::Left, &BLACK)?;
        let axes = (LABELS - 10, TOP - 12);
        text(area, "block, depth, submit, events; threads:", axes, 12, HPos::Right, &BLACK)?;
        for (index, row) in (0..).zip(&self.rows) {
            let y = TOP + index * CELL.1 + CELL.1 / 2;
            text(area, &label(row), (LABELS - 10, y), 12, HPos::Right, &BLACK)?;
        }
        for (index, (name, figure)) in (0..).zip(fields) {
            self.draw_field(area, name, *figure, LABELS + index * field_width)?;
        }
        Ok(())
    }

    fn draw_field(&self, area: &Area<'_>, name: &str, figure: Figure, left: i32) -> Drawn {
        let heading = format!("{name}, GiB/s by threads");
        text(area, &heading, (left, TOP - 32), 13, HPos::Left, &BLACK)?;
        let speeds = || self.measured.iter().map(figure).filter(|speed| *speed > 0.0);
        let most = speeds().fold(0.0, f64::max);
        let least = speeds().fold(most, f64::min);
        let bottom = TOP + i32::try_from(self.rows.len()).unwrap_or(0) * CELL.1;
        draw_scale(area, (left, bottom + 16), least, most)?;
        for (column, threads) in (0..).zip(&self.columns) {
            let x = left + column * CELL.0;
            let middle = x + CELL.0 / 2;
            text(area, &threads.to_string(), (middle, TOP - 12), 12, HPos::Center, &BLACK)?;
            for (index, row_key) in (0..).zip(&self.rows) {
                let found = self.measured.iter().find(|one| {
                    row(&one.combination) == *row_key
                        && one.combination.intra_op_parallelism == *threads
                });
                let Some(speed) = found.map(figure).filter(|speed| *speed > 0.0) else {
                    continue;
                };
                let y = TOP + index * CELL.1;
                // 0 for the slowest, 1 for the fastest; one alone is the fastest.
                let share = if most > least { (speed - least) / (most - least) } else { 1.0 };
                let corners = [(x, y), (x + CELL.0 - 2, y + CELL.1 - 2)];
                area.draw(&Rectangle::new(corners, shade(share).filled()))?;
                let ink = if share > 0.5 { &WHITE } else { &BLACK };
                let figure = format!("{:.2}", speed / GIB as f64);
                text(area, &figure, (middle, y + CELL.1 / 2 - 1), 12, HPos::Center, ink)?;
            }
        }
        Ok(())
    }
}

/// The colour of a share between the slowest, 0, and the fastest, 1: the darker, the faster.
fn shade(share: f64) -> HSLColor {
    HSLColor(0.57, 0.65, 0.94 - 0.60 * share)
}

/// The legend of a field: its shades between its least and its most.
fn draw_scale(area: &Area<'_>, at: (i32, i32), least: f64, most: f64) -> Drawn {
    let figure = |speed: f64| format!("{:.2}", speed / GIB as f64);
    text(area, &figure(least), at, 11, HPos::Left, &BLACK)?;
    let from = at.0 + 34;
    for step in 0..SCALE {
        let (x, share) = (from + step * 8, f64::from(step) / f64::from(SCALE - 1));
        area.draw(&Rectangle::new([(x, at.1 - 6), (x + 8, at.1 + 6)], shade(share).filled()))?;
    }
    text(area, &figure(most), (from + SCALE * 8 + 6, at.1), 11, HPos::Left, &BLACK)
}

/// The row of a combination: the same with one thread.
fn row(combination: &Combination) -> Combination {
    Combination { intra_op_parallelism: 1, ..*combination }
}

fn label(row: &Combination) -> String {
    let (block, depth) = (format_exact(row.block_size), row.queue_depth);
    format!("{block}, depth {depth}, {}, {}", row.submit(), row.events())
}
