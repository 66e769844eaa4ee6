//! A daemon that has one processor, as in a container with such a limit: nothing waits for a request that never comes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::bytes::open;
use crate::place::Mount;
use crate::requests::ask;
use crate::support::{KIB, MIB, is_pattern, pattern, write_pattern};

/// A mount whose daemon may use one processor.
fn alone(options: &str) -> Mount {
    std::thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let first = (0..CpuSet::MAX_CPU).find(|at| all.is_set(*at)).unwrap();
            let mut one = CpuSet::new();
            one.set(first);
            sched_setaffinity(None, &one).unwrap();
            Mount::new(options)
        });
        mounted.join().unwrap()
    })
}

/// Fails when it takes long, during which nobody else asks the mount for anything.
fn ends(case: &str, work: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    let thread = std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    if ended.recv_timeout(Duration::from_secs(20)).is_err() && !thread.is_finished() {
        panic!("{case} does not end");
    }
    thread.join().unwrap();
}

fn one_byte(file: &File, length: u64, at: u64) {
    file.set_len(length).unwrap();
    file.write_all_at(b"a", at).unwrap();
    let mut page = [0; 4096];
    let from = at / 4096 * 4096;
    file.read_exact_at(&mut page[..4096.min((length - from) as usize)], from).unwrap();
    assert_eq!(page[(at - from) as usize], b'a');
}

fn cold(path: &Path, length: u64) {
    ask(path, "release");
    is_pattern(path, length);
}

#[test]
fn small_reads_end_on_one_processor() {
    for options in ["pool_size=64m", "pool_size=16m,fuse_threads=2,checksum=crc32c"] {
        let mount = alone(options);
        for (number, (length, at)) in
            [(4096, 0), (100_000, 50_000), (4097, 4096), (MIB, 12_345)].into_iter().enumerate()
        {
            let path = mount.at(&format!("holes-{number}"));
            ends(&format!("{options}: a read of {length} bytes, one written"), move || {
                one_byte(&open(&path), length, at);
            });
        }
        for length in [100, 4096, 70_000, 3 * MIB + 1] {
            let path = mount.at(&format!("cold-{length}"));
            ends(&format!("{options}: cold reads of {length} bytes"), move || {
                write_pattern(&open(&path), length, 65_536);
                cold(&path, length);
            });
        }
    }
}

/// Several clients at once, each with reads of its own under way.
#[test]
fn random_reads_of_many_end_on_one_processor() {
    let mount = alone("pool_size=16m,open_swap_in=none");
    let path = mount.at("file");
    write_pattern(&open(&path), 32 * MIB, 65_536);
    ask(&path, "release");
    ends("random reads", move || {
        std::thread::scope(|scope| {
            for client in 0..6_u64 {
                let path = &path;
                scope.spawn(move || {
                    let file = File::open(path).unwrap();
                    let mut found = vec![0; 4096];
                    for step in 0..300_u64 {
                        let at = (client * 7919 + step * 104_729) % 8000 * 4 * KIB;
                        file.read_exact_at(&mut found, at).unwrap();
                        assert!(found == pattern(at, 4096), "at {at}");
                    }
                });
            }
        });
    });
}
