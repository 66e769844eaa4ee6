#!/usr/bin/env bash
# Mixed clients, every byte checked, for half a minute. The long form: cargo run --release --example soak -- --seconds 3600
SUITE_SECONDS=180
source "$(dirname "$0")/lib.sh"

cd "$repo"
cargo run --release --quiet --example soak -- --folder "$work" --seconds "${SOAK_SECONDS:-30}" | tee "$work/told"
grep -q 'soak: ok' "$work/told" || fail "see above"
passed "$(sed -n 's/^soak: ok: //p' "$work/told")"
