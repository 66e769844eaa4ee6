"""full_disk.py fill|check|halve|refill FOLDER RECORD: eight processes on a disk that has not room for what they want.

RECORD is a file elsewhere that says how many bytes of each file were accepted and synchronized.
"""

import errno
import json
import multiprocessing
import os
import random
import sys

MIB = 1 << 20
PROCESSES = 8
FILES_EACH = 16
FILE_MIB = 8


def block(name, index):
    base = random.Random(name).randbytes(4096)
    turn = 977 * (index + 1) % 4096
    return (base[turn:] + base[:turn]) * 256


def write_file(path):
    """Writes a whole file; returns how many bytes were accepted, all of them on stable storage."""
    name, accepted, full = os.path.basename(path), 0, False
    try:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return None
    for index in range(FILE_MIB):
        data = block(name, index)
        while data and not full:
            try:
                count = os.write(file, data)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                full = True
                break
            accepted += count
            data = data[count:]
        if full:
            break
    os.fsync(file)
    os.close(file)
    return accepted


def fill(folder, process, results):
    """Goes on after a refusal: what is refused later must not harm what was accepted before."""
    for number in range(process * FILES_EACH, (process + 1) * FILES_EACH):
        name = f"file{number}"
        results.put((name, write_file(os.path.join(folder, name))))


def in_processes(work):
    """work(process, results) in eight processes; returns all results."""
    results = multiprocessing.Queue()
    processes = [multiprocessing.Process(target=work, args=(number, results)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    found = []
    while any(process.is_alive() for process in processes) or not results.empty():
        try:
            found.append(results.get(timeout=0.1))
        except Exception as error:
            if type(error).__name__ != "Empty":
                raise
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(f"a process ended with {process.exitcode}")
    return dict(found)


def check(folder, record):
    for name, accepted in record.items():
        path = os.path.join(folder, name)
        if accepted is None:
            assert not os.path.exists(path), f"{name} was refused, and is there"
            continue
        with open(path, "rb", buffering=0) as file:
            assert os.fstat(file.fileno()).st_size == accepted, f"{name}: {os.fstat(file.fileno()).st_size} bytes, accepted were {accepted}"
            left, index = accepted, 0
            while left:
                wanted = block(name, index)[: min(MIB, left)]
                found = b""
                while len(found) < len(wanted):
                    found += file.read(len(wanted) - len(found))
                assert found == wanted, f"{name} differs in MiB {index}"
                left, index = left - len(wanted), index + 1


def main(action, folder, record_path):
    if action == "fill":
        record = in_processes(lambda process, results: fill(folder, process, results))
        total = sum(accepted or 0 for accepted in record.values())
        whole = sum(accepted == FILE_MIB * MIB for accepted in record.values())
        assert whole < len(record), "nobody was refused"
        assert total > 190 * MIB, f"only {total} bytes were accepted"
        print(f"{total // MIB} MiB accepted, {whole} files whole, {len(record) - whole} met ENOSPC")
        json.dump(record, open(record_path, "w"))
        return
    record = json.load(open(record_path))
    if action == "check":
        check(folder, record)
        return
    if action == "halve":
        there = [name for name, accepted in record.items() if accepted]
        for name in there[::2]:
            os.unlink(os.path.join(folder, name))
        record = {name: record[name] for name in record if name not in there[::2]}
        print(f"{len(there[::2])} files deleted")
    if action == "refill":
        # Each process writes one file of its own: 64 MiB together, of the hundred that came back.
        def again(process, results):
            name = f"again{process}"
            results.put((name, write_file(os.path.join(folder, name))))

        more = in_processes(again)
        assert all(accepted == FILE_MIB * MIB for accepted in more.values()), f"refused: {more}"
        record.update(more)
    json.dump(record, open(record_path, "w"))


main(*sys.argv[1:])
