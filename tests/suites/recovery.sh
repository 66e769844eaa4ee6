#!/usr/bin/env bash
# Operations of every kind, the daemon killed before chosen system calls, several crashes in a row, others' changes, flipped bits, and power
# cuts from a log of what the disk was given; what was promised is there. The long form, in each mode:
# cargo run --release --example recovery -- --rounds 1000 --checksum writes|crc32c|none|mixed; --power-cut
SUITE_SECONDS=300
source "$(dirname "$0")/lib.sh"
need mkfs.ext4

cd "$repo"
recovery() { cargo run --release --quiet --example recovery -- --folder "$work" "$@" | tee "$work/told"; grep -q 'recovery: ok' "$work/told"; }
for checksum in writes crc32c none mixed; do recovery --rounds 10 --checksum "$checksum"; done
recovery --rounds 3 --power-cut --checksum crc32c
passed "40 stories and 3 disks"
