"""Times of computing: prefill and decode of one model on one node, by one of three calibrations.

`compute` is physics times efficiencies fitted to AIConfigurator's measured rows, `published` the
points of a paper's figure, `splitwise` a fit to SplitwiseSim's measured table. All of it is
MODELLED; each says from what, how far off it has been, and over which lengths.
"""

import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.sim.model.hardware import Hardware, hardware
from kvbench.sim.model.least import relative
from kvbench.sim.model.prediction import Prediction, around
from kvbench.sim.model.serving import Errors, Fit, groups_of
from kvbench.sim.model.shape import Shape, shape_of
from kvbench.sim.model.tables import PromptTime
from kvbench.sim.model.terms import KEPT, LAYER_S, Setting, costs
from kvbench.sim.scenario import Decode, Prefill

# LLaMA3-70B on one node of 8 A800, seconds by prompt tokens: Mooncake, FAST'25, Fig. 14, digitised
# from the paper's vector paths. Without a cached prefix; 128 tokens decoded after the prompt.
FIG14_TOKENS = (8_192, 16_384, 32_768, 65_536, 131_072)
FIG14_PREFILL_S = (1.005, 2.053, 4.478, 10.585, 27.52)
FIG14_DECODE_S = (3.39, 3.44, 3.52, 3.66, 3.94)
FIG14_DECODED = 128
BATCH = 64  # decode steps are made linear between a batch of one and of so many


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Factors: measured figures were between `low` and `high` times their prediction.

    Nine in ten of those that were left out of a fit, or all points of one that has few.
    """

    low: float
    high: float


class Compute(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill and decode times of a node, with what they rest on."""

    name: str
    source: str
    prefill: Prefill
    decode: Decode
    prefill_range: Range
    decode_range: Range
    tokens: tuple[int, int]  # calibrated lengths of inputs
    sequences: tuple[int, int]  # calibrated sizes of batches
    gpus: int
    hbm_free_bytes: float  # of the node, for cache that no rank has twice; 0: not known

    def prefill_s(self, tokens: int, cached_tokens: int = 0) -> Prediction:
        """Seconds to compute an input of which the first `cached_tokens` are at hand."""
        return around(
            self.prefill.seconds(tokens, cached_tokens),
            self.prefill_range.low,
            self.prefill_range.high,
            unit="s",
            source=self.source,
            outside=_outside("tokens", tokens, self.tokens),
        )

    def step_s(self, sequences: int, context_tokens: float) -> Prediction:
        """Seconds of one decode step; `context_tokens` is the sum over the sequences."""
        law = self.decode
        value = (
            law.fixed_s + law.per_sequence_s * sequences + law.per_context_token_s * context_tokens
        )
        each = context_tokens / max(1, sequences)
        return around(
            value,
            self.decode_range.low,
            self.decode_range.high,
            unit="s",
            source=self.source,
            outside=(
                *_outside("sequences", sequences, self.sequences),
                *_outside("tokens", each, self.tokens),
            ),
        )


class Silicon(msgspec.Struct, frozen=True, kw_only=True):
    """What was fitted to AIConfigurator's rows, with errors of groups that were left out."""

    source: str
    tpot: Fit
    ttft: Fit
    unseen_configuration: dict[str, Errors]  # "tpot" | "ttft" | "prefill": TTFT of few at a time
    unseen_model: dict[str, Errors]
    tokens: tuple[int, int]
    sequences: tuple[int, int]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was fitted to one deployment of SplitwiseSim's table."""

    prefill: Prefill
    decode: Decode
    prefill_error: float  # largest relative error of the medians it was fitted to
    decode_error: float
    tokens: tuple[int, int]
    sequences: tuple[int, int]
    gpus: int


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """What `kvbench/data/serving_fit.json` holds: coefficients, no rows."""

    silicon: Silicon
    splitwise_source: str
    splitwise: dict[str, Measured]


@cache
def fitted() -> Fitted:
    """Coefficients that ship with kvbench; benchmarks/serving_fit.py makes them."""
    data = files("kvbench.data").joinpath("serving_fit.json").read_bytes()
    return msgspec.json.decode(data, type=Fitted)


def compute(
    model: KVGeometry,
    gpu: Hardware | str,
    *,
    gpus: int = 8,
    weights: str = "bf16",
    backend: str = "",
    shape: Shape | None = None,
) -> Compute:
    """A model on a node of `gpus` GPUs that share every layer.

    `shape` says how large the weights are of a model that is not known by name. With a `backend`
    ("vllm", "sglang", "trtllm") its own efficiencies are used, else those that all share.

    Raises:
        UsageError: the model's weights or the hardware are not known, or do not fit.
    """
    known = fitted().silicon
    card = hardware(gpu) if isinstance(gpu, str) else gpu
    shape = shape or shape_of(model.name)
    system = gpu if isinstance(gpu, str) else card.name.lower()
    groups = groups_of(backend, shape.name, system, weights) if backend else ("",)
    seen = len(groups) > 1 and groups[2] in known.tpot.coefficients
    kept = shape.weight_bytes(weights).stored
    free = gpus * card.hbm_bytes * KEPT - kept
    if free <= 0:
        raise UsageError(
            f"{shape.name} in {weights} is {kept / 1e9:.0f} GB and {gpus} x {card.name} have "
            f"{gpus * card.hbm_bytes * KEPT / 1e9:.0f} GB for it: more GPUs or smaller weights "
            "(--tp of plan, --gpus of simulate, --weights)"
        )
    ranks = 1 if shape.latent else min(gpus, shape.kv_heads)  # of which each has another part
    basis = known.unseen_configuration if seen else known.unseen_model
    setting = Setting(
        shape=shape,
        gpu=card,
        gpus=gpus,
        weights=weights,
        input_tokens=1.0,
        output_tokens=1.0,
    )
    of_what = "of this model on other configurations" if seen else "of models it was not fitted to"
    return Compute(
        name=f"{shape.name} in {weights} on {gpus} x {card.name}",
        source=f"modelled: {known.source}; range {of_what}",
        prefill=_prefill(setting, known.ttft.of(groups).tolist()),
        decode=_decode(setting, known.tpot.of(groups).tolist(), model),
        prefill_range=_range(basis["prefill"]),
        decode_range=_range(basis["tpot"]),
        tokens=known.tokens,
        sequences=known.sequences,
        gpus=gpus,
        hbm_free_bytes=free * ranks / gpus,
    )


def _prefill(setting: Setting, law: Sequence[float]) -> Prefill:
    """A time to the first token of a lone request."""
    layers, ranks, work, exchange, _, _ = law
    cost = costs(setting)
    shape = setting.shape
    scores = 2 * shape.layers * shape.heads * shape.attention_dim
    return Prefill(
        fixed_s=shape.layers * LAYER_S * (layers + ranks * math.log2(setting.gpus)),
        per_token_s=work * cost.token_s + exchange * cost.exchange_s,
        per_token2_s=work * scores / (setting.gpus * setting.gpu.bf16_flops),
    )


def _decode(setting: Setting, law: Sequence[float], model: KVGeometry) -> Decode:
    layers, ranks, weights, cache_, work, exchange = law
    shape = setting.shape
    one, many = (
        costs(msgspec.structs.replace(setting, concurrency=float(batch))) for batch in (1, BATCH)
    )
    growth = (many.step_weights_s - one.step_weights_s) / (BATCH - 1)  # more experts are read
    ranks_of_cache = 1 if shape.latent else min(setting.gpus, shape.kv_heads)
    per_token = model.model_bytes_per_token / ranks_of_cache / setting.gpu.hbm_bytes_per_s
    return Decode(
        fixed_s=shape.layers * LAYER_S * (layers + ranks * math.log2(setting.gpus))
        + weights * (one.step_weights_s - growth),
        per_sequence_s=weights * growth + work * one.token_s + exchange * one.exchange_s,
        per_context_token_s=cache_ * per_token,
    )


def published(name: str = "mooncake-fast25") -> Compute:
    """LLaMA3-70B on 8 x A800, fitted to Fig. 14 of Mooncake's FAST'25 paper.

    Raises:
        UsageError: another name.
    """
    if name != "mooncake-fast25":
        raise UsageError(f"no published curve named {name!r}: there is mooncake-fast25")
    prefill, error = fit_prefill(FIG14_TOKENS, FIG14_PREFILL_S, fixed=False)
    steps = [each / FIG14_DECODED for each in FIG14_DECODE_S]
    terms = np.array([[1.0, tokens + FIG14_DECODED / 2] for tokens in FIG14_TOKENS])
    law, decode_error = relative(terms, np.array(steps))
    return Compute(
        name="LLaMA3-70B on 8 x A800",
        source="modelled: fit to Fig. 14 of Mooncake (FAST'25), five points, published",
        prefill=prefill,
        decode=Decode(fixed_s=float(law[0]), per_sequence_s=0.0, per_context_token_s=float(law[1])),
        prefill_range=_within(error),
        decode_range=_within(decode_error),
        tokens=(FIG14_TOKENS[0], FIG14_TOKENS[-1]),
        sequences=(1, 1),
        gpus=8,
        hbm_free_bytes=8 * hardware("a800").hbm_bytes * KEPT
        - shape_of("llama-3.1-70b").weight_bytes("bf16").stored,
    )


def splitwise(name: str) -> Compute:
    """One deployment of SplitwiseSim's table, as "llama2-70b-h100-80gb-tp8".

    Raises:
        UsageError: no such deployment; the message lists them.
    """
    found = fitted().splitwise.get(name)
    if found is None:
        raise UsageError(f"no deployment {name!r}: there are {', '.join(fitted().splitwise)}")
    return Compute(
        name=name,
        source=f"modelled: {fitted().splitwise_source}",
        prefill=found.prefill,
        decode=found.decode,
        prefill_range=_within(found.prefill_error),
        decode_range=_within(found.decode_error),
        tokens=found.tokens,
        sequences=found.sequences,
        gpus=found.gpus,
        hbm_free_bytes=0.0,
    )


def fit_prefill(
    tokens: Sequence[int], seconds: Sequence[float], *, fixed: bool
) -> tuple[Prefill, float]:
    """The law of `Prefill` through measured times without a cached prefix; its worst error."""
    columns = [[1.0 if fixed else 0.0, float(n), float(n) ** 2] for n in tokens]
    found, error = relative(np.array(columns), np.array(seconds))
    law = [float(each) for each in found]
    return Prefill(fixed_s=law[0], per_token_s=law[1], per_token2_s=law[2]), error


def fit_splitwise(rows: Sequence[PromptTime]) -> Measured:
    """One deployment's medians: prompts of every length and batch, tokens of every batch."""
    tokens, prompt_s = _medians(
        [((row.prompt_tokens,), row.prompt_s) for row in rows if row.batch == 1]
    )
    prefill, prefill_error = fit_prefill([key[0] for key in tokens], prompt_s, fixed=True)
    loads, token_s = _medians(
        [((row.batch, row.prompt_tokens + row.output_tokens // 2), row.token_s) for row in rows]
    )
    terms = np.array([[1.0, batch, batch * context] for batch, context in loads], float)
    law, decode_error = relative(terms, np.array(token_s))
    return Measured(
        prefill=prefill,
        decode=Decode(
            fixed_s=float(law[0]), per_sequence_s=float(law[1]), per_context_token_s=float(law[2])
        ),
        prefill_error=prefill_error,
        decode_error=decode_error,
        tokens=(min(tokens)[0], max(tokens)[0]),
        sequences=(1, max(batch for batch, _ in loads)),
        gpus=rows[0].gpus,
    )


def _medians(
    values: Sequence[tuple[tuple[int, ...], float]],
) -> tuple[list[tuple[int, ...]], list[float]]:
    cells: dict[tuple[int, ...], list[float]] = {}
    for key, value in values:
        cells.setdefault(key, []).append(value)
    keys = sorted(cells)
    return keys, [float(np.median(cells[key])) for key in keys]


def _range(errors: Errors) -> Range:
    return Range(low=1 / errors.ratio_high, high=1 / errors.ratio_low)


def _within(error: float) -> Range:
    """Of predictions that are at most so far off, relative to what was measured."""
    return Range(low=1 / (1 + error), high=1 / (1 - error))


def _outside(name: str, value: float, known: tuple[int, int]) -> tuple[str, ...]:
    if known[0] <= value <= known[1]:
        return ()
    return (f"{name} {value:g} is outside {known[0]} to {known[1]}",)
