"""Names of KV blocks: 32 bytes that say which bytes a block holds, on any machine, in any process.

A `Namespace` says everything about the bytes except the tokens; its digest keys the hash. A block's
key then covers its tokens, what else went into them (`extra`) and, through the parent's key, all
before. No pickle, no seed of the process, nothing left out: equal keys mean equal bytes.
Encodings byte for byte, with a test vector, are in docs/keys.md. Knows no tier and no geometry.

May import: kvbench.errors. blake3 and numpy, not torch.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex, TypeAlias, cast

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from kvbench.errors import UsageError

KEY_BYTES = 32
FORMAT_VERSION = 1
NO_PARENT = bytes(KEY_BYTES)  # stands before the first block of a prefix
LARGEST_TOKEN = 2**32 - 1
_TOKEN_BYTES = 4
_MAGIC = b"kvbench.namespace"
_ENGINE = b"kvbench.engine"  # engine hashes have a key of their own: none is ever a block's message
_U64 = 2**64 - 1

Tokens: TypeAlias = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """What decides the bytes of a block besides its tokens. Two that differ share no key.

    `layers` and `heads` are the rectangle of the model that one rank holds, [first, last + 1): not
    sizes and ranks, so that ranks with equal bytes have equal keys. With KV heads divided over
    tensor-parallel ranks each has its own `heads`; with heads copied, or an MLA latent, which is
    whole on every rank ((0, 1)), they share. `geometry` is of the whole model, then.

    Raises:
        UsageError: a text is empty or no UTF-8, a range is empty, a number is out of range.
    """

    model: str
    revision: str  # a commit or a digest of the weights: "main" moves
    geometry: str  # any canonical text of the shape of a token's cache, or its digest
    cache_dtype: str  # with its scale convention, if there are several
    layout: str  # the order of the bytes in a block; context parallelism belongs here
    block_tokens: int
    layers: tuple[int, int]
    heads: tuple[int, int]
    group: str = "0"  # of a model with several kinds of cache: one namespace each
    salt: bytes = field(default=b"", repr=False)  # of the tenant; a secret keeps keys unguessable
    version: int = FORMAT_VERSION
    digest: bytes = field(init=False, repr=False, compare=False)  # 32 bytes
    engine_digest: bytes = field(init=False, repr=False, compare=False)  # the key of `wrap`

    def __post_init__(self) -> None:
        for name in ("model", "revision", "geometry", "cache_dtype", "layout", "group"):
            if not getattr(self, name):
                raise UsageError(f"namespace: {name} is empty; say what decides the bytes")
        if not 1 <= self.block_tokens <= _U64:
            raise UsageError(f"namespace: block_tokens is {self.block_tokens}, expected at least 1")
        for name, (first, end) in (("layers", self.layers), ("heads", self.heads)):
            if not 0 <= first < end <= _U64:
                raise UsageError(
                    f"namespace: {name} is ({first}, {end}), expected (first, last + 1)"
                )
        if not 0 <= self.version <= _U64:
            raise UsageError(f"namespace: version is {self.version}, expected at least 0")
        digest = blake3(_encoded(self)).digest()
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "engine_digest", blake3(_ENGINE, key=digest).digest())


def block_keys(
    namespace: Namespace,
    tokens: Tokens,
    *,
    parent: bytes | None = None,
    extra: bytes | Sequence[bytes] = b"",
) -> list[bytes]:
    """The 32-byte key of each full block of `tokens`, in order; tokens of a last, partial one none.

    Each is keyed BLAKE3 of (parent's key, tokens as u32 little-endian, extra).

    Args:
        namespace: whose blocks.
        tokens: integers from 0 to 2^32 - 1, [n]; a NumPy array is fastest.
        parent: key of the block before the first; None at the start of a prefix.
        extra: what else decides the bytes, such as a LoRA or media hash: one for every block, or
            one for each full block.

    Raises:
        UsageError: a token, the parent or the number of extras is not as above.
    """
    before = NO_PARENT if parent is None else parent
    if len(before) != KEY_BYTES:
        raise UsageError(f"parent has {len(before)} bytes, expected a key of {KEY_BYTES}")
    parts = _with_extra(_blocks(tokens, namespace.block_tokens), extra)
    key = namespace.digest
    return [before := blake3(before + part, key=key).digest() for part in parts]


def wrap(namespace: Namespace, engine_hash: bytes | int) -> bytes:
    """The 32-byte key of a block that an engine named by a hash of its own.

    It is as good as the engine's hash within the namespace, and meets no other namespace's keys.
    An integer, of any size and sign, and its bytes are different names.

    Raises:
        UsageError: the hash is empty.
    """
    if isinstance(engine_hash, int):
        length = engine_hash.bit_length() // 8 + 1
        name = b"i" + engine_hash.to_bytes(length, "little", signed=True)
    elif engine_hash:
        name = b"b" + engine_hash
    else:
        raise UsageError("an engine's hash is empty: expected bytes or an integer")
    return blake3(name, key=namespace.engine_digest).digest()


def _encoded(namespace: Namespace) -> bytes:
    """Magic, then each field in order as u64 length and bytes, all integers little-endian."""
    fields = (
        struct.pack("<Q", namespace.version),
        _utf8("model", namespace.model),
        _utf8("revision", namespace.revision),
        _utf8("geometry", namespace.geometry),
        _utf8("cache_dtype", namespace.cache_dtype),
        _utf8("layout", namespace.layout),
        struct.pack("<Q", namespace.block_tokens),
        struct.pack("<QQ", *namespace.layers),
        struct.pack("<QQ", *namespace.heads),
        _utf8("group", namespace.group),
        namespace.salt,
    )
    return _MAGIC + b"".join(struct.pack("<Q", len(part)) + part for part in fields)


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"namespace: {name} is {text!r}, which is no Unicode text") from None


def _blocks(tokens: Tokens, block_tokens: int) -> list[bytes]:
    """The tokens of each full block as u32 little-endian."""
    values = _token_array(tokens)
    size = _TOKEN_BYTES * block_tokens
    blocks = values.size // block_tokens
    whole = values[: blocks * block_tokens].astype("<u4", copy=False).tobytes()
    # As raw fields: NumPy cuts them into bytes several times faster than slicing does.
    parts: list[bytes] = np.frombuffer(whole, dtype=f"V{size}").tolist() if blocks else []
    return parts


def _with_extra(parts: list[bytes], extra: bytes | Sequence[bytes]) -> list[bytes]:
    if isinstance(extra, bytes):
        return [part + extra for part in parts] if extra else parts
    if len(extra) != len(parts):
        raise UsageError(f"{len(extra)} extras for {len(parts)} full blocks: expected one each")
    return [part + more for part, more in zip(parts, extra, strict=True)]


def _token_array(tokens: Tokens) -> NDArray[np.integer]:
    if isinstance(tokens, list | tuple):
        try:
            return np.frombuffer(array("I", tokens), dtype=np.uint32)  # far faster than NumPy
        except (OverflowError, TypeError):
            pass  # the checks below say what is wrong
    values = np.asarray(tokens)
    if values.ndim != 1:
        raise UsageError(f"tokens have the shape {values.shape}: expected one dimension")
    if values.dtype.kind not in "iu":
        # A list with an integer beyond 64 bits comes out as another type; name the value instead.
        for at, token in enumerate(cast("Sequence[object]", tokens)):
            if isinstance(token, SupportsIndex) and not 0 <= int(token) <= LARGEST_TOKEN:
                raise _not_a_token(at, int(token))
        raise UsageError(f"tokens are {values.dtype}: expected integers")
    if values.dtype != np.uint32:
        wrong = (values < 0) | (values > LARGEST_TOKEN)
        if wrong.any():
            at = int(wrong.argmax())
            raise _not_a_token(at, int(values[at]))
    return values


def _not_a_token(at: int, token: int) -> UsageError:
    return UsageError(f"token {at} is {token}: expected 0 to {LARGEST_TOKEN}")
