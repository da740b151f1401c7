"""The record of one block on a drive: a header of 4 KiB that says what follows, then the payload.

A header is enough to know a block again when nothing else is left, and to tell a whole header from
a torn one (CRC32) and a whole payload from a torn one (XXH3-64 of each part). It is encoded and
decoded here, one by one and many at a time. No I/O, and no payload is looked at.

May import: kvbench.errors, kvbench.store.block. numpy and xxhash, not torch.
"""

import struct
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import xxhash

from kvbench.errors import UsageError
from kvbench.store.block import (
    KEY_BYTES,
    MOST_PARTS,
    MOST_TENANT_BYTES,
    SUM_BYTES,
    Bytes,
    CorruptBlockError,
    Layout,
    Stamp,
)

PAGE_BYTES = 4096  # what every drive's direct I/O is content with
HEADER_BYTES = PAGE_BYTES
MAGIC = b"KVRECORD"
VERSION = 1
HAS_PARENT = 1

# Little-endian. From `version` on it is covered by the CRC, up to the last checksum that is there;
# what follows in the 4 KiB is zero and means nothing.
#   magic, crc; version, codec (0), flags, reserved (0), parts; namespace; key; parent;
#   position, sequence, payload bytes, XXH3-64 of the checksums (or the only one); tenant, 0-padded
_HEAD = struct.Struct("<8sI4HI32s32s32s4Q64s")
_CRC = struct.Struct("<I")
_CRC_AT, _COVERED_FROM = 8, 12
HEAD_BYTES = _HEAD.size
_PLACES = (
    ("magic", "<u8", 0),
    ("crc", "<u4", 8),
    ("version", "<u2", 12),
    ("codec", "<u2", 14),
    ("flags", "<u2", 16),
    ("parts", "<u4", 20),
    ("position", "<u8", 120),
    ("sequence", "<u8", 128),
    ("length", "<u8", 136),
)
_FIELDS = np.dtype(
    {
        "names": [name for name, _, _ in _PLACES],
        "formats": [kind for _, kind, _ in _PLACES],
        "offsets": [at for _, _, at in _PLACES],
        "itemsize": HEAD_BYTES,
    }
)
_NAMESPACE, _KEY, _PARENT, _TENANT = (
    slice(24, 56),
    slice(56, 88),
    slice(88, 120),
    slice(152, HEAD_BYTES),
)
_MAGIC_NUMBER = int.from_bytes(MAGIC, "little")


@dataclass(slots=True)
class Columns:
    """Blocks by column, which a million of them need; lists of equal length."""

    slots: list[int] = field(default_factory=list[int])
    keys: list[bytes] = field(default_factory=list[bytes])
    parents: list[bytes | None] = field(default_factory=list[bytes | None])
    positions: list[int] = field(default_factory=list[int])
    tenants: list[str] = field(default_factory=list[str])
    sequences: list[int] = field(default_factory=list[int])

    def __len__(self) -> int:
        return len(self.slots)

    def extend(self, other: "Columns") -> None:
        """Append the other's blocks."""
        self.slots += other.slots
        self.keys += other.keys
        self.parents += other.parents
        self.positions += other.positions
        self.tenants += other.tenants
        self.sequences += other.sequences

    def take(self, order: list[int]) -> "Columns":
        """The blocks at these places, in this order."""
        return Columns(
            list(map(self.slots.__getitem__, order)),
            list(map(self.keys.__getitem__, order)),
            list(map(self.parents.__getitem__, order)),
            list(map(self.positions.__getitem__, order)),
            list(map(self.tenants.__getitem__, order)),
            list(map(self.sequences.__getitem__, order)),
        )


def cut_keys(data: bytes) -> list[bytes]:
    """The 32-byte keys that lie one after the other in `data`."""
    # As V32: numpy would cut zeros off the end of an S32.
    keys: list[bytes] = np.frombuffer(data, f"V{KEY_BYTES}").tolist()
    return keys


class RecordFormat:
    """Records of one layout in one namespace (32 bytes)."""

    def __init__(self, layout: Layout, namespace: bytes) -> None:
        if len(namespace) != KEY_BYTES:
            raise UsageError(f"a namespace is {KEY_BYTES} bytes, not {len(namespace)}")
        self.layout = layout
        self.namespace = namespace
        self.payload_bytes = -(-layout.block_bytes // PAGE_BYTES) * PAGE_BYTES  # with its padding
        self.record_bytes = HEADER_BYTES + self.payload_bytes
        self._sum_bytes = SUM_BYTES * layout.parts
        self._end = HEAD_BYTES + self._sum_bytes

    def encode(self, header: Bytes, stamp: Stamp, sequence: int) -> None:
        """Put a header into uint8 [HEADER_BYTES], of which what follows the checksums is left.

        Raises:
            UsageError: the stamp is not one of this layout.
        """
        key, parent, position, name, sums = stamp
        tenant = name.encode()
        if (
            len(key) != KEY_BYTES
            or (parent is not None and len(parent) != KEY_BYTES)
            or len(tenant) > MOST_TENANT_BYTES
            or b"\0" in tenant
            or len(sums) != self._sum_bytes
            or not 0 <= position < 1 << 63
        ):
            raise self._unfit(stamp)
        view = header.data
        _HEAD.pack_into(
            view,
            0,
            MAGIC,
            0,
            VERSION,
            0,
            0 if parent is None else HAS_PARENT,
            0,
            self.layout.parts,
            self.namespace,
            key,
            parent or b"",
            position,
            sequence,
            self.layout.block_bytes,
            _top(sums),
            tenant,
        )
        view[HEAD_BYTES : self._end] = sums
        _CRC.pack_into(view, _CRC_AT, crc32(view[_COVERED_FROM : self._end]))

    def decode(self, header: Bytes | bytes) -> tuple[Stamp, int]:
        """The stamp and the sequence number in a header of HEADER_BYTES.

        Raises:
            CorruptBlockError: it is damaged, or a record of another store; it says which.
        """
        view = header.data if isinstance(header, np.ndarray) else memoryview(header)
        (
            magic,
            crc,
            version,
            codec,
            flags,
            _,
            parts,
            namespace,
            key,
            parent,
            position,
            sequence,
            length,
            top,
            tenant,
        ) = _HEAD.unpack_from(view)
        if magic != MAGIC:
            if not any(view[:HEAD_BYTES]):
                raise CorruptBlockError("no record: nothing was ever written there")
            raise CorruptBlockError(f"no record: it begins with {magic!r} instead of {MAGIC!r}")
        end = HEAD_BYTES + SUM_BYTES * parts
        if parts > MOST_PARTS or crc32(view[_COVERED_FROM:end]) != crc:
            raise CorruptBlockError("damaged header: its CRC32 does not match")
        if version != VERSION or codec or flags > HAS_PARENT:
            raise CorruptBlockError(
                f"record of version {version}, codec {codec}, flags {flags}: this kvbench reads "
                f"version {VERSION} without codec"
            )
        if namespace != self.namespace:
            raise CorruptBlockError(f"record of another namespace, {namespace.hex()[:16]}...")
        if (length, parts) != (self.layout.block_bytes, self.layout.parts):
            raise CorruptBlockError(
                f"record of {length} bytes in {parts} parts, expected {self.layout.block_bytes} "
                f"in {self.layout.parts}"
            )
        sums = bytes(view[HEAD_BYTES:end])
        if top != _top(sums):
            raise CorruptBlockError("damaged header: the checksum of its checksums does not match")
        return Stamp(
            key,
            parent if flags else None,
            position,
            tenant.rstrip(b"\0").decode(errors="replace"),
            sums,
        ), sequence

    def decode_many(self, headers: Bytes, slots: range | list[int]) -> Columns:
        """The blocks whose headers are whole and of this store, of uint8 [n, >= HEADER_BYTES].

        Those that `decode` would refuse are left out. Checksums stay where they are.
        """
        head = np.ascontiguousarray(headers[:, : self._end])
        fields = np.ndarray(len(head), _FIELDS, head.data, strides=(self._end,))
        fits = (
            (fields["magic"] == _MAGIC_NUMBER)
            & (fields["version"] == VERSION)
            & (fields["codec"] == 0)
            & (fields["flags"] <= HAS_PARENT)
            & (fields["length"] == self.layout.block_bytes)
            & (fields["parts"] == self.layout.parts)
            & (fields["position"] < 1 << 63)
            & (fields["sequence"] < 1 << 63)
            & (head[:, _NAMESPACE] == np.frombuffer(self.namespace, np.uint8)).all(axis=1)
        )
        view = memoryview(head.reshape(-1).data)
        width, end = self._end, self._end
        crcs = fields["crc"].tolist()
        good = [
            i
            for i in np.flatnonzero(fits).tolist()
            if crc32(view[i * width + _COVERED_FROM : i * width + end]) == crcs[i]
        ]
        chosen, kept = head[good], fields[good]
        names: dict[bytes, str] = {}
        tenants: list[str] = []
        raw = chosen[:, _TENANT].tobytes()
        for at in range(0, len(raw), MOST_TENANT_BYTES):
            padded = raw[at : at + MOST_TENANT_BYTES]
            name = names.get(padded)
            if name is None:
                name = names[padded] = padded.rstrip(b"\0").decode(errors="replace")
            tenants.append(name)
        parents: list[bytes | None] = list(cut_keys(chosen[:, _PARENT].tobytes()))
        for i in np.flatnonzero(kept["flags"] == 0).tolist():
            parents[i] = None
        return Columns(
            [slots[i] for i in good],
            cut_keys(chosen[:, _KEY].tobytes()),
            parents,
            kept["position"].tolist(),
            tenants,
            kept["sequence"].tolist(),
        )

    def _unfit(self, stamp: Stamp) -> UsageError:
        return UsageError(
            f"a stamp has keys of {KEY_BYTES} bytes, a tenant of at most {MOST_TENANT_BYTES} bytes "
            f"of UTF-8 without NUL, {self._sum_bytes} bytes of checksums and a position from 0 on; "
            f"this has a key of {len(stamp.key)} bytes, tenant {stamp.tenant!r}, "
            f"{len(stamp.sums)} bytes of checksums and position {stamp.position}"
        )


def _top(sums: bytes) -> int:
    """The checksum of a payload of one part is its own; of several, that of the list."""
    if len(sums) == SUM_BYTES:
        return int.from_bytes(sums, "little")
    return xxhash.xxh3_64_intdigest(sums)
