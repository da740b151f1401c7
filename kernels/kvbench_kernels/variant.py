"""What a kernel is compiled as: the shapes that ship, and what each build is allowed.

Every kernel module declares its `VARIANTS` at its end, beside the kernel; `kvbench_kernels.static`
compiles them for GPUs that need not be here and `kvbench_kernels.bars` judges the result. Data
only: nothing here compiles or launches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CAPABILITIES = (80, 90, 100)  # A100, H100, B200


class Work(Enum):
    """What a kernel does, and so which limits it is held to."""

    MOVE = "moves bytes"
    HARDWARE_CAST = "converts to or from fp8 by the hardware's own instruction (sm_89 and later)"
    SOFTWARE_CAST = "converts to or from fp8 by integer arithmetic (sm_80)"
    INT8 = "quantises to or from int8"
    INT4 = "quantises to or from int4, groups along a row"
    CHANNELS = "quantises to int4, one thread a channel, walking the tokens"
    CHECKSUM = "mixes words into sums"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kernel with the types and constants that it is launched with.

    `payload_load_bytes` and `payload_store_bytes` are what one program reads and writes of payload
    when no lane is masked off (the byte model's share of one program); ids, addresses and scales
    are not payload, and there are at most `narrow_loads` and `narrow_stores` instructions for them
    in a thread. A kernel whose payload goes through a loop gives None: counts of instructions say
    nothing of bytes then.
    """

    name: str  # unique, such as "gather_pages" or "quantise_fp8.token_head"
    kernel: Any  # triton.JITFunction
    types: Mapping[str, str]  # of run-time arguments, in Triton's words: "*i32", "i64", "*bf16"
    constants: Mapping[str, int | str | bool]
    work: Work
    payload_load_bytes: int | None
    payload_store_bytes: int | None
    num_warps: int = 4
    narrow_loads: int = 0
    narrow_stores: int = 0
    capabilities: tuple[int, ...] = CAPABILITIES
    # Bar, or bar and architecture ("S4", "S4.sm_100") → why it cannot hold
    exempt: Mapping[str, str] = field(default_factory=dict[str, str])
