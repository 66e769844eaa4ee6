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
    /// Others did: only what they have provably not replaced is still decided by the record.
    Others,
}

/// What size and times of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) meaning: Meaning,
    /// Others may have had the file since: marks of damage are to be compared with the bytes that they speak of.
    pub(super) is_touched: bool,
    /// No write of ours has reached it since it was recorded: it has the time from then, whose clock tells every write.
    pub(super) is_unwritten: bool,
}

/// What is known of the sessions that a record was written in.
pub(super) trait Past {
    /// The session of this number, when it did not end well.
    fn crash(&self, number: u32) -> Option<Crash>;
    /// The first session after this one that a power cut ended.
    fn cut_after(&self, number: u32) -> Option<Crash>;
    /// The number of the session that is now.
    fn number(&self) -> u32;
    /// Whether both times are of one session that ended well, or of the one that is now.
    fn had_it(&self, modified_ns: i64, changed_ns: i64) -> bool;
    /// When the daemon that had the folder last was alive.
    fn alive_ns(&self) -> i64;
}

/// The crash that a record is to be decided by.
fn crash_of(header: &Header, past: &impl Past) -> Option<Crash> {
    let known = past.crash(header.session);
    // Written to and never settled, by a session that nobody remembers.
    let forgotten = known.is_none() && header.has(ACTIVE) && header.session != past.number();
    let unknown = || forgotten.then(|| Crash::unknown(header.session, past.alive_ns()));
    // What a later session had written may have come to the device without its record, and without new times.
    known.or_else(unknown).or_else(|| past.cut_after(header.session))
}

/// Judges a file, as it is now, by its record.
pub(super) fn decide(header: &Header, stamp: Stamp, past: &impl Past) -> Decision {
    let crash = crash_of(header, past);
    let timed = header.has(TIMED) && header.next == stamp.modified_ns.cast_unsigned();
    let is_as_recorded = header.size == stamp.size && header.modified_ns == stamp.modified_ns;
    // What a power cut left may have new bytes and old times; what was about to get a time may have got it after a write.
    let tells = |crash: Crash| crash.fall == Fall::Killed && crash.fine_times;
    let is_unwritten = is_as_recorded && !header.has(TIMED) && crash.is_some_and(tells);
    let is_as_expected = is_as_recorded || (header.size == stamp.size && timed);
    let is_touched = match crash {
        Some(crash) if header.has(ACTIVE) => stamp.changed_ns > last_change(&crash),
        _ => stamp.changed_ns != header.changed_ns,
    };
    let meaning = meaning(header, stamp, past, crash, is_as_expected);
    Decision { meaning, is_touched, is_unwritten }
}

/// A session that crashed has changed nothing after this time.
fn last_change(crash: &Crash) -> i64 {
    match crash.fall {
        Fall::Killed => crash.alive_ns.saturating_add(crash.doubt_ns),
        Fall::PowerCut => crash.boot_ns.unwrap_or(crash.alive_ns.saturating_add(CUT_DOUBT_NS)),
    }
}

fn meaning(
    header: &Header, stamp: Stamp, past: &impl Past, crash: Option<Crash>, is_as_expected: bool,
) -> Meaning {
    if is_as_expected {
        let is_cut = crash.is_some_and(|crash| crash.fall == Fall::PowerCut);
        return if is_cut { Meaning::Uncertain } else { Meaning::Ours };
    }
    // Writes and changes of shape set times that are later than whatever was recorded before.
    let is_later = stamp.modified_ns >= header.changed_ns;
    if is_later && past.had_it(stamp.modified_ns, stamp.changed_ns) {
        return Meaning::Ours;
    }
    let Some(crash) = crash else { return Meaning::Others };
    let is_within = |end: i64| (crash.start_ns..=end).contains(&stamp.modified_ns);
    match crash.fall {
        Fall::Killed => {
            let end = if header.has(ACTIVE) { last_change(&crash) } else { crash.alive_ns };
            if is_later && is_within(end) { Meaning::Ours } else { Meaning::Others }
        }
        // The file may have lost its last changes, its times with them.
        Fall::PowerCut => {
            let end = last_change(&crash);
            let is_ours = stamp.changed_ns <= end || is_within(end);
            if is_ours { Meaning::Uncertain } else { Meaning::Others }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions from 100 to 200 and 300 to 400 that ended well, the one of number 3 from 500 on that did not, and
    /// one since 900.
    struct Sessions(Option<Crash>);

    impl Past for Sessions {
        fn crash(&self, number: u32) -> Option<Crash> {
            self.0.filter(|crash| crash.number == number)
        }

        fn cut_after(&self, number: u32) -> Option<Crash> {
            self.0.filter(|crash| crash.number > number && crash.fall == Fall::PowerCut)
        }

        fn number(&self) -> u32 {
            4
        }

        fn had_it(&self, modified_ns: i64, changed_ns: i64) -> bool {
            let both = |(from, to): (i64, i64)| {
                (from..=to).contains(&modified_ns) && (from..=to).contains(&changed_ns)
            };
            [(100, 200), (300, 400), (900, i64::MAX)].into_iter().any(both)
        }

        fn alive_ns(&self) -> i64 {
            600
        }
    }

    fn crash(fall: Fall, boot_ns: Option<i64>) -> Sessions {
        let (number, block_size, fine_times) = (3, 1 << 20, true);
        let (start_ns, alive_ns, doubt_ns) = (500, 600, 10);
        Sessions(Some(Crash {
            number,
            fall,
            start_ns,
            alive_ns,
            doubt_ns,
            boot_ns,
            block_size,
            fine_times,
        }))
    }

    fn stamp(size: u64, modified_ns: i64, changed_ns: i64) -> Stamp {
        Stamp { size, modified_ns, changed_ns, links: 1 }
    }

    fn header(session: u32, flags: u32, of: Stamp) -> Header {
        let mut header = Header { session, flags, ..Header::default() };
        of.store(&mut header);
        header
    }

    #[test]
    fn after_a_good_end_changes_between_sessions_are_somebody_elses() {
        let known = header(1, 0, stamp(10, 150, 160));
        let decided = |now| decide(&known, now, &Sessions(None));
        let meaning = |now| decided(now).meaning;
        assert_eq!(meaning(stamp(10, 150, 160)), Meaning::Ours);
        // A name or a mode, at any time.
        for changed_ns in [190, 250, 350, 1000] {
            assert_eq!(meaning(stamp(10, 150, changed_ns)), Meaning::Ours);
            assert!(decided(stamp(10, 150, changed_ns)).is_touched);
        }
        // Changed beneath a mount: to be found by its sum.
        assert_eq!(meaning(stamp(10, 350, 360)), Meaning::Ours);
        assert_eq!(meaning(stamp(10, 950, 950)), Meaning::Ours);
        // Written between two sessions, and the same with a mode set later; restored with an old time, or with one that
        // lies in a session.
        for now in
            [(250, 250), (250, 950), (7, 250), (120, 950), (120, 190), (350, 450), (350, 950)]
        {
            assert_eq!(meaning(stamp(10, now.0, now.1)), Meaning::Others, "{now:?}");
        }
        assert_eq!(meaning(stamp(11, 150, 160)), Meaning::Others);
        let timed = Header { flags: ACTIVE | TIMED, next: 7, ..known };
        assert_eq!(decide(&timed, stamp(10, 7, 950), &Sessions(None)).meaning, Meaning::Uncertain);
    }

    #[test]
    fn after_a_kill_what_was_changed_while_the_daemon_was_alive_is_ours() {
        let past = crash(Fall::Killed, None);
        let active = |now| decide(&header(3, ACTIVE, stamp(10, 150, 160)), now, &past);
        let settled = |now| decide(&header(3, 0, stamp(10, 550, 560)), now, &past).meaning;
        for at in [500, 600, 610] {
            assert_eq!(active(stamp(99, at, at)).meaning, Meaning::Ours, "{at}");
        }
        // A mode since.
        assert_eq!(active(stamp(99, 600, 800)).meaning, Meaning::Ours);
        assert!(active(stamp(99, 600, 800)).is_touched && !active(stamp(99, 600, 600)).is_touched);
        // Written since; restored with an old time; restored with the recorded one.
        assert_eq!(active(stamp(10, 611, 611)).meaning, Meaning::Others);
        assert_eq!(active(stamp(10, 155, 800)).meaning, Meaning::Others);
        assert_eq!(active(stamp(10, 450, 800)).meaning, Meaning::Others);
        let restored = active(stamp(10, 150, 800));
        assert!(restored.is_touched && restored.is_unwritten, "{restored:?}");
        assert_eq!(settled(stamp(10, 600, 600)), Meaning::Ours);
        assert_eq!(settled(stamp(10, 605, 605)), Meaning::Others);
    }

    #[test]
    fn an_old_time_tells_that_nothing_was_written_where_every_write_gives_a_new_one() {
        let recorded = stamp(10, 150, 160);
        let unwritten = |past: &Sessions, flags, now| {
            let header = Header { next: 7, ..header(3, flags, recorded) };
            decide(&header, now, past).is_unwritten
        };
        let killed = crash(Fall::Killed, None);
        for now in [recorded, stamp(10, 150, 800)] {
            assert!(unwritten(&killed, ACTIVE, now));
            assert!(!unwritten(&crash(Fall::PowerCut, Some(700)), ACTIVE, now));
            let coarse = Sessions(killed.0.map(|crash| Crash { fine_times: false, ..crash }));
            assert!(!unwritten(&coarse, ACTIVE, now));
            // It may have got this time after a write.
            assert!(!unwritten(&killed, ACTIVE | TIMED, now));
        }
        for now in [stamp(10, 550, 550), stamp(11, 150, 160)] {
            assert!(!unwritten(&killed, ACTIVE, now));
        }
        assert!(!unwritten(&killed, ACTIVE | TIMED, stamp(10, 7, 550)));
    }

    #[test]
    fn a_power_cut_leaves_records_of_earlier_sessions_uncertain() {
        let unchanged = stamp(10, 150, 160);
        let decided =
            |session, past: &Sessions| decide(&header(session, 0, unchanged), unchanged, past);
        let cut = crash(Fall::PowerCut, Some(700));
        for (session, meaning) in [
            (0, Meaning::Uncertain),
            (1, Meaning::Uncertain),
            (2, Meaning::Uncertain),
            (3, Meaning::Uncertain),
            // Looked at since.
            (4, Meaning::Ours),
        ] {
            assert_eq!(decided(session, &cut).meaning, meaning, "{session}");
            let past = crash(Fall::Killed, None);
            assert_eq!(decided(session, &past).meaning, Meaning::Ours, "{session}, killed");
        }
        // What others wrote after the machine was started again is theirs.
        let theirs = decide(&header(1, 0, unchanged), stamp(10, 800, 800), &cut);
        assert_eq!(theirs.meaning, Meaning::Others);
    }

    #[test]
    fn after_a_power_cut_what_was_changed_before_the_machine_was_started_is_uncertain() {
        let past = crash(Fall::PowerCut, Some(700));
        let decided = |now| decide(&header(3, 0, stamp(10, 550, 560)), now, &past).meaning;
        for now in [(10, 550, 560), (10, 550, 800), (10, 690, 690), (10, 520, 520), (5, 20, 30)] {
            assert_eq!(decided(stamp(now.0, now.1, now.2)), Meaning::Uncertain, "{now:?}");
        }
        // A mode since then.
        assert_eq!(decided(stamp(10, 690, 800)), Meaning::Uncertain);
        assert_eq!(decided(stamp(10, 701, 701)), Meaning::Others);
        assert_eq!(decided(stamp(10, 7, 800)), Meaning::Others);
        // Written by a session that nobody remembers.
        let forgotten = header(2, ACTIVE, stamp(10, 150, 160));
        assert_eq!(decide(&forgotten, stamp(10, 150, 160), &past).meaning, Meaning::Uncertain);
    }
}
