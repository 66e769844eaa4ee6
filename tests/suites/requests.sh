#!/usr/bin/env bash
# Eight processes, random requests, reads and rewrites on more than the pool holds, for a minute: nothing fails, nothing hangs.
SUITE_SECONDS=420
source "$(dirname "$0")/lib.sh"

seconds=${REQUESTS_SECONDS:-60}
SWAPFS_REQUESTS_SECONDS=$seconds SWAPFS_REQUESTS_FOLDER=$work \
    cargo test --release --quiet --manifest-path "$repo/Cargo.toml" --test mount -- \
    --exact processes::eight_processes_ask_for_everything --nocapture >"$work/output" 2>&1 ||
    { cat "$work/output" >&2; fail "the log is above"; }
grep -q '1 passed' "$work/output" || fail "the test has another name now"
passed "$seconds s, $(grep -o 'SWAPFS_SEED=[0-9]*' "$work/output")"
