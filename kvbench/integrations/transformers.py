"""A Hugging Face `DynamicCache` in the tiered store: saved, and found again by its tokens.

One sequence at a time, without padding. What `restore` returns goes on, bit for bit, as the cache
that was saved would have. Runs no model, and waits for the store only in `restore`.
How it is used, and what is kept of layers with a window: docs/integrations.md.

May import: kvbench.errors, kvbench.integrations, kvbench.keys, kvbench.store. torch and
transformers (5.24 or later).
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from transformers import cache_utils

from kvbench.errors import UsageError
from kvbench.integrations.cache_shape import TOKENS, Cache, CacheShape, kept_in, vectors_of
from kvbench.keys import Namespace, Tokens, block_keys
from kvbench.store.api import PEER, Store
from kvbench.store.block import Bytes, Status
from kvbench.store.device import Link
from kvbench.store.request import Request

__all__ = ["CacheShape", "PrefixCache", "Restored", "Saved", "keeping_past"]

TokenIds: TypeAlias = "Tokens | torch.Tensor"
OWNER = "transformers"  # of leases
_hf: Any = cache_utils  # its types say little
_log = logging.getLogger("kvbench.integrations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What becomes of the full blocks of a prefix: those known, then those put, then those lost.

    `request.result()` says of each block that was put whether it can be found now.
    """

    known: int  # not in the cache any more; in the store, or on the way there from an earlier save
    request: Request
    lost: int  # not saved, and not to be saved any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A cache of the first `tokens` tokens; of none, if nothing was found in time."""

    cache: Cache
    tokens: int
    tiers: tuple[str, ...]  # where each block was found
    ended: Status | None  # what ended the prefix; None if nothing did


class PrefixCache:
    """Caches of one model in a store, by the tokens that they are of.

    `namespace` has to be the one that the store's directories were opened with.

    Raises:
        UsageError: store, shape and namespace are not of the same blocks.
    """

    def __init__(self, store: Store, shape: CacheShape, namespace: Namespace) -> None:
        if store.layout != shape.layout:
            raise UsageError(
                f"the store has blocks of {store.layout.block_bytes} bytes in "
                f"{store.layout.parts} parts, the model {shape.layout.block_bytes} in "
                f"{shape.layout.parts}: open the store with the shape's layout"
            )
        if namespace.block_tokens != shape.block_tokens:
            raise UsageError(
                f"a namespace of blocks of {namespace.block_tokens} tokens, and a shape of "
                f"{shape.block_tokens}: they have to be equal"
            )
        self.store = store
        self.shape = shape
        self.namespace = namespace
        on_gpu = shape.device.type != "cpu"
        self._link = Link(shape.device, shape.layout.block_bytes) if on_gpu else None
        self._lock = threading.Lock()
        self._sent: set[bytes] = set()  # on the way to the store
        self._warned = False

    def keys(self, token_ids: TokenIds, *, extra: bytes = b"") -> list[bytes]:
        """The store's keys of the full blocks, for `prefetch`, `flush` and the like.

        Raises:
            UsageError: there is more than one sequence, or a token is no token.
        """
        return block_keys(self.namespace, _plain(token_ids), extra=extra)

    def save(
        self, cache: Cache, token_ids: TokenIds, *, extra: bytes = b"", tenant: str = ""
    ) -> Saved:
        """Store the full blocks of a cache whose first tokens are `token_ids`; waits for nothing.

        The cache may be used on at once: the model replaces its tensors and never changes them.
        Until the result is there nobody else may either. Blocks in the store are not sent again.

        A layer with a window drops tokens; a block of which one was dropped cannot be saved any
        more. Save within `keeping_past`, or after every chunk of a prefill. Blocks that follow one
        that is neither in the cache nor in the store are not saved: nothing would find them.

        Args:
            cache: a DynamicCache of one sequence, not offloaded.
            token_ids: integers [n] or [1, n]; those beyond the cache are ignored.
            extra: what else went into the cache, such as the hash of a LoRA or of an image.
            tenant: who pays for it.

        Raises:
            UsageError: the cache is of another kind or of other shapes, or the tokens are none.
        """
        sources, length = self._sources(cache)
        size = self.shape.block_tokens
        keys = self.keys(_plain(token_ids)[:length], extra=extra)
        oldest = max(source.first for source in sources)
        first = min(-(-oldest // size), len(keys))
        known = self._known(keys[:first])
        puts = keys[first:] if known == first else []
        if len(puts) < len(keys) - known and not self._warned:
            self._warned = True
            _log.warning(
                "%d blocks were not saved, for the tokens before %d had left a layer's window: "
                "prefill and save within keeping_past(cache)",
                len(keys) - known,
                oldest,
            )
        rows = _Rows(self.shape, sources, first, len(puts), self._link)
        before = keys[first - 1] if first else None
        request = self.store.put(puts, rows, parent=before, position=first, tenant=tenant)
        with self._lock:
            self._sent.update(puts)
        request.future.add_done_callback(lambda _: self._arrived(puts))
        return Saved(known=known, request=request, lost=len(keys) - known - len(puts))

    def restore(
        self, token_ids: TokenIds, *, extra: bytes = b"", deadline_s: float | None = None
    ) -> Restored:
        """A cache of the longest prefix in the store, without the last token: one is left to run.

        The prefix ends before the first block that is not there, not in time or not what was
        stored. A `deadline_s` of 0 restores nothing.

        Raises:
            UsageError: there is more than one sequence, or a token is no token.
        """
        size = self.shape.block_tokens
        ids = _plain(token_ids)
        keys = self.keys(ids[: max(0, len(ids) - 1)], extra=extra)
        if deadline_s is not None and deadline_s <= 0:
            return Restored(cache=self._filled([], 0), tokens=0, tiers=(), ended=Status.TIMEOUT)
        with self.store.lookup(keys, owner=OWNER) as lease:
            tensors = self._empty(len(lease) * size)
            sources = [_Source(each, 0) for each in tensors]
            rows = _Rows(self.shape, sources, 0, len(lease), self._link)
            statuses = self.store.get_into(lease, rows, deadline_s=deadline_s).result()
        good = len(list(itertools.takewhile(lambda status: status is Status.OK, statuses)))
        ended = statuses[good] if good < len(statuses) else None
        if ended is None and len(lease) < len(keys):
            ended = Status.BUSY if lease.refused else Status.MISS
        return Restored(
            cache=self._filled(tensors, good * size),
            tokens=good * size,
            tiers=lease.tiers[:good],
            ended=ended,
        )

    def _known(self, keys: Sequence[bytes]) -> int:
        """How many of them, from the first on, are in the store or on the way there.

        What a peer is believed to have is not: it may be gone when it is wanted.
        """
        with self._lock:
            sent = self._sent.intersection(keys)  # before the look-up: they may arrive in between
        known = 0
        while known < len(keys):
            with self.store.lookup(keys[known:], owner=OWNER) as lease:
                known += lease.tiers.index(PEER) if PEER in lease.tiers else len(lease)
            if known == len(keys) or keys[known] not in sent:
                break
            known += 1
        return known

    def _arrived(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            self._sent.difference_update(keys)

    def _sources(self, cache: Cache) -> "tuple[list[_Source], int]":
        """What the cache holds, in the order of a block, and how many tokens it has seen."""
        kept = kept_in(cache)
        if list(kept) != [layer.index for layer in self.shape.layers]:
            raise UsageError(
                f"the cache keeps something in layers {list(kept)}, the model in "
                f"{[layer.index for layer in self.shape.layers]}: it is not of this model"
            )
        sources: list[_Source] = []
        lengths: set[int] = set()
        for layer in self.shape.layers:
            length = int(cache.layers[layer.index].get_seq_length())
            lengths.add(length)
            for tensor, wanted in zip(kept[layer.index], (layer.keys, layer.values), strict=True):
                if vectors_of(tensor) != wanted or tensor.device != self.shape.device:
                    raise UsageError(
                        f"layer {layer.index} of the cache keeps {vectors_of(tensor)} on "
                        f"{tensor.device}, the model's {wanted} on {self.shape.device}"
                    )
                sources.append(_Source(tensor, length - tensor.shape[TOKENS]))
        if len(lengths) > 1:
            raise UsageError(f"the layers of the cache have seen {sorted(lengths)} tokens each")
        return sources, lengths.pop()

    def _empty(self, tokens: int) -> "list[torch.Tensor]":
        return [
            torch.empty(
                (1, each.heads, tokens, each.size), dtype=each.dtype, device=self.shape.device
            )
            for layer in self.shape.layers
            for each in (layer.keys, layer.values)
        ]

    def _filled(self, tensors: "Sequence[torch.Tensor]", tokens: int) -> Cache:
        """A cache such as the model makes for itself, given these tokens in one go."""
        cache = _hf.DynamicCache(config=self.shape.config)
        if tokens:
            kept = [each[:, :, :tokens] for each in tensors]
            for at, layer in enumerate(self.shape.layers):
                cache.update(kept[2 * at], kept[2 * at + 1], layer.index)
        return cache


@contextlib.contextmanager
def keeping_past(cache: Cache) -> Generator[None]:
    """Within it, layers with a window drop nothing, so that every block can be saved.

    Costs the memory of a cache without windows until it ends; a cache without windows is as ever.
    """
    cache.activate_past_recording()
    try:
        yield
    finally:
        for layer in cache.layers:
            if type(layer) is _hf.DynamicSlidingWindowLayer:
                if layer.is_initialized:
                    layer.crop(0)
                layer.record_past = False


@dataclass(frozen=True, slots=True)
class _Source:
    """Keys or values of a layer, [1, heads, tokens, size]; their first token's place."""

    tensor: torch.Tensor
    first: int

    def block(self, start: int, tokens: int) -> torch.Tensor:
        """The bytes of some tokens, uint8 [heads, tokens, bytes]."""
        piece = self.tensor[0, :, start - self.first : start - self.first + tokens]
        if piece.stride(-1) != 1:
            piece = piece.contiguous()
        return piece.view(torch.uint8)


class _Rows:
    """Blocks from `first` on, within the tensors of a cache: `kvbench.store.rows.Rows`.

    On a GPU blocks are put together there, and copied by the link.
    """

    def __init__(
        self,
        shape: CacheShape,
        sources: Sequence[_Source],
        first: int,
        count: int,
        link: Link | None,
    ) -> None:
        self._tokens = shape.block_tokens
        self._layout = shape.layout
        self._sources = sources
        self._first = first
        self._count = count
        self._link = link
        if link is not None:
            link.follow()

    def __len__(self) -> int:
        return self._count

    def send(self, index: int, out: Bytes) -> None:
        """Put a block together in host memory of uint8 [block_bytes]."""
        if self._link is None:
            self._pack(index, torch.as_tensor(out))
            return
        with self._link.outward():
            row = torch.empty(len(out), dtype=torch.uint8, device=self._link.device)
            self._pack(index, row)
        self._link.to_host([row], [out])

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        """Take a block apart, or one part of it."""
        if self._link is None:
            self._unpack(index, part, torch.as_tensor(data))
            return
        with self._link.inward():
            row = torch.empty(len(data), dtype=torch.uint8, device=self._link.device)
        self._link.to_device([data], [row])
        with self._link.inward():
            self._unpack(index, part, row)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:  # noqa: ARG002  protocol
        """Return once everything received can be used."""
        if self._link is not None:
            self._link.wait()

    def _pack(self, index: int, row: torch.Tensor) -> None:
        for piece, place in self._pieces(index, None, row):
            place.copy_(piece)

    def _unpack(self, index: int, part: int | None, row: torch.Tensor) -> None:
        for piece, place in self._pieces(index, part, row):
            piece.copy_(place)

    def _pieces(
        self, index: int, part: int | None, row: torch.Tensor
    ) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
        """Pieces of the cache, and where each lies in a block or a part of it."""
        sources = self._sources
        if part is not None:
            each = len(sources) // self._layout.parts
            sources = sources[part * each : (part + 1) * each]
        at = 0
        for source in sources:
            piece = source.block((self._first + index) * self._tokens, self._tokens)
            yield piece, row[at : at + piece.numel()].view(piece.shape)
            at += piece.numel()


def _plain(token_ids: TokenIds) -> Tokens:
    ids: Any = token_ids
    if isinstance(ids, torch.Tensor):
        ids = ids.detach().cpu().numpy()
    if getattr(ids, "ndim", 1) > 1:
        if len(ids) != 1:
            raise UsageError(f"token ids of {list(ids.shape)}: expected one sequence at a time")
        ids = ids[0]
    return cast("Tokens", ids)
