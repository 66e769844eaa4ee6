#!/usr/bin/env bash
# The examples print what examples/expected says: tests/suites/frameworks.sh [--all] [FOLDER]
#
# Takes the python3 that has torch (Debian: python3-torch). --all installs torch, Accelerate and DeepSpeed instead, some 6 GB below FOLDER and
# removed afterwards, builds DeepSpeed's aio handle, and runs their examples and DeepSpeed's own benchmark as well. With FRAMEWORKS_VENV=DIR
# that is done once, in DIR, and found there by later runs.
if [[ ${1:-} == --all ]]; then
    export FRAMEWORKS_ALL=1
    shift
fi
SUITE_SECONDS=$((${FRAMEWORKS_ALL:-0} ? 2400 : 300))
source "$(dirname "$0")/lib.sh"
all=${FRAMEWORKS_ALL:-0}

venv=$work/venv
((!all)) || venv=${FRAMEWORKS_VENV:-$venv}
# A GPU would change what is printed.
export CUDA_VISIBLE_DEVICES='' DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR=$venv/extensions PYTHONDONTWRITEBYTECODE=1
make_venv() { "$@" "$venv" >"$work/venv.log" 2>&1 || fail "$*: $(tail -n 3 "$work/venv.log") (Debian: python3-venv)"; }
install() {
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" 2>"$work/pip.log" || fail "pip install $*: $(tail -n 3 "$work/pip.log")"
}
if ((all)); then
    need g++
    [[ -e /usr/include/libaio.h ]] || fail "libaio's headers are not installed (Debian: libaio-dev)"
    [[ -d $venv ]] || make_venv python3 -m venv
    install torch numpy safetensors accelerate ninja setuptools wheel
    install --no-build-isolation deepspeed # Its installation asks torch.
else
    with_torch=
    for python in python3 /usr/bin/python3; do
        "$python" -c 'import torch' 2>/dev/null || continue
        with_torch=$python
        break
    done
    [[ $with_torch ]] || fail "no python3 here has torch (Debian: python3-torch)"
    make_venv "$with_torch" -m venv --system-site-packages
    install numpy safetensors
fi
PATH=$venv/bin:$PATH

# Figures that are never twice the same stand as # in the expected output.
expect() {
    sed -E 's/[0-9.]+ (s|MiB\/s)$/# \1/' "$work/$1.out" | diff "$repo/examples/expected/$1.txt" - ||
        fail "$1 prints something else than examples/expected/$1.txt"
    echo "$1: as expected"
    done+=("$1")
}
ran() { "$@" 2>"$work/errors" || fail "$*: $(tail -n 5 "$work/errors")"; }

done=()
cd "$repo"
mount_swap pool_size=64m
ran cargo run --release --quiet --example aio_handle -- "$mnt/aio_handle.swp" 64 >"$work/aio_handle.out"
expect aio_handle
ran cargo run --release --quiet --example swapper -- "$work/swapper" >"$work/swapper.out"
expect swapper
examples=(plain_numpy safetensors_file torch_layers)
((!all)) || examples+=(accelerate_offload)
for example in "${examples[@]}"; do
    ran python3 "examples/$example.py" "$mnt" >"$work/$example.out"
    expect "$example"
done
if ((all)); then
    ran python3 examples/deepspeed_zero3.py "$mnt" >"$work/zero3.log"
    grep '^zero3: ' "$work/zero3.log" >"$work/deepspeed_zero3.out" # The rest is DeepSpeed's own log.
    expect deepspeed_zero3
    mkdir "$mnt/ds_io" "$mnt/bench"
    for direction in '' --read; do
        ran ds_io --folder "$mnt/ds_io" --io_size 64M --loops 2 --validate $direction >"$work/ds_io.out"
        grep -E '^E2E (Read|Write) Speed' "$work/ds_io.out" || fail "ds_io $direction: $(tail -n 5 "$work/ds_io.out")"
    done
    ran "$swapfs" bench "$mnt/bench" --engine deepspeed,posix --io-size 64m --loops 2 --validate
    done+=("ds_io" "bench --engine deepspeed")
fi
left=$(find "$mnt" -mindepth 1 -name '*.swp' -o -mindepth 1 -maxdepth 1 -type d ! -name ds_io ! -name bench)
[[ -z $left ]] || fail "left behind: $left"
umount_swap
passed "${#done[@]} examples as expected: ${done[*]}"
