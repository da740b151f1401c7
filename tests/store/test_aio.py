"""Many transfers in one call of the kernel: each has its own answer, and its own bytes."""

import errno
import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from kvbench.store import aio
from kvbench.store.aio import Queue, Transfer
from kvbench.store.posix import Bytes, mapped_buffer

PAGE = 4096
PAGES = 64


@pytest.fixture
def queue() -> Generator[Queue]:
    """A queue of few places, so that more transfers than that go in turns."""
    made = Queue(depth=8)
    yield made
    made.close()


@pytest.fixture
def fd(tmp_path: Path) -> Generator[int]:
    """A file of pages, each full of its own number."""
    path = tmp_path / "pages"
    path.write_bytes(b"".join(bytes([page]) * PAGE for page in range(PAGES)))
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


def pages(count: int) -> list[Bytes]:
    return list(mapped_buffer(count * PAGE).reshape(count, PAGE))


def test_scattered_reads_each_bring_their_own_page(queue: Queue, fd: int) -> None:
    order = np.random.default_rng(1).permutation(PAGES - 1).tolist()
    into = pages(2 * len(order))
    transfers = [
        Transfer(fd, into[2 * at : 2 * at + 2], page * PAGE) for at, page in enumerate(order)
    ]
    assert queue.run("read", transfers) == [2 * PAGE] * len(order)
    for at, page in enumerate(order):
        assert set(into[2 * at].tolist()) == {page}
        assert set(into[2 * at + 1].tolist()) == {page + 1}


def test_what_is_written_is_there_afterwards(queue: Queue, fd: int) -> None:
    out = pages(20)
    for at, page in enumerate(out):
        page[:] = 200 + at
    assert (
        queue.run("write", [Transfer(fd, [page], 3 * at * PAGE) for at, page in enumerate(out)])
        == [PAGE] * 20
    )
    assert [os.pread(fd, 1, 3 * at * PAGE)[0] for at in range(20)] == list(range(200, 220))
    assert os.pread(fd, 1, PAGE)[0] == 1  # and nothing beside it


def test_one_that_fails_does_not_take_the_others_with_it(queue: Queue, fd: int) -> None:
    into = pages(12)
    wrong = {3: Transfer(999_999, [into[3]], 0), 7: Transfer(fd, [into[7]], -PAGE)}
    transfers = [wrong.get(at, Transfer(fd, [into[at]], at * PAGE)) for at in range(12)]
    done = queue.run("read", transfers)
    assert done[3] == -errno.EBADF
    assert done[7] == -errno.EINVAL
    assert [done[at] for at in range(12) if at not in wrong] == [PAGE] * 10
    assert [into[at][0] for at in range(12) if at not in wrong] == [
        at for at in range(12) if at not in wrong
    ]


def test_a_read_past_the_end_says_how_much_came(queue: Queue, fd: int) -> None:
    into = pages(3)
    last, beyond = (PAGES - 1) * PAGE, PAGES * PAGE
    done = queue.run("read", [Transfer(fd, into[:2], last), Transfer(fd, [into[2]], beyond)])
    assert done == [PAGE, 0]


def test_nothing_to_do_is_nothing_done(queue: Queue) -> None:
    assert queue.run("read", []) == []


def test_a_thread_keeps_its_queue() -> None:
    assert aio.queue() is aio.queue() is not None


def test_a_machine_without_the_calls_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64"):
        Queue()
