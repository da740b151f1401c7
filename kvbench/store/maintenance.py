"""What can be done to a store that nobody has open: look at it, check its records, shrink it.

Layout, namespace and size are read from the data files, so a directory is all that is needed.
Only `inspect` works on a store that is in use, or on a drive that is read-only: it takes no lock
and writes nothing, and sees what was last committed.

May import: kvbench.errors, kvbench.store. numpy, not torch.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kvbench.errors import UsageError
from kvbench.store.block import payload_matches
from kvbench.store.drives import LOCK, Striping
from kvbench.store.identity import DATA, Head, OtherStoreError, read_head
from kvbench.store.index_file import INDEX, look, size_bytes
from kvbench.store.lock import holder
from kvbench.store.nvme import NvmeTier
from kvbench.store.posix import mapped_buffer
from kvbench.units import MIB, format_bytes

BATCH_BYTES = 4 * MIB  # read, or moved, at a time
THREADS = 4
LOOKS = 3  # at an index that somebody opens or closes meanwhile

Progress = Callable[[int, int], None]  # done so far, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is in a store, by its index. Sizes in bytes."""

    directories: list[str]
    block_bytes: int
    parts: int
    namespace: str  # hex
    drives: int
    slots: int
    capacity_bytes: int  # of the data files
    index_bytes: int
    blocks: int | None  # None: the index cannot say
    tenants: dict[str, int] = field(default_factory=dict[str, int])  # blocks of each
    quarantined: dict[int, str] = field(default_factory=dict[int, str])
    written_bytes_by_day: dict[str, int] = field(default_factory=dict[str, int])
    closed_cleanly: bool | None = None
    in_use_by: str | None = None  # who has it open: then all this is a moment's view
    damage: str | None = None  # why the index cannot say


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """One record that cannot be served."""

    slot: int
    key: str  # hex, as the index has it
    reason: str


@dataclass(slots=True, kw_only=True)
class Verification:
    """What `verify` found."""

    checked: int = 0
    damaged: list[Damaged] = field(default_factory=list[Damaged])
    quarantined: list[int] = field(default_factory=list[int])  # that are still so
    released: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What `compact` did. Sizes in bytes, of the data files."""

    before_bytes: int
    after_bytes: int
    moved: int
    dropped: list[Damaged]  # damaged records that would have had to move


def inspect(directories: Sequence[Path]) -> Inspection:
    """Look at a store. Takes no lock and changes nothing, whether it is in use or not.

    What a store in use has not committed yet, about the last second, is not seen.

    Raises:
        UsageError: a directory holds no store.
        OSError: a file cannot be read.
    """
    found = _inspection(directories)
    for _ in range(LOOKS - 1):
        if _in_use_by(directories) == found.in_use_by:
            break
        found = _inspection(directories)
    return found


def _in_use_by(directories: Sequence[Path]) -> str | None:
    for each in directories:
        who = holder(Path(each) / LOCK)
        if who is not None:
            return f"{each} is in use by {who}"
    return None


def _inspection(directories: Sequence[Path]) -> Inspection:
    head = the_head(directories)
    in_use = _in_use_by(directories)
    one = head.identity
    index = Path(directories[0]) / INDEX
    found: dict[str, Any] = {}
    damage = None
    try:
        found = _ask(index)
    except sqlite3.Error as error:
        damage = f"{error}: the next opening rebuilds it from the records if need be"
    except FileNotFoundError:
        damage = "there is none: the next opening rebuilds it from the records"
    return Inspection(
        directories=[str(each) for each in directories],
        block_bytes=one.layout.block_bytes,
        parts=one.layout.parts,
        namespace=one.namespace.hex(),
        drives=one.drives,
        slots=head.slots,
        capacity_bytes=Striping(one.drives, one.record_format().record_bytes).capacity(head.slots),
        index_bytes=size_bytes(index.parent),
        in_use_by=in_use,
        damage=damage,
        blocks=found.get("blocks"),
        tenants=found.get("tenants", {}),
        quarantined=found.get("quarantined", {}),
        written_bytes_by_day=found.get("wear", {}),
        closed_cleanly=found.get("clean"),
    )


def verify(
    directories: Sequence[Path], *, release: bool = False, progress: Progress | None = None
) -> Verification:
    """Read every record that the index names, and check it against its checksums.

    Damaged ones stay as they are: whoever reads one is told, as ever. `release` tries each
    quarantined slot with a record of its own, and lets those be used again that hold it.

    Raises:
        UsageError: a directory holds no store, or it is in use.
        OSError: a file cannot be read.
    """
    with opened(directories) as tier:
        found = tier.recover()
        result = Verification(quarantined=list(found.quarantined))
        names = dict(zip(found.slots, found.keys, strict=True))
        slots = sorted(names)
        step = max(1, BATCH_BYTES // tier.drives.format.record_bytes)
        batches = [slots[at : at + step] for at in range(0, len(slots), step)]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
            for damaged in pool.map(partial(_damaged, tier, names), batches):
                result.damaged += damaged
                result.checked += step
                if progress is not None:
                    progress(min(result.checked, len(slots)), len(slots))
        result.checked = len(slots)
        if release:
            for slot in found.quarantined:
                if tier.revive(slot) is None:
                    result.released.append(slot)
                    result.quarantined.remove(slot)
    return result


def compact(
    directories: Sequence[Path],
    *,
    to_bytes: int | None = None,
    progress: Progress | None = None,
) -> Compaction:
    """Move blocks to the front of the data files, cut them off behind, and shrink the index.

    To `to_bytes`, or as small as the blocks that are there allow. Whatever stops it loses nothing:
    a block is in its old slot until it is whole and safe in its new one, and the files are cut
    when nothing lies behind. Run it again to go on.

    Raises:
        UsageError: no store, in use, or `to_bytes` is too small for its blocks, or not smaller.
        OSError: a drive refuses.
    """
    with opened(directories) as tier:
        found = tier.recover()
        striping = tier.drives.striping
        bad = set(found.quarantined)
        needed = _needed(len(found.slots), bad)
        slots = needed if to_bytes is None else striping.slots_in(to_bytes)
        before = striping.capacity(tier.slots)
        if slots > tier.slots:
            raise UsageError(
                f"the store has {format_bytes(before)} already, which is less: to make it larger "
                "open it with a larger capacity"
            )
        if slots < needed:
            raise UsageError(
                f"{len(found.slots)} blocks need {striping.capacity(needed)} bytes, more than "
                f"{to_bytes}: give --to {striping.capacity(needed)} or more"
            )
        names = dict(zip(found.slots, found.keys, strict=True))
        sources = sorted(slot for slot in found.slots if slot >= slots)
        free = sorted(set(range(slots)) - names.keys() - bad)
        dropped: list[Damaged] = []
        step = max(1, BATCH_BYTES // tier.drives.format.record_bytes)
        for at in range(0, len(sources), step):
            batch = sources[at : at + step]
            failed = tier.move(batch, free[at : at + step])
            dropped += [
                Damaged(slot=slot, key=names[slot].hex(), reason=str(error))
                for slot, error in failed.items()
            ]
            if progress is not None:
                progress(min(at + step, len(sources)), len(sources))
        tier.index.cut(slots)  # first what names the slots behind, then what says how many
        tier.drives.cut(slots)
    return Compaction(
        before_bytes=before,
        after_bytes=striping.capacity(slots),
        moved=len(sources) - len(dropped),
        dropped=dropped,
    )


def the_head(directories: Sequence[Path]) -> Head:
    """What the data files of a store say that they are.

    Raises:
        UsageError: a directory holds no store, or not all of one.
        OSError: a file cannot be read.
    """
    first: Head | None = None
    for at, each in enumerate(directories):
        directory = Path(each)
        if not directory.is_dir():
            raise UsageError(f"{directory} is not a directory")
        if not (directory / DATA).is_file():
            raise UsageError(f"{directory} holds no store: there is no {DATA} in it")
        head = read_head(directory)
        if head is None:
            raise UsageError(
                f"{directory / DATA} does not say what it is: both pages at its head are damaged. "
                "Open it once with the layout and namespace that it was made with"
            )
        if (head.drive, head.identity.drives) != (at, len(directories)):
            raise OtherStoreError(
                f"{directory} is number {head.drive + 1} of the {head.identity.drives} directories "
                "of its store: name them all, in the order they were made in"
            )
        first = first or head
    assert first is not None, "a store has at least one directory"
    return first


@contextlib.contextmanager
def opened(directories: Sequence[Path]) -> Generator[NvmeTier]:
    """A store as it is, of whatever layout and namespace, and as large."""
    head = the_head(directories)
    tier = NvmeTier(
        directories,
        head.identity.layout,
        capacity_bytes=None,
        namespace=head.identity.namespace,
        min_free_bytes=0,  # nothing is made larger
    )
    try:
        yield tier
    finally:
        tier.close()


def _ask(index: Path) -> dict[str, Any]:
    with contextlib.closing(look(index)) as base:
        base.execute("BEGIN")  # one state, also of a store that is in use
        clean, complete = (
            base.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]
            for name in ("clean", "complete")
        )
        tenants = dict(
            base.execute(
                "SELECT name, count(*) FROM blocks JOIN tenants ON tenant = id "
                "GROUP BY id ORDER BY name"
            )
        )
        return {
            "blocks": sum(tenants.values()) if complete else None,
            "tenants": tenants,
            "quarantined": dict(base.execute("SELECT slot, reason FROM quarantine ORDER BY slot")),
            "wear": dict(base.execute("SELECT day, bytes FROM wear ORDER BY day")),
            "clean": bool(clean),
        }


def _damaged(tier: NvmeTier, names: dict[int, bytes], slots: Sequence[int]) -> list[Damaged]:
    size = tier.drives.format.payload_bytes
    block = tier.layout.block_bytes
    outs = [row[:block] for row in mapped_buffer(len(slots) * size).reshape(len(slots), size)]
    found: list[Damaged] = []
    for slot, stamp, out in zip(slots, tier.read(slots, outs), outs, strict=True):
        reason = ""
        if isinstance(stamp, Exception):
            reason = str(stamp)
        elif stamp.key != names[slot]:
            reason = f"the record is of another block, {stamp.key.hex()}"
        elif not payload_matches(stamp, out, tier.layout):
            reason = "the payload does not match its checksums"
        if reason:
            found.append(Damaged(slot=slot, key=names[slot].hex(), reason=reason))
    return found


def _needed(blocks: int, bad: set[int]) -> int:
    """The fewest slots from the front on that have room for so many blocks; at least one."""
    slots = max(1, blocks)
    while (more := max(1, blocks) + sum(slot < slots for slot in bad)) != slots:
        slots = more
    return slots
