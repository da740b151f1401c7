"""A tier: equal slots for blocks, in one kind of memory or on drives.

A tier moves bytes and remembers the stamp that came with them. It does not choose victims, count,
wait for anybody, or check payloads, unless that costs it nothing (`checks`): the store does. It may
be called by many threads at once, for different slots; the store sees to it that nobody writes to a
slot while another uses it.

`kvbench.testing.TierTests` is what every tier and every wrapper passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvbench.store.block import Bytes, Layout, Stamp

Fact = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """The blocks that a tier found when it was opened, oldest write first; lists of equal length.

    Columns and not stamps: a million of them are read in a second. Checksums stay in the records.
    """

    slots: list[int]
    keys: list[bytes]
    parents: list[bytes | None]
    positions: list[int]
    tenants: list[str]
    quarantined: list[int]  # slots that are not to be used


NOTHING = Recovered(slots=[], keys=[], parents=[], positions=[], tenants=[], quarantined=[])


class Tier(Protocol):
    """What the store needs of a tier."""

    @property
    def name(self) -> str:
        """What it is called in results: hbm, dram, nvme."""
        ...

    @property
    def layout(self) -> Layout:
        """The shape of its blocks."""
        ...

    @property
    def slots(self) -> int:
        """How many blocks it holds; they are numbered from 0."""
        ...

    @property
    def durable(self) -> bool:
        """Whether blocks outlive the process."""
        ...

    @property
    def stalls(self) -> bool:
        """Whether an operation may take for ever (a drive), so that nobody's memory is lent to it.

        The store reads from such a tier only into memory of its own.
        """
        ...

    @property
    def parts_alone(self) -> bool:
        """Whether one part can be read without the rest of its block."""
        ...

    @property
    def at_once(self) -> bool:
        """Whether a read of many slots that are no neighbours has all of them under way at once."""
        ...

    @property
    def checks(self) -> bool:
        """Whether `read` compares payloads with their checksums, so that nobody has to do it again.

        Such a tier gives a CorruptBlockError for a payload, or a part, that is not what was stored.
        """
        ...

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """Put a block into each slot: uint8 [block_bytes] in host memory, and its stamp.

        A payload that is the slot's own `view` is in place already. What fails leaves that slot
        undefined, and is returned in its place (OSError and its kind); the others go on.
        """
        ...

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """Copy each slot's payload, or one part of it, into host memory; its stamp as found.

        Payloads are checked if the tier `checks`, and else not. `outs` are uint8 [block_bytes], or
        [part_bytes]. A slot that cannot be read (OSError), whose stamp is damaged, or that was
        never written (CorruptBlockError), has the error in its place; its `out` is then undefined.
        """
        ...

    def view(self, slot: int) -> Bytes | None:
        """The slot's own memory as uint8 [block_bytes], if the host can address it."""
        ...

    def forget(self, slots: Sequence[int]) -> None:
        """These slots no longer hold a block; a durable tier will not recover them after this.

        Raises:
            OSError: that cannot be recorded.
        """
        ...

    def quarantine(self, slots: Sequence[int], reason: str) -> None:
        """These slots are never to be used again; a durable tier remembers it."""
        ...

    def flush(self) -> None:
        """Wait until everything written so far would survive a loss of power, if it is durable.

        Raises:
            OSError: it would not.
        """
        ...

    def recover(self) -> Recovered:
        """The blocks that it holds from before. Called once, before anything is written."""
        ...

    def facts(self) -> dict[str, Fact]:
        """What a reader of a result should know: kind of memory, engine, direct I/O, node ..."""
        ...

    def close(self) -> None:
        """Give back memory and files. No other call may be under way or follow."""
        ...
