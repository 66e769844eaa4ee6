//! The picture: a bar for each layer and direction, as long as its median, with its spread.

use std::fmt::Write;

use super::{Access, Roofline, Spread};

const WIDTH: f64 = 840.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 180.0;
const TOP: f64 = 50.0;
const BAR: f64 = 20.0;
const GAP: f64 = 8.0;

/// Stands at the end; files with it are the benchmark's own.
const MARK: &str = "<!-- swapfs bench -->";

/// Colours that differ in lightness too.
const WRITE_COLOUR: &str = "#b5541c";
const READ_COLOUR: &str = "#4d8fc4";

/// Whether a text is a drawing of [`draw`].
pub(super) fn is_drawing(text: &str) -> bool {
    text.trim_end().ends_with(MARK)
}

/// Draws it. Fonts are the viewer's; nothing is loaded.
pub(super) fn draw(roofline: &Roofline) -> String {
    let most = roofline.rows.iter().map(|row| row.series.spread().max).fold(0.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / most.max(f64::MIN_POSITIVE);
    let height = TOP + roofline.rows.len() as f64 * (BAR + GAP) + 70.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">Layers of swapfs, GB/s of 1024^3 bytes; dashed: the device</text>\n"
    );
    let mut y = TOP;
    for row in &roofline.rows {
        let Spread { min, median, max } = row.series.spread();
        let (colour, word) = match row.access {
            Access::Read => (READ_COLOUR, "read"),
            Access::Write | Access::Mixed => (WRITE_COLOUR, "write"),
        };
        let middle = y + BAR / 2.0;
        let (from, to) = (LEFT + min * scale, LEFT + max * scale);
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}, {word}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
             <path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"black\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{median:.2} ({:.2} of the device)</text>\n",
            LEFT - 8.0,
            middle + 4.0,
            row.layer.name(),
            median * scale,
            // In a column, clear of spreads and of the device's lines.
            WIDTH - RIGHT + 12.0,
            middle + 4.0,
            roofline.share(row),
        );
        y += BAR + GAP;
    }
    for (access, colour) in [(Access::Write, WRITE_COLOUR), (Access::Read, READ_COLOUR)] {
        let x = LEFT + roofline.device(access) * scale;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}V{y:.1}\" stroke=\"{colour}\" stroke-dasharray=\"4 3\"/>",
            TOP - 8.0
        );
    }
    for (line, part) in roofline.limits().split("; ").enumerate() {
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.1}\">{part}</text>",
            y + 24.0 + line as f64 * 18.0
        );
    }
    svg.push_str("</svg>\n");
    svg.push_str(MARK);
    svg.push('\n');
    svg
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::{draw, is_drawing};

    #[test]
    fn every_row_has_a_bar_and_tags_are_closed() {
        let svg = draw(&example(3.0));
        assert_eq!(svg.matches("<rect x=").count(), 9);
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(svg.contains("device, own ring, write") && svg.contains("0.75 of the device"));
        assert!(svg.starts_with("<svg") && is_drawing(&svg));
    }
}
