"""The rows that Python does: action, file, bytes. One JSON value at the end."""

import json
import mmap
import os
import resource
import sys
import time

CALL = 16 << 20


def write_bytes(path, size):
    """From a bytes object, whose data never begins on a page."""
    return write(path, size, os.urandom(CALL))


def write_pages(path, size):
    """From memory that begins on a page."""
    block = mmap.mmap(-1, CALL)
    block[:] = os.urandom(CALL)
    return write(path, size, memoryview(block))


def write(path, size, block):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def work():
        for offset in range(0, size, CALL):
            count = min(CALL, size - offset)
            if os.pwrite(descriptor, block if count == CALL else block[:count], offset) != count:
                raise OSError("a short write")
        os.fsync(descriptor)

    return work


def fill(path, size):
    import numpy

    source = numpy.frombuffer(os.urandom(CALL), dtype=numpy.uint8)
    mapped = numpy.memmap(path, dtype=numpy.uint8, mode="r+", shape=(size,))

    def work():
        for offset in range(0, size, CALL):
            part = mapped[offset : offset + CALL]
            part[:] = source[: len(part)]
        mapped.flush()

    return work


def total(path, size):
    import numpy

    mapped = numpy.memmap(path, dtype=numpy.uint64, mode="r", shape=(size // 8,))

    def work():
        # The sum wraps; it is there to be computed.
        int(mapped.sum())

    return work


def main():
    action, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    work = {"bytes": write_bytes, "pages": write_pages, "fill": fill, "sum": total}[action](path, size)

    def spent():
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    cpu, start = spent(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "bytes": size, "count": -(-size // CALL), "client_cpu": spent() - cpu}
    print(json.dumps(result))


main()
