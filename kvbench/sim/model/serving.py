"""Terms fitted to measured serving: six efficiencies, shared, then shrunk to what is known of each.

The fit is non-negative least squares on relative errors, reweighted towards the absolute error so
that few wild rows do not decide. Below the shared coefficients stand factors for a backend, for a
model on it and for that on one generation of hardware and weights; each is drawn towards its
parent's, so that of what was never seen the parent's are used. Errors are those of groups left out
whole: a row never predicts its own neighbours.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import cache

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.sim.model.hardware import hardware
from kvbench.sim.model.least import F64, nonnegative
from kvbench.sim.model.shape import Shape, shape_of
from kvbench.sim.model.tables import Served
from kvbench.sim.model.terms import TPOT_TERMS, TTFT_TERMS, Setting, tpot_terms, ttft_terms

# A parent's coefficients count as much as so many rows with a typical error, for each level
SHRINK = {"backend": 10.0, "model": 1.0, "generation": 1.0}
ROUNDS = 20  # of reweighting; later ones move shared coefficients by less than 1 %
TYPICAL = 0.15  # relative error of a row
LEAST = 0.03  # below it a row's error counts as this much


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients by group: "" shared, then "backend", "backend/model", …, as `groups_of` has."""

    terms: tuple[str, ...]
    coefficients: dict[str, tuple[float, ...]]
    rows: int

    def of(self, groups: Sequence[str]) -> F64:
        """Of the last group that was seen."""
        known = [group for group in groups if group in self.coefficients]
        return np.array(self.coefficients[known[-1]])


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Relative errors of predictions for what was left out; ratios are predicted to measured."""

    rows: int
    mape: float
    median: float
    ratio_low: float  # 5th and 95th percentile
    ratio_high: float
    ratio_median: float


def setting_of(row: Served) -> Setting:
    """The physical setting of a measured row; the cache has 8 bits a number where weights do."""
    return Setting(
        shape=_shape(row.model),
        gpu=hardware(row.system),
        gpus=row.gpus,
        replicas=row.replicas,
        weights=row.weights,
        cache_bytes=2.0 if row.weights == "bf16" else 1.0,
        concurrency=row.concurrency,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
    )


def groups_of(backend: str, model: str, system: str, weights: str) -> tuple[str, ...]:
    """From shared to particular. DeepSeek's V3 and R1 are one model to a machine."""
    model = model.replace("deepseek-r1", "deepseek-v3")
    of_model = f"{backend}/{model}"
    return "", backend, of_model, f"{of_model}/{system[0]}-{weights}"


def tpot_matrix(rows: Sequence[Served]) -> F64:
    """Terms of each row: float64 [rows, terms]."""
    return np.array([tpot_terms(setting_of(row)) for row in rows])


def ttft_matrix(rows: Sequence[Served]) -> F64:
    """Terms of each row but for its TPOT, of which the last is a multiple: see `with_steps`."""
    return np.array([ttft_terms(setting_of(row), 1.0) for row in rows])


def with_steps(terms: F64, tpot_s: F64) -> F64:
    """Terms of TTFT, given what each row's TPOT is predicted to be."""
    made = terms.copy()
    made[:, -1] *= tpot_s
    return made


def fit(terms: F64, seconds: F64, rows: Sequence[Served], names: tuple[str, ...]) -> Fit:
    """Shared coefficients, then those of every group.

    Raises:
        UsageError: fewer rows than terms.
    """
    if len(rows) < len(names):
        raise UsageError(f"{len(rows)} rows cannot decide {len(names)} terms: give more rows")
    groups = [groups_of(row.backend, row.model, row.system, row.weights) for row in rows]
    coefficients = {"": _reweighted(terms, seconds, None, 0.0)}
    for level, strength in enumerate(SHRINK.values(), start=1):
        members: dict[str, list[int]] = {}
        for number, of_row in enumerate(groups):
            members.setdefault(of_row[level], []).append(number)
        for group, some in members.items():
            parent = coefficients[groups[some[0]][level - 1]]
            coefficients[group] = _reweighted(terms[some], seconds[some], parent, strength)
    return Fit(
        terms=names,
        coefficients={group: tuple(map(float, found)) for group, found in coefficients.items()},
        rows=len(rows),
    )


def predict(found: Fit, terms: F64, rows: Sequence[Served]) -> F64:
    """Seconds of each row."""
    laws = [found.of(groups_of(row.backend, row.model, row.system, row.weights)) for row in rows]
    seconds: F64 = np.sum(terms * np.array(laws), axis=1)
    return seconds


def fit_both(rows: Sequence[Served]) -> tuple[Fit, Fit]:
    """Of TPOT and of TTFT."""
    terms = tpot_matrix(rows)
    tpot = fit(terms, np.array([row.tpot_s for row in rows]), rows, TPOT_TERMS)
    first = with_steps(ttft_matrix(rows), predict(tpot, terms, rows))
    return tpot, fit(first, np.array([row.ttft_s for row in rows]), rows, TTFT_TERMS)


def cross_validate(
    rows: Sequence[Served], group: Callable[[Served], Hashable], *, folds: int, seed: int = 0
) -> tuple[F64, F64]:
    """Ratios of predicted to measured TPOT and TTFT, each group predicted without its rows.

    `folds` sets of groups are left out in turn; 0: each group by itself.
    """
    names = sorted({str(group(row)) for row in rows})
    order = np.random.default_rng(seed).permutation(len(names))
    count = folds if 0 < folds < len(names) else len(names)
    fold_of = {name: int(place) % count for name, place in zip(names, order, strict=True)}
    fold = np.array([fold_of[str(group(row))] for row in rows])
    tpot, ttft = np.array([r.tpot_s for r in rows]), np.array([r.ttft_s for r in rows])
    terms, waits = tpot_matrix(rows), ttft_matrix(rows)
    ratios = np.full((2, len(rows)), np.nan)
    for number in range(count):
        out, into = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        known, asked = [rows[int(i)] for i in into], [rows[int(i)] for i in out]
        law = fit(terms[into], tpot[into], known, TPOT_TERMS)
        steps = predict(law, terms[out], asked)
        ratios[0, out] = steps / tpot[out]
        first = with_steps(waits[into], predict(law, terms[into], known))
        law = fit(first, ttft[into], known, TTFT_TERMS)
        ratios[1, out] = predict(law, with_steps(waits[out], steps), asked) / ttft[out]
    return ratios[0], ratios[1]


def errors(ratios: F64) -> Errors:
    """What ratios of predicted to measured say."""
    off = np.abs(ratios - 1)
    low, middle, high = np.quantile(ratios, (0.05, 0.5, 0.95))
    return Errors(
        rows=len(ratios),
        mape=float(off.mean()),
        median=float(np.median(off)),
        ratio_low=float(low),
        ratio_high=float(high),
        ratio_median=float(middle),
    )


@cache
def _shape(model: str) -> Shape:
    return shape_of(model)


def _reweighted(terms: F64, seconds: F64, parent: F64 | None, strength: float) -> F64:
    """Least relative error, each coefficient drawn to its parent's by `strength` rows."""
    weights: F64 = 1 / seconds
    found = np.zeros(terms.shape[1])
    for _ in range(ROUNDS):
        left = np.asarray(terms * weights[:, None], np.float64)
        right = np.asarray(seconds * weights, np.float64)
        if parent is not None:
            pull = math.sqrt(strength)
            scale = np.where(parent > 0, parent, 1e-9)  # what the parent has not, the child has not
            left = np.vstack([left, np.diag(pull / scale)])
            drawn = np.where(parent > 0, pull, 0.0)
            right = np.asarray(np.concatenate([right, drawn]), np.float64)
        found = nonnegative(left, right)
        off = np.abs(terms @ found - seconds) / seconds
        weights = np.asarray(np.sqrt(TYPICAL / np.maximum(off, LEAST)) / seconds, np.float64)
    return found
