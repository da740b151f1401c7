"""Fit the serving model to measured tables and print how far it is off, by group.

    python -m benchmarks.serving_fit DIR [--write] [--seeds 5]

DIR has aiconfigurator_silicon_sample.csv (AIConfigurator, Apache-2.0) and
splitwise-sim_perf_model.csv (SplitwiseSim, MIT). Rows are never left out one by one: whole
configurations (model, system, backend, weights, GPUs, ranks), or whole models. With --write the
coefficients go to kvbench/data/serving_fit.json; the rows do not.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvbench.sim.model.compute import Fitted, Silicon, fit_splitwise
from kvbench.sim.model.least import F64
from kvbench.sim.model.serving import Errors, cross_validate, errors, fit_both
from kvbench.sim.model.tables import Served, read_silicon, read_splitwise

SILICON = "aiconfigurator_silicon_sample.csv"
SPLITWISE = "splitwise-sim_perf_model.csv"
DATA = Path(__file__).parent.parent / "kvbench" / "data" / "serving_fit.json"
FEW = 8  # requests at a time
COMMIT = "095f58a51c4ca8e61b66ec108d86f223f8d559ce"


def line(label: str, of: Errors) -> None:
    """One group's errors."""
    print(
        f"  {label:<44} {of.rows:>5} {100 * of.mape:>6.1f} {100 * of.median:>6.1f}   "
        f"{of.ratio_low:.2f} / {of.ratio_median:.2f} / {of.ratio_high:.2f}"
    )


def by(rows: Sequence[Served], ratios: F64, key: Callable[[Served], str]) -> None:
    """The same by a property of the rows."""
    for name in sorted({key(row) for row in rows}):
        line(name, errors(ratios[[i for i, row in enumerate(rows) if key(row) == name]]))


def show(label: str, rows: Sequence[Served], seeds: int) -> dict[str, dict[str, Errors]]:
    """Grouped cross-validation of some rows; what is stored of it."""
    print(f"\n{label}: {len(rows)} rows")
    print(
        f"  {'left out':<44} {'rows':>5} {'MAPE':>6} {'median':>6}   predicted/measured 5/50/95 %"
    )
    stored: dict[str, dict[str, Errors]] = {}
    spread: dict[str, list[float]] = {"TPOT": [], "TTFT": []}
    for seed in range(seeds):
        both = cross_validate(rows, lambda row: row.configuration, folds=10, seed=seed)
        for name, ratios in zip(spread, both, strict=True):
            spread[name].append(errors(ratios).mape)
        if seed == 0:
            stored["configuration"] = _named(rows, both)
            line("configurations, 10 folds: TPOT", errors(both[0]))
            line("configurations, 10 folds: TTFT", errors(both[1]))
            line(f"  TTFT of at most {FEW} requests at a time", stored["configuration"]["prefill"])
            by(rows, both[0], lambda row: f"  TPOT of {row.backend}")
    for name, values in spread.items():
        print(
            f"  {name} MAPE over {seeds} draws of folds: "
            f"{_percent(min(values))} to {_percent(max(values))}"
        )
    both = cross_validate(rows, lambda row: row.model, folds=0)
    stored["model"] = _named(rows, both)
    line("models, one at a time: TPOT", errors(both[0]))
    line("models, one at a time: TTFT", errors(both[1]))
    line(f"  TTFT of at most {FEW} requests at a time", stored["model"]["prefill"])
    by(rows, both[0], lambda row: f"  TPOT of {row.model}")
    by(rows, both[1], lambda row: f"  TTFT of {row.model}")
    return stored


def repeats(rows: Sequence[Served]) -> None:
    """How far measurements of one load on one configuration are apart: what nobody can predict."""
    cells: dict[object, list[float]] = {}
    for row in rows:
        load = (row.input_tokens, row.output_tokens, row.concurrency)
        cells.setdefault((row.configuration, load), []).append(row.tpot_s)
    several = [np.array(each) for each in cells.values() if len(each) > 1]
    off = [
        abs(float(np.median(np.delete(each, i))) / value - 1)
        for each in several
        for i, value in enumerate(each)
    ]
    print(
        f"\nThe rows' own spread: {len(off)} rows have the same load measured again (another "
        f"version or day); predicted by those others, MAPE {_percent(float(np.mean(off)))}, "
        f"median {_percent(float(np.median(off)))}"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _named(rows: Sequence[Served], both: tuple[F64, F64]) -> dict[str, Errors]:
    """A prefill by itself is a time to the first token that waits for few others."""
    alone = [number for number, row in enumerate(rows) if row.concurrency <= FEW]
    of = {"tpot": both[0], "ttft": both[1], "prefill": both[1][alone]}
    return {name: errors(ratios) for name, ratios in of.items()}


def main() -> None:
    """Fit, validate, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    silicon = read_silicon(arguments.directory / SILICON)
    rows = silicon.rows
    print(f"{SILICON}: {len(rows)} rows used; left out: {silicon.left_out}")
    repeats(rows)
    stored = show("all aggregated rows", rows, arguments.seeds)
    dense = [row for row in rows if row.model.startswith("llama")]
    show("dense models alone", dense, arguments.seeds)
    tpot, ttft = fit_both(rows)
    print("\nshared efficiencies (1 / coefficient where a term is ideal seconds; layers in us)")
    for found in (tpot, ttft):
        print(
            "  "
            + ", ".join(
                f"{n} {c:.3g}" for n, c in zip(found.terms, found.coefficients[""], strict=True)
            )
        )
    deployments: dict[str, list[int]] = {}
    table = read_splitwise(arguments.directory / SPLITWISE)
    for number, run in enumerate(table):
        deployments.setdefault(f"{run.model}-{run.hardware}-tp{run.gpus}", []).append(number)
    measured = {name: fit_splitwise([table[i] for i in some]) for name, some in deployments.items()}
    print(f"\n{SPLITWISE}: largest error of a median, prefill and decode")
    for name, of in measured.items():
        print(f"  {name:<28} {_percent(of.prefill_error):>8} {_percent(of.decode_error):>8}")
    if arguments.write:
        lengths = [row.input_tokens for row in rows]
        fitted = Fitted(
            silicon=Silicon(
                source=f"six terms fitted to {len(rows)} measured rows of AIConfigurator's "
                f"silicon_sample.csv (ai-dynamo/aiconfigurator @ {COMMIT[:12]}, Apache-2.0, Qwen "
                "rows left out)",
                tpot=tpot,
                ttft=ttft,
                unseen_configuration=stored["configuration"],
                unseen_model=stored["model"],
                tokens=(min(lengths), max(lengths)),
                sequences=(1, max(row.concurrency for row in rows)),
            ),
            splitwise_source="fit to SplitwiseSim's perf_model.csv (Mutinifni/splitwise-sim, MIT, "
            "(c) 2024 Pratyush Patel), measured on a stack of 2023",
            splitwise=measured,
        )
        DATA.write_bytes(msgspec.json.format(msgspec.json.encode(fitted), indent=1) + b"\n")
        print(f"wrote {DATA.name}")


if __name__ == "__main__":
    main()
