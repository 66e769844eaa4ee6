//! Holds on small partitions, whose blocks share buffers.

use std::time::Instant;

use super::*;
use crate::engine::HandleId;
use crate::engine::Manner;

/// The file's number, and its bytes.
type Small = (u64, Vec<u8>);

fn key(ino: u64) -> FileKey {
    FileKey { ino, ..KEY }
}

/// Files of `bytes` bytes each that nobody has open any more, in slots.
fn smalls(rig: &Rig, count: u64, bytes: u64) -> Vec<(Small, MemoryFile)> {
    (0..count)
        .map(|number| {
            let ino = 100 + number;
            let content: Vec<u8> = pattern(bytes + number)[number as usize..].to_vec();
            let file = MemoryFile::new(&rig.folder);
            file.write_at(0, &content).unwrap();
            let reopened = file.reopen(true);
            let open = || Ok(Arc::new(reopened) as _);
            let handle = rig.engine.open(key(ino), false, true, open).unwrap();
            assert!(rig.read(handle, 0, bytes) == content);
            rig.close(handle).unwrap();
            rig.engine.release(handle);
            ((ino, content), file)
        })
        .collect()
}

fn reopen(rig: &Rig, ino: u64, file: &MemoryFile) -> HandleId {
    let file = file.reopen(true);
    rig.engine.open(key(ino), false, true, || Ok(Arc::new(file))).unwrap()
}

fn scan(rig: &Rig, ino: u64) {
    let other = rig.other(ino, &pattern(80 * BLOCK));
    for block in 0..80 {
        assert_eq!(rig.read(other, block * BLOCK, 100).len(), 100);
    }
    rig.engine.release(other);
}

/// A reader has its answer a moment before it gives its claim back.
fn assert_available(rig: &Rig, buffers: u64) {
    let until = Instant::now() + Duration::from_secs(20);
    while rig.engine.pool().available != buffers && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(rig.engine.pool().available, buffers);
}

#[test]
fn a_held_slot_keeps_its_tray() {
    let rig = Rig::with_small(24, &[]);
    let files = smalls(&rig, 24 * 16, 3000);
    assert_eq!(rig.engine.pool().trays, 24, "sixteen pages each");
    let ((ino, content), file) = &files[0];
    let handle = reopen(&rig, *ino, file);
    let mut keep = rig.engine.hold_now(handle, 0..3000, Access::Keep).unwrap();
    assert_available(&rig, 23); // one tray is bound by one slot of it
    // Oldest of all, and yet others go.
    scan(&rig, 9);
    assert!(rig.engine.pool().trays < 24);
    let reads = rig.engine.device_stats().reads;
    let view = rig.engine.hold_now(handle, 0..3000, Access::Read).unwrap();
    assert!(bytes_of(&view)[..3000] == content[..]);
    assert_eq!(rig.engine.device_stats().reads, reads, "nothing was read again");
    drop(view);
    keep.release_after(true);
    drop(keep);
    assert_eq!(rig.engine.info(key(*ino)).unwrap().resident, 0);
    assert_available(&rig, 24);
}

#[test]
fn what_is_kept_in_a_slot_may_outgrow_it_but_not_what_is_viewed() {
    let rig = Rig::with_small(24, &[]);
    let files = smalls(&rig, 2, 3000);
    let ((ino, content), file) = &files[0];
    let handle = reopen(&rig, *ino, file);
    let keep = rig.engine.hold_now(handle, 0..3000, Access::Keep).unwrap();
    let view = rig.engine.hold_now(handle, 0..3000, Access::Read).unwrap();
    let written = rig.write(handle, 9000, b"more");
    assert!(
        written.recv_timeout(AWHILE).is_err(),
        "its bytes cannot move while somebody sees them"
    );
    assert!(bytes_of(&view)[..3000] == content[..]);
    drop(view);
    assert_eq!(written.recv().unwrap(), Ok(4));
    let view = rig.engine.hold_now(handle, 0..9004, Access::Read).unwrap();
    let bytes = bytes_of(&view);
    assert!(bytes[..3000] == content[..] && bytes[9000..9004] == *b"more");
    drop((view, keep));
    assert_available(&rig, 23); // one is dirty now
}

#[test]
fn filling_more_than_the_slot_takes_a_buffer() {
    let rig = Rig::with_small(24, &[]);
    let files = smalls(&rig, 2, 3000);
    let ((ino, _), file) = &files[0];
    let handle = reopen(&rig, *ino, file);
    let lease = rig.engine.hold_now(handle, 0..3000, Access::Read).unwrap();
    let (sender, receiver) = mpsc::channel();
    let reply = Box::new(move |hold| sender.send(hold).unwrap());
    rig.engine.hold(handle, 0..3 * BLOCK, Access::Fill, reply);
    assert!(receiver.recv_timeout(AWHILE).is_err(), "somebody sees the bytes that have to move");
    drop(lease);
    let mut hold: Hold = receiver.recv().unwrap().unwrap();
    hold.chunks_mut().for_each(|chunk| chunk.fill(5));
    drop(hold);
    assert!(rig.read(handle, 0, 3 * BLOCK) == vec![5; 3 * BLOCK as usize]);
    rig.close(handle).unwrap();
    assert!(file.bytes() == vec![5; 3 * BLOCK as usize]);
}

#[test]
fn lending_empties_trays() {
    let rig = Rig::with_small(24, &[]);
    let files = smalls(&rig, 24 * 16, 3000);
    assert_eq!(rig.engine.pool().trays, 24);
    let pool = rig.engine.buffer_pool();
    let lent = pool.allocate_all();
    assert_eq!((lent.len(), rig.engine.pool().reserved), (24 - 17, 24 - 17));
    assert!(rig.engine.pool().trays <= 17);
    for ((ino, content), file) in &files {
        let handle = reopen(&rig, *ino, file);
        assert!(rig.read(handle, 0, 3000) == *content);
        rig.engine.release(handle);
    }
    assert!(rig.engine.pool().trays <= 17, "what is lent is nobody's tray");
    drop(lent);
    assert_available(&rig, 24);
}

/// Writes a whole block, from an intake if one can be had.
fn write_block(rig: &Rig, handle: HandleId, offset: u64, fill: u8) {
    let Some(mut intake) = rig.engine.intake() else {
        let written = rig.write(handle, offset, &[fill; BLOCK as usize]);
        return assert_eq!(written.recv().unwrap(), Ok(BLOCK as usize));
    };
    intake.fill(fill);
    let (sender, receiver) = mpsc::channel();
    let reply = Box::new(move |outcome| sender.send(outcome).unwrap());
    let length = intake.len();
    let mut next = rig.engine.write_from(handle, offset, intake, length, Manner::default(), reply);
    // Whose memory that was must not see it.
    next.fill(0xEE);
    rig.engine.return_intake(next);
    assert_eq!(receiver.recv().unwrap(), Ok(length));
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    /// A number below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// One of several clients of an engine whose pool is too small for all of them. Each has files of its own,
/// and knows what they hold.
struct Client<'a> {
    rig: &'a Rig,
    dice: Dice,
    files: Vec<(Small, MemoryFile)>,
}

impl Client<'_> {
    fn step(&mut self) {
        let at = self.dice.below(self.files.len());
        let ((ino, content), file) = &mut self.files[at];
        let handle = reopen(self.rig, *ino, file);
        let fill = self.dice.below(256) as u8;
        match self.dice.below(7) {
            0 => {
                let offset = self.dice.below(content.len());
                let length = 1 + self.dice.below(40_000);
                let written = self.rig.write(handle, offset as u64, &vec![fill; length]);
                assert_eq!(written.recv().unwrap(), Ok(length));
                content.resize(content.len().max(offset + length), 0);
                content[offset..offset + length].fill(fill);
            }
            1 | 2 => {
                let read = self.rig.read(handle, 0, 1 << 20);
                assert!(read == *content, "file {ino}");
            }
            6 => {
                let block = self.dice.below(2);
                let bytes = block * BLOCK as usize..(block + 1) * BLOCK as usize;
                write_block(self.rig, handle, bytes.start as u64, fill);
                content.resize(content.len().max(bytes.end), 0);
                content[bytes].fill(fill);
            }
            which => {
                let blocks = content.len().div_ceil(BLOCK as usize);
                let budget = &self.rig.engine.budget;
                let Ok(tokens) = budget.take(blocks, 0) else {
                    return self.rig.engine.release(handle);
                };
                let access = [Access::Keep, Access::Read, Access::Update][which - 3];
                let bytes = 0..content.len() as u64;
                let mut hold = self.rig.engine.hold_now(handle, bytes.clone(), access).unwrap();
                if access == Access::Read {
                    assert!(bytes_of(&hold)[..content.len()] == content[..], "file {ino}");
                }
                if access == Access::Update {
                    hold.chunks_mut().for_each(|chunk| chunk.fill(fill));
                    content.fill(fill);
                }
                if access == Access::Keep {
                    let end = bytes.end;
                    assert_eq!(
                        self.rig.write(handle, end, &[fill; 5000]).recv().unwrap(),
                        Ok(5000)
                    );
                    content.extend([fill; 5000]);
                }
                hold.release_after(self.dice.below(2) == 0);
                drop((hold, tokens));
            }
        }
        if content.len() > 2 * BLOCK as usize {
            let (sender, receiver) = mpsc::channel();
            let reply = Box::new(move |outcome| sender.send(outcome).unwrap());
            self.rig.engine.truncate(handle, 1000, reply);
            receiver.recv().unwrap().unwrap();
            content.truncate(1000);
        }
        if self.dice.below(2) == 0 {
            self.rig.close(handle).unwrap();
        }
        self.rig.engine.release(handle);
    }
}

#[test]
fn holders_borrowers_and_clients_share_a_pool_that_is_too_small() {
    let seed = std::env::var("SWAPFS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| std::process::id().into());
    println!("SWAPFS_SEED={seed}");
    let rig = Rig::with_small(24, &[]);
    let mut files = smalls(&rig, 240, 20_000);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let files = files.split_off(files.len() - 80);
            let dice = Dice(seed ^ number << 40);
            let mut client = Client { rig: &rig, dice, files };
            scope.spawn(move || (0..1500).for_each(|_| client.step()));
        }
        scope.spawn(|| {
            let mut dice = Dice(!seed);
            let pool = rig.engine.buffer_pool();
            for _ in 0..300 {
                let mut lent = pool.allocate(1 + dice.below(4)).unwrap_or_default();
                lent.iter_mut().for_each(|buffer| buffer.fill(9));
                std::thread::yield_now();
                assert!(lent.iter().all(|buffer| buffer.iter().all(|byte| *byte == 9)));
            }
        });
        scope.spawn(|| (0..4).for_each(|number| scan(&rig, 9000 + number)));
    });
    rig.engine.request_all(Request::Release);
    while rig.engine.inflight() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_available(&rig, 24);
    let pool = rig.engine.pool();
    assert_eq!((pool.available, pool.trays, pool.reserved, pool.dirty), (24, 0, 0, 0));
}
