"""A process of `swapfs bench --engine deepspeed`: DeepSpeed's aio handle, told what to do over standard input."""

import json
import os
import sys
import time


def say(reply, value=None):
    message = {"reply": reply} if value is None else {"reply": reply, "with": value}
    sys.stdout.write("@" + json.dumps(message) + "\n")
    sys.stdout.flush()


def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


def transfer(handle, buffers, job):
    write = job["access"] == "write"
    for buffer, path in zip(buffers, job["files"]):
        if write:
            code = handle.async_pwrite(buffer, path, 0)
        else:
            code = handle.async_pread(buffer, path, 0)
        if code != 0:
            raise OSError(f"DeepSpeed's aio handle refused {path}")
    # What is under way must be waited for: the handle ends the process otherwise.
    handle.wait()
    if write and job["sync"]:
        for path in job["files"]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)


def compare(buffers, job):
    for buffer, path in zip(buffers, job["files"]):
        with open(path, "rb") as file:
            if file.read(job["each"]) != bytes(buffer.numpy()):
                raise OSError(f"validating {path}: file and memory differ")


def main():
    setup = hear()["with"]
    try:
        import torch
        from deepspeed.ops.op_builder import AsyncIOBuilder

        handle = AsyncIOBuilder().load().aio_handle(
            setup["block_size"],
            setup["queue_depth"],
            setup["single_submit"],
            setup["overlap_events"],
            setup["io_parallel"],
        )
        memory = handle.new_cpu_locked_tensor(setup["memory"], torch.empty(0, dtype=torch.uint8))
        memory.random_(0, 256)
    except Exception as error:
        say("failed", f"engine deepspeed: python3 cannot use DeepSpeed's aio handle: {error}".splitlines()[0])
        return
    say("ready")
    while True:
        job = hear()["with"]
        # Names that are no text come as lists of bytes.
        job["files"] = [name if isinstance(name, str) else os.fsdecode(bytes(name)) for name in job["files"]]
        try:
            each = job["each"]
            buffers = [memory.narrow(0, index * each, each) for index in range(len(job["files"]))]
            if job["validate"] and job["access"] == "read":
                memory.zero_()
            say("ready")
            hear()
            start = time.perf_counter()
            transfer(handle, buffers, job)
            task = time.perf_counter() - start
            say("done")
            hear()
            e2e = time.perf_counter() - start
            if job["validate"]:
                compare(buffers, job)
        except Exception as error:
            say("failed", f"engine deepspeed: {error}".splitlines()[0])
            return
        say("finished", {"task": task, "e2e": e2e})


main()
