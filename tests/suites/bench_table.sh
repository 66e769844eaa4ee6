#!/usr/bin/env bash
# The speed table's machinery on a few quick rows: every comparison is in the report, and nothing stays behind, after SIGINT neither.
# No speed is judged.
SUITE_SECONDS=300
source "$(dirname "$0")/lib.sh"
need fio losetup

cd "$repo"
cargo build --release --quiet --example bench_table
table=${CARGO_TARGET_DIR:-$repo/target}/release/examples/bench_table
place=$work/place
mkdir "$place"

left() {
    find "$place" -mindepth 1
    findmnt --noheadings --list --output TARGET | grep --fixed-strings "$place/" || true
    losetup --list --noheadings --output BACK-FILE | grep --fixed-strings "$place/" || true
}

"$table" --folder "$place" --quick --runs 1 --rows stat,direct-8-write,read --json "$work/report.json" --svg "$work/table.svg"
[[ -z $(left) ]] || fail "left behind: $(left)"
python3 - "$work/report.json" "$work/table.svg" <<'END' || fail "the report: $(cat "$work/report.json")"
import json, sys, xml.dom.minidom

report = json.load(open(sys.argv[1]))
found = sorted((row["place"], row["row"]) for row in report["rows"])
assert found == [(place, row) for place in "AB" for row in ("direct-8-write", "read", "stat")], found
for row in report["rows"]:
    ours, *references = row["contestants"]
    assert references and len(references) == len(row["verdicts"])
    assert all(one["median"] > 0 and one["min"] <= one["median"] <= one["max"] for one in row["contestants"])
    assert row["unit"] != "MB/s" or ours["daemon_cpu_s_per_gib"] > 0 and ours["daemon_peak_bytes"] > 64 << 20
    assert any(verdict["met"] is not None for verdict in row["verdicts"])
xml.dom.minidom.parse(sys.argv[2])
END

# What holds a stream: three contestants, none of which is faster than all processors together.
"$table" --folder "$place" --quick --runs 1 --places B --held --rows direct-8-write --json "$work/held.json"
[[ -z $(left) ]] || fail "left behind: $(left)"
python3 - "$work/held.json" <<'END' || fail "the report: $(cat "$work/held.json")"
import json, os, sys

(held,) = json.load(open(sys.argv[1]))["held"]
assert (held["place"], held["row"]) == ("B", "direct-8-write"), held
for name in ("mount", "folder", "fuse_over_nothing"):
    one = held[name]
    assert one["mb_per_s"] > 0 and one["cpu_s_per_gib"] > 0, held
    assert 0 < one["busy_processors"] <= os.cpu_count() * 1.05, held
    assert 0 <= one["device_busy"] <= 1.05, held
assert held["mount"]["busy_processors_daemon"] > 0 == held["folder"]["busy_processors_daemon"], held
assert held["mount"]["device_busy"] > 0.1 > held["fuse_over_nothing"]["device_busy"], held
END

# interrupt PLACE ROW SIGN: SIGINT once SIGN shows in the table of mounts, or is said.
interrupt() {
    # A background process would ignore SIGINT.
    env --default-signal=INT "$table" --folder "$place" --quick --places "$1" --rows "$2" >/dev/null 2>"$work/errors" &
    local table_pid=$! status=0
    for _ in $(seq 600); do
        [[ $(cat /proc/mounts "$work/errors") =~ $3 ]] && break
        sleep 0.1
    done
    sleep 0.3
    kill -INT "$table_pid"
    wait "$table_pid" || status=$?
    [[ $status == 130 ]] || fail "SIGINT ended it with $status: $(cat "$work/errors")"
    [[ -z $(left) ]] || fail "left behind after SIGINT: $(left)"
}
interrupt B direct-8-write overwrite
interrupt A zero3 "$place/[^ ]*/swapfs-round-[^ /]*/mnt"

passed "three rows on two devices, what holds one of them, and SIGINT"
