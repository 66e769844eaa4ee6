#!/usr/bin/env bash
# 4 GiB from eight processes at once through a pool of 64 MiB: right bytes, bounded memory, no page cache of the backing files.
SUITE_SECONDS=300
source "$(dirname "$0")/lib.sh"
need fincore

pool_mib=64
mount_swap "pool_size=${pool_mib}m"
pid=$(daemon_pid)

python3 "$repo/tests/suites/eight_writers.py" write "$mnt"
python3 "$repo/tests/suites/eight_writers.py" check "$mnt"

cached=$(fincore --bytes --noheadings --output PAGES "$swap"/part* | awk '{ pages += $1 } END { print pages + 0 }')
((cached == 0)) || fail "$cached pages of the backing files are in the page cache"
peak_kib=$(awk '/^(VmHWM|HugetlbPages):/ { kib += $2 } END { print kib }' "/proc/$pid/status")
((peak_kib <= (pool_mib + 64) * 1024)) || fail "peak memory ${peak_kib} KiB, allowed are $(((pool_mib + 64) * 1024))"
umount_swap
python3 "$repo/tests/suites/eight_writers.py" check "$swap"
passed "4 GiB, peak memory $((peak_kib / 1024)) MiB, no cached pages"
