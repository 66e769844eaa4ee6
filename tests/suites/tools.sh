#!/usr/bin/env bash
# The tests that `cargo test` leaves out because they need another program: disks made by mkfs, fio, rsync, getfattr, an ordinary user's fusermount3, Python.
SUITE_SECONDS=2400
# Before the scratch folder's place, which every suite takes.
[[ ${1:-} != beside ]] || { export TIMED=1 && shift; }
source "$(dirname "$0")/lib.sh"
need mkfs.ext4 mkfs.xfs mount losetup fsfreeze fusermount3 fio rsync tar getfattr setfattr

cd "$repo"
# What compares times takes an idle machine, a minute, and all of it: `tests/suites/tools.sh beside`.
timed=hostile::beside::another_user_works_beside_the_worst_of_all_for_a_minute
if [[ -n ${TIMED:-} ]]; then
    cargo test --release --test mount -- --ignored --exact "$timed" --nocapture
    passed "an idle machine's times"
    exit
fi
# The other binaries' ignored tests are none of these.
cargo test --release --test mount --test check --test tune --test bench --test readme -- --ignored --skip "$timed" 2>&1 | tee "$work/log"
count=$(grep -c '^test .* ok$' "$work/log")
((count > 0)) || fail "no test was run"
passed "$count tests"
