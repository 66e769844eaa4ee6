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
    let entries: Vec<Entry> = (0..100).map(|i| Entry { new: i, previous: i + 1 }).collect();
    let sidecar = table.sidecar(slots[9], true).unwrap();
    table.write_entries(slots[9], Some(&sidecar), 3, &entries).unwrap();
    assert_eq!(table.predecessor((4, 6)), Some(((4, 5), slots[3])), "a number that was used again");
    assert_eq!(table.predecessor((4, 5)), None);
    table.give_back(&header(4), slots[3]);
    assert_eq!(table.predecessor((4, 6)), None);
    drop(table);

    let table = open(&control, true);
    assert_eq!(table.find((4, 5)), None);
    assert_eq!(table.find((10, 5)), Some(slots[9]));
    assert_eq!(table.header(slots[9]).unwrap(), header(10));
    let sidecar = table.sidecar(slots[9], false).unwrap();
    let mut found = [Entry::default(); 102];
    table.read_entries(slots[9], Some(&sidecar), 2, &mut found).unwrap();
    assert_eq!(found[1..101], entries[..]);
    assert_eq!((found[0], found[101]), (Entry::default(), Entry::default()));
    table.cut_entries(slots[9], Some(&sidecar), 10).unwrap();
    table.read_entries(slots[9], Some(&sidecar), 2, &mut found).unwrap();
    assert_eq!(found[1..8], entries[..7]);
    assert!(found[8..].iter().all(|entry| *entry == Entry::default()));
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
}
