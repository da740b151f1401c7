"""Measured tables of serving that others published, read and checked line by line.

AIConfigurator's `silicon_sample.csv` (Apache-2.0) and SplitwiseSim's `perf_model.csv` (MIT). The
files are not part of kvbench; what was fitted to them is in `kvbench/data`. A row that is broken is
an error with its line; one that is sound but says too little is left out, counted with its reason.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from kvbench.errors import UsageError

# Part of a path of Hugging Face, lower case → preset of kvbench/data/weights.json
_MODELS = (
    ("llama-3.1-8b", "llama-3.1-8b"),
    ("llama-3.1-70b", "llama-3.1-70b"),
    ("llama-3.3-70b", "llama-3.3-70b"),
    ("llama-3.1-405b", "llama-3.1-405b"),
    ("deepseek-v3.2", "deepseek-v3.2"),
    ("deepseek-r1", "deepseek-v3"),  # the same shapes, and one deployment under both names
    ("deepseek-v3", "deepseek-v3"),
    ("kimi-k2", "kimi-k2"),
    ("glm-5", "glm-5"),
    ("minimax-m2", "minimax-m2"),
    ("gpt-oss-120b", "gpt-oss-120b"),
    ("gpt-oss-20b", "gpt-oss-20b"),
    ("qwen2.5-7b", "qwen2.5-7b"),
    ("qwen2.5-72b", "qwen2.5-72b"),
    ("qwen3-8b", "qwen3-8b"),
    ("qwen3-32b", "qwen3-32b"),
    ("qwen3-30b-a3b", "qwen3-30b-a3b"),
    ("qwen3-235b-a22b", "qwen3-235b-a22b"),
)
NODE_GPUS = (1, 2, 4, 8)  # racks that are labelled as one replica are left out
_CONCURRENCY = re.compile(r"silicon_concurrency=(\d+)")
_FIELDS = ("id", "silicon_data_source", "backend", "model_path", "system", "precision", "mode")
_COUNTS = ("isl", "osl", "batch_size", "tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
_TIMES = ("silicon_ttft_ms", "silicon_tpot_ms")
S_PER_MS = 1e-3


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One measured aggregated deployment under a closed loop of `concurrency` requests."""

    id: str
    model: str  # preset
    system: str  # GPU of kvbench/data/hardware.json
    backend: str
    weights: str  # "bf16" | "fp8" | "fp4" | "int4"
    gpus: int
    replicas: int  # of the attention: data-parallel ranks
    spread: bool  # experts are divided among ranks
    concurrency: int
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float

    @property
    def configuration(self) -> tuple[str, str, str, str, int, int, bool]:
        """What is deployed. Lengths and concurrency are its load and do not belong to it."""
        return (
            *(self.model, self.system, self.backend, self.weights),
            *(self.gpus, self.replicas, self.spread),
        )


class Silicon(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that can be used, and how many others there are, by reason."""

    rows: list[Served]
    left_out: dict[str, int]


class PromptTime(msgspec.Struct, frozen=True, kw_only=True):
    """One run of SplitwiseSim's table: a batch of prompts, then tokens one by one."""

    model: str
    hardware: str
    gpus: int
    prompt_tokens: int
    batch: int
    output_tokens: int
    prompt_s: float
    token_s: float


def read_silicon(path: Path) -> Silicon:
    """The aggregated rows of AIConfigurator's table.

    Left out: disaggregated rows; repeats of the very same measurement, of which the table has
    many; models and systems that are not known here; replicas of more than a node.

    Raises:
        UsageError: the file cannot be read, lacks a column, or a row has a value that cannot be.
    """
    rows: list[Served] = []
    seen: set[tuple[str, str]] = set()
    left_out: Counter[str] = Counter()
    for line, row in _lines(path, (*_FIELDS, *_COUNTS, *_TIMES)):
        reason = _unusable(row)
        if reason is None:
            served = _served(row, f"{path}:{line}")
            times = row[_TIMES[0]], row[_TIMES[1]]
            if times in seen:
                reason = "the same measurement again"
            elif served.gpus not in NODE_GPUS:
                reason = f"{served.gpus} GPUs"
            else:
                rows.append(served)
            seen.add(times)
        if reason is not None:
            left_out[reason] += 1
    if not rows:
        raise UsageError(f"{path}: no row can be used: {dict(left_out)}")
    return Silicon(rows=rows, left_out=dict(left_out))


def read_splitwise(path: Path) -> list[PromptTime]:
    """All rows of SplitwiseSim's table.

    Raises:
        UsageError: the file cannot be read, lacks a column, or a row has a value that cannot be.
    """
    numbers = ("prompt_size", "batch_size", "token_size", "prompt_time", "token_time")
    rows: list[PromptTime] = []
    for line, row in _lines(path, ("model", "hardware", *numbers, "tensor_parallel")):
        where = f"{path}:{line}"
        rows.append(
            PromptTime(
                model=row["model"],
                hardware=row["hardware"],
                gpus=_count(row, "tensor_parallel", where),
                prompt_tokens=_count(row, "prompt_size", where),
                batch=_count(row, "batch_size", where),
                output_tokens=_count(row, "token_size", where),
                prompt_s=_time_s(row, "prompt_time", where),
                token_s=_time_s(row, "token_time", where),
            )
        )
    if not rows:
        raise UsageError(f"{path}: no rows")
    return rows


def preset_of(model_path: str) -> str | None:
    """The preset that a repository's name means; None: not known here."""
    name = model_path.lower().replace("_", "-")
    return next((preset for part, preset in _MODELS if part in name), None)


def _lines(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                raise UsageError(f"{path}: no column {', '.join(lacking)}")
            for row in reader:
                if None in row or None in row.values():
                    raise UsageError(
                        f"{path}:{reader.line_num}: expected {len(reader.fieldnames or ())} fields"
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def _unusable(row: Mapping[str, str]) -> str | None:
    """Why a row is left out; None: it is not."""
    if row["mode"] != "agg":
        return f"mode {row['mode']}"
    if preset_of(row["model_path"]) is None:
        return f"model {row['model_path']}"
    return None


def _served(row: Mapping[str, str], where: str) -> Served:
    counts = {name: _count(row, name, where, empty=1) for name in _COUNTS}
    gpus, replicas = _gpus(counts, preset_of(row["model_path"]) or "")
    found = _CONCURRENCY.search(row["silicon_data_source"])
    batch = counts["batch_size"] * replicas
    return Served(
        id=row["id"],
        model=preset_of(row["model_path"]) or "",
        system=row["system"].removesuffix("_sxm"),
        backend=row["backend"],
        weights=row["precision"] or "bf16",
        gpus=gpus,
        replicas=replicas,
        spread=counts["moe_ep_size"] > 1,
        concurrency=int(found[1]) if found else batch,
        input_tokens=counts["isl"],
        output_tokens=counts["osl"],
        ttft_s=_time_s(row, "silicon_ttft_ms", where),
        tpot_s=_time_s(row, "silicon_tpot_ms", where),
    )


def _gpus(counts: Mapping[str, int], model: str) -> tuple[int, int]:
    """GPUs of a replica, and data-parallel ranks of its attention.

    The table multiplies what its sources give side by side: "tp 8, ep 8" is eight GPUs whose
    experts are divided eight ways, and stands there as tp_size 64 with moe_tp 8 and moe_ep 8 (the
    ids still say tp8_ep8, on nodes that have eight GPUs). Such squares are undone here.
    """
    tensor, data = counts["tp_size"], counts["attention_dp_size"]
    within, across = counts["moe_tp_size"], counts["moe_ep_size"]
    total = tensor * data
    if within == across > 1 and total == within * across:
        total = within
    elif (within == 1 and tensor == data > 1 and across == total) or model.startswith("llama"):
        total = tensor
    return total, min(data, total)


def _count(row: Mapping[str, str], name: str, where: str, *, empty: int | None = None) -> int:
    text = row[name]
    if not text and empty is not None:
        return empty
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{where}: {name} {text[:40]!r}: expected a whole number from 1")
    return int(text)


def _time_s(row: Mapping[str, str], name: str, where: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{where}: {name} {row[name][:40]!r}: expected milliseconds above 0")
    return value * S_PER_MS
