use std::os::fd::AsFd;

use super::*;

struct Place {
    folder: tempfile::TempDir,
    table: Arc<Table>,
    record: Record,
}

impl Place {
    fn new(checksum: Checksum, size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = std::fs::File::open(folder.path()).unwrap();
        let table = Arc::new(Table::open(control.as_fd(), true).unwrap().unwrap());
        let record =
            Record::new((7, 8), table.clone(), Arc::default(), checksum, size, None).unwrap();
        Self { folder, table, record }
    }

    /// The table, opened anew.
    fn control(&self) -> Arc<Table> {
        let control = std::fs::File::open(self.folder.path()).unwrap();
        Arc::new(Table::open(control.as_fd(), true).unwrap().unwrap())
    }

    fn header(&self) -> Header {
        self.table.header(self.table.find((7, 8)).unwrap()).unwrap()
    }

    fn begin(&self, offset: u64, bytes: &[u8]) {
        self.record.begin_write(&self.record.prepare(offset, bytes)).unwrap();
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.begin(offset, bytes);
        self.record.end_write(&(offset..offset + bytes.len() as u64), Outcome::Stored);
    }

    /// What a crash at this moment would leave torn, when the file's pages have these sums.
    fn torn(&self, size: u64, found: impl Fn(u64) -> u32) -> Option<Range<u64>> {
        let torn = self.record.resolve(size, 1 << 20, false, |page| Ok(found(page))).unwrap();
        assert!(torn.len() < 2, "{torn:?}");
        torn.first().cloned()
    }
}

fn stamp(size: u64) -> Stamp {
    Stamp { size, modified_ns: 5, changed_ns: 6, links: 1 }
}

#[test]
fn padding_ends_where_later_bytes_have_landed() {
    let place = Place::new(Checksum::Crc32c, 0);
    let (record, header) = (&place.record, || place.header());
    record.set_size(1000);
    place.write(0, &[1; 1024]);
    assert!(header().has(ACTIVE) && header().has(PADDED));
    record.settle(stamp(1024));
    assert!(header().has(PADDED), "the file is longer than what was written");
    record.set_size(8192);
    place.begin(0, &[2; 8192]);
    assert_eq!(header().true_size, 1000);
    record.settle(stamp(8192));
    assert!(header().has(ACTIVE), "a write is under way");
    record.end_write(&(0..8192), Outcome::Stored);
    assert_eq!(header().true_size, 8192);
    record.settle(stamp(8192));
    assert_eq!((header().flags, header().size), (0, 8192));
    assert_eq!(record.verify(0, &[2; 8192]), (8192, None));
    assert_eq!(record.verify(0, &[1; 8192]), (0, Some(Errno::EBADMSG)));
    let mut second = [2; 8192];
    second[5000] = 3;
    assert_eq!(record.verify(0, &second), (4096, Some(Errno::EBADMSG)));
}

/// What a failed write has left is neither the old nor the new, whoever looks and whenever, until it is written again.
#[test]
fn a_failed_write_is_torn_until_it_is_repeated() {
    for checksum in [Checksum::Crc32c, Checksum::None] {
        let place = Place::new(checksum, 0);
        let record = &place.record;
        record.set_size(16384);
        place.write(0, &[1; 16384]);
        place.begin(4096, &[2; 8192]);
        record.end_write(&(4096..12288), Outcome::Failed);
        record.settle(stamp(16384));
        assert!(!place.header().has(ACTIVE) && place.header().has(HAS_TORN));
        assert_eq!(record.verify(0, &[1; 16384]), (4096, Some(Errno::EUCLEAN)));
        assert_eq!(record.verify(12288, &[1; 4096]), (4096, None));
        place.write(4096, &[2; 8192]);
        assert_eq!(record.verify(4096, &[2; 8192]), (8192, None));
    }
}

/// A short write goes on within a page; nothing of it is under way when the rest has landed.
#[test]
fn a_write_in_parts_is_whole_at_its_end() {
    for checksum in [Checksum::Crc32c, Checksum::None] {
        let place = Place::new(checksum, 0);
        let record = &place.record;
        record.set_size(12288);
        let bytes: Vec<u8> = (0..12288).map(|at| (at / 512) as u8).collect();
        place.begin(0, &bytes);
        record.end_write(&(0..12288), Outcome::Part(4608));
        assert_eq!(place.torn(12288, |_| 99), Some(4096..12288), "the rest is under way");
        place.write(4608, &bytes[4608..]);
        assert_eq!(place.torn(12288, |_| 99), None);
        assert_eq!(record.verify(0, &bytes), (12288, None));
        // All within one page.
        place.begin(0, &bytes[512..3072]);
        record.end_write(&(0..2560), Outcome::Part(1024));
        place.write(1024, &bytes[1536..3072]);
        let wrong = record.verify(0, &bytes[..4096]);
        let compared = checksum == Checksum::Crc32c;
        assert_eq!(wrong, if compared { (0, Some(Errno::EBADMSG)) } else { (4096, None) });
    }
}

/// Zeros are what was there before only where nothing was on record and nothing in the file.
#[test]
fn zeros_are_not_taken_for_bytes_that_others_had_written() {
    use crate::ledger::entry::sum;
    let zeros = |_| sum(&[0; 4096]);
    let place = Place::new(Checksum::None, 4096);
    place.record.set_size(8192);
    place.begin(0, &[1; 8192]);
    assert_eq!(place.torn(8192, zeros), Some(0..8192));
    let fresh = Place::new(Checksum::None, 0);
    fresh.record.set_size(8192);
    fresh.begin(0, &[1; 8192]);
    assert_eq!(fresh.torn(8192, zeros), None);
    fresh.record.end_write(&(0..8192), Outcome::Stored);
    fresh.begin(0, &[0; 8192]);
    assert_eq!(fresh.torn(8192, zeros), Some(0..8192));
}

/// A power cut may leave the header and not the file of entries that it tells of.
#[test]
fn a_record_without_its_file_of_entries_knows_the_first_pages() {
    let place = Place::new(Checksum::Crc32c, 0);
    place.record.set_size(1 << 20);
    place.write(0, &[1; 1 << 20]);
    place.record.settle(stamp(1 << 20));
    let (slot, header) = (place.table.find((7, 8)).unwrap(), place.header());
    assert!(header.has(SIDECAR));
    std::fs::remove_dir_all(place.folder.path().join("sums")).unwrap();
    std::fs::create_dir(place.folder.path().join("sums")).unwrap();
    let table = place.control();
    let known = Some((slot, header));
    let record =
        Record::new((7, 8), table, Arc::default(), Checksum::Crc32c, 1 << 20, known).unwrap();
    assert_eq!(record.verify(0, &[2; 4096]), (0, Some(Errno::EBADMSG)));
    assert_eq!(record.verify(1 << 18, &[2; 4096]), (4096, None));
    record.begin_write(&record.prepare(1 << 18, &[3; 4096])).unwrap();
    record.end_write(&(1 << 18..(1 << 18) + 4096), Outcome::Stored);
    assert_eq!(record.verify(1 << 18, &[2; 4096]), (0, Some(Errno::EBADMSG)));
}

#[test]
fn what_was_never_recorded_leaves_no_slot() {
    let place = Place::new(Checksum::None, 0);
    place.record.join();
    place.record.reserve(&(0..4096)).unwrap();
    assert!(place.table.find((7, 8)).is_some());
    assert_eq!(place.record.leave(Some(stamp(0))), Leaving::Done);
    assert_eq!(place.table.find((7, 8)), None);
    place.record.join();
    place.record.set_size(4096);
    place.write(0, &[1; 4096]);
    assert_eq!(place.record.leave(Some(stamp(4096))), Leaving::Unrecorded);
    place.record.settle(stamp(4096));
    place.record.join();
    assert_eq!(place.record.leave(Some(stamp(4096))), Leaving::Done);
}

/// Whoever synchronizes while another does must not be answered before the records are stored.
#[test]
fn a_sync_relies_on_none_that_is_under_way() {
    let place = Place::new(Checksum::None, 0);
    let record = &place.record;
    record.set_size(4096);
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
