use super::*;

fn open(folder: &File, writable: bool) -> Table {
    Table::open(folder.as_fd(), writable).unwrap().unwrap()
}

#[test]
fn records_are_found_again_and_slots_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let control = File::open(folder.path()).unwrap();
    assert!(Table::open(control.as_fd(), false).unwrap().is_none());
    let table = open(&control, true);
    let header = |ino| Header { ino, generation: 5, size: 77, ..Header::default() };
    let take = |table: &Table, ino| {
        let slot = table.take((ino, 5)).unwrap();
        table.fill(slot, &header(ino)).unwrap();
        slot
    };
    let slots: Vec<u32> = (1..=5000).map(|ino| take(&table, ino)).collect();
    let entries: Vec<Entry> =
        (0..100).map(|i| Entry { new: i << 8 | 0xff, previous: i << 8 | 0xf7 }).collect();
    let place = |table: &Table, new| {
        let sums = Some(std::sync::Arc::new(table.sidecar(slots[9], new).unwrap()));
        Place { slot: slots[9], sums, format: Format::Second }
    };
    table.write_entries(&place(&table, true), 3, &entries).unwrap();
    assert_eq!(table.predecessor((4, 6)), Some(((4, 5), slots[3])), "a number that was used again");
    assert_eq!(table.predecessor((4, 5)), None);
    table.give_back(&header(4), slots[3]);
    assert_eq!(table.predecessor((4, 6)), None);
    drop(table);

    let table = open(&control, true);
    assert_eq!(table.find((4, 5)), None);
    assert_eq!(table.find((10, 5)), Some(slots[9]));
    assert_eq!(table.header(slots[9]).unwrap(), header(10));
    let place = place(&table, false);
    let mut found = [Entry::default(); 102];
    table.read_entries(&place, 2, &mut found).unwrap();
    assert_eq!(found[1..101], entries[..]);
    assert_eq!((found[0], found[101]), (Entry::default(), Entry::default()));
    table.forget_entries(&place, &(20..30)).unwrap();
    table.forget_entries(&place, &(90..u64::MAX / 4096)).unwrap();
    table.forget_entries(&place, &(4..6)).unwrap();
    table.read_entries(&place, 2, &mut found).unwrap();
    for (page, entry) in (2..104).zip(&found) {
        let forgotten =
            (20..30).contains(&page) || (4..6).contains(&page) || page >= 90 || page == 2;
        let expected = if forgotten { Entry::default() } else { entries[page - 3] };
        assert_eq!(*entry, expected, "{page}");
    }
    let last = take(&table, 6000);
    assert_eq!(last, slots[3]);
    // Never filled: nobody's, and the next one's.
    let blank = table.take((6001, 5)).unwrap();
    table.release((6001, 5), blank);
    assert_eq!((table.find((6001, 5)), table.take((6002, 5)).unwrap()), (None, blank));
}

#[test]
fn a_damaged_record_is_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let control = File::open(folder.path()).unwrap();
    let table = open(&control, true);
    let slot = table.take((3, 4)).unwrap();
    table.fill(slot, &Header { ino: 3, generation: 4, ..Header::default() }).unwrap();
    table.write(&[0xff], slot, 9).unwrap();
    assert_eq!(table.header(slot), Err(Errno::EUCLEAN));
    assert_eq!(open(&control, false).find((3, 4)), None);
    assert_ne!(open(&control, true).take((5, 6)).unwrap(), slot, "nor is it free");
}

/// "One flipped bit in a record is mended."
#[test]
fn a_flipped_bit_in_a_header_is_mended() {
    let header =
        Header { ino: 3, generation: 4, size: 5, flags: HAS_TORN, session: 6, ..Header::default() };
    for bit in 0..512 {
        let mut bytes = header.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Header::decode(&bytes), Some(header), "{bit}");
    }
    let first = Header { format: Format::First, session: 0, ..header };
    assert_eq!(Header::decode(&first.encode()), Some(first));
}

/// "Nothing is read of the holes between the entries of a sparse partition."
#[test]
fn holes_between_entries_are_skipped() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let control = File::open(folder.path()).unwrap();
    let table = open(&control, true);
    let slot = table.take((3, 4)).unwrap();
    let sums = Some(std::sync::Arc::new(table.sidecar(slot, true).unwrap()));
    let place = Place { slot, sums, format: Format::Second };
    let far = 10 << 28;
    table.write_entries(&place, far, &[Entry::both(77 << 8 | 0xff)]).unwrap();
    let mut next = 0;
    let mut seen = 0;
    while let Some(pages) = table.known_pages(&place, next, u64::MAX / 4096) {
        next = pages.end;
        seen += pages.end - pages.start;
    }
    assert!(next > far && seen < 5000, "{seen} up to {next}");
}
