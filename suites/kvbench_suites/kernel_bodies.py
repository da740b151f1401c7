"""Kernels that move KV blocks inside GPU memory: the work behind those cases of `kernels`.

As in `kvbench_suites.hbm_bodies`, which they build on: units rotate over more than the L2 cache,
passes pair targets with other sources, every slot is checked, work is only enqueued. Kernels that
convert are in `kvbench_suites.quantise_bodies`. Only the worker process imports this.
"""

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from kvbench.measure.body import Context
from kvbench_kernels.checksum import checksum
from kvbench_kernels.layouts import Sizes, find_layout
from kvbench_kernels.pointers import address_table, gather_layers, scatter_layers
from kvbench_kernels.reference import layout as layout_reference
from kvbench_kernels.reference import movement
from kvbench_kernels.relayout import Cache, address, relayout
from kvbench_kernels.tokens import gather_tokens, scatter_tokens
from kvbench_suites.codecs import first_difference
from kvbench_suites.formats import ELEMENT_BYTES
from kvbench_suites.hbm import ENGINE_PATHS, unit_bytes
from kvbench_suites.hbm_bodies import PagedBody, SlotBody, verify_units


class _LayersBody(PagedBody):
    """Blocks whose pages lie in a tensor for each layer and part (K, V); a slot is a block."""

    def _sizes(self, context: Context) -> tuple[int, int]:
        self._layers = context.count("layers")
        self._page_bytes = context.count("page_bytes")
        self._pages = context.count("block_bytes") // self._page_bytes
        return context.count("block_bytes"), context.count("batch")

    def _paged_arena(self, rows: torch.Tensor) -> torch.Tensor:
        """uint8 [slots, block_bytes] as uint8 [pages of a block, slots, page_bytes]."""
        pages = rows.view(len(rows), self._pages, self._page_bytes)
        return pages.transpose(0, 1).contiguous()

    def _table_of(self, arena: torch.Tensor) -> None:
        parts = self._pages // self._layers
        pages = arena.unbind(0)
        layers = [pages[first : first + parts] for first in range(0, self._pages, parts)]
        self._table = address_table(layers)

    def _staged(self, arena: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 [batch, layers, parts, page_bytes] for each unit."""
        shape = (self.units, self.batch, self._layers, -1, self._page_bytes)
        return arena.view(shape).unbind(0)


class GatherLayers(_LayersBody):
    """Gathers blocks from all layers, one launch for each batch."""

    scattered_source = True

    def _prepare(self) -> None:
        self.source = self._paged_arena(self.source)
        self._table_of(self.source)
        self._page_ids = self._ids(self.source_slots)
        self._rows = self._staged(self.target)

    def _move(self, source: int, target: int) -> None:
        gather_layers(self._table, self._page_ids[source], self._rows[target])


class ScatterLayers(_LayersBody):
    """Scatters blocks into all layers, one launch for each batch."""

    scattered_target = True

    def _prepare(self) -> None:
        self.target = self._paged_arena(self.target)
        self._table_of(self.target)
        self._page_ids = self._ids(self.target_slots)
        self._rows = self._staged(self.source)

    def _move(self, source: int, target: int) -> None:
        scatter_layers(self._rows[source], self._table, self._page_ids[target])

    def _arrived(self, first: int, end: int) -> NDArray[np.uint8]:
        blocks = self.target[:, first:end].transpose(0, 1).reshape(-1, self.slot_bytes)
        arrived: NDArray[np.uint8] = blocks.cpu().numpy()
        return arrived


class _TokensBody(PagedBody):
    """Single tokens of one layer, by slot."""

    def _sizes(self, context: Context) -> tuple[int, int]:
        return context.count("token_bytes"), context.count("batch")


class GatherTokens(_TokensBody):
    """Gathers one batch of scattered tokens after another."""

    scattered_source = True

    def _prepare(self) -> None:
        self._slots = self._ids(self.source_slots)
        self._rows = self._staging(self.target)

    def _move(self, source: int, target: int) -> None:
        gather_tokens(self.source, self._slots[source], self._rows[target])


class ScatterTokens(_TokensBody):
    """Scatters one batch of tokens after another to their slots."""

    scattered_target = True

    def _prepare(self) -> None:
        self._slots = self._ids(self.target_slots)
        self._rows = self._staging(self.source)

    def _move(self, source: int, target: int) -> None:
        scatter_tokens(self._rows[source], self._slots[target], self.target)


class UnitBody(SlotBody):
    """A slot is all that one launch takes; what it leaves may have another form.

    `verify` compares unit by unit what is there with what the plain torch reference makes of the
    source that must have been used.
    """

    def verify(self) -> int:
        """Check every unit that was written; bytes of their sources.

        Raises:
            CorruptDataError: a unit holds something else.
        """
        self._synchronise()
        return verify_units(self, self._difference)

    def _sizes(self, context: Context) -> tuple[int, int]:
        return unit_bytes(context.params), 1

    @abstractmethod
    def _difference(self, source: int, target: int) -> str | None:
        """What is wrong with a unit of target, or None."""

    def _path(self) -> str:
        return ENGINE_PATHS["triton"]


class Relayout(UnitBody):
    """Brings one batch of blocks after another from one layout into another."""

    def _prepare(self) -> None:
        context = self._context
        self._cache_sizes = Sizes(
            layers=context.count("layers"),
            blocks=context.count("batch"),
            block_tokens=context.count("block_tokens"),
            kv_heads=context.count("heads"),
            head_dim=context.count("head_dim"),
            element_bytes=ELEMENT_BYTES,
        )
        self._sources = self._caches(self.source, context.word("source"))
        self._targets = self._caches(self.target, context.word("target"))

    def _caches(self, arena: torch.Tensor, name: str) -> list[Cache]:
        layout, sizes = find_layout(name), self._cache_sizes
        tensors = [layout.carve(memory, sizes, torch.bfloat16) for memory in arena.unbind(0)]
        return [address(each, layout, sizes) for each in tensors]

    def _move(self, source: int, target: int) -> None:
        relayout(self._sources[source], self._targets[target])

    def _difference(self, source: int, target: int) -> str | None:
        expected = torch.zeros_like(self.target[target : target + 1])
        (cache,) = self._caches(expected, self._context.word("target"))
        layout_reference.relayout(self._sources[source], cache)
        return first_difference(expected[0], self.target[target])


class Checksum(UnitBody):
    """Sums up one batch of blocks after another."""

    def _allocate(self) -> None:
        self.source = torch.as_tensor(self._truth()).to(self.device)
        self.target = torch.empty(0, dtype=torch.uint8, device=self.device)

    def _prepare(self) -> None:
        blocks = self._context.count("batch")
        self._blocks = self.source.view(self.units, blocks, -1).unbind(0)
        self._sums = torch.zeros(self.units, blocks, dtype=torch.int64, device=self.device)

    def _move(self, source: int, target: int) -> None:
        self._sums[target] = checksum(self._blocks[source])

    def _difference(self, source: int, target: int) -> str | None:
        expected = movement.checksum(self._blocks[source])
        return first_difference(expected, self._sums[target])
