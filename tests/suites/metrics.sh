#!/usr/bin/env bash
# Prometheus' own tool on everything that shows metrics, and what watches a mount, on a terminal too.
SUITE_SECONDS=180
source "$(dirname "$0")/lib.sh"
need promtool curl script

mount_swap pool_size=64m metrics_listen=0 "metrics_file=$work/swapfs.prom"
mkdir "$mnt/params" "$mnt/odd \"name\""
address=$(sed -n 's|.*metrics at \(http://[^ ]*\)|\1|p' "$swap/.swapfs/log")
[[ -n $address ]] || fail "the log does not say where the metrics are"

check() {
    promtool check metrics <"$1" >"$work/promtool" 2>&1 || fail "$2: $(cat "$work/promtool")"
    [[ ! -s $work/promtool ]] || fail "$2: $(cat "$work/promtool")"
}

"$swapfs" profile "$mnt" --seconds 5 --json >"$work/profile" &
profile=$!
for round in 1 2 3; do
    head -c 100M /dev/urandom >"$mnt/params/a"
    cp "$mnt/params/a" "$mnt/odd \"name\"/b"
    cat "$mnt/params/a" >/dev/null
    cat "$mnt/params/none" 2>/dev/null && fail "there is no such file"
    cat "$mnt/.swapfs/metrics" >"$work/inside"
    curl --silent --fail "$address" >"$work/http"
    check "$work/inside" "in the mount, round $round"
    check "$work/http" "over HTTP, round $round"
    check "$work/swapfs.prom" "as a file, round $round"
done
wait "$profile" || fail "profile"
python3 - "$work/profile" "$work/inside" <<'EOF'
import json, sys
rows = {row["key"]: row for row in json.load(open(sys.argv[1]))["rows"]}
assert rows["write"]["bytes"] > 0 and rows["read"]["bytes"] > 0, rows
assert rows["lookup"]["errors"] > 0, rows
text = open(sys.argv[2]).read()
assert 'directory="odd \\"name\\""' in text, "labels are escaped"
EOF
[[ $("$swapfs" stats "$mnt" --count 2 --interval 0.2 | wc -l) == 3 ]] || fail "stats: a header and two lines"
# On a terminal of its own: it draws, takes a key, and gives the terminal back.
(sleep 1.5; printf n; sleep 1; printf q) | script -qec "stty cols 120 rows 24; '$swapfs' top '$mnt' --interval 0.5" "$work/top" >/dev/null ||
    fail "top: $(cat "$work/top")"
grep -q "params/a" "$work/top" || fail "top does not show the partition"
grep -q "Name" "$work/top" || fail "top does not take keys"
grep -qF $'\e[?1049l' "$work/top" || fail "top does not give the terminal back"
(cd "$work" && "$swapfs" debug "$mnt" --output debug.tar.gz --interval 0.2 >/dev/null) || fail "debug"
tar -xzOf "$work/debug.tar.gz" >"$work/debug.txt"
grep -q "pool_size" "$work/debug.txt" || fail "debug has no configuration"
if grep -qE 'params|odd "name' "$work/debug.txt"; then fail "debug has names in it"; fi
python3 - "$repo/examples/grafana.json" >"$work/rules.yml" <<'EOF'
import json, sys
asked = [target["expr"] for panel in json.load(open(sys.argv[1]))["panels"] for target in panel["targets"]]
for variable, value in (("$__rate_interval", "5m"), ("$job", ".*"), ("$instance", ".*")):
    asked = [expression.replace(variable, value) for expression in asked]
rules = [{"record": f"row:{number}", "expr": expression} for number, expression in enumerate(asked)]
print(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
EOF
promtool check rules "$work/rules.yml" >"$work/promtool" 2>&1 || fail "the dashboard: $(cat "$work/promtool")"
umount_swap
[[ ! -e $work/swapfs.prom ]] || fail "the file is still there after the unmount"
passed "three rounds"
