"""waiting.py READ_WRITE|READ_ONLY: user.swap.wait and poll(), from Python, on the mount SWAPFS_TEST_DIR.

While the swap folder's filesystem (SWAPFS_TEST_DISK) is frozen, what is written to the mount stays in flight: for as long as a test likes.
"""

import contextlib
import errno
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
import unittest

MIB = 1 << 20
MNT = os.environ["SWAPFS_TEST_DIR"]
DISK = os.environ["SWAPFS_TEST_DISK"]
LENGTH = 20 * MIB
USER = 65534
# Nothing that has to happen takes longer.
DEADLINE = 30

READY = select.POLLIN | select.POLLOUT
FORK = multiprocessing.get_context("fork")


def attribute(path, name):
    return os.getxattr(path, f"user.swap.{name}").decode()


def settled(path):
    """Waits as the manual says, and returns the last answer."""
    until = time.monotonic() + DEADLINE
    while (status := attribute(path, "wait")) == "inflight":
        assert time.monotonic() < until, "in flight for ever"
    return status


def polled(handle, events, milliseconds):
    poller = select.poll()
    poller.register(handle, events)
    return dict(poller.poll(milliseconds)).get(handle, 0)


def as_user(work, connection):
    """In a process of its own: the answer of `work` as an ordinary user, or the errno."""
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    try:
        connection.send(work())
    except OSError as error:
        connection.send(error.errno)


class OnMount(unittest.TestCase):
    def process(self, work, *arguments):
        """Starts `work` in a process of its own; returns it and the end of a pipe to it."""
        here, there = FORK.Pipe()
        process = FORK.Process(target=work, args=(*arguments, there))
        process.start()
        there.close()
        self.addCleanup(process.join, DEADLINE)
        self.addCleanup(process.kill)
        return process, here

    def answer(self, connection):
        self.assertTrue(connection.poll(DEADLINE), "no answer")
        return connection.recv()

    def user_answer(self, work):
        return self.answer(self.process(as_user, work)[1])


def wait_for_ever(path, connection):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while attribute(path, "wait") == "inflight":
        connection.send("inflight")
    connection.send("done")


class Interrupted(Exception):
    pass


class ReadWrite(OnMount):
    def setUp(self):
        self.path = os.path.join(MNT, "partition")
        with open(self.path, "wb", buffering=0) as file:
            file.write(os.urandom(LENGTH))
            os.fsync(file.fileno())
        os.chmod(self.path, 0o644)
        self.assertEqual(settled(self.path), "available")

    @contextlib.contextmanager
    def in_flight(self):
        """Within, the partition is in flight and stays so."""
        subprocess.run(["fsfreeze", "--freeze", DISK], check=True)
        writer = threading.Thread(target=self.rewrite)
        try:
            writer.start()
            until = time.monotonic() + DEADLINE
            while attribute(self.path, "status") != "inflight":
                self.assertLess(time.monotonic(), until, "never in flight")
            yield
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", DISK], check=True)
            writer.join()
        self.assertEqual(settled(self.path), "available")

    def rewrite(self):
        with open(self.path, "r+b", buffering=0) as file:
            file.write(bytes(3 * MIB))

    def test_the_answer_comes_at_once_when_nothing_is_in_flight(self):
        self.assertEqual(attribute(self.path, "wait"), "available")
        os.setxattr(self.path, "user.swap.request", b"release")
        self.assertEqual(settled(self.path), "not_available")
        self.assertEqual(settled(MNT), "idle")

    def test_a_round_ends_though_the_transfer_does_not(self):
        with self.in_flight():
            for path in (self.path, MNT, self.path):
                started = time.monotonic()
                self.assertEqual(attribute(path, "wait"), "inflight")
                self.assertGreater(time.monotonic() - started, 0.5, "it did not wait")
                # Others are served meanwhile.
                self.assertEqual(attribute(self.path, "size"), str(LENGTH))
        self.assertEqual(settled(MNT), "idle")

    def test_a_waiter_is_told_when_the_transfer_ends(self):
        with self.in_flight():
            process, connection = self.process(wait_for_ever, self.path)
            self.assertEqual(self.answer(connection), "inflight")
        while (word := self.answer(connection)) == "inflight":
            pass
        self.assertEqual(word, "done")
        process.join(DEADLINE)
        self.assertEqual(process.exitcode, 0)

    def test_a_signal_ends_the_waiting_between_rounds(self):
        with self.in_flight():
            process, connection = self.process(wait_for_ever, self.path)
            self.assertEqual(self.answer(connection), "inflight")
            os.kill(process.pid, signal.SIGTERM)
            process.join(DEADLINE)
            self.assertEqual(process.exitcode, -signal.SIGTERM)
            self.assertEqual(attribute(self.path, "status"), "inflight")

    def test_a_signal_handler_runs_between_rounds(self):
        def interrupt(*_):
            raise Interrupted

        before = signal.signal(signal.SIGALRM, interrupt)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        with self.in_flight():
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with self.assertRaises(Interrupted):
                settled(self.path)
            self.assertEqual(attribute(self.path, "status"), "inflight")

    def test_reading_and_writing_are_never_held_back(self):
        handle = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, handle)
        for request, status in ((b"release", "not_available"), (b"swap_in", "available")):
            os.setxattr(self.path, "user.swap.request", request)
            self.assertEqual(polled(handle, READY, 0), READY)
            self.assertEqual(settled(self.path), status)
            self.assertEqual(polled(handle, READY, 0), READY)
        with self.in_flight():
            self.assertEqual(polled(handle, READY, 0), READY)
            self.assertEqual(polled(handle, READY | select.POLLPRI, 0), READY)
            # select(2) asks for the same in its own way.
            self.assertEqual(select.select([handle], [handle], [], 0), ([handle], [handle], []))

    def test_waiting_needs_read_permission_only(self):
        with self.in_flight():
            self.assertEqual(self.user_answer(lambda: attribute(self.path, "wait")), "inflight")
            self.assertEqual(self.user_answer(lambda: attribute(MNT, "wait")), "inflight")
        self.assertEqual(self.user_answer(lambda: attribute(self.path, "wait")), "available")
        self.assertEqual(self.user_answer(lambda: polled(os.open(self.path, os.O_RDONLY), READY, 0)), READY)
        request = (self.path, "user.swap.request", b"release")
        self.assertEqual(self.user_answer(lambda: os.setxattr(*request)), errno.EACCES)
        os.chmod(self.path, 0o600)
        self.assertEqual(self.user_answer(lambda: attribute(self.path, "wait")), errno.EACCES)


class ReadOnly(OnMount):
    """On the same partition, mounted `ro,open_swap_in=all`: opening it is the only way to move it."""

    path = os.path.join(MNT, "partition")

    def test_waiting_works(self):
        self.assertEqual(attribute(self.path, "wait"), "not_available")
        with self.assertRaises(OSError) as refused:
            os.setxattr(self.path, "user.swap.request", b"swap_in")
        self.assertEqual(refused.exception.errno, errno.EROFS)
        handle = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, handle)
        self.assertEqual(polled(handle, READY, 0), READY)
        self.assertEqual(settled(self.path), "available")
        self.assertEqual(settled(MNT), "idle")
        self.assertEqual(polled(handle, select.POLLPRI, 200), 0)
        self.assertEqual(self.user_answer(lambda: settled(self.path)), "available")


if __name__ == "__main__":
    names = {"READ_WRITE": "ReadWrite", "READ_ONLY": "ReadOnly"}
    unittest.main(argv=[sys.argv[0], names[sys.argv[1]]])
