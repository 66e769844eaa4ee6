#!/usr/bin/env bash
# What a container does with swapfs, without a container runtime: a process 1 of its own, a mount that goes out of its mount namespace, a
# profile that refuses io_uring, SIGTERM and the hook before it; and the Dockerfile and manifests, held against schemas and the program.
SUITE_SECONDS=180
if [[ -z ${CONTAINER_NAMESPACE:-} ]]; then
    exec env CONTAINER_NAMESPACE=1 unshare --mount --propagation private "$0" "$@"
fi
source "$(dirname "$0")/lib.sh"
need unshare nsenter hadolint kubernetes-validate
files=$repo/examples/container

hadolint --failure-threshold info "$files/Dockerfile" || fail "the Dockerfile"
kubernetes-validate --strict --quiet "$files/daemonset.yaml" "$files/pod.yaml" || fail "the manifests"
python=$(head -n 1 "$(command -v kubernetes-validate)" | sed 's/^#! *//')
"$python" "$repo/tests/suites/container/check.py" "$swapfs" "$files/daemonset.yaml" "$files/pod.yaml" || fail "the manifests"

# As mountPropagation: Bidirectional does: one folder is shared, everything else the container has for itself.
shared=$work/shared
mkdir "$shared"
mount --bind "$shared" "$shared"
mount --make-shared "$shared"
trap 'code=$?; set +e; umount --recursive --lazy "$shared"; (exit "$code"); finish' EXIT
mnt=$shared/swap
mkdir "$mnt"

# contain NAME=VALUE... COMMAND...: starts it as process 1 of a container; $container is that process, seen from here.
container=
contain() {
    unshare --pid --fork --kill-child --mount --propagation unchanged --mount-proc \
        "$@" >"$work/container.log" 2>&1 &
    outer=$!
    for ((tries = 0; tries < 200; tries++)); do
        container=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null | tr -d ' ')
        if [[ -n $container ]] && mounted && cat "$mnt/.swapfs/stats.json" >/dev/null; then return; fi
        kill -0 "$outer" 2>/dev/null || break
        sleep 0.05
    done
    fail "the container did not mount: $(cat "$work/container.log")"
}
run=(mount --foreground --replace -o pool_size=64m,allow_other "$swap" "$mnt")

contain "$swapfs" "${run[@]}"
[[ $(nsenter --target "$container" --pid --mount cat /proc/1/comm) == swapfs ]] || fail "swapfs is not process 1"
head -c 30000000 /dev/urandom >"$work/data"
cp "$work/data" "$mnt/t"
kill -TERM "$container"
wait "$outer" || fail "after SIGTERM: $(cat "$work/container.log")"
! mounted || fail "the mount stayed"
cmp "$work/data" "$swap/t" || fail "SIGTERM did not synchronize"
rm "$swap/t"

# Without io_uring, and ended by the hook.
contain python3 "$repo/tests/suites/container/no_uring.py" "$swapfs" "${run[@]}"
grep -q "threads" "$work/container.log" || fail "not said that threads take over: $(cat "$work/container.log")"
cp "$work/data" "$mnt/t"
"$swapfs" release --wait "$mnt/t"
cmp "$work/data" "$mnt/t" || fail "other bytes were read"
cp "$work/data" "$mnt/u"
# The end of process 1 ends the hook too, as it does in a container.
{ nsenter --target "$container" --pid --mount "$swapfs" umount --timeout 60 "$mnt" || true; } 2>/dev/null
wait "$outer" || fail "after the hook: $(cat "$work/container.log")"
! mounted || fail "the mount stayed"
cmp "$work/data" "$swap/u" || fail "the hook did not synchronize"

# Killed: the dead mount that it leaves to the node is cleared by the next one.
contain "$swapfs" "${run[@]}"
kill -KILL "$container"
wait "$outer" 2>/dev/null || true
! stat --file-system "$mnt" >/dev/null 2>&1 || fail "no dead mount to clear"
contain "$swapfs" "${run[@]}"
cmp "$work/data" "$mnt/u" || fail "after a crash"
# From outside, where process 1 is another one.
timeout 30 "$swapfs" umount "$mnt" || fail "swapfs umount from outside"
wait "$outer" || fail "after the umount: $(cat "$work/container.log")"
passed "process 1 of a container, mounts outside, without io_uring, after a crash; Dockerfile and manifests"
