//! Reading directories in pieces.

use std::collections::BTreeMap;

use super::*;

/// Reads `at_most` entries from `offset`: names with their ids, and where to go on.
fn piece(
    directory: &super::super::Directory, offset: u64, at_most: usize,
) -> (Vec<(String, u64)>, u64) {
    let mut taken = Vec::new();
    let mut next_offset = offset;
    directory
        .read(offset, |listed| {
            if taken.len() == at_most {
                return false;
            }
            taken.push((listed.name.to_str().unwrap().to_owned(), listed.ino));
            next_offset = listed.next_offset;
            true
        })
        .unwrap();
    (taken, next_offset)
}

fn all(directory: &super::super::Directory, piece_size: usize) -> Vec<(String, u64)> {
    let mut names = Vec::new();
    let mut offset = 0;
    loop {
        let (taken, next_offset) = piece(directory, offset, piece_size);
        if taken.is_empty() {
            return names;
        }
        names.extend(taken);
        offset = next_offset;
    }
}

#[test]
fn a_thousand_names_come_once_each_in_pieces_of_any_size() {
    let swap = Swap::new();
    for index in 0..1000 {
        swap.plant(&format!("file-with-a-rather-long-name-{index:04}"));
    }
    let directory = swap.tree.open_dir(User::OWN, ROOT_ID).unwrap();
    let mut expected: BTreeMap<String, u64> = std::fs::read_dir(swap.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino()))
        .collect();
    expected.insert(".".to_owned(), ROOT_ID);
    expected.insert("..".to_owned(), ROOT_ID);
    for piece_size in [1, 3, 7, 500, 5000] {
        let names = all(&directory, piece_size);
        assert_eq!(names.len(), 1002, "none twice in pieces of {piece_size}");
        assert_eq!(names.into_iter().collect::<BTreeMap<_, _>>(), expected);
    }
}

#[test]
fn reading_goes_on_from_any_cookie() {
    let swap = Swap::new();
    for index in 0..1000 {
        swap.plant(&format!("file-with-a-rather-long-name-{index:04}"));
    }
    let directory = swap.tree.open_dir(User::OWN, ROOT_ID).unwrap();
    let names = all(&directory, 5000);
    let mut cookies = vec![0];
    directory
        .read(0, |listed| {
            cookies.push(listed.next_offset);
            true
        })
        .unwrap();
    // Far apart, so that what is buffered does not help, and then within what is.
    for index in [999, 3, 700, 2, 1, 0, 650, 651, 649, 1001] {
        let (taken, _) = piece(&directory, cookies[index], 4);
        let end = (index + 4).min(names.len());
        assert_eq!(taken, names[index..end], "from {index}");
    }
    let other = swap.tree.open_dir(User::OWN, ROOT_ID).unwrap();
    assert_eq!(piece(&other, cookies[500], 10).0, names[500..510], "cookies outlive a handle");
}

#[test]
fn rewinding_sees_what_is_new() {
    let swap = Swap::new();
    swap.plant("a");
    let directory = swap.tree.open_dir(User::OWN, ROOT_ID).unwrap();
    let has = |name: &str| all(&directory, 2).iter().any(|(listed, _)| listed == name);
    assert!(has("a") && !has("b"));
    swap.plant("b");
    std::fs::remove_file(swap.path("a")).unwrap();
    assert!(!has("a") && has("b"));
    directory.synchronize().unwrap();
}

#[test]
fn the_private_name_is_listed_below_the_root_only() {
    let swap = Swap::new();
    let below = swap.mkdir(ROOT_ID, "below");
    for parent in ["", "below"] {
        std::fs::create_dir(swap.path(parent).join(".swapfs")).unwrap();
    }
    let list = |id| {
        let mut names = all(&swap.tree.open_dir(User::OWN, id).unwrap(), 1);
        names.sort();
        names
    };
    let of_root: Vec<_> = list(ROOT_ID).into_iter().map(|(name, _)| name).collect();
    assert_eq!(of_root, [".", "..", "below"]);
    let of_below = list(below.id);
    assert_eq!(of_below[0], (".".to_owned(), below.id));
    assert_eq!(of_below[1], ("..".to_owned(), ROOT_ID));
    assert_eq!(of_below[2].0, ".swapfs");
}

#[test]
fn kinds_are_listed() {
    let swap = Swap::new();
    swap.mkdir(ROOT_ID, "d");
    swap.make(ROOT_ID, "f");
    std::os::unix::fs::symlink("x", swap.path("l")).unwrap();
    let mut kinds = BTreeMap::new();
    swap.tree
        .open_dir(User::OWN, ROOT_ID)
        .unwrap()
        .read(0, |listed| {
            kinds.insert(listed.name.to_owned(), listed.kind);
            true
        })
        .unwrap();
    assert_eq!(kinds[OsStr::new("d")], FileKind::Directory);
    assert_eq!(kinds[OsStr::new("f")], FileKind::Regular);
    assert_eq!(kinds[OsStr::new("l")], FileKind::Symlink);
    assert_eq!(kinds[OsStr::new("..")], FileKind::Directory);
    let file = swap.look("f").unwrap();
    assert_eq!(swap.tree.open_dir(User::OWN, file.id).map(|_| ()), Err(Errno::ENOTDIR));
}
