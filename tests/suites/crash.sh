#!/usr/bin/env bash
# The daemon killed in the middle of work, and its disk cloned as by a power cut; what was synchronized is whole. The long form:
# cargo run --release --example crash -- --rounds 50
SUITE_SECONDS=180
source "$(dirname "$0")/lib.sh"
need mkfs.xfs mkfs.ext4

cd "$repo"
crash() { cargo run --release --quiet --example crash -- --folder "$work" --rounds 5 "$@" | tee "$work/told"; grep -q 'crash: ok' "$work/told"; }
crash
crash --power-cut
passed "10 crashes"
