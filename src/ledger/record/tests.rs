use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use crate::ledger::entry::{Seen, sum};
use crate::ledger::verdict::{Decision, Meaning};

use super::*;

struct Place {
    folder: tempfile::TempDir,
    shared: Arc<Shared>,
    record: Record,
}

impl Place {
    fn new(checksum: Checksum, size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shared = Self::open(&folder, checksum);
        let record = Record::new((7, 8), shared.clone(), stamp(size), None).unwrap();
        Self { folder, shared, record }
    }

    fn open(folder: &tempfile::TempDir, checksum: Checksum) -> Arc<Shared> {
        let control = std::fs::File::open(folder.path()).unwrap();
        let table = Arc::new(Table::open(control.as_fd(), true).unwrap().unwrap());
        Arc::new(Shared {
            pulse: Pulse::start(table.clone()).unwrap(),
            table,
            counters: Counters::default(),
            checksum,
            session: 3,
            is_short: false.into(),
        })
    }

    fn header(&self) -> Header {
        let slot = self.shared.table.find((7, 8)).unwrap();
        self.shared.table.header(slot).unwrap()
    }

    fn begin(&self, offset: u64, bytes: &[u8]) {
        self.record.begin_write(&self.record.prepare(offset, bytes)).unwrap();
    }

    fn end(&self, bytes: Range<u64>, outcome: Outcome, size: u64) {
        self.record.end_write(&bytes, outcome, || Some(stamp(size)));
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.begin(offset, bytes);
        let end = offset + bytes.len() as u64;
        self.end(offset..end, Outcome::Stored, end);
    }

    /// What a crash at this moment would leave torn, when the file's pages have these sums.
    fn torn(&self, size: u64, found: impl Fn(u64) -> u32) -> Option<Range<u64>> {
        self.after(Meaning::Ours, size, false, found)
    }

    fn after(
        &self, meaning: Meaning, size: u64, write: bool, found: impl Fn(u64) -> u32,
    ) -> Option<Range<u64>> {
        let slot = self.shared.table.find((7, 8)).unwrap();
        let header = self.shared.table.header(slot).unwrap();
        let known = Some((slot, header));
        let record = Record::new((7, 8), self.shared.clone(), stamp(size), known).unwrap();
        let mut read = |page| Some(Seen { sum: found(page), place: 7 });
        let decision = Decision { meaning, is_touched: false, is_unwritten: false };
        let look =
            Look { decision, stamp: stamp(size), block_size: 1 << 20, read: &mut read, write };
        let torn = record.reconcile(look).unwrap();
        assert!(torn.len() < 2, "{torn:?}");
        torn.first().cloned()
    }
}

fn stamp(size: u64) -> Stamp {
    Stamp { size, modified_ns: 5, changed_ns: 6, links: 1 }
}

#[test]
fn a_record_is_settled_when_nothing_is_written_any_more() {
    let place = Place::new(Checksum::Crc32c, 0);
    let (record, header) = (&place.record, || place.header());
    place.begin(0, &[1; 8192]);
    place.begin(8192, &[2; 1000]);
    record.settle(|| Some(stamp(8192)));
    assert!(header().has(ACTIVE), "writes are under way");
    place.end(0..8192, Outcome::Stored, 8192);
    assert!(header().has(ACTIVE), "one is");
    place.end(8192..9192, Outcome::Stored, 9192);
    assert_eq!((header().flags, header().size, header().session), (COMPLETE, 9192, 3));
    assert_eq!(record.verify(0, &[1; 8192]), (8192, None));
    assert_eq!(record.verify(0, &[2; 8192]), (0, Some(Errno::EBADMSG)));
    let mut second = [1; 8192];
    second[5000] = 3;
    assert_eq!(record.verify(0, &second), (4096, Some(Errno::EBADMSG)));
    assert_eq!(record.verify(8192, &[2; 1000]), (1000, None), "zeros follow its end");
    // An old look at the file changes nothing.
    record.settle(|| Some(Stamp { changed_ns: 1, ..stamp(5) }));
    assert_eq!(header().size, 9192);
}

/// "A mark of damage goes only with bytes that replace it."
#[test]
fn changes_of_shape_keep_the_marks_of_bytes_that_stay() {
    for checksum in [Checksum::Crc32c, Checksum::Writes] {
        let place = Place::new(checksum, 0);
        let (record, size) = (&place.record, 2 << 20);
        place.write(0, &vec![1; 2 << 20]);
        for page in [1, 300] {
            place.begin(page * 4096, &[2; 4096]);
            place.end(page * 4096..(page + 1) * 4096, Outcome::Failed, size);
        }
        let is_torn =
            |page: u64| record.verify(page * 4096, &[1; 4096]) == (0, Some(Errno::EUCLEAN));
        // Part of it, all before it, a change that fails.
        record.changed(&(4096..4097), size, &[]).unwrap();
        record.changed(&(0..5000), size, &[]).unwrap();
        record.changed(&(20_000..300 * 4096), size, &[]).unwrap();
        record.begin_shaping(&(0..size), &[]).unwrap();
        record.end_change(|| Some(stamp(size)));
        assert!(is_torn(1) && is_torn(300));
        assert_eq!(
            record.verify(8192, &[9; 4096]),
            if checksum == Checksum::Crc32c { (0, Some(Errno::EBADMSG)) } else { (4096, None) }
        );
        assert_eq!(record.verify(20_480, &[9; 4096]), (4096, None), "its bytes have changed");
        // A cut within, and one before.
        record.changed(&(300 * 4096 + 7..u64::MAX), 300 * 4096 + 7, &[]).unwrap();
        assert!(is_torn(300));
        record.changed(&(300 * 4096..u64::MAX), 300 * 4096, &[]).unwrap();
        assert!(!is_torn(300) && is_torn(1));
        record.changed(&(4096..8192), size, &[]).unwrap();
        assert!(!is_torn(1));
    }
}

/// Others' bytes are never decided by a record of ours; ours that they have left are.
#[test]
fn marks_go_where_others_have_replaced_the_bytes() {
    use crate::ledger::entry::sum;
    let (ours, mixed, others) = (sum(&[1; 4096]), sum(&[5; 4096]), sum(&[9; 4096]));
    for checksum in [Checksum::Crc32c, Checksum::Writes] {
        let made = || {
            let place = Place::new(checksum, 0);
            place.write(0, &[1; 16384]);
            place.begin(4096, &[2; 8192]);
            let left = move |page: u64| if page == 1 { mixed } else { ours };
            assert_eq!(place.after(Meaning::Ours, 16384, true, left), Some(4096..12288));
            (place, left)
        };
        let (place, left) = made();
        assert_eq!(place.after(Meaning::Ours, 16384, true, |_| others), Some(4096..12288));
        assert_eq!(place.after(Meaning::Others, 16384, false, |_| others), None);
        assert_eq!(place.after(Meaning::Others, 16384, true, left), Some(4096..12288));
        let elsewhere = move |page| if page == 0 { others } else { left(page) };
        assert_eq!(place.after(Meaning::Others, 16384, true, elsewhere), Some(4096..12288));
        // One of the two pages, then the other.
        assert_eq!(place.after(Meaning::Others, 16384, true, |_| ours), Some(8192..12288));
        assert_eq!(place.after(Meaning::Others, 16384, true, |_| others), None);
        assert_eq!(place.after(Meaning::Ours, 16384, true, left), None);
        // Cut off, and made longer again.
        let (place, left) = made();
        assert_eq!(place.after(Meaning::Others, 4096, true, left), None);
        assert_eq!(place.after(Meaning::Ours, 16384, true, left), None);
    }
}

/// What a failed write has left is neither the old nor the new, whoever looks and whenever, until it is written again.
#[test]
fn a_failed_write_is_torn_until_it_is_repeated() {
    for checksum in [Checksum::Crc32c, Checksum::Writes] {
        let place = Place::new(checksum, 0);
        let record = &place.record;
        place.write(0, &[1; 16384]);
        place.begin(4096, &[2; 8192]);
        place.end(4096..12288, Outcome::Failed, 16384);
        assert!(!place.header().has(ACTIVE) && place.header().has(HAS_TORN));
        assert_eq!(record.verify(0, &[1; 16384]), (4096, Some(Errno::EUCLEAN)));
        assert_eq!(record.verify(12288, &[1; 4096]), (4096, None));
        place.write(4096, &[2; 8192]);
        assert_eq!(record.verify(4096, &[2; 8192]), (8192, None));
    }
}

/// Zeros are what was there before only where nothing was on record and nothing in the file.
#[test]
fn zeros_are_not_taken_for_bytes_that_others_had_written() {
    use crate::ledger::entry::sum;
    let zeros = |_| sum(&[0; 4096]);
    let place = Place::new(Checksum::Writes, 4096);
    place.begin(0, &[1; 8192]);
    assert_eq!(place.torn(8192, zeros), Some(0..8192));
    let fresh = Place::new(Checksum::Writes, 0);
    fresh.begin(0, &[1; 8192]);
    assert_eq!(fresh.torn(8192, zeros), None);
    fresh.end(0..8192, Outcome::Stored, 8192);
    fresh.begin(0, &[0; 8192]);
    assert_eq!(fresh.torn(8192, zeros), Some(0..8192));
}

/// A power cut may leave the header and not the file of entries that it tells of.
#[test]
fn a_record_without_its_file_of_entries_knows_the_first_pages() {
    let place = Place::new(Checksum::Crc32c, 0);
    place.write(0, &[1; 1 << 20]);
    let (slot, header) = (place.shared.table.find((7, 8)).unwrap(), place.header());
    assert!(header.has(SIDECAR));
    std::fs::remove_dir_all(place.folder.path().join("sums")).unwrap();
    let sums = place.folder.path().join("sums");
    std::fs::create_dir(&sums).unwrap();
    std::fs::set_permissions(&sums, std::fs::Permissions::from_mode(0o700)).unwrap();
    let shared = Place::open(&place.folder, Checksum::Crc32c);
    let record = Record::new((7, 8), shared, stamp(1 << 20), Some((slot, header))).unwrap();
    assert_eq!(record.verify(0, &[2; 4096]), (0, Some(Errno::EBADMSG)));
    assert_eq!(record.verify(1 << 18, &[2; 4096]), (4096, None));
    record.begin_write(&record.prepare(1 << 18, &[3; 4096])).unwrap();
    record.end_write(&(1 << 18..(1 << 18) + 4096), Outcome::Stored, || None);
    assert_eq!(record.verify(1 << 18, &[2; 4096]), (0, Some(Errno::EBADMSG)));
}

#[test]
fn what_was_never_recorded_leaves_no_slot() {
    let place = Place::new(Checksum::Writes, 0);
    place.record.join();
    place.record.reserve(&(0..4096)).unwrap();
    assert!(place.shared.table.find((7, 8)).is_some());
    assert_eq!(place.record.leave(Some(stamp(0))), Leaving::Done);
    assert_eq!(place.shared.table.find((7, 8)), None);
    place.record.join();
    place.write(0, &[1; 4096]);
    assert_eq!(place.record.leave(Some(stamp(5000))), Leaving::Unrecorded);
    place.record.settle(|| Some(stamp(4096)));
    place.record.join();
    assert_eq!(place.record.leave(Some(stamp(4096))), Leaving::Done);
}

/// Whoever synchronizes while another does must not be answered before the records are stored.
#[test]
fn a_sync_relies_on_none_that_is_under_way() {
    let place = Place::new(Checksum::Writes, 0);
    let record = &place.record;
    place.write(0, &[1; 4096]);
    assert!(record.has_news() && record.begin_sync());
    assert!(record.has_news() && record.begin_sync(), "the first may still fail");
    record.end_sync(true);
    record.end_sync(false);
    assert!(record.has_news() && record.begin_sync(), "it has failed");
    record.end_sync(true);
    assert!(!record.has_news() && !record.begin_sync());
    assert!(!record.has_news());
}

/// "After a power cut, with checksums, no page is read that may be a mixture": not one whose entry was lost either.
#[test]
fn a_page_that_lost_its_entry_in_a_power_cut_is_refused() {
    let place = Place::new(Checksum::Crc32c, 0);
    place.write(0, &[1; 8192]);
    let slot = place.shared.table.find((7, 8)).unwrap();
    let read = |flags: u32| {
        let header = Header { flags: place.header().flags | flags, ..place.header() };
        let known = Some((slot, header));
        Record::new((7, 8), place.shared.clone(), stamp(16384), known).unwrap()
    };
    let bytes = [[1; 8192], [0; 8192]].concat();
    assert_eq!(read(SUSPECT).verify(0, &bytes), (16384, None));
    let bytes = [[1; 8192], [2; 8192]].concat();
    assert_eq!(read(SUSPECT).verify(0, &bytes), (8192, Some(Errno::EUCLEAN)));
    assert_eq!(read(0).verify(0, &bytes), (16384, None));
    let unknown = Record::new((9, 9), place.shared.clone(), stamp(8192), None).unwrap();
    assert_eq!(unknown.verify(0, &bytes[..8192]), (8192, None));
    unknown.distrust();
    assert_eq!(unknown.verify(0, &bytes[..8192]), (0, Some(Errno::EUCLEAN)));
}

/// A change of shape that ends beside the beginning of a write must not record the file as one that nothing is written to.
#[test]
fn while_a_write_is_under_way_the_record_says_so() {
    let place = Place::new(Checksum::Writes, 0);
    let record = &place.record;
    place.write(0, &[1; 4096]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                record.begin_change().unwrap();
                record.end_change(|| Some(stamp(4096)));
            }
        });
        for _ in 0..3000 {
            place.begin(0, &[2; 4096]);
            assert!(place.header().has(ACTIVE));
            std::thread::yield_now();
            assert!(place.header().has(ACTIVE));
            place.end(0..4096, Outcome::Stored, 4096);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// What ends last records the file as it is, though the other one has changed it since it looked.
#[test]
fn what_is_recorded_in_the_end_is_what_the_file_is() {
    use std::sync::atomic::AtomicI64;
    let place = Place::new(Checksum::Writes, 0);
    let record = &place.record;
    place.write(0, &[1; 4096]);
    for _ in 0..300 {
        let clock = AtomicI64::new(record.state.lock().header.changed_ns + 1);
        let touch = || clock.fetch_add(1, Ordering::SeqCst);
        let look = || {
            let now = clock.load(Ordering::SeqCst);
            std::thread::yield_now();
            Some(Stamp { size: 4096, modified_ns: now, changed_ns: now, links: 1 })
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..5 {
                    record.begin_change().unwrap();
                    touch();
                    record.end_change(look);
                }
            });
            for _ in 0..5 {
                place.begin(0, &[2; 4096]);
                touch();
                record.end_write(&(0..4096), Outcome::Stored, look);
            }
        });
        let header = place.header();
        assert!(!header.has(ACTIVE));
        assert_eq!(header.modified_ns, clock.load(Ordering::SeqCst));
    }
}

/// "A page of which more is to come is torn after a kill, and whole for who reads it before."
#[test]
fn a_page_of_an_unfinished_write_is_torn_on_record_alone() {
    let (old, new) = (sum(&[1; 4096]), sum(&[2; 4096]));
    for (checksum, finish) in [Checksum::Crc32c, Checksum::Writes]
        .into_iter()
        .flat_map(|checksum| ["rest", "end", "close"].map(|finish| (checksum, finish)))
    {
        let place = Place::new(checksum, 0);
        let record = &place.record;
        let torn = || place.torn(16384, |page| if page < 2 { new } else { old });
        place.write(0, &[1; 16384]);
        record.begin_piece(&(4096..8192));
        place.begin(0, &[2; 8192]);
        assert!(torn().is_some_and(|torn| torn.end == 8192), "under way");
        place.end(0..8192, Outcome::Stored, 16384);
        assert_eq!(torn(), Some(4096..8192), "stored");
        assert_eq!(record.verify(0, &[2; 8192]), (8192, None), "its readers get it");
        match finish {
            "rest" => place.write(4096, &[2; 4096]),
            "end" => record.end_piece(1..2).unwrap(),
            _ => {
                record.join();
                assert_eq!(record.leave(Some(stamp(16384))), Leaving::Unrecorded);
                record.end_all_pieces();
            }
        }
        assert_eq!((torn(), record.has_pieces()), (None, false), "{checksum:?}, {finish}");
        assert_eq!(record.verify(0, &[2; 8192]), (8192, None));
        if checksum == Checksum::Crc32c {
            assert_eq!(record.verify(4096, &[3; 4096]), (0, Some(Errno::EBADMSG)));
        }
        // The next write is as any other.
        place.write(4096, &[2; 4096]);
        assert_eq!(torn(), None);
    }
}

#[test]
fn the_end_of_a_write_may_be_known_before_its_last_page_is_stored() {
    let new = sum(&[2; 4096]);
    let place = Place::new(Checksum::Crc32c, 0);
    place.write(0, &[1; 8192]);
    place.record.begin_piece(&(4096..8192));
    place.begin(4096, &[2; 4096]);
    place.record.end_piece(1..2).unwrap();
    assert_eq!(place.torn(8192, |_| new), None);
    assert_eq!(place.torn(8192, |_| sum(&[9; 4096])), Some(4096..8192));
    place.end(4096..8192, Outcome::Stored, 8192);
    assert_eq!(place.record.verify(4096, &[2; 4096]), (4096, None));
    // A transfer that fails leaves damage that stays.
    place.record.begin_piece(&(4096..8192));
    place.begin(4096, &[3; 4096]);
    place.end(4096..8192, Outcome::Failed, 8192);
    place.record.end_piece(1..2).unwrap();
    assert_eq!(place.record.verify(4096, &[3; 4096]), (0, Some(Errno::EUCLEAN)));
}
