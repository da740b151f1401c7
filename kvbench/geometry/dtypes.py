"""Bytes of a cached vector in each cache dtype, scales included, and where the convention is from.

Only what a token costs is counted: a scale for a whole tensor or layer is no bytes per token.
"""

from dataclasses import dataclass

from kvbench.errors import UsageError
from kvbench.geometry.record import CacheDtype

# vLLM's `fp8_ds_mla`, a token of one layer: 512 e4m3 values of the latent, 4 fp32 scales (one for
# 128 values) and the 64 rope values in bf16.
DS_MLA_LATENT_DIM = 512
DS_MLA_ROPE_DIM = 64
DS_MLA_BYTES = 512 + 4 * 4 + 64 * 2

# DeepSeek-V3.2's indexer keys in vLLM: e4m3 values with one fp32 scale for each 128, whatever the
# dtype of the main cache.
INDEXER_GROUP = 128
INDEXER_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How one head's vector of one token is stored."""

    bits: int  # of an element
    scale_bytes: int  # beside each head's K and each head's V
    note: str


STORAGE = {
    CacheDtype.FP16: Storage(bits=16, scale_bytes=0, note="no scales"),
    CacheDtype.BF16: Storage(bits=16, scale_bytes=0, note="no scales"),
    CacheDtype.FP8: Storage(
        bits=8,
        scale_bytes=0,
        note="one fp32 scale a tensor of a layer (vLLM fp8), no bytes per token",
    ),
    CacheDtype.FP8_DS_MLA: Storage(
        bits=8,
        scale_bytes=0,
        note="656 B a token and layer: 512 e4m3, 4 fp32 scales, 64 bf16 (vLLM fp8_ds_mla)",
    ),
    CacheDtype.INT8: Storage(
        bits=8,
        scale_bytes=4,
        note="one fp32 scale for each token, head, K and V (vLLM int8_per_token_head)",
    ),
    CacheDtype.INT4: Storage(
        bits=4,
        scale_bytes=4,
        note="4 B for each token, head, K and V: fp32 scale with the zero point in its low bits "
        "(vLLM int4_per_token_head)",
    ),
}


def parse_cache_dtype(text: str) -> CacheDtype:
    """The cache dtype named by `text`.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        return CacheDtype(text.strip().lower())
    except ValueError:
        names = ", ".join(CacheDtype)
        raise UsageError(f"{text!r} is not a cache dtype: expected one of {names}") from None


def vector_bytes(dtype: CacheDtype, head_dim: int) -> int:
    """Bytes of one head's K or V of one token, with its scale.

    Raises:
        UsageError: the dtype is for MLA only, or the vector is not a whole number of bytes.
    """
    if dtype is CacheDtype.FP8_DS_MLA:
        raise UsageError("fp8_ds_mla stores an MLA latent and this model keeps K and V: use fp8")
    storage = STORAGE[dtype]
    if head_dim * storage.bits % 8:
        raise UsageError(f"{dtype} packs two values a byte and head_dim = {head_dim} is odd")
    return head_dim * storage.bits // 8 + storage.scale_bytes


def latent_bytes(dtype: CacheDtype, latent_dim: int, rope_dim: int) -> int:
    """Bytes of one token's MLA latent and rope key in one layer.

    Raises:
        UsageError: no engine is known to store a latent so.
    """
    if dtype is CacheDtype.FP8_DS_MLA:
        if (latent_dim, rope_dim) != (DS_MLA_LATENT_DIM, DS_MLA_ROPE_DIM):
            raise UsageError(
                f"fp8_ds_mla is defined for a latent of {DS_MLA_LATENT_DIM} and {DS_MLA_ROPE_DIM} "
                f"rope values and this model has {latent_dim} and {rope_dim}: use fp8"
            )
        return DS_MLA_BYTES
    if dtype in {CacheDtype.INT8, CacheDtype.INT4}:
        raise UsageError(
            f"no convention is known for an MLA latent in {dtype}: use bf16, fp8 or fp8_ds_mla"
        )
    return (latent_dim + rope_dim) * STORAGE[dtype].bits // 8


def indexer_bytes(index_head_dim: int) -> int:
    """Bytes of one token's indexer key in one layer, with its scales.

    Raises:
        UsageError: the key is not whole groups of 128 values.
    """
    groups, rest = divmod(index_head_dim, INDEXER_GROUP)
    if rest:
        raise UsageError(
            f"index_head_dim = {index_head_dim}: expected a multiple of {INDEXER_GROUP}, "
            "for the indexer's keys have one scale for each 128 values"
        )
    return index_head_dim + groups * INDEXER_SCALE_BYTES
