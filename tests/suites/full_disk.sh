#!/usr/bin/env bash
# 1 GiB from eight processes at once onto a disk of 256 MiB: ENOSPC for the writers, and nothing that was accepted is lost.
SUITE_SECONDS=180
source "$(dirname "$0")/lib.sh"

run() { PYTHONDONTWRITEBYTECODE=1 python3 "$repo/tests/suites/full_disk.py" "$1" "${2:-$mnt}" "$work/record"; }

disk_swap 256m
mount_swap pool_size=64m
told=$(run fill)
run check
remount_swap pool_size=64m
run check
run halve
run refill
run check
umount_swap
run check "$swap"
passed "$told"
