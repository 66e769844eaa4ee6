//! The layers between a client and the device, each measured alone and all together, taking turns.

mod pool;
mod ring;

use serde::Serialize;
use serde_json::{Value, json};

use super::case::{Access, Case};
use super::cleanup::Cleanup;
use super::mounted::OwnMount;
use super::round::Series;
use super::session::Bench;
use super::settings::{Engine, Settings};
use super::{BenchError, Result, fio};
use crate::mount::entry_of_path;
use crate::turns::{Spread, Turns};
use pool::Pool;
use ring::Ring;

/// The full path is as fast as its slowest layer when it reaches this much of it.
const AS_FAST: f64 = 0.85;

/// The whole is never faster than a part: more than this of it is a measurement that says nothing.
const NOISE: f64 = 1.05;

/// What is measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The device, by fio.
    Fio,
    /// The device, by the rings of the mount's own kind from memory of its kind.
    Ring,
    /// The swap engine and its buffers, without FUSE and over a device that moves nothing.
    Pool,
    /// A mount over a device that moves nothing.
    Fuse,
    /// A mount.
    Full,
}

impl Layer {
    /// What tables and pictures call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fio => "device, fio",
            Self::Ring => "device, own ring",
            Self::Pool => "pool alone",
            Self::Fuse => "FUSE alone",
            Self::Full => "full path",
        }
    }

    /// What sentences call it.
    fn noun(self) -> &'static str {
        match self {
            Self::Fio | Self::Ring => "the device",
            Self::Pool => "the pool",
            Self::Fuse => "FUSE",
            Self::Full => "the full path",
        }
    }
}

/// A layer in one direction.
#[derive(Debug, Clone)]
pub struct LayerRow {
    /// Which.
    pub layer: Layer,
    /// Which way.
    pub access: Access,
    /// The rounds.
    pub series: Series,
}

/// All layers, writes first.
#[derive(Debug, Clone)]
pub struct Roofline {
    /// How.
    pub settings: Settings,
    /// By direction, then from the device up.
    pub rows: Vec<LayerRow>,
    /// Which fio there was: with ordinary memory, or with huge pages, as the pool has.
    pub peer: Option<Engine>,
}

/// Measures the layers in the first folder of `settings`: files that are there in full, written in place up
/// to and with fsync, and read cold. Blocks for all of it. `told` hears of each round when it is over.
///
/// # Errors
///
/// Anything that fails on the way, as [`measure`](super::measure).
pub fn roofline(
    settings: &Settings, cleanup: &Cleanup, mut told: impl FnMut(),
) -> Result<Roofline> {
    let mut settings = settings.clone();
    settings.folders.truncate(1);
    settings.cases = vec![Case::Overwrite, Case::ColdRead];
    settings.engines = vec![Engine::Mount];
    settings.mount = None;
    let folder = settings.folders.first().cloned().unwrap_or_default();
    if let Ok(Some(entry)) = entry_of_path(&folder) {
        return Err(BenchError::Failed(format!(
            "{}: lies on a swapfs mount; measure its swap folder, {}",
            folder.display(),
            entry.source.display()
        )));
    }
    let mut full = Bench::new(&settings, cleanup)?;
    let null = OwnMount::new(cleanup, &settings, &folder, "bench-null-mount")?;
    let unbacked = Settings {
        mount: Some(null.mountpoint.clone()),
        engines: vec![Engine::Mount],
        ..settings.clone()
    };
    let mut fuse = Bench::new(&unbacked, cleanup)?;
    let mut ring = Ring::new(&settings)?;
    let mut pool = Pool::new(&settings)?;
    // Everything that may take huge pages is there before fio is promised some.
    full.round(Engine::Mount, Case::Overwrite, 0)?;
    fuse.round(Engine::Mount, Case::Overwrite, 0)?;
    let peer = peer(&settings);
    let mut rows = Vec::new();
    for case in settings.cases.clone() {
        let mut layers = vec![Layer::Ring, Layer::Pool, Layer::Fuse, Layer::Full];
        if peer.is_some() {
            layers.insert(0, Layer::Fio);
        }
        let turns = Turns { warmup: settings.warmup_loops, rounds: settings.loops };
        let taken = turns.take(&mut layers, |layer, number| {
            let round = match (*layer, peer) {
                (Layer::Fio, Some(peer)) => full.round(peer, case, number),
                (Layer::Fio, None) => Err(BenchError::Failed("fio has gone".to_owned())),
                (Layer::Ring, _) => full
                    .jobs(Engine::Handle, case, number)
                    .and_then(|jobs| ring.round(&jobs[0].files[0], case.access(), settings.sync)),
                (Layer::Pool, _) => pool.round(case.access(), settings.sync),
                (Layer::Fuse, _) => fuse.round(Engine::Mount, case, number),
                (Layer::Full, _) => full.round(Engine::Mount, case, number),
            };
            round.map(Some).inspect(|_| told())
        })?;
        let row =
            |(layer, rounds)| LayerRow { layer, access: case.access(), series: Series { rounds } };
        rows.extend(layers.into_iter().zip(taken).map(row));
    }
    fuse.finish();
    full.finish();
    Ok(Roofline { settings, rows, peer })
}

/// How many rounds [`roofline`] takes.
#[must_use]
pub fn rounds(settings: &Settings) -> u64 {
    let layers = if fio::is_installed() { 5 } else { 4 };
    2 * layers * u64::from(settings.warmup_loops + settings.loops)
}

/// fio, with the memory that the pool has where there is some.
fn peer(settings: &Settings) -> Option<Engine> {
    if !fio::is_installed() {
        return None;
    }
    match fio::free_huge_pages() >= fio::huge_pages_needed(settings) {
        true => Some(Engine::FioHuge),
        false => Some(Engine::Fio),
    }
}

impl Roofline {
    /// What is said above the table.
    #[must_use]
    pub fn heading(&self) -> String {
        let fio = match self.peer {
            None => "no fio here",
            Some(Engine::FioHuge) => "fio from huge pages",
            Some(_) => "fio from ordinary pages",
        };
        format!(
            "files rewritten in place, fsync included, and read cold; {fio}, the rest from huge ones where \
             there are any; GiB/s"
        )
    }

    fn median(&self, layer: Layer, access: Access) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.layer == layer && row.access == access)?;
        Some(row.series.spread().median)
    }

    /// GiB/s of the device: the more of what fio and the own ring had from it.
    #[must_use]
    pub fn device(&self, access: Access) -> f64 {
        let found = [Layer::Fio, Layer::Ring].map(|layer| self.median(layer, access));
        found.into_iter().flatten().fold(0.0, f64::max)
    }

    pub(super) fn share(&self, row: &LayerRow) -> f64 {
        row.series.spread().median / self.device(row.access)
    }

    /// What limits one direction.
    fn limit(&self, access: Access) -> String {
        let word = format!("{}s", access.name());
        let mut layers = vec![(Layer::Ring, self.device(access))];
        for layer in [Layer::Pool, Layer::Fuse] {
            layers.extend(self.median(layer, access).map(|median| (layer, median)));
        }
        let slowest = layers.into_iter().min_by(|(_, a), (_, b)| a.total_cmp(b));
        let (Some((layer, least)), Some(full)) = (slowest, self.median(Layer::Full, access)) else {
            return format!("{word} were not measured");
        };
        let (noun, share) = (layer.noun(), full / least);
        if share > NOISE {
            return format!(
                "{word}: too noisy to say what limits, the full path came out faster ({share:.2}) than {noun}, \
                 which is a part of it; give more --loops, and let nothing else run"
            );
        }
        if share >= AS_FAST {
            format!("{word} are limited by {noun} (the full path reaches {share:.2} of it)")
        } else {
            format!(
                "{word} are limited by no layer alone: the full path reaches {share:.2} of the slowest, \
                 {noun}"
            )
        }
    }

    /// The sentence that names the layers that limit.
    #[must_use]
    pub fn limits(&self) -> String {
        let mut text = [self.limit(Access::Write), self.limit(Access::Read)].join("; ");
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        text.push('.');
        text
    }

    /// The table for people: its header, then a line for each row.
    #[must_use]
    pub fn table(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let header = vec!["LAYER", "ACCESS", "MEDIAN", "MIN", "MAX", "OF THE DEVICE"];
        let line = |row: &LayerRow| {
            let [median, min, max] = row.series.cells();
            vec![
                row.layer.name().to_owned(),
                row.access.name().to_owned(),
                median,
                min,
                max,
                format!("{:.2}", self.share(row)),
            ]
        };
        (header, self.rows.iter().map(line).collect())
    }

    /// Everything; speeds in GiB/s.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let row = |row: &LayerRow| {
            let Spread { min, median, max } = row.series.spread();
            json!({
                "layer": row.layer,
                "access": row.access,
                "min": min,
                "median": median,
                "max": max,
                "share": self.share(row),
                "rounds": row.series.rounds,
            })
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "unit": "GiB/s",
            "settings": self.settings,
            "fio": self.peer,
            "layers": self.rows.iter().map(row).collect::<Vec<_>>(),
            "limits": self.limits(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::Round;

    pub(crate) fn example(full: f64) -> Roofline {
        let row = |layer, access, speed: f64| {
            let round = Round::single(1.0 / speed, 1 << 30);
            LayerRow { layer, access, series: Series { rounds: vec![round] } }
        };
        let rows = vec![
            row(Layer::Fio, Access::Write, 2.0),
            row(Layer::Ring, Access::Write, 4.0),
            row(Layer::Pool, Access::Write, 8.0),
            row(Layer::Fuse, Access::Write, 5.0),
            row(Layer::Full, Access::Write, full),
            row(Layer::Ring, Access::Read, 4.0),
            row(Layer::Pool, Access::Read, 8.0),
            row(Layer::Fuse, Access::Read, 2.0),
            row(Layer::Full, Access::Read, 2.0),
        ];
        Roofline { settings: Settings::default(), rows, peer: None }
    }

    #[test]
    fn the_slowest_layer_is_named() {
        assert_eq!(
            example(3.8).limits(),
            "Writes are limited by the device (the full path reaches 0.95 of it); reads are limited \
             by FUSE (the full path reaches 1.00 of it)."
        );
        let text = example(2.0).limits();
        assert!(
            text.starts_with("Writes are limited by no layer alone: the full path reaches 0.50")
        );
        assert_eq!(example(2.0).table().1[0][5], "0.50");
    }

    #[test]
    fn a_whole_that_is_faster_than_a_part_is_noise() {
        for (full, is_noise) in [(3.9, false), (4.0, false), (4.1, false), (4.3, true), (9.0, true)]
        {
            let text = example(full).limits();
            assert_eq!(text.starts_with("Writes: too noisy"), is_noise, "{full}: {text}");
            assert_eq!(text.contains("faster") && text.contains("--loops"), is_noise, "{text}");
        }
    }
}
