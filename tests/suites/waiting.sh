#!/usr/bin/env bash
# user.swap.wait and poll() from Python: on a disk that is frozen meanwhile, on a read-only mount, as another user, with signals.
SUITE_SECONDS=180
source "$(dirname "$0")/lib.sh"

disk_swap 128m
chmod 755 "$work" "$swap"
run() { SWAPFS_TEST_DIR=$mnt SWAPFS_TEST_DISK=$disk PYTHONDONTWRITEBYTECODE=1 python3 "$repo/tests/suites/waiting.py" "$1"; }

mount_swap pool_size=64m open_swap_in=none allow_other
run READ_WRITE
chmod 644 "$mnt/partition"
remount_swap ro pool_size=64m open_swap_in=all allow_other
run READ_ONLY
umount_swap
passed "waited, polled, interrupted"
