//! What a record and a file mean together. Pure; the page `MODEL.md` beside this says why.

use super::session::{Crash, Fall};
use super::stamp::Stamp;
use super::table::{ACTIVE, Header, TIMED};

/// So long after the daemon was last seen alive a power cut may have come, in nanoseconds, where nobody knows when the
/// machine was started again: what the kernel has in memory goes to the device within 30 s.
pub(super) const CUT_DOUBT_NS: i64 = 60_000_000_000;

/// Who changed the file last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// We did, or nobody since it was recorded: the record holds.
    Ours,
    /// We did, and the record may be older or newer than the file: what does not match is torn, not damaged.
    Uncertain,
    /// Others did: only what they have provably not replaced is still judged by the record.
    Others,
}

/// What is known of the sessions that a record was written in.
pub(super) trait Past {
    /// The session of this number, when it did not end well.
    fn crash(&self, number: u32) -> Option<Crash>;
    /// The number of the session that is now.
    fn number(&self) -> u32;
    /// Whether both times are of one session that ended well, or of the one that is now.
    fn had_it(&self, modified_ns: i64, changed_ns: i64) -> bool;
    /// When the daemon that had the folder last was alive.
    fn alive_ns(&self) -> i64;
}

/// The crash that a record is to be judged by.
fn crash_of(header: &Header, past: &impl Past) -> Option<Crash> {
    let known = past.crash(header.session);
    // Written to and never settled, by a session that nobody remembers.
    let forgotten = known.is_none() && header.has(ACTIVE) && header.session != past.number();
    known.or_else(|| forgotten.then(|| Crash::unknown(header.session, past.alive_ns())))
}

/// Judges a file, as it is now, by its record.
pub(super) fn judge(header: &Header, stamp: Stamp, past: &impl Past) -> Meaning {
    let crash = crash_of(header, past);
    let is_cut = crash.is_some_and(|crash| crash.fall == Fall::PowerCut);
    let timed = header.has(TIMED) && header.next == stamp.modified_ns.cast_unsigned();
    if header.size == stamp.size && (header.modified_ns == stamp.modified_ns || timed) {
        return if is_cut { Meaning::Uncertain } else { Meaning::Ours };
    }
    // Writes and changes of shape set times that are later than whatever was recorded before.
    let is_later = stamp.modified_ns >= header.changed_ns;
    if is_later && past.had_it(stamp.modified_ns, stamp.changed_ns) {
        return Meaning::Ours;
    }
    match crash {
        Some(crash) if crash.fall == Fall::Killed && is_later => {
            let doubt = if header.has(ACTIVE) { crash.doubt_ns } else { 0 };
            match stamp.modified_ns <= crash.alive_ns.saturating_add(doubt) {
                true => Meaning::Ours,
                false => Meaning::Others,
            }
        }
        // The file may have lost its last changes, its times with them.
        Some(crash) if crash.fall == Fall::PowerCut => {
            let end = crash.boot_ns.unwrap_or(crash.alive_ns.saturating_add(CUT_DOUBT_NS));
            let only_named = (crash.start_ns..=end).contains(&stamp.modified_ns);
            match stamp.changed_ns <= end || only_named {
                true => Meaning::Uncertain,
                false => Meaning::Others,
            }
        }
        _ => Meaning::Others,
    }
}
