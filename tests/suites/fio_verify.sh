#!/usr/bin/env bash
# fio: unaligned writes of 512 B to 3 MiB with checksums, four jobs for each of four ioengines, on a pool of 64 MiB; then the same
# is verified once more after a remount, when every byte comes from the swap folder.
SUITE_SECONDS=300
source "$(dirname "$0")/lib.sh"
need fio

# run ENGINE [OPTION...]
run() {
    local engine=$1
    shift
    fio --name="$engine" --directory="$mnt" --ioengine="$engine" --numjobs=4 --size=96m --rw=randwrite \
        --bsrange=512-3m --bs_unaligned=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --group_reporting --output="$work/fio.log" "$@" 2>"$work/fio.err" ||
        { cat "$work"/fio.{err,log} >&2; fail "fio $engine $*"; }
}

# Overlapping writes of one job wait for each other: which of two in flight would be the last is nobody's promise.
every_engine() {
    run psync "$@"
    run libaio --direct=1 --iodepth=8 --serialize_overlap=1 "$@"
    run io_uring --iodepth=8 --serialize_overlap=1 "$@"
    run mmap "$@"
}

mount_swap pool_size=64m
every_engine --do_verify=1 --end_fsync=1
remount_swap pool_size=64m
every_engine --verify_only
umount_swap
passed "four engines, four jobs each, verified before and after a remount"
