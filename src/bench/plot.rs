//! The pictures of a benchmark: a bar for each row, as long as its median, with its spread.

use super::case::Access;
use super::report::{Report, Row};
use super::roofline::{LayerRow, Roofline};
use crate::plot::bars::{Bar, Chart, Kind, Strokes};
use crate::turns::Spread;

/// Stands at the end; files with it are the benchmark's own.
const MARK: &str = "<!-- swapfs bench -->";

/// Colours that differ in lightness too.
const WRITES: Kind =
    Kind { name: "writes (hatched)", colour: [0xb5, 0x54, 0x1c], strokes: Strokes::Hatched };
const READS: Kind = Kind { name: "reads", colour: [0x4d, 0x8f, 0xc4], strokes: Strokes::None };
const MIXED: Kind = Kind {
    name: "reads and writes (crossed)",
    colour: [0x7a, 0x5c, 0x99],
    strokes: Strokes::Crossed,
};

fn kind(access: Access) -> Kind {
    match access {
        Access::Read => READS,
        Access::Write => WRITES,
        Access::Mixed => MIXED,
    }
}

fn bar(label: String, access: Access, spread: Spread, note: String, apart: bool) -> Bar {
    let (kind, length) = (kind(access), spread.median);
    Bar { label, kind, length, spread: Some(spread), goal: None, note, apart }
}

/// Draws bars, in GiB/s.
fn draw(
    title: &str, bars: &[Bar], limits: &[(Kind, f64)], below: &[&str],
) -> Result<String, String> {
    let (kinds, legend) = (&[WRITES, READS, MIXED], "thin line: least to most");
    Chart { title, unit: "GiB/s", end: None, kinds, legend, bars, limits, below }.to_svg(MARK)
}

impl Report {
    /// Whether a text is a picture that [`Report::to_svg`] or [`Roofline::to_svg`] made.
    #[must_use]
    pub fn is_svg(text: &str) -> bool {
        text.trim_end().ends_with(MARK)
    }

    /// The picture, an SVG document: the engines of each case beside each other.
    ///
    /// # Errors
    /// One line; drawing into memory has no reason to fail.
    pub fn to_svg(&self) -> Result<String, String> {
        let first = self.rows.first().map(|row| row.engine);
        let to_bar = |row: &Row| {
            let is_first = Some(row.engine) == first;
            let note = match is_first {
                true => String::new(),
                false => format!("({:.2} of the first)", self.ratio(row)),
            };
            let label = format!("{}, {}", row.case, row.engine.name());
            bar(label, row.case.access(), row.series.spread(), note, is_first)
        };
        let bars: Vec<Bar> = self.rows.iter().map(to_bar).collect();
        let heading = self.heading();
        let mut below: Vec<&str> = heading.split("; ").collect();
        below.extend(self.notes.iter().map(String::as_str));
        draw("swapfs bench: medians", &bars, &[], &below)
    }
}

impl Roofline {
    /// The picture, an SVG document: a bar for each layer and direction, and what the device can do across them.
    ///
    /// # Errors
    /// One line; drawing into memory has no reason to fail.
    pub fn to_svg(&self) -> Result<String, String> {
        let to_bar = |row: &LayerRow| {
            let label = format!("{}, {}", row.layer.name(), row.access.name());
            let note = format!("({:.2} of the device)", self.share(row));
            bar(label, row.access, row.series.spread(), note, false)
        };
        let bars: Vec<Bar> = self.rows.iter().map(to_bar).collect();
        let device =
            [Access::Write, Access::Read].map(|access| (kind(access), self.device(access)));
        let limits = self.limits();
        let below: Vec<&str> = limits.split("; ").collect();
        draw("Layers of swapfs, medians; dashed: the device", &bars, &device, &below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::roofline::tests::example;

    #[test]
    fn every_layer_has_a_bar_and_the_picture_is_known_again() {
        let svg = example(3.0).to_svg().unwrap();
        assert_eq!(svg.matches(" of the device)").count(), 9);
        assert!(svg.contains("device, own ring, write") && svg.contains("0.75 of the device"));
        assert!(svg.contains("writes (hatched)") && !svg.contains("crossed"), "{svg}");
        assert!(Report::is_svg(&svg) && !Report::is_svg("<svg>theirs</svg>"));
    }
}
