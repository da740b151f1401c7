"""Copies, gathers, scatters and transfers on a GPU: the work behind the `hbm` cases.

Every body has source slots and target slots and moves between them in units: one slot, or a batch
of slots. Units rotate over more memory than the L2 cache holds, and every pass pairs targets with
other sources than the pass before, so that what an earlier pass left behind is no right answer.
Work is only enqueued on the current stream; the CUDA clock waits for it. Only the worker process
imports this. With `device="cpu"` the same code runs without a GPU, for tests: it says so.
"""

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Context, Observed
from kvbench.measure.pattern import SECTOR_BYTES, Pattern
from kvbench.measure.result import Caution
from kvbench.units import MIB, format_bytes
from kvbench_suites.hbm import ENGINE_PATHS, transfer_path

ARENA_BYTES = 512 * MIB  # of source slots, and of target slots
ROTATION_CACHES = 4  # an arena is at least this many times the L2 cache, if memory allows
STEP_BYTES = 2048 * MIB  # 1.3 ms at 1.6 TB/s: long against the launch before its first byte
TRANSFER_STEP_BYTES = 256 * MIB  # 5 ms at 50 GB/s
MOST_CALLS = 1024  # of a step: small copies are bound by launches, more would only take longer
MEMORY_SHARE = 0.5  # of what is free, for both arenas together
CHECK_BYTES = 64 * MIB  # compared at a time, outside the clock
NO_GPU_PATH = "host memory, no GPU"

Slots = NDArray[np.int64]


class SlotBody(ABC):
    """What the bodies share: the slots, the rotation, and the check of every slot."""

    clock: ClassVar[str] = "cuda"
    scattered_source: ClassVar[bool] = False
    scattered_target: ClassVar[bool] = False
    arena_bytes = ARENA_BYTES
    step_bytes = STEP_BYTES

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)
        self.done = 0  # units moved since set_up
        self._cautions: list[Caution] = []

    def set_up(self, context: Context) -> None:
        """Allocate, fill the source from the seed, zero the target, and move one unit.

        The first unit compiles and loads what is needed, so that no sample contains that.

        Raises:
            TierUnavailableError: no device, not enough memory, or a kernel that cannot be built.
        """
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise TierUnavailableError(
                "torch sees no CUDA device: check nvidia-smi, CUDA_VISIBLE_DEVICES "
                "and that torch is a CUDA build"
            )
        self._context = context
        self._pattern = Pattern(context.seed)
        self.slot_bytes, self.batch = self._sizes(context)
        unit_bytes = self.slot_bytes * self.batch
        self.units = self._affordable_units(context, unit_bytes)
        most = MOST_CALLS // self._calls_per_unit()
        self._units_per_step = max(1, min(self.step_bytes // unit_bytes, most))
        self._order(context.seed)
        try:
            self._allocate()
            self._prepare()
            self._unit()
        except (RuntimeError, subprocess.CalledProcessError) as error:
            # Out of memory, no memory to pin, or no C compiler for Triton's launcher.
            raise TierUnavailableError(
                f"{type(self).__name__} cannot start on {self.device}: {_first_line(error)}"
            ) from error
        self._synchronise()  # not above: an error of the device is no lack of one

    def step(self) -> int:
        """Enqueue one sample of work; return the payload bytes that it moves."""
        for _ in range(self._units_per_step):
            self._unit()
        return self._units_per_step * self.batch * self.slot_bytes

    def verify(self) -> int:
        """Compare every target slot with what the seed says it must hold; bytes of those written.

        A slot that nothing was written to must still be zero: a stray write is found as well.

        Raises:
            CorruptDataError: a slot holds something else; the message names the first.
        """
        self._synchronise()
        truth = self._truth()
        expected = self.expected_sources()
        rows = max(1, CHECK_BYTES // self.slot_bytes)
        for first in range(0, len(expected), rows):
            sources = expected[first : first + rows]
            got = self._arrived(first, first + rows)
            wanted = np.where((sources >= 0)[:, None], truth[np.maximum(sources, 0)], 0)
            if not np.array_equal(got, wanted):
                slot, byte = (int(axis[0]) for axis in np.nonzero(got != wanted))
                source = int(sources[slot])
                origin = f"from source slot {source}" if source >= 0 else "as nothing was moved"
                raise CorruptDataError(
                    f"target slot {first + slot} of {len(expected)} differs from byte {byte}: "
                    f"expected {wanted[slot, byte]:#04x}, {origin}, found {got[slot, byte]:#04x}. "
                    "Do not trust this device: see nvidia-smi -q -d ECC"
                )
        return int((expected >= 0).sum()) * self.slot_bytes

    def observed(self) -> Observed:
        """The path, and what it ran on."""
        evidence: dict[str, object] = {
            "arena_bytes": self.units * self.batch * self.slot_bytes,
            "units_per_step": self._units_per_step,
            "torch": torch.__version__,
        }
        if self.device.type == "cuda":
            evidence["gpu"] = torch.cuda.get_device_name(self.device)
            evidence["cuda"] = str(torch.version.cuda)
        path = self._path() if self.device.type == "cuda" else NO_GPU_PATH
        return Observed(path=path, evidence=evidence, cautions=tuple(self._cautions))

    def tear_down(self) -> None:
        """Let the arenas go; views of them end with the process."""
        self.source = self.target = torch.empty(0, dtype=torch.uint8)

    def expected_sources(self) -> Slots:
        """int64 [slots]: the source slot whose bytes each target slot must hold; -1 for none."""
        expected = np.full(self.units * self.batch, -1, dtype=np.int64)
        for target, source in self.expected_units():
            expected[self.target_slots[target]] = self.source_slots[source]
        return expected

    def expected_units(self) -> Iterator[tuple[int, int]]:
        """Each target unit that was written, and the source unit it was last written from."""
        for target in range(min(self.units, self.done)):
            passes = (self.done - 1 - target) // self.units
            yield target, self._source_of(target + passes * self.units)

    source: torch.Tensor  # uint8 [slots, slot_bytes]
    target: torch.Tensor

    @abstractmethod
    def _move(self, source: int, target: int) -> None:
        """Enqueue one unit: from a unit of source slots to a unit of target slots."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what `_move` needs and no sample should contain."""

    @abstractmethod
    def _path(self) -> str:
        """How the bytes travelled, in the words of `Operation.path`."""

    def _sizes(self, context: Context) -> tuple[int, int]:
        """Bytes of a slot, and slots in a unit."""
        return context.count("block_bytes"), int(context.params.get("batch", 1))

    def _calls_per_unit(self) -> int:
        return 1

    def _arrived(self, first: int, end: int) -> NDArray[np.uint8]:
        """uint8 [slots, slot_bytes]: what target slots hold."""
        arrived: NDArray[np.uint8] = self.target[first:end].cpu().numpy()
        return arrived

    def _allocate(self) -> None:
        """Make both arenas on the device."""
        self.source = torch.as_tensor(self._truth()).to(self.device)
        self.target = torch.zeros(self._shape(), dtype=torch.uint8, device=self.device)

    def _shape(self) -> tuple[int, int]:
        return self.units * self.batch, self.slot_bytes

    def _truth(self) -> NDArray[np.uint8]:
        """uint8 [slots, slot_bytes]: what the source slots were filled with."""
        slots, slot_bytes = self._shape()
        size = slots * slot_bytes
        whole = np.empty(-(-size // SECTOR_BYTES) * SECTOR_BYTES, dtype=np.uint8)
        self._pattern.fill(whole, 0)
        return whole[:size].reshape(slots, slot_bytes)

    def _unit(self) -> None:
        k = self.done
        self._move(self._source_of(k), k % self.units)
        self.done = k + 1

    def _source_of(self, k: int) -> int:
        """The source unit that the k-th move reads; it writes target unit k % units."""
        return (k + k // self.units) % self.units

    def _order(self, seed: int) -> None:
        """Which slots each unit is made of: int64 [units, batch] for both sides."""
        generator = np.random.default_rng(seed)
        count = self.units * self.batch

        def slots(scattered: bool) -> Slots:
            order = generator.permutation(count) if scattered else np.arange(count)
            return order.astype(np.int64).reshape(self.units, self.batch)

        self.source_slots = slots(self.scattered_source)
        self.target_slots = slots(self.scattered_target)

    def _affordable_units(self, context: Context, unit_bytes: int) -> int:
        """How many units both arenas have: enough to pass by the L2 cache, if they fit.

        Raises:
            TierUnavailableError: not even one fits.
        """
        l2_bytes = 0
        free = [context.machine.usable_memory_bytes]
        if self.device.type == "cuda":
            l2_bytes = _l2_bytes(self.device)
            free.append(torch.cuda.mem_get_info(self.device)[0])
        # A copy of the source passes through host memory, so both memories must have room.
        free_bytes = min((size for size in free if size is not None), default=None)
        wanted_bytes = max(self.arena_bytes, ROTATION_CACHES * l2_bytes)
        units = max(1, -(-wanted_bytes // unit_bytes))
        if free_bytes is not None:
            units = min(units, int(free_bytes * MEMORY_SHARE) // 2 // unit_bytes)
        if units < 1:
            raise TierUnavailableError(
                f"two areas of {format_bytes(unit_bytes)} do not fit half of the "
                f"{format_bytes(free_bytes or 0)} that is free: use smaller blocks or batches"
            )
        if units * unit_bytes < ROTATION_CACHES * l2_bytes:
            self._cautions.append(
                Caution(
                    code="small_rotation",
                    message=f"memory left room to rotate over {format_bytes(units * unit_bytes)} "
                    f"only, and the L2 cache holds {format_bytes(l2_bytes)}",
                    fix="nvidia-smi  # shows what holds the memory",
                )
            )
        return units

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def verify_units(body: SlotBody, difference: Callable[[int, int], str | None]) -> int:
    """Check every target unit that was written; bytes of the source units.

    `difference` says of a source and a target unit what is wrong, or None.

    Raises:
        CorruptDataError: something is.
    """
    checked = 0
    for target, source in body.expected_units():
        wrong = difference(source, target)
        if wrong is not None:
            raise CorruptDataError(
                f"unit {target} of {body.units}, made from unit {source}: {wrong}. "
                "Do not trust this device: see nvidia-smi -q -d ECC"
            )
        checked += body.batch * body.slot_bytes
    return checked


class CopyBlock(SlotBody):
    """Copies one block after another inside GPU memory, one call each."""

    def _prepare(self) -> None:
        self._engine = self._context.word("engine")
        self._sources = self.source.unbind(0)
        self._targets = self.target.unbind(0)
        if self._engine == "triton":
            from kvbench_kernels.copy import copy_contiguous  # noqa: PLC0415 - only this needs it

            self._kernel = copy_contiguous

    def _move(self, source: int, target: int) -> None:
        if self._engine == "triton":
            self._kernel(self._sources[source], self._targets[target])
        else:
            # Contiguous and of one type on one device: torch calls cudaMemcpyAsync
            # (copy_device_to_device in aten/src/ATen/native/cuda/Copy.cu).
            self._targets[target].copy_(self._sources[source], non_blocking=True)

    def _path(self) -> str:
        return ENGINE_PATHS[self._engine]


class PagedBody(SlotBody):
    """Pages of scattered blocks on one side, a staging buffer on the other."""

    def _sizes(self, context: Context) -> tuple[int, int]:
        page_bytes = context.count("page_bytes")
        pages = context.count("block_bytes") // page_bytes
        return page_bytes, pages * context.count("batch")

    def _ids(self, slots: Slots) -> tuple[torch.Tensor, ...]:
        """int32 [batch] for each unit, on the device."""
        return torch.as_tensor(slots.astype(np.int32)).to(self.device).unbind(0)

    def _staging(self, arena: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 [batch, page_bytes] for each unit."""
        return arena.view(self.units, self.batch, self.slot_bytes).unbind(0)

    def _path(self) -> str:
        return ENGINE_PATHS["triton"]


class GatherPages(PagedBody):
    """Gathers the pages of one batch of blocks after another into staging buffers."""

    scattered_source = True

    def _prepare(self) -> None:
        from kvbench_kernels.gather import gather_pages  # noqa: PLC0415 - only two bodies need it

        self._kernel = gather_pages
        self._page_ids = self._ids(self.source_slots)
        self._rows = self._staging(self.target)

    def _move(self, source: int, target: int) -> None:
        self._kernel(self.source, self._page_ids[source], self._rows[target])


class ScatterPages(PagedBody):
    """Scatters one staging buffer after another into the pages of blocks."""

    scattered_target = True

    def _prepare(self) -> None:
        from kvbench_kernels.gather import scatter_pages  # noqa: PLC0415 - only two bodies need it

        self._kernel = scatter_pages
        self._page_ids = self._ids(self.target_slots)
        self._rows = self._staging(self.source)

    def _move(self, source: int, target: int) -> None:
        self._kernel(self._rows[source], self._page_ids[target], self.target)


class Transfer(SlotBody):
    """Moves batches of blocks between scattered slots of host and GPU memory, one copy each."""

    scattered_source = True
    scattered_target = True
    step_bytes = TRANSFER_STEP_BYTES

    def _calls_per_unit(self) -> int:
        return self.batch

    def _allocate(self) -> None:
        self._direction = self._context.word("direction")
        self._pinned = self._memory() == "pinned"
        host = torch.zeros(self._shape(), dtype=torch.uint8, pin_memory=self._pinned)
        if self._direction == "h2d":
            self.source = host.copy_(torch.as_tensor(self._truth()))
            self.target = torch.zeros(self._shape(), dtype=torch.uint8, device=self.device)
        else:
            self.source = torch.as_tensor(self._truth()).to(self.device)
            self.target = host

    def _memory(self) -> str:
        return self._context.word("memory")

    def _prepare(self) -> None:
        self._sources = _rows_of(self.source, self.source_slots)
        self._targets = _rows_of(self.target, self.target_slots)

    def _move(self, source: int, target: int) -> None:
        pairs = zip(self._sources[source], self._targets[target], strict=True)
        for source_slot, target_slot in pairs:
            target_slot.copy_(source_slot, non_blocking=self._pinned)

    def _path(self) -> str:
        # What the driver says about the memory, not what was asked for.
        host = self.source if self._direction == "h2d" else self.target
        return transfer_path(self._direction, "pinned" if host.is_pinned() else "pageable")


def _rows_of(arena: torch.Tensor, slots: Slots) -> list[list[torch.Tensor]]:
    """uint8 [slot_bytes] views of an arena, unit by unit, so that no step makes any."""
    rows: tuple[torch.Tensor, ...] = arena.unbind(0)
    return [[rows[slot] for slot in unit] for unit in slots.tolist()]


def _l2_bytes(device: torch.device) -> int:
    properties = cast("Any", torch.cuda).get_device_properties(device)  # untyped in torch
    return int(properties.L2_cache_size)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")
