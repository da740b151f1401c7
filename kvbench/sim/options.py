"""What a user may ask of a simulation, as plain data: every option of `kvbench simulate`.

Checks what can be checked without a model, a trace or a machine, and reads options out of text:
routers, prices, sweeps. Makes no scenario (`kvbench.sim.study` does) and needs no NumPy, so that
`--help` knows the defaults at once.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import msgspec

from kvbench.errors import UsageError
from kvbench.sim.scenario import Architecture

MOST_RUNS = 10_000  # of a sweep
Value = bool | int | float | str | None
_LEAST = {  # options that are below this are refused; what may not be 0 is in _ABOVE_ZERO
    "nodes": 1,
    "decode_nodes": 0,
    "gpus": 1,
    "hbm_gib": 0,
    "dram_gib": 0,
    "nvme_gib": 0,
    "central_gib": 0,
    "directory_delay_s": 0,
    "queue_depth": 1,
    "most_sequences": 1,
    "requests": 1,
    "seed": 0,
}
_MOST = {"nodes": 10_000, "decode_nodes": 10_000}  # memory and time grow with them
_ABOVE_ZERO = (
    "central_gbit",
    "network_gbit",
    "slo_ttft_s",
    "slo_tpot_s",
    "replicate_ratio",
    "prefill_scale",
    "decode_scale",
    "rate_scale",
)
_PARTS = ("gpu_hour", "dram_gib_hour", "nvme_gib_hour", "central_gib_hour", "node_hour")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One simulation. Capacities are of one node, but `central_gib` is of the whole store.

    The defaults are a small cluster that is quick to try, not advice.
    """

    architecture: Architecture = Architecture.NONE
    router: str = "least-outstanding"  # NAME or NAME:option=number,option=number
    eviction: str = "lru"
    nodes: int = 8
    decode_nodes: int = 0
    model: str = "llama-3.1-70b"
    kv_dtype: str = "bf16"
    stored_dtype: str | None = None  # below HBM; None: as in HBM
    hardware: str = "h100"
    weights: str = "bf16"  # how the model's weights are stored
    gpus: int = 8  # of a node
    tiers: str | None = None  # a report's path or a name; None: those of `hardware`
    hbm_gib: float | None = None  # None: what weights leave
    hbm_batch_share: float = 0.5  # of it, for the running batch of a node that does both
    dram_gib: float = 256.0
    nvme_gib: float = 0.0
    central_gib: float = 1024.0
    central_gbit: float = 400.0  # each way, of the whole store
    network_gbit: float | None = None  # of a node, each way; None: what `tiers` say
    queue_depth: int = 16
    most_sequences: int = 256  # that a node decodes at a time
    directory_delay_s: float = 0.0
    replicate_ratio: float | None = None  # None: nothing is copied
    load_always: bool = False  # even where computing again is faster
    overlap: bool = True
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    reject: bool = False
    prefill_scale: float = 1.0  # computing takes so many times what is modelled
    decode_scale: float = 1.0
    requests: int | None = None  # None: all of the trace
    rate_scale: float = 1.0
    seed: int = 0

    def check(self) -> "Options":
        """Itself.

        Raises:
            UsageError: a value is out of its range; it is named with what was seen.
        """
        for name in msgspec.structs.asdict(self):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{flag(name)} {value}: expected a finite number")
            if value is None or name not in {*_LEAST, *_ABOVE_ZERO}:
                continue
            if value > _MOST.get(name, math.inf):
                raise UsageError(f"{flag(name)} {value:,}: expected at most {_MOST[name]:,}")
            if name in _ABOVE_ZERO and not value > 0:
                raise UsageError(f"{flag(name)} {value:g}: expected more than 0")
            if name in _LEAST and value < _LEAST[name]:
                raise UsageError(f"{flag(name)} {value:g}: expected at least {_LEAST[name]}")
        if not 0 < self.hbm_batch_share < 1:
            raise UsageError(
                f"--hbm-batch-share {self.hbm_batch_share:g}: expected more than 0 and less than 1"
            )
        if self.reject and self.slo_ttft_s is None and self.slo_tpot_s is None:
            raise UsageError("--reject refuses what would miss its SLO: name --slo-ttft-s or -tpot")
        read_router(self.router)
        return self


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What things cost in dollars an hour, as the user says, on the day that he says."""

    date: str  # ISO
    gpu_hour: float = 0.0
    dram_gib_hour: float = 0.0
    nvme_gib_hour: float = 0.0
    central_gib_hour: float = 0.0
    node_hour: float = 0.0  # whatever else a node costs: its host, its network

    def per_hour(self, options: Options) -> float:
        """Dollars an hour of the whole cluster."""
        node = (
            options.gpus * self.gpu_hour
            + options.dram_gib * self.dram_gib_hour
            + options.nvme_gib * self.nvme_gib_hour
            + self.node_hour
        )
        whole = (options.nodes + options.decode_nodes) * node
        if options.architecture is Architecture.CENTRAL:
            whole += options.central_gib * self.central_gib_hour
        return whole


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """An option and the values that it takes in turn."""

    option: str
    values: list[Value]


def flag(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def read_router(text: str) -> tuple[str, dict[str, float]]:
    """`cache-aware:threshold=0.5,balance=32` as a name and numbers.

    Raises:
        UsageError: an option is not a number; whether the rule knows it is not looked at.
    """
    name, _, rest = text.partition(":")
    numbers: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        try:
            numbers[key.strip()] = float(value)
        except ValueError:
            raise UsageError(
                f"--router {text!r}: {part!r} is no option: write NAME:option=number,option=number"
            ) from None
    return name.strip(), numbers


def read_prices(text: str) -> Prices:
    """`gpu_hour=2.5,dram_gib_hour=0.004,date=2026-11-26` as prices.

    Raises:
        UsageError: a part is not known, a price is no number of at least 0, or the day is missing.
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = (each.strip() for each in part.partition("="))
        if key not in {*_PARTS, "date"}:
            raise UsageError(f"--price {key!r}: expected date and any of {', '.join(_PARTS)}")
        found[key] = _day(value) if key == "date" else _price(key, value)
    if "date" not in found:
        raise UsageError("--price without date=YYYY-MM-DD: a price holds on a day; say which")
    return Prices(**found)


def read_axis(text: str) -> Axis:
    """`dram_gib=0,64,256` as an axis. A router's own options go on after a comma.

    Raises:
        UsageError: there is no such option, or a value is not one of its kind.
    """
    name, equals, rest = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    known = Options.__struct_fields__
    if not equals or name not in known:
        raise UsageError(
            f"--sweep {text!r}: expected OPTION=VALUE,VALUE with an option of {', '.join(known)}"
        )
    texts: list[str] = []
    for part in rest.split(","):
        goes_on = name == "router" and texts and re.match(r"[^:]+=", part)
        if goes_on:
            texts[-1] += f",{part}"
        else:
            texts.append(part.strip())
    values = [_value(name, each) for each in texts]
    if len({repr(each) for each in values}) < len(values):
        raise UsageError(f"--sweep {text!r}: a value stands there twice")
    return Axis(option=name, values=values)


def grid(base: Options, axes: Sequence[Axis]) -> list[tuple[dict[str, Value], Options]]:
    """Every combination in order, the last axis fastest: what differs from `base`, and the whole.

    Raises:
        UsageError: an option has two axes, there are too many runs, or a value is out of range.
    """
    names = [axis.option for axis in axes]
    if len(set(names)) < len(names):
        raise UsageError(f"--sweep names {', '.join(names)}: each option once")
    runs = math.prod(len(axis.values) for axis in axes)
    if runs > MOST_RUNS:
        raise UsageError(f"{runs:,} runs: expected at most {MOST_RUNS:,}; sweep fewer values")
    return list(_combinations(base, axes, names))


def _combinations(
    base: Options, axes: Sequence[Axis], names: list[str]
) -> Iterator[tuple[dict[str, Value], Options]]:
    for values in itertools.product(*(axis.values for axis in axes)):
        changed = dict(zip(names, values, strict=True))
        yield changed, msgspec.structs.replace(base, **changed).check()


def _value(name: str, text: str) -> Value:
    try:
        whole = msgspec.convert({name: text}, Options, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error).partition(" - at")[0]
        raise UsageError(f"--sweep {name}: {text!r} is no value of it ({reason})") from None
    value: Value = getattr(whole, name)
    return value


def _price(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"--price {key}={text}: expected dollars an hour, at least 0")
    return value


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"--price date={text}: expected YYYY-MM-DD") from None
