"""The tier of host memory: equal slots in one slab, copied to and from by the caller's thread.

Slots begin at multiples of 4 KiB, so that O_DIRECT can read and write them in place, and lie in a
memfd, so that an engine on this machine can map them (`fd`, `slot_offset_bytes`). A batch is read
in one call without the interpreter, so threads add up, and checked by the way.

May import: kvbench.errors, kvbench.store.{block, copying, memory, tier}. numpy; torch on a GPU.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np

from kvbench.errors import UsageError
from kvbench.store.block import SUM_BYTES, Bytes, CorruptBlockError, Layout, Stamp
from kvbench.store.copying import copy_with_sums
from kvbench.store.memory import PAGE_BYTES, Slab
from kvbench.store.tier import NOTHING, Fact, Recovered


class DramTier:
    """`slots` blocks in host memory.

    `node` binds them to a NUMA node; `require_locked` refuses memory that may be paged out, which
    is otherwise used and said so in `facts()["memory"]`; `pin` True demands that CUDA pins it, and
    None lets it where there is a GPU.

    Raises:
        UsageError: there is not one slot.
        TierUnavailableError: the machine has no such memory.
    """

    def __init__(
        self,
        layout: Layout,
        slots: int,
        *,
        node: int | None = None,
        require_locked: bool = False,
        pin: bool | None = None,
        name: str = "dram",
    ) -> None:
        if slots < 1:
            raise UsageError(f"a tier of {slots} slots: it needs at least one")
        self.name = name
        self.layout = layout
        self.slots = slots
        self.slot_bytes = -(-layout.block_bytes // PAGE_BYTES) * PAGE_BYTES
        self._slab = Slab(
            slots * self.slot_bytes, node=node, require_locked=require_locked, pin=pin
        )
        self._payloads = self._slab.buffer.reshape(slots, self.slot_bytes)[:, : layout.block_bytes]
        self._stamps: list[Stamp | None] = [None] * slots
        self._quarantined: set[int] = set()

    durable = False
    stalls = False
    parts_alone = True
    at_once = False
    checks = True

    @property
    def fd(self) -> int:
        """The memfd that holds all slots; map it shared. It is sealed: its size is fixed."""
        return self._slab.fd

    def slot_offset_bytes(self, slot: int) -> int:
        """Where a slot's payload begins in `fd`; a multiple of 4 KiB."""
        return self._slab.offset_bytes + slot * self.slot_bytes

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`; nothing can fail."""
        own, known = self._payloads, self._stamps
        for slot, stamp, payload in zip(slots, stamps, payloads, strict=True):
            # NumPy leaves an array alone that is assigned to itself: a payload already in place.
            np.copyto(own[slot], payload)
            known[slot] = stamp
        return [None] * len(slots)

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`; checked by the way."""
        own, known = self._payloads, self._stamps
        layout, first = self.layout, 0
        if part is not None:
            layout, first = Layout(layout.part_bytes), part
            own = own[:, part * layout.block_bytes : (part + 1) * layout.block_bytes]
        found: list[Stamp | Exception] = [
            known[slot] or CorruptBlockError(f"slot {slot} of {self.name} holds no block")
            for slot in slots
        ]
        here = [i for i, stamp in enumerate(found) if isinstance(stamp, Stamp)]
        sums = copy_with_sums([own[slots[i]] for i in here], [outs[i] for i in here], layout)
        for i, seen in zip(here, sums, strict=True):
            stamp = cast("Stamp", found[i])
            if stamp.sums[SUM_BYTES * first :][: len(seen)] != seen:
                where = "" if part is None else f"part {part} of "
                found[i] = CorruptBlockError(
                    f"{where}block {stamp.key.hex()[:16]} is not what was stored"
                )
        return found

    def view(self, slot: int) -> Bytes:
        """The slot's own memory, uint8 [block_bytes]."""
        row: Bytes = self._payloads[slot]
        return row

    def forget(self, slots: Sequence[int]) -> None:
        """These slots no longer hold a block."""
        for slot in slots:
            self._stamps[slot] = None

    def quarantine(self, slots: Sequence[int], reason: str) -> None:  # noqa: ARG002  protocol
        """These slots are not used again; they are counted in `facts()`."""
        self.forget(slots)
        self._quarantined.update(slots)

    def flush(self) -> None:
        """Nothing survives a loss of power here."""

    def recover(self) -> Recovered:
        """Nothing: memory begins empty."""
        return NOTHING

    def facts(self) -> dict[str, Fact]:
        """The kind of memory, how much of it is in huge pages, and its NUMA node."""
        return {
            "memory": self._slab.memory,
            "huge_share": round(self._slab.huge_share, 3),
            "node": self._slab.node,
            "slot_bytes": self.slot_bytes,
            "size_bytes": self._slab.size_bytes,
            "quarantined": len(self._quarantined),
        }

    def close(self) -> None:
        """Give the memory back; it stays for as long as somebody holds a view of it."""
        self._payloads = np.empty((0, 0), dtype=np.uint8)
        self._stamps = []
        self._slab.close()
