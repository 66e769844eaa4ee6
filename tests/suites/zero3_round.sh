#!/usr/bin/env bash
# A small round of ZeRO-3 training on a pool a quarter of its partitions, every way of the example; it checks every byte itself.
SUITE_SECONDS=300
source "$(dirname "$0")/lib.sh"

cd "$repo"
cargo run --release --quiet --example zero3_round -- "$work" --mib 256 --pool-mib 64 --rounds 2 --json >"$work/report.json"
python3 - "$work/report.json" <<'END' || fail "the report: $(cat "$work/report.json")"
import json, sys

report = json.load(open(sys.argv[1]))
assert report["verified"] and report["bytes"] > 4 * report["pool_mib"] * (1 << 20) * 0.9
for way in report["ways"]:
    phases = [phase["phase"] for phase in way["phases"]]
    assert phases == ["first write"] + 2 * ["forward", "backward", "step"], phases
    assert all(phase["gb_per_s"] > 0 for phase in way["phases"])
END
passed "two rounds, $(grep -c '"way"' "$work/report.json") ways"
