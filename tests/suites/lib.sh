# Sourced by every suite: bounds its time, makes its own swap folder and mount below $1, and removes both.
#
#   SUITE_SECONDS=120 (optional, before sourcing) is when the suite is ended.
#   $swap, $mnt, $work   the swap folder, the mountpoint, and the scratch folder that holds them
#   $disk                empty, or after disk_swap the mountpoint of the swap folder's own disk
set -euo pipefail

suite=$(basename "$0" .sh)
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [[ -z ${SUITE_BOUNDED:-} ]]; then
    export SUITE_BOUNDED=1
    status=0
    timeout --kill-after=30 "${SUITE_SECONDS:-300}" "$0" "$@" || status=$?
    ((status != 124)) || echo "$suite: ended after ${SUITE_SECONDS:-300} s" >&2
    exit "$status"
fi

fail() {
    echo "$suite: FAILED: $*" >&2
    exit 1
}

need() {
    local tool
    for tool; do
        command -v "$tool" >/dev/null || fail "$tool is not installed"
    done
}

[[ -c /dev/fuse ]] || fail "/dev/fuse is missing: load the fuse module, or give the container the device"
need cargo python3

(cd "$repo" && cargo build --release --quiet)
swapfs=${CARGO_TARGET_DIR:-$repo/target}/release/swapfs

work=$(mktemp -d "${1:-/var/tmp}/swapfs-$suite.XXXXXX")
swap=$work/swap
mnt=$work/mnt
mkdir "$swap" "$mnt"

disk=
# disk_swap SIZE: a disk of its own (ext4 on a loop device) for the swap folder, which is then $swap; $disk can be frozen.
disk_swap() {
    need mkfs.ext4 fsfreeze
    disk=$work/disk
    swap=$disk/swap
    truncate --size "$1" "$work/image"
    mkfs.ext4 -q "$work/image"
    mkdir "$disk"
    mount -o loop "$work/image" "$disk" || fail "no loop device for a disk of its own"
    mkdir "$swap"
}

layers=
layered=()
# layer FOLDER...: in a private mount namespace, what is changed below these folders from now on is changed in memory only.
# changed lists it.
layer() {
    local folder name
    if [[ -z $layers ]]; then
        layers=$work/layers
        mkdir "$layers"
        mount -t tmpfs tmpfs "$layers"
        trap 'code=$?; set +e; remove_layers; (exit "$code"); finish' EXIT
    fi
    for folder; do
        name=on${folder//\//.}
        mkdir "$layers/$name" "$layers/work$name"
        mount -t overlay overlay -o "lowerdir=$folder,upperdir=$layers/$name,workdir=$layers/work$name" "$folder" || fail "no overlay over $folder"
        layered+=("$folder")
    done
}
changed() { find "$layers"/on.* -mindepth 1 ! -type d ! -type c | sort; }
remove_layers() { umount --lazy "${layered[@]}" "$layers"; }

mounted() { findmnt --noheadings --mountpoint "$mnt" >/dev/null; }

# mount_swap [OPTION...]: -o options of swapfs mount, one per argument.
mount_swap() {
    local option options=()
    for option; do options+=(-o "$option"); done
    "$swapfs" mount "$swap" "$mnt" "${options[@]}"
    mounted || fail "swapfs mount returned, and nothing is mounted"
}

umount_swap() {
    "$swapfs" umount "$mnt" --timeout 120 2>"$work/umount.err" || fail "umount: $(cat "$work/umount.err")"
}

# Everything in the pool is dropped: what is read afterwards comes from the swap folder.
remount_swap() {
    umount_swap
    mount_swap "$@"
}

daemon_pid() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["mount"]["pid"])' "$mnt/.swapfs/stats.json"; }

# On failure the daemon's log is shown before the scratch folder goes.
finish() {
    local status=$?
    cd /
    trap - EXIT
    [[ -z $disk ]] || fsfreeze --unfreeze "$disk" 2>/dev/null || true
    if ((status)) && [[ -s $swap/.swapfs/log ]]; then
        echo "$suite: the daemon's last lines:" >&2
        tail -n 20 "$swap/.swapfs/log" >&2
    fi
    if mounted; then
        "$swapfs" umount "$mnt" --timeout 30 || umount --lazy "$mnt" || status=1
    fi
    [[ -z $disk ]] || umount "$disk" || { umount --lazy "$disk"; status=1; }
    rm -rf --one-file-system "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

passed() { echo "$suite: ok ($*; ${SECONDS} s)"; }
