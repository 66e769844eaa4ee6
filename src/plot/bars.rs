//! Bars below each other on one axis: how long each is, how far its figure varies, and where it should end.

use plotters::data::float::FloatPrettyPrinter;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Area, Drawn, document, text};
use crate::turns::Spread;

/// Pixels.
const WIDTH: i32 = 900;
const LEFT_MIN: i32 = 220;
const RIGHT: i32 = 230;
const TOP: i32 = 78;
const BAR: i32 = 20;
const GAP: i32 = 8;
const LETTER: i32 = 6;
const AXIS: i32 = 40;
const BELOW: i32 = 18;

/// Between two groups of bars.
const SPACE: i32 = 10;

/// Between two strokes of a hatched bar.
const HATCH: i32 = 6;

/// White strokes on a bar, so that kinds differ without colours too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strokes {
    /// The plain colour.
    None,
    /// In one direction.
    Hatched,
    /// In both.
    Crossed,
}

/// What bars of a kind have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// As the legend has it.
    pub name: &'static str,
    /// Red, green and blue.
    pub colour: [u8; 3],
    /// What lies over the colour.
    pub strokes: Strokes,
}

impl Kind {
    fn ink(self) -> RGBColor {
        let [red, green, blue] = self.colour;
        RGBColor(red, green, blue)
    }
}

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Stands before it.
    pub label: String,
    /// Its colour and strokes.
    pub kind: Kind,
    /// Where it ends on the axis; also printed behind it.
    pub length: f64,
    /// Drawn as a thin line from the least to the most.
    pub spread: Option<Spread>,
    /// Drawn as a short line across the bar.
    pub goal: Option<f64>,
    /// Stands behind its figure.
    pub note: String,
    /// Begins a group of its own.
    pub apart: bool,
}

/// A picture of bars.
#[derive(Debug, Clone, Copy)]
pub struct Chart<'a> {
    /// Stands above.
    pub title: &'a str,
    /// What the figures of the axis are.
    pub unit: &'a str,
    /// Where the axis ends, and longer bars are cut to an arrow; by default behind the longest.
    pub end: Option<f64>,
    /// In the order of the legend, which leaves out those without a bar.
    pub kinds: &'a [Kind],
    /// What the legend says beyond the kinds.
    pub legend: &'a str,
    /// From the first down.
    pub bars: &'a [Bar],
    /// Dashed lines across all bars, in the colours of their kinds.
    pub limits: &'a [(Kind, f64)],
    /// Lines of text beneath.
    pub below: &'a [&'a str],
}

/// Where things are, in pixels.
struct Layout {
    size: (i32, i32),
    left: i32,
    /// Below the last bar.
    bottom: i32,
    /// The axis's length, in its own unit.
    most: f64,
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(10_000)
}

fn widest<'a>(lines: impl Iterator<Item = &'a str>) -> i32 {
    lines.map(|line| count(line.chars().count()) * LETTER).max().unwrap_or(0)
}

impl Chart<'_> {
    /// Draws it as an SVG document, with `mark` at its end.
    ///
    /// # Errors
    /// One line; drawing into memory has no reason to fail.
    pub fn to_svg(&self, mark: &str) -> Result<String, String> {
        let layout = self.layout();
        document(layout.size, mark, |area| self.draw(area, &layout))
    }

    fn layout(&self) -> Layout {
        let ends = self.bars.iter().flat_map(|bar| [Some(bar.length), bar.spread.map(|s| s.max)]);
        let ends = ends.flatten().chain(self.limits.iter().map(|limit| limit.1));
        let most = self.end.unwrap_or_else(|| ends.fold(0.0, f64::max)).max(f64::MIN_POSITIVE);
        let left = widest(self.bars.iter().map(|bar| bar.label.as_str())) + 16;
        let left = left.max(LEFT_MIN);
        let spaces = count(self.bars.iter().filter(|bar| bar.apart).count()) * SPACE;
        let bottom = TOP + count(self.bars.len()) * (BAR + GAP) + spaces;
        let width = (WIDTH - LEFT_MIN + left).max(widest(self.below.iter().copied()) + 24);
        let height = bottom + AXIS + 14 + BELOW * count(self.below.len());
        Layout { size: (width, height), left, bottom, most }
    }

    fn draw(&self, area: &Area<'_>, layout: &Layout) -> Drawn {
        let Layout { size, left, bottom, most } = *layout;
        text(area, self.title, (left, 20), 15, HPos::Left, &BLACK)?;
        self.draw_legend(area, left)?;
        let (top, right) = (TOP - 6, left + WIDTH - LEFT_MIN - RIGHT);
        let mut axes = ChartBuilder::on(area)
            .margin_top(top)
            .margin_right(size.0 - right)
            .margin_bottom(size.1 - bottom - 4 - AXIS)
            .x_label_area_size(AXIS)
            .y_label_area_size(left)
            .build_cartesian_2d(0.0..most, 0.0..1.0)?;
        let figures =
            FloatPrettyPrinter { allow_scientific: false, min_decimal: 0, max_decimal: 3 };
        axes.configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_labels(9)
            .x_label_formatter(&|tick| figures.print(*tick))
            .x_desc(self.unit)
            .label_style(("sans-serif", 11))
            .axis_desc_style(("sans-serif", 12))
            .bold_line_style(RGBColor(0xdd, 0xdd, 0xdd))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let x = |figure: f64| axes.plotting_area().map_coordinate(&(figure.min(most), 0.0)).0;
        let mut y = TOP;
        for bar in self.bars {
            y += if bar.apart { SPACE } else { 0 };
            draw_bar(area, bar, x, most, y)?;
            y += BAR + GAP;
        }
        for (kind, figure) in self.limits {
            // Dashes are seen across bars of the same colour.
            let ends = [(x(*figure), top), (x(*figure), bottom)];
            area.draw(&DashedPathElement::new(ends, 5, 3, kind.ink().stroke_width(1)))?;
        }
        for (below, y) in self.below.iter().zip((bottom + AXIS + 12..).step_by(BELOW as usize)) {
            text(area, below, (12, y), 12, HPos::Left, &BLACK)?;
        }
        Ok(())
    }

    fn draw_legend(&self, area: &Area<'_>, left: i32) -> Drawn {
        let mut x = left;
        for kind in self.kinds {
            if self.bars.iter().any(|bar| bar.kind == *kind) {
                fill(area, *kind, (x, 38), (x + 24, 52))?;
                text(area, kind.name, (x + 30, 45), 12, HPos::Left, &BLACK)?;
                x += 44 + count(kind.name.len()) * LETTER;
            }
        }
        text(area, self.legend, (x, 45), 12, HPos::Left, &BLACK)
    }
}

fn draw_bar(area: &Area<'_>, bar: &Bar, x: impl Fn(f64) -> i32, most: f64, y: i32) -> Drawn {
    let (middle, bottom) = (y + BAR / 2, y + BAR);
    text(area, &bar.label, (x(0.0) - 8, middle), 12, HPos::Right, &BLACK)?;
    fill(area, bar.kind, (x(0.0), y), (x(bar.length), bottom))?;
    let mut end = x(bar.length);
    if bar.length > most {
        let arrow = vec![(end, y), (end + 9, middle), (end, bottom)];
        area.draw(&Polygon::new(arrow, bar.kind.ink().filled()))?;
        end += 9;
    }
    if let Some(Spread { min, max, .. }) = bar.spread {
        line(area, (x(min), middle), (x(max), middle), BLACK.stroke_width(1))?;
        end = end.max(x(max));
    }
    if let Some(goal) = bar.goal {
        line(area, (x(goal), y), (x(goal), bottom), BLACK.stroke_width(2))?;
        end = end.max(x(goal));
    }
    let figure = format!("{:.2} {}", bar.length, bar.note);
    text(area, figure.trim_end(), (end + 6, middle), 12, HPos::Left, &BLACK)
}

/// Fills a rectangle with the colour and the strokes of a kind.
fn fill(area: &Area<'_>, kind: Kind, from: (i32, i32), to: (i32, i32)) -> Drawn {
    area.draw(&Rectangle::new([from, to], kind.ink().filled()))?;
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
        if kind.strokes != Strokes::None {
            line(area, (left, up(left)), (right, up(right)), stroke)?;
        }
        if kind.strokes == Strokes::Crossed {
            line(area, (left, down(left)), (right, down(right)), stroke)?;
        }
    }
    Ok(())
}

/// A straight line.
fn line(area: &Area<'_>, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> Drawn {
    area.draw(&PathElement::new(vec![from, to], style))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Kind = Kind { name: "plain", colour: [10, 20, 30], strokes: Strokes::None };
    const CROSSED: Kind = Kind { name: "crossed", strokes: Strokes::Crossed, ..PLAIN };
    const UNUSED: Kind = Kind { name: "unused", strokes: Strokes::Hatched, ..PLAIN };

    fn bar(label: &str, kind: Kind, length: f64, apart: bool) -> Bar {
        let spread = Some(Spread { min: length / 2.0, median: length, max: length * 2.0 });
        let note = "a < b & c".to_owned();
        Bar { label: label.to_owned(), kind, length, spread, goal: None, note, apart }
    }

    fn chart<'a>(bars: &'a [Bar], below: &'a [&'a str]) -> Chart<'a> {
        let limits = &[(PLAIN, 3.0)];
        let kinds = &[PLAIN, CROSSED, UNUSED];
        let (title, unit, legend) = ("title", "GiB/s", "least to most");
        Chart { title, unit, end: None, kinds, legend, bars, limits, below }
    }

    /// The figures of an attribute of SVG.
    fn figures(svg: &str, name: &str) -> Vec<f64> {
        let attribute = format!(" {name}=\"");
        let texts = svg.split(attribute.as_str()).skip(1);
        texts.filter_map(|rest| rest.split('"').next()?.parse().ok()).collect()
    }

    #[test]
    fn bars_texts_and_groups_fit_and_nothing_is_markup() {
        let bars = [
            bar("one", CROSSED, 2.0, true),
            bar("two", PLAIN, 2.0, false),
            bar("<three>", PLAIN, 2.0, true),
        ];
        let svg = chart(&bars, &["below"]).to_svg("<!-- mark -->").unwrap();
        assert!(svg.contains("&lt;three&gt;") && svg.contains("a &lt; b &amp; c"), "{svg}");
        assert!(svg.starts_with("<svg") && svg.ends_with("<!-- mark -->\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        for word in ["title", "GiB/s", "plain", "crossed", "below", "least to most"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        assert!(!svg.contains("unused"), "{svg}");
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
    fn bars_longer_than_the_axis_end_in_an_arrow() {
        let goal =
            |length| Bar { spread: None, goal: Some(1.0), ..bar("bar", PLAIN, length, false) };
        let arrows = |length| {
            let bars = [goal(length)];
            let cut = Chart { end: Some(2.0), limits: &[], ..chart(&bars, &[]) };
            cut.to_svg("").unwrap().matches("<polygon").count()
        };
        assert_eq!((arrows(2.0), arrows(7.0)), (0, 1));
    }

    #[test]
    fn pictures_of_nothing_and_of_much_are_drawn() {
        assert!(chart(&[], &[]).to_svg("").is_ok());
        let empty = Chart { limits: &[], ..chart(&[], &[]) };
        assert!(empty.to_svg("").is_ok());
        for speed in [0.0, 1e-6, 1e9] {
            let bars = vec![bar("", CROSSED, speed, false); 60];
            let much = Chart { limits: &[], ..chart(&bars, &["below"; 20]) };
            assert!(much.to_svg("").is_ok(), "{speed}");
        }
    }
}
