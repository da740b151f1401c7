"""The fixed state of recurrent layers: its tensors' shapes and sizes, whole and on one rank.

Shapes are those of vLLM's MambaStateShapeCalculator, without speculative decoding. A state keeps
the last inputs of a short convolution (`conv`) and the recurrence itself (`ssm`). dtypes follow
vLLM's "auto": `conv` in the model's dtype; `ssm` in the config's `mamba_ssm_cache_dtype` or
`mamba_ssm_dtype` where it has one and else in the model's dtype, whatever the dtype of K and V.
"""

from dataclasses import dataclass
from math import prod

from kvbench.errors import UsageError
from kvbench.geometry.fields import Fields
from kvbench.geometry.record import StateTensor

_DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """The state of one layer and one sequence.

    The convolution runs over `inner` channels and two sets of `groups` times `group_dim` (B and C
    of Mamba-2, Q and K of a gated delta net); the recurrence has `heads` heads of `head_shape`.
    """

    inner: int
    groups: int
    group_dim: int
    group_is_shared: bool  # a lone group is copied to each rank of a tensor-parallel model
    heads: int
    head_shape: tuple[int, ...]
    kernel: int
    conv_element_bytes: int
    ssm_element_bytes: int

    def tensors(self, tensor_parallel: int) -> tuple[StateTensor, ...]:
        """The state's tensors on one of `tensor_parallel` ranks.

        Raises:
            UsageError: heads or groups cannot be divided.
        """
        groups = self.groups
        if groups == 1 and self.group_is_shared:
            groups = tensor_parallel
        for name, count in (("heads", self.heads), ("groups", groups), ("channels", self.inner)):
            if count % tensor_parallel:
                raise UsageError(
                    f"tensor_parallel = {tensor_parallel} does not divide the {count} {name} of "
                    "the recurrent layers: choose a divisor"
                )
        channels = (self.inner + 2 * groups * self.group_dim) // tensor_parallel
        conv = (self.kernel - 1, channels)
        ssm = (self.heads // tensor_parallel, *self.head_shape)
        whole_channels = self.inner + 2 * self.groups * self.group_dim
        return (
            StateTensor(
                name="conv",
                shape=conv,
                element_bytes=self.conv_element_bytes,
                bytes=prod(conv) * self.conv_element_bytes,
                model_bytes=(self.kernel - 1) * whole_channels * self.conv_element_bytes,
            ),
            StateTensor(
                name="ssm",
                shape=ssm,
                element_bytes=self.ssm_element_bytes,
                bytes=prod(ssm) * self.ssm_element_bytes,
                model_bytes=self.heads * prod(self.head_shape) * self.ssm_element_bytes,
            ),
        )


def mamba2_state(fields: Fields, *, inner: int, names: tuple[str, str, str, str, str]) -> StateSpec:
    """Mamba-2 with `inner` channels.

    `names` are the config's fields for heads, head size, groups, state size and kernel.

    Raises:
        UsageError: a field is missing or wrong.
    """
    heads = fields.integer(names[0])
    if fields.values.get(names[1]) == "auto":  # in transformers: what makes the channels add up
        if inner % heads:
            raise fields.error(names[0], f"= {heads} does not divide the {inner} Mamba channels")
        head_dim = inner // heads
    else:
        head_dim = fields.integer(names[1])
    groups, state, kernel = (fields.integer(name) for name in names[2:])
    conv_bytes, ssm_bytes = _element_bytes(fields)
    return StateSpec(
        inner=inner,
        groups=groups,
        group_dim=state,
        group_is_shared=True,
        heads=heads,
        head_shape=(head_dim, state),
        kernel=kernel,
        conv_element_bytes=conv_bytes,
        ssm_element_bytes=ssm_bytes,
    )


def delta_net_state(fields: Fields) -> StateSpec:
    """Gated delta net, as in Qwen3-Next.

    Raises:
        UsageError: a field is missing or wrong.
    """
    heads = fields.integer("linear_num_value_heads")
    value_dim = fields.integer("linear_value_head_dim")
    key_dim = fields.integer("linear_key_head_dim")
    conv_bytes, ssm_bytes = _element_bytes(fields)
    return StateSpec(
        inner=heads * value_dim,
        groups=fields.integer("linear_num_key_heads"),
        group_dim=key_dim,
        group_is_shared=False,
        heads=heads,
        head_shape=(value_dim, key_dim),
        kernel=fields.integer("linear_conv_kernel_dim"),
        conv_element_bytes=conv_bytes,
        ssm_element_bytes=ssm_bytes,
    )


def jamba_state(fields: Fields) -> StateSpec:
    """Mamba-1, as in Jamba: a recurrence for each channel.

    Raises:
        UsageError: a field is missing or wrong.
    """
    inner = fields.integer("mamba_expand") * fields.integer("hidden_size")
    conv_bytes, ssm_bytes = _element_bytes(fields)
    return StateSpec(
        inner=inner,
        groups=0,
        group_dim=0,
        group_is_shared=False,
        heads=inner,
        head_shape=(fields.integer("mamba_d_state"),),
        kernel=fields.integer("mamba_d_conv"),
        conv_element_bytes=conv_bytes,
        ssm_element_bytes=ssm_bytes,
    )


def _element_bytes(fields: Fields) -> tuple[int, int]:
    """Bytes of an element of the convolution's and of the recurrence's state."""
    model = _dtype_bytes(fields, "dtype" if fields.has("dtype") else "torch_dtype")
    for name in ("mamba_ssm_cache_dtype", "mamba_ssm_dtype"):
        if fields.has(name):
            return model, _dtype_bytes(fields, name)
    return model, model


def _dtype_bytes(fields: Fields, name: str) -> int:
    dtype = fields.text(name)
    if dtype not in _DTYPE_BYTES:
        raise fields.error(name, f"= {dtype!r}: expected one of {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[dtype]
