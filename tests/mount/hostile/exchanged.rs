//! Commands of root's in folders of others, who exchange names while the commands use them, or have prepared them: no file of
//! root's is written to, and nobody waits.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use crate::place::{complaint, is_done, swapfs};
use crate::support::{User, as_user, is_root, make_fifo, set_xattr, user};

const ATTACKER: User = user(1234);

/// What is root's, and what is to be left of it.
const PRECIOUS: &str = "root's own\n";

/// What a benchmark of 64 KiB by one process calls its file.
const WRITTEN: &str = "_aio_write_65536.pt.0_0";

const MARK: &str = "user.swapfs.bench";

/// A folder of the attacker's, a sticky one of root's that everybody may write to, and a file of root's beside them.
struct Place {
    root: TempDir,
    folder: PathBuf,
    sticky: PathBuf,
    target: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| root.path().join(name);
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        for name in ["folder", "sticky"] {
            fs::create_dir(at(name)).unwrap();
        }
        chown(at("folder"), Some(ATTACKER.uid), Some(ATTACKER.gid)).unwrap();
        fs::set_permissions(at("sticky"), Permissions::from_mode(0o1777)).unwrap();
        fs::write(at("target"), PRECIOUS).unwrap();
        let (folder, sticky, target) = (at("folder"), at("sticky"), at("target"));
        Self { root, folder, sticky, target }
    }

    #[track_caller]
    fn is_whole(&self) {
        assert_eq!(fs::read_to_string(&self.target).unwrap(), PRECIOUS);
    }
}

/// A short benchmark; it ends soon, whatever it meets.
fn bench(folder: &Path, more: &[&str]) -> Output {
    let start = Instant::now();
    let short = ["--io-size", "64k", "--block-size", "64k", "--loops", "2", "--warmup-loops", "0"];
    let command: [&[&str]; 3] = [&["bench", folder.to_str().unwrap()], &short, more];
    let output = swapfs(&command.concat());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    output
}

/// The command failed with one line about the path.
#[track_caller]
fn is_refused(output: &Output, path: &Path) {
    let line = complaint(output);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.lines().count() == 1 && line.contains(path.to_str().unwrap()), "{line}");
}

/// Runs `command` again and again for some seconds while the attacker does `attack` as often as he can; how often he
/// succeeded comes back.
fn race(place: &Place, attack: impl Fn() -> bool + Sync, command: impl Fn()) -> u32 {
    let (is_over, succeeded) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let over = scopeguard(&is_over);
        scope.spawn(|| {
            as_user(&place.folder, ATTACKER, || {
                while !is_over.load(Ordering::Relaxed) {
                    succeeded.fetch_add(u32::from(attack()), Ordering::Relaxed);
                }
            });
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            command();
        }
        drop(over);
    });
    succeeded.into_inner()
}

/// Ends the attack, also when the test fails.
fn scopeguard(flag: &AtomicBool) -> impl Drop {
    struct Set<'a>(&'a AtomicBool);
    impl Drop for Set<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    Set(flag)
}

/// "A folder of the attacker's, who exchanges the regular file for a symlink to a file of root's between creation and use."
#[test]
fn a_file_that_is_exchanged_for_a_link_leads_a_benchmark_nowhere() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    as_user(&place.folder, ATTACKER, || symlink(&place.target, "link").unwrap());
    let exchange = || {
        let exchange = || renameat_with(CWD, "link", CWD, WRITTEN, RenameFlags::EXCHANGE).is_ok();
        let exchanged = exchange();
        std::thread::sleep(Duration::from_micros(300));
        // What the benchmark did not find any more is left there.
        if exchanged && !exchange() && fs::read_link("link").is_err() {
            let _ = fs::remove_file("link");
            let _ = fs::remove_file(WRITTEN);
            symlink(&place.target, "link").unwrap();
        }
        exchanged
    };
    let succeeded = race(&place, exchange, || {
        let engines = ["--engine", "handle,basic,posix", "--case", "first-write,overwrite"];
        let output = bench(&place.folder, &engines);
        assert!(complaint(&output).lines().count() <= 1, "{output:?}");
        place.is_whole();
    });
    assert!(succeeded > 0);
}

/// The folder itself is exchanged for a link to one of root's, where a file has the same name: whichever of them a benchmark
/// opens first, it stays there, and what it did not make is left.
#[test]
fn a_folder_that_is_exchanged_for_a_link_leads_a_benchmark_nowhere() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let roots = place.root.path().join("roots");
    fs::create_dir(&roots).unwrap();
    fs::rename(&place.target, roots.join(WRITTEN)).unwrap();
    fs::create_dir(place.folder.join("inner")).unwrap();
    chown(place.folder.join("inner"), Some(ATTACKER.uid), Some(ATTACKER.gid)).unwrap();
    as_user(&place.folder, ATTACKER, || symlink(&roots, "other").unwrap());
    let exchange = || renameat_with(CWD, "inner", CWD, "other", RenameFlags::EXCHANGE).is_ok();
    let succeeded = race(&place, exchange, || {
        bench(&place.folder.join("inner"), &["--engine", "handle,posix"]);
        assert_eq!(fs::read_to_string(roots.join(WRITTEN)).unwrap(), PRECIOUS);
        assert_eq!(fs::read_dir(&roots).unwrap().count(), 1);
    });
    assert!(succeeded > 10, "{succeeded}");
}

/// "In a sticky folder by preparing the predictable name with the mark."
#[test]
fn what_others_have_prepared_under_a_benchmarks_name_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    // A file of root's with the mark, as an earlier benchmark has left it.
    set_xattr(&place.target, MARK, b"0").unwrap();
    let name = Path::new(WRITTEN);
    let marked = |mode: u32| {
        File::create(name).unwrap();
        fs::set_permissions(name, Permissions::from_mode(mode)).unwrap();
        set_xattr(name, MARK, b"0").unwrap();
    };
    let by_the_attacker: [&(dyn Fn() + Sync); 6] = [
        &|| marked(0o644),
        &|| marked(0o666),
        &|| symlink(&place.target, name).unwrap(),
        &|| symlink("nowhere", name).unwrap(),
        &|| make_fifo(name),
        &|| fs::create_dir(name).unwrap(),
    ];
    for folder in [&place.sticky, &place.folder] {
        let path = folder.join(WRITTEN);
        let clear = || fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)).unwrap();
        for prepare in by_the_attacker {
            as_user(folder, ATTACKER, prepare);
            let before = fs::symlink_metadata(&path).unwrap();
            is_refused(&bench(folder, &[]), &path);
            assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), before.ino());
            place.is_whole();
            clear();
        }
        // Where the kernel lets him: another name of root's file.
        fs::hard_link(&place.target, &path).unwrap();
        is_refused(&bench(folder, &[]), &path);
        place.is_whole();
        clear();
        // Root's own, which others may write: he could have changed it.
        File::create(&path).unwrap();
        set_xattr(&path, MARK, b"0").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o622)).unwrap();
        is_refused(&bench(folder, &[]), &path);
        // Root's alone is taken over, and removed at the end.
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        is_done(&bench(folder, &["--engine", "handle,posix"]));
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }
}

/// A benchmark's own mount lies in a folder that nobody else may enter or exchange; where that cannot be had it is refused.
#[test]
fn a_benchmark_mounts_nowhere_where_others_could_exchange_folders() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mounted = |folder: &Path| bench(folder, &["--engine", "mount", "-o", "pool_size=8m"]);
    is_refused(&mounted(&place.folder), &place.folder);
    is_done(&mounted(&place.sticky));
    let within = place.folder.join("root's");
    fs::create_dir(&within).unwrap();
    is_refused(&mounted(&within), &place.folder);
    fs::remove_dir(&within).unwrap();
    for folder in [&place.folder, &place.sticky] {
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    }
}

/// `--plot` and `--output`: links are not followed, a pipe without a reader is not waited for, what is not ours stays, and a
/// name that is exchanged meanwhile leads nowhere.
#[test]
fn results_are_written_to_no_file_of_roots() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let path = place.folder.join("plot.svg");
    let plot = ["--plot", path.to_str().unwrap()];
    let prepared: [&(dyn Fn() + Sync); 3] = [
        &|| symlink(&place.target, "plot.svg").unwrap(),
        &|| make_fifo(Path::new("plot.svg")),
        &|| fs::write("plot.svg", "something else").unwrap(),
    ];
    for prepare in prepared {
        as_user(&place.folder, ATTACKER, prepare);
        is_refused(&bench(&place.sticky, &plot), &path);
        place.is_whole();
        fs::remove_file(&path).unwrap();
    }
    fs::hard_link(&place.target, &path).unwrap();
    is_refused(&bench(&place.sticky, &plot), &path);
    fs::remove_file(&path).unwrap();
    is_done(&bench(&place.sticky, &plot));
    is_done(&bench(&place.sticky, &plot));
    fs::remove_file(&path).unwrap();
    // A pipe with a reader, exchanged for a link to root's file as often as possible.
    let pipe = as_user(&place.folder, ATTACKER, || {
        make_fifo(Path::new("plot.svg"));
        symlink(&place.target, "link").unwrap();
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open("plot.svg").unwrap()
    });
    is_refused(&bench(&place.sticky, &plot), &path);
    let exchange = || renameat_with(CWD, "plot.svg", CWD, "link", RenameFlags::EXCHANGE).is_ok();
    let succeeded = race(&place, exchange, || {
        bench(&place.sticky, &plot);
        place.is_whole();
    });
    assert!(succeeded > 10, "{succeeded}");
    drop(pipe);
}

/// `tune` and `check` make their files without names, and logs behind the folder's first descriptor.
#[test]
fn tune_and_check_write_to_no_file_of_roots() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let roots = place.root.path().join("roots");
    fs::create_dir(&roots).unwrap();
    as_user(&place.folder, ATTACKER, || {
        fs::create_dir("logs").unwrap();
        symlink(&roots, "other").unwrap();
        symlink(&place.target, "tuned.json").unwrap();
    });
    let at = |name: &str| place.folder.join(name).to_str().unwrap().to_owned();
    let tune = |more: &[&str]| {
        let sweep = ["--io-size", "1m", "--quick"];
        let folder = place.folder.to_str().unwrap();
        swapfs(&[&["tune", folder], &sweep[..], more].concat())
    };
    is_refused(&tune(&["--output", &at("tuned.json")]), &place.folder.join("tuned.json"));
    let exchange = || {
        std::thread::sleep(Duration::from_millis(1));
        renameat_with(CWD, "logs", CWD, "other", RenameFlags::EXCHANGE).is_ok()
    };
    let succeeded = race(&place, exchange, || {
        let check = swapfs(&["check", place.folder.to_str().unwrap(), "-o", "pool_size=8m"]);
        assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
        place.is_whole();
    });
    assert!(succeeded > 10, "{succeeded}");
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 0);
}
