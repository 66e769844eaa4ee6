#!/usr/bin/env bash
# cargo install gives a working program; cargo-deb makes a package that dpkg installs and removes, on layers over the system's folders.
SUITE_SECONDS=900
if [[ -z ${PACKAGE_NAMESPACE:-} ]]; then
    exec env PACKAGE_NAMESPACE=1 unshare --mount --propagation private "$0" "$@"
fi
source "$(dirname "$0")/lib.sh"
need cargo-deb dpkg dpkg-deb dpkg-shlibdeps mount umount mandoc systemd-analyze

cd "$repo"
cargo install --quiet --locked --path . --root "$work/root" --no-track
"$work/root/bin/swapfs" --version | grep -q '^swapfs [0-9]' || fail "what cargo install gives"
! grep -aqE 'swapfs-(fault|memory)' "$work/root/bin/swapfs" || fail "the program has test devices in it"

rm -rf "${CARGO_TARGET_DIR:-target}/package" target/package
"$swapfs" install --package --prefix target/package --systemd >"$work/laid-out"
! grep -E "^left alone|/usr/local/|/etc/" "$work/laid-out" || fail "a package's files are laid out below /usr alone"
cargo deb --quiet --no-build --locked --output "$work/swapfs.deb"
rm -rf target/package
dpkg-deb --contents "$work/swapfs.deb" | awk '{print $6}' | grep -v '/$' | sort >"$work/contents"
for file in usr/bin/swapfs usr/sbin/{mount,mount.fuse,umount.fuse}.swapfs usr/lib/systemd/system/swapfs@.service \
    usr/share/man/man8/{swapfs,mount.swapfs,umount.fuse.swapfs}.8.gz usr/share/man/man7/swapfs.7.gz \
    usr/share/bash-completion/completions/swapfs usr/share/zsh/vendor-completions/_swapfs \
    usr/share/fish/vendor_completions.d/swapfs.fish usr/share/doc/swapfs/copyright; do
    grep -qxF "./$file" "$work/contents" || fail "the package lacks $file; it has: $(cat "$work/contents")"
done
dpkg-deb --field "$work/swapfs.deb" Depends | grep -q libc6 || fail "the package names no libc"

layer /usr /etc /var/lib/dpkg
dpkg --install "$work/swapfs.deb" >"$work/dpkg.out" || fail "dpkg --install: $(cat "$work/dpkg.out")"
cd /
systemd-analyze verify swapfs@name.service 2>"$work/err" || fail "the unit: $(cat "$work/err")"
mount -t swapfs "$swap" "$mnt" -o pool_size=64m || fail "mount -t swapfs"
head -c 5000000 /dev/urandom >"$work/data"
cp "$work/data" "$mnt/t"
umount "$mnt" || fail "umount"
cmp "$work/data" "$swap/t" || fail "umount(8) did not synchronize"
dpkg --remove swapfs >"$work/dpkg.out" || fail "dpkg --remove: $(cat "$work/dpkg.out")"
[[ ! -e /usr/bin/swapfs && ! -L /usr/sbin/mount.swapfs ]] || fail "files were left"
passed "cargo install, and a Debian package of $(stat -c %s "$work/swapfs.deb") bytes installed, used and removed"
