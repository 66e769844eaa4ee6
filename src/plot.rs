//! What pictures have in common: an SVG document in memory, and its texts.

pub mod bars;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Where something is drawn.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What drawing comes to.
pub(crate) type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A document of `size` pixels, by `draw` on white, with `mark` at its end. Fonts are the viewer's; nothing is loaded.
///
/// # Errors
/// One line; drawing into memory has no reason to fail.
pub(crate) fn document(
    size: (i32, i32), mark: &str, draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, String> {
    let mut svg = String::new();
    {
        let size = (size.0.unsigned_abs(), size.1.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let drawn = area.fill(&WHITE).and_then(|()| draw(&area)).and_then(|()| area.present());
        drawn.map_err(|error| format!("plot: {error}"))?;
    }
    svg.push_str(mark);
    svg.push('\n');
    Ok(svg)
}

/// A line of text, whose `side` and middle are at `at`.
pub(crate) fn text(
    area: &Area<'_>, line: &str, at: (i32, i32), size: i32, side: HPos, colour: &RGBColor,
) -> Drawn {
    let style = ("sans-serif", size).into_text_style(area).color(colour);
    area.draw(&Text::new(line.to_owned(), at, style.pos(Pos::new(side, VPos::Center))))
}
