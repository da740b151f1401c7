"""One read from a tier in memory into the rows of a request, on a worker."""

import time
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from kvbench.store.block import (
    SUM_BYTES,
    Bytes,
    CorruptBlockError,
    Layout,
    OtherBlockError,
    Stamp,
    Status,
)
from kvbench.store.copying import sums_of
from kvbench.store.core import Level
from kvbench.store.metrics import Counted
from kvbench.store.request import Request
from kvbench.store.rows import HostRows, Rows, RowsError
from kvbench.store.spans import COPY

if TYPE_CHECKING:
    from kvbench.store.gets import Gets

QUEUE_FULL = "too many reads are waiting"


class Item(NamedTuple):
    """One key of a request, and the leased slot where its block lies."""

    place: int  # in the request
    key: bytes
    slot: int


def problems(
    found: Sequence[Stamp | Exception],
    keys: Sequence[bytes],
    part: int | None = None,
    sums: Sequence[bytes] | None = None,
) -> list[Exception | None]:
    """What is wrong with each block, or part of one, that arrived.

    `sums` are the checksums of its bytes; None: those are not looked at.
    """
    first = part or 0
    wrong: list[Exception | None] = []
    for at, (stamp, key) in enumerate(zip(found, keys, strict=True)):
        if isinstance(stamp, Exception):
            wrong.append(stamp)
        elif stamp.key != key:
            wrong.append(
                OtherBlockError(f"asked for block {key.hex()[:16]}, found {stamp.key.hex()[:16]}")
            )
        elif sums is not None and stamp.sums[SUM_BYTES * first :][: len(sums[at])] != sums[at]:
            where = "" if part is None else f"part {part} of "
            wrong.append(CorruptBlockError(f"{where}block {key.hex()[:16]} is not what was stored"))
        else:
            wrong.append(None)
    return wrong


def shape_of(layout: Layout, part: int | None) -> Layout:
    """The layout of what moves: a block, or one part of it, which has one checksum."""
    return layout if part is None else Layout(layout.part_bytes)


class MemoryRead:
    """Blocks from a tier in memory into rows, on a worker."""

    def __init__(
        self,
        gets: "Gets",
        level: Level,
        request: Request,
        items: list[Item],
        rows: Rows,
        by_layer: bool,
    ) -> None:
        self.level = level
        self._gets = gets
        self._request = request
        self._items = items
        self._held = [item.slot for item in items]
        self._rows = rows
        self._parts: Sequence[int | None] = range(gets.core.layout.parts) if by_layer else (None,)

    def run(self) -> None:
        """Copy, check, settle; then let the slots go."""
        start_ns = time.perf_counter_ns()
        core, request = self._gets.core, self._request
        claimed = set(request.claim([item.place for item in self._items]))
        items = [item for item in self._items if item.place in claimed]
        bad: list[tuple[Item, Exception]] = []
        stamps: list[Stamp] = []
        for part in self._parts:
            try:
                items, wrong, stamps = self._copy(items, part)
            except RowsError as failed:
                for item, error in bad:
                    self._gets.failed(self.level, item.slot, item.key, error)
                self._let_go()
                request.settle([item.place for item in self._items], Status.BUSY, str(failed))
                return
            bad += wrong
            if part is not None:
                request.arrived([item.place for item in items], part)
        if items:
            self._gets.served(self.level, [item.key for item in items], stamps)
            request.settle([item.place for item in items], Status.OK)
        for item, error in bad:
            self._gets.failed(self.level, item.slot, item.key, error)
        self._let_go()
        end_ns = time.perf_counter_ns()
        core.metrics.observe("get", self.level.name, (end_ns - start_ns) / 1e9, len(items))
        core.note(f"get {self.level.name}", COPY, start_ns, end_ns, len(items))
        request.unclaim(item.place for item, _ in bad)
        for item, error in bad:
            self._gets.after(request, item.place, item.key, self._rows, error)
        core.tidy(self.level)

    def fail(self, reason: str) -> None:
        """It raised, or its tier was given up before it began."""
        self._let_go()
        if self.level.readable:
            self._gets.core.crashed(self.level, "read", reason)
            # Not a MISS: the blocks are still here.
            self._request.settle([item.place for item in self._items], Status.BUSY, reason)
            return
        self._request.unclaim(item.place for item in self._items)
        for item in self._items:
            self._gets.again(self._request, item.place, item.key, self._rows)

    def refuse(self) -> None:
        """The queue is full."""
        self._let_go()
        self._gets.core.metrics.count(Counted.BUSY, len(self._items), tier=self.level.name)
        self._request.settle([item.place for item in self._items], Status.BUSY, QUEUE_FULL)

    def _let_go(self) -> None:
        held, self._held = self._held, []
        with self._gets.core.lock:
            self._gets.core.release(self.level, held)

    def _copy(
        self, items: list[Item], part: int | None
    ) -> tuple[list[Item], list[tuple[Item, Exception]], list[Stamp]]:
        """Copy one part of each block, or all of it: the good ones, the bad ones, the stamps."""
        layout, rows = self._gets.core.layout, self._rows
        host = isinstance(rows, HostRows)  # then the tier copies into the rows itself
        good: list[Item] = []
        bad: list[tuple[Item, Exception]] = []
        stamps: list[Stamp] = []
        size_bytes = layout.block_bytes if part is None else layout.part_bytes
        step = max(1, self._gets.core.options.transfer_bytes // size_bytes)
        for at in range(0, len(items), step):
            some = items[at : at + step]
            data, found, checked = self._arrive(some, part)
            keys = [item.key for item in some]
            sums = None if checked else sums_of(data, shape_of(layout, part))
            wrong = problems(found, keys, part, sums)
            bad += [(item, error) for item, error in zip(some, wrong, strict=True) if error]
            whole = [error is None for error in wrong]
            arrived = list(compress(some, whole))
            good += arrived
            stamps += cast("list[Stamp]", list(compress(found, whole)))
            if arrived and not host:
                places = [item.place for item in arrived]
                rows.receive_many(places, part, list(compress(data, whole)))
        rows.finish([item.place for item in good], part)
        return good, bad, stamps

    def _arrive(
        self, items: list[Item], part: int | None
    ) -> tuple[Sequence[Bytes], Sequence[Stamp | Exception], bool]:
        """Blocks where they can be checked: in the rows, if those are in host memory.

        Their stamps with them, and whether the tier has checked them already.
        """
        slots, rows, tier = [item.slot for item in items], self._rows, self.level.tier
        if not isinstance(rows, HostRows):
            return self._in_place(slots, part)
        targets = [rows.target(item.place, part) for item in items]
        return targets, tier.read(slots, targets, part), tier.checks

    def _in_place(
        self, slots: list[int], part: int | None
    ) -> tuple[Sequence[Bytes], Sequence[Stamp | Exception], bool]:
        """Payloads for a device to fetch: the slots' own memory where the host can address it."""
        layout, tier, table = self._gets.core.layout, self.level.tier, self.level.table
        views = [tier.view(slot) for slot in slots]
        whole = [view for view in views if view is not None]
        if len(whole) == len(slots):
            if part is not None:
                whole = [layout.part(view, part) for view in whole]
            return whole, [table.stamp(slot) for slot in slots], False
        size = layout.block_bytes if part is None else layout.part_bytes
        targets = [np.empty(size, np.uint8) for _ in slots]
        return targets, tier.read(slots, targets, part), tier.checks
