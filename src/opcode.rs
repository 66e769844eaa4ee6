//! The kernel's FUSE opcodes: one row for each, with everything that depends on the opcode alone.
//!
//! Numbers as in the kernel's `include/uapi/linux/fuse.h`. Whoever needs an opcode by its number, its name in the
//! metrics, or its way through the daemon finds it here and nowhere else.

use crate::error::Errno;

/// Who answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `fuse::front`.
    Front,
    /// fuser, with its adapter.
    Fuser,
    /// Nobody: the request is refused with this error.
    Refused(Errno),
}

/// Who answers requests about partitions and folders, and who answers them about the control folder's files.
#[derive(Clone, Copy)]
enum Routes {
    /// The front answers both.
    Front,
    /// The front; but fuser's adapter keeps the handles of control files.
    FrontExceptControl,
    /// fuser answers both: the request is rare.
    Fuser,
    /// The request is refused with this error.
    Refused(Errno),
}

/// How long the front may take to handle a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speed {
    /// Asks the swap folder's filesystem for nothing that may take long.
    Quick,
    /// Calls the swap folder's filesystem where the request was received.
    Slow,
}

struct Row {
    opcode: Opcode,
    number: u32,
    name: &'static str,
    routes: Routes,
    speed: Speed,
}

/// Makes [`Opcode`] and [`ROWS`] from the same lines, so that neither can miss one.
macro_rules! opcodes {
    ($($(#[$doc:meta])* $opcode:ident = $number:literal $name:literal $routes:expr, $speed:ident;)*) => {
        /// What the kernel asks for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "they are the kernel's names")]
        pub enum Opcode {
            $($(#[$doc])* $opcode,)*
        }

        const ROWS: &[Row] = {
            use Speed::{Quick, Slow};
            use Routes::{Front, FrontExceptControl, Fuser, Refused};
            &[$(Row {
                opcode: Opcode::$opcode,
                number: $number,
                name: $name,
                routes: $routes,
                speed: $speed,
            },)*]
        };
    };
}

// Opcode, number, name in metrics and access log ("": counted as `other`), who answers, how long that takes.
opcodes! {
    Lookup = 1 "lookup" Front, Slow;
    Forget = 2 "forget" Front, Quick;
    GetAttr = 3 "getattr" Front, Quick;
    SetAttr = 4 "setattr" Front, Slow;
    ReadLink = 5 "readlink" Fuser, Slow;
    Symlink = 6 "symlink" Fuser, Slow;
    MkNod = 8 "mknod" Fuser, Slow;
    MkDir = 9 "mkdir" Fuser, Slow;
    Unlink = 10 "unlink" Front, Slow;
    RmDir = 11 "rmdir" Fuser, Slow;
    Rename = 12 "rename" Fuser, Slow;
    Link = 13 "link" Fuser, Slow;
    Open = 14 "open" FrontExceptControl, Slow;
    Read = 15 "read" FrontExceptControl, Quick;
    Write = 16 "write" Front, Quick;
    StatFs = 17 "statfs" Fuser, Slow;
    Release = 18 "release" FrontExceptControl, Slow;
    Fsync = 20 "fsync" FrontExceptControl, Slow;
    SetXattr = 21 "setxattr" Front, Slow;
    GetXattr = 22 "getxattr" Front, Quick;
    ListXattr = 23 "listxattr" Front, Slow;
    RemoveXattr = 24 "removexattr" Front, Slow;
    Flush = 25 "flush" FrontExceptControl, Slow;
    Init = 26 "" Fuser, Slow;
    OpenDir = 27 "opendir" Fuser, Slow;
    ReadDir = 28 "readdir" Fuser, Slow;
    ReleaseDir = 29 "releasedir" Fuser, Slow;
    FsyncDir = 30 "fsyncdir" Fuser, Slow;
    Create = 35 "create" Front, Slow;
    /// No request can be taken back; after this answer the kernel never asks again.
    Interrupt = 36 "" Refused(Errno::ENOSYS), Quick;
    Destroy = 38 "" Front, Slow;
    /// None are known, and fuser would believe the length that this one claims.
    Ioctl = 39 "" Refused(Errno::ENOTTY), Slow;
    /// After ENOSYS the kernel never asks again and calls every file ready. It has to: io_uring retries a buffered
    /// write 128 times while the file polls ready, and asks twice each time. Clients that wait for a status read
    /// `user.swap.wait`.
    Poll = 40 "poll" Refused(Errno::ENOSYS), Slow;
    BatchForget = 42 "forget_many" Front, Quick;
    Fallocate = 43 "fallocate" Fuser, Slow;
    ReadDirPlus = 44 "readdirplus" Fuser, Slow;
    Rename2 = 45 "rename2" Fuser, Slow;
    Lseek = 46 "lseek" Fuser, Slow;
    /// After ENOSYS the kernel never asks again: it copies by read and write, which go through the pool.
    CopyFileRange = 47 "copy_file_range" Refused(Errno::ENOSYS), Slow;
    TmpFile = 51 "tmpfile" Front, Slow;
    Statx = 52 "statx" Front, Quick;
    /// Any other number.
    Other = 0xffff_ffff "other" Fuser, Slow;
}

/// For each number below 64 the place of its row.
const PLACES: [u8; 64] = {
    let mut places = [Opcode::Other as u8; 64];
    let mut place = 0;
    while place < Opcode::Other as usize {
        places[ROWS[place].number as usize] = place as u8;
        place += 1;
    }
    places
};

impl Opcode {
    /// How many there are, [`Opcode::Other`] included. `opcode as usize` is less.
    pub const COUNT: usize = ROWS.len();

    /// The opcode with this number.
    #[must_use]
    pub const fn of(number: u32) -> Opcode {
        if number < 64 { ROWS[PLACES[number as usize] as usize].opcode } else { Opcode::Other }
    }

    /// The opcode at this place among all.
    #[must_use]
    pub const fn at(place: usize) -> Opcode {
        ROWS[place].opcode
    }

    const fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// The kernel's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.row().number
    }

    /// Its name in the metrics and in the access log; `None` when it is counted as [`Opcode::Other`].
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        let name = self.row().name;
        if name.is_empty() { None } else { Some(name) }
    }

    /// Who answers it, for a node of the control folder or for another one.
    #[must_use]
    pub const fn route(self, is_control: bool) -> Route {
        match self.row().routes {
            Routes::FrontExceptControl if is_control => Route::Fuser,
            Routes::Front | Routes::FrontExceptControl => Route::Front,
            Routes::Fuser => Route::Fuser,
            Routes::Refused(errno) => Route::Refused(errno),
        }
    }

    /// Returns true when handling it asks the swap folder's filesystem for nothing that may take long.
    #[must_use]
    pub const fn is_quick(self) -> bool {
        matches!(self.row().speed, Speed::Quick)
    }

    /// Returns true when its arguments are a `fuse_read_in`, which says how many bytes the answer may have.
    #[must_use]
    pub const fn has_answer_size(self) -> bool {
        matches!(self, Opcode::Read | Opcode::ReadDir | Opcode::ReadDirPlus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_means_its_row_and_unknown_ones_mean_other() {
        for (place, row) in ROWS.iter().enumerate() {
            assert_eq!((Opcode::of(row.number), row.opcode as usize), (row.opcode, place));
        }
        for number in [0, 7, 37, 62, 63, 64, 4096, u32::MAX] {
            assert_eq!(Opcode::of(number), Opcode::Other, "{number}");
        }
    }

    #[test]
    fn no_two_opcodes_share_a_number_or_a_name() {
        for (place, row) in ROWS.iter().enumerate() {
            let mut others = ROWS[..place].iter();
            let same = others.find(|other| {
                other.number == row.number || (other.name == row.name && !row.name.is_empty())
            });
            assert!(same.is_none(), "{:?}", row.opcode);
        }
    }
}
