"""The machine record, the run and the model as lists of terms and values, every known fact once.

Names and units come from the records' own field names, so that a new field needs nothing here.
What could not be learned is left out, unless its reason is a fact itself.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import msgspec

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import Report
from kvbench.units import format_bytes, format_rate
from kvbench_reports.words import clean, moment

_ACRONYMS = frozenset(
    {"cuda", "cpu", "ecc", "gds", "gpu", "hbm", "id", "l3", "mig", "numa", "nvml", "pci", "sm"}
)
_SPELLED = {"io": "I/O", "cpus": "CPUs", "gpus": "GPUs", "pcie": "PCIe", "bar1": "BAR1"}
_MOST_CHARACTERS = 600  # of one fact; cgroup and mount options can be long


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One group of terms with their values."""

    title: str
    facts: tuple[tuple[str, str], ...]


def machine_facts(machine: Machine) -> list[Facts]:
    """The machine record, group by group."""
    groups: list[tuple[str, msgspec.Struct | None]] = [
        *((f"GPU {gpu.index}" if len(machine.gpus) > 1 else "GPU", gpu) for gpu in machine.gpus),
        ("NVIDIA driver", machine.cuda),
        ("CPU", machine.cpu),
        ("Memory", machine.memory),
        *((f"NUMA node {node.index}", node) for node in machine.numa_nodes),
        ("Storage", machine.storage),
        ("KvikIO", machine.kvikio),
        ("Control group", machine.cgroup),
        ("Software", machine.os),
    ]
    found = [Facts(title=title, facts=tuple(_facts(part))) for title, part in groups if part]
    if machine.fingerprint:
        known = (("fingerprint", clean(machine.fingerprint)),)
        found.append(Facts(title="Identity", facts=known))
    return [each for each in found if each.facts]


def model_facts(model: KVGeometry) -> Facts:
    """What the bytes of a block were worked out from."""
    grid = ((model.tensor_parallel, "tensor"), (model.pipeline_parallel, "pipeline"))
    ranks = ", ".join(f"{word} parallel {ways}" for ways, word in grid if ways > 1)
    facts = [
        ("name", clean(model.name)),
        ("cache dtype", clean(model.cache_dtype)),
        ("tokens in a block", f"{model.block_size:,}"),
        ("bytes of a block", f"{model.block_bytes:,}"),
        ("bytes of a token", f"{model.bytes_per_token:,}"),
        *([("one rank of", ranks)] if ranks else []),
    ]
    return Facts(title="Model", facts=tuple(facts))


def run_facts(report: Report) -> Facts:
    """How the report was made."""
    facts = [
        ("command", clean(shlex.join(report.command)) or "not recorded"),
        ("kvbench", clean(report.kvbench_version)),
        ("suite", clean(report.suite)),
        ("started", moment(report.started_at)),
        ("finished", moment(report.finished_at) if report.finished_at else "not finished"),
        *([("commit", clean(report.commit))] if report.commit else []),
        *([("side", clean(report.side))] if report.side else []),
        ("session", clean(report.session_id)),
        *((_term(name), _value(name, value)) for name, value in report.plan.items()),
    ]
    return Facts(title="Run", facts=tuple(facts))


def _facts(part: msgspec.Struct) -> Iterator[tuple[str, str]]:
    for name in part.__struct_fields__:
        value: object = getattr(part, name)
        text = _value(name, value)
        if text:
            yield _term(name), text


def _term(name: str) -> str:
    for unit in ("_bytes_per_s", "_bytes", "_hz", "_s"):
        name = name.removesuffix(unit)
    words = clean(name).split("_")
    return " ".join(
        _SPELLED.get(word, word.upper() if word in _ACRONYMS else word) for word in words
    )


def _value(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return _shortened(", ".join(str(item) for item in cast("list[object]", value)))
    if isinstance(value, int | float):
        return _number(name, value)
    return _shortened(str(value))


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes_per_s"):
        return format_rate(value)
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_hz"):
        return f"{value / 1e6:,.0f} MHz"
    if name.endswith("_s"):
        return f"{value:g} s"
    return str(value) if isinstance(value, int) else f"{value:g}"


def _shortened(text: str) -> str:
    line = clean(text)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"
