//! What pictures have in common: an SVG document in memory, its texts, and scales.

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

/// A straight line of one pixel.
pub(crate) fn line(area: &Area<'_>, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> Drawn {
    area.draw(&PathElement::new(vec![from, to], style))
}

/// Round figures from 0 to `most`, eight steps at most.
pub(crate) fn ticks(most: f64) -> Vec<f64> {
    if !(most.is_finite() && most > 0.0) {
        return vec![0.0];
    }
    let power = 10_f64.powf((most / 8.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|round| round * power);
    let step = step.into_iter().find(|step| most / step <= 8.0).unwrap_or(most);
    (0..)
        .map(|count| f64::from(count) * step)
        .take_while(|tick| *tick <= most * 1.000_001)
        .collect()
}

/// A figure of an axis, without digits that say nothing.
pub(crate) fn tick_label(tick: f64) -> String {
    let shown = format!("{tick:.3}");
    shown.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (most, expected) in [
            (8.0, &["0", "1", "2", "3", "4", "5", "6", "7", "8"][..]),
            (13.6, &["0", "2", "4", "6", "8", "10", "12"]),
            (0.3, &["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]),
            (1000.0, &["0", "200", "400", "600", "800", "1000"]),
            (0.0, &["0"]),
            (f64::NAN, &["0"]),
        ] {
            let shown: Vec<String> = ticks(most).into_iter().map(tick_label).collect();
            assert_eq!(shown, expected, "{most}");
        }
        for most in [1e-9, 0.7, 3.3, 99.9, 1e12] {
            assert!((2..=9).contains(&ticks(most).len()), "{most}");
        }
    }
}
