//! Which files below a swap folder's `.swapfs` are trusted.
//!
//! Whoever may write to a swap folder can prepare a `.swapfs` before swapfs makes its own, with links, FIFOs and files of
//! theirs in it. So every file there is opened by its name below a descriptor of its folder, without following a symbolic
//! link and without waiting, and examined once it is open. A file that anybody else could have made or changed is refused.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat, fcntl_setfl, fstat, mkdirat,
    openat2, statat, unlinkat,
};
use rustix::io::Errno;

/// Write permission for the group or for others.
const FOREIGN_WRITE: RawMode = 0o022;

/// Only owners rename and remove names in such a directory.
const STICKY: RawMode = 0o1000;

/// What a name is expected to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Folder,
    /// A directory of directories.
    Folders,
}

/// Why a file is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("is a symbolic link")]
    Link,
    #[error("is no regular file")]
    NoFile,
    #[error("is no directory")]
    NoFolder,
    #[error("belongs to user {0}, not to user {1}")]
    Owner(u32, u32),
    #[error("may be written by others (mode {0:04o})")]
    Mode(RawMode),
    #[error("has {0} hard links")]
    Links(String),
    #[error("was replaced while it was opened")]
    Replaced,
}

/// A file that is not trusted, by its name below the folder that was searched.
#[derive(Debug, thiserror::Error)]
#[error("{name} {fault}; only what swapfs made there is used: look at it, then remove it")]
pub(crate) struct Untrusted {
    name: String,
    fault: Fault,
}

/// A folder in which somebody else could exchange what is made there.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} {fault}, so somebody else could exchange what is made there; use a folder that only root and you may change"
)]
struct Exchangeable {
    name: String,
    fault: Fault,
}

impl Untrusted {
    fn error(name: &OsStr, fault: Fault) -> io::Error {
        let name = crate::paths::plain(name.as_ref());
        io::Error::new(io::ErrorKind::PermissionDenied, Self { name, fault })
    }
}

/// The user whose files are trusted: the one that this process acts as.
pub(crate) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns true for a regular file that root or this user owns and nobody else may write.
pub(crate) fn is_own(metadata: &std::fs::Metadata) -> bool {
    let owners = [0, own_user()];
    metadata.is_file() && owners.contains(&metadata.uid()) && metadata.mode() & FOREIGN_WRITE == 0
}

/// Makes sure that nobody else can exchange what this user makes in a folder: it and all above it are root's or this user's,
/// and where others may write, only owners rename and remove (the sticky bit). This user's own group is no other.
///
/// # Errors
/// What can be exchanged and why; what a look fails with.
pub(crate) fn refuse_exchangeable(folder: &Path) -> io::Result<()> {
    let folder = std::fs::canonicalize(folder)?;
    for above in folder.ancestors() {
        let found = std::fs::symlink_metadata(above)?;
        let is_own_group = found.gid() == rustix::process::getegid().as_raw();
        let foreign = if is_own_group { 0o002 } else { FOREIGN_WRITE };
        let (mode, owner) = (found.mode() & 0o7777, found.uid());
        let fault = match mode & STICKY == 0 && mode & foreign != 0 {
            _ if ![0, own_user()].contains(&owner) => Fault::Owner(owner, own_user()),
            true => Fault::Mode(mode),
            false => continue,
        };
        let name = crate::paths::plain(above);
        let error = Exchangeable { name, fault };
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, error));
    }
    Ok(())
}

/// Makes a folder that nobody else may enter, in the first of some places where nobody else can exchange it.
///
/// # Errors
/// Why it cannot be made in the first of them.
pub(crate) fn private_folder<'a>(
    places: impl IntoIterator<Item = &'a Path>, prefix: &str,
) -> io::Result<PathBuf> {
    let mut first = None;
    for place in places {
        let made = refuse_exchangeable(place)
            .and_then(|()| Ok(nix::unistd::mkdtemp(&place.join(format!("{prefix}XXXXXX")))?));
        match made {
            Ok(path) => return Ok(path),
            Err(error) => first.get_or_insert((place, error)),
        };
    }
    let (place, error) = first.unwrap_or((Path::new("/"), io::ErrorKind::NotFound.into()));
    let why = crate::sys_process::reason(&error);
    Err(io::Error::other(format!("{}: no temporary folder: {why}", place.display())))
}

/// Removes a directory with everything in it, when it is still the one that is open. No symbolic link is followed.
pub(crate) fn remove_folder(
    parent: BorrowedFd<'_>, name: &OsStr, folder: BorrowedFd<'_>,
) -> io::Result<()> {
    let is_ours = |status: Stat| -> io::Result<bool> {
        let ours = fstat(folder)?;
        Ok((status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino))
    };
    empty(folder)?;
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) if is_ours(status)? => Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?),
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes everything in a directory.
fn empty(folder: BorrowedFd<'_>) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let below = openat2(folder, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)?;
                empty(below.as_fd())?;
                unlinkat(folder, name, AtFlags::REMOVEDIR)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Opens a regular file of this user's below `folder`, or makes it when `flags` say so. It is never truncated by this:
/// it may turn out to be another's file.
///
/// # Errors
/// [`Untrusted`], or what opening fails with.
pub(crate) fn open_file(
    folder: impl AsFd, name: impl AsRef<OsStr>, flags: OFlags,
) -> io::Result<File> {
    open_file_of(&[own_user()], folder, name, flags)
}

/// As [`open_file`], of any of these users.
pub(crate) fn open_file_of(
    owners: &[u32], folder: impl AsFd, name: impl AsRef<OsStr>, flags: OFlags,
) -> io::Result<File> {
    let name = name.as_ref();
    assert!(!flags.contains(OFlags::TRUNC), "another's file would be truncated");
    let how = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = openat2(folder, name, how, mode_of(flags), ResolveFlags::NO_SYMLINKS);
    let file = opened.map_err(|error| refusal(name, error, Kind::File))?;
    let status = fstat(&file)?;
    if let Some(fault) = fault(&status, Kind::File, owners) {
        return Err(Untrusted::error(name, fault));
    }
    // O_NONBLOCK was for what is no regular file. On one, io_uring would take it at its word.
    fcntl_setfl(&file, flags & (OFlags::APPEND | OFlags::DIRECT))?;
    Ok(file.into())
}

/// Opens a directory of this user's below `folder`.
///
/// # Errors
/// As [`open_file`].
pub(crate) fn open_folder(folder: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    open_folder_of(&[own_user()], folder, name)
}

/// As [`open_folder`], of any of these users.
pub(crate) fn open_folder_of(owners: &[u32], folder: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = openat2(folder, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    let opened = opened.map_err(|error| refusal(name, error, Kind::Folder))?;
    match fault(&fstat(&opened)?, Kind::Folder, owners) {
        Some(fault) => Err(Untrusted::error(name.as_ref(), fault)),
        None => Ok(opened),
    }
}

/// As [`open_folder`]; makes the directory, for this user alone, when there is none.
pub(crate) fn make_folder(folder: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(&folder, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open_folder(folder, name),
        Err(error) => Err(error.into()),
    }
}

/// Examines the names of a directory that are expected to be there, or not to exist.
///
/// # Errors
/// [`Untrusted`] for the first one that is not trusted, or what a look fails with.
pub(crate) fn examine(folder: BorrowedFd<'_>, names: &[(&str, Kind)]) -> io::Result<()> {
    for (name, kind) in names {
        let path = OsStr::new(name);
        if look(folder, path, path, *kind)? && *kind == Kind::Folders {
            let inner = open_folder(folder, name)?;
            for entry in Dir::read_from(&inner)? {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name != "." && name != ".." {
                    look(inner.as_fd(), name, path, Kind::Folder)?;
                }
            }
        }
    }
    Ok(())
}

/// Examines one name, which is called `shown` in the error. False when it does not exist.
fn look(folder: BorrowedFd<'_>, name: &OsStr, shown: &OsStr, kind: Kind) -> io::Result<bool> {
    let status = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) => status,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match fault(&status, kind, &[own_user()]) {
        Some(fault) if name == shown => Err(Untrusted::error(name, fault)),
        Some(fault) => {
            let path = std::path::Path::new(shown).join(name);
            Err(Untrusted::error(path.as_os_str(), fault))
        }
        None => Ok(true),
    }
}

/// Makes sure that `name` still leads to the open file.
///
/// # Errors
/// [`Untrusted`] when it leads to another one or to none.
pub(crate) fn check_named(folder: impl AsFd, name: &str, file: impl AsFd) -> io::Result<()> {
    match is_named(folder, name, file)? {
        true => Ok(()),
        false => Err(Untrusted::error(name.as_ref(), Fault::Replaced)),
    }
}

/// Returns true when `name` leads to the open file.
pub(crate) fn is_named(
    folder: impl AsFd, name: impl AsRef<OsStr>, file: impl AsFd,
) -> io::Result<bool> {
    let open = fstat(file)?;
    match statat(folder, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (open.st_dev, open.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What is wrong with a file; `None` when it is trusted.
fn fault(status: &Stat, kind: Kind, owners: &[u32]) -> Option<Fault> {
    let mode = status.st_mode & 0o7777;
    let found = FileType::from_raw_mode(status.st_mode);
    let (wanted, other) = match kind {
        Kind::File => (FileType::RegularFile, Fault::NoFile),
        Kind::Folder | Kind::Folders => (FileType::Directory, Fault::NoFolder),
    };
    if found != wanted {
        return Some(if found == FileType::Symlink { Fault::Link } else { other });
    }
    if !owners.contains(&status.st_uid) {
        return Some(Fault::Owner(status.st_uid, owners.first().copied().unwrap_or(0)));
    }
    if mode & FOREIGN_WRITE != 0 {
        return Some(Fault::Mode(mode));
    }
    let links = status.st_nlink;
    (kind == Kind::File && links > 1).then(|| Fault::Links(links.to_string()))
}

/// The error of an open that failed: some errnos tell what the name leads to.
fn refusal(name: impl AsRef<OsStr>, error: Errno, kind: Kind) -> io::Error {
    let fault = match (error, kind) {
        (Errno::LOOP, _) => Fault::Link,
        // A FIFO that nobody reads, a socket, a directory.
        (Errno::NXIO | Errno::ISDIR, Kind::File) => Fault::NoFile,
        (Errno::NOTDIR, Kind::Folder | Kind::Folders) => Fault::NoFolder,
        _ => return error.into(),
    };
    Untrusted::error(name.as_ref(), fault)
}

/// The mode of a file that is made: openat2(2) refuses one where none is.
fn mode_of(flags: OFlags) -> Mode {
    match flags.contains(OFlags::CREATE) {
        true => Mode::RUSR | Mode::WUSR,
        false => Mode::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn reason(result: io::Result<impl std::fmt::Debug>) -> String {
        result.unwrap_err().to_string()
    }

    /// Other tests of this program clear the umask.
    fn write(path: impl AsRef<std::path::Path>, text: &str) {
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    fn folder() -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        let open = File::open(folder.path()).unwrap();
        (folder, open)
    }

    #[test]
    fn a_file_of_our_own_is_opened_made_and_blocks_again() {
        let (path, folder) = folder();
        let file = open_file(&folder, "new", OFlags::RDWR | OFlags::CREATE).unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK));
        assert!(is_named(&folder, "new", &file).unwrap());
        fs::rename(path.path().join("new"), path.path().join("old")).unwrap();
        assert!(reason(check_named(&folder, "new", &file)).contains("was replaced"));
        let missing = open_file(&folder, "missing", OFlags::RDONLY).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let (path, folder) = folder();
        let at = |name: &str| path.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(at("folder")).unwrap();
        write(at("target"), "kept");
        symlink("target", at("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for access in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
            for flags in [access, access | OFlags::CREATE] {
                for name in ["fifo", "folder", "socket"] {
                    let why = reason(open_file(&folder, name, flags));
                    assert!(why.starts_with(&format!("{name} is no regular file")), "{why}");
                }
                let why = reason(open_file(&folder, "link", flags));
                assert!(why.starts_with("link is a symbolic link"), "{why}");
            }
        }
        for name in ["fifo", "target", "link"] {
            assert!(reason(make_folder(&folder, name)).starts_with(name), "{name}");
        }
        assert_eq!(fs::read(at("target")).unwrap(), b"kept");
    }

    #[test]
    fn what_others_own_or_may_write_or_have_a_name_of_is_refused() {
        let (path, folder) = folder();
        let at = |name: &str| path.path().join(name);
        write(at("open"), "");
        fs::set_permissions(at("open"), Permissions::from_mode(0o620)).unwrap();
        write(at("twice"), "");
        fs::hard_link(at("twice"), at("again")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        fs::set_permissions(at("folder"), Permissions::from_mode(0o702)).unwrap();
        let open = |name| reason(open_file(&folder, name, OFlags::RDONLY));
        assert!(open("open").contains("may be written by others (mode 0620)"));
        assert!(open("twice").contains("has 2 hard links"));
        assert!(reason(open_folder(&folder, "folder")).contains("(mode 0702)"));
        if own_user() == 0 {
            write(at("another's"), "");
            chown(at("another's"), Some(1234), None).unwrap();
            assert!(open("another's").contains("belongs to user 1234, not to user 0"));
            open_file_of(&[0, 1234], &folder, "another's", OFlags::RDONLY).unwrap();
        }
    }

    #[test]
    fn all_names_are_examined_with_the_folders_within() {
        let (path, folder) = folder();
        let names = [("file", Kind::File), ("folders", Kind::Folders)];
        let look = || examine(folder.as_fd(), &names);
        // Whatever the umask.
        let close = |name: &str| {
            fs::set_permissions(path.path().join(name), Permissions::from_mode(0o700)).unwrap();
        };
        look().unwrap();
        write(path.path().join("file"), "");
        make_folder(make_folder(&folder, "folders").unwrap(), "00").unwrap();
        close("folders/00");
        close("folders");
        look().unwrap();
        symlink("/etc", path.path().join("folders/01")).unwrap();
        assert!(reason(look()).starts_with("folders/01 is a symbolic link"));
        fs::remove_dir_all(path.path().join("folders")).unwrap();
        make_folder(&folder, "folders").unwrap();
        look().unwrap();
        fs::hard_link(path.path().join("file"), path.path().join("other")).unwrap();
        assert!(reason(look()).starts_with("file has 2 hard links"));
    }
}
