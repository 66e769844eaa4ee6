#!/usr/bin/env bash
# swapfs install for real, on layers over /usr and /etc that are gone afterwards: mount(8), fstab, umount(8), man, copies; and undone.
SUITE_SECONDS=240
if [[ -z ${INSTALL_NAMESPACE:-} ]]; then
    exec env INSTALL_NAMESPACE=1 unshare --mount --propagation private "$0" "$@"
fi
source "$(dirname "$0")/lib.sh"
need zsh fish mount umount findmnt mandoc getfattr setfattr cp systemd-analyze fusermount3 setpriv unshare nsenter

# status EXPECTED COMMAND...: runs it, and compares its exit status; its standard error is in $work/err.
status() {
    local expected=$1 found=0
    shift
    "$@" 2>"$work/err" || found=$?
    ((found == expected)) || fail "$* ended with $found, not $expected: $(cat "$work/err")"
}
said() { grep -qF -- "$1" "$work/err" || fail "not said: $1, but: $(cat "$work/err")"; }
daemon_gone() { [[ $(python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).readline())["state"])' "$swap/.swapfs/lock") == finished ]]; }

layer /usr /etc
touch /etc/fstab
before=$(changed)

# Without root nothing is done, and what is missing is said.
home=$work/home
install -d -o 65534 -g 65534 "$home"
install -m 755 "$swapfs" "$work/swapfs"
chmod 755 "$work"
as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$work/swapfs" "$@"; }
status 1 as_user install --systemd
said "no permission to write to"
said "nothing was changed: run it as root"
[[ $before == "$(changed)" ]] || fail "a refused install changed something"

"$swapfs" install --systemd --fstab "$swap" "$mnt" -o pool_size=64m,allow_other >"$work/first"
grep -q "^created .*/sbin/mount.swapfs" "$work/first" || fail "no helper: $(cat "$work/first")"
grep -qF "then: systemctl daemon-reload" "$work/first" || fail "what remains to be done was not said"
"$swapfs" install --systemd --fstab "$swap" "$mnt" -o pool_size=64m,allow_other >"$work/second"
! grep -E "^(created|replaced)" "$work/second" || fail "the second install changed something"
[[ $(grep -c " $mnt swapfs " /etc/fstab) == 1 ]] || fail "the line in fstab"
installed=/usr/local/bin/swapfs
cmp "$swapfs" "$installed" || fail "another program was installed"

# The manual and the completions are found by their own means.
(cd /usr/local/share/man && mandoc -T lint -W error man8/{swapfs,{,u}mount.fuse.swapfs,mount.swapfs}.8 man7/swapfs.7) || fail "the manual"
bash -c 'source /usr/local/share/bash-completion/completions/swapfs && complete -p swapfs' >/dev/null || fail "bash completion"
zsh -n /usr/local/share/zsh/site-functions/_swapfs || fail "zsh completion: the syntax"
found=$(zsh -fc 'autoload -U compinit; compinit -u -D; autoload -U +X _swapfs && print $_comps[swapfs]')
[[ $found == _swapfs ]] || fail "zsh completion: $found"
fish --no-execute /etc/fish/completions/swapfs.fish || fail "fish completion: the syntax"
found=$(HOME=$work fish -c 'complete -C "swapfs umo"; complete -C "swapfs mount --pool-s"')
[[ $found == umount$'\t'*--pool-size$'\t'* ]] || fail "fish completion: $found"
systemd-analyze verify "swapfs@name.service" 2>"$work/err" || fail "the unit: $(cat "$work/err")"
! grep -F "swapfs@" "$work/err" || fail "the unit"

# fstab: once, and not twice.
mount -a -T /etc/fstab -t swapfs || fail "mount -a"
mounted || fail "mount -a mounted nothing"
[[ $(findmnt --noheadings --output FSTYPE,SOURCE --raw --mountpoint "$mnt") == "fuse.swapfs $swap" ]] || fail "what is mounted"
mount -a -T /etc/fstab -t swapfs || fail "a second mount -a"
[[ $(findmnt --noheadings --mountpoint "$mnt" | wc -l) == 1 ]] || fail "mounted twice"
status 32 mount -o remount,ro "$mnt"
said "the options of a swapfs mount are fixed"

# A copy does not take along where a file was.
head -c 3000000 /dev/urandom >"$work/data"
cp "$work/data" "$mnt/t"
setfattr -n user.mine -v kept "$mnt/t"
cp --preserve=xattr "$mnt/t" "$work/copy" || fail "cp --preserve=xattr"
[[ $(getfattr --absolute-names -d -m - "$work/copy" | grep -c '^user\.') == 1 ]] || fail "the copy has: $(getfattr -d -m - "$work/copy")"
cp --archive "$mnt/t" "$mnt/u" || fail "cp --archive on the mount"

# umount(8) waits for everything, and for the daemon.
head -c 50000000 /dev/urandom >"$mnt/large"
umount "$mnt" || fail "umount"
! mounted || fail "still mounted"
! grep -qF "$mnt" /run/mount/utab || fail "left in the table of mount(8): $(cat /run/mount/utab)"
daemon_gone || fail "umount(8) returned before the daemon"
cmp "$work/data" "$swap/t" || fail "the swap folder holds other bytes"
[[ $(stat -c %s "$swap/large") == 50000000 ]] || fail "the swap folder holds less"

# By hand, by either name of the type; busy, lazy, and wrong calls.
for type in swapfs fuse.swapfs; do
    mount -t $type "$swap" "$mnt" -o pool_size=64m,noatime || fail "mount -t $type"
    findmnt --noheadings --output OPTIONS --mountpoint "$mnt" | grep -q noatime || fail "noatime"
    exec {held}<"$mnt/t"
    status 32 umount "$mnt"
    said "everything is on stable storage, but it stays mounted"
    umount --lazy "$mnt" || fail "umount --lazy"
    ! mounted || fail "still mounted"
    head -c 3 <&"$held" >/dev/null || fail "who has a file open keeps it"
    exec {held}<&-
done
status 1 mount -t swapfs "$swap" "$mnt" -o nonsense
said "-o nonsense: no such mount option"
status 32 mount -t swapfs "$swap/none" "$mnt"
said "No such file or directory; create it: mkdir -p"
! mounted || fail "mounted in spite of an error"

# Into another mount namespace.
unshare --mount --propagation private sleep 100 &
other=$!
until [[ $(readlink /proc/$other/ns/mnt) != $(readlink /proc/self/ns/mnt) ]]; do sleep 0.05; done
mount -N $other -t swapfs "$swap" "$mnt" || fail "mount -N"
! mounted || fail "mount -N mounted here"
nsenter --mount=/proc/$other/ns/mnt findmnt --noheadings --mountpoint "$mnt" >/dev/null || fail "mount -N mounted nothing there"
umount -N $other "$mnt" || fail "umount -N"
daemon_gone || fail "umount -N did not wait"
kill $other
wait $other || true

# `user` in fstab lets an ordinary user mount and unmount.
theirs=$work/theirs
install -d -o 65534 -g 65534 "$theirs" "$theirs/swap" "$theirs/mnt"
mknod -m 666 "$layers/fuse" c 10 229
mount --bind "$layers/fuse" /dev/fuse
echo "$theirs/swap $theirs/mnt swapfs user,noauto,pool_size=64m,pin_memory=off 0 0" >>/etc/fstab
as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all "$@"; }
cd /
as_user mount "$theirs/mnt" 2>/dev/null || fail "mount by a user"
as_user cp "$work/first" "$theirs/mnt/t" || fail "the user's own mount"
findmnt --noheadings --output OPTIONS --mountpoint "$theirs/mnt" | grep -q noexec || fail "user implies noexec"
as_user umount "$theirs/mnt" || fail "umount by a user"
cmp "$work/first" "$theirs/swap/t" || fail "the user's swap folder"
umount /dev/fuse
sed -i "\\|^$theirs|d" /etc/fstab

"$installed" install --uninstall >"$work/third"
grep -q "^removed .*fstab" "$work/third" || fail "the line in fstab was not removed"
left=$(changed | grep -vE "^$layers/on.etc/(fstab|xattr.conf)\$" || true)
[[ -z $left ]] || fail "left after --uninstall: $left"
! grep -q swapfs /etc/fstab /etc/xattr.conf || fail "lines were left"
# Without the helper it is an unmount like any other, after which the daemon finishes alone.
mount_swap pool_size=64m
umount "$mnt" || fail "umount without the helper"
status 1 "$swapfs" install --uninstall
said "there is no record of an install"
passed "installed, used by mount(8), fstab, umount(8) and cp, and taken away"
