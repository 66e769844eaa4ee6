//! What was measured, as DeepSpeed's lines, as a table, and as JSON.

use serde_json::{Value, json};

use super::case::{Access, Case, Start};
use super::round::Series;
use super::settings::{Engine, Settings};
use crate::turns::Spread;
use crate::units::format_short;

/// One case with one engine.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was done.
    pub case: Case,
    /// By what.
    pub engine: Engine,
    /// The rounds.
    pub series: Series,
    /// What files and caches were like before each round.
    pub state: &'static str,
}

impl Row {
    pub(super) fn new(settings: &Settings, engine: Engine, case: Case, series: Series) -> Self {
        let given = settings.read_file.is_some() && case == Case::ColdRead;
        let pooled = engine == Engine::Mount || settings.is_on_mount();
        Self { case, engine, series, state: state(engine, case.start(), pooled, given) }
    }
}

/// The state in words; `pooled` where files lie on a mount, `given` where one is the user's.
fn state(engine: Engine, start: Start, pooled: bool, given: bool) -> &'static str {
    match (start, engine) {
        (Start::New, _) => "new files each round",
        (Start::Cold, _) if pooled => "released from the pool",
        (Start::Warm, _) if pooled => "released, then read once through the mount",
        (Start::Cold, _) if given => "your file, dropped from the page cache",
        (Start::Cold, Engine::Posix) => "dropped from the page cache",
        (Start::Cold, _) => "dropped from the page cache; O_DIRECT",
        (Start::Warm, Engine::Posix) => "dropped, then read once through the page cache",
        (Start::Warm, _) => "read once before; O_DIRECT does not profit",
    }
}

/// All that was measured.
#[derive(Debug, Clone)]
pub struct Report {
    /// How.
    pub settings: Settings,
    /// By cases, then engines.
    pub rows: Vec<Row>,
    /// What the user should know about the figures.
    pub notes: Vec<String>,
}

impl Report {
    /// The row for DeepSpeed's lines: what its own benchmark measures where that is there (files rewritten in
    /// place, files read), else the first of that direction; of the first engine.
    fn line_row(&self, access: Access) -> Option<&Row> {
        let same = |row: &&Row| row.case.access() == access;
        let usual = if access == Access::Read { Case::ColdRead } else { Case::Overwrite };
        let mut rows = self.rows.iter().filter(same);
        rows.clone().find(|row| row.case == usual).or_else(|| rows.next())
    }

    /// The result lines of DeepSpeed's `ds_io`, four for each direction measured, in its words and
    /// units: seconds summed over the loops, and its GB are GiB.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (access, word) in [(Access::Read, "Read"), (Access::Write, "Write")] {
            let Some(row) = self.line_row(access) else { continue };
            for (kind, (latency, speed)) in [("Task", row.series.task()), ("E2E", row.series.e2e())]
            {
                lines.push(format!("{kind} {word} Latency = {latency} sec"));
                lines.push(format!("{kind} {word} Speed = {speed} GB/sec"));
            }
        }
        lines
    }

    /// The row's median beside that of the first engine in the same case.
    #[must_use]
    pub fn ratio(&self, row: &Row) -> f64 {
        let first = self.rows.iter().find(|other| other.case == row.case).unwrap_or(row);
        row.series.spread().median / first.series.spread().median
    }

    /// What is said above the table.
    #[must_use]
    pub fn heading(&self) -> String {
        let settings = &self.settings;
        let (processes, loops) = (settings.processes(), settings.loops);
        let sync = if settings.sync { "fsync included" } else { "without fsync" };
        let warmups = match (settings.warmup_loops, settings.include_warmup_time) {
            (0, _) => String::new(),
            (count, true) => format!(" and {count} to warm up, counted"),
            (count, false) => format!(" after {count} to warm up"),
        };
        format!(
            "{} by {processes} process{}, blocks of {}, depth {}, {} thread{} each; {loops} round{}{warmups}; \
             {sync}; GiB/s",
            format_short(settings.io_size),
            if processes == 1 { "" } else { "es" },
            format_short(settings.block_size),
            settings.queue_depth,
            settings.io_parallel,
            if settings.io_parallel == 1 { "" } else { "s" },
            if loops == 1 { "" } else { "s" },
        )
    }

    /// The table for people: its header, then a line for each row.
    #[must_use]
    pub fn table(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let header = vec!["CASE", "ENGINE", "MEDIAN", "MIN", "MAX", "RATIO", "BEFORE EACH ROUND"];
        let line = |row: &Row| {
            let [median, min, max] = row.series.cells();
            vec![
                row.case.to_string(),
                row.engine.name().to_owned(),
                median,
                min,
                max,
                format!("{:.2}", self.ratio(row)),
                row.state.to_owned(),
            ]
        };
        (header, self.rows.iter().map(line).collect())
    }

    /// Everything. `rows[].rounds[]` has the seconds of each process; speeds are in GiB/s.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let Spread { min, median, max } = row.series.spread();
            json!({
                "case": row.case,
                "engine": row.engine,
                "access": row.case.access(),
                "order": row.case.order(),
                "files": self.settings.files_of(row.case),
                "state": row.state,
                "validated": self.settings.validate && !row.engine.is_fio(),
                "min": min,
                "median": median,
                "max": max,
                "ratio": self.ratio(row),
                "task": {"latency": row.series.task().0, "speed": row.series.task().1},
                "e2e": {"latency": row.series.e2e().0, "speed": row.series.e2e().1},
                "rounds": row.series.rounds,
            })
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "unit": "GiB/s",
            "settings": self.settings,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "notes": self.notes,
            "lines": self.lines(),
        })
    }
}
