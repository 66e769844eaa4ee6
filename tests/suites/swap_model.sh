#!/usr/bin/env bash
# A real model's tensors through a pool that is smaller than the model.
SUITE_SECONDS=180
source "$(dirname "$0")/lib.sh"

mount_swap pool_size=64m
python3 "$repo/examples/swap_model.py" "$mnt"
umount_swap
passed "every tensor equal"
