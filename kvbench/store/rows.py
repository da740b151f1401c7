"""The caller's memory: where blocks come from and go to.

Host memory is handled here. Memory of a device is behind the `Rows` protocol
(kvbench.store.device): the store hands it host memory, as much at a time as one transfer moves,
and lets it do the copying. Rows that can only do it one by one are `RowByRow`.
"""

import contextlib
from collections.abc import Generator, Sequence, Sized
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums


@runtime_checkable
class Rows(Protocol):
    """One row for each block of a request, in memory of any kind. Used by one thread a row."""

    def __len__(self) -> int: ...

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        """Copy rows into host memory, uint8 [block_bytes] each; the bytes are there on return."""
        ...

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        """Copy blocks, or one part of each, into rows; `data` may be used again on return."""
        ...

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """These rows (or that part of them) were received: return once they can be used."""
        ...


@runtime_checkable
class RowByRow(Protocol):
    """Rows as `Rows`, of a device that gains nothing by having several at a time."""

    def __len__(self) -> int: ...

    def send(self, index: int, out: Bytes) -> None:
        """Copy a row into host memory of uint8 [block_bytes]; the bytes are there on return."""
        ...

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        """Copy a block, or one part of it, into a row; `data` may be used again on return."""
        ...

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """These rows (or that part of them) were received: return once they can be used."""
        ...


class RowsError(Exception):
    """The caller's memory failed: neither a tier nor a block is to blame."""


class OtherRows:
    """Rows of another kind, whose every error is a `RowsError`."""

    def __init__(self, rows: Rows | RowByRow) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        """See `Rows.send_many`."""
        with _blamed():
            if isinstance(self.rows, Rows):
                self.rows.send_many(indexes, outs)
                return
            for index, out in zip(indexes, outs, strict=True):
                self.rows.send(index, out)

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        """See `Rows.receive_many`."""
        with _blamed():
            if isinstance(self.rows, Rows):
                self.rows.receive_many(indexes, part, data)
                return
            for index, each in zip(indexes, data, strict=True):
                self.rows.receive(index, part, each)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """See `Rows.finish`."""
        with _blamed():
            self.rows.finish(indexes, part)


@contextlib.contextmanager
def _blamed() -> Generator[None]:
    try:
        yield
    except Exception as error:  # the caller's code: anything
        raise RowsError(f"the rows failed: {type(error).__name__}: {error}") from error


def _is_array(each: object) -> TypeGuard[NDArray[Any]]:
    return isinstance(each, np.ndarray)


class HostRows:
    """Rows that are arrays in host memory, each uint8 [block_bytes] and contiguous."""

    def __init__(self, arrays: Sequence[Bytes], layout: Layout) -> None:
        self.arrays = arrays
        self._layout = layout

    def __len__(self) -> int:
        return len(self.arrays)

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        """See `Rows.send_many`."""
        self.send_with_sums(indexes, outs)

    def send_with_sums(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> list[bytes]:
        """Copy rows, and hash them by the way: faster than NumPy copies alone."""
        return copy_with_sums([self.arrays[index] for index in indexes], outs, self._layout)

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        """See `Rows.receive_many`."""
        layout = self._layout if part is None else Layout(self._layout.part_bytes)
        copy_with_sums(data, [self.target(index, part) for index in indexes], layout)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """Nothing is left to do."""

    def target(self, index: int, part: int | None) -> Bytes:
        """The memory of a row, or of one part of it."""
        row = self.arrays[index]
        return row if part is None else self._layout.part(row, part)


def as_rows(rows: object, count: int, layout: Layout, *, filled: bool = True) -> Rows:
    """What the caller gave, as rows for `count` blocks; `filled`: blocks will be copied to them.

    Takes uint8 [count, block_bytes], a sequence of uint8 [block_bytes], or, of a device, `Rows` or
    `RowByRow`.

    Raises:
        UsageError: the number, dtype, shape or order of the bytes does not fit.
    """
    if _is_array(rows) and rows.ndim != 2:  # noqa: PLR2004  rows by bytes
        raise UsageError(f"rows have {rows.ndim} dimensions: expected uint8 [blocks, block_bytes]")
    found = len(rows) if isinstance(rows, Sized) else None
    if found != count:
        raise UsageError(f"{found} rows for {count} keys: give one row for each key")
    if _is_array(rows):
        _check(rows[0] if count else np.empty(layout.block_bytes, np.uint8), layout, filled)
        return HostRows(list(rows), layout)
    if isinstance(rows, Rows | RowByRow):
        return OtherRows(rows)
    if not isinstance(rows, Sequence):
        raise UsageError(f"rows are {type(rows).__name__}: expected NumPy arrays, or `Rows`")
    arrays = cast("Sequence[Bytes]", rows)  # if they are, which is looked at next
    for row in arrays:
        _check(row, layout, filled)
    return HostRows(arrays, layout)


def _check(row: object, layout: Layout, filled: bool) -> None:
    if (
        not _is_array(row)
        or row.dtype != np.uint8
        or row.shape != (layout.block_bytes,)
        or not row.flags.c_contiguous
    ):
        seen = f"{row.dtype} {row.shape}" if _is_array(row) else type(row).__name__
        raise UsageError(f"a row is {seen}: expected contiguous uint8 [{layout.block_bytes}]")
    if filled and not row.flags.writeable:
        raise UsageError("a row is read-only: blocks cannot be copied to it")
