"""What a model's config says about its KV cache: a frozen record, stored in every report.

Sizes are of ONE RANK (one GPU of those that share the model) unless a name starts with `model_`,
which is the whole model with nothing counted twice. Where pipeline ranks differ, the rank that
holds the most bytes per token is the one described; `pipeline_rank` says which. Configs are read
in `kvbench.geometry.config`; nothing here reads a file or guesses.
"""

from enum import StrEnum

import msgspec

from kvbench.errors import UsageError


class LayerKind(StrEnum):
    """How a layer keeps its past."""

    MHA = "mha"  # a K and a V head for each query head
    GQA = "gqa"  # fewer K and V heads than query heads
    MQA = "mqa"  # one K and one V head
    MLA = "mla"  # one latent and one rope key a token, shared by all heads
    RECURRENT = "recurrent"  # a state of fixed size: Mamba, gated delta net, linear attention


class CacheDtype(StrEnum):
    """How a cached element is stored; `kvbench.geometry.dtypes` has bytes and scales of each."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    FP8_DS_MLA = "fp8_ds_mla"
    INT8 = "int8"
    INT4 = "int4"


_TIMES = " \N{MULTIPLICATION SIGN} "
_ELEMENTS = {
    CacheDtype.FP16: ("2 B", 16),
    CacheDtype.BF16: ("2 B", 16),
    CacheDtype.FP8: ("1 B", 8),
    CacheDtype.FP8_DS_MLA: ("1 B", 8),
    CacheDtype.INT8: ("1 B", 8),
    CacheDtype.INT4: ("0.5 B", 4),
}


class StateTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a recurrent layer's state for one sequence, on one rank."""

    name: str  # "conv" | "ssm"
    shape: tuple[int, ...]
    element_bytes: int
    bytes: int
    model_bytes: int  # the same tensor in the whole model


class LayerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The layers of a model whose caches are alike.

    `pieces` are the contiguous parts of one token of one layer on one rank, bytes each: K and V,
    or the latent, and then an indexer's key where the model has one.
    """

    kind: LayerKind
    count: int  # in the model
    rank_count: int  # on the rank described
    window_tokens: int | None = None  # None: sees, and keeps, every token
    window_kind: str | None = None  # "sliding" | "chunked"
    kv_heads: int | None = None  # in the model
    rank_kv_heads: int | None = None
    head_dim: int | None = None
    latent_dim: int | None = None
    rope_dim: int | None = None
    index_head_dim: int | None = None  # of a sparse-attention indexer's keys
    state: tuple[StateTensor, ...] = ()
    pieces: tuple[int, ...] = ()
    bytes_per_token: int  # of one layer
    model_bytes_per_token: int
    state_bytes: int  # of one layer and one sequence
    model_state_bytes: int

    def tokens_kept(self, tokens: int) -> int:
        """How many of a sequence's tokens this layer holds: a window stops growing.

        A chunked layer is counted as one full chunk, the most it ever needs.
        """
        return tokens if self.window_tokens is None else min(tokens, self.window_tokens)


class PageSize(msgspec.Struct, frozen=True, kw_only=True):
    """Contiguous pieces of equal size that a block consists of in a paged engine's layout."""

    bytes: int
    count: int


class KVGeometry(msgspec.Struct, frozen=True, kw_only=True):
    """A model's KV cache in bytes. Made by `kvbench.geometry.load_geometry`.

    The figures are stored beside what they follow from, so that a reader of a report's JSON has
    them without this code.
    """

    name: str
    source: str  # "preset" or the name of the config file
    architecture: str  # the config's model_type
    attention_heads: int
    layers: tuple[LayerGroup, ...]
    cache_dtype: CacheDtype
    cache_dtype_note: str  # the scale convention and where it comes from
    block_size: int  # tokens
    tensor_parallel: int
    pipeline_parallel: int
    pipeline_rank: int  # the rank described, from 0
    layer_count: int  # in the model, with layers that keep nothing
    rank_layer_count: int
    bytes_per_token: int  # all layers, while a sequence is shorter than every window
    bytes_per_token_beyond_windows: int  # layers without a window
    state_bytes: int  # of one sequence, whatever its length: recurrent layers
    block_bytes: int  # block_size tokens in all layers that grow
    layer_block_bytes: int  # one layer's part of a block, of the group that holds most of it
    page_bytes: int  # K (or V) of one layer of one block, or the latent; of that group too
    pages_per_block: int
    pages: tuple[PageSize, ...]  # all pieces of a block, those that hold most of it first
    model_bytes_per_token: int
    model_block_bytes: int
    model_state_bytes: int

    def bytes_for(self, tokens: int) -> int:
        """Bytes that one sequence of `tokens` tokens keeps on one rank.

        Raises:
            UsageError: `tokens` is negative.
        """
        _check_tokens(tokens)
        return self.state_bytes + sum(
            group.rank_count * group.tokens_kept(tokens) * group.bytes_per_token
            for group in self.layers
        )

    def model_bytes_for(self, tokens: int) -> int:
        """Bytes that one sequence keeps in the whole model, nothing counted twice.

        Raises:
            UsageError: `tokens` is negative.
        """
        _check_tokens(tokens)
        return self.model_state_bytes + sum(
            group.count * group.tokens_kept(tokens) * group.model_bytes_per_token
            for group in self.layers
        )

    def blocks_for(self, tokens: int) -> int:
        """Whole blocks that `tokens` tokens take.

        Raises:
            UsageError: `tokens` is negative.
        """
        _check_tokens(tokens)
        return -(-tokens // self.block_size)

    def tokens_in(self, space_bytes: int) -> int | None:
        """The longest single sequence that fits in `space_bytes` on one rank, in whole blocks.

        None: any length fits, for every layer has a window and all windows fit.
        """
        if space_bytes <= self.state_bytes:
            return 0
        start = 0
        # Between the ends of two windows the size is a straight line.
        for end in sorted({g.window_tokens for g in self.layers if g.window_tokens is not None}):
            length = self._length_from(start, space_bytes)
            if length is not None and length < end:
                return length // self.block_size * self.block_size
            start = end
        length = self._length_from(start, space_bytes)
        return None if length is None else length // self.block_size * self.block_size

    def formula(self) -> str:
        """How the whole model's bytes per token come about, numbers filled in; a line a term."""
        terms = [_term(group, self.cache_dtype) for group in self.layers if group.pieces]
        total = f"= {self.model_bytes_per_token:,} B/token"
        lines = [f"{terms[0]} {total}"] if len(terms) == 1 else [terms[0]]
        if len(terms) > 1:
            lines += [f"+ {term}" for term in terms[1:]] + [total]
        return "\n".join(lines + [_state_term(group) for group in self.layers if group.state])

    def _length_from(self, start: int, space_bytes: int) -> int | None:
        """The length that fits if the size goes on from `start` as it does there; None: any."""
        used = self.bytes_for(start)
        slope = self.bytes_for(start + 1) - used
        return start + (space_bytes - used) // slope if slope else None


def _check_tokens(tokens: int) -> None:
    if tokens < 0:
        raise UsageError(f"tokens = {tokens}: expected 0 or more")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _term(group: LayerGroup, dtype: CacheDtype) -> str:
    layers = _count(group.count, "layer")
    if group.window_tokens is not None:
        layers += f" ({group.window_kind}, at most {group.window_tokens:,} tokens)"
    if group.kind is LayerKind.MLA:
        return _TIMES.join((layers, _latent_term(group, dtype)))
    heads, head_dim = group.kv_heads or 0, group.head_dim or 0
    vector_bytes = group.model_bytes_per_token // (2 * heads)
    size, element_bits = _ELEMENTS[dtype]
    scale_bytes = vector_bytes - head_dim * element_bits // 8
    element = f"{head_dim} head_dim{_TIMES}{size}"
    if scale_bytes:
        element = f"({element} + {scale_bytes} B scale)"
    return _TIMES.join(("2 (K and V)", layers, _count(heads, "KV head"), f"{element} ({dtype})"))


def _latent_term(group: LayerGroup, dtype: CacheDtype) -> str:
    main, *indexer = group.pieces
    text = f"({group.latent_dim} latent + {group.rope_dim} rope)"
    if dtype is CacheDtype.FP8_DS_MLA:
        text = f"{main} B for {text} ({dtype})"
    else:
        text = f"{text}{_TIMES}{_ELEMENTS[dtype][0]} ({dtype})"
    return f"({text} + {indexer[0]} B indexer key)" if indexer else text


def _state_term(group: LayerGroup) -> str:
    parts = " + ".join(f"{tensor.model_bytes:,} B {tensor.name}" for tensor in group.state)
    total = group.count * group.model_state_bytes
    return f"once a sequence: {_count(group.count, 'layer')}{_TIMES}({parts}) = {total:,} B state"
