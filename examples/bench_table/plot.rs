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
const RIGHT: i32 = 130;
/// Below the bars, for the axis.
const BOTTOM: i32 = 40;
/// The share at the right end; longer bars are cut, and end in an arrow.
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
    let height = TOP + i32::try_from(bars.len())? * ROW + BOTTOM;
    let mut svg = String::new();
    {
        let size = ((LEFT + WIDTH + RIGHT).unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        area.draw(&Text::new(title.to_owned(), (12, 16), style(14, HPos::Left)))?;
        draw_legend(&area)?;
        draw_axis(&area, height - BOTTOM)?;
        for (bar, y) in bars.iter().zip((TOP..).step_by(ROW as usize)) {
            draw_bar(&area, bar, y)?;
        }
        area.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn style(size: i32, side: HPos) -> TextStyle<'static> {
    let font = ("sans-serif", size).into_font().color(&BLACK);
    font.pos(Pos::new(side, VPos::Center))
}

fn x(share: f64) -> i32 {
    LEFT + (share.clamp(0.0, SHARE_MOST) / SHARE_MOST * f64::from(WIDTH)) as i32
}

/// What the colours are; each bar says it in a word too.
fn draw_legend(area: &Area<'_>) -> Outcome<()> {
    let kinds = [(MET, "goal met"), (MISSED, "goal missed"), (PLAIN, "no goal")];
    for ((colour, name), at) in kinds.into_iter().zip((12..).step_by(110)) {
        area.draw(&Rectangle::new([(at, 30), (at + 14, 42)], colour.filled()))?;
        area.draw(&Text::new(name, (at + 20, 36), style(12, HPos::Left)))?;
    }
    let rest = "short line: the goal; arrow: longer than the axis";
    area.draw(&Text::new(rest, (350, 36), style(12, HPos::Left)))?;
    Ok(())
}

fn draw_axis(area: &Area<'_>, bottom: i32) -> Outcome<()> {
    for tenths in (0..=20).step_by(5) {
        let share = f64::from(tenths) / 10.0;
        let at = x(share);
        let ink = if tenths == 10 { BLACK.mix(0.6) } else { BLACK.mix(0.15) };
        area.draw(&PathElement::new(vec![(at, TOP), (at, bottom + 5)], ink.stroke_width(1)))?;
        area.draw(&Text::new(format!("{share:.1}"), (at, bottom + 14), style(11, HPos::Center)))?;
    }
    let line = vec![(LEFT, bottom), (LEFT + WIDTH, bottom)];
    area.draw(&PathElement::new(line, BLACK.stroke_width(1)))?;
    let name = "share of the reference's speed";
    area.draw(&Text::new(name, (LEFT + WIDTH / 2, bottom + 30), style(12, HPos::Center)))?;
    Ok(())
}

fn draw_bar(area: &Area<'_>, bar: &Bar, y: i32) -> Outcome<()> {
    let middle = y + ROW / 2;
    let (colour, word) = match bar.met {
        Some(true) => (MET, "met"),
        Some(false) => (MISSED, "missed"),
        None => (PLAIN, ""),
    };
    area.draw(&Text::new(bar.label.clone(), (LEFT - 8, middle), style(11, HPos::Right)))?;
    let corners = [(LEFT, y + 3), (x(bar.share), y + ROW - 3)];
    area.draw(&Rectangle::new(corners, colour.filled()))?;
    let mut beyond = x(bar.share.max(bar.goal.unwrap_or(0.0))) + 5;
    if bar.share > SHARE_MOST {
        let end = LEFT + WIDTH;
        let arrow = vec![(end, y + 2), (end + 9, middle), (end, y + ROW - 2)];
        area.draw(&Polygon::new(arrow, colour.filled()))?;
        beyond += 9;
    }
    let figure = format!("{:.2} {word}", bar.share);
    area.draw(&Text::new(figure, (beyond, middle), style(11, HPos::Left)))?;
    if let Some(goal) = bar.goal {
        let tick = vec![(x(goal), y + 1), (x(goal), y + ROW - 1)];
        area.draw(&PathElement::new(tick, BLACK.stroke_width(2)))?;
    }
    Ok(())
}
