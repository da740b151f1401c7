"""How KV values are stored after quantising, in bytes: what the `kernels` suite sweeps.

Data only: kernels and checks of each format are in `kvbench_suites.codecs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvbench.measure.suite import Value

ELEMENT_BYTES = 2  # bf16, what is quantised
SCALE_BYTES = 4  # float32


@dataclass(frozen=True, slots=True)
class Format:
    """How values are stored after quantising.

    A group shares a scale, and with `has_minimum` a minimum. A group of 0 is a whole vector of one
    head and token, one of `PER_TENSOR` everything; `by_channel` groups tokens of one channel.
    """

    bits: int
    group: int
    has_minimum: bool = False
    by_channel: bool = False

    def stored_bytes(self, values: int, head_dim: int) -> int:
        """Bytes of codes, scales and minima for so many values."""
        groups = values // (self.group or head_dim)
        return values * self.bits // 8 + groups * SCALE_BYTES * (2 if self.has_minimum else 1)


PER_TENSOR = 2**62  # values of a group: all there are

FORMATS: Mapping[str, Format] = {
    "fp8-head": Format(8, 0),
    "fp8-32": Format(8, 32),
    "fp8-64": Format(8, 64),
    "fp8-128": Format(8, 128),
    "fp8-tensor": Format(8, PER_TENSOR),
    "int8-head": Format(8, 0),
    "int4-32": Format(4, 32, has_minimum=True),
    "int4-64": Format(4, 64, has_minimum=True),
    "int4-128": Format(4, 128, has_minimum=True),
    "kivi-16": Format(4, 16, has_minimum=True, by_channel=True),
    "kivi-32": Format(4, 32, has_minimum=True, by_channel=True),
    "kivi-64": Format(4, 64, has_minimum=True, by_channel=True),
}
FUSED_FORMATS = ("fp8-head", "int8-head")
LOOP_FORMATS = ("raw", "fp8-head", "int8-head", "int4-64")


def count(params: Mapping[str, Value], name: str) -> int:
    """A parameter that is a number."""
    return int(params[name])


def block_values(params: Mapping[str, Value]) -> int:
    """Elements of a block."""
    return count(params, "block_bytes") // ELEMENT_BYTES


def stored_share(params: Mapping[str, Value]) -> float:
    """Bytes after quantising for each byte before."""
    name = str(params["format"])
    if name == "raw":
        return 1.0
    values = block_values(params)
    stored = FORMATS[name].stored_bytes(values, count(params, "head_dim"))
    return stored / (values * ELEMENT_BYTES)
