"""Blocks on their way between GPU and pinned host memory: by a kernel, and quantised on the way.

`Swap` moves small blocks through pinned pointers, beside the copy engine's `hbm.transfer`.
`Offload` gathers blocks, quantises them unless raw and transfers them, one stage after the other
on one stream; `Restore` is the way back. Only the worker process imports this.
"""

import torch

from kvbench.units import MIB
from kvbench_kernels.gather import gather_pages, scatter_pages
from kvbench_kernels.swap import swap_blocks, swap_table
from kvbench_suites.codecs import Stored, first_difference
from kvbench_suites.hbm_bodies import TRANSFER_STEP_BYTES, Transfer
from kvbench_suites.kernels import OFFLOAD, RESTORE, SWAP
from kvbench_suites.quantise_bodies import ConvertingBody


class Swap(Transfer):
    """Moves batches of small blocks between scattered slots by one kernel on few programs."""

    # Tables of addresses are made outside the clock, one for each pair of units that can come up:
    # two to a target. The link, not the L2 cache, is what this measures, so a small arena will do.
    arena_bytes = 64 * MIB

    def _calls_per_unit(self) -> int:
        return 1

    def _memory(self) -> str:
        return "pinned" if self.device.type == "cuda" else "pageable"

    def _source_of(self, k: int) -> int:
        """Two passes pair each target with two sources in turn."""
        return (k + k // self.units % 2) % self.units

    def _prepare(self) -> None:
        self._programs = self._context.count("programs")
        sources = [torch.as_tensor(slots) for slots in self.source_slots]
        targets = [torch.as_tensor(slots) for slots in self.target_slots]
        pairs = {(self._source_of(k), k % self.units) for k in range(2 * self.units)}
        self._tables = {
            pair: swap_table([self.source], sources[pair[0]], [self.target], targets[pair[1]])
            for pair in pairs
        }

    def _move(self, source: int, target: int) -> None:
        swap_blocks(self._tables[source, target], self._programs)

    def _path(self) -> str:
        return SWAP.path(self._context.params)


class _LoopBody(ConvertingBody):
    """Either way; `raw` moves the pages as they are."""

    step_bytes = TRANSFER_STEP_BYTES

    def _prepare(self) -> None:
        self._raw = self._context.word("format") == "raw"
        if self._raw:
            self._staging_page = torch.empty(
                (self.batch, self.slot_bytes), dtype=torch.uint8, device=self.device
            )
            self._source_ids = self._ids(self.source_slots)
            self._target_ids = self._ids(self.target_slots)
            pin = self.device.type == "cuda"
            self._host = [
                (torch.zeros((self.batch, self.slot_bytes), dtype=torch.uint8, pin_memory=pin),)
                for _ in range(self.units)
            ]
            self._device_side: Stored = (self._staging_page,)
            return
        super()._prepare()
        self._host = self._stored_units(pin=True)
        self._device_side = self._codec.empty(self.batch, self._page_values, self.device, pin=False)

    _host: list[Stored]


class Offload(_LoopBody):
    """From the pages of scattered blocks to host memory."""

    scattered_source = True

    def _move(self, source: int, target: int) -> None:
        ids = self._source_ids[source]
        if self._raw:
            gather_pages(self.source, ids, self._staging_page)
        else:
            self._codec.gather(self._values(self.source), ids, self._device_side)
        for host, device in zip(self._host[target], self._device_side, strict=True):
            host.copy_(device, non_blocking=True)

    def _difference(self, source: int, target: int) -> str | None:
        values = self._source_values(source)
        if self._raw:
            found = self._host[target][0].to(values.device)
            return first_difference(values.view(torch.uint8), found)
        return self._codec.difference(values, self._host[target])

    def _path(self) -> str:
        return OFFLOAD.path(self._context.params)


class Restore(_LoopBody):
    """From host memory to the pages of scattered blocks."""

    scattered_target = True

    def _prepare(self) -> None:
        super()._prepare()
        for unit, stored in zip(self._unit_values(self.source), self._host, strict=True):
            if self._raw:
                stored[0].copy_(unit.view(torch.uint8))
                continue
            self._codec.quantise(unit, self._device_side)
            for host, device in zip(stored, self._device_side, strict=True):
                host.copy_(device)

    def _move(self, source: int, target: int) -> None:
        for host, device in zip(self._host[source], self._device_side, strict=True):
            device.copy_(host, non_blocking=True)
        ids = self._target_ids[target]
        if self._raw:
            scatter_pages(self._staging_page, ids, self.target)
        else:
            self._codec.scatter(self._device_side, ids, self._values(self.target))

    def _difference(self, source: int, target: int) -> str | None:
        slots = torch.as_tensor(self.target_slots[target]).to(self.target.device)
        found = self._values(self.target)[slots]
        if self._raw:
            expected = self._source_values(source)
            return first_difference(expected.view(torch.uint8), found.view(torch.uint8))
        return self._codec.restored(self._host[source], found)

    def _path(self) -> str:
        return RESTORE.path(self._context.params)
