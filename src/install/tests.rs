use super::*;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

/// What two installs want of the same system.
fn wanted() -> Vec<Item> {
    let file = |path: &str, mode| Item::File { path: path.into(), content: b"new".to_vec(), mode };
    vec![
        file("/usr/local/bin/program", 0o755),
        Item::Link { path: "/sbin/helper".into(), target: "/usr/local/bin/program".into() },
        Item::Line {
            path: "/etc/table".into(),
            line: "/a /b swapfs new".to_owned(),
            key: 1,
            create: true,
        },
        Item::Line { path: "/etc/none".into(), line: "x y".to_owned(), key: 0, create: false },
    ]
}

fn outcomes(done: &[Done]) -> Vec<Outcome> {
    done.iter().map(|done| done.outcome).collect()
}

fn put(prefix: &Path, items: &[Item]) -> Vec<Outcome> {
    outcomes(&install(prefix, Layout::Local, items, false).unwrap())
}

/// Every path below a folder, with the contents of files.
fn tree(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.symlink_metadata().unwrap() {
            kind if kind.is_dir() => {
                found.push((path.clone(), String::new()));
                found.extend(tree(&path));
            }
            kind if kind.is_symlink() => {
                let target = path.read_link().unwrap().display().to_string();
                found.push((path, target));
            }
            _ => {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_put_is_taken_away_and_nothing_else() {
    use Outcome::{Created, LeftAlone, Removed, Unchanged};
    let folder = folder_of_our_own();
    let prefix = folder.path();
    DirBuilder::new().mode(0o755).create(prefix.join("etc")).unwrap();
    let table = "# a comment about /b\n/x /y ext4 defaults 0 0";
    std::fs::write(prefix.join("etc/table"), table).unwrap();
    let before = tree(prefix);
    let dry = install(prefix, Layout::Local, &wanted(), true).unwrap();
    assert_eq!(outcomes(&dry), [Created, Created, Created, LeftAlone]);
    assert_eq!(tree(prefix), before, "a dry run changes nothing");
    assert_eq!(put(prefix, &wanted()), [Created, Created, Created, LeftAlone]);
    let after = std::fs::read_to_string(prefix.join("etc/table")).unwrap();
    assert_eq!(after, format!("{table}\n/a /b swapfs new\n"));
    let whole = tree(prefix);
    assert_eq!(put(prefix, &wanted()), [Unchanged, Unchanged, Unchanged, LeftAlone]);
    assert_eq!(tree(prefix), whole, "a second install changes nothing");
    std::fs::write(prefix.join("usr/local/bin/mine"), "").unwrap();
    assert_eq!(outcomes(&uninstall(prefix, true).unwrap()), [Removed; 3]);
    assert_eq!(outcomes(&uninstall(prefix, false).unwrap()), [Removed; 3]);
    std::fs::remove_file(prefix.join("usr/local/bin/mine")).unwrap();
    let left: Vec<PathBuf> = tree(prefix).into_iter().map(|(path, _)| path).collect();
    let kept =
        ["etc", "etc/table", "usr", "usr/local", "usr/local/bin"].map(|name| prefix.join(name));
    assert_eq!(left, kept, "a folder with something else in it stays");
    assert_eq!(std::fs::read_to_string(prefix.join("etc/table")).unwrap(), format!("{table}\n"));
    assert!(matches!(uninstall(prefix, false), Err(InstallError::NoRecord(_))));
}

#[test]
fn an_older_install_is_replaced_and_a_strangers_file_is_not() {
    let folder = folder_of_our_own();
    let prefix = folder.path();
    put(prefix, &wanted());
    let mut newer = wanted();
    newer[0] = Item::File {
        path: "/usr/local/bin/program".into(),
        content: b"newer".to_vec(),
        mode: 0o755,
    };
    newer[2] = Item::Line {
        path: "/etc/table".into(),
        line: "/a /b swapfs newer".to_owned(),
        key: 1,
        create: true,
    };
    use Outcome::{LeftAlone, Replaced, Unchanged};
    assert_eq!(put(prefix, &newer), [Replaced, Unchanged, Replaced, LeftAlone]);
    let text = |name: &str| std::fs::read_to_string(prefix.join(name)).unwrap();
    assert_eq!(
        (text("usr/local/bin/program").as_str(), text("etc/table").as_str()),
        ("newer", "/a /b swapfs newer\n")
    );
    // What somebody else changed since is not ours any more.
    std::fs::write(prefix.join("etc/table"), "/other /b xfs x\n").unwrap();
    let whole = tree(prefix);
    let error = install(prefix, Layout::Local, &wanted(), false).unwrap_err().to_string();
    assert!(
        error.contains("etc/table, line 1, is about the same already: /other /b xfs x"),
        "{error}"
    );
    assert_eq!(tree(prefix), whole, "nothing was changed before the refusal");
    let other = folder_of_our_own();
    DirBuilder::new().mode(0o755).create(other.path().join("sbin")).unwrap();
    std::fs::write(other.path().join("sbin/helper"), "somebody's").unwrap();
    let error = install(other.path(), Layout::Local, &wanted(), false).unwrap_err().to_string();
    assert!(error.contains("sbin/helper is there already, and not by `swapfs install`"), "{error}");
    assert_eq!(tree(other.path()).len(), 2, "nothing was changed before the refusal");
}

#[test]
fn what_changed_since_is_left_alone() {
    let folder = folder_of_our_own();
    let prefix = folder.path();
    put(prefix, &wanted());
    std::fs::remove_file(prefix.join("sbin/helper")).unwrap();
    std::fs::write(prefix.join("sbin/helper"), "somebody's").unwrap();
    std::fs::write(prefix.join("etc/table"), "/a /b swapfs changed\n").unwrap();
    std::fs::remove_file(prefix.join("usr/local/bin/program")).unwrap();
    let done = uninstall(prefix, false).unwrap();
    use Outcome::{LeftAlone, Missing};
    assert_eq!(outcomes(&done), [Missing, LeftAlone, Missing]);
    assert_eq!(std::fs::read_to_string(prefix.join("sbin/helper")).unwrap(), "somebody's");
}

/// Other tests of this program clear the umask.
fn folder_of_our_own() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(folder.path(), own).unwrap();
    folder
}
