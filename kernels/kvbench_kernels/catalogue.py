"""All variants that ship: what `kvbench lint` compiles and judges.

A plain list, written by hand: nothing is registered by importing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvbench_kernels import (
    checksum,
    copy,
    fp8,
    fused,
    gather,
    int4,
    int8,
    kivi,
    pointers,
    relayout,
    swap,
    tokens,
)

if TYPE_CHECKING:
    from kvbench_kernels.variant import Variant


def variants() -> tuple[Variant, ...]:
    """The `VARIANTS` of every kernel module."""
    return (
        *copy.VARIANTS,
        *gather.VARIANTS,
        *pointers.VARIANTS,
        *tokens.VARIANTS,
        *relayout.VARIANTS,
        *swap.VARIANTS,
        *fp8.VARIANTS,
        *int8.VARIANTS,
        *int4.VARIANTS,
        *kivi.VARIANTS,
        *fused.VARIANTS,
        *checksum.VARIANTS,
    )
