#!/usr/bin/env bash
# An ordinary user mounts with no arguments, writes, reads, and unmounts, through fusermount3. In a mount namespace of its own, with
# a device node that everyone may open: the host's stays as it is.
SUITE_SECONDS=120
if [[ -z ${USER_MOUNT_NAMESPACE:-} ]]; then
    exec env USER_MOUNT_NAMESPACE=1 unshare --mount --propagation private "$0" "$@"
fi
source "$(dirname "$0")/lib.sh"
need fusermount3 setpriv

chmod 755 "$work"
install -m 755 "$swapfs" "$work/swapfs"
home=$work/home
install -d -o 65534 -g 65534 -m 700 "$home"
mknod -m 666 "$work/fuse" c 10 229
mount --bind "$work/fuse" /dev/fuse

as_user() {
    setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all \
        env --unset=XDG_DATA_HOME HOME="$home" PATH=/usr/local/bin:/usr/bin:/bin "$@"
}
mnt=$home/swapfs
swap=$home/.local/share/swapfs/swap
cd /
as_user "$work/swapfs" mount >"$work/mount.out" || fail "mount without arguments"
grep -qF "mountpoint: $mnt" "$work/mount.out" || fail "the mountpoint was not printed: $(cat "$work/mount.out")"
[[ $(findmnt --noheadings --output FSTYPE --mountpoint "$mnt") == fuse.swapfs ]] || fail "the type of the mount"

head -c $((40 * 1048576 + 123)) /dev/urandom >"$work/data"
chmod 644 "$work/data"
as_user cp "$work/data" "$mnt/t"
as_user cmp "$work/data" "$mnt/t" || fail "other bytes were read"
[[ $(as_user getfattr --only-values -n user.swap.status "$mnt/t" 2>/dev/null) == available ]] || fail "the status"
[[ $(as_user stat -c %u "$mnt/t") == 65534 ]] || fail "the owner"
! ls "$mnt" 2>/dev/null || fail "root got in without allow_other"

# fusermount3 tells another user that it does not know the mount.
! setpriv --reuid=65533 --regid=65533 --clear-groups --inh-caps=-all "$work/swapfs" umount "$mnt" 2>"$work/other" || fail "another user's umount"
grep -qF "only root and user 65534, who mounted it, may unmount it" "$work/other" || fail "another user was told: $(cat "$work/other")"
mounted || fail "another user has unmounted it"
as_user "$work/swapfs" umount "$mnt" || fail "umount"
! mounted || fail "still mounted"
cmp "$work/data" "$swap/t" || fail "the swap folder holds other bytes"
passed "mounted, used and unmounted by user 65534"
