//! The pictures of a benchmark: a bar for each row, as long as its median, with its spread.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::case::Access;
use super::report::{Report, Row};
use crate::plot::{Area, Drawn, document, line, text, tick_label, ticks};
use crate::turns::Spread;

/// Pixels.
const WIDTH: i32 = 900;
const LEFT: i32 = 220;
const RIGHT: i32 = 230;
const TOP: i32 = 78;
const BAR: i32 = 20;
const GAP: i32 = 8;
const LETTER: i32 = 6;

/// Between two groups of bars.
const SPACE: i32 = 10;

/// Between two strokes of a hatched bar.
const HATCH: i32 = 6;

/// Stands at the end; files with it are the benchmark's own.
const MARK: &str = "<!-- swapfs bench -->";

/// Whether a text is a drawing of [`chart`].
pub(super) fn is_drawing(text: &str) -> bool {
    text.trim_end().ends_with(MARK)
}

/// Colours that differ in lightness too.
fn colour(access: Access) -> RGBColor {
    match access {
        Access::Read => RGBColor(0x4d, 0x8f, 0xc4),
        Access::Write => RGBColor(0xb5, 0x54, 0x1c),
        Access::Mixed => RGBColor(0x7a, 0x5c, 0x99),
    }
}

fn name(access: Access) -> &'static str {
    match access {
        Access::Read => "reads",
        Access::Write => "writes (hatched)",
        Access::Mixed => "reads and writes (crossed)",
    }
}

/// One bar, in GiB/s.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) access: Access,
    pub(super) spread: Spread,
    /// Stands behind it.
    pub(super) note: String,
    /// Begins a group of its own.
    pub(super) apart: bool,
}

/// What is drawn, and where.
struct Chart<'a> {
    title: &'a str,
    bars: &'a [Bar],
    limits: &'a [(Access, f64)],
    below: &'a [&'a str],
    /// Below the last bar.
    bottom: i32,
    most: f64,
}

/// A picture, an SVG document. `limits` are lines across all bars, `below` stands beneath them.
///
/// # Errors
/// One line; drawing into memory has no reason to fail.
pub(super) fn chart(
    title: &str, bars: &[Bar], limits: &[(Access, f64)], below: &[&str],
) -> Result<String, String> {
    let most = bars.iter().map(|bar| bar.spread.max).chain(limits.iter().map(|limit| limit.1));
    let most = most.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let count = |number: usize| i32::try_from(number).unwrap_or(10_000);
    let spaces = count(bars.iter().filter(|bar| bar.apart).count()) * SPACE;
    let bottom = TOP + count(bars.len()) * (BAR + GAP) + spaces;
    let widest =
        below.iter().map(|line| count(line.chars().count())).max().unwrap_or(0) * LETTER + 24;
    let size = (WIDTH.max(widest), bottom + 54 + 18 * count(below.len()));
    let chart = Chart { title, bars, limits, below, bottom, most };
    document(size, MARK, |area| chart.draw(area))
}

impl Chart<'_> {
    fn x(&self, speed: f64) -> i32 {
        LEFT + (speed / self.most * f64::from(WIDTH - LEFT - RIGHT)).round() as i32
    }

    fn draw(&self, area: &Area<'_>) -> Drawn {
        text(area, self.title, (LEFT, 20), 15, HPos::Left, &BLACK)?;
        self.draw_legend(area)?;
        self.draw_axis(area)?;
        let mut y = TOP;
        for bar in self.bars {
            y += if bar.apart { SPACE } else { 0 };
            self.draw_bar(area, bar, y)?;
            y += BAR + GAP;
        }
        for (access, speed) in self.limits {
            // Dashes: seen across bars of the same colour.
            for from in (TOP - 6..self.bottom).step_by(8) {
                let x = self.x(*speed);
                let style = colour(*access).stroke_width(1);
                line(area, (x, from), (x, (from + 5).min(self.bottom)), style)?;
            }
        }
        for (below, y) in self.below.iter().zip((self.bottom + 52..).step_by(18)) {
            text(area, below, (12, y), 12, HPos::Left, &BLACK)?;
        }
        Ok(())
    }

    fn draw_legend(&self, area: &Area<'_>) -> Drawn {
        let mut x = LEFT;
        for access in [Access::Write, Access::Read, Access::Mixed] {
            if self.bars.iter().any(|bar| bar.access == access) {
                fill(area, access, (x, 38), (x + 24, 52))?;
                text(area, name(access), (x + 30, 45), 12, HPos::Left, &BLACK)?;
                x += 44 + i32::try_from(name(access).len()).unwrap_or(0) * LETTER;
            }
        }
        let rest = "thin line: least to most";
        text(area, rest, (x, 45), 12, HPos::Left, &BLACK)
    }

    fn draw_axis(&self, area: &Area<'_>) -> Drawn {
        let y = self.bottom + 4;
        line(area, (LEFT, y), (WIDTH - RIGHT, y), BLACK.stroke_width(1))?;
        line(area, (LEFT, TOP - 6), (LEFT, y), BLACK.stroke_width(1))?;
        for tick in ticks(self.most) {
            let x = self.x(tick);
            line(area, (x, TOP - 6), (x, y), RGBColor(0xdd, 0xdd, 0xdd).stroke_width(1))?;
            line(area, (x, y), (x, y + 5), BLACK.stroke_width(1))?;
            text(area, &tick_label(tick), (x, y + 14), 11, HPos::Center, &BLACK)?;
        }
        text(area, "GiB/s", (WIDTH - RIGHT + 30, y + 14), 11, HPos::Left, &BLACK)
    }

    fn draw_bar(&self, area: &Area<'_>, bar: &Bar, y: i32) -> Drawn {
        let Spread { min, median, max } = bar.spread;
        let middle = y + BAR / 2;
        text(area, &bar.label, (LEFT - 8, middle), 12, HPos::Right, &BLACK)?;
        fill(area, bar.access, (LEFT, y), (self.x(median), y + BAR))?;
        line(area, (self.x(min), middle), (self.x(max), middle), BLACK.stroke_width(1))?;
        let figure = format!("{median:.2} {}", bar.note);
        text(area, figure.trim_end(), (self.x(max.max(median)) + 6, middle), 12, HPos::Left, &BLACK)
    }
}

/// A bar in the colour and with the strokes of its kind.
fn fill(area: &Area<'_>, access: Access, from: (i32, i32), to: (i32, i32)) -> Drawn {
    area.draw(&Rectangle::new([from, to], colour(access).filled()))?;
    let height = to.1 - from.1;
    let stroke = WHITE.mix(0.7).stroke_width(1);
    for start in (from.0 - height..to.0).step_by(HATCH as usize) {
        // The part of a diagonal from the lower left that lies in the bar.
        let (left, right) = (start.max(from.0), (start + height).min(to.0));
        if left >= right {
            continue;
        }
        let up = |x: i32| to.1 - (x - start);
        let down = |x: i32| from.1 + (x - start);
        if access != Access::Read {
            line(area, (left, up(left)), (right, up(right)), stroke)?;
        }
        if access == Access::Mixed {
            line(area, (left, down(left)), (right, down(right)), stroke)?;
        }
    }
    Ok(())
}

impl Report {
    /// Whether a text is a picture that [`Report::to_svg`] made.
    #[must_use]
    pub fn is_svg(text: &str) -> bool {
        is_drawing(text)
    }

    /// The picture, an SVG document: the engines of each case beside each other.
    ///
    /// # Errors
    /// One line; drawing into memory has no reason to fail.
    pub fn to_svg(&self) -> Result<String, String> {
        let first = self.rows.first().map(|row| row.engine);
        let bar = |row: &Row| Bar {
            label: format!("{}, {}", row.case, row.engine.name()),
            access: row.case.access(),
            spread: row.series.spread(),
            note: match Some(row.engine) == first {
                true => String::new(),
                false => format!("({:.2} of the first)", self.ratio(row)),
            },
            apart: Some(row.engine) == first,
        };
        let bars: Vec<Bar> = self.rows.iter().map(bar).collect();
        let heading = self.heading();
        let mut below: Vec<&str> = heading.split("; ").collect();
        below.extend(self.notes.iter().map(String::as_str));
        chart("swapfs bench: medians", &bars, &[], &below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures of an attribute of SVG.
    fn figures(svg: &str, name: &str) -> Vec<f64> {
        let attribute = format!(" {name}=\"");
        let texts = svg.split(attribute.as_str()).skip(1);
        texts.filter_map(|rest| rest.split('"').next()?.parse().ok()).collect()
    }

    #[test]
    fn bars_texts_and_groups_fit_and_nothing_is_markup() {
        let spread = Spread { min: 1.0, median: 2.0, max: 4.0 };
        let bar = |label: &str, access, apart| Bar {
            label: label.to_owned(),
            access,
            spread,
            note: "a < b & c".to_owned(),
            apart,
        };
        let bars = [
            bar("one", Access::Mixed, true),
            bar("two", Access::Read, false),
            bar("<three>", Access::Write, true),
        ];
        let svg = chart("title", &bars, &[(Access::Read, 3.0)], &["below"]).unwrap();
        assert!(svg.contains("&lt;three&gt;") && svg.contains("a &lt; b &amp; c"), "{svg}");
        assert!(svg.starts_with("<svg") && is_drawing(&svg));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        for word in
            ["GiB/s", "reads and writes (crossed)", "writes (hatched)", "below", "least to most"]
        {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        assert_eq!(svg.matches("2.00 a").count(), 3, "each bar has its value: {svg}");
        // A figure at each tick of the axis.
        for tick in ["0", "0.5", "1", "2", "3.5", "4"] {
            assert!(svg.lines().any(|line| line.trim() == tick), "{tick}: {svg}");
        }
        let (width, height) = (figures(&svg, "width")[0], figures(&svg, "height")[0]);
        for (name, most) in [("x", width), ("y", height)] {
            let found = figures(&svg, name);
            assert!(found.iter().all(|at| (0.0..=most).contains(at)), "{name}: {found:?}");
        }
    }

    #[test]
    fn pictures_of_nothing_and_of_much_are_drawn() {
        assert!(is_drawing(&chart("nothing", &[], &[], &[]).unwrap()));
        for speed in [0.0, 1e-6, 1e9] {
            let spread = Spread { min: speed, median: speed, max: speed };
            let (access, label, note) = (Access::Write, String::new(), String::new());
            let bars = vec![Bar { label, access, spread, note, apart: false }; 60];
            assert!(is_drawing(&chart("much", &bars, &[], &["below"; 20]).unwrap()), "{speed}");
        }
    }
}
