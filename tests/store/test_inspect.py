"""Looking at a store disturbs nobody: no lock is held, no file is made, no writer waits."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from kvbench.store.drives import LOCK
from kvbench.store.identity import DATA
from kvbench.store.index_file import INDEX, look
from kvbench.store.lock import LockFile, StoreInUseError, holder
from kvbench.store.maintenance import inspect
from tests.store.on_drives import blocks, fill, key_of, opened, write

REPOSITORY = Path(__file__).parents[2]
# A store in a process of its own: each line says how many blocks to store, the end to close it.
RUNNING = """
import sys
from pathlib import Path
from tests.store.on_drives import opened, write
tier = opened(Path(sys.argv[1]), slots=None)
tier.recover()
slot = 100
print("open", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        assert write(tier, [slot - 100], [slot]) == [None]
        slot += 1
    tier.flush()
    print("flushed", flush=True)
tier.close()
print("closed", flush=True)
"""
ANOTHER_USER = """
import os, sys
from pathlib import Path
from kvbench.store.maintenance import inspect
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
found = inspect([Path(sys.argv[1])])
print(found.blocks, (found.in_use_by or "").partition(" on ")[0])
"""
SLOTS = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of 40 slots with one block, closed."""
    made = opened(tmp_path / "store", slots=SLOTS)
    fill(made, [39])
    made.close()
    return tmp_path / "store"


class Running:
    """A store that another process has open."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.pid = process.pid
        self._process = process

    def told(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def store(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        assert self.told() == "flushed"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self.told() == "closed"
        assert self._process.wait() == 0


@pytest.fixture
def running(folder: Path) -> Generator[Running]:
    words = [sys.executable, "-c", RUNNING, str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=REPOSITORY, **pipes) as process:
        try:
            one = Running(process)
            assert one.told() == "open"
            yield one
        finally:
            process.kill()


def all_of(folder: Path) -> dict[str, tuple[bytes, int, int, int]]:
    """Every file with its content, when it was changed, its owner and its inode."""
    found: dict[str, tuple[bytes, int, int, int]] = {}
    for path in folder.iterdir():
        now = path.stat()
        found[path.name] = (path.read_bytes(), now.st_mtime_ns, now.st_uid, now.st_ino)
    return found


# ---------------------------------------------------------------- a store that nobody has open


def test_looking_at_a_closed_store_leaves_it_as_it_was_to_the_last_file(folder: Path) -> None:
    before = all_of(folder)
    assert set(before) == {DATA, INDEX, LOCK}
    found = inspect([folder])
    assert (found.blocks, found.in_use_by, found.closed_cleanly) == (1, None, True)
    assert all_of(folder) == before


def test_looking_at_a_store_that_was_killed_sees_all_that_was_committed_and_changes_nothing(
    folder: Path, tmp_path: Path
) -> None:
    tier = opened(folder, slots=None)
    tier.recover()
    write(tier, [1, 2], [1, 2])
    tier.flush()
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)  # with its log, as a kill leaves it
    tier.close()
    before = all_of(killed)
    assert before[f"{INDEX}-wal"][0]
    found = inspect([killed])
    assert (found.blocks, found.in_use_by, found.closed_cleanly) == (3, None, False)
    assert all_of(killed) == before
    after = opened(killed, slots=None)
    assert sorted(blocks(after)) == [1, 2, 39]
    after.close()
    (killed / f"{INDEX}-wal").write_bytes(before[f"{INDEX}-wal"][0])
    found = inspect([killed])
    assert "cannot be read without" in (found.damage or "")
    assert not (killed / f"{INDEX}-shm").exists()


def test_looking_opens_nothing_for_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    flags_seen: list[int] = []

    def open_(path: Any, flags: int, *more: Any, **others: Any) -> int:
        flags_seen.append(flags)
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", open_)
    inspect([folder])
    assert flags_seen
    assert all(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0 for flags in flags_seen)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_who_may_only_read_can_look_at_a_store_in_use() -> None:
    with tempfile.TemporaryDirectory() as name:  # which others may enter, unlike `tmp_path`
        folder = Path(name) / "store"
        tier = opened(folder, slots=SLOTS)
        fill(tier, [1, 2, 3])
        tier.flush()
        for path in (folder.parent, folder, *folder.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        before = all_of(folder)
        words = [sys.executable, "-c", ANOTHER_USER, str(folder)]
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        assert done.stdout == f"3 {folder} is in use by process {os.getpid()}\n"
        assert all_of(folder) == before
        assert write(tier, [4], [4]) == [None]
        tier.close()


# ---------------------------------------------------------------- a store that is in use


def test_a_store_of_another_process_is_seen_as_it_was_at_its_last_commit(
    folder: Path, running: Running
) -> None:
    running.store(3)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    found = inspect([folder])
    assert found.blocks == 4
    assert found.in_use_by is not None
    assert found.in_use_by.startswith(f"{folder} is in use by process {running.pid} on ")
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    running.store(5)
    assert inspect([folder]).blocks == 9
    running.close()
    found = inspect([folder])
    assert (found.blocks, found.in_use_by, found.closed_cleanly) == (9, None, True)


def test_who_looks_holds_up_neither_a_commit_nor_a_close_and_sees_one_state(
    folder: Path, running: Running
) -> None:
    running.store(2)
    with contextlib.closing(look(folder / INDEX)) as base:
        base.execute("BEGIN")
        count = "SELECT count(*) FROM blocks"
        assert base.execute(count).fetchone() == (3,)
        running.store(20)
        assert base.execute(count).fetchone() == (3,)
        running.close()
        assert base.execute(count).fetchone() == (3,)
    after = opened(folder, slots=None)
    assert sorted(blocks(after).values()) == sorted(map(key_of, (39, *range(100, 122))))
    after.close()
    assert set(all_of(folder)) == {DATA, INDEX, LOCK}


def test_what_is_closed_while_somebody_looks_is_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opened(folder, slots=None)
    tier.recover()
    write(tier, [1], [1])
    looked: list[Path] = []

    def and_close(path: Path) -> Any:
        base = look(path)
        if not looked:
            tier.close()
        looked.append(path)
        return base

    monkeypatch.setattr("kvbench.store.maintenance.look", and_close)
    found = inspect([folder])
    assert len(looked) == 2
    assert (found.blocks, found.in_use_by, found.closed_cleanly) == (2, None, True)


# ---------------------------------------------------------------- the lock


def test_who_asks_for_the_holder_of_a_lock_does_not_have_it(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    assert holder(path) is None
    assert not path.exists()
    mine = LockFile(path)
    assert (holder(path) or "").startswith(f"process {os.getpid()} on ")
    with pytest.raises(StoreInUseError):
        LockFile(path)
    mine.close()
    assert holder(path) is None
    path.write_text("4711 elsewhere\n")  # as a kill leaves it
    assert holder(path) is None
    LockFile(path).close()


def test_an_opener_gets_in_though_somebody_is_just_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / LOCK
    LockFile(path).close()
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    monkeypatch.setattr("kvbench.store.lock.time.sleep", lambda _: fcntl.flock(fd, fcntl.LOCK_UN))
    LockFile(path).close()
    os.close(fd)
