#!/usr/bin/env bash
# fsx: random operations on one file, mapped ones too, every read compared with a copy in memory. Each seed is printed.
# FSX_ROUNDS: how many times 10,000 operations are done for each of the two first seeds.
SUITE_SECONDS=600
source "$(dirname "$0")/lib.sh"
need fsx

# run NAME SEED ROUNDS OPERATIONS FILE_LENGTH LARGEST_OPERATION
# Each round is a process of its own, with the next seed: fsx never unmaps, and with tens of thousands of mappings of one
# file the kernel takes longer and longer over each.
run() {
    echo "fsx: $1: seeds $2 to $(($2 + $3 - 1)), $4 operations each"
    cat >"$work/fsx.toml" <<END
flen = $5
[opsize]
min = 1
max = $6
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
    local seed
    for ((seed = $2; seed < $2 + $3; seed++)); do
        fsx -q -S "$seed" -N "$4" -f "$work/fsx.toml" -P "$work" "$mnt/t" >"$work/fsx.log" 2>&1 ||
            { tail -n 40 "$work/fsx.log" >&2; fail "fsx -S $seed -N $4, flen $5, opsize.max $6"; }
        rm "$mnt/t"
    done
}

random=$((RANDOM * 32768 + RANDOM))
mount_swap pool_size=64m
for seed in 7 "$random"; do
    run "short operations" "$seed" "${FSX_ROUNDS:-4}" 10000 $((256 << 10)) $((64 << 10))
done
umount_swap
mount_swap pool_size=16m block_size=64k
for seed in 7 "$random"; do
    run "long operations, small pool" "$seed" 1 5000 $((8 << 20)) $((1 << 20))
done
umount_swap
passed "seeds from 7 and from $random"
