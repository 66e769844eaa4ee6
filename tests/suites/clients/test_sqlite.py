"""sqlite3 with each of its journals: transactions, rollback, vacuum, a second process, and the integrity check at the end."""

import sqlite3
import subprocess
import sys

from shared import MIB, OnMount, main, noise

ROWS = 6000
OTHER_PROCESS = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=0.1, isolation_level=None)
print(base.execute("SELECT count(*) FROM entry").fetchone()[0])
try:
    base.execute("INSERT INTO entry(name) VALUES ('from outside')")
    print("written")
except sqlite3.OperationalError as error:
    print(error)
"""


class Databases(OnMount):
    def connect(self, name):
        base = sqlite3.connect(self.path(name), timeout=20, isolation_level=None)
        self.addCleanup(base.close)
        return base

    def outside(self, name):
        """What another process sees, and what becomes of its insert."""
        done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, self.path(name)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def exercise(self, journal):
        name = f"{journal}.db"
        base = self.connect(name)
        self.assertEqual(base.execute(f"PRAGMA journal_mode={journal}").fetchone()[0], journal)
        base.execute("PRAGMA synchronous=FULL")
        base.execute("CREATE TABLE entry(id INTEGER PRIMARY KEY, name TEXT, value BLOB)")
        base.execute("CREATE INDEX by_name ON entry(name)")
        for start in range(0, ROWS, ROWS // 6):
            base.execute("BEGIN IMMEDIATE")
            rows = ((f"row {row}", noise((41, row), 120)) for row in range(start, start + ROWS // 6))
            base.executemany("INSERT INTO entry(name, value) VALUES (?, ?)", rows)
            base.execute("COMMIT")
        large = noise(42, MIB + 17)
        for index in range(6):
            base.execute("INSERT INTO entry(name, value) VALUES (?, ?)", (f"large {index}", large))

        base.execute("BEGIN")
        base.execute("DELETE FROM entry")
        base.execute("ROLLBACK")
        self.assertEqual(base.execute("SELECT count(*) FROM entry").fetchone()[0], ROWS + 6)

        base.execute("BEGIN IMMEDIATE")
        self.assertEqual(self.outside(name), [str(ROWS + 6), "database is locked"])
        base.execute("COMMIT")
        self.assertEqual(self.outside(name), [str(ROWS + 6), "written"])
        self.assertEqual(base.execute("SELECT count(*) FROM entry").fetchone()[0], ROWS + 7)

        base.execute("DELETE FROM entry WHERE id % 3 = 0")
        base.execute("VACUUM")
        base.close()
        again = self.connect(name)
        again.execute("PRAGMA mmap_size=67108864")
        self.assertEqual(again.execute("PRAGMA integrity_check").fetchone()[0], "ok")
        kept = again.execute("SELECT value FROM entry WHERE name LIKE 'large %'").fetchall()
        self.assertEqual({value == large for (value,) in kept}, {True})
        again.close()

    def test_delete(self):
        self.exercise("delete")

    def test_truncate(self):
        self.exercise("truncate")

    def test_persist(self):
        self.exercise("persist")

    def test_wal(self):
        self.exercise("wal")


if __name__ == "__main__":
    main()
