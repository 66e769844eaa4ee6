#!/usr/bin/env bash
# Everyday tools with their working folder on the mount: git clone, cargo build, sqlite3 with a write-ahead log.
SUITE_SECONDS=300
source "$(dirname "$0")/lib.sh"
need git sqlite3

mount_swap pool_size=64m
cd "$mnt"

git -c safe.directory='*' -c protocol.file.allow=always clone --quiet --no-hardlinks "$repo" cloned
[[ -z $(git -C cloned status --porcelain) ]] || fail "the clone differs from its own index"
git -C cloned fsck --full --strict >"$work/fsck.log" 2>&1 || fail "git fsck: $(cat "$work/fsck.log")"
echo "# changed" >>cloned/Cargo.toml
git -C cloned -c user.name=t -c user.email=t@localhost commit --quiet --all --message "A change"
git -C cloned gc --quiet --prune=now

cargo new --quiet --vcs none small
cat >small/src/main.rs <<'END'
fn main() {
    println!("{}", (1..=20u64).product::<u64>());
}
END
(cd small && CARGO_TARGET_DIR=target CARGO_INCREMENTAL=1 cargo build --quiet)
[[ $(small/target/debug/small) == 2432902008176640000 ]] || fail "the built program's answer"
sed -i 's/20u64/5u64/' small/src/main.rs
(cd small && CARGO_TARGET_DIR=target CARGO_INCREMENTAL=1 cargo run --quiet) | grep -qx 120 || fail "the rebuilt program's answer"

rows() {
    local start=$1
    echo "BEGIN;"
    for ((row = start; row < start + 2000; row++)); do echo "INSERT INTO t(v) VALUES (randomblob($((row % 900 + 1))));"; done
    echo "COMMIT;"
}
[[ $(sqlite3 base.db "PRAGMA journal_mode=WAL") == wal ]] || fail "no write-ahead log"
sqlite3 base.db "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)"
for start in 0 2000 4000; do
    rows "$start" | sqlite3 -cmd ".timeout 60000" base.db &
    writers+=($!)
done
for writer in "${writers[@]}"; do wait "$writer" || fail "a writer of the database"; done
[[ $(sqlite3 base.db "SELECT count(*) FROM t") == 6000 ]] || fail "rows are missing"

cd /
remount_swap pool_size=64m
[[ $(sqlite3 "$mnt/base.db" "PRAGMA integrity_check") == ok ]] || fail "integrity_check after a remount"
git -C "$mnt/cloned" fsck --full --strict >"$work/fsck.log" 2>&1 || fail "git fsck after a remount: $(cat "$work/fsck.log")"
umount_swap
passed "git, cargo, sqlite"
