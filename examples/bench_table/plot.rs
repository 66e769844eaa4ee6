//! The picture: a bar for each comparison as a share of the reference, a tick where the goal is.

use swapfs::plot::bars::{Bar, Chart, Kind, Strokes};

use crate::Outcome;
use crate::group::{Goal, Measured, Verdict};

/// The share at the right end.
const SHARE_MOST: f64 = 2.0;

const MET: Kind = Kind { name: "goal met", colour: [86, 156, 104], strokes: Strokes::None };
const MISSED: Kind = Kind { name: "goal missed", colour: [200, 96, 84], strokes: Strokes::None };
const PLAIN: Kind = Kind { name: "no goal", colour: [150, 150, 150], strokes: Strokes::None };

fn bar(row: &Measured, verdict: Verdict<'_>) -> Bar {
    let reference = verdict.reference.spread().median;
    // The colour is not enough for everybody: a word says it too.
    let (kind, word) = match verdict.met {
        Some(true) => (MET, "met"),
        Some(false) => (MISSED, "missed"),
        None => (PLAIN, ""),
    };
    Bar {
        label: format!("{} {}: {}", row.place, row.title, verdict.reference.name),
        kind,
        length: verdict.ratio,
        spread: None,
        goal: verdict.goal.map(|goal| match goal {
            Goal::AtLeast(share) => share,
            Goal::Plus(microseconds) => reference / (reference + microseconds),
            Goal::Within(microseconds) => reference / microseconds,
        }),
        note: word.to_owned(),
        apart: false,
    }
}

/// Draws all comparisons of speeds as SVG, in the order of the table.
pub(crate) fn draw(rows: &[Measured], title: &str) -> Outcome<String> {
    let bars = rows.iter().flat_map(|row| row.verdicts().map(|verdict| bar(row, verdict)));
    let chart = Chart {
        title,
        unit: "share of the reference's speed",
        end: Some(SHARE_MOST),
        kinds: &[MET, MISSED, PLAIN],
        legend: "short line: the goal; arrow: longer than the axis",
        bars: &bars.collect::<Vec<_>>(),
        limits: &[(PLAIN, 1.0)],
        below: &[],
    };
    Ok(chart.to_svg("<!-- swapfs bench_table -->")?)
}
