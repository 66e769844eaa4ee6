//! Whether the disk answers: transfers of our own, beside the mount's.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A client's call that takes longer is a stall.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(2);

/// A disk whose own answer takes so long excuses one: a client's call may be several transfers and a flush.
pub(crate) const DISK_SLOW: Duration = Duration::from_millis(500);

/// Between two transfers.
const PAUSE: Duration = Duration::from_millis(100);

/// Remembered.
const SAMPLES_MAX: usize = 4096;

/// Writes a page now and then, and puts it on stable storage.
#[derive(Debug)]
pub(crate) struct Control {
    file: File,
    /// When each began, and how long it took; the last one may be under way.
    samples: Mutex<Vec<(Instant, Option<Duration>)>>,
}

/// A page of memory that begins with one.
#[repr(align(4096))]
struct Page([u8; 4096]);

impl Control {
    pub(crate) fn new(folder: &Path) -> Result<Control, String> {
        let mut options = File::options();
        options.create(true).truncate(true).write(true).custom_flags(libc::O_DIRECT);
        let path = folder.join("control");
        let file = options.open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Control { file, samples: Mutex::default() })
    }

    pub(crate) fn run(&self, stop: &AtomicBool) -> Result<(), String> {
        let page = Box::new(Page([7; 4096]));
        while !stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            self.samples.lock().expect("nobody panics with it").push((begin, None));
            let written = self.file.write_all_at(&page.0, 0).and_then(|()| self.file.sync_data());
            written.map_err(|error| format!("the disk itself: {error}"))?;
            let mut samples = self.samples.lock().expect("nobody panics with it");
            samples.last_mut().expect("pushed above").1 = Some(begin.elapsed());
            if samples.len() > SAMPLES_MAX {
                samples.drain(..SAMPLES_MAX / 2);
            }
            drop(samples);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The longest transfer that was under way since `begin`.
    pub(crate) fn worst_since(&self, begin: Instant) -> Duration {
        let samples = self.samples.lock().expect("nobody panics with it");
        let times = samples.iter().map(|(at, time)| (*at, time.unwrap_or_else(|| at.elapsed())));
        times
            .filter(|(at, time)| *at + *time >= begin)
            .map(|(_, time)| time)
            .max()
            .unwrap_or_default()
    }
}
