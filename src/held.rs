//! Files that a command makes in a folder not its own, behind their first descriptors.
//!
//! Names in a folder are whoever's may write there: between two uses of one, somebody may have put a link to a file of the
//! user's in its place. So a folder is opened once, and a file made once; all that follows goes to the same inode by its
//! descriptor, in a benchmark's processes and in fio by `/proc`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use crate::trust;

/// A folder that names are made in.
#[derive(Debug, Clone)]
pub(crate) struct Folder(Arc<OwnedFd>);

impl Folder {
    /// Opens the folder that a file's path leads to; the rest is the file's name.
    pub(crate) fn of(path: &Path) -> io::Result<(Self, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        Ok((Self(Arc::new(opened)), name.to_owned()))
    }

    /// Creates a file, which must not be there yet, for its owner alone.
    fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*self.0, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }
}

/// A file that was made, or is to be read. While it is held it is not open: a mount sees no user of it. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    name: OsString,
    /// `None` when it is held no more.
    places: Arc<Mutex<Option<Places>>>,
}

/// The descriptors of the folder and of the file's inode.
#[derive(Debug)]
struct Places {
    folder: Folder,
    inode: OwnedFd,
}

impl Held {
    fn new(folder: Folder, name: OsString, file: File) -> io::Result<(File, Self)> {
        let places = Places { folder, inode: place_of(&file)? };
        Ok((file, Self { name, places: Arc::new(Mutex::new(Some(places))) }))
    }

    /// Creates a file that must not be there yet.
    pub(crate) fn create(folder: &Folder, name: &OsStr) -> io::Result<(File, Self)> {
        Self::new(folder.clone(), name.to_owned(), folder.create(name)?)
    }

    /// Takes one over that is there: a regular file of this user's alone, with one name.
    pub(crate) fn take_over(folder: &Folder, name: &OsStr) -> io::Result<(File, Self)> {
        let file = trust::open_file(&*folder.0, name, OFlags::RDWR)?;
        Self::new(folder.clone(), name.to_owned(), file)
    }

    /// A file that is there, whoever's it is, to be read.
    pub(crate) fn to_read(folder: Folder, name: OsString) -> io::Result<(File, Self)> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = openat(&*folder.0, &name, flags, Mode::empty())?.into();
        Self::new(folder, name, file)
    }

    /// Its name in the folder.
    pub(crate) fn name(&self) -> &Path {
        self.name.as_ref()
    }

    /// Leads to the inode, for this process and those that it starts, until [`Held::renew`].
    pub(crate) fn path(&self) -> PathBuf {
        match &*self.places.lock() {
            Some(places) => {
                format!("/proc/{}/fd/{}", std::process::id(), places.inode.as_raw_fd()).into()
            }
            None => self.name.clone().into(),
        }
    }

    /// Opens the file.
    pub(crate) fn open(&self, options: &std::fs::OpenOptions) -> io::Result<File> {
        // In a statement of its own: the path takes the same lock.
        let is_held = self.places.lock().is_some();
        if is_held { options.open(self.path()) } else { Err(gone()) }
    }

    /// A new file under the old name.
    pub(crate) fn renew(&self) -> io::Result<File> {
        let mut places = self.places.lock();
        let places = places.as_mut().ok_or_else(gone)?;
        places.remove(&self.name)?;
        let file = places.folder.create(&self.name)?;
        places.inode = place_of(&file)?;
        Ok(file)
    }

    /// Removes the name, when it leads to the file, and holds neither it nor its folder any more: a mount that they are on
    /// can go.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let places = self.places.lock().take();
        places.map_or(Ok(()), |places| places.remove(&self.name))
    }
}

impl Places {
    fn remove(&self, name: &OsStr) -> io::Result<()> {
        if trust::is_named(&*self.folder.0, name, &self.inode)? {
            unlinkat(&*self.folder.0, name, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// A descriptor of the same inode that does not have it open.
fn place_of(file: &File) -> io::Result<OwnedFd> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}
