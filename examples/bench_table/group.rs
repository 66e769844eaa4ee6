//! Contestants of one row, what they are compared with, and taking turns.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};
use swapfs::turns::Turns;

use crate::Outcome;
use crate::place::{Place, State, Way};
use crate::sample::{Sample, Series, Unit};

type Run<'a> = Box<dyn FnMut(u32) -> Outcome<Sample> + 'a>;

/// One way to do what the row is about.
pub(crate) struct Contestant<'a> {
    name: String,
    run: Run<'a>,
}

/// What is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    /// That much of the reference's speed.
    AtLeast(f64),
    /// Microseconds more than the reference.
    Plus(f64),
    /// Microseconds.
    Within(f64),
}

impl Goal {
    pub(crate) fn is_met(self, unit: Unit, ours: f64, reference: f64) -> bool {
        match self {
            Self::AtLeast(share) => ratio(unit, ours, reference) >= share,
            Self::Plus(microseconds) => ours - reference <= microseconds,
            Self::Within(microseconds) => ours <= microseconds,
        }
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::AtLeast(share) => format!("{share:.2}"),
            Self::Plus(microseconds) => format!("+{microseconds:.0} µs"),
            Self::Within(microseconds) => format!("{microseconds:.0} µs"),
        }
    }
}

/// Ours as a share of the reference's speed, whatever the unit.
pub(crate) fn ratio(unit: Unit, ours: f64, reference: f64) -> f64 {
    if unit.is_rate() { ours / reference } else { reference / ours }
}

/// A row: the first contestant is ours, each other a reference with a goal, if there is one.
pub(crate) struct Group<'a> {
    /// As `--rows` has it.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    pub(crate) contestants: Vec<Contestant<'a>>,
    /// Of the references in order: on A, on B.
    pub(crate) goals: Vec<[Option<Goal>; 2]>,
}

impl<'a> Group<'a> {
    pub(crate) fn new(id: &'static str, title: &'static str, unit: Unit) -> Self {
        Self { id, title, unit, contestants: Vec::new(), goals: Vec::new() }
    }

    /// Adds ours.
    pub(crate) fn ours(
        mut self, name: impl Into<String>, run: impl FnMut(u32) -> Outcome<Sample> + 'a,
    ) -> Self {
        self.contestants.push(Contestant { name: name.into(), run: Box::new(run) });
        self
    }

    /// Adds a reference.
    pub(crate) fn beside(
        mut self, name: impl Into<String>, goals: [Option<Goal>; 2],
        run: impl FnMut(u32) -> Outcome<Sample> + 'a,
    ) -> Self {
        self.goals.push(goals);
        self.ours(name, run)
    }

    /// Lets the contestants take turns. A reference that fails and has no goal is left out with a note.
    pub(crate) fn measure(self, place: char, turns: Turns) -> Outcome<Measured> {
        let Self { id, title, unit, contestants, goals } = self;
        let goal = |[a, b]: [Option<Goal>; 2]| if place == 'A' { a } else { b };
        let goals: Vec<_> = std::iter::once(None).chain(goals.into_iter().map(goal)).collect();
        let mut lanes: Vec<_> = contestants.into_iter().zip(&goals).enumerate().collect();
        let mut notes = Vec::new();
        let taken = turns.take(&mut lanes, |(index, (contestant, goal)), number| {
            (contestant.run)(number).map(Some).or_else(|error| {
                let line = format!("{place} {id}, {}: {error}", contestant.name);
                if *index == 0 || goal.is_some() {
                    return Err(line);
                }
                notes.push(line);
                Ok(None)
            })
        })?;
        let (mut series, mut met) = (Vec::new(), Vec::new());
        for ((index, (contestant, goal)), samples) in lanes.into_iter().zip(taken) {
            if samples.is_empty() {
                continue;
            }
            series.push(Series { name: contestant.name, unit, samples });
            if index > 0 {
                met.push(*goal);
            }
        }
        Ok(Measured { place, id, title, unit, series, goals: met, notes })
    }
}

/// Prepares files, lets `work` move them, and looks at the daemon meanwhile if it is through the mount.
pub(crate) fn timed(
    place: &Place, way: Way, files: &[(String, u64)], state: State,
    work: impl FnOnce(&[PathBuf]) -> Outcome<Sample>,
) -> Outcome<Sample> {
    for (name, bytes) in files {
        place.prepare(way, name, *bytes, state)?;
    }
    let folder = place.folder(way);
    let paths: Vec<PathBuf> = files.iter().map(|(name, _)| folder.join(name)).collect();
    if way != Way::Mount {
        return work(&paths);
    }
    let daemon = place.daemon()?;
    daemon.forget_peak();
    let before = daemon.cpu()?;
    let mut sample = work(&paths)?;
    sample.daemon_cpu = Some((daemon.cpu()? - before).as_secs_f64());
    sample.daemon_peak = Some(daemon.peak()?);
    Ok(sample)
}

/// A row that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) place: char,
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: Unit,
    pub(crate) series: Vec<Series>,
    pub(crate) goals: Vec<Option<Goal>>,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
}

/// Ours against one reference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict<'a> {
    pub(crate) ours: &'a Series,
    pub(crate) reference: &'a Series,
    /// Of speeds: above 1, ours is faster.
    pub(crate) ratio: f64,
    pub(crate) goal: Option<Goal>,
    pub(crate) met: Option<bool>,
}

impl Measured {
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = Verdict<'_>> {
        let (ours, references) = self.series.split_first().expect("every row has ours");
        references.iter().zip(&self.goals).map(move |(reference, goal)| {
            let (own, other) = (ours.spread().median, reference.spread().median);
            Verdict {
                ours,
                reference,
                ratio: ratio(self.unit, own, other),
                goal: *goal,
                met: goal.map(|goal| goal.is_met(self.unit, own, other)),
            }
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        let verdicts = self.verdicts().map(|one| {
            json!({"reference": one.reference.name, "ratio": one.ratio, "goal": one.goal, "met": one.met})
        });
        json!({
            "place": self.place.to_string(),
            "row": self.id,
            "title": self.title,
            "unit": self.unit.name(),
            "verdicts": verdicts.collect::<Vec<_>>(),
            "contestants": self.series.iter().map(Series::to_json).collect::<Vec<_>>(),
        })
    }
}
