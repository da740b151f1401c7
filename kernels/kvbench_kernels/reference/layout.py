"""What moving blocks between layouts must leave behind, in plain torch: slow, obvious, by index.

Goes by the named axes of a layout and the tensors' own strides, so that it does not share the
stride arithmetic of `kvbench_kernels.layouts` with the kernel. Not for measuring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kvbench_kernels.relayout import Cache


def relayout(
    src: Cache,
    dst: Cache,
    *,
    src_ids: torch.Tensor | None = None,
    dst_ids: torch.Tensor | None = None,
) -> None:
    """Fill block dst_ids[i] of `dst` from block src_ids[i] of `src` where neither is negative."""
    sources = list(range(src.sizes.blocks)) if src_ids is None else src_ids.tolist()
    targets = list(range(dst.sizes.blocks)) if dst_ids is None else dst_ids.tolist()
    for layer in range(src.sizes.layers):
        for kv in range(src.layout.kv):
            read, written = blocks(src, layer, kv), blocks(dst, layer, kv)
            for source, target in zip(sources, targets, strict=True):
                if source >= 0 and target >= 0:
                    written[target] = read[source]


def blocks(cache: Cache, layer: int, kv: int) -> torch.Tensor:
    """View [blocks, block_tokens, kv_heads, head_dim] of K (0) or V (1) of one layer."""
    sizes = cache.sizes
    counts = {
        "layer": sizes.layers,
        "block": sizes.blocks,
        "kv": cache.layout.kv,
        "token": sizes.block_tokens,
        "head": sizes.kv_heads,
        "element": sizes.head_dim,
    }
    wanted = {"layer": layer, "kv": kv}
    number = 0
    for name in cache.layout.tensors.split():
        number = number * counts[name] + wanted[name]
    view = cache.tensors[number]
    names: list[str] = []
    for axis in cache.layout.axes:
        parts = axis.split()
        view = view.unflatten(len(names), [counts[part] for part in parts])  # type: ignore[no-untyped-call]
        names += parts
    for name, index in wanted.items():
        if name in names:
            view = view.select(names.index(name), index)
            names.remove(name)
    return view.permute([names.index(name) for name in ("block", "token", "head", "element")])
