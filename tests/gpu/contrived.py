"""Kernels that nobody ships: each compiles to something that a bar must see."""

from dataclasses import replace

import triton
import triton.language as tl

from kvbench_kernels import copy
from kvbench_kernels.variant import Variant, Work

TILE = 2048
COPY = copy.VARIANTS[0]


@triton.jit  # type: ignore[untyped-decorator]
def walk(src, dst, rounds, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803
    offsets = tl.arange(0, TILE)
    for _ in range(rounds):
        tl.store(dst + offsets, tl.load(src + offsets))
        offsets += TILE


@triton.jit  # type: ignore[untyped-decorator]
def compute(src, dst, HOW: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803
    offsets = tl.program_id(0) * TILE + tl.arange(0, TILE)
    x = tl.load(src + offsets)
    if HOW == "double":
        y = (x.to(tl.float64) * 1.1).to(tl.float32)
    elif HOW == "exact division":
        y = tl.div_rn(x, x + 1.0)
    elif HOW == "fused rounding":
        y = tl.fma(x, 0.5, 12582912.0) - 12582912.0
    elif HOW == "rounding":
        y = (x * 0.5 + 12582912.0) - 12582912.0
    elif HOW == "one after the other":
        tl.store(dst + offsets, x)
        y = tl.load(src + offsets + 65536)  # not before the store: it may be the same memory
    elif HOW == "no instruction":
        y = tl.inline_asm_elementwise("no.such $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        y = x.to(tl.float8e4nv)
    tl.store(dst + offsets, y)


def computed(how: str, out: str = "*fp32", work: Work = Work.INT8) -> Variant:
    return Variant(
        name=how,
        kernel=compute,
        types={"src": "*fp32", "dst": out},
        constants={"HOW": how, "TILE": TILE},
        work=work,
        payload_load_bytes=TILE * 4,
        payload_store_bytes=TILE * (1 if out == "*fp8e4nv" else 4),
    )


def walked() -> Variant:
    types = {"src": "*i32", "dst": "*i32", "rounds": "i32"}
    return replace(COPY, name="walk", kernel=walk, types=types, payload_load_bytes=None, exempt={})


def copied(tile_words: int, num_warps: int = 4) -> Variant:
    """The copy that ships, of another tile."""
    return replace(
        COPY,
        constants={"TILE": tile_words},
        num_warps=num_warps,
        payload_load_bytes=tile_words * 4,
        payload_store_bytes=tile_words * 4,
    )
