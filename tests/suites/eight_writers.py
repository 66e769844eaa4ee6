"""eight_writers.py write|check FOLDER: 64 files of 64 MiB, eight processes at once, every MiB different."""

import hashlib
import multiprocessing
import os
import random
import sys

MIB = 1 << 20
PROCESSES = 8
FILES_EACH = 8
FILE_MIB = 64


def blocks(number):
    """The file's contents in pieces of 1 MiB: noise turned by a different amount in each."""
    base = random.Random(number).randbytes(MIB)
    for index in range(FILE_MIB):
        turn = 12289 * (index + 1) % MIB
        yield base[turn:] + base[:turn]


def write(folder, process):
    for number in range(process * FILES_EACH, (process + 1) * FILES_EACH):
        with open(os.path.join(folder, f"part{number}"), "wb", buffering=0) as file:
            for block in blocks(number):
                file.write(block)


def check(folder, process):
    for number in range(process * FILES_EACH, (process + 1) * FILES_EACH):
        wanted = hashlib.blake2b()
        for block in blocks(number):
            wanted.update(block)
        with open(os.path.join(folder, f"part{number}"), "rb", buffering=0) as file:
            found = hashlib.blake2b()
            while data := file.read(4 * MIB):
                found.update(data)
        if found.digest() != wanted.digest():
            sys.exit(f"part{number} differs from what was written")


def main():
    work = {"write": write, "check": check}[sys.argv[1]]
    processes = [multiprocessing.Process(target=work, args=(sys.argv[2], index)) for index in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
