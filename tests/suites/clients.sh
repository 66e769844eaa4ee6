#!/usr/bin/env bash
# Programs as users write them, on a pool far smaller than what they move: plain files, O_DIRECT, numpy memmaps, ranks, sqlite.
SUITE_SECONDS=300
source "$(dirname "$0")/lib.sh"

python3 -c 'import numpy' || fail "numpy is not installed"
mount_swap pool_size=64m
for program in "$repo"/tests/suites/clients/test_*.py; do
    SWAPFS_TEST_DIR=$mnt PYTHONDONTWRITEBYTECODE=1 python3 "$program" -b 2>&1 | tail -n 3 | paste -sd ' ' |
        sed "s/^-* */$(basename "$program" .py): /"
done
umount_swap
passed "five programs"
