"""What a store is, and where that is written: in two equal pages at the head of each data file.

A directory of another store, layout, namespace or format is thereby refused, and a lost index does
not matter. The index keeps the same facts as text, for the day when both pages are damaged.

May import: kvbench.errors, kvbench.store.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import msgspec

from kvbench.errors import UsageError
from kvbench.store.block import Layout
from kvbench.store.records import PAGE_BYTES, RecordFormat
from kvbench.units import exact_bytes

DATA = "blocks.kvb"
HEAD_BYTES = 2 * PAGE_BYTES  # of each data file
FORMAT = 1
_MAGIC = b"KVSTORE\n"
# magic, crc of what follows; format, drive, drives, reserved, parts; payload bytes, slots;
# namespace, store
_HEAD = struct.Struct("<8sI4HIQQ32s16s")
_COVERED_FROM = 12


class OtherStoreError(UsageError):
    """A directory holds a store, but not the one that was to be opened."""

    code = "other_store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What all files of one store agree on."""

    layout: Layout
    namespace: bytes
    drives: int
    store: bytes  # 16 random bytes, made once

    def record_format(self) -> RecordFormat:
        """How its records are written."""
        return RecordFormat(self.layout, self.namespace)

    def as_text(self) -> str:
        """One line of JSON."""
        return msgspec.json.encode(
            _Text(
                self.layout.block_bytes,
                self.layout.parts,
                self.namespace.hex(),
                self.drives,
                self.store.hex(),
            )
        ).decode()


def from_text(text: str) -> Identity:
    """What `as_text` made. Raises ValueError if it is not that."""
    found = msgspec.json.decode(text, type=_Text)
    return Identity(
        layout=Layout(found.block_bytes, found.parts),
        namespace=bytes.fromhex(found.namespace),
        drives=found.drives,
        store=bytes.fromhex(found.store),
    )


class _Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of an identity, for JSON."""

    block_bytes: int
    parts: int
    namespace: str
    drives: int
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the first page of a data file says."""

    identity: Identity
    drive: int
    slots: int  # of the whole store

    def encode(self) -> bytes:
        """One page."""
        one = self.identity
        raw = bytearray(PAGE_BYTES)
        _HEAD.pack_into(
            raw,
            0,
            _MAGIC,
            0,
            FORMAT,
            self.drive,
            one.drives,
            0,
            one.layout.parts,
            one.layout.block_bytes,
            self.slots,
            one.namespace,
            one.store,
        )
        struct.pack_into("<I", raw, 8, crc32(raw[_COVERED_FROM : _HEAD.size]))
        return bytes(raw)


def read_head(directory: Path) -> Head | None:
    """What the data file in a directory says it is; None if it cannot say.

    Raises:
        OtherStoreError: a store of another version of the format.
        OSError: the file cannot be read.
    """
    try:
        with (directory / DATA).open("rb") as file:
            raw = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return None
    for at in (0, PAGE_BYTES):
        page = raw[at : at + PAGE_BYTES]
        if len(page) < _HEAD.size or page[:8] != _MAGIC:
            continue
        _, crc, made, drive, drives, _, parts, length, slots, namespace, store = _HEAD.unpack_from(
            page
        )
        if crc32(page[_COVERED_FROM : _HEAD.size]) != crc:
            continue
        if made != FORMAT:
            raise OtherStoreError(
                f"{directory} holds a store of format {made}, and this kvbench reads format "
                f"{FORMAT}: use the kvbench that made it, or name another directory"
            )
        identity = Identity(
            layout=Layout(length, parts), namespace=namespace, drives=drives, store=store
        )
        return Head(identity=identity, drive=drive, slots=slots)
    return None


def new_identity(layout: Layout, namespace: bytes, drives: int) -> Identity:
    """A store that did not exist before."""
    return Identity(layout=layout, namespace=namespace, drives=drives, store=os.urandom(16))


def same_store(directory: Path, found: Identity | None, wanted: Identity) -> Identity:
    """The store that a directory holds, or the new one that was wanted if it holds none.

    Raises:
        OtherStoreError: it holds one of another layout or namespace; the message says what differs.
    """
    if found is None:
        return wanted
    said: list[str] = []
    if found.layout.block_bytes != wanted.layout.block_bytes:
        said.append(
            f"blocks of {exact_bytes(found.layout.block_bytes)} instead of "
            f"{exact_bytes(wanted.layout.block_bytes)}"
        )
    if found.layout.parts != wanted.layout.parts:
        said.append(f"{found.layout.parts} parts a block instead of {wanted.layout.parts}")
    if found.namespace != wanted.namespace:
        said.append(
            f"namespace {found.namespace.hex()[:16]}... instead of {wanted.namespace.hex()[:16]}..."
        )
    if found.drives != wanted.drives:
        said.append(f"{found.drives} directories instead of {wanted.drives}")
    if said:
        raise OtherStoreError(
            f"{directory} holds another store: {', '.join(said)}; name another directory, or empty "
            "this one"
        )
    return found


def write_head(path: Path, head: Head) -> None:
    """Say in both copies what a file is; one of the two is whole at any instant.

    Raises:
        OSError: it cannot be written.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        for at in (0, PAGE_BYTES):
            os.pwrite(fd, head.encode(), at)
            os.fsync(fd)
    finally:
        os.close(fd)
