//! The pictures of a benchmark: a bar for each row, as long as its median, with its spread.

use std::fmt::Write;

use super::case::Access;
use super::report::{Report, Row};
use super::runner::Spread;

const WIDTH: f64 = 840.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 180.0;
const TOP: f64 = 50.0;
const BAR: f64 = 20.0;
const GAP: f64 = 8.0;

/// Between two groups of bars.
const SPACE: f64 = 10.0;

/// Stands at the end; files with it are the benchmark's own.
const MARK: &str = "<!-- swapfs bench -->";

/// Whether a text is a drawing of [`chart`].
pub(super) fn is_drawing(text: &str) -> bool {
    text.trim_end().ends_with(MARK)
}

/// Colours that differ in lightness too.
fn colour(access: Access) -> &'static str {
    match access {
        Access::Read => "#4d8fc4",
        Access::Write => "#b5541c",
        Access::Mixed => "#7a5c99",
    }
}

/// One bar, in GB/s.
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

/// A picture, an SVG document. `limits` are lines across all bars, `below` stands beneath them. Fonts are the
/// viewer's; nothing is loaded.
pub(super) fn chart(title: &str, bars: &[Bar], limits: &[(Access, f64)], below: &[&str]) -> String {
    let most = bars.iter().map(|bar| bar.spread.max).fold(0.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / most.max(f64::MIN_POSITIVE);
    let spaces = bars.iter().filter(|bar| bar.apart).count() as f64 * SPACE;
    let text = 16.0 + 18.0 * (below.len() + 1) as f64;
    let height = TOP + bars.len() as f64 * (BAR + GAP) + spaces + text;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    let mut y = TOP;
    for bar in bars {
        y += if bar.apart { SPACE } else { 0.0 };
        let Spread { min, median, max } = bar.spread;
        let middle = y + BAR / 2.0;
        let (from, to) = (LEFT + min * scale, LEFT + max * scale);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\n\
             <path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"black\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{median:.2} {}</text>\n",
            LEFT - 8.0,
            middle + 4.0,
            escaped(&bar.label),
            median * scale,
            colour(bar.access),
            // In a column, clear of spreads and of the lines.
            WIDTH - RIGHT + 12.0,
            middle + 4.0,
            escaped(&bar.note),
        );
        y += BAR + GAP;
    }
    for (access, speed) in limits {
        let x = LEFT + speed * scale;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}V{y:.1}\" stroke=\"{}\" stroke-dasharray=\"4 3\"/>",
            TOP - 8.0,
            colour(*access)
        );
    }
    for (line, part) in below.iter().enumerate() {
        let at = y + 24.0 + line as f64 * 18.0;
        let _ = writeln!(svg, "<text x=\"12\" y=\"{at:.1}\">{}</text>", escaped(part));
    }
    svg.push_str("</svg>\n");
    svg.push_str(MARK);
    svg.push('\n');
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Report {
    /// Whether a text is a picture that [`Report::to_svg`] made.
    #[must_use]
    pub fn is_svg(text: &str) -> bool {
        is_drawing(text)
    }

    /// The picture, an SVG document: the engines of each case beside each other.
    #[must_use]
    pub fn to_svg(&self) -> String {
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
        chart("swapfs bench, GB/s: medians, with least and most", &bars, &[], &below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_texts_and_groups_fit_and_nothing_is_markup() {
        let spread = Spread { min: 1.0, median: 2.0, max: 4.0 };
        let bar = |label: &str, apart| Bar {
            label: label.to_owned(),
            access: Access::Mixed,
            spread,
            note: "a < b & c".to_owned(),
            apart,
        };
        let bars = [bar("one", true), bar("two", false), bar("<three>", true)];
        let svg = chart("title", &bars, &[(Access::Read, 3.0)], &["below"]);
        assert_eq!(svg.matches("<rect x=").count(), 3);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.contains("&lt;three&gt;") && svg.contains("a &lt; b &amp; c"));
        assert!(svg.starts_with("<svg") && is_drawing(&svg));
        let height: f64 =
            svg.split("0 0 840 ").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        let lowest = svg.split(" y=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        assert!(lowest.map(|y| y.parse::<f64>().unwrap()).all(|y| y < height), "{svg}");
    }
}
