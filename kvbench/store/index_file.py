"""The SQLite file of an index: its schema, how it is opened, and what becomes of a damaged one.

May import: kvbench.errors, kvbench.store.
"""

import contextlib
import errno
import logging
import sqlite3
from pathlib import Path
from typing import Any

from kvbench.store.identity import Identity, from_text
from kvbench.store.snapshot import IndexDamagedError

INDEX, DAMAGED = "index.sqlite", "index.damaged"
FORMAT = 1
NOT_DAMAGE = {  # what SQLite reports of the drive and not of the file
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
}
SCHEMA = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE blocks(slot INTEGER PRIMARY KEY, key BLOB NOT NULL, parent BLOB,
                    tenant INTEGER NOT NULL, position INTEGER NOT NULL, sequence INTEGER NOT NULL);
CREATE TABLE tenants(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE quarantine(slot INTEGER PRIMARY KEY, reason TEXT NOT NULL, day TEXT NOT NULL);
CREATE TABLE wear(day TEXT PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE snapshot(part INTEGER PRIMARY KEY, rows INTEGER NOT NULL, sum BLOB NOT NULL,
                      data BLOB NOT NULL);
"""

log = logging.getLogger(__name__)


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time. Raises sqlite3.Error."""
    base = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    try:
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA journal_size_limit=67108864")
    except sqlite3.Error:
        base.close()
        raise
    return base


def read_meta(base: sqlite3.Connection, identity: Identity) -> dict[str, Any]:
    """What an index says of itself; an empty file becomes an index first.

    Raises:
        IndexDamagedError: it is of another format, or another store.
        sqlite3.Error: it cannot be read.
    """
    if not base.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        base.executescript(f"PRAGMA synchronous=FULL; BEGIN IMMEDIATE; {SCHEMA}")
        base.executemany(
            "INSERT INTO meta VALUES(?, ?)",
            [
                ("format", FORMAT),
                ("identity", identity.as_text()),
                ("clean", 0),
                ("complete", 0),
                ("epoch", 0),
            ],
        )
        base.execute("COMMIT")
    meta: dict[str, Any] = dict(base.execute("SELECT name, value FROM meta"))
    if meta.get("format") != FORMAT:
        raise IndexDamagedError(f"its format is {meta.get('format')}, not {FORMAT}")
    if from_text(meta["identity"]) != identity:
        raise IndexDamagedError("it belongs to another store")
    return meta


def look(path: Path) -> sqlite3.Connection:
    """A connection that only reads, and leaves no file behind, whoever has the index open.

    SQLite would make its log and its shared memory anew, and the store's owner might then not be
    allowed to use them. So with a log both have to be there, and are only read; without one the
    file is taken as it is. Nobody waits for it: readers never hold up a writer in WAL mode.

    Raises:
        FileNotFoundError: there is no index.
        sqlite3.Error: it cannot be read; see `Index`.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no index", str(path))
    shared = path.with_name(path.name + "-shm")
    journal = path.with_name(path.name + "-wal")
    how = "immutable=1"
    if journal.is_file() and shared.is_file():
        how = "mode=ro&readonly_shm=1"
    elif journal.is_file() and journal.stat().st_size:
        raise sqlite3.OperationalError(f"{journal.name} cannot be read without {shared.name}")
    return sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, isolation_level=None)


def peek(directory: Path) -> Identity | None:
    """Which store the index in a directory belongs to; None if there is none, or it is damaged."""
    path = directory / INDEX
    if not path.is_file():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as base:
            (text,) = base.execute("SELECT value FROM meta WHERE name = 'identity'").fetchone()
            return from_text(text)
    except (sqlite3.Error, TypeError, ValueError):
        return None


def is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Whether it is the file that is at fault, and not the drive, a limit or somebody's rights."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN:  # also if this process may have no more files open
        return path.exists() and not path.is_file()
    return code not in NOT_DAMAGE


def as_os_error(error: sqlite3.Error, path: Path) -> OSError:
    """What SQLite says, as an error of the system."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return OSError(NOT_DAMAGE.get(code, errno.EIO), f"index: {error}", str(path))


def put_aside(path: Path, reason: str) -> None:
    """Rename a damaged index, over one that was put aside before.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = path.with_name(DAMAGED)
    path.replace(aside)
    for tail in ("-wal", "-shm"):
        path.with_name(path.name + tail).unlink(missing_ok=True)
    log.warning("%s is damaged (%s): put aside as %s, to be rebuilt", path, reason, aside.name)


def size_bytes(directory: Path) -> int:
    """Bytes of the index on the drive, with its log."""
    total = 0
    for tail in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            total += (directory / (INDEX + tail)).stat().st_size
    return total
