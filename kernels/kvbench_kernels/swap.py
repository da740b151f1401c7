"""Swap small blocks between pinned host memory and the GPU by a kernel, instead of the copy engine.

The kernel reads and writes host memory by its own address (unified virtual addressing), so a
thousand blocks of 4 KiB cost one launch. Few programs suffice to fill a link, and each one taken
is an SM's time taken from somebody else: their number is the caller's choice. Addresses come from
tables that are built from checked tensors; no wrapper takes a bare address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kvbench_kernels.checks import UNIT_BYTES, check_multiple, check_rows, interpreted
from kvbench_kernels.variant import Variant, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

TILE_WORDS = 2048  # 8 KiB in flight a program; as in kvbench_kernels.copy
NUM_WARPS = 4
# 12 programs are vLLM's choice (vllm/v1/kv_offload/cpu/swap_blocks_triton.py).
DEFAULT_PROGRAMS = 12
MAX_PROGRAMS = 64  # suffice on a B200 (lightseekorg/tokenspeed#150)
SKIP = -1  # a slot for "no block here"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SwapTable:
    """Which blocks go where. Made by `swap_table`, which checks it all.

    The tensors must not be resized, nor their storage replaced, while the table is in use.
    """

    addresses: torch.Tensor  # int64 [2, n] on the GPU: of each block's source, of its target
    block_bytes: int
    sources: tuple[torch.Tensor, ...]  # kept alive, as are the targets
    source_slots: torch.Tensor  # int64 [m] on the CPU, without the pairs that -1 left out
    targets: tuple[torch.Tensor, ...]
    target_slots: torch.Tensor  # int64 [m] on the CPU


def swap_table(
    sources: Sequence[torch.Tensor],
    source_slots: torch.Tensor,
    targets: Sequence[torch.Tensor],
    target_slots: torch.Tensor,
) -> SwapTable:
    """Plan to copy block source_slots[i] of each source to block target_slots[i] of its target.

    Waits for the table to reach the GPU. One side is in pinned host memory and the other on a GPU;
    in Triton's interpreter both are on the CPU.

    Args:
        sources: one tensor or more, such as one a layer: uint8 [num_blocks, block_bytes], rows may
            be padded; address, stride and block_bytes are multiples of 16. Read only.
        source_slots: int32 or int64 [m] on the CPU, each in [0, num_blocks) or -1, which leaves
            its pair out. May repeat.
        targets: as many tensors as sources, with the same block_bytes. Overwritten by
            `swap_blocks` where named. No block may be written twice, or be read and written.
        target_slots: int32 or int64 [m] on the CPU, each in [0, num_blocks) or -1, likewise.

    Raises:
        ValueError: a number, shape, dtype, device, slot or alignment is not as above.
    """
    if not sources or len(sources) != len(targets):
        raise ValueError(
            "sources and targets must be as many tensors, one or more, "
            f"got {len(sources)} and {len(targets)}"
        )
    block_bytes = _check_blocks(sources, targets)
    device = _device(sources, targets)
    read = _check_slots("source_slots", source_slots)
    written = _check_slots("target_slots", target_slots)
    if read.numel() != written.numel():
        raise ValueError(
            "source_slots and target_slots must be as many, "
            f"got {read.numel()} and {written.numel()}"
        )
    named = (read != SKIP) & (written != SKIP)
    read, written = read[named], written[named]
    addresses = torch.stack(
        [_addresses("source_slots", sources, read), _addresses("target_slots", targets, written)]
    )
    _check_written_once(addresses, block_bytes)
    return SwapTable(
        addresses=addresses.to(device),
        block_bytes=block_bytes,
        sources=tuple(sources),
        source_slots=read,
        targets=tuple(targets),
        target_slots=written,
    )


# Not specialised: one binary for every number and size of blocks. The tables are rows of one
# tensor, so they start at any multiple of 8 bytes.
@triton.jit(do_not_specialize=["sources", "targets", "count", "block_units"])
def swap_words(sources, targets, count, block_units, TILE: tl.constexpr):
    """Copy `count` blocks from sources[i] to targets[i], addresses; int32 words.

    The size of a block in 16 bytes. Grid (programs,), each striding over the tiles of all blocks.
    """
    words = block_units * 4
    tiles = tl.cdiv(words, TILE)
    for piece in range(tl.program_id(0), count * tiles, tl.num_programs(0)):
        block = piece // tiles
        offsets = (piece - block * tiles) * TILE + tl.arange(0, TILE)
        mask = offsets < words
        source = tl.load(sources + block).to(tl.pointer_type(tl.int32))
        target = tl.load(targets + block).to(tl.pointer_type(tl.int32))
        # Bytes; an address out of memory has no known alignment.
        data = tl.load(tl.multiple_of(source, 16) + offsets, mask=mask)
        tl.store(tl.multiple_of(target, 16) + offsets, data, mask=mask)


def swap_blocks(table: SwapTable, num_programs: int = DEFAULT_PROGRAMS) -> None:
    """Copy the blocks of `table`, on the current stream of the GPU; returns before it is done.

    The host may neither write a source block nor read a target block before the stream is
    synchronised. Profilers show a kernel, not a copy.

    Args:
        table: the blocks. Sources are read, targets overwritten.
        num_programs: 1 to 64 thread blocks of 128 threads, each with 8 KiB under way. More fill
            the link better and take more from kernels beside it.

    Raises:
        ValueError: num_programs is out of range.
    """
    if not 1 <= num_programs <= MAX_PROGRAMS:
        raise ValueError(f"num_programs must be from 1 to {MAX_PROGRAMS}, got {num_programs}")
    count = table.addresses.shape[1]
    if count == 0 or table.block_bytes == 0:
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(table.addresses):  # type: ignore[no-untyped-call]
        swap_words[(num_programs,)](
            table.addresses[0],
            table.addresses[1],
            count,
            table.block_bytes // UNIT_BYTES,
            TILE=TILE_WORDS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,  # nothing to fuse; left out, triton 3.9 warns
        )


def swap_bytes_moved(num_blocks: int, block_bytes: int) -> int:
    """Bytes that a swap reads and writes: each block twice, and its two addresses of 8 bytes.

    Half of the payload crosses the link; the other half and the addresses are the GPU's own
    memory. Tiles of one block after the first find its addresses in a cache.
    """
    return num_blocks * (2 * block_bytes + 16)


def _check_blocks(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> int:
    """The bytes of a block, the same in all tensors."""
    first = sources[0]
    for side, tensors in (("source", sources), ("target", targets)):
        for index, tensor in enumerate(tensors):
            check_rows(f"{side} {index}", tensor)
            if tensor.shape[1] != first.shape[1]:
                raise ValueError(
                    f"{side} {index} must have blocks of {first.shape[1]} bytes as source 0 has, "
                    f"got {tensor.shape[1]}"
                )
    check_multiple("a block", first.shape[1])
    return int(first.shape[1])


def _device(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.device:
    """The GPU of one side; the CPU in the interpreter, where both sides are there."""
    places = [{tensor.device for tensor in side} for side in (sources, targets)]
    found = " and ".join(
        "/".join(sorted(_place(tensor) for tensor in side)) for side in (sources, targets)
    )
    cpu = torch.device("cpu")
    if interpreted() and places == [{cpu}, {cpu}]:
        return cpu
    on_gpu = [side for side in places if side != {cpu}]
    host = sources if places[0] == {cpu} else targets
    if len(on_gpu) != 1 or len(on_gpu[0]) != 1 or not all(tensor.is_pinned() for tensor in host):
        raise ValueError(
            "one side must be in pinned host memory (pin_memory=True) and the other on one GPU, "
            f"got sources and targets on {found}; only Triton's interpreter (TRITON_INTERPRET=1 "
            "before triton is imported) takes both on the CPU"
        )
    return next(iter(on_gpu[0]))


def _place(tensor: torch.Tensor) -> str:
    if tensor.device.type != "cpu":
        return str(tensor.device)
    return "cpu, pinned" if tensor.is_pinned() else "cpu, not pinned"


def _check_slots(name: str, slots: torch.Tensor) -> torch.Tensor:
    if (
        slots.dim() != 1
        or slots.dtype not in (torch.int32, torch.int64)
        or slots.device.type != "cpu"
    ):
        raise ValueError(
            f"{name} must be [m] torch.int32 or torch.int64 on the CPU, where their range is "
            f"checked, got {list(slots.shape)} {slots.dtype} on {slots.device}"
        )
    return slots.to(torch.int64)


def _addresses(name: str, tensors: Sequence[torch.Tensor], slots: torch.Tensor) -> torch.Tensor:
    """Address of each slot in each tensor, int64 [tensors * slots]."""
    num_blocks = min(tensor.shape[0] for tensor in tensors)
    wrong = slots[(slots < 0) | (slots >= num_blocks)]
    if wrong.numel():
        raise ValueError(
            f"{name} must be from 0 to {num_blocks - 1}, or {SKIP} for none, got {int(wrong[0])}"
        )
    return torch.cat([tensor.data_ptr() + slots * tensor.stride(0) for tensor in tensors])


def _check_written_once(addresses: torch.Tensor, block_bytes: int) -> None:
    """Raise ValueError if a block that is written overlaps another, or one that is read."""
    order = addresses.flatten().sort()
    is_target = order.indices >= addresses.shape[1]
    # Of blocks of one size, those that overlap with a target have one beside it that does.
    close = order.values.diff() < block_bytes
    clash = close & (is_target[1:] | is_target[:-1])
    if clash.any():
        raise ValueError(
            "a block must not be written twice, or read and written: target_slots repeat, or "
            f"tensors overlap at {int(order.values[1:][clash][0]):#x}"
        )


VARIANTS = (
    Variant(
        name="swap_blocks",
        kernel=swap_words,
        types={"sources": "*i64", "targets": "*i64", "count": "i32", "block_units": "i32"},
        constants={"TILE": TILE_WORDS},
        work=Work.MOVE,
        payload_load_bytes=None,  # a loop
        payload_store_bytes=None,
        num_warps=NUM_WARPS,
        narrow_loads=2,  # the two addresses
    ),
)
