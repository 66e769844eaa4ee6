//! What DeepSpeed's tests leave out: any size and alignment, neighbours, shortages.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};

use swapfs::aio::Engine;
use swapfs::deepspeed::{Handle, HandleOptions};
use swapfs::error::Errno;

use super::{DEEPSPEED, KIB, Random, both_engines, folder, tensor};

/// A file against a vector, by every kind of call.
fn random_operations(random: &mut Random, handle: &Handle, path: &Path, rounds: usize) {
    const BYTES: usize = 200_000;
    let mut model: Vec<u8> = vec![];
    let _ = std::fs::remove_file(path);
    File::create(path).unwrap();
    for round in 0..rounds {
        let (offset, length) = (random.uneven(BYTES), random.uneven(BYTES / 2));
        let end = offset + length;
        let bytes = random.bytes(length);
        let (kind, at) = (random.below(6), offset as u64);
        println!("{round}: {kind} {offset}+{length}");
        let mut memory = handle.new_cpu_locked_tensor(length + 700).unwrap();
        let skip = random.uneven(700);
        memory[skip..skip + length].copy_from_slice(&bytes);
        match kind {
            0 => handle.sync_pwrite(&bytes, path, at).unwrap(),
            1 => handle.pwrite(memory.narrow(skip..skip + length), path, true, at).unwrap(),
            2 => {
                let part = memory.split_at(skip).1.split_at(length).0;
                let finished = handle.async_pwrite(part, path, at).unwrap().finish();
                assert_eq!(finished.result, Ok(length as u64));
                assert_eq!(*finished.buffer, *bytes);
            }
            _ => {
                memory.fill(9);
                let mut plain = vec![9; length];
                let results = [
                    handle.sync_pread(&mut plain, path, at),
                    handle.sync_pread(memory.narrow(skip..skip + length), path, at),
                ];
                for result in results {
                    assert_eq!(result.is_ok(), end <= model.len(), "{result:?}");
                }
                if end <= model.len() {
                    assert_eq!(plain, model[offset..end]);
                    assert_eq!(memory[skip..skip + length], model[offset..end]);
                    assert!(memory[..skip].iter().all(|byte| *byte == 9));
                    assert!(memory[skip + length..].iter().all(|byte| *byte == 9));
                }
                continue;
            }
        }
        if length > 0 {
            model.resize(model.len().max(end), 0);
            model[offset..end].copy_from_slice(&bytes);
        }
        assert!(std::fs::read(path).unwrap() == model, "round {round}");
    }
}

#[test]
fn any_size_and_any_alignment() {
    let mut random = Random::seeded();
    let folder = folder();
    for (path, engine) in [
        (folder.path().join("random"), Engine::Auto),
        (folder.path().join("random"), Engine::Threads),
        (PathBuf::from(format!("/dev/shm/handle-{}", std::process::id())), Engine::Auto),
    ] {
        for (block_size, threads) in [(KIB, 2), (5000, 3), (1 << 20, 1)] {
            let options = HandleOptions {
                block_size,
                intra_op_parallelism: threads,
                overlap_events: threads == 3,
                ..DEEPSPEED
            };
            let handle = Handle::with_engine(options, engine).unwrap();
            random_operations(&mut random, &handle, &path, 60);
        }
        std::fs::remove_file(path).unwrap();
    }
}

/// Neighbours that share pages and blocks, all pending at once.
#[test]
fn pending_neighbours_do_not_touch_each_other() {
    let mut random = Random::seeded();
    let folder = folder();
    let path = folder.path().join("file");
    let handle = Handle::new(DEEPSPEED).unwrap();
    for round in 0..30 {
        let bytes = random.bytes(300_000);
        let mut cuts: Vec<usize> = (0..60).map(|_| random.uneven(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let parts: Vec<_> = cuts.windows(2).map(|cut| (cut[0], cut[1])).collect();
        let mut order = parts.clone();
        order.sort_by_cached_key(|_| random.next());
        std::thread::scope(|scope| {
            for part in order.chunks(16) {
                let (handle, path, bytes) = (&handle, &path, &bytes);
                scope.spawn(move || {
                    for &(start, end) in part {
                        let part = &bytes[start..end];
                        let write = if start % 3 == 0 {
                            handle
                                .async_pwrite(part.to_vec(), path, start as u64)
                                .map(|_| ())
                                .map_err(|refused| *refused.error)
                        } else {
                            handle
                                .async_pwrite(tensor(handle, part), path, start as u64)
                                .map(|_| ())
                                .map_err(|refused| *refused.error)
                        };
                        write.unwrap();
                    }
                });
            }
        });
        assert_eq!(handle.wait(), Ok(parts.len()));
        assert!(std::fs::read(&path).unwrap() == bytes, "round {round}");
    }
}

#[test]
fn beyond_4_gib() {
    let folder = folder();
    let path = folder.path().join("sparse");
    let handle =
        Handle::new(HandleOptions { intra_op_parallelism: 3, ..HandleOptions::default() }).unwrap();
    let bytes = Random::seeded().bytes(3 << 20);
    for offset in [(5 << 30) + 4096, (6 << 30) + 77_u64] {
        let write = handle.async_pwrite(tensor(&handle, &bytes), &path, offset).unwrap();
        assert_eq!(handle.wait(), Ok(1));
        let read = handle.async_pread(write.into_buffer(), &path, offset).unwrap();
        assert_eq!(*read.finish().buffer, *bytes);
        assert_eq!(handle.wait(), Ok(1));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), offset + (3 << 20));
    }
    let mut hole = [1; 1000];
    handle.sync_pread(&mut hole, &path, (4 << 30) - 500).unwrap();
    assert_eq!(hole, [0; 1000]);
}

/// A file system with 1 MiB; `None` without the right to mount one.
fn small_tmpfs(folder: &Path) -> Option<()> {
    let target = CString::new(folder.to_str().unwrap()).unwrap();
    let mounted = nix::mount::mount(
        Some("tmpfs"),
        target.as_c_str(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=1m"),
    );
    if let Err(error) = &mounted {
        eprintln!("not tested, no tmpfs: {error}");
    }
    mounted.ok()
}

#[test]
fn no_space_is_reported() {
    let folder = folder();
    if small_tmpfs(folder.path()).is_none() {
        return;
    }
    let path = folder.path().join("file");
    let options = HandleOptions { block_size: 64 * KIB, ..DEEPSPEED };
    let outcome = std::panic::catch_unwind(|| {
        both_engines(|engine| {
            let handle = Handle::with_engine(options, engine).unwrap();
            let mut tensor = handle.new_cpu_locked_tensor(3 << 20).unwrap();
            let error = handle.sync_pwrite(&mut tensor, &path, 0).unwrap_err();
            println!("{error}");
            assert_eq!(error.errno(), Errno::ENOSPC);
            assert!(error.moved <= 1 << 20, "{error}");
            let write = handle.async_pwrite(vec![1; 3 << 20], &path, 0).unwrap();
            let error = handle.wait().unwrap_err();
            assert_eq!(error.failed[0].errno(), Errno::ENOSPC);
            assert_eq!(write.into_buffer().len(), 3 << 20);
            // Unaligned edges are written at once, so they fail at once.
            let refused = handle.async_pwrite(vec![1; 3 << 20], &path, 5).unwrap_err();
            assert_eq!(refused.error.errno(), Errno::ENOSPC);
            std::fs::remove_file(&path).unwrap();
            // The handle works on.
            // A ring lets go of the removed file, and of its space, a moment later.
            let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while let Err(error) = handle.pwrite(&[4; 5000], &path, true, 0) {
                assert!(std::time::Instant::now() < end, "{error}");
            }
            std::fs::remove_file(&path).unwrap();
        });
    });
    nix::mount::umount(folder.path()).unwrap();
    outcome.unwrap();
}

#[test]
fn settings_show_in_the_statistics() {
    let folder = folder();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let stats = |single_submit, overlap_events, threads| {
        let options = HandleOptions {
            block_size: 16 * KIB,
            queue_depth: 8,
            single_submit,
            overlap_events,
            intra_op_parallelism: threads,
        };
        let handle = Handle::new(options).unwrap();
        let mut tensor = handle.new_cpu_locked_tensor(1 << 20).unwrap();
        handle.sync_pread(&mut tensor, &path, 0).unwrap();
        assert!(tensor.iter().all(|byte| *byte == 1));
        let stats = handle.stats();
        println!("{stats:?}");
        assert_eq!((stats.reads, stats.read_bytes, stats.failed), (64, 1 << 20, 0));
        let io_uring = handle.engine_refusal().is_none();
        (io_uring, stats)
    };
    let (io_uring, batched) = stats(false, false, 1);
    if !io_uring {
        eprintln!("not tested, no io_uring");
        return;
    }
    // The thread may find the first batch while it is still being queued.
    assert!((8..=10).contains(&batched.submit_calls), "{batched:?}");
    assert_eq!(batched.batch_max, 8);
    let (_, single) = stats(true, false, 1);
    assert_eq!((single.submit_calls, single.batch_max), (64, 1));
    let (_, overlapped) = stats(false, true, 1);
    assert_eq!(overlapped.inflight_max, 8);
    assert!(overlapped.submit_calls >= 8, "{overlapped:?}");
    // Two rings share the work.
    let (_, two) = stats(false, false, 2);
    assert!((8..=20).contains(&two.submit_calls), "{two:?}");
}

#[test]
fn bounce_buffers_are_waited_for() {
    let folder = folder();
    let bytes = Random::seeded().bytes(100_003);
    both_engines(|engine| {
        // Four buffers of 4 KiB, for 40 operations of 100 pieces each.
        let handle = Handle::with_engine(DEEPSPEED, engine).unwrap();
        let path = |index: usize| folder.path().join(format!("file{index}"));
        let writes: Vec<_> = (0..40)
            .map(|index| handle.async_pwrite(bytes.clone(), path(index), 0).unwrap())
            .collect();
        // A synchronous one takes its turn among them.
        handle.sync_pwrite(&bytes, path(40), 0).unwrap();
        assert_eq!(handle.wait(), Ok(40));
        drop(writes);
        let reads: Vec<_> = (0..41)
            .map(|index| handle.async_pread(vec![0; 100_003], path(index), 0).unwrap())
            .collect();
        let mut again = vec![0; 100_003];
        handle.sync_pread(&mut again, path(40), 0).unwrap();
        assert_eq!(again, bytes);
        for read in reads {
            assert_eq!(read.finish().buffer, bytes);
        }
        assert_eq!(handle.wait(), Ok(41));
    });
}

#[test]
fn dropping_a_handle_waits() {
    let folder = folder();
    let bytes = Random::seeded().bytes(1 << 20);
    let handle = Handle::new(DEEPSPEED).unwrap();
    let writes: Vec<_> = (0..4)
        .map(|index| {
            let path = folder.path().join(format!("file{index}"));
            handle.async_pwrite(tensor(&handle, &bytes), path, index).unwrap()
        })
        .collect();
    drop(handle);
    for (index, write) in writes.into_iter().enumerate() {
        assert!(write.is_finished());
        let path = folder.path().join(format!("file{index}"));
        assert_eq!(std::fs::read(path).unwrap()[index..], bytes);
        assert_eq!(*write.into_buffer(), *bytes);
    }
}
