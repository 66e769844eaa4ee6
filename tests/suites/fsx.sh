#!/usr/bin/env bash
# fsx: random operations on one file, mapped ones too, every read compared with a copy in memory. Each seed is printed.
SUITE_SECONDS=420
source "$(dirname "$0")/lib.sh"
need fsx

# run NAME SEED OPERATIONS FILE_LENGTH LARGEST_OPERATION
run() {
    echo "fsx: $1: seed $2, $3 operations"
    cat >"$work/fsx.toml" <<END
flen = $4
[opsize]
min = 1
max = $5
[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 3
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
END
    # Without a least length it asks for no bytes at times, which posix_fallocate refuses everywhere.
    fsx -q -S "$2" -N "$3" -f "$work/fsx.toml" -P "$work" "$mnt/t" >"$work/fsx.log" 2>&1 ||
        { tail -n 40 "$work/fsx.log" >&2; fail "fsx -S $2 -N $3, flen $4, opsize.max $5"; }
    rm "$mnt/t"
}

random=$((RANDOM * 32768 + RANDOM))
mount_swap pool_size=64m
for seed in 7 "$random"; do
    run "short operations" "$seed" 100000 $((256 << 10)) $((64 << 10))
done
umount_swap
mount_swap pool_size=16m block_size=64k
for seed in 7 "$random"; do
    run "long operations, small pool" "$seed" 5000 $((8 << 20)) $((1 << 20))
done
umount_swap
passed "seeds 7 and $random"
