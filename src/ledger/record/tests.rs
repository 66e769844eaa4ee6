use std::os::fd::AsFd;

use super::*;

#[test]
fn padding_ends_where_later_bytes_have_landed() {
    let folder = tempfile::tempdir().unwrap();
    let control = std::fs::File::open(folder.path()).unwrap();
    let table = Arc::new(Table::open(control.as_fd(), true).unwrap().unwrap());
    let record =
        Record::new((7, 8), table.clone(), Arc::default(), Checksum::Crc32c, 0, None).unwrap();
    let header = || table.header(table.find((7, 8)).unwrap()).unwrap();
    let stamp = |size| Stamp { size, modified_ns: 5, changed_ns: 6, links: 1 };
    record.set_size(1000);
    record.begin_write(0, &[1; 1024]).unwrap();
    record.end_write(0, 1024, true);
    assert!(header().has(ACTIVE) && header().has(PADDED));
    record.settle(stamp(1024));
    assert!(header().has(PADDED), "the file is longer than what was written");
    record.set_size(8192);
    record.begin_write(0, &[2; 8192]).unwrap();
    assert_eq!(header().true_size, 1000);
    record.settle(stamp(8192));
    assert!(header().has(ACTIVE), "a write is under way");
    record.end_write(0, 8192, true);
    assert_eq!(header().true_size, 8192);
    record.settle(stamp(8192));
    assert_eq!((header().flags, header().size), (0, 8192));
    assert_eq!(record.verify(0, &[2; 8192]), (8192, None));
    assert_eq!(record.verify(0, &[1; 8192]), (0, Some(Errno::EBADMSG)));
    let mut second = [2; 8192];
    second[5000] = 3;
    assert_eq!(record.verify(0, &second), (4096, Some(Errno::EBADMSG)));
}
