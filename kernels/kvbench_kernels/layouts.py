"""Named layouts of a paged KV cache: which tensors exist and where each row of each lies.

A row is what one layer keeps of one token and head: `head_dim` adjacent elements of K or of V, or
the joint latent of MLA. A layout is looked up by its name and checked against tensors, never
derived from a shape: `[blocks, 2, 16, 256]` is K and V of one engine and two heads of another.
Nothing here touches a device or reads a row; `kvbench_kernels.relayout` moves rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

DIMENSIONS = ("layer", "block", "kv", "token", "head", "element")

# (head_dim, element_bytes) of what MLA keeps of a token
MLA_BF16 = (576, 2)  # 512 latent and 64 rope
MLA_FP8 = (576, 1)  # the same in plain fp8
MLA_FP8_DS = (656, 1)  # 512 e4m3, 4 fp32 scales for 128 values each, 64 bf16 rope: opaque bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large a cache is: counts, and bytes for `element_bytes`. All at least 1.

    Slots of a cache that is addressed by slot are block * block_tokens + token, so a pool with a
    page that is never used (SGLang keeps one) counts that page as a block.
    """

    layers: int
    blocks: int
    block_tokens: int
    kv_heads: int
    head_dim: int
    element_bytes: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, without padding."""
        return self.head_dim * self.element_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStrides:
    """Where rows lie: strides in bytes, and which tensor of the list holds a row.

    The row of (layer, block, kv, token, head) starts in tensor `layer * layer_tensors +
    kv * kv_tensors`, this many bytes after its first element: `layer * layer_bytes +
    kv * kv_bytes + block * block_bytes + token * token_bytes + head * head_bytes`. Strides and
    steps of a dimension that the tensors or the addresses do not depend on are 0.
    """

    layer_tensors: int
    kv_tensors: int
    layer_bytes: int
    kv_bytes: int
    block_bytes: int
    token_bytes: int
    head_bytes: int

    def base(self, layer: int, kv: int) -> tuple[int, int]:
        """Tensor that holds the rows of this layer and of K (0) or V (1), and their offset."""
        tensor = layer * self.layer_tensors + kv * self.kv_tensors
        return tensor, layer * self.layer_bytes + kv * self.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One named layout.

    `memory` is the order of dimensions in one allocation, outermost first, `tensors` the
    dimensions that number the tensors and `axes` the axes of a tensor as the engine hands it out;
    an axis of several dimensions is their product. A dimension in both `memory` and `tensors`
    means that the tensors are views that share one allocation; in `tensors` only, that each has
    its own. `kv` is 2 for K and V, 1 where a token has a single row (MLA: one head, and one of
    `row_formats`, each (head_dim, element_bytes)). `padding` holds the bytes left unused after
    each index of a dimension.
    """

    name: str
    source: str  # engine, and where the order comes from
    tensors: str
    axes: tuple[str, ...]
    memory: str
    kv: int = 2
    row_formats: tuple[tuple[int, int], ...] = ()
    padding: tuple[tuple[str, int], ...] = ()

    def padded(self, dimension: str, padding_bytes: int) -> Layout:
        """The same layout with `padding_bytes` unused after each index of `dimension`.

        Engines pad blocks (hybrid models have one page size for all layers) and rows (a scale
        kept behind each, vllm#51691); a row is padded by the dimension next outside "element".

        Raises:
            ValueError: the padding is negative, or would fall inside an axis or a row, or
                outside of the memory.
        """
        inside = {outer for axis in self.axes for outer in axis.split()[:-1]}
        allowed = [d for d in self.memory.split() if d not in inside and d != "element"]
        if dimension not in allowed or padding_bytes < 0:
            raise ValueError(
                f"{self.name} takes 0 or more bytes of padding after a {' or '.join(allowed)}, "
                f"got {padding_bytes} after {dimension!r}"
            )
        padding = {**dict(self.padding), dimension: padding_bytes}
        return replace(self, padding=tuple(padding.items()))

    def check_sizes(self, sizes: Sizes) -> None:
        """Raise ValueError unless this layout can hold a cache of these sizes."""
        if not self.row_formats:
            return
        row = (sizes.head_dim, sizes.element_bytes)
        if sizes.kv_heads != 1 or row not in self.row_formats:
            wanted = " or ".join(f"{dim} of {size} bytes" for dim, size in self.row_formats)
            raise ValueError(
                f"{self.name} holds one head of {wanted}, "
                f"got {sizes.kv_heads} of {row[0]} of {row[1]} bytes"
            )

    def tensor_count(self, sizes: Sizes) -> int:
        """How many tensors there are."""
        counts = self._counts(sizes)
        return prod(counts[name] for name in self.tensors.split())

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of each tensor, in elements."""
        counts = self._counts(sizes)
        return tuple(prod(counts[name] for name in axis.split()) for axis in self.axes)

    def strides(self, sizes: Sizes) -> tuple[int, ...]:
        """Stride of each axis of a tensor, in bytes."""
        steps, _ = self._steps(sizes)
        return tuple(steps[axis.split()[-1]] for axis in self.axes)

    def offsets(self, sizes: Sizes) -> tuple[int, ...]:
        """Where each tensor starts in memory that holds them all, in bytes."""
        counts = self._counts(sizes)
        strides = self._tensor_strides(sizes)
        offsets = [0]
        for name in self.tensors.split():
            offsets = [at + i * strides[name] for at in offsets for i in range(counts[name])]
        return tuple(offsets)

    def total_bytes(self, sizes: Sizes) -> int:
        """Bytes of all tensors together, padding included."""
        _, extent = self._steps(sizes)
        shared = set(self.tensors.split()) <= set(self.memory.split())
        return extent if shared else extent * self.tensor_count(sizes)

    def rows(self, sizes: Sizes) -> RowStrides:
        """Where each row lies, counted from the tensors of the list."""
        counts = self._counts(sizes)
        steps, _ = self._steps(sizes)
        numbers: dict[str, int] = {}
        step = 1
        for name in reversed(self.tensors.split()):
            numbers[name] = step
            step *= counts[name]
        inside = {name: 0 if name in numbers else steps.get(name, 0) for name in DIMENSIONS}
        return RowStrides(
            layer_tensors=numbers.get("layer", 0),
            kv_tensors=numbers.get("kv", 0),
            layer_bytes=inside["layer"],
            kv_bytes=inside["kv"],
            block_bytes=inside["block"],
            token_bytes=inside["token"],
            head_bytes=inside["head"],
        )

    def carve(
        self, memory: torch.Tensor, sizes: Sizes, dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        """Views of `memory` that are the tensors of this layout, in order.

        Args:
            memory: uint8 [total_bytes(sizes)], contiguous.
            sizes: of the cache.
            dtype: of the tensors, `sizes.element_bytes` wide.

        Raises:
            ValueError: the sizes do not fit this layout, the memory or the dtype.
        """
        expected = (self.total_bytes(sizes),)
        if tuple(memory.shape) != expected or memory.element_size() != 1:
            raise ValueError(
                f"{self.name} takes {list(expected)} bytes for these sizes, "
                f"got {list(memory.shape)} {memory.dtype}"
            )
        strides = [self._elements(stride, sizes) for stride in self.strides(sizes)]
        typed = memory.view(dtype)
        tensors = tuple(
            typed.as_strided(
                self.shape(sizes), strides, typed.storage_offset() + self._elements(offset, sizes)
            )
            for offset in self.offsets(sizes)
        )
        self.check(tensors, sizes)
        return tensors

    def check(self, tensors: Sequence[torch.Tensor], sizes: Sizes) -> None:
        """Raise ValueError unless `tensors` are a cache of these sizes in this layout."""
        self.check_sizes(sizes)
        if len(tensors) != self.tensor_count(sizes):
            raise ValueError(
                f"{self.name} has {self.tensor_count(sizes)} tensors for these sizes, "
                f"got {len(tensors)}"
            )
        shape = self.shape(sizes)
        strides = self.strides(sizes)
        for index, tensor in enumerate(tensors):
            self._check_one(f"tensor {index}", tensor, shape, strides, sizes.element_bytes)
        if set(self.tensors.split()) <= set(self.memory.split()):
            starts = tuple(tensor.data_ptr() - tensors[0].data_ptr() for tensor in tensors)
            if starts != self.offsets(sizes):
                raise ValueError(
                    f"tensors of {self.name} must be views of one allocation that start "
                    f"{_short(self.offsets(sizes))} bytes in, got {_short(starts)}"
                )

    def _check_one(
        self,
        name: str,
        tensor: torch.Tensor,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        element_bytes: int,
    ) -> None:
        found = tuple(stride * tensor.element_size() for stride in tensor.stride())
        fits = tuple(tensor.shape) == shape and tensor.element_size() == element_bytes
        # The stride of an axis of length 1 means nothing, and torch sets it freely.
        if not fits or any(
            size > 1 and a != b for size, a, b in zip(shape, found, strides, strict=True)
        ):
            raise ValueError(
                f"{name} of {self.name} must be {list(shape)} of {element_bytes}-byte elements "
                f"with strides of {strides} bytes, got {list(tensor.shape)} {tensor.dtype} "
                f"with {found}"
            )

    def _counts(self, sizes: Sizes) -> dict[str, int]:
        self.check_sizes(sizes)
        counts = (
            sizes.layers,
            sizes.blocks,
            self.kv,
            sizes.block_tokens,
            sizes.kv_heads,
            sizes.head_dim,
        )
        return dict(zip(DIMENSIONS, counts, strict=True))

    def _steps(self, sizes: Sizes) -> tuple[dict[str, int], int]:
        """Stride of each dimension in one allocation, and the allocation's bytes."""
        counts = self._counts(sizes)
        padding = dict(self.padding)
        steps: dict[str, int] = {}
        extent = sizes.element_bytes
        for name in reversed(self.memory.split()):
            steps[name] = extent + padding.get(name, 0)
            extent = steps[name] * counts[name]
        return steps, extent

    def _tensor_strides(self, sizes: Sizes) -> dict[str, int]:
        """Bytes from one tensor to the next, along each dimension that numbers them."""
        counts = self._counts(sizes)
        steps, extent = self._steps(sizes)
        strides: dict[str, int] = {}
        for name in reversed(self.tensors.split()):
            if name in steps:
                strides[name] = steps[name]
            else:
                strides[name] = extent
                extent *= counts[name]
        return strides

    def _elements(self, size_bytes: int, sizes: Sizes) -> int:
        if size_bytes % sizes.element_bytes:
            raise ValueError(
                f"strides of {self.name} must be multiples of an element of "
                f"{sizes.element_bytes} bytes, got {size_bytes}"
            )
        return size_bytes // sizes.element_bytes


def _vllm(order: str) -> Layout:
    """A layout of vLLM since 0.26, by the letters of its name: K and V of a row are adjacent.

    Each layer is a view, logically [block, head, token, 2 * head_dim], of one allocation. Where
    the layer comes first the views do not interleave, so they may as well be separate.
    """
    words = {"l": "layer", "b": "block", "h": "head", "n": "token", "c": "kv element"}
    return Layout(
        name=f"vllm_{order}",
        source="vLLM since 0.26 (K and V fused: vllm#44455; named: vllm#51718, RFC vllm#42082)",
        tensors="layer",
        axes=("block", "head", "token", "kv element"),
        memory=" ".join(words[letter] for letter in order.removeprefix("l")),
    )


def _vllm_split(name: str, axes: str, memory: str, backends: str) -> Layout:
    """A layout of vLLM before 0.26: a tensor a layer; HND is NHD to look at, not in memory."""
    return Layout(
        name=name,
        source=f"vLLM before 0.26, {backends}",
        tensors="layer",
        axes=tuple(axes.split()),
        memory=memory,
    )


def _single(name: str, axes: tuple[str, ...], source: str) -> Layout:
    """One tensor for everything, its axes in the order of memory."""
    return Layout(name=name, source=source, tensors="", axes=axes, memory=" ".join(axes))


def _mla(
    name: str,
    axes: tuple[str, ...],
    source: str,
    tensors: str = "",
    row_formats: tuple[tuple[int, int], ...] = (MLA_BF16, MLA_FP8, MLA_FP8_DS),
) -> Layout:
    """One row a token, a single head; axes in the order of memory."""
    return Layout(
        name=name,
        source=source,
        tensors=tensors,
        axes=axes,
        memory=" ".join(axes),
        kv=1,
        row_formats=row_formats,
    )


_NHD = "kv block token head element"
_FIRST_BLOCK = "block kv token head element"
_HICACHE = "SGLang HiCache host pool, --hicache-mem-layout"
_LMCACHE = "LMCache, one chunk of blocks * block_tokens tokens"

_ALL = (
    _vllm("lbnhc"),
    _vllm("lbhnc"),
    _vllm("lhbnc"),
    _vllm("blhnc"),
    _vllm("blnhc"),
    _vllm("bhlnc"),
    _vllm_split("vllm_kvfirst_nhd", _NHD, _NHD, "FlashAttention"),
    _vllm_split("vllm_kvfirst_hnd", _NHD, "kv block head token element", "FlashAttention"),
    _vllm_split("vllm_blockfirst_nhd", _FIRST_BLOCK, _FIRST_BLOCK, "FlashInfer and Triton"),
    _vllm_split(
        "vllm_blockfirst_hnd", _FIRST_BLOCK, "block kv head token element", "FlashInfer and Triton"
    ),
    _single(
        "vllm_crosslayer",
        ("block", "layer", "kv", "token", "head", "element"),
        "vLLM before 0.26, blocks of all layers for KV connectors (vllm#27743)",
    ),
    _single(
        "trtllm_crosslayer",
        ("block", "layer", "kv", "head token element"),
        "TensorRT-LLM primary pool [blocks, layers, kvFactor, blockSize], each block HND",
    ),
    Layout(
        name="sgl_mha",
        source="SGLang MHATokenToKVPool: K of every layer, then V of every layer, by slot",
        tensors="kv layer",
        axes=("block token", "head", "element"),
        memory="block token head element",
    ),
    _single(
        "sgl_host_layer_first",
        ("kv", "layer", "block token", "head", "element"),
        f"{_HICACHE} layer_first",
    ),
    _single(
        "sgl_host_page_first",
        ("kv", "block token", "layer", "head", "element"),
        f"{_HICACHE} page_first: by slot, all layers of a token together",
    ),
    _single(
        "sgl_host_page_first_direct",
        ("kv", "block", "layer", "token", "head", "element"),
        f"{_HICACHE} page_first_direct",
    ),
    _single(
        "sgl_host_page_head",
        ("kv", "block", "head", "token", "layer", "element"),
        f"{_HICACHE} page_head",
    ),
    # A chunk is a memory object of its own, so there is no axis of chunks: blocks of an engine
    # are runs of `block_tokens` of a chunk's tokens, and chunks are moved one at a time.
    _single("lmc_2ltd", ("kv", "layer", "block token", "head element"), f"{_LMCACHE}, KV_2LTD"),
    _single(
        "lmc_l2td", ("layer", "kv", "block token", "head element"), f"{_LMCACHE}, layer by layer"
    ),
    _single(
        "kvbm_operational",
        ("block", "layer", "kv", "token head element"),
        "Dynamo KVBM operational block [layers, 2, inner], blocks NHD",
    ),
    _single(
        "kvbm_universal",
        ("block", "head", "layer", "kv", "token", "element"),
        "Dynamo KVBM universal block: heads outermost, to slice by tensor parallelism",
    ),
    _mla(
        "mla_576",
        ("block", "token", "head element"),
        "vLLM MLA, DeepSeek: 512 latent and 64 rope in bf16, or plain fp8",
        "layer",
        (MLA_BF16, MLA_FP8),
    ),
    _mla(
        "mla_fp8_ds_656",
        ("block", "token", "head element"),
        "vLLM fp8_ds_mla: 512 e4m3, 4 fp32 scales, 64 bf16 rope, as opaque bytes",
        "layer",
        (MLA_FP8_DS,),
    ),
    _mla(
        "mla_crosslayer",
        ("block", "layer", "token", "head element"),
        "vLLM before 0.26, blocks of all layers for KV connectors (vllm#27743), MLA",
    ),
    _mla(
        "sgl_mla",
        ("block token", "head", "element"),
        "SGLang MLATokenToKVPool: a tensor a layer, by slot",
        "layer",
    ),
    _mla(
        "sgl_host_mla_layer_first",
        ("layer", "block token", "head", "element"),
        f"{_HICACHE} layer_first, MLA",
    ),
    _mla(
        "sgl_host_mla_page_first",
        ("block token", "layer", "head", "element"),
        f"{_HICACHE} page_first, MLA: by slot, all layers of a token together",
    ),
    _mla(
        "sgl_host_mla_page_first_direct",
        ("block", "layer", "token", "head", "element"),
        f"{_HICACHE} page_first_direct, MLA",
    ),
    _mla(
        "lmc_mla",
        ("kv", "layer", "block token", "head element"),
        f"{_LMCACHE}, KV_MLA_FMT [1, layers, tokens, 576]",
    ),
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in _ALL})


def find_layout(name: str) -> Layout:
    """The layout of this name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in LAYOUTS:
        raise ValueError(f"no layout is named {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _short(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return f"({shown}, … {len(numbers)} in all)" if len(numbers) > 4 else f"({shown})"  # noqa: PLR2004 - as many as a line holds
