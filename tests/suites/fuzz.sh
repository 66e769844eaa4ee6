#!/usr/bin/env bash
# Fuzzing guided by coverage: each target for FUZZ_SECONDS (60), or those that are named. With libFuzzer on the stable compiler:
# its passes can be asked for there, only the sanitizers cannot. An input that fails is left in tests/fuzz/corpus, where the short
# form (`cargo test --test fuzz`) repeats it. FUZZ_KEEP=1 adds what was found to the corpus, minimised.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=${FUZZ_SECONDS:-60}
targets=("$@")
((${#targets[@]})) || targets=(request xattr name config options size mounts control session http ledger sessions state wear pretended)

host=$(rustc --print host-tuple)
# Not under the flags: with a target given, what runs at build time is built without them.
export RUSTFLAGS="--cfg fuzzing -C debug-assertions -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4
 -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table
 -C llvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS=${RUSTFLAGS//$'\n'/}
folder=${CARGO_TARGET_DIR:-target}/fuzz
cargo build --release --quiet --features fuzz --example guided --target "$host" --target-dir "$folder"
program=$folder/$host/release/examples/guided

scratch=$(mktemp --directory)
trap 'rm -rf "$scratch"' EXIT
ulimit -c 0
status=0
for target in "${targets[@]}"; do
    corpus=tests/fuzz/corpus/$target
    found=$scratch/$target log=$scratch/$target.log
    mkdir "$found"
    words=()
    [[ -f tests/fuzz/words/$target ]] && words=(-dict="tests/fuzz/words/$target")
    export SWAPFS_FUZZ_TARGET=$target
    if "$program" -max_total_time="$seconds" -max_len=4096 -timeout=60 -rss_limit_mb=4096 -print_final_stats=1 \
        -artifact_prefix="$corpus/" "${words[@]}" "$found" "$corpus" >"$log" 2>&1; then
        runs=$(sed -n 's/stat::number_of_executed_units: *//p' "$log")
        seed=$(sed -n 's/.*INFO: Seed: *//p' "$log" | head -1)
        covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
        echo "fuzz: $target: $runs inputs in $seconds s, seed $seed, $covered, $(find "$found" -type f | wc -l) new ones kept"
        [[ -z ${FUZZ_KEEP:-} ]] || "$program" -merge=1 "$corpus" "$found" >/dev/null 2>&1
    else
        grep --max-count=3 --after-context=20 panicked "$log" >&2 || tail -40 "$log" >&2
        echo "fuzz: $target: FAILED" >&2
        status=1
    fi
done
exit $status
