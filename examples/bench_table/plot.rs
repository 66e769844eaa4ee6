//! The picture: a bar for each comparison that has a goal as a share of the reference, a tick where the goal is.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Outcome;
use crate::group::{Goal, Measured};

/// Pixels.
const ROW: i32 = 18;
const TOP: i32 = 56;
const LEFT: i32 = 560;
const WIDTH: i32 = 480;
const RIGHT: i32 = 70;
/// The share at the right end; longer bars are cut, their figure says so.
const SHARE_MOST: f64 = 2.0;

const MET: RGBColor = RGBColor(86, 156, 104);
const MISSED: RGBColor = RGBColor(200, 96, 84);
const PLAIN: RGBColor = RGBColor(150, 150, 150);

struct Bar {
    label: String,
    share: f64,
    goal: Option<f64>,
    met: Option<bool>,
}

/// Draws all comparisons of speeds as SVG, in the order of the table.
pub(crate) fn draw(rows: &[Measured], title: &str) -> Outcome<String> {
    let mut bars = Vec::new();
    for row in rows {
        for verdict in row.verdicts() {
            bars.push(Bar {
                label: format!("{} {}: {}", row.place, row.title, verdict.reference.name),
                share: verdict.ratio,
                goal: verdict.goal.map(|goal| {
                    let reference = verdict.reference.spread().median;
                    match goal {
                        Goal::AtLeast(share) => share,
                        Goal::Plus(microseconds) => reference / (reference + microseconds),
                        Goal::Within(microseconds) => reference / microseconds,
                    }
                }),
                met: verdict.met,
            });
        }
    }
    let height = TOP + i32::try_from(bars.len())? * ROW + 16;
    let mut svg = String::new();
    {
        let size = ((LEFT + WIDTH + RIGHT).unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        let style = |size: i32, side: HPos| {
            let font = ("sans-serif", size).into_font().color(&BLACK);
            font.pos(Pos::new(side, VPos::Center))
        };
        area.draw(&Text::new(title.to_owned(), (12, 16), style(14, HPos::Left)))?;
        let legend = "share of the reference's speed; line: 1.0; tick: goal; green met, red missed";
        area.draw(&Text::new(legend, (12, 36), style(12, HPos::Left)))?;
        for (bar, y) in bars.iter().zip((TOP..).step_by(ROW as usize)) {
            let x =
                |share: f64| LEFT + (share.min(SHARE_MOST) / SHARE_MOST * f64::from(WIDTH)) as i32;
            let (middle, colour) = (
                y + ROW / 2,
                match bar.met {
                    Some(true) => MET,
                    Some(false) => MISSED,
                    None => PLAIN,
                },
            );
            area.draw(&Text::new(bar.label.clone(), (LEFT - 8, middle), style(11, HPos::Right)))?;
            let corners = [(LEFT, y + 3), (x(bar.share), y + ROW - 3)];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
            let figure = format!("{:.2}", bar.share);
            let beyond = x(bar.share.max(bar.goal.unwrap_or(0.0))) + 5;
            area.draw(&Text::new(figure, (beyond, middle), style(11, HPos::Left)))?;
            if let Some(goal) = bar.goal {
                let tick = vec![(x(goal), y + 1), (x(goal), y + ROW - 1)];
                area.draw(&PathElement::new(tick, BLACK.stroke_width(2)))?;
            }
        }
        let one = LEFT + (f64::from(WIDTH) / SHARE_MOST) as i32;
        let line = vec![(one, TOP), (one, height - 16)];
        area.draw(&PathElement::new(line, BLACK.mix(0.4).stroke_width(1)))?;
        area.present()?;
    }
    Ok(svg)
}
