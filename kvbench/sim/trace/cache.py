"""The columns of a trace kept beside its file, so that it is parsed once.

`FILE.kvbench-columns`, or in the user's cache directory where the file's cannot be written. It
holds the size and the digest of the file that it was made from, and begins with a digest of all
that follows; one that does not agree with either is never used, and replaced. Losing it costs only
time.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from kvbench.sim.columns import Columns

VERSION = 1  # of what is kept and of what the readers make of a file
LEAST_BYTES = 256 * 1024  # a smaller file is parsed as fast
SUFFIX = ".kvbench-columns"

# A file is MAGIC, XXH3-128 of the rest, the head's length (u32), the head (JSON), the arrays in
# this order. All is little-endian, as is every machine that kvbench runs on.
_MAGIC = b"kvbcols1"
_DIGEST_BYTES = 16
_LENGTH_BYTES = 4
_ARRAYS = {
    "arrival_s": np.float64,
    "input_tokens": np.int32,
    "output_tokens": np.int32,
    "starts": np.int64,
    "ids": np.int32,
}

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Source:
    """Which file, as what: whatever changes the columns."""

    path: Path
    size_bytes: int
    digest: str
    reading: str  # format and options


class _Head(msgspec.Struct):
    version: int
    size_bytes: int
    digest: str
    reading: str
    block_tokens: int
    unique_blocks: int
    notes: tuple[str, ...]
    lengths: tuple[int, ...]  # of the arrays


def kept(source: Source) -> Columns | None:
    """The columns kept of this very file, or None."""
    for place in _places(source.path):
        # Whatever is wrong with what is kept, the file itself is still there to be parsed.
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            with place.open("rb") as file:
                columns = _load(file, source)
            if columns is not None:
                return columns
    return None


def keep(source: Source, columns: Columns) -> None:
    """Write them where that can be done; a reader sees the old file or the new one, never half."""
    arrays = _arrays(columns)
    head = msgspec.json.encode(
        _Head(
            version=VERSION,
            size_bytes=source.size_bytes,
            digest=source.digest,
            reading=source.reading,
            block_tokens=columns.block_tokens,
            unique_blocks=columns.unique_blocks,
            notes=columns.notes,
            lengths=tuple(len(array) for array in arrays),
        )
    )
    begin = len(head).to_bytes(_LENGTH_BYTES, "little") + head
    for place in _places(source.path):
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(_MAGIC + _digest(begin, arrays) + begin)
                for array in arrays:
                    array.tofile(file)
            temporary.replace(place)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        else:
            return


def _places(path: Path) -> list[Path]:
    whole = path.resolve()
    # Two files of one name in different directories are kept apart.
    name = f"{whole.name}.{hashlib.blake2s(os.fsencode(whole), digest_size=6).hexdigest()}{SUFFIX}"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    places = [whole.with_name(whole.name + SUFFIX)]
    with contextlib.suppress(RuntimeError):  # no home
        places.append(caches.expanduser() / "kvbench" / "traces" / name)
    return places


def _load(file: IO[bytes], source: Source) -> Columns | None:
    size = os.fstat(file.fileno()).st_size
    magic, digest = file.read(len(_MAGIC)), file.read(_DIGEST_BYTES)
    length = file.read(_LENGTH_BYTES)
    head_bytes = int.from_bytes(length, "little")
    if magic != _MAGIC or head_bytes > size:
        return None
    text = file.read(head_bytes)
    head = msgspec.json.decode(text, type=_Head)
    wanted = (VERSION, source.size_bytes, source.digest, source.reading)
    if (head.version, head.size_bytes, head.digest, head.reading) != wanted:
        return None
    taken = sum(
        count * np.dtype(kind).itemsize
        for count, kind in zip(head.lengths, _ARRAYS.values(), strict=False)
    )
    if len(head.lengths) != len(_ARRAYS) or file.tell() + taken != size or min(head.lengths) < 0:
        return None
    counts = iter(head.lengths)
    columns = Columns(
        name=source.path.name,
        digest=source.digest,
        block_tokens=head.block_tokens,
        arrival_s=np.fromfile(file, np.float64, next(counts)),
        input_tokens=np.fromfile(file, np.int32, next(counts)),
        output_tokens=np.fromfile(file, np.int32, next(counts)),
        starts=np.fromfile(file, np.int64, next(counts)),
        ids=np.fromfile(file, np.int32, next(counts)),
        unique_blocks=head.unique_blocks,
        notes=head.notes,
    )
    return columns if _digest(length + text, _arrays(columns)) == digest else None


def _arrays(columns: Columns) -> list[Array]:
    return [np.ascontiguousarray(getattr(columns, name)) for name in _ARRAYS]


def _digest(begin: bytes, arrays: list[Array]) -> bytes:
    hasher = xxhash.xxh3_128(begin)
    for array in arrays:
        hasher.update(array.data)
    return hasher.digest()
