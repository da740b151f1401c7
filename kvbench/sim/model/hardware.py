"""Named hardware: figures of data sheets, each with its source (`kvbench/data/hardware.json`).

A data sheet is a limit, not a measurement. What share of it is reached stands beside it as a range
with its source and is never applied in secret. Rates are in one direction; of GPUs, of one GPU.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TypeVar

import msgspec

from kvbench.errors import UsageError

T = TypeVar("T")


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. FLOP/s are dense; None: it has no such arithmetic."""

    name: str
    hbm_bytes: float
    hbm_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float | None
    fp4_flops: float | None
    host_bytes_per_s: float  # between it and the host's memory
    peer_bytes_per_s: float  # to the other GPUs of the node
    nic_bytes_per_s: float  # its share of the node's network
    source: str

    def flops(self, dtype: str) -> float:
        """FLOP/s on weights of `dtype`; what it cannot do it does in the next wider that it can."""
        ways = {
            "bf16": (self.bf16_flops,),
            "fp8": (self.fp8_flops, self.bf16_flops),
            "fp4": (self.fp4_flops, self.bf16_flops),  # 4-bit weights alone: the sums are bf16
            "int4": (self.bf16_flops,),
        }
        if dtype not in ways:
            raise UsageError(f"weights {dtype!r}: expected one of {', '.join(ways)}")
        return next(rate for rate in ways[dtype] if rate is not None)


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """One NVMe drive."""

    name: str
    read_bytes_per_s: float
    write_bytes_per_s: float
    read_latency_s: float
    write_latency_s: float
    source: str


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """One network port."""

    name: str
    bytes_per_s: float
    latency_s: float
    source: str


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """The share of a data sheet's rate that is reached."""

    low: float
    value: float
    high: float
    source: str


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known by name."""

    gpus: dict[str, Hardware]
    drives: dict[str, Drive]
    nics: dict[str, Nic]
    efficiency: dict[str, Efficiency]  # "memory" | "host" | "drive" | "network"


@cache
def catalogue() -> Catalogue:
    """What `kvbench/data/hardware.json` holds."""
    data = files("kvbench.data").joinpath("hardware.json").read_bytes()
    return msgspec.json.decode(data, type=Catalogue)


def hardware_names() -> tuple[str, ...]:
    """GPUs known by name."""
    return tuple(catalogue().gpus)


def hardware(name: str) -> Hardware:
    """A GPU by name, upper and lower case being the same.

    Raises:
        UsageError: no GPU of that name is known; the message lists them.
    """
    return _find(name, catalogue().gpus, "hardware")


def drive(name: str) -> Drive:
    """A drive by name.

    Raises:
        UsageError: no drive of that name is known.
    """
    return _find(name, catalogue().drives, "drive")


def nic(name: str) -> Nic:
    """A network port by its rate: 100g to 800g.

    Raises:
        UsageError: no port of that name is known.
    """
    return _find(name, catalogue().nics, "network port")


def _find(name: str, known: Mapping[str, T], what: str) -> T:
    found = known.get(name.strip().lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"no {what} named {name!r}: {hint}There are {', '.join(known)}")
