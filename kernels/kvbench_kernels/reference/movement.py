"""What each kernel must leave behind, in plain torch: slow, obvious, and on any device.

Same arguments as the wrappers, without their demands on alignment. Not for measuring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
