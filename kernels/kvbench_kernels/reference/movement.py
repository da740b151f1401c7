"""What each kernel must leave behind, in plain torch: slow, obvious, and on any device.

Same arguments as the wrappers, without their demands on alignment. Not for measuring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kvbench_kernels.pointers import AddressTable
    from kvbench_kernels.swap import SwapTable


def copy_contiguous(src: torch.Tensor, dst: torch.Tensor) -> None:
    """The bytes of `src` in `dst`, both uint8 [n]."""
    dst.copy_(src)


def gather_pages(cache: torch.Tensor, page_ids: torch.Tensor, out: torch.Tensor) -> None:
    """Fill out[i] from cache[page_ids[i]] where the id is not negative.

    cache uint8 [num_pages, page_bytes], page_ids int32 or int64 [n], out uint8 [n, page_bytes].
    """
    named = page_ids >= 0
    out[named] = cache[page_ids[named].long()]


def scatter_pages(rows: torch.Tensor, page_ids: torch.Tensor, cache: torch.Tensor) -> None:
    """Fill cache[page_ids[i]] from rows[i] where the id is not negative.

    rows uint8 [n, page_bytes], page_ids int32 or int64 [n], cache uint8 [num_pages, page_bytes].
    """
    named = page_ids >= 0
    cache[page_ids[named].long()] = rows[named]


def gather_layers(table: AddressTable, page_ids: torch.Tensor, out: torch.Tensor) -> None:
    """Fill out[i, layer, part] from page page_ids[i] of each tensor of `table`, for ids >= 0.

    page_ids int32 or int64 [n], out uint8 [n, layers, parts, page_bytes].
    """
    for layer, parts in enumerate(table.tensors):
        for part, tensor in enumerate(parts):
            gather_pages(tensor, page_ids, out[:, layer, part])


def scatter_layers(rows: torch.Tensor, table: AddressTable, page_ids: torch.Tensor) -> None:
    """Fill page page_ids[i] of each tensor of `table` from rows[i, layer, part], for ids >= 0.

    rows uint8 [n, layers, parts, page_bytes], page_ids int32 or int64 [n].
    """
    for layer, parts in enumerate(table.tensors):
        for part, tensor in enumerate(parts):
            scatter_pages(rows[:, layer, part], page_ids, tensor)


def gather_tokens(cache: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
    """Fill out[i] from cache[slot // block_tokens, slot % block_tokens], for slots >= 0.

    cache uint8 [num_blocks, block_tokens, token_bytes] or [num_slots, token_bytes], slots int32 or
    int64 [n], out uint8 [n, token_bytes].
    """
    named = slots >= 0
    out[named] = cache[_token(cache, slots[named])]


def scatter_tokens(rows: torch.Tensor, slots: torch.Tensor, cache: torch.Tensor) -> None:
    """Fill cache[slot // block_tokens, slot % block_tokens] from rows[i], for slots >= 0.

    rows uint8 [n, token_bytes], slots int32 or int64 [n], cache uint8 [num_blocks, block_tokens,
    token_bytes] or [num_slots, token_bytes].
    """
    named = slots >= 0
    cache[_token(cache, slots[named])] = rows[named]


def swap_blocks(table: SwapTable) -> None:
    """Fill block target_slots[i] of each target from block source_slots[i] of its source."""
    for source, target in zip(table.sources, table.targets, strict=True):
        blocks = source[table.source_slots.to(source.device)]
        target[table.target_slots.to(target.device)] = blocks.to(target.device)


def checksum(data: torch.Tensor) -> torch.Tensor:
    """Sum of the mixed 8-byte words of each row, int64 [rows]; data uint8 [rows, row_bytes]."""
    words = data.contiguous().view(torch.int64)
    positions = torch.arange(1, words.shape[1] + 1, device=data.device)
    mixed = words + positions * _signed(0x9E3779B97F4A7C15)
    for _ in range(2):
        mixed = _fold(mixed) * _signed(0xDABA0B6EB09322E3)
    return _fold(mixed).sum(dim=1)


def _token(cache: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
    slots = slots.long()
    if cache.dim() == 2:  # noqa: PLR2004 - as documented
        return (slots,)
    return slots // cache.shape[1], slots % cache.shape[1]


def _signed(bits: int) -> int:
    """The int64 with the bits of this unsigned number of 64 bits."""
    return bits - (bits >> 63 << 64)


def _fold(words: torch.Tensor) -> torch.Tensor:
    """The exclusive or with words >> 32, shifting in zeros; int64 shifts in the sign."""
    return words ^ ((words >> 32) & 0xFFFFFFFF)
